//! Mapped classes and their columns: which labels SQLAlchemy would send, read from text.
//!
//! Only classes that are surely mapped count. Columns come from the class itself and from mix-ins and
//! abstract bases; those of a child of a single-table inheritance belong to the ancestor with the table.

mod annotations;
mod mapping;
mod types;

use super::evaluate::{Evaluator, Instance, Scope, Thing};
use super::ir::{Action, Expr, Statement};
use super::link::ClassRef;
use mapping::Mapping;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use types::ColumnType;
use unstale_protocol::binding::{Binding, ColumnName};
use unstale_protocol::ids::EnumName;
use unstale_protocol::value::Value;

/// Deepest inheritance that is followed.
pub(super) const MAX_BASES_DEPTH: u32 = 16;

/// Columns of one mapped class that are surely not of an `Enum` type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedColumns {
    /// The class with the table.
    pub name: EnumName,
    /// Names of its columns, sorted.
    pub plain: Vec<String>,
}

/// Returns the bindings and plain columns of the classes of `module`.
pub(super) fn of_module(evaluator: &Evaluator<'_>, module: &str) -> (Vec<Binding>, Vec<MappedColumns>) {
    let Some(found) = evaluator.project.module(module) else {
        return (Vec::new(), Vec::new());
    };
    let mut collected = Collected { evaluator, bindings: BTreeMap::new(), plain: BTreeMap::new() };
    let root = ClassRef { module: module.into(), path: Rc::default() };
    collected.walk(&found.summary.body, &root);
    let mapped =
        collected.plain.into_iter().map(|(name, plain)| MappedColumns { name, plain: plain.into_iter().collect() });
    (collected.bindings.into_values().collect(), mapped.collect())
}

struct Collected<'e, 'p> {
    evaluator: &'e Evaluator<'p>,
    bindings: BTreeMap<ColumnName, Binding>,
    plain: BTreeMap<EnumName, BTreeSet<String>>,
}

impl Collected<'_, '_> {
    fn walk(&mut self, body: &[Statement], outer: &ClassRef) {
        for (index, statement) in body.iter().enumerate() {
            let Action::Class(class) = &statement.action else {
                continue;
            };
            if !self.evaluator.project.is_taken(statement.branch) {
                continue;
            }
            let nested = outer.nested(index);
            let owner = match mapping::of(self.evaluator, &nested, 0) {
                Mapping::Table => Some(nested.clone()),
                Mapping::Child(ancestor) => Some(ancestor),
                Mapping::None => None,
            };
            if let Some(owner) = owner {
                self.class(&nested, &owner);
            }
            self.walk(&class.body, &nested);
        }
    }

    fn class(&mut self, class: &ClassRef, owner: &ClassRef) {
        let name = EnumName::new(&*owner.module, owner.qualname(self.evaluator.project));
        self.plain.entry(name.clone()).or_default();
        let mut attributes = BTreeSet::new();
        for (attribute, column) in columns(self.evaluator, class, class, &mut attributes, 0) {
            let column_name = column.name.unwrap_or(attribute);
            match column.kind {
                ColumnType::Enum(found) => {
                    let column =
                        ColumnName { module: name.module.clone(), class: name.qualname.clone(), column: column_name };
                    let binding = Binding {
                        column: column.clone(),
                        enum_name: found.enum_name,
                        type_name: found.type_name,
                        schema: found.schema,
                        native: found.native,
                        sends: Some(found.sends),
                        labels: found.labels,
                    };
                    self.bindings.entry(column).or_insert(binding);
                }
                ColumnType::Plain => {
                    self.plain.entry(name.clone()).or_default().insert(column_name);
                }
                ColumnType::Unknown => {}
            }
        }
    }
}

/// A column: its name where the declaration gives one, and its type.
struct Column {
    name: Option<String>,
    kind: ColumnType,
}

