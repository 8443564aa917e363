//! The condition of a broker: what would break, and how to set it. Made by each transport, shown by `doctor`.

/// One thing about a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// What was found.
    pub(crate) found: String,
    /// What to do about it; none where it is as it should be.
    pub(crate) help: Option<String>,
    /// Without that something does not work at all.
    pub(crate) is_needed: bool,
}

impl Condition {
    /// Returns what is as it should be.
    pub(super) fn good(found: String) -> Self {
        Self { found, help: None, is_needed: false }
    }

    /// Returns what works, but not in every way.
    pub(super) fn note(found: String, help: &str) -> Self {
        Self { found, help: Some(help.to_owned()), is_needed: false }
    }
}
