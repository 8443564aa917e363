//! `unstale.status/1`, `unstale.why/1` and `unstale.drain/1`.

use super::Outcome;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use unstale_protocol::ids::{AppName, PoolName, Revision};

/// Where the fleet stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// `unstale.status/1`.
    pub(crate) schema: String,
    /// The desired state's (epoch, generation).
    pub(crate) epoch: u64,
    /// Its number.
    pub(crate) generation: u64,
    /// What stands in the way of everything, where something does: `waiting for hosts to report`.
    #[serde(default)]
    pub(crate) blocked: Option<String>,
    /// The bus of a fleet; none where coordinator and agent are one process.
    #[serde(default)]
    pub(crate) bus: Option<StatusBus>,
    /// Apps by name.
    pub(crate) apps: Vec<StatusApp>,
    /// Hosts by name.
    pub(crate) hosts: Vec<StatusHost>,
    /// Units taken out by hand.
    pub(crate) drains: Vec<Drain>,
    /// Dry runs that hosts are being asked about.
    #[serde(default)]
    pub(crate) dry_runs: u32,
}

/// The bus as the coordinator sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StatusBus {
    /// Where it is, without a password.
    pub(crate) url: String,
    /// The fleet's name on it.
    pub(crate) fleet: String,
    /// Whether it can be reached.
    pub(crate) connected: bool,
    /// Why not.
    #[serde(default)]
    pub(crate) because: Option<String>,
    /// Whether this coordinator leads; another one may, where it does not.
    pub(crate) leads: bool,
    /// The host of the coordinator that leads, or led last, as far as it is known.
    #[serde(default)]
    pub(crate) leader: Option<String>,
    /// Whether everything on it is signed; none where an older coordinator did not say.
    #[serde(default)]
    pub(crate) signed: Option<bool>,
    /// The key that signs; none where nothing is signed and everybody believed.
    #[serde(default)]
    pub(crate) key: Option<String>,
    /// Messages that changed nothing since this process began, by reason.
    #[serde(default)]
    pub(crate) rejected: BTreeMap<String, u64>,
}

/// One app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StatusApp {
    /// Its name.
    pub(crate) app: AppName,
    /// The newest revision.
    pub(crate) revision: Revision,
    /// Its fingerprint.
    pub(crate) fingerprint: String,
    /// How its rollout stands.
    pub(crate) outcome: Outcome,
    /// Why.
    #[serde(default)]
    pub(crate) because: Option<String>,
    /// When it was announced, in milliseconds since the Unix epoch.
    pub(crate) announced_at_ms: u64,
    /// Who announced it.
    #[serde(default)]
    pub(crate) by: Option<String>,
    /// Why it was announced.
    #[serde(default)]
    pub(crate) message: Option<String>,
    /// Notes.
    #[serde(default)]
    pub(crate) meta: BTreeMap<String, String>,
}

/// One host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StatusHost {
    /// Its name.
    pub(crate) host: String,
    /// `reporting`, `silent`, `left`, `expected`, or `unheard` where the coordinator stands by and hears no reports.
    pub(crate) standing: String,
    /// How long ago it reported, in milliseconds.
    #[serde(default)]
    pub(crate) reported_ms_ago: Option<u64>,
    /// Its agent has looked at it since it was started.
    #[serde(default)]
    pub(crate) scanned: bool,
    /// What is wrong with the host as a whole.
    #[serde(default)]
    pub(crate) because: Option<String>,
    /// How far it has come, by app.
    pub(crate) apps: BTreeMap<AppName, StatusHostApp>,
    /// Slots that are not plainly fresh.
    pub(crate) slots: Vec<StatusSlot>,
    /// Further slots that its report left out.
    #[serde(default)]
    pub(crate) omitted: u32,
    /// Units that no rollout judges: of no announced app, or with a claim to one that has no effect.
    #[serde(default)]
    pub(crate) others: Vec<StatusOther>,
    /// Further ones that its report left out.
    #[serde(default)]
    pub(crate) others_omitted: u32,
    /// Messages to it that changed nothing since its agent began, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) rejected: BTreeMap<String, u64>,
}

/// A unit that no rollout judges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StatusOther {
    /// The place.
    pub(crate) slot: String,
    /// The life in it.
    pub(crate) unit: String,
    /// Its root's pid.
    pub(crate) pid: u32,
    /// A plain Python process with a terminal.
    #[serde(default)]
    pub(crate) bystander: bool,
    /// Claims to announced apps that have no effect, each with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) claims: Vec<String>,
}

