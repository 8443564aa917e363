//! `Mapped[…]` and fields of `SQLModel`: the type that an annotation stands for.

use super::super::evaluate::{Evaluator, Instance, Scope, Thing};
use super::super::ir::Action;
use super::super::link::ClassRef;
use super::MAX_BASES_DEPTH;
use super::types::{self, ColumnType, SqlEnum};
use crate::source;
use std::rc::Rc;
use unstale_protocol::binding::{Label, Sends};
use unstale_protocol::value::Value;

/// What an annotation says.
pub(super) struct Annotation {
    pub(super) inner: Thing,
    /// `mapped_column(…)` inside `Annotated`.
    pub(super) column: Option<Rc<Instance>>,
    pub(super) is_mapped: bool,
    pub(super) is_class_variable: bool,
}

/// Reads an annotation: text is parsed, `Mapped`, `Optional`, unions with `None` and `Annotated` are taken off.
pub(super) fn read(evaluator: &Evaluator<'_>, thing: &Thing, scope: &Scope, depth: u32) -> Annotation {
    let plain = |inner: Thing| Annotation { inner, column: None, is_mapped: false, is_class_variable: false };
    if depth > 8 {
        return plain(Thing::Unresolved("an annotation nested too deeply".to_owned()));
    }
    let next = |thing: &Thing| read(evaluator, thing, scope, depth + 1);
    match thing {
        Thing::Value(Value::Str(text)) => next(&evaluator.eval(&source::expression(text), scope)),
        Thing::Union(parts) => only(parts).map_or_else(|| plain(thing.clone()), next),
        Thing::Generic(of, arguments) => {
            let Thing::External(name) = &**of else {
                return plain(thing.clone());
            };
            match (name.rsplit('.').next().unwrap_or(name), arguments.as_slice()) {
                ("Mapped", [inner]) => Annotation { is_mapped: true, ..next(inner) },
                ("Optional", [inner]) => next(inner),
                ("Union", parts) => only(parts).map_or_else(|| plain(thing.clone()), next),
                ("ClassVar", _) => Annotation { is_class_variable: true, ..plain(thing.clone()) },
                ("Annotated", [inner, extras @ ..]) => {
                    let column = extras.iter().find_map(|extra| match extra {
                        Thing::Instance(instance) if types::is_column(&instance.of) => Some(instance.clone()),
                        _ => None,
                    });
                    let inner = next(inner);
                    Annotation { column: column.or_else(|| inner.column.clone()), ..inner }
                }
                _ => plain(thing.clone()),
            }
        }
        other => plain(other.clone()),
    }
}

/// Returns the one type of a union beside `None`.
fn only(parts: &[Thing]) -> Option<&Thing> {
    let mut types = parts.iter().filter(|part| **part != Thing::Value(Value::None));
    let first = types.next()?;
    types.next().is_none().then_some(first)
}

/// Returns the column type of a Python type: what the base's `type_annotation_map` says, else `Enum(Class)`.
pub(super) fn column_type(evaluator: &Evaluator<'_>, inner: &Thing, mapped: &ClassRef) -> ColumnType {
    let Some(info) = evaluator.enum_of(inner) else {
        return match inner {
            Thing::External(name) if is_plain_type(name) => ColumnType::Plain,
            _ => ColumnType::Unknown,
        };
    };
    let module = mapped.module.clone();
    let bare = Instance {
        of: Thing::External("sqlalchemy.Enum".to_owned()),
        arguments: Vec::new(),
        keywords: Vec::new(),
        module,
    };
    let unknown = |why: &str| {
        let why = why.to_owned();
        let shell = types::declared(evaluator, &bare, Some(inner));
        ColumnType::Enum(SqlEnum {
            sends: Sends::Unresolved { why: why.clone() },
            labels: vec![Label::Unresolved { why }],
            ..shell
        })
    };
    let entry = match annotation_map(evaluator, mapped, 0) {
        None => None,
        Some(Thing::Mapping(pairs)) => lineage(evaluator, inner)
            .into_iter()
            .find_map(|ancestor| pairs.iter().find(|(key, _)| *key == ancestor).map(|(_, value)| value.clone())),
        Some(_) => return unknown("a type_annotation_map that is not followed"),
    };
    match entry {
        None => ColumnType::Enum(types::declared(evaluator, &bare, Some(inner))),
        Some(Thing::Instance(instance)) if matches!(&instance.of, Thing::External(full) if types::has_name(full, &["Enum", "ENUM"])) =>
        {
            // The map's own class and members are used where it names one; `enum.Enum` stands for any.
            let names_a_class = instance.arguments.first().is_some_and(|first| {
                evaluator.enum_of(first).is_some_and(|found| !found.definition.members.is_empty())
            });
            let is_text = matches!(instance.arguments.first(), Some(Thing::Value(Value::Str(_))));
            let given = (!names_a_class && !is_text).then_some(inner);
            ColumnType::Enum(types::declared(evaluator, &instance, given))
        }
        Some(other) => match types::resolve(evaluator, &other) {
            ColumnType::Unknown => unknown(&format!("the type of {} in type_annotation_map", info.name.qualname)),
            found => found,
        },
    }
}

/// Returns a class, its enum ancestors in the project, and `enum.Enum`.
fn lineage(evaluator: &Evaluator<'_>, class: &Thing) -> Vec<Thing> {
    let mut ancestors = vec![class.clone()];
    let mut at = 0;
    while let Some(thing) = ancestors.get(at).cloned() {
        at += 1;
        if let Thing::Class(class) = &thing {
            for base in evaluator.bases(class) {
                let is_enum = super::super::enums::traits_of(evaluator, &base).is_some();
                if is_enum && !ancestors.contains(&base) && ancestors.len() < 64 {
                    ancestors.push(base);
                }
            }
        }
    }
    let general = Thing::External("enum.Enum".to_owned());
    if !ancestors.contains(&general) {
        ancestors.push(general);
    }
    ancestors
}

/// Finds `type_annotation_map` of the declarative base, or of its `registry`.
fn annotation_map(evaluator: &Evaluator<'_>, class: &ClassRef, depth: u32) -> Option<Thing> {
    let definition = evaluator.project.class(class).filter(|_| depth < MAX_BASES_DEPTH)?;
    for (index, statement) in definition.body.iter().enumerate() {
        let Action::Assign { name, value } = &statement.action else {
            continue;
        };
        let scope = Scope::in_class(class, index);
        match name.as_str() {
            "type_annotation_map" => return Some(evaluator.eval(value, &scope)),
            "registry" => {
                if let Thing::Instance(registry) = evaluator.eval(value, &scope)
                    && let Some(map) = registry.keyword("type_annotation_map")
                {
                    return Some(map.clone());
                }
            }
            _ => {}
        }
    }
    evaluator.bases(class).into_iter().find_map(|base| match base {
        Thing::Class(base) => annotation_map(evaluator, &base, depth + 1),
        Thing::Instance(base) => base.keyword("type_annotation_map").cloned(),
        _ => None,
    })
}

fn is_plain_type(name: &str) -> bool {
    matches!(
        name,
        "builtins.str"
            | "builtins.int"
            | "builtins.float"
            | "builtins.bool"
            | "builtins.bytes"
            | "builtins.dict"
            | "builtins.list"
            | "datetime.datetime"
            | "datetime.date"
            | "datetime.time"
            | "datetime.timedelta"
            | "decimal.Decimal"
            | "uuid.UUID"
    )
}
