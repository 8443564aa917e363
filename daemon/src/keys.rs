//! Keys: who may speak as the coordinator, and who for which host.
//!
//! Ed25519 (RFC 8032). A public key is one line of text that names its role, for an agent also its host, and the
//! algorithm: nothing in a message can change any of them. A key's id is derived from the key itself. Used by the
//! envelopes of the bus and by `unstale keys`; nothing here knows a message.

mod due;
mod place;
mod private;
mod ring;

pub(crate) use due::KeysDue;
pub(crate) use place::{KeyPlace, Stamp};
pub(crate) use private::PrivateKey;
pub(crate) use ring::Ring;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::VerifyingKey;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use unstale_protocol::fingerprint::Fingerprint;
use unstale_protocol::ids::HostName;

/// The one algorithm, as lines and envelopes name it.
pub(crate) const ALGORITHM: &str = "ed25519";
/// Fewer signatures than that are looked at one by one: nothing would be gained.
const LEAST_TOGETHER: usize = 4;
/// Hexadecimal digits of a key's digest that make its id.
const ID_DIGITS: usize = 16;

/// Whom a key speaks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// The fleet's coordinator.
    Coordinator,
    /// The agent of one host.
    Agent(HostName),
}

impl Role {
    /// Returns what is public of the role's name in file names.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Agent(_) => "agent",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => f.write_str("coordinator"),
            Self::Agent(host) => write!(f, "agent:{host}"),
        }
    }
}

/// A key's name: 16 hexadecimal digits of its digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeyId(String);

impl KeyId {
    fn of(key: &VerifyingKey) -> Self {
        let text: String = Fingerprint::of_bytes(key.as_bytes()).to_string();
        Self(text.chars().take(ID_DIGITS).collect())
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for KeyId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_id = text.len() == ID_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if is_id { Ok(Self(text.to_owned())) } else { Err("a key id has 16 hexadecimal digits".to_owned()) }
    }
}

/// A public key and whom it speaks for: `agent:web-3:ed25519:BASE64`, `coordinator:ed25519:BASE64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PublicKey {
    pub(crate) role: Role,
    key: VerifyingKey,
}

impl PublicKey {
    /// Returns its id.
    pub(crate) fn id(&self) -> KeyId {
        KeyId::of(&self.key)
    }

    /// Tells whether it made the signature. Signatures and keys that another implementation might read
    /// differently are refused.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        self.key.verify_strict(message, &signature).is_ok()
    }
}

/// What somebody is said to have signed.
#[derive(Debug)]
pub(crate) struct Signed<'a> {
    /// Whose key it should have been.
    pub(crate) key: &'a PublicKey,
    pub(crate) message: Vec<u8>,
    pub(crate) signature: [u8; 64],
}

impl Signed<'_> {
    /// Tells whether the key made the signature.
    pub(crate) fn holds(&self) -> bool {
        self.key.verifies(&self.message, &self.signature)
    }

    /// Tells for each whether its key made the signature. Many are looked at together, which costs less; what does not
    /// hold together is looked at one by one.
    ///
    /// Together, only who has the private key could make a signature hold that [`PublicKey::verifies`] refuses: weak keys
    /// are not enrolled.
    pub(crate) fn hold(all: &[&Self]) -> Vec<bool> {
        if all.len() >= LEAST_TOGETHER && Self::hold_together(all) {
            return vec![true; all.len()];
        }
        all.iter().map(|signed| signed.holds()).collect()
    }

    fn hold_together(all: &[&Self]) -> bool {
        let messages: Vec<&[u8]> = all.iter().map(|signed| signed.message.as_slice()).collect();
        let keys: Vec<VerifyingKey> = all.iter().map(|signed| signed.key.key).collect();
        let signatures: Vec<_> =
            all.iter().map(|signed| ed25519_dalek::Signature::from_bytes(&signed.signature)).collect();
        ed25519_dalek::verify_batch(&messages, &signatures, &keys).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{ALGORITHM}:{}", self.role, BASE64.encode(self.key.as_bytes()))
    }
}

impl FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with(private::MARK) {
            return Err("this is a private key; what is handed out is the line that `unstale keys show` prints".into());
        }
        let (role, bytes) = parts(text)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| "these bytes are no Ed25519 key".to_owned())?;
        if key.is_weak() {
            return Err("this key is weak: anybody could sign for it".to_owned());
        }
        Ok(Self { role, key })
    }
}

