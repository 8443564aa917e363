//! The body of an enum class: `_EnumDict.__setitem__` of Lib/enum.py without running anything.

use super::super::evaluate::{Evaluator, Kind, Scope, Thing, integer};
use super::super::ir::{Action, Branch, Expr, Function};
use super::super::link::{ClassRef, bound_names};
use super::traits::Traits;
use super::{EnumInfo, values};
use num_bigint::BigInt;
use std::rc::Rc;
use unstale_protocol::enumdef::EnumDef;
use unstale_protocol::ids::EnumName;
use unstale_protocol::value::Value;

/// Most members of one enum.
pub(super) const MAX_MEMBERS: usize = 20_000;

/// Computes an enum class of the project.
pub(super) fn of_class(evaluator: &Evaluator<'_>, class: &ClassRef, traits: Traits) -> Option<EnumInfo> {
    let definition = evaluator.project.class(class)?;
    let mut body = Body {
        evaluator,
        class,
        private: format!("_{}__", definition.name.trim_start_matches('_')),
        traits,
        scope: Scope { class: None, ..Scope::in_class(class, 0) },
        written: Vec::new(),
        last_values: Vec::new(),
        ignored: Vec::new(),
        known: true,
    };
    for (index, statement) in definition.body.iter().enumerate() {
        if !evaluator.project.is_taken(statement.branch) {
            continue;
        }
        if statement.branch == Branch::Sometimes && !matches!(statement.action, Action::Annotate { .. }) {
            body.known = false;
        }
        match &statement.action {
            Action::Assign { name, value } => {
                let thing = evaluator.eval(value, &body.scope);
                let thing = match (thing, value) {
                    (Thing::Unresolved(why), Expr::Constant(_)) => Thing::Unresolved(why),
                    (thing, _) => thing,
                };
                body.assign(name, thing);
            }
            Action::Function(function) => body.function(function),
            Action::Class(nested) => body.nested(&nested.name, &nested.decorators, index),
            Action::Opaque { .. } => body.known = false,
            Action::Import { .. } | Action::ImportFrom { .. } => {
                // What is imported becomes a member; nobody does that on purpose.
                body.known = false;
                for name in bound_names(&statement.action) {
                    body.bind(name, Thing::Unresolved(format!("the import {name}")));
                }
            }
            Action::Annotate { .. } => {}
        }
    }
    let line = line_of(evaluator, class);
    let Body { traits, written, known, .. } = body;
    let definition = values::definition(&traits, &written);
    Some(EnumInfo {
        name: EnumName::new(&*class.module, class.qualname(evaluator.project)),
        bases: base_names(evaluator, class),
        iterated: iterated(evaluator.minor(), &traits, &definition),
        definition,
        written,
        members_known: known,
        line,
        traits,
    })
}

/// Returns the names that going through the class yields: from 3.11 on no composite and no zero flags.
pub(super) fn iterated(minor: u8, traits: &Traits, definition: &EnumDef) -> Vec<String> {
    let single = |value: &Value| {
        integer(value).is_some_and(|number| number > BigInt::ZERO && (&number & (&number - 1)) == BigInt::ZERO)
    };
    definition
        .members
        .iter()
        .filter(|member| !traits.flag || minor < 11 || single(&member.value))
        .map(|member| member.name.clone())
        .collect()
}

fn line_of(evaluator: &Evaluator<'_>, class: &ClassRef) -> u32 {
    let Some((last, outer)) = class.path.split_last() else {
        return 0;
    };
    let body = if outer.is_empty() {
        evaluator.project.module(&class.module).map(|module| &module.summary.body)
    } else {
        let outer = ClassRef { module: class.module.clone(), path: outer.into() };
        evaluator.project.class(&outer).map(|class| &class.body)
    };
    body.and_then(|body| body.get(*last)).map_or(0, |statement| statement.line)
}

fn base_names(evaluator: &Evaluator<'_>, class: &ClassRef) -> Vec<String> {
    let Some(definition) = evaluator.project.class(class) else {
        return Vec::new();
    };
    let things = evaluator.bases(class);
    let names = definition.bases.iter().zip(things).map(|(written, thing)| {
        let full = match &thing {
            Thing::External(_) | Thing::Class(_) | Thing::Made(_) => evaluator.title(&thing),
            _ => written.sketch(),
        };
        full.rsplit('.').next().unwrap_or_default().to_owned()
    });
    names.collect()
}

struct Body<'e, 'p> {
    evaluator: &'e Evaluator<'p>,
    class: &'e ClassRef,
    /// How private names begin: `_Class__`.
    private: String,
    traits: Traits,
    scope: Scope,
    written: Vec<(String, Value)>,
    last_values: Vec<Value>,
    ignored: Vec<String>,
    known: bool,
}

impl Body<'_, '_> {
    fn minor(&self) -> u8 {
        self.evaluator.minor()
    }

    fn bind(&mut self, name: &str, thing: Thing) {
        Rc::make_mut(&mut self.scope.locals).insert(name.to_owned(), thing);
    }

    fn assign(&mut self, name: &str, thing: Thing) {
        let is_private = self.minor() >= 11 && name.starts_with(&self.private) && !name.ends_with("__");
        let is_reserved = name.len() > 4 && name.starts_with("__") && name.ends_with("__");
        let is_sunder = name.len() > 2 && name.starts_with('_') && name.ends_with('_') && !name.starts_with("__");
        if is_sunder {
            match name {
                "_ignore_" => self.ignore(&thing),
                "_generate_next_value_" => self.generate(&thing),
                _ => {}
            }
        }
        if is_private || is_reserved || is_sunder || self.ignored.iter().any(|ignored| ignored == name) {
            self.bind(name, thing);
            return;
        }
        match self.fate(thing) {
            Fate::Plain(thing) => self.bind(name, thing),
            Fate::Member(thing) => self.member(name, thing),
        }
    }

