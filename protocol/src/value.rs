//! Values of enum members, as far as they can be known from outside.
//!
//! The same type carries what memory holds, what source text computes to and what bytecode says, so
//! that the layers can be compared. What cannot be known is a value of its own, never a guess.

use num_bigint::BigInt;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Deepest nesting of containers that is kept; deeper values are [`Value::Unresolved`].
pub const MAX_DEPTH: usize = 6;

/// Largest integer that JSON readers keep exactly: 2^53.
const JSON_EXACT: i64 = 1 << 53;

/// A member's value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`. Not equal to 1 and 0 here, although Python says so.
    Bool(bool),
    /// An integer of any size.
    #[serde(with = "decimal")]
    Int(BigInt),
    /// A float by its IEEE 754 bits, so that NaN equals itself and -0.0 is not 0.0.
    Float(u64),
    /// Text.
    Str(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A tuple.
    Tuple(Vec<Value>),
    /// A list.
    List(Vec<Value>),
    /// A set, in the order of [`Value`]'s `Ord`.
    Set(Vec<Value>),
    /// A frozenset, in the order of [`Value`]'s `Ord`.
    FrozenSet(Vec<Value>),
    /// A dict in insertion order.
    Dict(Vec<(Value, Value)>),
    /// In memory: an object whose content cannot be read from outside, with the name of its type.
    Opaque {
        /// `tp_name` of the object's type.
        type_name: String,
    },
    /// In source or bytecode: an expression that cannot be computed statically.
    Unresolved {
        /// What stands in the way, for people: `calls os.environ.get`.
        why: String,
    },
}

/// What comparing two values can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Same {
    /// Both are known and equal.
    Yes,
    /// Both are known, as far as needed, and differ.
    No,
    /// At least one part that matters is opaque or unresolved.
    Undecided,
}

impl Value {
    /// Returns an integer value.
    pub fn int(number: impl Into<BigInt>) -> Self {
        Self::Int(number.into())
    }

    /// Returns a text value.
    pub fn str(text: impl Into<String>) -> Self {
        Self::Str(text.into())
    }

    /// Returns a float value.
    pub fn float(number: f64) -> Self {
        Self::Float(number.to_bits())
    }

    /// Returns an unresolved value, with the reason.
    pub fn unresolved(why: impl Into<String>) -> Self {
        Self::Unresolved { why: why.into() }
    }

    /// Tells whether the value, with all its parts, is known.
    pub fn is_known(&self) -> bool {
        match self {
            Self::Opaque { .. } | Self::Unresolved { .. } => false,
            Self::Tuple(items) | Self::List(items) | Self::Set(items) | Self::FrozenSet(items) => {
                items.iter().all(Self::is_known)
            }
            Self::Dict(pairs) => pairs.iter().all(|(key, value)| key.is_known() && value.is_known()),
            Self::None | Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Str(_) | Self::Bytes(_) => true,
        }
    }

    /// Compares two values; parts that either side does not know decide nothing.
    pub fn same(&self, other: &Self) -> Same {
        match (self, other) {
            (Self::Opaque { .. } | Self::Unresolved { .. }, _) | (_, Self::Opaque { .. } | Self::Unresolved { .. }) => {
                Same::Undecided
            }
            (Self::Tuple(a), Self::Tuple(b)) | (Self::List(a), Self::List(b)) => same_items(a, b),
            _ if self == other => Same::Yes,
            _ if self.is_known() && other.is_known() => Same::No,
            _ => Same::Undecided,
        }
    }

