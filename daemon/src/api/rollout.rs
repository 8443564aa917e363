//! `unstale.broadcast/1` and what happens in a rollout.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use unstale_protocol::ids::{AppName, Revision};

/// How a rollout stands, or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// Still going on.
    InProgress,
    /// Going on, but by an operator's hand without restarts.
    Paused,
    /// Every expected host has it, nothing is stale or unknown.
    Converged,
    /// What remains is unknown or silent, or there was nothing to prove it by.
    Incomplete,
    /// What remains failed or cannot be restarted.
    Failed,
    /// The caller's time limit passed; the rollout goes on.
    Timeout,
    /// A unit failed: no further restarts until resumed.
    Halted,
    /// A newer revision took its place.
    Superseded,
    /// Ended by an operator.
    Aborted,
    /// The caller left; the rollout goes on.
    Detached,
    /// The check before it found an error; nothing was announced.
    Refused,
}

impl Outcome {
    /// Tells whether nothing more will come of it by itself.
    pub(crate) fn is_end(self) -> bool {
        !matches!(self, Self::InProgress | Self::Paused)
    }

    /// Returns the word as JSON has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Paused => "paused",
            Self::Converged => "converged",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Halted => "halted",
            Self::Superseded => "superseded",
            Self::Aborted => "aborted",
            Self::Detached => "detached",
            Self::Refused => "refused",
        }
    }
}

/// One rollout: the last object of `broadcast`, and `GET /v1/rollouts/{app}/{rev}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rollout {
    /// `unstale.broadcast/1`.
    pub(crate) schema: String,
    /// The app.
    pub(crate) app: AppName,
    /// Its revision; 0 where nothing was announced.
    pub(crate) revision: Revision,
    /// The manifest's.
    pub(crate) fingerprint: String,
    /// How it stands.
    pub(crate) outcome: Outcome,
    /// Why it stands so, where that is not plain.
    #[serde(default)]
    pub(crate) because: Option<String>,
    /// Hosts that were expected.
    pub(crate) hosts: u32,
    /// Of these, silent ones.
    #[serde(default)]
    pub(crate) silent: Vec<String>,
    /// What the source is on hosts that wait for it, with the number of hosts: `shop@6`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) sources: BTreeMap<String, u32>,
    /// Units by what came of them, counted from the call.
    pub(crate) units: RolloutUnits,
    /// Enums outside verdicts.
    pub(crate) untracked: u32,
    /// Plain Python processes on a terminal.
    pub(crate) bystanders: u32,
    /// Bytecode files removed, counted from the call.
    pub(crate) purged_files: u32,
    /// Since the call, in milliseconds.
    pub(crate) elapsed_ms: u64,
    /// Units that were acted on, or are not fresh.
    pub(crate) units_detail: Vec<RolloutUnit>,
    /// What the check before it found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) findings: Vec<Finding>,
    /// A dry run: nothing was done; the outcome is the one that a broadcast could come to as things stand.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) dry_run: bool,
    /// Bytecode that a dry run found to be removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) would_purge: Vec<HostFile>,
    /// Units and files that hosts had no room to name.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) omitted: u32,
}

/// A file on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostFile {
    /// The host.
    pub(crate) host: String,
    /// Its path there, as the workers' mount namespace has it.
    pub(crate) path: String,
}