    fn ignore(&mut self, names: &Thing) {
        match names {
            Thing::Value(Value::Str(text)) => {
                self.ignored = text.replace(',', " ").split_whitespace().map(str::to_owned).collect();
            }
            other => match self.evaluator.items(other) {
                Some(items) => {
                    let names = items.iter().filter_map(|item| match item {
                        Thing::Value(Value::Str(name)) => Some(name.clone()),
                        _ => None,
                    });
                    self.ignored = names.collect();
                }
                None => self.known = false,
            },
        }
    }

    fn generate(&mut self, thing: &Thing) {
        use super::traits::Generate;
        self.traits.generate = match thing {
            Thing::Function(function) => Generate::Custom(function.clone()),
            _ => Generate::Unresolved("a _generate_next_value_ that is not followed".to_owned()),
        };
    }

    /// Tells a member from what stays an attribute: a descriptor, a function, a nested class.
    fn fate(&self, thing: Thing) -> Fate {
        match &thing {
            Thing::Function(_) => Fate::Plain(thing),
            Thing::Class(class)
                if class.path.len() > self.class.path.len() && class.path.starts_with(&self.class.path) =>
            {
                if self.minor() >= 13 { Fate::Plain(thing) } else { Fate::Member(thing) }
            }
            Thing::Instance(instance) => match &instance.of {
                Thing::External(name) => match name.as_str() {
                    "enum.nonmember" if self.minor() >= 11 => {
                        Fate::Plain(instance.arguments.first().cloned().unwrap_or(Thing::Value(Value::None)))
                    }
                    "enum.member" if self.minor() >= 11 => {
                        Fate::Member(instance.arguments.first().cloned().unwrap_or(Thing::Value(Value::None)))
                    }
                    "functools.partial" if self.minor() < 13 => Fate::Member(thing),
                    "builtins.property"
                    | "builtins.staticmethod"
                    | "builtins.classmethod"
                    | "enum.property"
                    | "types.DynamicClassAttribute"
                    | "functools.partial"
                    | "functools.partialmethod"
                    | "functools.cached_property"
                    | "functools.singledispatchmethod" => Fate::Plain(thing),
                    _ => Fate::Member(thing),
                },
                Thing::Class(class) if self.is_descriptor(class) => Fate::Plain(thing),
                _ => Fate::Member(thing),
            },
            _ => Fate::Member(thing),
        }
    }

    fn is_descriptor(&self, class: &ClassRef) -> bool {
        ["__get__", "__set__", "__delete__"]
            .iter()
            .any(|name| !matches!(self.evaluator.inherited(class, name, 0), Thing::Unresolved(why) if why.starts_with("the attribute")))
    }

    fn member(&mut self, name: &str, thing: Thing) {
        if self.written.iter().any(|(known, _)| known == name) || self.written.len() >= MAX_MEMBERS {
            // A second assignment of a member raises: the module cannot be imported like this.
            self.known = false;
            return;
        }
        let thing = self.resolve_auto(name, thing);
        self.written.push((name.to_owned(), self.evaluator.value(&thing)));
        self.bind(name, thing);
    }

    fn resolve_auto(&mut self, name: &str, thing: Thing) -> Thing {
        let is_auto = |thing: &Thing| matches!(thing, Thing::Instance(instance) if instance.of == Thing::External("enum.auto".to_owned()));
        match thing {
            thing if is_auto(&thing) => {
                let value = self.next(name);
                self.last_values.push(value.clone());
                Thing::Value(value)
            }
            Thing::Sequence(Kind::Tuple, items) if self.minor() >= 11 && items.iter().any(is_auto) => {
                let mut parts = Vec::with_capacity(items.len());
                for item in items {
                    if is_auto(&item) {
                        let value = self.next(name);
                        self.last_values.push(value.clone());
                        parts.push(Thing::Value(value));
                    } else {
                        parts.push(item);
                    }
                }
                Thing::Sequence(Kind::Tuple, parts)
            }
            other => {
                self.last_values.push(self.evaluator.value(&other));
                other
            }
        }
    }

    fn next(&self, name: &str) -> Value {
        values::generated(self.evaluator, &self.traits, name, &Value::int(1), &self.last_values)
    }

    fn function(&mut self, function: &Function) {
        let is_member = self.minor() >= 11
            && function.decorators.iter().any(|decorator| {
                self.evaluator.eval(decorator, &self.scope) == Thing::External("enum.member".to_owned())
            });
        if is_member {
            self.member(&function.name, Thing::Unresolved("a function".to_owned()));
        } else {
            self.bind(&function.name, Thing::Unresolved(format!("the function {}", function.name)));
        }
    }

    /// A nested class is a member up to 3.12, and none from 3.13 on.
    fn nested(&mut self, name: &str, decorators: &[Expr], index: usize) {
        let decorated = |wanted: &str| {
            decorators.iter().any(|decorator| {
                self.evaluator.eval(decorator, &self.scope) == Thing::External(format!("enum.{wanted}"))
            })
        };
        let is_member = match self.minor() {
            minor if minor >= 11 && decorated("nonmember") => false,
            minor if minor >= 11 && decorated("member") => true,
            minor => minor < 13,
        };
        let thing = Thing::Class(self.class.nested(index));
        let reserved = name.starts_with("__") && name.ends_with("__");
        if is_member && !reserved { self.member(name, thing) } else { self.bind(name, thing) }
    }
}

enum Fate {
    Member(Thing),
    Plain(Thing),
}