    /// Returns the value as the command line's JSON shows it: its JSON equal where there is one, else
    /// `{"repr": "…"}`; an unresolved one is `{"unresolved": "why"}`.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::None => serde_json::Value::Null,
            Self::Bool(flag) => json!(flag),
            Self::Int(number) => match i64::try_from(number) {
                Ok(small) if (-JSON_EXACT..=JSON_EXACT).contains(&small) => json!(small),
                _ => json!({ "repr": number.to_string() }),
            },
            Self::Float(bits) => match serde_json::Number::from_f64(f64::from_bits(*bits)) {
                Some(number) => serde_json::Value::Number(number),
                None => json!({ "repr": self.repr() }),
            },
            Self::Str(text) => json!(text),
            Self::List(items) if items.iter().all(Self::is_plain_json) => items.iter().map(Self::to_json).collect(),
            Self::Unresolved { why } => json!({ "unresolved": why }),
            Self::Bytes(_)
            | Self::Tuple(_)
            | Self::List(_)
            | Self::Set(_)
            | Self::FrozenSet(_)
            | Self::Dict(_)
            | Self::Opaque { .. } => json!({ "repr": self.repr() }),
        }
    }

    fn is_plain_json(&self) -> bool {
        !self.to_json().is_object()
    }

    /// Returns the value much as Python's `repr` writes it, for people.
    pub fn repr(&self) -> String {
        match self {
            Self::None => "None".to_owned(),
            Self::Bool(true) => "True".to_owned(),
            Self::Bool(false) => "False".to_owned(),
            Self::Int(number) => number.to_string(),
            Self::Float(bits) => float_repr(f64::from_bits(*bits)),
            Self::Str(text) => format!("{text:?}"),
            Self::Bytes(bytes) => format!("b\"{}\"", bytes.escape_ascii()),
            Self::Tuple(items) => match items.as_slice() {
                [only] => format!("({},)", only.repr()),
                _ => format!("({})", join(items)),
            },
            Self::List(items) => format!("[{}]", join(items)),
            Self::Set(items) if items.is_empty() => "set()".to_owned(),
            Self::Set(items) => format!("{{{}}}", join(items)),
            Self::FrozenSet(items) => format!("frozenset({{{}}})", join(items)),
            Self::Dict(pairs) => {
                let parts: Vec<_> =
                    pairs.iter().map(|(key, value)| format!("{}: {}", key.repr(), value.repr())).collect();
                format!("{{{}}}", parts.join(", "))
            }
            Self::Opaque { type_name } => format!("<{type_name} object>"),
            Self::Unresolved { why } => format!("<unresolved: {why}>"),
        }
    }
}

fn same_items(a: &[Value], b: &[Value]) -> Same {
    if a.len() != b.len() {
        return Same::No;
    }
    let mut answer = Same::Yes;
    for (left, right) in a.iter().zip(b) {
        match left.same(right) {
            Same::Yes => {}
            Same::No => return Same::No,
            Same::Undecided => answer = Same::Undecided,
        }
    }
    answer
}

fn join(items: &[Value]) -> String {
    items.iter().map(Value::repr).collect::<Vec<_>>().join(", ")
}

fn float_repr(number: f64) -> String {
    if number.is_nan() {
        "nan".to_owned()
    } else if number.is_infinite() {
        if number > 0.0 { "inf".to_owned() } else { "-inf".to_owned() }
    } else {
        format!("{number:?}")
    }
}

/// Integers travel as decimal text: JSON numbers lose digits.
mod decimal {
    use num_bigint::BigInt;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Most decimal digits accepted: a 30,720-bit integer, the reader's bound, has 9,248.
    const MAX_DIGITS: usize = 9_300;

    pub(super) fn serialize<S: Serializer>(number: &BigInt, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&number.to_string())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BigInt, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > MAX_DIGITS {
            return Err(D::Error::custom("integer has too many digits"));
        }
        text.parse().map_err(|_| D::Error::custom("not an integer"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_what_json_can_hold() {
        let check = |value: Value, want: serde_json::Value| assert_eq!(value.to_json(), want);
        check(Value::str("hubspot"), json!("hubspot"));
        check(Value::int(7), json!(7));
        check(Value::int(BigInt::from(2u8).pow(60)), json!({"repr": "1152921504606846976"}));
        check(Value::float(f64::NAN), json!({"repr": "nan"}));
        check(Value::float(1.5), json!(1.5));
        check(Value::Bytes(b"a\xff".to_vec()), json!({"repr": "b\"a\\xff\""}));
        check(Value::Tuple(vec![Value::int(1)]), json!({"repr": "(1,)"}));
        check(Value::unresolved("calls f"), json!({"unresolved": "calls f"}));
    }

    #[test]
    fn unknown_parts_decide_nothing() {
        let label = Value::unresolved("calls _");
        let pair = |text: &str| Value::Tuple(vec![Value::str(text), label.clone()]);
        assert_eq!(pair("a").same(&pair("a")), Same::Undecided);
        assert_eq!(pair("a").same(&pair("b")), Same::No);
        assert_eq!(Value::Bool(true).same(&Value::int(1)), Same::No);
        assert_eq!(label.same(&Value::int(1)), Same::Undecided);
    }
}
