//! A process against its own next-start source: what `inspect` does where no manifest is known.

use super::binding;
use super::enums::{EnumJudged, LayerView, WorkerJudged, bytecode, conclude, finding, worse_bytecode, worse_memory};
use super::view::{CodeView, ModuleView};
use crate::purge::StaleFile;
use crate::reading::{LoadedEnum, LoadedModule, MappedColumn, Outcome, Reading, Standing};
use std::collections::BTreeMap;
use unstale_protocol::ids::EnumName;
use unstale_protocol::verdict::{Bytecode, Memory, Source};

/// Judges every enum of a reading against the source that its process would import at the next start.
pub fn against_source(reading: &Reading, code: &CodeView) -> WorkerJudged {
    if let Some(why) = obstacle(reading) {
        return WorkerJudged::unknown(why);
    }
    let mut columns = Columns::of(reading);
    let mut enums = Vec::new();
    for loaded in &reading.enums {
        if !columns.is_of_interest(loaded) {
            continue;
        }
        let module = loaded.module_key.as_ref().and_then(|key| code.modules.get(key));
        let of_enum = columns.take(loaded);
        enums.push(judge_one(reading, code, loaded, module.map(AsRef::as_ref), &of_enum));
    }
    for column in columns.rest() {
        enums.push(judge_bare(reading, code, column));
    }
    let stale_files = stale_files(code.modules.values().map(AsRef::as_ref));
    let files_right = stale_files.is_empty() && code.modules.values().all(|module| module.problem.is_none());
    WorkerJudged::of(enums, stale_files, files_right)
}

/// Returns why nothing at all can be said, where that is so.
pub(crate) fn obstacle(reading: &Reading) -> Option<String> {
    match &reading.outcome {
        Outcome::Complete => None,
        Outcome::Starting(why) => Some(format!("starting: {why}")),
        Outcome::NoEnum => Some("starting: enum is not imported yet".to_owned()),
        Outcome::Changing(why) => Some(format!("its classes kept changing: {why}")),
        Outcome::Unsupported(why) => Some(format!("not supported: {why}")),
        Outcome::Denied(why) => Some(why.clone()),
        Outcome::Gone => Some("the process ended while it was read".to_owned()),
        Outcome::Limit(which) => Some(format!("a limit was reached: {which}")),
        Outcome::Damaged(why) => Some(format!("its memory made no sense: {why}")),
        Outcome::Timeout => Some("reading it took too long and was given up".to_owned()),
    }
}

pub(super) fn stale_files<'a>(modules: impl Iterator<Item = &'a ModuleView>) -> Vec<StaleFile> {
    let mut files: Vec<StaleFile> = modules
        .filter_map(|module| match &module.bytecode {
            super::view::BytecodeState::Stale { file, .. } => Some(file.clone()),
            _ => None,
        })
        .collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files.dedup_by(|a, b| a.path == b.path);
    files
}

/// The bound columns of a process, by the enum they were made from.
pub(super) struct Columns<'a> {
    by_address: BTreeMap<u64, Vec<&'a MappedColumn>>,
    bare: Vec<&'a MappedColumn>,
}

impl<'a> Columns<'a> {
    pub(super) fn of(reading: &'a Reading) -> Self {
        let known: std::collections::BTreeSet<u64> = reading.enums.iter().map(|loaded| loaded.address).collect();
        let mut columns = Self { by_address: BTreeMap::new(), bare: Vec::new() };
        for column in reading.mapped.iter().flat_map(|mapped| &mapped.bindings) {
            match column.enum_address.filter(|address| known.contains(address)) {
                Some(address) => columns.by_address.entry(address).or_default().push(column),
                None => columns.bare.push(column),
            }
        }
        columns
    }

    /// An old generation that no loaded binding uses is a note, no finding.
    pub(super) fn is_of_interest(&self, loaded: &LoadedEnum) -> bool {
        loaded.standing != Standing::Twin || self.by_address.contains_key(&loaded.address)
    }

    pub(super) fn take(&mut self, loaded: &LoadedEnum) -> Vec<&'a MappedColumn> {
        self.by_address.remove(&loaded.address).unwrap_or_default()
    }

    pub(super) fn rest(self) -> impl Iterator<Item = &'a MappedColumn> {
        self.by_address.into_values().flatten().chain(self.bare)
    }
}

pub(super) fn is_importing(reading: &Reading, key: Option<&String>) -> bool {
    let is_it = |module: &&LoadedModule| Some(&module.name) == key;
    reading.modules.iter().find(is_it).is_some_and(|module| module.initializing)
}

