//! Operators on constants, with bounds on what they may build.

use super::super::ir::{Operator, Unary};
use super::{Kind, Thing, unresolved};
use num_bigint::BigInt;
use unstale_protocol::value::Value;

/// Largest integer that is computed, in bits; the same bound as for integers in memory.
const MAX_BITS: u64 = 30_720;

/// Longest text or bytes that is computed.
const MAX_TEXT_BYTES: usize = 16 * 1024;

/// Applies a binary operator.
pub(super) fn binary(operator: Operator, left: Thing, right: Thing) -> Thing {
    match (operator, left, right) {
        (_, Thing::Unresolved(why), _) | (_, _, Thing::Unresolved(why)) => Thing::Unresolved(why),
        (_, Thing::Value(left), Thing::Value(right)) => match values(operator, &left, &right) {
            Some(value) => Thing::Value(value),
            None => unresolved("an operation that is not computed"),
        },
        (Operator::Add, Thing::Sequence(Kind::Tuple, mut left), Thing::Sequence(Kind::Tuple, right)) => {
            left.extend(right);
            Thing::Sequence(Kind::Tuple, left)
        }
        (Operator::Add, Thing::Sequence(Kind::List, mut left), Thing::Sequence(Kind::List, right)) => {
            left.extend(right);
            Thing::Sequence(Kind::List, left)
        }
        (Operator::Or, left, right) if is_type(&left) && is_type(&right) => {
            let mut types = Vec::new();
            for side in [left, right] {
                match side {
                    Thing::Union(inner) => types.extend(inner),
                    other => types.push(other),
                }
            }
            Thing::Union(types)
        }
        _ => unresolved("an operation that is not computed"),
    }
}

fn is_type(thing: &Thing) -> bool {
    matches!(
        thing,
        Thing::Class(_)
            | Thing::Made(_)
            | Thing::External(_)
            | Thing::Generic(..)
            | Thing::Union(_)
            | Thing::Value(Value::None | Value::Str(_))
    )
}

fn values(operator: Operator, left: &Value, right: &Value) -> Option<Value> {
    if let (Some(left), Some(right)) = (integer(left), integer(right)) {
        return integers(operator, &left, &right);
    }
    if let (Some(left), Some(right)) = (float(left), float(right)) {
        let number = match operator {
            Operator::Add => left + right,
            Operator::Subtract => left - right,
            Operator::Multiply => left * right,
            Operator::Divide if right != 0.0 => left / right,
            _ => return None,
        };
        return Some(Value::float(number));
    }
    match (operator, left, right) {
        (Operator::Add, Value::Str(left), Value::Str(right)) if left.len() + right.len() <= MAX_TEXT_BYTES => {
            Some(Value::Str(format!("{left}{right}")))
        }
        (Operator::Add, Value::Bytes(left), Value::Bytes(right)) if left.len() + right.len() <= MAX_TEXT_BYTES => {
            Some(Value::Bytes([left.as_slice(), right.as_slice()].concat()))
        }
        (Operator::Add, Value::Tuple(left), Value::Tuple(right)) => {
            Some(Value::Tuple([left.as_slice(), right.as_slice()].concat()))
        }
        (Operator::Multiply, Value::Str(text), count) | (Operator::Multiply, count, Value::Str(text)) => {
            let count = usize::try_from(integer(count)?.max(BigInt::ZERO)).ok()?;
            let fits = text.len().checked_mul(count)? <= MAX_TEXT_BYTES;
            fits.then(|| Value::Str(text.repeat(count)))
        }
        _ => None,
    }
}

/// Returns the integer that a value is; `True` and `False` are 1 and 0.
pub(in super::super) fn integer(value: &Value) -> Option<BigInt> {
    match value {
        Value::Int(number) => Some(number.clone()),
        Value::Bool(flag) => Some(BigInt::from(u8::from(*flag))),
        _ => None,
    }
}

/// Returns the float that a value is, integers that a float holds exactly included.
pub(in super::super) fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Float(bits) => Some(f64::from_bits(*bits)),
        Value::Int(_) | Value::Bool(_) => {
            let number = i32::try_from(&integer(value)?).ok()?;
            Some(f64::from(number))
        }
        _ => None,
    }
}

fn integers(operator: Operator, left: &BigInt, right: &BigInt) -> Option<Value> {
    let zero = BigInt::ZERO;
    let number = match operator {
        Operator::Add => left + right,
        Operator::Subtract => left - right,
        Operator::Multiply if left.bits() + right.bits() <= MAX_BITS => left * right,
        Operator::FloorDivide if *right != zero => floor_divide(left, right),
        Operator::Remainder if *right != zero => left - floor_divide(left, right) * right,
        Operator::Power if *right >= zero => {
            let exponent = u32::try_from(right).ok()?;
            if left.bits().checked_mul(u64::from(exponent))? > MAX_BITS {
                return None;
            }
            left.pow(exponent)
        }
        Operator::ShiftLeft if *right >= zero => {
            let by = u64::try_from(right).ok()?;
            if left.bits().checked_add(by)? > MAX_BITS {
                return None;
            }
            left << by
        }
        Operator::ShiftRight if *right >= zero => {
            let by = u64::try_from(right).ok()?;
            left >> by.min(MAX_BITS)
        }
        Operator::Or => left | right,
        Operator::Xor => left ^ right,
        Operator::And => left & right,
        _ => return None,
    };
    (number.bits() <= MAX_BITS).then_some(Value::Int(number))
}

