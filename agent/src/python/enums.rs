//! Enum classes: which attributes are members, and what their values are.
//!
//! The rules are those of `Lib/enum.py` of CPython 3.8 to 3.13 and of Django's `db/models/enums.py`; where
//! versions differ, the project's version decides. What `__new__` or `__init__` would compute is unresolved.

mod functional;
mod members;
mod traits;
mod values;

pub(super) use functional::call;
pub(super) use traits::{Traits, traits_of};

use super::evaluate::{Evaluator, Scope, Thing};
use super::ir::{Action, Branch, Expr, Statement};
use super::link::ClassRef;
use serde::{Deserialize, Serialize};
use std::rc::Rc;
use traits::{Mixin, Text};
use unstale_protocol::enumdef::{Comparison, Difference, EnumDef};
use unstale_protocol::ids::EnumName;
use unstale_protocol::value::{Same, Value};

/// An enum as one layer of a module defines it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DefinedEnum {
    /// Its module and qualified name.
    pub name: EnumName,
    /// Names of its direct bases.
    pub bases: Vec<String>,
    /// Its members under the project's Python version. Where values are unresolved, an alias can look
    /// like a member.
    pub definition: EnumDef,
    /// Names and values as they are written, before mix-ins, `__new__` and choices have made values of
    /// them: they tell source and bytecode apart even where [`Self::definition`] is unresolved.
    pub written: Vec<(String, Value)>,
    /// False where loops, conditions or `vars()` make members: then the enum cannot be judged.
    pub members_known: bool,
    /// The line of its definition, from 1; 0 where it is not known.
    pub line: u32,
}

impl DefinedEnum {
    /// Compares what this layer wants (`self`) with what another layer of the same file says. Values that
    /// either does not know decide nothing, and nothing is decided where members are not known.
    pub fn compare(&self, other: &Self) -> Comparison {
        let none = Comparison { differences: Vec::new(), undecided: Vec::new() };
        if !self.members_known || !other.members_known {
            return none;
        }
        let mut comparison = self.definition.compare(&other.definition);
        for (name, value) in &self.written {
            let theirs = other.written.iter().find(|(other, _)| other == name);
            let differs = theirs.is_some_and(|(_, theirs)| value.same(theirs) == Same::No);
            let difference = Difference::Value { name: name.clone() };
            if differs && !comparison.differences.contains(&difference) {
                comparison.differences.push(difference);
            }
        }
        comparison
    }
}

/// An enum with what evaluation needs beside its definition.
#[derive(Debug, PartialEq)]
pub(super) struct EnumInfo {
    pub(super) name: EnumName,
    pub(super) bases: Vec<String>,
    pub(super) definition: EnumDef,
    pub(super) written: Vec<(String, Value)>,
    /// Names of the members that going through the class yields.
    pub(super) iterated: Vec<String>,
    pub(super) members_known: bool,
    pub(super) line: u32,
    pub(super) traits: Traits,
}

impl EnumInfo {
    /// Returns the canonical name of a member.
    pub(super) fn canonical(&self, name: &str) -> Option<&str> {
        let own = self.definition.members.iter().map(|member| (&member.name, &member.name));
        let aliases = self.definition.aliases.iter().map(|alias| (&alias.name, &alias.canonical));
        own.chain(aliases).find(|(known, _)| *known == name).map(|(_, canonical)| canonical.as_str())
    }

    /// Tells whether members are strings.
    pub(super) fn is_text(&self) -> bool {
        self.traits.mixin == Mixin::Str
    }

    /// Returns `str(member)`.
    pub(super) fn text_of_member(&self, member: &str) -> Option<String> {
        let short = self.name.qualname.rsplit('.').next().unwrap_or_default();
        match self.traits.text {
            Text::Qualified => Some(format!("{short}.{member}")),
            Text::Value => super::evaluate::to_text(self.definition.value(member)?),
            Text::Unknown => None,
        }
    }

    fn defined(&self) -> DefinedEnum {
        DefinedEnum {
            name: self.name.clone(),
            bases: self.bases.clone(),
            definition: self.definition.clone(),
            written: self.written.clone(),
            members_known: self.members_known,
            line: self.line,
        }
    }
}

impl Evaluator<'_> {
    /// Returns the enum that a thing is, if it is an enum class.
    pub(super) fn enum_of(&self, thing: &Thing) -> Option<Rc<EnumInfo>> {
        match thing {
            Thing::Made(info) => Some(info.clone()),
            Thing::Class(class) => self.enum_class(class),
            _ => None,
        }
    }

    pub(super) fn enum_class(&self, class: &ClassRef) -> Option<Rc<EnumInfo>> {
        if let Some(known) = self.enums.borrow().get(class) {
            return known.clone();
        }
        // A class that is looked at while it is being computed is no enum yet.
        self.enums.borrow_mut().insert(class.clone(), None);
        let info =
            traits::of_class(self, class, 0).and_then(|traits| members::of_class(self, class, traits)).map(Rc::new);
        self.enums.borrow_mut().insert(class.clone(), info.clone());
        info
    }
}

/// Returns the enums that `module` defines, by qualified name.
pub(super) fn of_module(evaluator: &Evaluator<'_>, module: &str) -> Vec<DefinedEnum> {
    let Some(found) = evaluator.project.module(module) else {
        return Vec::new();
    };
    let mut list = Vec::new();
    let module: Rc<str> = module.into();
    walk(evaluator, &found.summary.body, &ClassRef { module, path: Rc::default() }, Branch::Always, &mut list);
    let mut enums: Vec<DefinedEnum> = Vec::with_capacity(list.len());
    for (mut defined, branch) in list {
        match enums.iter_mut().find(|known| known.name == defined.name) {
            None => enums.push(defined),
            Some(earlier) => {
                let doubt = branch == Branch::Sometimes && earlier.definition != defined.definition;
                defined.members_known &= !doubt;
                *earlier = defined;
            }
        }
    }
    enums.sort_by(|a, b| a.name.cmp(&b.name));
    enums
}

fn walk(
    evaluator: &Evaluator<'_>,
    body: &[Statement],
    outer: &ClassRef,
    around: Branch,
    list: &mut Vec<(DefinedEnum, Branch)>,
) {
    for (index, statement) in body.iter().enumerate() {
        if !evaluator.project.is_taken(statement.branch) {
            continue;
        }
        let branch = if around == Branch::Sometimes { around } else { statement.branch };
        match &statement.action {
            Action::Class(class) => {
                let nested = outer.nested(index);
                if let Some(info) = evaluator.enum_class(&nested) {
                    list.push((info.defined(), branch));
                }
                walk(evaluator, &class.body, &nested, branch, list);
            }
            Action::Assign { value: value @ Expr::Call(call), .. } if functional::may_make(call) => {
                let scope = if outer.path.is_empty() {
                    Scope { before: Some(index), ..Scope::late(&outer.module) }
                } else {
                    Scope::in_class(outer, index)
                };
                // Only the function is looked at first: most calls make no enum.
                let function = evaluator.eval(&call.function, &scope);
                if traits_of(evaluator, &function).is_none() {
                    continue;
                }
                if let Thing::Made(info) = evaluator.eval(value, &scope) {
                    let mut defined = info.defined();
                    defined.line = statement.line;
                    list.push((defined, branch));
                }
            }
            _ => {}
        }
    }
}
