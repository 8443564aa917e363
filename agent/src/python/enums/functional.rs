//! Calls of enum classes: `Enum("E", "A B")` makes a class, `E("a")` finds a member.

use super::super::evaluate::{Evaluator, Scope, Thing, equal};
use super::super::ir::{Call, Expr};
use super::members::{MAX_MEMBERS, iterated};
use super::traits::{Mixin, Traits};
use super::{EnumInfo, values};
use std::rc::Rc;
use unstale_protocol::ids::EnumName;
use unstale_protocol::value::Value;

/// Tells whether a call has the shape of one that makes an enum class.
pub(super) fn may_make(call: &Call) -> bool {
    let named = matches!(call.arguments.first(), Some(Expr::Constant(Value::Str(_))))
        || call.keywords.iter().any(|(name, _)| name.as_deref() == Some("value"));
    let members = call.arguments.len() >= 2 || call.keywords.iter().any(|(name, _)| name.as_deref() == Some("names"));
    named && members
}

/// Follows a call of the enum class `class`; `None` where it is neither form.
pub(in super::super) fn call(
    evaluator: &Evaluator<'_>,
    class: &Thing,
    traits: &Traits,
    arguments: &[Thing],
    keywords: &[(String, Thing)],
    scope: &Scope,
) -> Option<Thing> {
    let known = evaluator.enum_of(class);
    if let (Some(info), [Thing::Value(value)], []) = (&known, arguments, keywords)
        && !info.definition.members.is_empty()
    {
        let found = info.definition.members.iter().find(|member| equal(&member.value, value) == Some(true))?;
        return Some(Thing::Member(info.clone(), found.name.clone()));
    }
    if known.is_some_and(|info| !info.definition.members.is_empty()) {
        return None;
    }
    let keyword = |wanted: &str| keywords.iter().find(|(name, _)| name == wanted).map(|(_, thing)| thing);
    let text = |thing: &Thing| match thing {
        Thing::Value(Value::Str(text)) => Some(text.clone()),
        _ => None,
    };
    let name = text(arguments.first().or_else(|| keyword("value"))?)?;
    let names = arguments.get(1).or_else(|| keyword("names"))?;
    let mut traits = traits.clone();
    let mut bases = vec![evaluator.title(class).rsplit('.').next().unwrap_or_default().to_owned()];
    if let Some(mixin) = keyword("type").or_else(|| arguments.get(4)) {
        let (mixin, base) = match mixin {
            Thing::External(name) if name == "builtins.str" => (Mixin::Str, "str".to_owned()),
            Thing::External(name) if name == "builtins.int" => (Mixin::Int, "int".to_owned()),
            other => (Mixin::Other(evaluator.title(other)), evaluator.title(other)),
        };
        traits.mixin = mixin;
        bases.insert(0, base);
    }
    let start = match keyword("start") {
        None => Value::int(1),
        Some(Thing::Value(start)) => start.clone(),
        Some(other) => evaluator.value(other),
    };
    let written = written(evaluator, &traits, names, &start);
    let module = keyword("module").map_or_else(|| Some(scope.module.to_string()), text)?;
    let qualname = keyword("qualname").map_or_else(|| Some(name.clone()), text)?;
    let members_known = written.is_some();
    let written = written.unwrap_or_default();
    let definition = values::definition(&traits, &written);
    Some(Thing::Made(Rc::new(EnumInfo {
        name: EnumName::new(module, qualname),
        bases,
        iterated: iterated(evaluator.minor(), &traits, &definition),
        definition,
        written,
        members_known,
        line: 0,
        traits,
    })))
}

/// Returns names and values as written; `None` where they are not known.
fn written(evaluator: &Evaluator<'_>, traits: &Traits, names: &Thing, start: &Value) -> Option<Vec<(String, Value)>> {
    let counted = |names: Vec<String>| {
        let mut last_values = Vec::new();
        let members = names.into_iter().map(|name| {
            let value = values::generated(evaluator, traits, &name, start, &last_values);
            last_values.push(value.clone());
            (name, value)
        });
        members.collect::<Vec<_>>()
    };
    if let Thing::Value(Value::Str(text)) = names {
        return Some(counted(text.replace(',', " ").split_whitespace().map(str::to_owned).collect()));
    }
    if let Thing::Mapping(pairs) = names {
        let members = pairs.iter().map(|(name, value)| match name {
            Thing::Value(Value::Str(name)) => Some((name.clone(), evaluator.value(value))),
            _ => None,
        });
        return members.collect();
    }
    let items = evaluator.items(names).filter(|items| items.len() <= MAX_MEMBERS)?;
    if matches!(items.first(), Some(Thing::Value(Value::Str(_)))) {
        let names = items.iter().map(|item| match item {
            Thing::Value(Value::Str(name)) => Some(name.clone()),
            _ => None,
        });
        return names.collect::<Option<Vec<_>>>().map(counted);
    }
    let pairs = items.iter().map(|item| {
        let parts = evaluator.items(item)?;
        match parts.as_slice() {
            [Thing::Value(Value::Str(name)), value] => Some((name.clone(), evaluator.value(value))),
            _ => None,
        }
    });
    pairs.collect()
}
