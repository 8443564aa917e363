//! Names and numbers that must not be mistaken for each other.
//!
//! Text that people choose (apps, hosts) is checked where it is made; text that is derived
//! (slots, units, pools) only bounded. All text is shared: machines keep the same few names in many places.

use crate::fingerprint::Salt;
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest name of an app or a host, in bytes.
pub const NAME_MAX_BYTES: usize = 64;
/// Longest derived identifier (slot, unit, pool), in bytes.
pub const ID_MAX_BYTES: usize = 256;

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name has no characters.
    #[error("a name must not be empty")]
    Empty,
    /// The name is longer than the limit, in bytes.
    #[error("the name is {0} bytes long; at most {1} are allowed")]
    TooLong(usize, usize),
    /// The name has a character outside the allowed set.
    #[error(
        "the name {0:?} has a character other than letters, digits, `.`, `_` and `-`, or does not start with a letter or digit"
    )]
    Character(String),
}

fn check_chosen(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > NAME_MAX_BYTES {
        return Err(NameError::TooLong(text.len(), NAME_MAX_BYTES));
    }
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts_well || !text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')) {
        return Err(NameError::Character(text.to_owned()));
    }
    Ok(())
}

fn check_derived(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > ID_MAX_BYTES {
        return Err(NameError::TooLong(text.len(), ID_MAX_BYTES));
    }
    Ok(())
}

/// The first 16 bytes of a text, zeros where it is shorter, as two numbers: they order as the texts do, or are the same.
/// Kept beside the text, so that two names of a tree are mostly told apart by two comparisons, without a look at it.
type Head = (u64, u64);

fn head_of(text: &str) -> Head {
    let (mut first, mut second) = ([0; 8], [0; 8]);
    first.iter_mut().chain(&mut second).zip(text.bytes()).for_each(|(to, from)| *to = from);
    (u64::from_be_bytes(first), u64::from_be_bytes(second))
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name {
            head: Head,
            text: Arc<str>,
        }

        impl $name {
            /// Checks and wraps `text`.
            ///
            /// # Errors
            /// [`NameError`] where the text is empty, too long or has a forbidden character.
            pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
                let text = text.into();
                $check(&text)?;
                Ok(Self { head: head_of(&text), text: text.into() })
            }

            /// Returns the text.
            pub fn as_str(&self) -> &str {
                &self.text
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.text)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.as_str().to_owned()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

text_id!(
    /// A named code base with its manifest, e.g. `shop`. Letters, digits, `.`, `_`, `-`; 1 to 64 bytes.
    AppName, check_chosen
);
text_id!(
    /// A machine or container with one agent. Letters, digits, `.`, `_`, `-`; 1 to 64 bytes.
    HostName, check_chosen
);
text_id!(
    /// The place that a unit lives in, which outlasts restarts: `celery/systemd/shop@1.service`. 1 to 256 bytes.
    SlotId, check_derived
);
text_id!(
    /// One life of a unit: `celery:4711`. 1 to 256 bytes.
    UnitId, check_derived
);
text_id!(
    /// The slots of one app, kind and service name across the fleet that share a budget. 1 to 256 bytes.
    PoolName, check_derived
);
text_id!(
    /// One drain asked for by hand, named by the coordinator. 1 to 256 bytes.
    DrainId, check_derived
);

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl $name {
            /// Returns the number that follows.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }
    };
}

number_id!(
    /// The number of a schema version of one app, from 1: the 7 of `shop@7`.
    Revision
);
number_id!(
    /// The number of a coordinator's reign: 1 + the highest seen on its own disk, on the bus and in reports.
    Epoch
);
number_id!(
    /// The number of a desired state within the whole history of a fleet.
    Generation
);

/// A process number in the pid namespace of the one who looks. Never an identity by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pid(pub u32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What makes a process that process: pids are used again, start times within a boot are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The pid as this host's initial view sees it.
    pub pid: Pid,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`, proc(5).
    pub start_ticks: u64,
    /// Inode of `/proc/PID/ns/pid`; 0 where it cannot be read.
    pub pid_namespace: u64,
}

/// Orders all desired states of a fleet: a higher epoch wins, then a higher generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// The coordinator's reign.
    pub epoch: Epoch,
    /// The desired state's number.
    pub generation: Generation,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.generation)
    }
}

/// One life of an agent: a counter on its disk, raised at each start, plus 16 random bytes.
///
/// Two agents that share a counter but not the random bytes are two agents of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// Raised by one at every start of the agent, before anything is sent.
    pub counter: u64,
    /// Drawn at the same time.
    pub random: Salt,
}

/// A schema version by name: `shop@7`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SchemaVersion {
    /// The app.
    pub app: AppName,
    /// Its revision.
    pub revision: Revision,
}

impl fmt::Display for SchemaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.app, self.revision)
    }
}

/// A Python minor version, as far as definitions and layouts depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PythonVersion {
    /// The 3 of 3.11.
    pub major: u8,
    /// The 11 of 3.11.
    pub minor: u8,
}

impl PythonVersion {
    /// Returns Python 3.`minor`.
    pub const fn three(minor: u8) -> Self {
        Self { major: 3, minor }
    }
}

impl fmt::Display for PythonVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A Python enum by name: `app.enums:CrmType`, nested ones `app.models:Order.Status`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EnumName {
    /// The module that defines it, dotted.
    pub module: String,
    /// `__qualname__` within the module.
    pub qualname: String,
}

impl EnumName {
    /// Returns the name of `qualname` in `module`.
    pub fn new(module: impl Into<String>, qualname: impl Into<String>) -> Self {
        Self { module: module.into(), qualname: qualname.into() }
    }
}

impl fmt::Display for EnumName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.module, self.qualname)
    }
}

impl TryFrom<String> for EnumName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        match text.split_once(':') {
            Some((module, qualname)) => Ok(Self::new(module, qualname)),
            None => Err(NameError::Character(text)),
        }
    }
}

impl From<EnumName> for String {
    fn from(name: EnumName) -> Self {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_names_are_checked() {
        for good in ["shop", "shop-2", "web_1.eu", "7up"] {
            assert!(AppName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-shop", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(AppName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_order_as_their_texts_do() {
        let texts = ["a", "a\0", "a\0b", "ab", "b", "host-000", "host-0001", "host-000123456789", "host-000123456790"];
        let more = ["host-00012345678z", "host-0002", "z", "é", "\u{10ffff}"];
        let texts: Vec<&str> = texts.into_iter().chain(more).collect();
        for (a, b) in texts.iter().flat_map(|a| texts.iter().map(move |b| (*a, *b))) {
            assert_eq!(SlotId::new(a).unwrap().cmp(&SlotId::new(b).unwrap()), a.cmp(b), "{a:?} and {b:?}");
        }
    }

    #[test]
    fn versions_order_by_epoch_before_generation() {
        let older = Version { epoch: Epoch(1), generation: Generation(90) };
        let newer = Version { epoch: Epoch(2), generation: Generation(3) };
        assert!(older < newer);
    }
}
