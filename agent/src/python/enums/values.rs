//! From what is written to `.value`, and what `auto()` gives.

use super::super::evaluate::{Evaluator, Kind, Thing, equal, float, integer, to_integer, to_text};
use super::traits::{Generate, Mixin, Traits};
use num_bigint::BigInt;
use unstale_protocol::enumdef::{Alias, EnumDef, Member};
use unstale_protocol::value::Value;

/// Returns `.value` of a member that is written as `written`: `_proto_member.__set_name__` in Lib/enum.py.
pub(super) fn made(traits: &Traits, written: &Value) -> Value {
    let written = if traits.choices { without_label(written) } else { written.clone() };
    if let Some(why) = &traits.computed {
        return Value::unresolved(why.clone());
    }
    let arguments: &[Value] = match &written {
        Value::Tuple(items) if traits.mixin != Mixin::Tuple => items,
        _ => std::slice::from_ref(&written),
    };
    let value = match (&traits.mixin, arguments) {
        (Mixin::None, _) => written,
        (_, [unknown @ Value::Unresolved { .. }]) => unknown.clone(),
        (Mixin::Str, [only]) => to_text(only).map_or_else(|| convert("str", only), Value::Str),
        (Mixin::Int, [only]) => to_integer(only).map_or_else(|| convert("int", only), Value::Int),
        (Mixin::Float, [only]) => float(only).map_or_else(|| convert("float", only), Value::float),
        (Mixin::Tuple, [only @ Value::Tuple(_)]) => only.clone(),
        (Mixin::Tuple, [Value::List(items)]) => Value::Tuple(items.clone()),
        (Mixin::Other(name), _) => Value::unresolved(format!("made by {name}")),
        (Mixin::Str, _) => Value::unresolved("calls str"),
        (Mixin::Int, _) => Value::unresolved("calls int"),
        (Mixin::Float, _) => Value::unresolved("calls float"),
        (Mixin::Tuple, _) => Value::unresolved("calls tuple"),
    };
    match (&value, traits.flag) {
        // Inverted and negative flags are completed from the other members, by version.
        (Value::Int(number), true) if *number < BigInt::ZERO => Value::unresolved("a negative flag"),
        _ => value,
    }
}

fn convert(name: &str, value: &Value) -> Value {
    Value::unresolved(format!("calls {name}({})", value.repr().chars().take(40).collect::<String>()))
}

/// Django: `("a", "Label")` has the value `"a"`. The label is text, or a lazy translation that is not read.
fn without_label(written: &Value) -> Value {
    match written {
        Value::Tuple(items) | Value::List(items) => match items.split_last() {
            Some((Value::Str(_) | Value::Unresolved { .. }, rest)) if !rest.is_empty() => Value::Tuple(rest.to_vec()),
            _ => written.clone(),
        },
        _ => written.clone(),
    }
}

/// Tells members from aliases: a name whose value an earlier member has is an alias of that member.
pub(super) fn definition(traits: &Traits, written: &[(String, Value)]) -> EnumDef {
    let mut definition = EnumDef::default();
    for (name, raw) in written {
        let value = made(traits, raw);
        let earlier = definition.members.iter().find(|member| equal(&member.value, &value) == Some(true));
        match earlier {
            Some(member) => {
                definition.aliases.push(Alias { name: name.clone(), canonical: member.name.clone() });
            }
            None => definition.members.push(Member { name: name.clone(), value }),
        }
    }
    definition
}

/// Returns what `auto()` gives to the member `name`, which follows `count` others.
pub(super) fn generated(
    evaluator: &Evaluator<'_>,
    traits: &Traits,
    name: &str,
    start: &Value,
    last_values: &[Value],
) -> Value {
    let count = last_values.len();
    match &traits.generate {
        Generate::Name => Value::str(name),
        Generate::LowerName if name.is_ascii() => Value::str(name.to_ascii_lowercase()),
        Generate::LowerName => Value::unresolved("a name beyond ASCII in lower case"),
        Generate::Unresolved(why) => Value::unresolved(why.clone()),
        Generate::Custom(function) => {
            let last = last_values.iter().cloned().map(Thing::Value).collect();
            let arguments = vec![
                Thing::Value(Value::str(name)),
                Thing::Value(start.clone()),
                Thing::Value(Value::int(count)),
                Thing::Sequence(Kind::List, last),
            ];
            evaluator.value(&evaluator.apply(function, arguments, Vec::new()))
        }
        Generate::Power => power(evaluator.minor(), start, last_values),
        Generate::Count => counted(evaluator.minor(), start, last_values),
    }
}

/// `Flag._generate_next_value_`: twice the highest bit of the last value, from 3.11 on of the highest value.
fn power(minor: u8, start: &Value, last_values: &[Value]) -> Value {
    let Some(numbers) = last_values.iter().map(integer).collect::<Option<Vec<BigInt>>>() else {
        return Value::unresolved("auto() after a value that is not known");
    };
    let last = if minor >= 11 { numbers.iter().max() } else { numbers.last() };
    match last {
        None => start.clone(),
        Some(number) => Value::Int(BigInt::from(1) << number.bits()),
    }
}

/// `Enum._generate_next_value_`: up to 3.10 one more than the last number, later one more than the highest.
fn counted(minor: u8, start: &Value, last_values: &[Value]) -> Value {
    let unknown = || Value::unresolved("auto() after a value that is not known");
    if !last_values.iter().all(Value::is_known) {
        return unknown();
    }
    let numbers: Vec<&Value> =
        last_values.iter().filter(|value| float(value).is_some() || integer(value).is_some()).collect();
    if numbers.is_empty() {
        // From 3.13 on the class could not be made at all.
        return if minor >= 13 && !last_values.is_empty() { unknown() } else { start.clone() };
    }
    let Some(numbers) = numbers.into_iter().map(integer).collect::<Option<Vec<BigInt>>>() else {
        return unknown();
    };
    let mixed = numbers.len() != last_values.len();
    let last = if minor <= 10 { numbers.last() } else { numbers.iter().max() };
    match last {
        // Sorting a mixture fails half-way: which number stands last then is not told by the text.
        Some(_) if minor >= 11 && mixed && numbers.len() > 1 => unknown(),
        Some(_) if minor >= 13 && mixed => unknown(),
        Some(number) => Value::Int(number + 1),
        None => start.clone(),
    }
}
