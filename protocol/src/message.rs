//! Every message between coordinator and agents. Data, never commands.
//!
//! Fields are only ever added; unknown fields are ignored; a field that a reader must not ignore is named
//! in `must`, and a reader that does not know the name does nothing and says `unsupported`. All of them
//! may be lost, repeated and reordered.

use crate::coordinator::Terms;
use crate::fingerprint::{Fingerprint, Salt};
use crate::ids::{
    AppName, DrainId, Epoch, Generation, HostName, Incarnation, PoolName, ProcessIdentity, Revision, SlotId, UnitId,
    Version,
};
use crate::piece::{Fetch, Piece};
use crate::time::Moment;
use crate::verdict::{Cure, Verdict};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Names that may stand in `must` and are understood here.
pub const UNDERSTOOD: [&str; 1] = [PARTIAL];

/// The name of [`Desired::partial`] in `must`.
pub const PARTIAL: &str = "partial";

/// Returns the first name in `must` that this version does not understand.
pub fn not_understood(must: &[String]) -> Option<&str> {
    must.iter().map(String::as_str).find(|name| !UNDERSTOOD.contains(name))
}

/// The whole desired state of a fleet. Never expires; a higher version wins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// The reign.
    pub epoch: Epoch,
    /// The number within the fleet's history.
    pub generation: Generation,
    /// What each app should be.
    #[serde(default)]
    pub apps: BTreeMap<AppName, DesiredApp>,
    /// Units that should be out of work.
    #[serde(default)]
    pub drains: Vec<DesiredDrain>,
    /// Dry runs: agents say what they would do.
    #[serde(default)]
    pub probes: Vec<Probe>,
    /// The coordinator's life that wrote it: two that took the same number for their reign differ in this.
    #[serde(default, skip_serializing_if = "Salt::is_unset")]
    pub author: Salt,
    /// Its coordinator may not know all that was desired before: what is drained stays so, though nothing names it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// How many hosts its coordinator expected when it was written, for a coordinator that takes over; `None` where it
    /// did not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<u32>,
    /// The host on which its coordinator runs, for people who ask one that stands by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<HostName>,
    /// Fields that must not be ignored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub must: Vec<String>,
}

impl Desired {
    /// Returns what orders it.
    pub fn version(&self) -> Version {
        Version { epoch: self.epoch, generation: self.generation }
    }
}

/// What one app should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredApp {
    /// Its schema version's number.
    pub revision: Revision,
    /// What may be done about it.
    pub mode: Mode,
    /// Digest of the manifest, which travels once by that name.
    pub manifest: Fingerprint,
    /// The generation since which failures of earlier attempts no longer count: raised by `resume` and by
    /// a repeated broadcast, so that what failed is tried again.
    #[serde(default)]
    pub attempt: Generation,
    /// Digest of what is compared, where it is known: two revisions of one number that differ in it are two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// What the caller of its broadcast wanted, for a coordinator that takes over. Agents ignore it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<Terms>,
}

/// What may be done about an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Purge, ask, restart.
    Run,
    /// By an operator: look, but purge nothing and ask for nothing.
    Pause,
    /// By policy: a unit failed; look and purge, but ask for nothing.
    Halt,
    /// Ended: also call back what was asked and not yet begun.
    Abort,
}

/// A unit that should be out of work until the drain is taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredDrain {
    /// Its name.
    pub id: DrainId,
    /// The host it is for.
    pub host: HostName,
    /// The slot to empty.
    pub slot: SlotId,
    /// How long to wait for work in hand, in milliseconds, before the drain is given up; `None`: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// At the deadline kill instead of giving up; also accept a slot that nothing would bring back.
    #[serde(default)]
    pub force: bool,
}

/// A dry run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Its name.
    pub id: String,
    /// The app.
    pub app: AppName,
    /// Digest of the manifest to judge against.
    pub manifest: Fingerprint,
}

