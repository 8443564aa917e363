//! Bindings: the labels that a process would send against those that are wanted.

use super::enums::BindingJudged;
use super::view::ModuleView;
use crate::reading::{MappedColumn, Reading};
use unstale_protocol::binding::Label;
use unstale_protocol::fingerprint::ValueDigest;
use unstale_protocol::verdict::{Memory, Verdict};

/// What is wanted of one column.
pub(super) enum Wanted {
    /// These labels; `None` where one cannot be computed.
    Labels(Vec<Option<ValueDigest>>),
    /// Labels that cannot be computed; the text says why.
    Unresolved(String),
    /// A column that is not an `Enum` any more.
    Plain,
    /// Nobody says anything of such a column.
    Nothing,
}

/// Returns the labels of a column in memory, those of aliases left out.
pub(super) fn labels(reading: &Reading, column: &MappedColumn) -> Vec<String> {
    let class = column.enum_address.and_then(|address| reading.enums.iter().find(|loaded| loaded.address == address));
    let is_alias =
        |label: &String| class.is_some_and(|class| class.definition.aliases.iter().any(|alias| alias.name == *label));
    column.labels.iter().filter(|label| !is_alias(label)).cloned().collect()
}

/// Compares what a process would send with what is wanted.
pub(super) fn compare(wanted: &Wanted, memory: &[String]) -> Memory {
    match wanted {
        Wanted::Nothing => Memory::Untracked("no source says what this column sends".into()),
        Wanted::Plain => {
            Memory::Different("memory still has an Enum on this column; the source has another type".into())
        }
        Wanted::Unresolved(why) => Memory::Unknown(format!("the labels it should send cannot be computed: {why}")),
        Wanted::Labels(wanted) => compare_labels(wanted, memory),
    }
}

fn compare_labels(wanted: &[Option<ValueDigest>], memory: &[String]) -> Memory {
    let differs = wanted.len() != memory.len()
        || wanted
            .iter()
            .zip(memory)
            .any(|(wanted, label)| wanted.is_some_and(|wanted| wanted != ValueDigest::of_text(label)));
    if differs {
        Memory::Different("it would send other labels than wanted".into())
    } else if wanted.iter().any(Option::is_none) {
        Memory::Unknown("it sends values, and one of them cannot be computed".into())
    } else {
        Memory::Equal
    }
}

/// Returns what the next-start source says of a column.
pub(super) fn of_source(module: &ModuleView, column: &MappedColumn) -> Wanted {
    let (class, name) = (&column.column.class, &column.column.column);
    match module.binding(class, name) {
        Some(binding) => of_binding(binding),
        None if module.is_plain(class, name) => Wanted::Plain,
        None => Wanted::Nothing,
    }
}

pub(super) fn of_binding(binding: &unstale_protocol::binding::Binding) -> Wanted {
    match &binding.sends {
        Some(unstale_protocol::binding::Sends::Unresolved { why }) => Wanted::Unresolved(why.clone()),
        _ => Wanted::Labels(binding.labels.iter().map(unstale_protocol::manifest::label_digest).collect()),
    }
}

/// Puts a column's finding into words and numbers.
pub(super) fn judged(
    column: &MappedColumn,
    memory: Vec<String>,
    module: Option<&ModuleView>,
    finding: &Memory,
) -> BindingJudged {
    let source = module
        .and_then(|module| module.binding(&column.column.class, &column.column.column))
        .map(|binding| binding.labels.iter().map(|label| label.text().map(ToOwned::to_owned)).collect::<Vec<_>>());
    let (verdict, because) = match finding {
        Memory::Different(why) => (Verdict::Stale, why.clone()),
        Memory::Unknown(why) => (Verdict::Unknown, why.clone()),
        Memory::Untracked(why) => (Verdict::Untracked, why.clone()),
        Memory::Equal | Memory::NotLoaded => (Verdict::Fresh, String::new()),
    };
    BindingJudged {
        column: column.column.clone(),
        type_name: column.type_name.clone(),
        schema: column.schema.clone(),
        native: column.native,
        memory,
        source,
        verdict,
        because,
    }
}

/// Says which labels differ, where both sides are known as text.
pub(super) fn explain(finding: Memory, column: &MappedColumn, memory: &[String], source: Option<&[Label]>) -> Memory {
    let Memory::Different(_) = &finding else { return finding };
    let wanted: Option<Vec<&str>> = source.and_then(|labels| labels.iter().map(Label::text).collect());
    match wanted {
        Some(wanted) if !wanted.iter().eq(memory.iter()) => {
            let pair = wanted.iter().zip(memory).find(|(wanted, label)| *wanted != label);
            Memory::Different(match pair {
                Some((wanted, label)) => format!("{} would send {label:?}, not {wanted:?}", column.column),
                None => format!("{} would send {} labels, not {}", column.column, memory.len(), wanted.len()),
            })
        }
        _ => Memory::Different(format!("{} would send other labels than wanted", column.column)),
    }
}
