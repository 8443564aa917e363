//! Names of rollouts, of the coordinator, and notes, as people write them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use unstale_protocol::ids::{AppName, NameError, Revision};

/// An app, or one revision of it: `shop`, `shop@7`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AppTarget {
    /// The app.
    pub(crate) app: AppName,
    /// The revision; the newest where left out.
    pub(crate) revision: Option<Revision>,
}

/// The text does not name a rollout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AppTargetError {
    /// What stands before the `@`.
    #[error(transparent)]
    App(#[from] NameError),
    /// What stands after it.
    #[error("not a revision: {0:?}; write `APP@7`")]
    Revision(String),
}

impl FromStr for AppTarget {
    type Err = AppTargetError;

    fn from_str(text: &str) -> Result<Self, AppTargetError> {
        let Some((app, revision)) = text.split_once('@') else {
            return Ok(Self { app: AppName::new(text)?, revision: None });
        };
        match revision.parse() {
            Ok(number) if number > 0 => Ok(Self { app: AppName::new(app)?, revision: Some(Revision(number)) }),
            _ => Err(AppTargetError::Revision(revision.chars().take(40).collect())),
        }
    }
}

impl fmt::Display for AppTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.app),
            None => write!(f, "{}", self.app),
        }
    }
}

/// Where the coordinator listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CoordinatorAddress(pub(crate) PathBuf);

impl FromStr for CoordinatorAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text.strip_prefix("unix:") {
            Some("") => Err("the path is missing: write `unix:PATH`"),
            Some(path) => Ok(Self(path.into())),
            None if text.starts_with("http://") || text.starts_with("https://") => {
                Err("this version speaks to the coordinator over its Unix socket only: write `unix:PATH`")
            }
            None => Err("not an address: write `unix:PATH`"),
        }
    }
}

/// A note: `K=V`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyValue {
    /// What stands before the first `=`.
    pub(crate) key: String,
    /// What stands after it.
    pub(crate) value: String,
}

impl FromStr for KeyValue {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self { key: key.to_owned(), value: value.to_owned() }),
            _ => Err("not a note: write `KEY=VALUE`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rollouts_are_named_by_app_and_revision() {
        let check = |text: &str| assert_eq!(text.parse::<AppTarget>().unwrap().to_string(), text);
        check("shop");
        check("shop@7");
        for bad in ["", "@7", "shop@", "shop@x", "shop@0", "shop@7@8", "a b"] {
            assert!(bad.parse::<AppTarget>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_coordinator_is_found_by_its_socket() {
        assert_eq!("unix:/run/x.sock".parse(), Ok(CoordinatorAddress("/run/x.sock".into())));
        for bad in ["/run/x.sock", "unix:", "https://host", ""] {
            assert!(bad.parse::<CoordinatorAddress>().is_err(), "{bad}");
        }
    }
}
