//! What the control API and `--output json` say: plain data, one schema per answer.
//!
//! Fields are only ever added within a schema's number. Nothing here decides.

mod inspect;
mod requests;
mod rollout;
mod status;

pub(crate) use inspect::*;
pub(crate) use requests::*;
pub(crate) use rollout::*;
pub(crate) use status::*;

use serde::{Deserialize, Serialize};

/// Why the coordinator did not do what was asked: the body of every HTTP error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub(crate) struct Refusal {
    /// The HTTP status.
    #[serde(skip)]
    pub(crate) status: u16,
    /// A word for scripts, which never changes its meaning.
    pub(crate) code: String,
    /// What was wrong.
    pub(crate) message: String,
    /// What can be done.
    #[serde(default)]
    pub(crate) help: Option<String>,
}

impl Refusal {
    /// Returns a refusal without advice.
    pub(crate) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into(), help: None }
    }

    /// Adds what can be done.
    #[must_use]
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}
