//! SQLAlchemy types: `Enum(…)` in its forms, and what is surely something else.

use super::super::enums::EnumInfo;
use super::super::evaluate::{Evaluator, Instance, Scope, Thing};
use std::rc::Rc;
use unstale_protocol::binding::{Label, Sends};
use unstale_protocol::ids::EnumName;
use unstale_protocol::value::{Same, Value};

/// Most labels of one type.
const MAX_LABELS: usize = 20_000;

/// The type of a column.
#[derive(Debug)]
pub(super) enum ColumnType {
    /// An `Enum`, or an array of one.
    Enum(SqlEnum),
    /// Surely something else.
    Plain,
    /// Not followed.
    Unknown,
}

/// An `Enum` type as declared.
#[derive(Debug)]
pub(super) struct SqlEnum {
    pub(super) enum_name: Option<EnumName>,
    pub(super) type_name: Option<String>,
    pub(super) schema: Option<String>,
    pub(super) native: bool,
    pub(super) sends: Sends,
    pub(super) labels: Vec<Label>,
}

/// Tells whether `full` is one of `names` of SQLAlchemy or of an extension of it.
pub(super) fn has_name(full: &str, names: &[&str]) -> bool {
    let (root, last) = (full.split('.').next().unwrap_or(full), full.rsplit('.').next().unwrap_or(full));
    matches!(root, "sqlalchemy" | "sqlmodel" | "flask_sqlalchemy") && names.contains(&last)
}

pub(super) fn is_named(thing: &Thing, name: &str) -> bool {
    matches!(thing, Thing::External(full) if has_name(full, &[name]))
}

/// Tells whether a call of `thing` declares a column.
pub(super) fn is_column(thing: &Thing) -> bool {
    matches!(thing, Thing::External(full) if has_name(full, &["Column", "mapped_column", "MappedColumn"]))
}

/// Tells whether an argument of `Column` is no type.
pub(super) fn is_constraint(thing: &Thing) -> bool {
    const NAMES: [&str; 9] = [
        "ForeignKey",
        "Sequence",
        "Identity",
        "Computed",
        "CheckConstraint",
        "FetchedValue",
        "DefaultClause",
        "ColumnDefault",
        "UniqueConstraint",
    ];
    matches!(thing, Thing::Instance(instance) if matches!(&instance.of, Thing::External(full) if has_name(full, &NAMES)))
}

/// Returns the type that a thing is.
pub(super) fn resolve(evaluator: &Evaluator<'_>, thing: &Thing) -> ColumnType {
    resolve_at(evaluator, thing, 0)
}

fn resolve_at(evaluator: &Evaluator<'_>, thing: &Thing, depth: u32) -> ColumnType {
    match thing {
        Thing::Instance(instance) => match &instance.of {
            Thing::External(full) if has_name(full, &["Enum", "ENUM"]) => {
                ColumnType::Enum(declared(evaluator, instance, None))
            }
            Thing::External(full) if has_name(full, &["ARRAY"]) && depth < 4 => {
                match instance.arguments.first().or_else(|| instance.keyword("item_type")) {
                    Some(item) => resolve_at(evaluator, item, depth + 1),
                    None => ColumnType::Unknown,
                }
            }
            Thing::External(full) if full.starts_with("sqlalchemy.") => ColumnType::Plain,
            Thing::Class(class) if descends_from_enum(evaluator, &Thing::Class(class.clone()), 0) => {
                let why = format!("made by {}", evaluator.title(&instance.of));
                let info = instance.arguments.first().and_then(|first| evaluator.enum_of(first));
                ColumnType::Enum(SqlEnum {
                    sends: Sends::Unresolved { why: why.clone() },
                    labels: vec![Label::Unresolved { why }],
                    ..named(instance, info.as_ref())
                })
            }
            _ => ColumnType::Unknown,
        },
        Thing::External(full) if full.starts_with("sqlalchemy.") && !has_name(full, &["Enum", "ENUM"]) => {
            ColumnType::Plain
        }
        _ => ColumnType::Unknown,
    }
}

/// Tells whether a class of the project is a subclass of SQLAlchemy's `Enum`.
fn descends_from_enum(evaluator: &Evaluator<'_>, thing: &Thing, depth: u32) -> bool {
    match thing {
        Thing::External(full) => has_name(full, &["Enum", "ENUM"]),
        Thing::Class(class) if depth < 8 => {
            evaluator.bases(class).iter().any(|base| descends_from_enum(evaluator, base, depth + 1))
        }
        _ => false,
    }
}