/// The answer to `POST` and `GET /v1/probes`: a dry run as far as hosts have answered it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DryRun {
    /// Its name.
    pub(crate) id: String,
    /// Hosts that have not answered yet and are not silent.
    pub(crate) waiting_for: Vec<String>,
    /// What would come of it; `in_progress` while hosts are waited for.
    pub(crate) rollout: Rollout,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference over")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Rollout {
    /// Leaves what has happened since `baseline`, the same rollout as it stood when the caller came.
    pub(crate) fn count_from(&mut self, baseline: &Self, elapsed_ms: u64) {
        self.elapsed_ms = elapsed_ms;
        self.purged_files = self.purged_files.saturating_sub(baseline.purged_files);
        self.units.restarted = self.units.restarted.saturating_sub(baseline.units.restarted);
        self.units.untouched = self.units.converged.saturating_sub(self.units.restarted);
        for unit in self.units_detail.iter_mut().filter(|unit| unit.outcome == "converged") {
            let is_older = |before: &RolloutUnit| {
                before.host == unit.host && before.unit == unit.unit && before.action == unit.action
            };
            if baseline.units_detail.iter().any(is_older) {
                "none".clone_into(&mut unit.action);
                unit.elapsed_ms = 0;
            }
        }
    }
}

/// Units by what came of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RolloutUnits {
    /// Proven fresh.
    pub(crate) converged: u32,
    /// Of these, restarted.
    pub(crate) restarted: u32,
    /// Of these, left alone.
    pub(crate) untouched: u32,
    /// An action failed.
    pub(crate) failed: u32,
    /// A restart would load the old source again.
    pub(crate) waiting: u32,
    /// Cannot be restarted.
    pub(crate) blocked: u32,
    /// Ended, and nothing brings them back.
    pub(crate) gone: u32,
    /// Not proven either way.
    pub(crate) unknown: u32,
    /// Stale and still to be restarted, or being restarted.
    #[serde(default)]
    pub(crate) pending: u32,
    /// Last known on hosts that are silent, or that the coordinator does not hear: part of no proof.
    #[serde(default)]
    pub(crate) unheard: u32,
}

impl RolloutUnits {
    /// Returns how many units there are, gone ones apart.
    pub(crate) fn total(&self) -> u32 {
        self.converged + self.failed + self.waiting + self.blocked + self.unknown + self.pending + self.unheard
    }
}

/// One unit of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RolloutUnit {
    /// The host.
    pub(crate) host: String,
    /// The life of it.
    pub(crate) unit: String,
    /// The place it lives in.
    #[serde(default)]
    pub(crate) slot: String,
    /// `converged`, `failed`, `waiting`, `blocked`, `gone`, `unknown` or `pending`.
    pub(crate) outcome: String,
    /// `restarted`, `drained` or `none`. Of a dry run what would be done: `restart`, `purge`, `purge_then_restart`,
    /// `wait_for_source`, `deploy` or `none`.
    pub(crate) action: String,
    /// Of a dry run: by which means it would be restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) means: Option<String>,
    /// What it rests on.
    pub(crate) because: String,
    /// How long the action took, in milliseconds.
    pub(crate) elapsed_ms: u64,
}

/// Something that the check before a broadcast found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// `UE101`.
    pub(crate) code: String,
    /// `sends-names-not-values`.
    pub(crate) name: String,
    /// Whether it refuses the broadcast.
    pub(crate) severity: Severity,
    /// The database enum.
    #[serde(rename = "enum")]
    pub(crate) enum_name: String,
    /// The column it is about.
    pub(crate) column: String,
    /// What is wrong.
    pub(crate) message: String,
    /// What to do.
    pub(crate) help: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// For the record.
    Warning,
    /// An insert would fail.
    Error,
}

/// `GET /v1/rollouts/{app}/{rev}/events`: what happened after an event.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Events {
    /// In order.
    pub(crate) events: Vec<Event>,
    /// Whether the rollout has ended and nothing follows these.
    pub(crate) is_end: bool,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// Its number, rising over all rollouts of this coordinator.
    #[serde(rename = "event")]
    pub(crate) number: u64,
    /// When, in milliseconds since the Unix epoch, for people.
    pub(crate) at_ms: u64,
    /// The host it happened on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) host: Option<String>,
    /// The slot it happened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) slot: Option<String>,
    /// What happened, in a word: `announced`, `granted`, `draining`, `restarted`, `purged`, `failed`, `converged`, …
    pub(crate) what: String,
    /// The same for people.
    pub(crate) text: String,
}
