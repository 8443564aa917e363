//! Attributes, members, and what going through a thing yields.

use super::super::enums::EnumInfo;
use super::super::link::{ClassRef, bound_names};
use super::{Evaluator, Kind, Scope, Thing, unresolved};
use std::rc::Rc;
use unstale_protocol::value::Value;

impl Evaluator<'_> {
    /// Returns an attribute.
    pub(in super::super) fn attribute(&self, object: &Thing, name: &str) -> Thing {
        if let Some(info) = self.enum_of(object) {
            match name {
                "__members__" | "_member_map_" => return members(&info),
                "_member_names_" => {
                    let names = info.iterated.iter().map(|name| Thing::Value(Value::str(name.clone())));
                    return Thing::Sequence(Kind::List, names.collect());
                }
                "_value2member_map_" => {
                    let pairs = info.definition.members.iter().map(|member| {
                        (Thing::Value(member.value.clone()), Thing::Member(info.clone(), member.name.clone()))
                    });
                    return Thing::Mapping(pairs.collect());
                }
                "__name__" => {
                    let short = info.name.qualname.rsplit('.').next().unwrap_or_default();
                    return Thing::Value(Value::str(short));
                }
                _ if info.canonical(name).is_some() => return member(&info, name),
                _ => {}
            }
        }
        match object {
            Thing::Module(module) => self.member_of_module(module, name),
            Thing::External(external) => Thing::External(format!("{external}.{name}")),
            Thing::Class(class) => self.inherited(class, name, 0),
            Thing::Member(info, member) => match name {
                "name" | "_name_" => Thing::Value(Value::str(member.clone())),
                "value" | "_value_" => match info.definition.value(member) {
                    Some(value) => Thing::Value(value.clone()),
                    None => unresolved("the value of a member"),
                },
                "lower" | "upper" | "title" | "capitalize" | "replace" | "strip" if info.is_text() => {
                    let value = info.definition.value(member).cloned().unwrap_or(Value::None);
                    Thing::Method(Box::new(Thing::Value(value)), name.to_owned())
                }
                _ => unresolved(format!("the attribute {name} of a member")),
            },
            Thing::Instance(instance) => match &instance.of {
                // `db = SQLAlchemy()` carries all of sqlalchemy and sqlalchemy.orm.
                Thing::External(of) if of == "flask_sqlalchemy.SQLAlchemy" => match name {
                    "Model" => Thing::External("flask_sqlalchemy.Model".to_owned()),
                    _ => Thing::External(format!("sqlalchemy.{name}")),
                },
                _ => unresolved(format!("the attribute {name} of an object")),
            },
            Thing::Value(_) | Thing::Mapping(_) | Thing::Sequence(..) => {
                Thing::Method(Box::new(object.clone()), name.to_owned())
            }
            Thing::Unresolved(why) => unresolved(why.clone()),
            Thing::Function(_) | Thing::Generic(..) | Thing::Union(_) | Thing::Method(..) | Thing::Made(_) => {
                unresolved(format!("the attribute {name}"))
            }
        }
    }

    /// Looks an attribute up in a class of the project and in its bases, from the left.
    pub(in super::super) fn inherited(&self, class: &ClassRef, name: &str, depth: u32) -> Thing {
        let why = || unresolved(format!("the attribute {name} of a class"));
        let Some(definition) = self.project.class(class).filter(|_| depth < 12) else {
            return why();
        };
        let binding: Vec<usize> = definition
            .body
            .iter()
            .enumerate()
            .filter(|(_, statement)| bound_names(&statement.action).contains(&name))
            .map(|(index, _)| index)
            .collect();
        if !binding.is_empty() {
            return self.class_attribute(class, &binding, name);
        }
        for base in self.bases(class) {
            if let Thing::Class(base) = base {
                let thing = self.deeper(|| self.inherited(&base, name, depth + 1));
                if !matches!(thing, Thing::Unresolved(_)) {
                    return thing;
                }
            }
        }
        why()
    }

    /// Returns what the bases of a class stand for.
    pub(in super::super) fn bases(&self, class: &ClassRef) -> Vec<Thing> {
        let Some(definition) = self.project.class(class) else {
            return Vec::new();
        };
        let scope = outside(class);
        definition
            .bases
            .iter()
            .map(|base| match self.eval(base, &scope) {
                // `class A(Generic[T])`, `class A(Base[int])`.
                Thing::Generic(of, _) => *of,
                other => other,
            })
            .collect()
    }

    /// Returns what going through a thing yields; `None` where that is not known, or has no order.
    pub(in super::super) fn items(&self, thing: &Thing) -> Option<Vec<Thing>> {
        if let Some(info) = self.enum_of(thing) {
            let members = info.iterated.iter().map(|name| Thing::Member(info.clone(), name.clone()));
            return info.members_known.then(|| members.collect());
        }
        match thing {
            Thing::Sequence(Kind::Tuple | Kind::List, items) => Some(items.clone()),
            Thing::Value(Value::Tuple(items) | Value::List(items)) => {
                Some(items.iter().cloned().map(Thing::Value).collect())
            }
            Thing::Mapping(pairs) => Some(pairs.iter().map(|(key, _)| key.clone()).collect()),
            _ => None,
        }
    }
}

/// Returns the scope that a class statement itself stands in.
fn outside(class: &ClassRef) -> Scope {
    match class.path.split_last() {
        Some((index, [])) => Scope { before: Some(*index), ..Scope::late(&class.module) },
        Some((index, outer)) => Scope::in_class(&ClassRef { module: class.module.clone(), path: outer.into() }, *index),
        None => Scope::late(&class.module),
    }
}

/// Returns a member by one of its names.
pub(super) fn member(info: &Rc<EnumInfo>, name: &str) -> Thing {
    match info.canonical(name) {
        Some(canonical) => Thing::Member(info.clone(), canonical.to_owned()),
        None => unresolved(format!("the member {name}")),
    }
}

fn members(info: &Rc<EnumInfo>) -> Thing {
    let own = info.definition.members.iter().map(|member| member.name.clone());
    let pairs = own.map(|name| (Thing::Value(Value::str(name.clone())), Thing::Member(info.clone(), name)));
    Thing::Mapping(pairs.collect())
}
