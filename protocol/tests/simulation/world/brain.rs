//! The coordinators of the simulated world: started, killed, paused between deciding and writing, with the lease that
//! the broker gives them.

use super::broker::Write;
use super::clock::Clock;
use super::{Design, Happening, Message, Tier, UNITS_PER_POOL, World, pool};
use rand::Rng as _;
use std::rc::Rc;
use std::time::Duration;
use unstale_protocol::coordinator::{
    Action, Coordinator, CoordinatorPolicy, Leadership, Lease, MaxUnavailable, Record, Reports,
};
use unstale_protocol::fingerprint::Salt;
use unstale_protocol::ids::Epoch;
use unstale_protocol::message::{Desired, Upward};
use unstale_protocol::time::Moment;

/// How long a lease lasts, and how often it is renewed, in milliseconds.
pub(super) const LEASE_MS: u64 = 10_000;
const RENEWAL_MS: u64 = 3_000;

/// One coordinator, or the place of one.
#[derive(Debug)]
pub(super) struct Brain {
    pub(super) machine: Option<Coordinator>,
    pub(super) clock: Clock,
    /// Told apart from its earlier lives.
    pub(super) life: u64,
    pub(super) disk: usize,
    timeout: Option<u64>,
    paused_until: u64,
}

impl Brain {
    pub(super) fn new(disk: usize, clock: Clock) -> Self {
        Self { machine: None, clock, life: 0, disk, timeout: None, paused_until: 0 }
    }
}

impl World {
    fn policy(&self, life: u64) -> CoordinatorPolicy {
        let pools = (0..2).map(|number| (pool(number), MaxUnavailable::Units(UNITS_PER_POOL)));
        let mut salt = [7; 16];
        salt[..8].copy_from_slice(&life.to_be_bytes());
        let leased = self.faults.tier != Tier::Embedded;
        CoordinatorPolicy {
            pools: pools.collect(),
            leadership: if leased { Leadership::Leased } else { Leadership::Sole },
            reports: if self.faults.tier == Tier::Amqp { Reports::ToLeader } else { Reports::ToAll },
            life: Salt(salt),
            takeover_wait: Duration::from_secs(30),
            ..CoordinatorPolicy::default()
        }
    }

    pub(super) fn start_brain(&mut self, index: usize) {
        let disk = self.brains[index].disk;
        if self.brains[index].machine.is_some() {
            return;
        }
        // The directory is locked while another process lives.
        if self.brains.iter().any(|other| other.disk == disk && other.machine.is_some()) {
            return self.at(5_000, Happening::StartBrain(index));
        }
        self.lives += 1;
        let life = self.lives;
        let clock = Clock::random(self.now, &mut self.rng);
        let mut machine = Coordinator::new(self.policy(life), self.disks[disk].clone(), clock.read(self.now));
        machine.handle_connected(clock.read(self.now));
        let brain = &mut self.brains[index];
        (brain.machine, brain.clock, brain.life, brain.timeout, brain.paused_until) =
            (Some(machine), clock, life, None, self.now);
        self.pump_brain(index);
        if self.faults.tier != Tier::Embedded {
            self.at(1, Happening::Renew(index, life));
        }
    }

    pub(super) fn kill_brain(&mut self, index: usize) {
        if self.brains[index].machine.take().is_some() {
            let pause = self.rng.random_range(100..90_000);
            self.at(pause, Happening::StartBrain(index));
        }
    }

    pub(super) fn pause_brain(&mut self, index: usize) {
        let pause = self.rng.random_range(5_000..65_000);
        self.brains[index].paused_until = self.now + pause;
    }

    /// Returns how long a paused coordinator still sleeps.
    pub(super) fn sleeps(&self, index: usize) -> Option<u64> {
        let brain = &self.brains[index];
        (brain.machine.is_some() && self.now < brain.paused_until).then(|| brain.paused_until - self.now)
    }

    /// Asks the broker for the lease and for what it retains.
    pub(super) fn renew(&mut self, index: usize, life: u64) {
        let brain = &self.brains[index];
        let Some(machine) = brain.machine.as_ref().filter(|_| brain.life == life) else { return };
        let asked_at = brain.clock.read(self.now);
        let request = Write::Lease { least: machine.least_epoch(), asked_at };
        self.write(index, life, request);
        self.at(RENEWAL_MS, Happening::Renew(index, life));
    }

    /// The broker's answer: what it retains, and whether the lease is this coordinator's.
    pub(super) fn leased(&mut self, index: usize, life: u64, answer: &LeaseAnswer) {
        let brain = &mut self.brains[index];
        let now = brain.clock.read(self.now);
        let Some(machine) = brain.machine.as_mut().filter(|_| brain.life == life) else { return };
        machine.handle_found(answer.retained.as_deref(), now);
        match answer.epoch {
            Some(epoch) => {
                let is_endless = self.design == Design::EndlessLease;
                let length = if is_endless { super::END_MS } else { LEASE_MS };
                let until = answer.asked_at.after(Duration::from_millis(length));
                let epoch = (self.faults.tier == Tier::Redis).then_some(epoch);
                machine.handle_lease(Lease { until, epoch }, now);
            }
            None => machine.handle_lease_lost(now),
        }
        self.pump_brain(index);
    }

