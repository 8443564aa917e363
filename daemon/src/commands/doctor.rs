//! `unstale doctor`: what this host lacks and how to set it.

use crate::cli::{DoctorArgs, Surroundings};
use crate::report::Exit;
use serde::Serialize;

/// `unstale.doctor/1`.
#[derive(Debug, Serialize)]
pub(crate) struct Doctor {
    pub(crate) schema: &'static str,
    pub(crate) findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) what: String,
    pub(crate) standing: Standing,
    pub(crate) found: String,
    pub(crate) help: Option<String>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Standing {
    /// As it should be.
    Good,
    /// Works, but not in every way.
    Note,
    /// Something will not work.
    Missing,
}

#[expect(clippy::unused_async, reason = "asks supervisors once it is written")]
pub(super) async fn run(_args: DoctorArgs, _surroundings: Surroundings) -> anyhow::Result<Exit> {
    anyhow::bail!("not built yet")
}
