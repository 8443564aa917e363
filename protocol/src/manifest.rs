//! Manifests: all definitions and bindings of one app at one time, as they travel.
//!
//! Names travel, values only as digests. Definitions depend on the worker's Python (nested classes,
//! private names), so an enum has one variant per range of versions.

use crate::binding::{Binding, ColumnName, Label, Sends};
use crate::enumdef::Outline;
use crate::fingerprint::{Fingerprint, Form, ValueDigest};
use crate::ids::{EnumName, PythonVersion};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Largest manifest accepted, in bytes of JSON.
pub const MANIFEST_MAX_BYTES: usize = 1 << 20;

/// All definitions and bindings of one app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// One entry per enum, and per column bound without a Python enum; sorted by path, then qualname.
    pub entries: Vec<Entry>,
    /// Where it was made, for claims on workers of the same mount namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// Where a manifest was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Inode of `/proc/self/ns/mnt`.
    pub mount_namespace: u64,
    /// The directories given to the broadcast, absolute and canonical.
    pub paths: Vec<String>,
}

/// One enum, or the columns of one class that are bound to no Python enum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The module's file relative to the app's root: `app/enums.py`, without a leading `src/`.
    pub path: String,
    /// The module, dotted, as the source tree names it.
    pub module: String,
    /// `__qualname__`; for a column without an enum, `Class.column`.
    pub qualname: String,
    /// Names of the direct bases, for people.
    #[serde(default)]
    pub bases: Vec<String>,
    /// Definitions by Python version, lowest first; empty for a column without an enum.
    #[serde(default)]
    pub variants: Vec<Variant>,
    /// Columns bound to this enum.
    #[serde(default)]
    pub bindings: Vec<ManifestBinding>,
}

/// The definition for a range of Python versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// The versions.
    pub python: PythonRange,
    /// The definition, values as digests.
    #[serde(flatten)]
    pub outline: Outline,
    /// False where the members themselves cannot be computed statically.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub members_known: bool,
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_true(flag: &bool) -> bool {
    *flag
}

/// `>=3.8,<3.11`: half open, the upper bound optional.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PythonRange {
    /// The lowest version.
    pub from: PythonVersion,
    /// The first version beyond, if any.
    pub below: Option<PythonVersion>,
}

impl PythonRange {
    /// Tells whether `version` lies in the range.
    pub fn contains(&self, version: PythonVersion) -> bool {
        self.from <= version && self.below.is_none_or(|below| version < below)
    }
}

impl fmt::Display for PythonRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, ">={}", self.from)?;
        match self.below {
            Some(below) => write!(f, ",<{below}"),
            None => Ok(()),
        }
    }
}

impl From<PythonRange> for String {
    fn from(range: PythonRange) -> Self {
        range.to_string()
    }
}

/// The text is not a range of Python versions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a range of Python versions such as `>=3.8,<3.11`: {0:?}")]
pub struct RangeError(String);

impl TryFrom<String> for PythonRange {
    type Error = RangeError;
    fn try_from(text: String) -> Result<Self, RangeError> {
        let version = |part: &str| {
            let (major, minor) = part.split_once('.')?;
            Some(PythonVersion { major: major.parse().ok()?, minor: minor.parse().ok()? })
        };
        let parse = || {
            let rest = text.strip_prefix(">=")?;
            match rest.split_once(",<") {
                Some((from, below)) => Some(Self { from: version(from)?, below: Some(version(below)?) }),
                None => Some(Self { from: version(rest)?, below: None }),
            }
        };
        parse().ok_or_else(|| RangeError(text.chars().take(64).collect()))
    }
}

/// One bound column as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestBinding {
    /// File of the mapped class's module, relative to the app's root.
    pub path: String,
    /// The column.
    pub column: ColumnName,
    /// The database enum's name.
    pub type_name: Option<String>,
    /// Its schema, where stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// False for `native_enum=False`.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub native: bool,
    /// The labels.
    pub sends: Sent,
}

/// What a column sends, without any value in clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sent {
    /// The members' names.
    Names,
    /// The members' values.
    Values,
    /// These labels; `null` where one cannot be computed.
    Labels(Vec<Option<ValueDigest>>),
    /// Cannot be computed.
    Unresolved,
}

impl ManifestBinding {
    /// Makes the travelling form of `binding`, whose class's module lies at `path`.
    pub fn new(binding: &Binding, path: impl Into<String>) -> Self {
        let sends = match &binding.sends {
            Some(Sends::Names) => Sent::Names,
            Some(Sends::Values) => Sent::Values,
            Some(Sends::Unresolved { .. }) => Sent::Unresolved,
            Some(Sends::Labels) | None => Sent::Labels(binding.labels.iter().map(label_digest).collect()),
        };
        Self {
            path: path.into(),
            column: binding.column.clone(),
            type_name: binding.type_name.clone(),
            schema: binding.schema.clone(),
            native: binding.native,
            sends,
        }
    }

