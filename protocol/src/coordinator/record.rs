//! What the coordinator is told by people, and what it keeps on its disk.

use crate::fingerprint::{Fingerprint, Salt};
use crate::ids::{
    AppName, DrainId, Epoch, Generation, HostName, Incarnation, PoolName, ProcessIdentity, Revision, SlotId, Version,
};
use crate::message::{DesiredDrain, Mode, Nonce, Purpose};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// How many units of a pool may be unavailable at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MaxUnavailable {
    /// A number, at least 1.
    Units(u32),
    /// A percentage from 1 to 100, rounded down, at least one unit.
    Percent(u8),
}

/// The text is neither a number nor a percentage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a number of units such as `2` or a percentage such as `10%`: {0:?}")]
pub struct MaxUnavailableError(String);

impl FromStr for MaxUnavailable {
    type Err = MaxUnavailableError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || MaxUnavailableError(text.chars().take(32).collect());
        match text.strip_suffix('%') {
            Some(percent) => match percent.parse() {
                Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
                _ => Err(error()),
            },
            None => match text.parse() {
                Ok(units @ 1..) => Ok(Self::Units(units)),
                _ => Err(error()),
            },
        }
    }
}

impl fmt::Display for MaxUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Units(units) => write!(f, "{units}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl TryFrom<String> for MaxUnavailable {
    type Error = MaxUnavailableError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MaxUnavailable> for String {
    fn from(limit: MaxUnavailable) -> Self {
        limit.to_string()
    }
}

impl MaxUnavailable {
    /// Returns how many of `total` units may be unavailable: at most all but one where there are several;
    /// a pool of one may be stopped.
    pub fn of(self, total: u32) -> u32 {
        let wanted = match self {
            Self::Units(units) => units,
            Self::Percent(percent) => u32::try_from(u64::from(total) * u64::from(percent) / 100).unwrap_or(u32::MAX),
        };
        wanted.max(1).min(total.saturating_sub(1).max(1))
    }

    /// The default: one unit or 10 % rounded down, whichever is larger.
    pub const DEFAULT: Self = Self::Percent(10);
}

/// A broadcast as the control API hands it over. The manifest itself is stored by the driver first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broadcast {
    /// The app.
    pub app: AppName,
    /// Digest of the manifest's bytes, by which it travels.
    pub manifest: Fingerprint,
    /// Digest of what is compared.
    pub fingerprint: Fingerprint,
    /// What the caller wants of this rollout.
    pub terms: Terms,
    /// Who asked, for the record.
    pub asked_by: String,
    /// `-m`, for the record.
    pub message: Option<String>,
    /// `--meta`, for the record.
    pub meta: BTreeMap<String, String>,
    /// Wall clock, for people: decides nothing.
    pub at_ms: u64,
}

/// What the caller of a broadcast wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// This many units of each pool first; the rest once they are verified.
    #[serde(default)]
    pub canary: Option<u32>,
    /// Budget instead of the pools' own.
    #[serde(default)]
    pub max_unavailable: Option<MaxUnavailable>,
    /// Bystanders count.
    #[serde(default)]
    pub strict: bool,
    /// No unit at all is a proof, too.
    #[serde(default)]
    pub allow_empty: bool,
    /// Silent hosts do not stand in the way of convergence.
    #[serde(default)]
    pub ignore_silent: bool,
    /// How many hosts must have reported.
    #[serde(default)]
    pub expect_hosts: Option<u32>,
}

/// One schema version's way through the fleet, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutRecord {
    /// The schema version's number.
    pub revision: Revision,
    /// Digest of the manifest's bytes.
    pub manifest: Fingerprint,
    /// Digest of what is compared.
    pub fingerprint: Fingerprint,
    /// What may be done.
    pub mode: Mode,
    /// Why it is in that mode, for people.
    #[serde(default)]
    pub mode_because: String,
    /// Since which generation failures count.
    pub attempt: Generation,
    /// The desired state that first carried it.
    pub since: Version,
    /// The caller's terms.
    pub terms: Terms,
    /// Units verified per pool, for the canary.
    #[serde(default)]
    pub verified: BTreeMap<PoolName, u32>,
    /// Who asked.
    pub asked_by: String,
    /// `-m`.
    #[serde(default)]
    pub message: Option<String>,
    /// `--meta`.
    #[serde(default)]
    pub meta: BTreeMap<String, String>,
    /// Wall clock of the first broadcast, for people.
    pub at_ms: u64,
}