/// Returns the columns of `class`, those of its unmapped bases included; `seen` are attributes already settled.
fn columns(
    evaluator: &Evaluator<'_>,
    class: &ClassRef,
    mapped: &ClassRef,
    seen: &mut BTreeSet<String>,
    depth: u32,
) -> Vec<(String, Column)> {
    let Some(definition) = evaluator.project.class(class).filter(|_| depth < MAX_BASES_DEPTH) else {
        return Vec::new();
    };
    let scope = Scope::in_class(class, definition.body.len());
    let mut attributes: BTreeMap<&str, Attribute<'_>> = BTreeMap::new();
    for (index, statement) in definition.body.iter().enumerate() {
        if !evaluator.project.is_taken(statement.branch) {
            continue;
        }
        let at = Scope::in_class(class, index);
        match &statement.action {
            Action::Assign { name, value } => {
                attributes.entry(name).or_default().value = Some(evaluator.eval(value, &at));
            }
            Action::Annotate { name, annotation } => {
                attributes.entry(name).or_default().annotation = Some(annotation);
            }
            Action::Function(function) => {
                let declared = function.decorators.iter().any(|decorator| {
                    let sketch = decorator.sketch();
                    sketch.contains("declared_attr")
                });
                let value =
                    if declared { declared_value(evaluator, function, mapped) } else { Thing::Value(Value::None) };
                attributes.entry(&function.name).or_default().value = Some(value);
            }
            Action::Class(nested) => {
                attributes.entry(&nested.name).or_default().value = Some(Thing::Class(class.nested(index)));
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    for (name, attribute) in attributes {
        if !seen.insert(name.to_owned()) {
            continue;
        }
        if name == "__table__" {
            found.extend(table_columns(evaluator, attribute.value.as_ref()));
        } else if !name.starts_with("__")
            && let Some(column) = attribute.column(evaluator, mapped, &scope)
        {
            found.push((name.to_owned(), column));
        }
    }
    for base in evaluator.bases(class) {
        if let Thing::Class(base) = base
            && matches!(mapping::of(evaluator, &base, depth + 1), Mapping::None)
        {
            found.extend(columns(evaluator, &base, mapped, seen, depth + 1));
        }
    }
    found
}

/// `@declared_attr def status(cls): return Column(…)`.
fn declared_value(evaluator: &Evaluator<'_>, function: &super::ir::Function, mapped: &ClassRef) -> Thing {
    let lambda = function.lambda.clone();
    let made = super::evaluate::Function { module: mapped.module.clone(), lambda, locals: Rc::default() };
    evaluator.apply(&made, vec![Thing::Class(mapped.clone())], Vec::new())
}

fn table_columns(evaluator: &Evaluator<'_>, table: Option<&Thing>) -> Vec<(String, Column)> {
    let Some(Thing::Instance(table)) = table else {
        return Vec::new();
    };
    if !types::is_named(&table.of, "Table") {
        return Vec::new();
    }
    let columns = table.arguments.iter().filter_map(|argument| match argument {
        Thing::Instance(column) if types::is_column(&column.of) => {
            let (name, kind) = declared(evaluator, column);
            let name = name?;
            Some((name.clone(), Column { name: Some(name), kind: kind.unwrap_or(ColumnType::Unknown) }))
        }
        _ => None,
    });
    columns.collect()
}

/// Reads `Column("name", type, …)`: the name, and the type where one is given.
fn declared(evaluator: &Evaluator<'_>, column: &Instance) -> (Option<String>, Option<ColumnType>) {
    let text = |thing: &Thing| match thing {
        Thing::Value(Value::Str(text)) => Some(text.clone()),
        _ => None,
    };
    let mut arguments = column.arguments.iter();
    let mut first = arguments.next();
    let mut name = column.keyword("name").and_then(text);
    match first {
        Some(Thing::Value(Value::Str(text))) => {
            name = Some(text.clone());
            first = arguments.next();
        }
        Some(Thing::Value(Value::None)) => first = arguments.next(),
        _ => {}
    }
    let kind = match (column.keyword("type_"), first) {
        (Some(kind), _) => Some(types::resolve(evaluator, kind)),
        (None, Some(kind)) if !types::is_constraint(kind) => Some(types::resolve(evaluator, kind)),
        _ => None,
    };
    (name, kind)
}

#[derive(Default)]
struct Attribute<'a> {
    annotation: Option<&'a Expr>,
    value: Option<Thing>,
}

impl Attribute<'_> {
    /// Returns the column that the attribute declares, if it declares one.
    fn column(&self, evaluator: &Evaluator<'_>, mapped: &ClassRef, scope: &Scope) -> Option<Column> {
        let value = match &self.value {
            Some(Thing::Instance(instance)) => Some(instance.clone()),
            Some(Thing::Value(_) | Thing::Member(..)) | None => None,
            // A `Column` made in a way that is not followed: no word about this column.
            Some(Thing::Unresolved(_)) => {
                return Some(Column { name: None, kind: ColumnType::Unknown });
            }
            Some(_) => return None,
        };
        let is_model = mapping::is_sqlmodel(evaluator, mapped, 0);
        match &value {
            Some(instance) if types::is_column(&instance.of) => {
                let (name, kind) = declared(evaluator, instance);
                if let Some(kind) = kind {
                    return Some(Column { name, kind });
                }
                let Some(kind) = self.annotated(evaluator, mapped, scope, is_model) else {
                    return Some(Column { name, kind: ColumnType::Unknown });
                };
                Some(Column { name: name.or(kind.name), kind: kind.kind })
            }
            Some(instance) if is_model && types::is_named(&instance.of, "Field") => {
                if let Some(Thing::Instance(column)) = instance.keyword("sa_column") {
                    let (name, kind) = declared(evaluator, column);
                    return Some(Column { name, kind: kind.unwrap_or(ColumnType::Unknown) });
                }
                if let Some(kind) = instance.keyword("sa_type") {
                    return Some(Column { name: None, kind: types::resolve(evaluator, kind) });
                }
                self.annotated(evaluator, mapped, scope, is_model)
            }
            // `relationship()`, `column_property()`, …: no column.
            Some(_) => None,
            None => self.annotated(evaluator, mapped, scope, is_model),
        }
    }

    fn annotated(&self, evaluator: &Evaluator<'_>, mapped: &ClassRef, scope: &Scope, is_model: bool) -> Option<Column> {
        let thing = evaluator.eval(self.annotation?, scope);
        let annotation = annotations::read(evaluator, &thing, scope, 0);
        if annotation.is_class_variable || !(annotation.is_mapped || is_model) {
            return None;
        }
        if let Some(column) = &annotation.column {
            let (name, kind) = declared(evaluator, column);
            if let Some(kind) = kind {
                return Some(Column { name, kind });
            }
        }
        let kind = annotations::column_type(evaluator, &annotation.inner, mapped);
        Some(Column { name: None, kind })
    }
}
