//! What is asked of the coordinator.

use super::Rollout;
use crate::cli::Selector;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use unstale_protocol::coordinator::MaxUnavailable;
use unstale_protocol::ids::AppName;
use unstale_protocol::manifest::Manifest;

/// `POST /v1/broadcasts`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BroadcastRequest {
    /// The app.
    pub(crate) app: AppName,
    /// Its definitions and bindings.
    pub(crate) manifest: Manifest,
    /// Units per pool that go first.
    #[serde(default)]
    pub(crate) canary: Option<u32>,
    /// How many units of a pool may be unavailable at once.
    #[serde(default)]
    pub(crate) max_unavailable: Option<MaxUnavailable>,
    /// Nothing at all converges.
    #[serde(default)]
    pub(crate) allow_empty: bool,
    /// Silent hosts do not count.
    #[serde(default)]
    pub(crate) ignore_silent: bool,
    /// Bystanders count.
    #[serde(default)]
    pub(crate) strict: bool,
    /// Hosts that must have reported.
    #[serde(default)]
    pub(crate) expect_hosts: Option<u32>,
    /// Why, for the record.
    #[serde(default)]
    pub(crate) message: Option<String>,
    /// Notes for the record.
    #[serde(default)]
    pub(crate) meta: BTreeMap<String, String>,
}

/// The answer to a broadcast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct BroadcastAccepted {
    /// What came of it: a new revision, or the one that is there already.
    pub(crate) standing: Standing,
    /// The newest event before this call.
    pub(crate) after: u64,
    /// What an operator should know, for stderr.
    #[serde(default)]
    pub(crate) notes: Vec<String>,
    /// The rollout as it stood when the call came: what has changed since then is this call's.
    pub(crate) baseline: Rollout,
}

/// What came of a broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// A new revision.
    New,
    /// The same fingerprint again: attached to the revision that is there.
    Attached,
    /// As `Attached`, and the rollout is halted.
    Halted,
}

/// `POST /v1/rollouts/{app}/{rev}/{pause,resume,abort}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HandRequest {
    /// Why, for the record.
    #[serde(default)]
    pub(crate) message: Option<String>,
    /// Resume: how many hosts the fleet has.
    #[serde(default)]
    pub(crate) hosts: Option<u32>,
    /// Resume: the budget from here on.
    #[serde(default)]
    pub(crate) max_unavailable: Option<MaxUnavailable>,
}

/// `POST /v1/drains`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrainRequest {
    /// What to drain; several are *or*.
    pub(crate) selectors: Vec<Selector>,
    /// When the drain gives up, in milliseconds; never where left out.
    #[serde(default)]
    pub(crate) deadline_ms: Option<u64>,
    /// Beyond budget, without a way back, and kill at the deadline.
    #[serde(default)]
    pub(crate) force: bool,
    /// Say what would be drained, do nothing.
    #[serde(default)]
    pub(crate) dry_run: bool,
}