    /// Returns the labels that are wanted, each `None` where it cannot be computed; `None` where not even
    /// their number can.
    pub fn labels(&self, outline: Option<&Outline>) -> Option<Vec<Option<ValueDigest>>> {
        match &self.sends {
            Sent::Names => Some(outline?.members.iter().map(|(name, _)| Some(ValueDigest::of_text(name))).collect()),
            Sent::Values => Some(outline?.members.iter().map(|(_, mark)| mark.0).collect()),
            Sent::Labels(labels) => Some(labels.clone()),
            Sent::Unresolved => None,
        }
    }
}

/// Returns the digest of a label; `None` where it cannot be computed.
pub fn label_digest(label: &Label) -> Option<ValueDigest> {
    label.text().map(ValueDigest::of_text)
}

impl Entry {
    /// Returns the enum's name.
    pub fn name(&self) -> EnumName {
        EnumName::new(self.module.clone(), self.qualname.clone())
    }

    /// Returns the definition for `python`, the nearest known version where it lies outside all ranges.
    pub fn variant(&self, python: PythonVersion) -> Option<&Variant> {
        self.variants.iter().find(|variant| variant.python.contains(python)).or_else(|| self.variants.last())
    }
}

impl Manifest {
    /// Sorts the entries, which the fingerprint rests on.
    pub fn sort(&mut self) {
        self.entries.sort_by(|a, b| (&a.path, &a.qualname).cmp(&(&b.path, &b.qualname)));
        for entry in &mut self.entries {
            entry.bindings.sort_by(|a, b| (&a.path, &a.column).cmp(&(&b.path, &b.column)));
        }
    }

    /// Returns the digest of everything that is compared: entries in their order, without origin and bases.
    ///
    /// Form, with the terms of [`crate::fingerprint`]: `unstale/manifest/1`, a zero byte; `u32` count of
    /// entries; per entry path and qualname as `text`, `u32` count of variants, per variant its range as
    /// `text`, `01` or `00` for known members, the definition form without its heading; `u32` count of
    /// bindings, per binding path and column as `text`, type name and schema each as `01` + `text` or `00`,
    /// `01` or `00` for native, then `N`, `V`, `U`, or `L` + `u32` count + per label `01` + digest or `00`.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut form = Form::new("unstale/manifest/1");
        form.count(self.entries.len());
        for entry in &self.entries {
            form.text(&entry.path);
            form.text(&entry.qualname);
            form.count(entry.variants.len());
            for variant in &entry.variants {
                form.text(&variant.python.to_string());
                form.byte(u8::from(variant.members_known));
                variant.outline.write(&mut form);
            }
            form.count(entry.bindings.len());
            for binding in &entry.bindings {
                binding.write(&mut form);
            }
        }
        form.digest()
    }
}

impl ManifestBinding {
    fn write(&self, form: &mut Form) {
        form.text(&self.path);
        form.text(&self.column.to_string());
        for optional in [&self.type_name, &self.schema] {
            match optional {
                Some(text) => {
                    form.byte(1);
                    form.text(text);
                }
                None => form.byte(0),
            }
        }
        form.byte(u8::from(self.native));
        match &self.sends {
            Sent::Names => form.byte(b'N'),
            Sent::Values => form.byte(b'V'),
            Sent::Unresolved => form.byte(b'U'),
            Sent::Labels(labels) => {
                form.byte(b'L');
                form.count(labels.len());
                for label in labels {
                    match label {
                        Some(digest) => {
                            form.byte(1);
                            form.raw(&digest.0);
                        }
                        None => form.byte(0),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_half_open_and_read_back() {
        let range = PythonRange::try_from(">=3.8,<3.11".to_owned()).unwrap();
        assert!(range.contains(PythonVersion::three(10)));
        assert!(!range.contains(PythonVersion::three(11)));
        assert_eq!(range.to_string(), ">=3.8,<3.11");
        assert!(PythonRange::try_from(">=3.x".to_owned()).is_err());
    }

    #[test]
    fn where_a_manifest_was_made_does_not_change_its_fingerprint() {
        let mut manifest = Manifest::default();
        let before = manifest.fingerprint();
        manifest.origin = Some(Origin { boot_id: "b".into(), mount_namespace: 1, paths: vec![] });
        assert_eq!(manifest.fingerprint(), before);
    }
}