/// Says what `.standing` means before any comparison; `None` where the class is where it belongs.
pub(super) fn standing(reading: &Reading, loaded: &LoadedEnum) -> Option<Memory> {
    if is_importing(reading, loaded.module_key.as_ref()) {
        return Some(Memory::Unknown("starting: its module is still being imported".into()));
    }
    match loaded.standing {
        Standing::Bound => None,
        Standing::Twin => Some(Memory::Different("a loaded column still uses an old generation of this class".into())),
        Standing::Unreachable => Some(Memory::Untracked("it was made at run time".into())),
    }
}

fn judge_one(
    reading: &Reading,
    code: &CodeView,
    loaded: &LoadedEnum,
    module: Option<&ModuleView>,
    columns: &[&MappedColumn],
) -> EnumJudged {
    let defined = module.and_then(|module| module.defined(&loaded.name.qualname));
    let mut undecided = 0;
    let definition = match (standing(reading, loaded), module, defined) {
        (Some(memory), ..) => memory,
        (None, None, _) => Memory::Unknown("its module has no file to compare with".into()),
        (None, Some(ModuleView { problem: Some(why), .. }), _) => Memory::Unknown(why.clone()),
        (None, Some(_), None) => Memory::Untracked("its source does not define it".into()),
        (None, Some(_), Some(defined)) if !defined.members_known => {
            Memory::Untracked("its members cannot be computed from its source".into())
        }
        (None, Some(_), Some(defined)) => {
            let comparison = defined.definition.compare(&loaded.definition);
            undecided = u32::try_from(comparison.undecided.len()).unwrap_or(u32::MAX);
            finding(&comparison, "its source")
        }
    };
    let (memory, code_bytes, bindings) = with_columns(reading, code, definition, bytecode(module), columns);
    let judgement = conclude(memory, Source::Right, code_bytes);
    EnumJudged {
        name: loaded.name.clone(),
        verdict: judgement.verdict,
        cure: judgement.cure,
        because: judgement.because,
        memory: Some(LayerView { definition: loaded.definition.clone(), path: None, stale: false }),
        bytecode: module.and_then(|module| bytecode_layer(module, &loaded.name.qualname)),
        source: defined.map(|defined| LayerView {
            definition: defined.definition.clone(),
            path: module.and_then(|module| module.next.clone()),
            stale: false,
        }),
        bindings,
        undecided,
    }
}

pub(super) fn bytecode_layer(module: &ModuleView, qualname: &str) -> Option<LayerView> {
    let defined = module.bytecode.defines()?.enums.iter().find(|defined| defined.name.qualname == qualname)?;
    Some(LayerView {
        definition: defined.definition.clone(),
        path: module.bytecode.path(),
        stale: matches!(module.bytecode, super::view::BytecodeState::Stale { .. }),
    })
}

fn with_columns(
    reading: &Reading,
    code: &CodeView,
    mut memory: Memory,
    mut code_bytes: Bytecode,
    columns: &[&MappedColumn],
) -> (Memory, Bytecode, Vec<super::enums::BindingJudged>) {
    let mut bindings = Vec::new();
    for column in columns {
        let module = code.modules.get(&column.column.module).map(AsRef::as_ref);
        let labels = binding::labels(reading, column);
        let found = column_finding(reading, module, column, &labels);
        bindings.push(binding::judged(column, labels, module, &found));
        // What nobody can say of a column does not hide what is known of the class.
        if !matches!(found, Memory::Untracked(_)) {
            memory = worse_memory(memory, found);
        }
        code_bytes = worse_bytecode(code_bytes, bytecode(module));
    }
    (memory, code_bytes, bindings)
}

fn column_finding(reading: &Reading, module: Option<&ModuleView>, column: &MappedColumn, labels: &[String]) -> Memory {
    if is_importing(reading, Some(&column.column.module)) {
        return Memory::Unknown("starting: its module is still being imported".into());
    }
    match module {
        None => Memory::Unknown("its module has no file to compare with".into()),
        Some(ModuleView { problem: Some(why), .. }) => Memory::Unknown(why.clone()),
        Some(module) => {
            let found = binding::compare(&binding::of_source(module, column), labels);
            let source = module.binding(&column.column.class, &column.column.column);
            binding::explain(found, column, labels, source.map(|binding| binding.labels.as_slice()))
        }
    }
}

/// A binding without a Python enum is an entry of its own.
fn judge_bare(reading: &Reading, code: &CodeView, column: &MappedColumn) -> EnumJudged {
    let module = code.modules.get(&column.column.module).map(AsRef::as_ref);
    let labels = binding::labels(reading, column);
    let found = column_finding(reading, module, column, &labels);
    let judged = binding::judged(column, labels, module, &found);
    let judgement = conclude(found, Source::Right, bytecode(module));
    EnumJudged {
        name: EnumName::new(column.column.module.clone(), format!("{}.{}", column.column.class, column.column.column)),
        verdict: judgement.verdict,
        cure: judgement.cure,
        because: judgement.because,
        memory: None,
        bytecode: None,
        source: None,
        bindings: vec![judged],
        undecided: 0,
    }
}
