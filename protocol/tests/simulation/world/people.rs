//! What people do in the simulated world: broadcasts, drains by hand, and the count of hosts after a loss.

use super::{Happening, World, digest};
use rand::Rng as _;
use std::collections::BTreeMap;
use unstale_protocol::coordinator::{Broadcast, DrainRecord, Terms};
use unstale_protocol::ids::Version;

impl World {
    /// Announces the next contents, or the newest again where they were lost.
    pub(super) fn broadcast(&mut self, contents: u64) {
        let accepted = self.leader().and_then(|index| {
            let brain = &mut self.brains[index];
            let now = brain.clock.read(self.now);
            let broadcast = Broadcast {
                app: self.app.clone(),
                manifest: digest(contents),
                fingerprint: digest(contents),
                terms: Terms::default(),
                asked_by: "simulation".into(),
                message: None,
                meta: BTreeMap::new(),
                at_ms: 0,
            };
            let accepted = brain.machine.as_mut()?.handle_broadcast(&broadcast, now).ok()?;
            self.pump_brain(index);
            Some(accepted)
        });
        if accepted.is_none() {
            return self.at(5_000, Happening::Broadcast(contents));
        }
        if contents > self.announced {
            self.announced = contents;
            for index in 0..self.hosts.len() {
                let pause = self.rng.random_range(0..30_000);
                self.at(pause, Happening::SourceArrives(index, contents));
            }
        }
    }

    /// Takes a unit out of work, now and then beyond the budget.
    pub(super) fn drain(&mut self) {
        // What one half of a broker in two is told is thrown away with it, and hosts cannot know.
        if self.broker.is_split() {
            return;
        }
        let Some(index) = self.leader() else { return };
        let host = self.rng.random_range(0..self.hosts.len());
        let number = self.rng.random_range(0..self.hosts[host].units.len());
        let record = DrainRecord {
            host: self.hosts[host].name.clone(),
            slot: self.hosts[host].units[number].slot.clone(),
            deadline_ms: None,
            force: self.rng.random_ratio(1, 4),
            asked_by: "simulation".into(),
            at_ms: 0,
            since: Version::default(),
        };
        let brain = &mut self.brains[index];
        let now = brain.clock.read(self.now);
        let Some(machine) = brain.machine.as_mut() else { return };
        let is_forced = record.force;
        if let Ok(ids) = machine.handle_drain(vec![record], now) {
            self.forced.extend(ids.into_iter().filter(|_| is_forced));
            self.pump_brain(index);
        }
    }

    /// Gives one drained unit back, or all of them.
    pub(super) fn undrain(&mut self, all: bool) {
        let Some(index) = self.leader() else { return };
        let brain = &mut self.brains[index];
        let now = brain.clock.read(self.now);
        let Some(machine) = brain.machine.as_mut() else { return };
        let drains = machine.drains();
        for drain in drains.iter().take(if all { usize::MAX } else { 1 }) {
            if machine.handle_undrain(&drain.id, now).is_err() {
                continue;
            }
            self.taken_back.insert(drain.id.clone());
        }
        self.pump_brain(index);
    }

    /// Whoever runs the fleet says what was lost: what is wanted, and how many hosts there are.
    pub(super) fn make_up(&mut self) {
        let Some(index) = self.leader() else { return self.at(10_000, Happening::MakeUp) };
        let hosts = u32::try_from(self.hosts.len()).unwrap();
        let brain = &mut self.brains[index];
        let now = brain.clock.read(self.now);
        let Some(machine) = brain.machine.as_mut() else { return };
        let has_lost = machine.has_lost_hosts();
        if has_lost && machine.handle_stated_hosts(hosts, now).is_err() {
            return self.at(10_000, Happening::MakeUp);
        }
        let contents = self.announced;
        let knows =
            machine.desired().apps.values().next().is_some_and(|app| {
                app.manifest == digest(contents) && app.mode == unstale_protocol::message::Mode::Run
            });
        self.pump_brain(index);
        if contents > 0 && !knows {
            self.resume(index, contents);
        }
    }

    /// Announces again what is wanted, and lifts a pause that stands in its way.
    fn resume(&mut self, index: usize, contents: u64) {
        self.broadcast(contents);
        let app = self.app.clone();
        let brain = &mut self.brains[index];
        let now = brain.clock.read(self.now);
        if let Some(machine) = brain.machine.as_mut() {
            // Refused where there is nothing to resume.
            machine.handle_resume(&app, None, None, "simulation", now).unwrap_or_default();
        }
        self.pump_brain(index);
    }
}