/// One app on one host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StatusHostApp {
    /// The revision it was judged by.
    pub(crate) revision: Revision,
    /// Whether the host has it.
    pub(crate) converged: bool,
    /// What it waits for.
    #[serde(default)]
    pub(crate) waiting: Option<String>,
    /// The host was not looked at since the revision was announced, or announced again: it may have further units.
    #[serde(default)]
    pub(crate) unseen: bool,
    /// Units by state.
    pub(crate) units: unstale_protocol::message::UnitCounts,
    /// Enums outside verdicts.
    #[serde(default)]
    pub(crate) untracked: u32,
    /// Plain Python processes on a terminal.
    #[serde(default)]
    pub(crate) bystanders: u32,
}

/// One slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StatusSlot {
    /// The place.
    pub(crate) slot: String,
    /// The life in it.
    #[serde(default)]
    pub(crate) unit: Option<String>,
    /// Its root's pid.
    #[serde(default)]
    pub(crate) pid: Option<u32>,
    /// Apps that it belongs to, also while nothing is up in it.
    #[serde(default)]
    pub(crate) apps: Vec<AppName>,
    /// Pools that it is charged to.
    #[serde(default)]
    pub(crate) pools: Vec<PoolName>,
    /// The worst verdict over its apps; `none` where nothing is up.
    pub(crate) verdict: String,
    /// Where it stands: `up`, `draining`, …
    pub(crate) phase: String,
    /// What it rests on, or waits for.
    pub(crate) because: String,
}

/// Everything known about a target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Why {
    /// `unstale.why/1`.
    pub(crate) schema: String,
    /// What was asked about.
    pub(crate) target: String,
    /// What stands now, per slot or host that the target names.
    pub(crate) findings: Vec<WhyFinding>,
}

/// One slot, host or rollout that a target names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WhyFinding {
    /// The host.
    pub(crate) host: String,
    /// The place, where the finding is about one.
    #[serde(default)]
    pub(crate) slot: Option<String>,
    /// The life in it.
    #[serde(default)]
    pub(crate) unit: Option<String>,
    /// `fresh`, `stale`, `unknown`, …
    pub(crate) verdict: String,
    /// What it rests on.
    pub(crate) because: String,
    /// Evidence, one line each.
    #[serde(default)]
    pub(crate) evidence: Vec<String>,
    /// What happened, oldest first.
    #[serde(default)]
    pub(crate) history: Vec<super::Event>,
    /// What happens next, and what it waits for.
    #[serde(default)]
    pub(crate) next: Option<String>,
}

/// `unstale.drain/1`: what a drain or an undrain came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "the contract's names")]
pub(crate) struct Drains {
    /// `unstale.drain/1`.
    pub(crate) schema: String,
    /// Slots that are, or are to be, out of work; after an undrain those that were given back.
    pub(crate) drains: Vec<Drain>,
    /// Hosts that may have further units of what was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) unseen: Vec<Unseen>,
}

/// A host whose units are not all known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unseen {
    /// Which.
    pub(crate) host: String,
    /// Why they are not.
    pub(crate) because: String,
}

/// One drain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drain {
    /// Its name.
    pub(crate) id: String,
    /// The host.
    pub(crate) host: String,
    /// The slot.
    pub(crate) slot: String,
    /// Where it stands.
    pub(crate) standing: DrainStanding,
    /// What it waits for, or why it failed.
    #[serde(default)]
    pub(crate) because: String,
    /// Since when, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub(crate) since_ms: u64,
}

/// Where a drain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DrainStanding {
    /// A dry run: it would be drained.
    WouldDrain,
    /// Waits for leave.
    Waiting,
    /// Takes no new work, finishes what it has.
    Draining,
    /// Out of work, and seen to be.
    Drained,
    /// Given up, or refused.
    Failed,
    /// Being given back.
    Returning,
    /// Given back.
    Returned,
}

impl DrainStanding {
    /// Tells whether nothing more will come of it by itself.
    pub(crate) fn is_end(self) -> bool {
        matches!(self, Self::WouldDrain | Self::Drained | Self::Failed | Self::Returned)
    }

    /// Returns the words for people.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::WouldDrain => "would be drained",
            Self::Waiting => "waiting for leave",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Failed => "failed",
            Self::Returning => "being given back",
            Self::Returned => "given back",
        }
    }
}