fn floor_divide(left: &BigInt, right: &BigInt) -> BigInt {
    let quotient = left / right;
    let exact = &quotient * right == *left;
    let negative = (*left < BigInt::ZERO) != (*right < BigInt::ZERO);
    if negative && !exact { quotient - 1 } else { quotient }
}

/// Applies a unary operator.
pub(super) fn unary(operator: Unary, operand: Thing) -> Thing {
    let value = match operand {
        Thing::Value(value) => value,
        Thing::Unresolved(why) => return Thing::Unresolved(why),
        _ => return unresolved("an operation that is not computed"),
    };
    let answer = match (operator, &value, integer(&value)) {
        (Unary::Minus, Value::Float(bits), _) => Some(Value::float(-f64::from_bits(*bits))),
        (Unary::Plus, Value::Float(_), _) => Some(value.clone()),
        (Unary::Minus, _, Some(number)) => Some(Value::Int(-number)),
        (Unary::Plus, _, Some(number)) => Some(Value::Int(number)),
        (Unary::Invert, _, Some(number)) => Some(Value::Int(!number)),
        (Unary::Not, _, Some(number)) => Some(Value::Bool(number == BigInt::ZERO)),
        (Unary::Not, Value::Str(text), _) => Some(Value::Bool(text.is_empty())),
        (Unary::Not, Value::None, _) => Some(Value::Bool(true)),
        _ => None,
    };
    answer.map_or_else(|| unresolved("an operation that is not computed"), Thing::Value)
}

/// Tells whether Python's `==` holds; `None` where that is not known. Numbers of all types are equal by
/// value, which makes `1`, `True` and `1.0` aliases.
pub(in super::super) fn equal(left: &Value, right: &Value) -> Option<bool> {
    if !left.is_known() || !right.is_known() {
        return None;
    }
    Some(known_equal(left, right))
}

fn known_equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Int(_) | Value::Bool(_), Value::Int(_) | Value::Bool(_)) => integer(left) == integer(right),
        (Value::Float(_), Value::Int(_) | Value::Bool(_) | Value::Float(_))
        | (Value::Int(_) | Value::Bool(_), Value::Float(_)) => match (float(left), float(right)) {
            #[expect(clippy::float_cmp, reason = "this is Python's ==")]
            (Some(left), Some(right)) => left == right,
            _ => false,
        },
        (Value::Tuple(left), Value::Tuple(right)) | (Value::List(left), Value::List(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| known_equal(left, right))
        }
        (Value::Dict(left), Value::Dict(right)) => {
            left.len() == right.len()
                && left.iter().all(|(key, value)| {
                    right.iter().any(|(other, theirs)| known_equal(key, other) && known_equal(value, theirs))
                })
        }
        (Value::Set(left) | Value::FrozenSet(left), Value::Set(right) | Value::FrozenSet(right)) => left == right,
        _ => left == right,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_computed_as_python_does() {
        let int = |number: i64| Value::int(number);
        let check = |operator, left: Value, right: Value, want: Option<Value>| {
            assert_eq!(values(operator, &left, &right), want, "{left:?} {operator:?} {right:?}");
        };
        check(Operator::FloorDivide, int(-7), int(2), Some(int(-4)));
        check(Operator::Remainder, int(-7), int(2), Some(int(1)));
        check(Operator::Remainder, int(7), int(-2), Some(int(-1)));
        check(Operator::FloorDivide, int(1), int(0), None);
        check(Operator::ShiftLeft, int(1), int(4), Some(int(16)));
        check(Operator::ShiftLeft, int(1), int(1 << 40), None);
        check(Operator::Power, int(2), int(1 << 40), None);
        check(Operator::Add, Value::Bool(true), int(1), Some(int(2)));
        check(Operator::Add, Value::str("a"), Value::str("b"), Some(Value::str("ab")));
        check(Operator::Multiply, Value::str("ab"), int(1 << 40), None);
        check(Operator::Multiply, Value::str("ab"), int(-1), Some(Value::str("")));
        check(Operator::Divide, int(1), int(2), Some(Value::float(0.5)).filter(|_| false));
        check(Operator::Divide, Value::float(1.0), int(2), Some(Value::float(0.5)));
        check(Operator::Add, Value::str("a"), int(1), None);
    }

    #[test]
    fn numbers_are_equal_by_value() {
        assert_eq!(equal(&Value::int(1), &Value::Bool(true)), Some(true));
        assert_eq!(equal(&Value::int(1), &Value::float(1.0)), Some(true));
        assert_eq!(equal(&Value::int(1), &Value::str("1")), Some(false));
        assert_eq!(equal(&Value::int(1), &Value::unresolved("x")), None);
    }
}
