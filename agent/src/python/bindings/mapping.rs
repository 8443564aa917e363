//! Which classes have a table.

use super::super::evaluate::{Evaluator, Thing};
use super::super::ir::{Action, Expr};
use super::super::link::ClassRef;
use super::{MAX_BASES_DEPTH, types};
use unstale_protocol::value::Value;

/// Where the columns of a class go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// Into its own table.
    Table,
    /// Into the table of this ancestor: single-table inheritance.
    Child(ClassRef),
    /// Nowhere: a mix-in, an abstract base, or no mapped class.
    None,
}

/// Tells where the columns of `class` go. What is not sure is [`Mapping::None`].
pub(super) fn of(evaluator: &Evaluator<'_>, class: &ClassRef, depth: u32) -> Mapping {
    let Some(definition) = evaluator.project.class(class).filter(|_| depth < MAX_BASES_DEPTH) else {
        return Mapping::None;
    };
    let assigned = |wanted: &str| {
        definition.body.iter().find_map(|statement| match &statement.action {
            Action::Assign { name, value } if name == wanted => Some(value),
            _ => None,
        })
    };
    if matches!(assigned("__abstract__"), Some(Expr::Constant(Value::Bool(true)))) {
        return Mapping::None;
    }
    if is_sqlmodel(evaluator, class, 0) {
        let table = definition
            .keywords
            .iter()
            .any(|(name, value)| name.as_deref() == Some("table") && *value == Expr::Constant(Value::Bool(true)));
        return if table { Mapping::Table } else { Mapping::None };
    }
    let bases = evaluator.bases(class);
    let has_table = ["__tablename__", "__table__"]
        .iter()
        .any(|name| assigned(name).is_some_and(|value| *value != Expr::Constant(Value::None)));
    if has_table && (!bases.is_empty() || !definition.decorators.is_empty()) {
        return Mapping::Table;
    }
    if is_declarative(evaluator, class, 0) && names_itself(evaluator, class, 0) && has_primary_key(evaluator, class, 0)
    {
        return Mapping::Table;
    }
    for base in bases {
        let Thing::Class(base) = base else { continue };
        match of(evaluator, &base, depth + 1) {
            Mapping::Table => return Mapping::Child(base),
            Mapping::Child(ancestor) => return Mapping::Child(ancestor),
            Mapping::None => {}
        }
    }
    Mapping::None
}

/// Tells whether a class descends from `SQLModel`.
pub(super) fn is_sqlmodel(evaluator: &Evaluator<'_>, class: &ClassRef, depth: u32) -> bool {
    depth < MAX_BASES_DEPTH
        && evaluator.bases(class).iter().any(|base| match base {
            Thing::External(name) => matches!(name.as_str(), "sqlmodel.SQLModel" | "sqlmodel.main.SQLModel"),
            Thing::Class(base) => is_sqlmodel(evaluator, base, depth + 1),
            _ => false,
        })
}

fn is_declarative(evaluator: &Evaluator<'_>, class: &ClassRef, depth: u32) -> bool {
    depth < MAX_BASES_DEPTH
        && evaluator.bases(class).iter().any(|base| match base {
            Thing::External(name) => {
                name == "flask_sqlalchemy.Model" || types::has_name(name, &["DeclarativeBase", "DeclarativeBaseNoMeta"])
            }
            Thing::Instance(instance) => {
                matches!(&instance.of, Thing::External(name) if types::has_name(name, &["declarative_base", "automap_base"]))
            }
            Thing::Class(base) => is_declarative(evaluator, base, depth + 1),
            _ => false,
        })
}

/// Tells whether a base gives each class a table name of its own: `@declared_attr def __tablename__`, or
/// Flask-SQLAlchemy's `Model`. A base itself, which has no such ancestor, does not count.
fn names_itself(evaluator: &Evaluator<'_>, class: &ClassRef, depth: u32) -> bool {
    depth < MAX_BASES_DEPTH
        && evaluator.bases(class).iter().any(|base| match base {
            Thing::External(name) => name == "flask_sqlalchemy.Model",
            Thing::Class(base) => {
                let declares = evaluator.project.class(base).is_some_and(|definition| {
                    definition.body.iter().any(|statement| {
                        matches!(&statement.action, Action::Function(function) if function.name == "__tablename__")
                    })
                });
                declares || names_itself(evaluator, base, depth + 1)
            }
            _ => false,
        })
}

fn has_primary_key(evaluator: &Evaluator<'_>, class: &ClassRef, depth: u32) -> bool {
    let Some(definition) = evaluator.project.class(class).filter(|_| depth < MAX_BASES_DEPTH) else {
        return false;
    };
    let own = definition.body.iter().any(|statement| match &statement.action {
        Action::Assign { value: Expr::Call(call), .. } => call
            .keywords
            .iter()
            .any(|(name, value)| name.as_deref() == Some("primary_key") && *value == Expr::Constant(Value::Bool(true))),
        _ => false,
    });
    own || evaluator.bases(class).iter().any(|base| match base {
        Thing::Class(base) => has_primary_key(evaluator, base, depth + 1),
        _ => false,
    })
}
