//! An agent as the coordinator may hear it: honest about its units, which do as they please.

use super::{SLOTS, apps, host, pools, slot};
use std::collections::BTreeMap;
use unstale_protocol::ids::{AppName, Incarnation, Pid, PoolName, ProcessIdentity, Revision};
use unstale_protocol::message::{
    AppReport, Desired, Done, Permit, Phase, PoolReport, Report, SlotJudgement, SlotReport, UnitCounts,
};
use unstale_protocol::time::Moment;
use unstale_protocol::verdict::{Cure, Verdict};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Up,
    Acting,
    Down,
    Drained,
    Failed,
}

#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) standing: Standing,
    pub(super) verdict: Verdict,
    pub(super) done: Option<Done>,
    pub(super) permit: Option<Permit>,
}

#[derive(Clone, Debug)]
pub(super) struct Agent {
    pub(super) incarnation: Incarnation,
    pub(super) born_at: u64,
    pub(super) sequence: u64,
    pub(super) units: Vec<Unit>,
    pub(super) accepted: Desired,
    pub(super) deaf: bool,
    pub(super) leaving: bool,
}

impl Agent {
    /// What it says of itself now.
    pub(super) fn report(&self, index: usize, now: u64) -> Report {
        let slots: Vec<_> = (0..SLOTS).map(|number| slot_report(number, &self.units[number])).collect();
        let mut in_pools: BTreeMap<PoolName, PoolReport> = BTreeMap::new();
        for (number, unit) in self.units.iter().enumerate() {
            for pool in pools(number) {
                let pool = in_pools.entry(pool).or_default();
                pool.total += 1;
                pool.unavailable += u32::from(unit.standing != Standing::Up);
            }
        }
        Report {
            host: host(index),
            incarnation: self.incarnation,
            sequence: self.sequence,
            clock: Moment(now - self.born_at),
            accepted: self.accepted.version(),
            author: self.accepted.author,
            refused: None,
            unsupported: None,
            leaving: self.leaving,
            scanned: true,
            apps: self
                .accepted
                .apps
                .iter()
                .map(|(name, app)| (name.clone(), app_report(self, name, app.revision)))
                .collect(),
            pools: in_pools,
            slots,
            omitted: 0,
            others: Vec::new(),
            others_omitted: 0,
            probes: BTreeMap::new(),
        }
    }
}

pub(super) fn identity() -> ProcessIdentity {
    ProcessIdentity { pid: Pid(1), start_ticks: 7, pid_namespace: 1 }
}

fn slot_report(number: usize, unit: &Unit) -> SlotReport {
    let is_up = matches!(unit.standing, Standing::Up | Standing::Acting);
    SlotReport {
        slot: slot(number),
        unit: None,
        last_unit: None,
        identity: is_up.then(identity),
        pools: pools(number),
        apps: apps(number).map(|name| (name, SlotJudgement { verdict: unit.verdict, cure: Cure::Restart })).collect(),
        phase: match unit.standing {
            Standing::Up => Phase::Up,
            Standing::Acting => Phase::Draining,
            Standing::Down => Phase::Down,
            Standing::Drained => Phase::Drained,
            Standing::Failed => Phase::Failed,
        },
        because: String::new(),
        done: unit.done.clone(),
    }
}

/// What an honest agent says of an app.
fn app_report(agent: &Agent, name: &AppName, revision: Revision) -> AppReport {
    let mut units = UnitCounts::default();
    for (number, unit) in agent.units.iter().enumerate() {
        if !apps(number).any(|app| app == *name) {
            continue;
        }
        match (unit.standing, unit.verdict) {
            (Standing::Failed, _) => units.failed += 1,
            (Standing::Up, Verdict::Fresh) => units.fresh += 1,
            (Standing::Up, Verdict::Unknown) => units.unknown += 1,
            (Standing::Up, Verdict::Untracked) => units.blocked += 1,
            (Standing::Up, Verdict::Stale) => units.stale += 1,
            _ => units.acting += 1,
        }
    }
    let converged = units.total() == units.fresh;
    AppReport { revision, converged, units, ..AppReport::default() }
}
