//! Canonical form and its digest, byte by byte, so that another implementation can reproduce it.
//!
//! Numbers named `u32` are big-endian. `text` is a `u32` byte length followed by UTF-8.
//!
//! **Value form**: one tag byte, then
//!
//! | tag | value | payload |
//! |---|---|---|
//! | `N` | None | nothing |
//! | `T`, `F` | True, False | nothing |
//! | `I` | int | `u32` length, shortest two's complement, big-endian |
//! | `D` | float | 8 bytes IEEE 754, big-endian; every NaN is `7ff8000000000000` |
//! | `S` | str | `text` |
//! | `B` | bytes | `u32` length, the bytes |
//! | `(`, `[` | tuple, list | `u32` count, the items' forms |
//! | `{`, `<` | set, frozenset | `u32` count, the items' forms sorted as bytes |
//! | `:` | dict | `u32` count, per pair the key's form and the value's form, in order |
//!
//! **Value digest**: the first 16 bytes of SHA-256 over `unstale/value/1`, a zero byte and the form. A
//! value that is not wholly known has none.
//!
//! **Definition form**: `unstale/enum/1`, a zero byte; `u32` count of canonical members; per member
//! its name as `text`, then `01` and the 16 bytes of the value digest, or `00` where there is none;
//! `u32` count of aliases; per alias, sorted by its name as bytes, its name and its canonical name,
//! both as `text`. The **fingerprint** is SHA-256 over it.
//!
//! `tests/fixtures/fingerprints.json` holds test vectors.

use crate::value::Value;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

/// The text is not the lower- or upper-case hexadecimal form of a digest of this length.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a digest of {bytes} bytes in hexadecimal: {text:?}")]
pub struct HexError {
    bytes: usize,
    text: String,
}

fn from_hex<const N: usize>(text: &str) -> Result<[u8; N], HexError> {
    let error = || HexError { bytes: N, text: text.chars().take(100).collect() };
    if text.len() != N * 2 || !text.is_ascii() {
        return Err(error());
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        let pair = text.get(index * 2..index * 2 + 2).ok_or_else(error)?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
    }
    Ok(bytes)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}

macro_rules! digest {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub [u8; $bytes]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = HexError;
            fn from_str(text: &str) -> Result<Self, HexError> {
                from_hex(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = HexError;
            fn try_from(text: String) -> Result<Self, HexError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(digest: $name) -> Self {
                digest.to_string()
            }
        }
    };
}

digest!(
    /// Digest of the canonical form of a definition, or of a whole manifest: 32 bytes, shown as 64 hexadecimal digits.
    Fingerprint, 32
);
digest!(
    /// Digest of one value: 16 bytes, shown as 32 hexadecimal digits. Values travel only in this form.
    ValueDigest, 16
);

digest!(
    /// 16 random bytes, shown as 32 hexadecimal digits: tells two lives of one counter apart.
    #[derive(Default)]
    Salt, 16
);

impl Salt {
    /// Tells whether nobody drew it: what a message holds that was written without one.
    pub fn is_unset(&self) -> bool {
        self.0 == [0; 16]
    }
}

impl Fingerprint {
    /// Returns the plain SHA-256 of `bytes`: the name by which a manifest's JSON travels.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl ValueDigest {
    /// Returns the digest of `value`, or `None` where the value is not wholly known.
    pub fn of(value: &Value) -> Option<Self> {
        let mut form = Form::new("unstale/value/1");
        form.value(value)?;
        let whole = form.digest().0;
        let mut short = [0; 16];
        short.copy_from_slice(whole.get(..16)?);
        Some(Self(short))
    }

    /// Returns the digest of a text value: a label or a name that is sent as text.
    pub fn of_text(text: &str) -> Self {
        Self::of(&Value::str(text)).unwrap_or(Self([0; 16]))
    }
}

/// A canonical form in the making.
#[derive(Debug)]
pub(crate) struct Form(Vec<u8>);

impl Form {
    pub(crate) fn new(kind: &str) -> Self {
        let mut bytes = kind.as_bytes().to_vec();
        bytes.push(0);
        Self(bytes)
    }

    pub(crate) fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    pub(crate) fn count(&mut self, count: usize) {
        // Counts are bounded far below 2^32 by every reader; saturating keeps this total.
        self.0.extend(u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes());
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.raw(bytes);
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    pub(crate) fn digest(&self) -> Fingerprint {
        Fingerprint(Sha256::digest(&self.0).into())
    }

    /// Appends the value form; `None` where a part is opaque or unresolved.
    fn value(&mut self, value: &Value) -> Option<()> {
        match value {
            Value::None => self.byte(b'N'),
            Value::Bool(true) => self.byte(b'T'),
            Value::Bool(false) => self.byte(b'F'),
            Value::Int(number) => {
                self.byte(b'I');
                self.bytes(&number.to_signed_bytes_be());
            }
            Value::Float(bits) => {
                let bits = if f64::from_bits(*bits).is_nan() { 0x7ff8_0000_0000_0000 } else { *bits };
                self.byte(b'D');
                self.raw(&bits.to_be_bytes());
            }
            Value::Str(text) => {
                self.byte(b'S');
                self.text(text);
            }
            Value::Bytes(bytes) => {
                self.byte(b'B');
                self.bytes(bytes);
            }
            Value::Tuple(items) => self.items(b'(', items)?,
            Value::List(items) => self.items(b'[', items)?,
            Value::Set(items) => self.sorted(b'{', items)?,
            Value::FrozenSet(items) => self.sorted(b'<', items)?,
            Value::Dict(pairs) => {
                self.byte(b':');
                self.count(pairs.len());
                for (key, value) in pairs {
                    self.value(key)?;
                    self.value(value)?;
                }
            }
            Value::Opaque { .. } | Value::Unresolved { .. } => return None,
        }
        Some(())
    }

    fn items(&mut self, tag: u8, items: &[Value]) -> Option<()> {
        self.byte(tag);
        self.count(items.len());
        items.iter().try_for_each(|item| self.value(item))
    }

    fn sorted(&mut self, tag: u8, items: &[Value]) -> Option<()> {
        let mut forms = Vec::with_capacity(items.len());
        for item in items {
            let mut form = Self(Vec::new());
            form.value(item)?;
            forms.push(form.0);
        }
        forms.sort();
        self.byte(tag);
        self.count(forms.len());
        for form in &forms {
            self.raw(form);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_round_trip_through_hexadecimal() {
        let digest = ValueDigest::of_text("hubspot");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!("zz".parse::<ValueDigest>().is_err());
        assert!("ä".repeat(16).parse::<ValueDigest>().is_err());
    }

    #[test]
    fn every_kind_of_value_has_its_own_digest() {
        let values = [
            Value::None,
            Value::Bool(false),
            Value::int(0),
            Value::float(0.0),
            Value::float(-0.0),
            Value::str(""),
            Value::Bytes(vec![]),
            Value::Tuple(vec![]),
            Value::List(vec![]),
            Value::Set(vec![]),
            Value::FrozenSet(vec![]),
            Value::Dict(vec![]),
        ];
        let digests: std::collections::BTreeSet<_> = values.iter().map(ValueDigest::of).collect();
        assert_eq!(digests.len(), values.len());
        assert_eq!(ValueDigest::of(&Value::unresolved("x")), None);
    }

    #[test]
    fn sets_have_no_order() {
        let ab = Value::Set(vec![Value::str("a"), Value::str("b")]);
        let ba = Value::Set(vec![Value::str("b"), Value::str("a")]);
        assert_eq!(ValueDigest::of(&ab), ValueDigest::of(&ba));
    }
}