/// A drain asked for by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRecord {
    /// The host.
    pub host: HostName,
    /// The slot.
    pub slot: SlotId,
    /// How long work in hand may take, in milliseconds.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// Kill at the deadline; go beyond the budget.
    #[serde(default)]
    pub force: bool,
    /// Who asked.
    pub asked_by: String,
    /// Wall clock, for people.
    pub at_ms: u64,
    /// The desired state that first carried it as it was asked for last, as far as it is known here. Filled in by
    /// [`Coordinator::handle_drain`](super::Coordinator::handle_drain).
    #[serde(default)]
    pub since: Version,
}

impl DesiredDrain {
    /// Returns what is kept of a drain of which only this is known.
    pub(super) fn record(&self, since: Version) -> DrainRecord {
        DrainRecord {
            host: self.host.clone(),
            slot: self.slot.clone(),
            deadline_ms: self.deadline_ms,
            force: self.force,
            asked_by: "another coordinator".into(),
            at_ms: 0,
            since,
        }
    }
}

/// A permit that has not been freed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermitRecord {
    /// The root it was asked for.
    pub identity: ProcessIdentity,
    /// The request's nonce.
    pub nonce: Nonce,
    /// The desired state it rests on.
    pub version: Version,
    /// Pools charged.
    pub pools: BTreeSet<PoolName>,
    /// What for.
    pub purpose: Purpose,
}

/// What is remembered of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Its last known units per pool.
    pub pools: BTreeMap<PoolName, u32>,
    /// Its agent's last known life.
    #[serde(default)]
    pub incarnation: Option<Incarnation>,
    /// It said that it was leaving.
    #[serde(default)]
    pub left: bool,
    /// The apps that it had looked for by then: `pools` has nothing of any other. `None` in records of before this was
    /// kept, whose pools are taken to be whole.
    #[serde(default)]
    pub apps: Option<BTreeSet<AppName>>,
}

/// One thing that was done or decided, for the record and for those who watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The app it belongs to, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// Its revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
    /// The host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// The slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<SlotId>,
    /// What happened, one constant word or two: `restarted`, `halted`.
    pub what: String,
    /// What it rests on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub because: String,
}

/// What the coordinator keeps on disk. The last record of each key holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The highest reign and desired state written.
    Reign {
        /// The reign.
        epoch: Epoch,
        /// The desired state.
        generation: Generation,
        /// The list of hosts was lost, and nobody has said yet how many there are.
        #[serde(default)]
        lost_hosts: bool,
        /// The hosts on the disk are all there were, as far as anybody told; `None` in records of before this was kept.
        #[serde(default)]
        all_hosts: Option<bool>,
        /// The coordinator's life that wrote it.
        #[serde(default)]
        author: Salt,
        /// Not all that was desired before it may be known.
        #[serde(default)]
        partial: bool,
        /// The newest state of somebody else's that was taken over; `None` in records of before this was kept.
        #[serde(default)]
        adopted: Option<Version>,
        /// The newest state of this coordinator's own that is known to have gone out; `None` as above.
        #[serde(default)]
        asserted: Option<Version>,
    },
    /// A rollout; the one with the highest revision of its app is the current one.
    Rollout(AppName, RolloutRecord),
    /// A drain; `None` where it was taken back.
    Drain(DrainId, Option<DrainRecord>),
    /// An outstanding permit; `None` where it was freed.
    Permit(HostName, SlotId, Option<PermitRecord>),
    /// A host; `None` where it was forgotten.
    Host(HostName, Option<HostRecord>),
    /// Something for the record.
    Event(Event),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_leave_one_unit_where_there_are_several() {
        let check = |limit: &str, total, want| {
            assert_eq!(limit.parse::<MaxUnavailable>().unwrap().of(total), want, "{limit} of {total}");
        };
        check("10%", 1, 1);
        check("10%", 9, 1);
        check("10%", 25, 2);
        check("100%", 4, 3);
        check("7", 4, 3);
        check("2", 10, 2);
        assert!("0".parse::<MaxUnavailable>().is_err());
        assert!("101%".parse::<MaxUnavailable>().is_err());
    }
}
