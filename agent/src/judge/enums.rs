//! The verdict on one process, enum by enum, with the layers it rests on.

use super::view::{BytecodeState, ModuleView};
use crate::purge::StaleFile;
use unstale_protocol::binding::ColumnName;
use unstale_protocol::enumdef::{Comparison, Difference, EnumDef};
use unstale_protocol::ids::EnumName;
use unstale_protocol::verdict::{Bytecode, Cure, Judgement, Layers, Memory, Source, Verdict, judge, sum};

/// What one layer says of one enum, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerView {
    /// The definition.
    pub definition: EnumDef,
    /// The file, for source and bytecode.
    pub path: Option<String>,
    /// For bytecode: proven stale.
    pub stale: bool,
}

/// One column of an enum, judged.
#[derive(Clone, Debug, PartialEq)]
pub struct BindingJudged {
    /// The column.
    pub column: ColumnName,
    /// The database enum's name.
    pub type_name: Option<String>,
    /// Its schema, where the column names one.
    pub schema: Option<String>,
    /// Whether the column has a type of the database's own; else it is text with a check.
    pub native: bool,
    /// Labels in memory.
    pub memory: Vec<String>,
    /// Labels of the next-start source; `None` where one cannot be computed.
    pub source: Option<Vec<Option<String>>>,
    /// The verdict on the column.
    pub verdict: Verdict,
    /// What it rests on.
    pub because: String,
}

/// One enum of one process, judged.
#[derive(Clone, Debug, PartialEq)]
pub struct EnumJudged {
    /// Its name; for a binding without an enum, module and `Class.column`.
    pub name: EnumName,
    /// The verdict.
    pub verdict: Verdict,
    /// What would cure it.
    pub cure: Cure,
    /// What it rests on.
    pub because: String,
    /// In memory.
    pub memory: Option<LayerView>,
    /// In bytecode.
    pub bytecode: Option<LayerView>,
    /// In the next-start source.
    pub source: Option<LayerView>,
    /// Its columns.
    pub bindings: Vec<BindingJudged>,
    /// Members whose values could not be compared.
    pub undecided: u32,
}

/// One process, judged.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerJudged {
    /// The verdict; `None` where no enum could be judged and none had to be.
    pub verdict: Option<Verdict>,
    /// The strongest cure that any enum needs.
    pub cure: Cure,
    /// What the verdict rests on.
    pub because: String,
    /// All its enums.
    pub enums: Vec<EnumJudged>,
    /// Bytecode proven stale, with what proves it.
    pub stale_files: Vec<StaleFile>,
    /// How many enums and bindings cannot be judged by nature.
    pub untracked: u32,
    /// Whether next-start source and bytecode are what is wanted.
    pub files_right: bool,
}

impl WorkerJudged {
    /// Returns the judgement on a process of which nothing can be said.
    pub fn unknown(because: impl Into<String>) -> Self {
        Self {
            verdict: Some(Verdict::Unknown),
            cure: Cure::None,
            because: because.into(),
            enums: Vec::new(),
            stale_files: Vec::new(),
            untracked: 0,
            files_right: false,
        }
    }

    /// Adds up the enums of a process.
    pub(super) fn of(enums: Vec<EnumJudged>, stale_files: Vec<StaleFile>, files_right: bool) -> Self {
        let verdict = sum(enums.iter().map(|judged| judged.verdict));
        let cure = enums.iter().map(|judged| judged.cure).max_by_key(|cure| weight(*cure)).unwrap_or(Cure::None);
        let reason =
            enums.iter().filter(|judged| Some(judged.verdict) == verdict).max_by_key(|judged| weight(judged.cure)).map(
                |judged| match judged.verdict {
                    Verdict::Fresh => "every enum equals what is wanted".to_owned(),
                    Verdict::Unknown | Verdict::Untracked | Verdict::Stale => {
                        format!("{}: {}", judged.name, judged.because)
                    }
                },
            );
        let untracked =
            enums.iter().filter(|judged| judged.verdict == Verdict::Untracked || judged.undecided > 0).count();
        Self {
            verdict,
            cure,
            because: reason.unwrap_or_else(|| "no enum of an app is loaded".to_owned()),
            enums,
            stale_files,
            untracked: u32::try_from(untracked).unwrap_or(u32::MAX),
            files_right,
        }
    }
}

/// What stands in the way comes before what can be done: a restart that would load the wrong source helps nobody.
fn weight(cure: Cure) -> u8 {
    match cure {
        Cure::None => 0,
        Cure::Purge => 1,
        Cure::Restart => 2,
        Cure::PurgeThenRestart => 3,
        Cure::WaitForSource => 4,
        Cure::Deploy => 5,
    }
}

/// Says what the bytecode of `module` means for the verdict.
pub(super) fn bytecode(module: Option<&ModuleView>) -> Bytecode {
    match module.map(|module| &module.bytecode) {
        None | Some(BytecodeState::None | BytecodeState::Right { .. }) => Bytecode::Right,
        Some(BytecodeState::Stale { .. }) => Bytecode::Wrong,
        Some(BytecodeState::Unknown { why, .. }) => Bytecode::Unknown(why.clone()),
    }
}

/// The worse of two: stale before unknown before right.
pub(super) fn worse_bytecode(a: Bytecode, b: Bytecode) -> Bytecode {
    match (&a, &b) {
        (Bytecode::Wrong, _) => a,
        (_, Bytecode::Wrong) => b,
        (Bytecode::Unknown(_), _) => a,
        _ => b,
    }
}

/// The worse of two findings in memory: different, then unknown, then untracked, then equal.
pub(super) fn worse_memory(a: Memory, b: Memory) -> Memory {
    let rank = |memory: &Memory| match memory {
        Memory::NotLoaded => 0,
        Memory::Equal => 1,
        Memory::Untracked(_) => 2,
        Memory::Unknown(_) => 3,
        Memory::Different(_) => 4,
    };
    if rank(&b) > rank(&a) { b } else { a }
}

/// Turns a comparison into a finding. `what` names what memory differs from.
pub(super) fn finding(comparison: &Comparison, what: &str) -> Memory {
    match comparison.differences.first() {
        None => Memory::Equal,
        Some(first) => Memory::Different(format!("memory differs from {what}: {}", say(first))),
    }
}

fn say(difference: &Difference) -> String {
    match difference {
        Difference::Missing { name } => format!("it lacks {name}"),
        Difference::Extra { name } => format!("it still has {name}"),
        Difference::Value { name } => format!("{name} has another value"),
        Difference::Order => "its members stand in another order".to_owned(),
        Difference::Alias { name } => format!("the alias {name} differs"),
    }
}

/// Judges with the table.
pub(super) fn conclude(memory: Memory, source: Source, bytecode: Bytecode) -> Judgement {
    judge(&Layers { memory, source, bytecode })
}