/// What an agent sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[expect(clippy::large_enum_variant, reason = "whoever keeps one keeps it boxed as a whole")]
pub enum Upward {
    /// Its full state.
    Report(Report),
    /// A request for permits.
    Ask(Ask),
    /// A piece of a manifest.
    Piece(Piece),
    /// Sent by a newer version: counted and skipped.
    Unknown,
}

impl Upward {
    /// Reads one from its JSON. The kind is looked for first, then the message is read as what it is: an enum with a
    /// tag would be copied as a whole before, which costs more than the reading.
    ///
    /// # Errors
    /// Where it has no kind, or is not what its kind says.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Kind<'a> {
            #[serde(borrow)]
            kind: Cow<'a, str>,
        }
        match serde_json::from_str::<Kind<'_>>(text)?.kind.as_ref() {
            "report" => serde_json::from_str(text).map(Self::Report),
            "ask" => serde_json::from_str(text).map(Self::Ask),
            "piece" => serde_json::from_str(text).map(Self::Piece),
            _ => Ok(Self::Unknown),
        }
    }
}

/// What is said to one host alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Downward {
    /// A permit, which has no kind.
    Permit(Permit),
    /// A question for a manifest.
    Fetch(Fetch),
    /// Sent by a newer version: skipped.
    Unknown,
}

impl Downward {
    /// Reads one from its JSON.
    ///
    /// # Errors
    /// Where it is not what its kind says.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Kind<'a> {
            #[serde(borrow, default)]
            kind: Option<Cow<'a, str>>,
        }
        match serde_json::from_str::<Kind<'_>>(text)?.kind.as_deref() {
            None => serde_json::from_str(text).map(Self::Permit),
            Some("fetch") => serde_json::from_str(text).map(Self::Fetch),
            Some(_) => Ok(Self::Unknown),
        }
    }
}

/// An agent's full state, never a delta. Orders by (incarnation counter, sequence).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The host.
    pub host: HostName,
    /// The agent's life.
    pub incarnation: Incarnation,
    /// Number of the report within that life, from 1.
    pub sequence: u64,
    /// The agent's monotonic clock when it was made.
    pub clock: Moment,
    /// The highest desired state it has accepted.
    pub accepted: Version,
    /// The coordinator's life that wrote that state.
    #[serde(default, skip_serializing_if = "Salt::is_unset")]
    pub author: Salt,
    /// A refused older desired state, where one came since the last report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Version>,
    /// A name in `must` that this agent does not understand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsupported: Option<String>,
    /// The machine is shutting down: expect nothing more.
    #[serde(default)]
    pub leaving: bool,
    /// The host has been looked at in this life of the agent.
    #[serde(default)]
    pub scanned: bool,
    /// How far each app has come.
    pub apps: BTreeMap<AppName, AppReport>,
    /// All slots of each pool on this host, and how many of them are down or under action.
    pub pools: BTreeMap<PoolName, PoolReport>,
    /// What is under action, down, not fresh or has changed, in this order of importance.
    pub slots: Vec<SlotReport>,
    /// How many further slots were left out for want of room.
    #[serde(default)]
    pub omitted: u32,
    /// Units that belong to no announced app, and units whose claim to one has no effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<OtherUnit>,
    /// How many further ones of these were left out for want of room.
    #[serde(default)]
    pub others_omitted: u32,
    /// What would be done about each dry run, by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub probes: BTreeMap<String, ProbeReport>,
    /// Messages to this host that changed nothing since its agent began, by reason. Whoever opens the messages counts
    /// them: the machine does not hear of what it must not believe.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rejected: BTreeMap<String, u64>,
}

/// A unit that no rollout judges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherUnit {
    /// Its slot.
    pub slot: SlotId,
    /// Its name.
    pub unit: UnitId,
    /// Its root.
    pub identity: ProcessIdentity,
    /// A plain Python process on a terminal.
    #[serde(default)]
    pub bystander: bool,
    /// Claims to announced apps that have no effect, each with the reason: `claims shop: user nobody may not`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<String>,
}