    pub(super) fn pump_brain(&mut self, index: usize) {
        loop {
            let now = self.now;
            let brain = &mut self.brains[index];
            let (life, clock, disk) = (brain.life, brain.clock, brain.disk);
            if now < brain.paused_until {
                break;
            }
            let Some(machine) = brain.machine.as_mut() else { return };
            let Some(action) = machine.poll_action() else { break };
            let write = match action {
                Action::Store(records) => {
                    self.disks[disk].extend(records);
                    continue;
                }
                Action::Publish(desired) => {
                    Write::Desired(desired.epoch, self.said(desired, |text| serde_json::from_str(text)))
                }
                Action::Grant(permit) => {
                    self.granted_by = self.granted_by.max(permit.version.epoch);
                    let to = self.hosts.iter().position(|host| host.name == permit.host).unwrap();
                    Write::Permit(permit.version.epoch, to, self.said(permit, |text| serde_json::from_str(text)))
                }
                Action::LookUp(_) | Action::Fetch(_) | Action::Keep(..) => unreachable!("no manifest is looked for"),
            };
            if !self.brains[index].machine.as_ref().is_some_and(|machine| machine.leads(clock.read(now))) {
                continue;
            }
            // Decided, and not yet written: whatever happens in between, it goes out when the process wakes.
            if self.is_faulty() && self.faults.pauses && self.rng.random_ratio(self.faults.stalls, 100) {
                self.pause_brain(index);
                let pause = self.brains[index].paused_until - now;
                self.at(pause, Happening::Written(index, life, write));
            } else {
                self.write(index, life, write);
            }
        }
        self.wait_for_brain(index);
    }

    fn wait_for_brain(&mut self, index: usize) {
        let now = self.now;
        let brain = &mut self.brains[index];
        let due = brain.machine.as_ref().and_then(Coordinator::poll_timeout);
        let Some(at) = due.map(|at| brain.clock.when(at)) else { return };
        if brain.timeout != Some(at) {
            brain.timeout = Some(at);
            let life = brain.life;
            self.at(at.saturating_sub(now).max(1), Happening::BrainTimeout(index, life, at));
        }
    }

    /// As for the hosts.
    pub(super) fn brain_timeout(&mut self, index: usize, life: u64, at: u64) {
        let brain = &mut self.brains[index];
        let now = brain.clock.read(self.now);
        let Some(machine) = brain.machine.as_mut().filter(|_| brain.life == life) else { return };
        brain.timeout = brain.timeout.filter(|next| *next != at);
        machine.handle_timeout(now);
        let next = machine.poll_timeout();
        assert!(next.is_none_or(|next| next > now), "the driver would spin: {next:?} at {now:?}");
        self.pump_brain(index);
    }

    pub(super) fn hear(&mut self, index: usize, upward: Upward) {
        let brain = &mut self.brains[index];
        let now = brain.clock.read(self.now);
        let Some(machine) = brain.machine.as_mut() else { return };
        match upward {
            Upward::Report(report) => machine.handle_report(report, now),
            Upward::Ask(ask) => machine.handle_ask(ask, now),
            Upward::Piece(_) | Upward::Unknown => unreachable!(),
        }
        self.pump_brain(index);
    }

    /// Returns the coordinator that leads now, by its own word.
    pub(super) fn leader(&self) -> Option<usize> {
        (0..self.brains.len()).filter(|index| self.sleeps(*index).is_none()).find(|index| {
            let brain = &self.brains[*index];
            brain.machine.as_ref().is_some_and(|machine| machine.leads(brain.clock.read(self.now)))
        })
    }

    /// Every coordinator dies and every disk is lost; so is what the broker held.
    pub(super) fn lose_everything(&mut self) {
        for index in 0..self.brains.len() {
            self.brains[index].machine = None;
            self.at(1_000, Happening::StartBrain(index));
        }
        self.disks.iter_mut().for_each(Vec::<Record>::clear);
        self.broker.wipe();
    }

    pub(super) fn write(&mut self, index: usize, life: u64, write: Write) {
        self.send(&Message::Write(index, life, write));
    }
}

/// What the broker says to a request for the lease.
#[derive(Clone, Debug)]
pub(super) struct LeaseAnswer {
    pub(super) epoch: Option<Epoch>,
    pub(super) asked_at: Moment,
    pub(super) retained: Option<Rc<Desired>>,
}
