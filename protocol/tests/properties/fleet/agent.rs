//! An agent as the coordinator may hear it: honest about its units, which do as they please.

use super::{Fleet, SLOTS, apps, host, pools, slot};
use std::collections::BTreeMap;
use unstale_protocol::fingerprint::Salt;
use unstale_protocol::ids::{AppName, Incarnation, Pid, PoolName, ProcessIdentity, Revision};
use unstale_protocol::message::{
    AppReport, Desired, Done, DoneResult, Permit, Phase, PoolReport, Report, SlotJudgement, SlotReport, UnitCounts,
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
            rejected: BTreeMap::new(),
            probes: BTreeMap::new(),
        }
    }
}

/// What the agents do with what they were sent.
impl Fleet {
    pub(super) fn act(&mut self) {
        for agent in &mut self.agents {
            let oldest = (self.now - agent.born_at).saturating_sub(20_000);
            for unit in agent.units.iter_mut().filter(|unit| unit.standing == Standing::Up) {
                let is_valid =
                    |permit: &Permit| permit.nonce.incarnation == agent.incarnation && permit.nonce.at.0 > oldest;
                if unit.permit.as_ref().is_some_and(is_valid) {
                    unit.standing = Standing::Acting;
                }
            }
        }
    }

    pub(super) fn end(&mut self, number: usize, result: DoneResult) {
        let units = self.agents.iter_mut().flat_map(|agent| &mut agent.units);
        let mut acting: Vec<_> = units.filter(|unit| unit.standing == Standing::Acting).collect();
        let number = number % acting.len().max(1);
        let Some(unit) = acting.get_mut(number) else { return };
        let Some(permit) = unit.permit.take() else { return };
        unit.standing = match result {
            DoneResult::Drained => Standing::Drained,
            DoneResult::Failed => Standing::Failed,
            _ => Standing::Up,
        };
        let because = "it was seen".to_owned();
        unit.done = Some(Done { nonce: permit.nonce, result, purpose: permit.purpose, elapsed_ms: 1, because });
    }

    pub(super) fn reborn(&mut self, index: usize) {
        let now = self.now;
        let agent = &mut self.agents[index];
        let counter = agent.incarnation.counter + 1;
        agent.incarnation = Incarnation { counter, random: Salt([u8::try_from(counter).unwrap_or(0); 16]) };
        agent.born_at = now;
        agent.sequence = 0;
        agent.leaving = false;
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