/// What one host would do about a dry run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Units by state, bystanders apart.
    pub units: UnitCounts,
    /// The units, those that are not fresh first.
    pub detail: Vec<ProbeUnit>,
    /// Bytecode that would be removed.
    #[serde(default)]
    pub files: Vec<String>,
    /// How many units and files were left out for want of room.
    #[serde(default)]
    pub omitted: u32,
    /// Enums and bindings that cannot be judged by nature.
    #[serde(default)]
    pub untracked: u32,
    /// Plain Python processes on a terminal that hold the app's enums.
    #[serde(default)]
    pub bystanders: u32,
    /// Of these, how many are not fresh.
    #[serde(default)]
    pub bystanders_not_fresh: u32,
}

/// One unit under a dry run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeUnit {
    /// The slot.
    pub slot: SlotId,
    /// The life of the unit in it.
    pub unit: UnitId,
    /// The verdict.
    pub verdict: Verdict,
    /// What would cure it.
    pub cure: Cure,
    /// What the verdict rests on.
    pub because: String,
    /// How it would be restarted, where it would be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub means: Option<String>,
    /// Why it cannot be restarted, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked: Option<String>,
}

/// How far one app has come on one host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppReport {
    /// The revision that was judged.
    pub revision: Revision,
    /// Whether the host has converged on it.
    pub converged: bool,
    /// Why not, for people, where no slot says so: `looking again at bytecode`, `manifest not here yet`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// The host was not looked at since the app was announced, or announced again: its units may be missing from the
    /// pools, and what is said of them is of before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unseen: bool,
    /// What the source on this host is, where it is not what is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Units by state, bystanders apart.
    pub units: UnitCounts,
    /// Enums and bindings that cannot be judged by nature.
    #[serde(default)]
    pub untracked: u32,
    /// Plain Python processes on a terminal that hold the app's enums.
    #[serde(default)]
    pub bystanders: u32,
    /// Of these, how many are not fresh.
    #[serde(default)]
    pub bystanders_not_fresh: u32,
    /// Files removed for this revision.
    #[serde(default)]
    pub purged_files: u32,
}

/// Units of one app on one host by state. Their sum is the number of units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitCounts {
    /// Fresh.
    #[serde(default)]
    pub fresh: u32,
    /// Stale, and a restart would cure them.
    #[serde(default)]
    pub stale: u32,
    /// Stale, and a restart would not cure them yet.
    #[serde(default)]
    pub waiting: u32,
    /// Stale, and cannot be restarted.
    #[serde(default)]
    pub blocked: u32,
    /// Under action, down after one, or drained.
    #[serde(default)]
    pub acting: u32,
    /// Failed.
    #[serde(default)]
    pub failed: u32,
    /// Not proven either way.
    #[serde(default)]
    pub unknown: u32,
    /// Ended, and nothing brings them back.
    #[serde(default)]
    pub gone: u32,
    /// Of the fresh ones, how many were restarted for this revision.
    #[serde(default)]
    pub restarted: u32,
}

impl UnitCounts {
    /// Returns the number of units, gone ones apart.
    pub fn total(&self) -> u32 {
        self.fresh + self.stale + self.waiting + self.blocked + self.acting + self.failed + self.unknown
    }
}

/// The slots of one pool on one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReport {
    /// All of them.
    pub total: u32,
    /// Down, draining, drained or under action.
    pub unavailable: u32,
}

/// One slot in a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotReport {
    /// The slot.
    pub slot: SlotId,
    /// The life of the unit in it, where there is one; while children of one that was told to end outlive it, that one.
    pub unit: Option<UnitId>,
    /// The life that was last seen in it, where nothing is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_unit: Option<UnitId>,
    /// Its root.
    pub identity: Option<ProcessIdentity>,
    /// Pools it is charged to.
    pub pools: BTreeSet<PoolName>,
    /// The verdict per app.
    pub apps: BTreeMap<AppName, SlotJudgement>,
    /// Where it stands.
    pub phase: Phase,
    /// What it rests on, or what it waits for.
    pub because: String,
    /// The last action that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<Done>,
}

/// The verdict on one slot for one app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotJudgement {
    /// The verdict.
    pub verdict: Verdict,
    /// What would cure it.
    pub cure: Cure,
}

