//! Bytes in JSON: two hexadecimal digits each, so that any file costs exactly twice its length.

use serde::{Deserialize, Deserializer, Serializer, de::Error};
use std::borrow::Cow;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Writes `bytes` as one string.
pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let digit = |value: u8| char::from(DIGITS.get(usize::from(value)).copied().unwrap_or(b'?'));
    let mut text = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        text.push(digit(byte >> 4));
        text.push(digit(byte & 15));
    }
    serializer.serialize_str(&text)
}

/// Reads bytes from one string.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = Cow::<'de, str>::deserialize(deserializer)?;
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let byte = |pair: &[u8]| match *pair {
        [high, low] => Some(value(high)? << 4 | value(low)?),
        _ => None,
    };
    text.as_bytes().chunks(2).map(byte).collect::<Option<_>>().ok_or_else(|| D::Error::custom("not hexadecimal"))
}

#[cfg(test)]
mod tests {
    #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
    struct Wrapped(#[serde(with = "super")] Vec<u8>);

    #[test]
    fn bytes_come_back_as_they_were() {
        let all = Wrapped((0..=255).collect());
        let text = serde_json::to_string(&all).expect("text");
        assert_eq!(serde_json::from_str::<Wrapped>(&text).expect("bytes"), all);
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["\"0\"", "\"0g\"", "\"0A\"", "1", "\"ää\""] {
            assert!(serde_json::from_str::<Wrapped>(text).is_err(), "{text}");
        }
    }
}
