//! What the host's machine is told, and what it keeps on disk.

use super::Numbering;
use crate::ids::{AppName, DrainId, PoolName, ProcessIdentity, Revision, SlotId, UnitId};
use crate::message::{Desired, Done, ProbeReport};
use crate::restart::Intent;
use crate::time::Moment;
use crate::verdict::{Cure, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What the eyes saw: always all of it, never a difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// When the list of processes was taken.
    pub begun_at: Moment,
    /// Whether files and all memory were looked at, too; else only the list and new processes.
    pub full: bool,
    /// Every unit that holds an announced app.
    pub units: Vec<UnitView>,
    /// The apps that were judged.
    pub apps: BTreeMap<AppName, AppView>,
    /// Known slots in which nothing is up. A slot in neither list was not looked for.
    pub vacant: BTreeMap<SlotId, Vacancy>,
    /// Units that no rollout judges.
    pub others: Vec<OtherView>,
    /// What would be done about each dry run whose manifest is here.
    pub probes: BTreeMap<String, ProbeReport>,
    /// Announcements whose units were told by more than their modules; to be remembered and handed in again.
    pub decided: BTreeSet<Announced>,
    /// Which process has which number among equal units; to be remembered and handed in again.
    pub numbering: Numbering,
}

/// An app as it was announced: its name and the directories that the announcement came from.
pub type Announced = (AppName, Vec<String>);

/// A unit that no rollout judges: it belongs to no announced app, or its claim to one has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherView {
    /// The unit. Where it belongs to an announced app all the same, the scan's units have it, too.
    pub view: UnitView,
    /// Claims without effect, each with the reason.
    pub claims: Vec<String>,
}

/// One unit as the eyes saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitView {
    /// Where it lives.
    pub slot: SlotId,
    /// Its name.
    pub unit: UnitId,
    /// Its root.
    pub root: ProcessIdentity,
    /// Pools it is charged to.
    pub pools: BTreeSet<PoolName>,
    /// A plain `python` process on a terminal: recorded, never acted on.
    pub bystander: bool,
    /// The verdict per app that it belongs to.
    pub apps: BTreeMap<AppName, UnitJudgement>,
    /// Why it cannot be restarted, where that is known beforehand.
    pub blocked: Option<String>,
}

/// The verdict on one unit for one app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitJudgement {
    /// The revision it was judged against.
    pub revision: Revision,
    /// The verdict.
    pub verdict: Verdict,
    /// The strongest cure that any of its enums needs.
    pub cure: Cure,
    /// What it rests on.
    pub because: String,
}

/// One app as the eyes saw it on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppView {
    /// The revision that was judged.
    pub revision: Revision,
    /// Source and bytecode of every unit equal the manifest.
    pub files_right: bool,
    /// Why nothing can be said yet: the manifest is not here.
    pub waiting: Option<String>,
    /// What the source on this host is, where it is not what is wanted: `shop@6`.
    pub source: Option<String>,
    /// Bytecode proven stale.
    pub stale_files: BTreeSet<String>,
    /// Enums and bindings that cannot be judged by nature.
    pub untracked: u32,
    /// Bystanders that hold the app.
    pub bystanders: u32,
    /// Of these, how many are not fresh.
    pub bystanders_not_fresh: u32,
}

/// What is known of a slot in which nothing is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vacancy {
    /// Its supervisor lists it and may bring it back.
    Down,
    /// Its supervisor has given up.
    GaveUp(String),
    /// Nobody lists it.
    Gone,
}

/// What came of a purge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PurgeResult {
    /// Files that are gone now, by us.
    pub removed: BTreeSet<String>,
    /// Files that could not be removed, with the reason.
    pub refused: BTreeMap<String, String>,
}

/// What the agent keeps on disk. Reading all records back in any order of slots gives the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The highest desired state accepted.
    Desired(Desired),
    /// An action under way.
    Intent {
        /// The intent.
        intent: Intent,
        /// False for a reload.
        ends_root: bool,
    },
    /// The action on this slot is over.
    IntentOver(SlotId),
    /// What is remembered of a slot; `None` forgets it.
    Slot(SlotId, Option<SlotRecord>),
    /// Announcements whose units were told by more than their modules.
    Decided(BTreeSet<Announced>),
    /// Which process has which number among equal units.
    Numbering(Numbering),
}

/// What is remembered of a slot across restarts of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRecord {
    /// The drain that emptied it.
    #[serde(default)]
    pub drained: Option<DrainId>,
    /// That drain has ended it, and could not see to it that it stays down.
    #[serde(default)]
    pub unheld: bool,
    /// What it was when it was stopped, to find and start it again.
    #[serde(default)]
    pub means: String,
    /// Its root when it was last stopped.
    #[serde(default)]
    pub stopped: Option<ProcessIdentity>,
    /// An action that failed, per app and revision, with the attempt it belongs to.
    #[serde(default)]
    pub failed: Option<Failure>,
    /// The last action that ended.
    #[serde(default)]
    pub done: Option<Done>,
    /// Pools it is charged to while nothing is up in it.
    #[serde(default)]
    pub pools: BTreeSet<PoolName>,
    /// Apps it belongs to while nothing is up in it.
    #[serde(default)]
    pub apps: BTreeMap<AppName, Revision>,
    /// The life of the unit that was last seen in it. Children of one that was told to end are none of their own.
    #[serde(default)]
    pub last_unit: Option<UnitId>,
}

/// A failed action. It is not tried again within the same attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What it was for, with each app's attempt.
    pub attempts: BTreeMap<AppName, (Revision, crate::ids::Generation)>,
    /// What it rests on.
    pub because: String,
    /// Whether the slot is down, by us.
    pub down: bool,
    /// Whether it was refused before anything was touched.
    pub untouched: bool,
}
