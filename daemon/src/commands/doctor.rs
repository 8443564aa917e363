//! `unstale doctor`: what this host lacks (rights, kernel, limits, supervisors) and how to set it.
//!
//! It looks and changes nothing but an empty directory that `up` would make, too.

mod broker;
mod kernel;
mod places;
mod rights;

use crate::cli::{DoctorArgs, Output, Surroundings};
use crate::config::Config;
use crate::render;
use crate::report::{self, Exit};
use serde::Serialize;

/// `unstale.doctor/1`.
#[derive(Debug, Serialize)]
pub(crate) struct Doctor {
    pub(crate) schema: &'static str,
    pub(crate) findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What.
    pub(crate) what: &'static str,
    /// What came of it.
    pub(crate) standing: Standing,
    /// What was found.
    pub(crate) found: String,
    /// How to set it.
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

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, standing: Standing::Good, found: found.into(), help: None }
    }

    fn note(what: &'static str, found: impl Into<String>, help: impl Into<String>) -> Self {
        Self { what, standing: Standing::Note, found: found.into(), help: Some(help.into()) }
    }

    fn missing(what: &'static str, found: impl Into<String>, help: impl Into<String>) -> Self {
        Self { what, standing: Standing::Missing, found: found.into(), help: Some(help.into()) }
    }
}

pub(super) async fn run(args: DoctorArgs, surroundings: Surroundings) -> anyhow::Result<Exit> {
    let config = Config::read(args.config.config.as_deref())?;
    let mut findings = rights::look();
    findings.extend(kernel::look());
    findings.extend(places::look(&args, &config, &surroundings).await);
    findings.extend(broker::look(&args, &config).await);
    let doctor = Doctor { schema: "unstale.doctor/1", findings };
    match args.output.output {
        Output::Json => report::answer_json(&doctor),
        Output::Text => report::answer(&render::doctor::text(&doctor)),
    }
    let is_missing = doctor.findings.iter().any(|finding| finding.standing == Standing::Missing);
    Ok(if is_missing { Exit::Stale } else { Exit::Clean })
}

/// Reads a small file of the kernel's, trimmed.
fn read(path: &str) -> Option<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(1 << 20).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}