/// Where a slot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Up, nothing under way.
    Up,
    /// Wants a permit.
    Asking,
    /// Checked before anything is done.
    Preflight,
    /// Was told to stop; finishes its work.
    Draining,
    /// Has ended and is being brought back.
    Starting,
    /// Is up again and must stay so.
    Surviving,
    /// Is read again.
    Verifying,
    /// Out of work by hand.
    Drained,
    /// An action failed; see `because`.
    Failed,
    /// Ended by itself and may come back by its supervisor.
    Down,
    /// Ended, and nothing brings it back.
    Gone,
}

impl Phase {
    /// Tells whether an action is under way.
    pub fn is_acting(self) -> bool {
        matches!(self, Self::Preflight | Self::Draining | Self::Starting | Self::Surviving | Self::Verifying)
    }
}

/// An action that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The permit it rested on.
    pub nonce: Nonce,
    /// What came of it.
    pub result: DoneResult,
    /// What it was for.
    pub purpose: Purpose,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
    /// What it rests on.
    pub because: String,
}

/// What came of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DoneResult {
    /// Restarted, up and proven fresh.
    Restarted,
    /// Out of work.
    Drained,
    /// Given back.
    Undrained,
    /// Not begun: what was judged had changed, or it was called back.
    Cancelled,
    /// Refused by the pre-flight; nothing was touched.
    Refused,
    /// Failed; the slot may be down.
    Failed,
    /// Restarted, but what it holds could not be proven. Of a drain: it ended, and somebody else had it up again.
    Unproven,
}

/// What a request came from: dies with its agent and with its age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Nonce {
    /// The agent's life.
    pub incarnation: Incarnation,
    /// The agent's monotonic clock when it asked.
    pub at: Moment,
}

/// A request for permits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The host.
    pub host: HostName,
    /// What the permits must echo.
    pub nonce: Nonce,
    /// The desired state it rests on.
    pub version: Version,
    /// What is wanted.
    pub wants: Vec<Want>,
}

/// One permit that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// The slot.
    pub slot: SlotId,
    /// Its root at the time of asking.
    pub identity: ProcessIdentity,
    /// Pools to charge; all at once or none.
    pub pools: BTreeSet<PoolName>,
    /// What for.
    pub purpose: Purpose,
}

/// What a permit is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Restart for these apps' revisions.
    Restart(BTreeMap<AppName, Revision>),
    /// Take out of work by hand.
    Drain(DrainId),
}

/// The coordinator's leave for one agent to act on one slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permit {
    /// The host it is for.
    pub host: HostName,
    /// The slot.
    pub slot: SlotId,
    /// The root that was asked for.
    pub identity: ProcessIdentity,
    /// The request's, echoed.
    pub nonce: Nonce,
    /// The desired state it rests on.
    pub version: Version,
    /// The coordinator's life that wrote that state.
    #[serde(default, skip_serializing_if = "Salt::is_unset")]
    pub author: Salt,
    /// What for.
    pub purpose: Purpose,
    /// Fields that must not be ignored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub must: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_kinds_are_skipped_and_unknown_fields_ignored() {
        let newer = r#"{"text":"la","kind":"so\u006eg"}"#;
        assert_eq!(Upward::from_json(newer).unwrap(), Upward::Unknown);
        for wrong in [r#"{"text":"la"}"#, r#"{"kind":"report"}"#, r#"{"kind":"ask","kind":"song"}"#] {
            assert!(Upward::from_json(wrong).is_err(), "{wrong}");
        }
        let desired: Desired = serde_json::from_str(r#"{"epoch":1,"generation":2,"colour":"red"}"#).unwrap();
        assert_eq!(desired.version(), Version { epoch: Epoch(1), generation: Generation(2) });
    }

    #[test]
    fn a_field_that_must_not_be_ignored_is_named() {
        assert_eq!(not_understood(&["teleport".into()]), Some("teleport"));
        assert_eq!(not_understood(&[]), None);
    }
}