/// Takes `ROLE[:HOST]:ed25519:BASE64` apart.
fn parts(text: &str) -> Result<(Role, [u8; 32]), String> {
    let words: Vec<&str> = text.trim().splitn(5, ':').collect();
    let (role, algorithm, encoded) = match words.as_slice() {
        ["coordinator", algorithm, encoded] => (Role::Coordinator, *algorithm, *encoded),
        ["agent", host, algorithm, encoded] => {
            let host = HostName::new(*host).map_err(|error| error.to_string())?;
            (Role::Agent(host), *algorithm, *encoded)
        }
        _ => {
            return Err("not a key: `coordinator:ed25519:…` or `agent:HOST:ed25519:…` is expected".to_owned());
        }
    };
    if algorithm != ALGORITHM {
        return Err(format!("the algorithm {algorithm:?} is not known, only `{ALGORITHM}` is"));
    }
    let bytes = BASE64.decode(encoded).map_err(|_| "its last part is not Base64".to_owned())?;
    let bytes = bytes.try_into().map_err(|_| "its last part does not have 32 bytes".to_owned())?;
    Ok((role, bytes))
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    /// There is no key for this role.
    #[error("there is no key `{}`", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// The command that makes it.
        make: String,
    },
    /// Nobody is enrolled.
    #[error("no key of {who} is enrolled in `{}`", path.display())]
    NobodyEnrolled {
        /// The keyring.
        path: PathBuf,
        /// `a coordinator`, `an agent`.
        who: &'static str,
    },
    /// The file or directory cannot be used.
    #[error("cannot use `{}`", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others could read a private key, or write to a keyring.
    #[error("`{}` is not safe: {why}", path.display())]
    Unsafe {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
        /// What to type.
        fix: String,
    },
    /// The file holds something else.
    #[error("`{}`{} is wrong: {why}", path.display(), line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Wrong {
        /// Which.
        path: PathBuf,
        /// Which line, where it has several.
        line: Option<usize>,
        /// What is wrong.
        why: String,
    },
    /// The key is of another role or host.
    #[error("the key `{}` speaks for {found}, not for {wanted}", path.display())]
    WrongRole {
        /// Which.
        path: PathBuf,
        /// Whom it speaks for.
        found: Role,
        /// Whom it should speak for.
        wanted: Role,
    },
    /// No key has this id.
    #[error("no key {id} is in `{}`", path.display())]
    NoSuchKey {
        /// The id.
        id: KeyId,
        /// The directory.
        path: PathBuf,
    },
    /// The key is in use.
    #[error("the key {0} is the one in use")]
    InUse(KeyId),
    /// No directory can be told.
    #[error("no directory for keys: HOME is not set")]
    NoPlace,
    /// A line of the command line is no key.
    #[error("{0}")]
    NotAKey(String),
}

impl KeyError {
    /// Returns the code that scripts see.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "key-missing",
            Self::NobodyEnrolled { .. } => "key-nobody-enrolled",
            Self::Io { .. } => "key-unreadable",
            Self::Unsafe { .. } => "key-unsafe",
            Self::Wrong { .. } | Self::NotAKey(_) => "key-wrong",
            Self::WrongRole { .. } => "key-wrong-role",
            Self::NoSuchKey { .. } => "key-unknown",
            Self::InUse(_) => "key-in-use",
            Self::NoPlace => "key-no-place",
        }
    }

    /// Returns what can be done.
    pub(crate) fn help(&self) -> Option<String> {
        match self {
            Self::Missing { make, .. } => {
                Some(format!("`{make}` makes it; on a laptop, --insecure-bus does without keys"))
            }
            Self::NobodyEnrolled { who, .. } => Some(format!(
                "`unstale keys enrol LINE` adds it; LINE is what `unstale keys show --public` prints where {who} runs"
            )),
            Self::Unsafe { fix, .. } => Some(format!("`{fix}`")),
            Self::Wrong { .. } => Some("make it anew with `unstale keys`".to_owned()),
            Self::WrongRole { .. } => {
                Some("each host has a key of its own: `unstale keys new agent --host NAME`".into())
            }
            Self::NoSuchKey { .. } => Some("`unstale keys show` lists them".to_owned()),
            Self::InUse(_) => Some("`unstale keys use ID` another one first".to_owned()),
            Self::NoPlace => Some("name one with --keys DIR".to_owned()),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run it as the user that owns the keys, or `chown` them to the one that runs it".to_owned())
            }
            Self::Io { .. } | Self::NotAKey(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> PrivateKey {
        PrivateKey::generate(Role::Agent(HostName::new("web-3").unwrap())).unwrap()
    }

    #[test]
    fn a_public_key_is_one_line_and_comes_back_from_it() {
        let key = agent().public();
        let line = key.to_string();
        assert!(line.starts_with("agent:web-3:ed25519:"), "{line}");
        assert_eq!(line.parse::<PublicKey>().unwrap(), key);
        assert_eq!(key.id().to_string().parse::<KeyId>().unwrap(), key.id());
    }

    #[test]
    fn keys_of_somebody_else_say_who_may_use_them() {
        let help = |kind: io::ErrorKind| KeyError::Io { path: "/keys".into(), source: kind.into() }.help();
        assert!(help(io::ErrorKind::PermissionDenied).unwrap().contains("the user that owns the keys"));
        assert_eq!(help(io::ErrorKind::StorageFull), None);
    }

    #[test]
    fn what_is_no_key_is_refused_with_the_reason() {
        let line = agent().public().to_string();
        let check = |text: &str, part: &str| {
            let why = text.parse::<PublicKey>().unwrap_err();
            assert!(why.contains(part), "{text}: {why}");
        };
        check("", "not a key");
        check("root:ed25519:AAAA", "not a key");
        check(&line.replace("ed25519", "none"), "none");
        check(&line.replace("web-3", "a b"), "a b");
        check(&line.replace("web-3:", ""), "not a key");
        check("coordinator:ed25519:AAAA", "32 bytes");
        check("coordinator:ed25519:????", "Base64");
        check(&agent().text(), "private key");
        // The neutral element: everything verifies for it.
        check(
            &format!(
                "coordinator:ed25519:{}",
                BASE64.encode([1; 1].iter().chain(&[0; 31]).copied().collect::<Vec<u8>>())
            ),
            "weak",
        );
    }
}
