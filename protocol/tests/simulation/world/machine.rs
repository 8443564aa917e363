//! What one host of the simulated world does: its units obey steps, answer, and are scanned.

use super::{Answer, Happening, Message, World, moment};
use rand::Rng as _;
use std::collections::{BTreeMap, BTreeSet};
use unstale_protocol::host::{Action as HostAction, AppView, Host, Scan, UnitJudgement, UnitView, Vacancy};
use unstale_protocol::ids::{SlotId, UnitId};
use unstale_protocol::message::Upward;
use unstale_protocol::restart::{Action as Step, Cleared, Verified};
use unstale_protocol::verdict::{Cure, Verdict};

impl World {
    pub(super) fn pump_host(&mut self, index: usize) {
        while let Some(action) = self.hosts[index].agent.as_mut().and_then(Host::poll_action) {
            match action {
                HostAction::Store(records) => self.hosts[index].disk.extend(records),
                HostAction::Report(report) => {
                    self.send(&Message::Up(serde_json::to_vec(&Upward::Report(report)).unwrap()));
                }
                HostAction::Ask(ask) => self.send(&Message::Up(serde_json::to_vec(&Upward::Ask(ask)).unwrap())),
                HostAction::Look => {
                    let delay = self.rng.random_range(10..200);
                    self.at(delay, Happening::Scan(index));
                }
                HostAction::Purge { .. } => unreachable!("the simulated bytecode is right"),
                HostAction::Step { slot, step } => self.step(index, &slot, &step),
            }
        }
        let machine = &self.hosts[index];
        let due = machine.agent.as_ref().and_then(Host::poll_timeout).map(|at| at.0 + machine.started_at);
        if let Some(at) = due
            && machine.next_timeout != Some(at)
        {
            let delay = at.saturating_sub(self.now).max(1);
            self.hosts[index].next_timeout = Some(at);
            self.at(delay, Happening::HostTimeout(index));
        }
    }

    pub(super) fn step(&mut self, index: usize, slot: &SlotId, step: &Step) {
        let life = self.hosts[index].life;
        let number = self.hosts[index].units.iter().position(|unit| unit.slot == *slot).unwrap();
        let answer = |answer| Happening::Answer(index, life, slot.clone(), answer);
        match step {
            Step::Preflight => self.at(30, answer(Answer::Preflight)),
            Step::Stop => {
                let wanted = self.announced;
                let unit = &mut self.hosts[index].units[number];
                *unit.stops.entry(wanted).or_default() += 1;
                unit.stopping = true;
                unit.down_by_us = true;
                self.stops += 1;
                assert!(!self.aborted, "a stop went out after the abort had arrived everywhere");
                let work = self.rng.random_range(1..60_000);
                self.at(work, Happening::Ended(index, number));
                self.at(5, answer(Answer::Stopped));
            }
            Step::AwaitEnd => self.await_end(index, number, slot),
            Step::Start => {
                if self.hosts[index].units[number].root.is_none() && !self.faults.broken_code {
                    let pause = self.rng.random_range(200..40_000);
                    self.at(pause, Happening::BackUp(index, number));
                }
                self.at(20, answer(Answer::Started));
            }
            Step::Verify => self.at(100, answer(Answer::Verified)),
            Step::Kill | Step::HoldDown | Step::Persist(_) | Step::Finish(_) => unreachable!("{step:?}"),
        }
    }

    pub(super) fn await_end(&mut self, index: usize, number: usize, slot: &SlotId) {
        let life = self.hosts[index].life;
        let unit = &self.hosts[index].units[number];
        if unit.root.is_none() || !unit.stopping {
            self.at(1, Happening::Answer(index, life, slot.clone(), Answer::Ended));
        }
    }

    pub(super) fn answer(&mut self, index: usize, slot: &SlotId, answer: Answer) {
        let wanted = self.announced;
        let machine = &mut self.hosts[index];
        let now = moment(self.now, machine.started_at);
        let Some(agent) = machine.agent.as_mut() else { return };
        let unit = machine.units.iter().find(|unit| unit.slot == *slot).unwrap();
        match answer {
            Answer::Preflight => {
                let is_right = machine.source >= 1;
                let cleared = Cleared { means: "sim".into(), ends_root: true };
                agent.handle_preflight(slot, if is_right { Ok(cleared) } else { Err("source".into()) }, now);
            }
            Answer::Stopped => agent.handle_stopped(slot, Ok(()), now),
            Answer::Started => agent.handle_started(slot, Ok(()), now),
            Answer::Ended => agent.handle_ended(slot, now),
            Answer::Verified => {
                let verified = if unit.loaded == wanted {
                    Verified::Fresh
                } else if unit.loaded == machine.source {
                    Verified::SourceMovedOn("simulated".into())
                } else {
                    Verified::Stale("simulated".into())
                };
                agent.handle_verified(slot, verified, now);
            }
        }
        self.pump_host(index);
    }

    pub(super) fn scan(&mut self, index: usize) {
        let machine = &mut self.hosts[index];
        let now = moment(self.now, machine.started_at);
        let Some(agent) = machine.agent.as_mut() else { return };
        let desired = agent.desired().apps.get(&self.app).map(|app| app.revision);
        let mut scan = Scan { begun_at: now, full: true, ..Scan::default() };
        let wanted = desired.map_or(0, |revision| revision.0);
        for unit in &machine.units {
            let Some(root) = unit.root else {
                scan.vacant.insert(unit.slot.clone(), Vacancy::Down);
                continue;
            };
            let mut apps = BTreeMap::new();
            if let Some(revision) = desired {
                let (verdict, cure) = if unit.loaded == wanted {
                    (Verdict::Fresh, Cure::None)
                } else if machine.source == wanted {
                    (Verdict::Stale, Cure::Restart)
                } else {
                    (Verdict::Stale, Cure::WaitForSource)
                };
                apps.insert(self.app.clone(), UnitJudgement { revision, verdict, cure, because: "simulated".into() });
            }
            scan.units.push(UnitView {
                slot: unit.slot.clone(),
                unit: UnitId::new(format!("celery:{}", root.pid)).unwrap(),
                root,
                pools: BTreeSet::from([unit.pool.clone()]),
                bystander: false,
                apps,
                blocked: None,
            });
        }
        if let Some(revision) = desired {
            let view = AppView { revision, files_right: machine.source == wanted, ..AppView::default() };
            scan.apps.insert(self.app.clone(), view);
        }
        agent.handle_scan(&scan, now);
        self.pump_host(index);
    }
}