/// Reads name, schema and whether the type is native.
fn named(instance: &Instance, info: Option<&Rc<EnumInfo>>) -> SqlEnum {
    let text = |name: &str| match instance.keyword(name) {
        Some(Thing::Value(Value::Str(text))) => Some(text.clone()),
        _ => None,
    };
    let type_name = match instance.keyword("name") {
        None => info.map(|info| {
            let short = info.name.qualname.rsplit('.').next().unwrap_or_default();
            short.to_lowercase()
        }),
        Some(_) => text("name"),
    };
    let is_postgres = is_named(&instance.of, "ENUM");
    let native = is_postgres || instance.keyword("native_enum") != Some(&Thing::Value(Value::Bool(false)));
    SqlEnum {
        enum_name: info.map(|info| info.name.clone()),
        type_name,
        schema: text("schema"),
        native,
        sends: Sends::Labels,
        labels: Vec::new(),
    }
}

/// Reads `Enum(…)`. `given` is the class that an annotation gives to the generic `Enum(enum.Enum, …)`.
pub(super) fn declared(evaluator: &Evaluator<'_>, instance: &Instance, given: Option<&Thing>) -> SqlEnum {
    let class =
        given.or_else(|| instance.arguments.first()).filter(|_| !instance.arguments.is_empty() || given.is_some());
    let info = class.and_then(|class| evaluator.enum_of(class));
    let shell = named(instance, info.as_ref());
    let (sends, labels) = match (info, class) {
        (Some(info), Some(class)) => sent(evaluator, instance, class, &info),
        _ => written(instance),
    };
    SqlEnum { sends, labels, ..shell }
}

fn doubt(why: impl Into<String>) -> (Sends, Vec<Label>) {
    let why = why.into();
    (Sends::Unresolved { why: why.clone() }, vec![Label::Unresolved { why }])
}

/// `Enum("a", "b")`.
fn written(instance: &Instance) -> (Sends, Vec<Label>) {
    let labels = instance.arguments.iter().map(|argument| match argument {
        Thing::Value(Value::Str(text)) => Some(Label::Text(text.clone())),
        _ => None,
    });
    match labels.collect::<Option<Vec<_>>>() {
        Some(labels) if !labels.is_empty() => (Sends::Labels, labels),
        _ => match instance.arguments.first() {
            Some(Thing::Unresolved(why)) => doubt(why.clone()),
            Some(Thing::External(name)) => doubt(format!("{name} is not read")),
            _ => doubt("labels that are not known"),
        },
    }
}

/// `Enum(Class)`, `Enum(Class, values_callable=…)`.
fn sent(evaluator: &Evaluator<'_>, instance: &Instance, class: &Thing, info: &Rc<EnumInfo>) -> (Sends, Vec<Label>) {
    if !info.members_known {
        return doubt(format!("the members of {} are not known", info.name.qualname));
    }
    let names = || info.definition.members.iter().map(|member| member.name.as_str());
    let callable = match instance.keyword("values_callable") {
        None | Some(Thing::Value(Value::None)) => {
            return (Sends::Names, names().map(|name| Label::Text(name.to_owned())).collect());
        }
        Some(Thing::Unresolved(why)) => return doubt(format!("values_callable is {why}")),
        Some(callable) => callable.clone(),
    };
    let scope = Scope::late(&instance.module);
    let result = evaluator.call(callable, vec![class.clone()], Vec::new(), &scope);
    let Some(items) = evaluator.items(&result).filter(|items| items.len() <= MAX_LABELS) else {
        return doubt(match result {
            Thing::Unresolved(why) => format!("values_callable: {why}"),
            _ => "values_callable returns what is not known".to_owned(),
        });
    };
    let values: Vec<Value> = items.iter().map(|item| evaluator.value(item)).collect();
    let labels: Vec<Label> = values.iter().map(label).collect();
    let alike = |wanted: &mut dyn Iterator<Item = Value>| {
        let wanted: Vec<Value> = wanted.collect();
        wanted.len() == values.len() && wanted.iter().zip(&values).all(|(wanted, value)| wanted.same(value) != Same::No)
    };
    let mut own = info.definition.members.iter().map(|member| member.value.clone());
    let sends = if alike(&mut own) {
        Sends::Values
    } else if alike(&mut names().map(Value::str)) {
        Sends::Names
    } else {
        Sends::Labels
    };
    (sends, labels)
}

fn label(value: &Value) -> Label {
    match value {
        Value::Str(text) => Label::Text(text.clone()),
        Value::Unresolved { why } => Label::Unresolved { why: why.clone() },
        other => Label::Unresolved { why: format!("{} is no text", other.repr().chars().take(40).collect::<String>()) },
    }
}
