//! What one host of the simulated world does: its units obey steps, answer, and are scanned.

use super::broker::Party;
use super::clock::Clock;
use super::{Design, Happening, Message, World};
use rand::Rng as _;
use std::collections::{BTreeMap, BTreeSet};
use unstale_protocol::fingerprint::Salt;
use unstale_protocol::host::{
    Action as HostAction, AppView, Host, HostPolicy, Record, Scan, UnitJudgement, UnitView, Vacancy,
};
use unstale_protocol::ids::{HostName, Incarnation, PoolName, ProcessIdentity, SlotId, UnitId};
use unstale_protocol::message::{Desired, Nonce, Permit, Purpose, Report, Upward};
use unstale_protocol::restart::{Action as Step, Cleared, Verified};
use unstale_protocol::verdict::{Cure, Verdict};

/// Pause between two looks at the list of processes; what changes is seen sooner.
pub(super) const SCAN_INTERVAL_MS: u64 = 15_000;

#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Preflight,
    Stopped,
    Started,
    Verified,
    Ended,
    Held,
    NewLife,
}

#[derive(Debug)]
pub(super) struct Unit {
    pub(super) slot: SlotId,
    pub(super) pool: PoolName,
    /// The process, while one is up.
    pub(super) root: Option<ProcessIdentity>,
    pub(super) loaded: u64,
    /// Told to stop; ends by itself.
    pub(super) stopping: bool,
    /// Stopped and kept down by its supervisor.
    held: bool,
    /// Taken out of work beyond the budget, as somebody has said.
    pub(super) forced: bool,
    /// Restarts per contents that were wanted at the time.
    restarts: BTreeMap<u64, u32>,
}

impl Unit {
    pub(super) fn new(slot: SlotId, pool: PoolName, root: ProcessIdentity) -> Self {
        let restarts = BTreeMap::new();
        Self { slot, pool, root: Some(root), loaded: 0, stopping: false, held: false, forced: false, restarts }
    }
}

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) name: HostName,
    pub(super) agent: Option<Host>,
    pub(super) life: u64,
    clock: Clock,
    /// How far its wall clock is off, in milliseconds.
    skew: i64,
    disk: Vec<Record>,
    pub(super) source: u64,
    pub(super) units: Vec<Unit>,
    next_timeout: Option<u64>,
    asked: Option<Nonce>,
    reported: Option<Report>,
    /// The machine is shut down.
    pub(super) is_off: bool,
}

impl Machine {
    pub(super) fn new(name: HostName, units: Vec<Unit>, clock: Clock, skew: i64) -> Self {
        Self {
            name,
            agent: None,
            life: 0,
            clock,
            skew,
            disk: Vec::new(),
            source: 0,
            units,
            next_timeout: None,
            asked: None,
            reported: None,
            is_off: false,
        }
    }
}

/// The contents that a desired state wants of the one app there is.
fn wanted(desired: &Desired) -> u64 {
    desired.apps.values().next().map_or(0, |app| u64::from(app.manifest.0[0]))
}

impl World {
    /// The machine goes down, and its agent, where there is one, says so: as well as the bus carries it.
    pub(super) fn shut_down(&mut self, index: usize, pause: u64) {
        let machine = &mut self.hosts[index];
        if machine.is_off {
            return;
        }
        let now = machine.clock.read(self.now);
        if let Some(agent) = machine.agent.as_mut() {
            agent.handle_leaving(now);
            self.pump_host(index);
        }
        let machine = &mut self.hosts[index];
        (machine.agent, machine.is_off) = (None, true);
        for unit in &mut machine.units {
            // What was down before is down when it comes back, whatever was granted meanwhile.
            unit.forced |= unit.root.is_none();
            (unit.root, unit.stopping) = (None, false);
        }
        self.at(pause, Happening::Boot(index));
    }

    pub(super) fn boot(&mut self, index: usize) {
        self.hosts[index].is_off = false;
        for number in 0..self.hosts[index].units.len() {
            self.back_up(index, number);
        }
        self.start_agent(index);
    }

    pub(super) fn start_agent(&mut self, index: usize) {
        if self.hosts[index].is_off {
            return;
        }
        let seed = self.rng.random();
        let clock = Clock::random(self.now, &mut self.rng);
        let now = clock.read(self.now);
        let machine = &mut self.hosts[index];
        machine.life += 1;
        (machine.clock, machine.next_timeout) = (clock, None);
        let incarnation =
            Incarnation { counter: machine.life, random: Salt([u8::try_from(machine.life % 256).unwrap(); 16]) };
        let mut agent =
            Host::new(machine.name.clone(), incarnation, HostPolicy::default(), machine.disk.clone(), seed, now);
        agent.handle_connected(now);
        machine.agent = Some(agent);
        if let Some(desired) = self.broker.retained(Party::Host(index)) {
            self.send(&Message::Desired(index, desired));
        }
        self.at(100, Happening::Scan(index));
        self.pump_host(index);
    }

    /// The machine is told also when it no longer wants to be: a driver may wake too early. Only the timeout that is
    /// waited for ends the wait: else each that was overtaken would go on beside it.
    pub(super) fn host_timeout(&mut self, index: usize, life: u64, at: u64) {
        let machine = &mut self.hosts[index];
        let now = machine.clock.read(self.now);
        let Some(agent) = machine.agent.as_mut().filter(|_| machine.life == life) else { return };
        machine.next_timeout = machine.next_timeout.filter(|next| *next != at);
        agent.handle_timeout(now);
        let next = agent.poll_timeout();
        assert!(next.is_none_or(|next| next > now), "the driver would spin: {next:?} at {now:?}");
        self.pump_host(index);
    }

    pub(super) fn desire(&mut self, index: usize, desired: &Desired) {
        let machine = &mut self.hosts[index];
        let now = machine.clock.read(self.now);
        let Some(agent) = machine.agent.as_mut() else { return };
        agent.handle_desired(desired, now);
        self.pump_host(index);
    }

    pub(super) fn permit(&mut self, index: usize, mut permit: Permit) {
        let machine = &mut self.hosts[index];
        let now = machine.clock.read(self.now);
        let Some(agent) = machine.agent.as_mut() else { return };
        let epoch = permit.version.epoch;
        match self.design {
            Design::EpochOnly if epoch < agent.accepted().epoch => return,
            Design::NoFencing | Design::EpochOnly => {
                (permit.version, permit.author) = (agent.accepted(), agent.desired().author);
                permit.nonce = machine.asked.unwrap_or(permit.nonce);
            }
            // It was to end a moment after it was written.
            Design::WallExpiry if machine.skew.abs() > 4_000 => return,
            _ => {}
        }
        let was_idle = agent.intent(&permit.slot).is_none();
        agent.handle_permit(&permit, now);
        let has_begun = was_idle && agent.intent(&permit.slot).is_some();
        // While the broker is in two, each half has a leader, and each counts the hosts of the other as unavailable.
        if has_begun && epoch < self.granted_by && !self.broker.was_split {
            let law =
                format!("{} takes a permit of reign {epoch} although {} has granted", permit.slot, self.granted_by);
            self.broke(&law);
        }
        self.pump_host(index);
    }

    pub(super) fn pump_host(&mut self, index: usize) {
        while let Some(action) = self.hosts[index].agent.as_mut().and_then(Host::poll_action) {
            // Killed between two actions.
            if self.is_faulty() && self.faults.kills && self.rng.random_ratio(1, 4_000) {
                self.hosts[index].agent = None;
                let pause = self.rng.random_range(100..60_000);
                return self.at(pause, Happening::StartAgent(index));
            }
            match action {
                HostAction::Store(records) => self.hosts[index].disk.extend(records),
                HostAction::Report(report) => self.report(index, report),
                HostAction::Ask(ask) => {
                    self.hosts[index].asked = Some(ask.nonce);
                    let said = self.said(Upward::Ask(ask), Upward::from_json);
                    self.send(&Message::Up(index, said));
                }
                HostAction::Look => {
                    let delay = self.rng.random_range(10..200);
                    self.at(delay, Happening::Scan(index));
                }
                HostAction::Purge { .. } => unreachable!("the simulated bytecode is right"),
                HostAction::Step { slot, step } => self.step(index, &slot, &step),
            }
        }
        let now = self.now;
        let machine = &mut self.hosts[index];
        let due = machine.agent.as_ref().and_then(Host::poll_timeout).map(|at| machine.clock.when(at));
        if let Some(at) = due
            && machine.next_timeout != Some(at)
        {
            machine.next_timeout = Some(at);
            let life = machine.life;
            self.at(at.saturating_sub(now).max(1), Happening::HostTimeout(index, life, at));
        }
    }

    fn report(&mut self, index: usize, report: Report) {
        let same = |last: &Report| {
            (&last.apps, &last.slots, last.accepted, last.incarnation)
                == (&report.apps, &report.slots, report.accepted, report.incarnation)
        };
        let is_repeated = self.hosts[index].reported.as_ref().is_some_and(same);
        if is_repeated && self.design == Design::EventOnly {
            return;
        }
        self.hosts[index].reported = Some(report.clone());
        let said = self.said(Upward::Report(report), Upward::from_json);
        self.send(&Message::Up(index, said));
    }

    fn step(&mut self, index: usize, slot: &SlotId, step: &Step) {
        let life = self.hosts[index].life;
        let number = self.hosts[index].units.iter().position(|unit| unit.slot == *slot).unwrap();
        let answer = |answer| Happening::Answer(index, life, slot.clone(), answer);
        match step {
            Step::Preflight => self.at(30, answer(Answer::Preflight)),
            Step::Stop => {
                self.stop(index, number);
                let work = self.rng.random_range(1..80_000);
                let root = self.hosts[index].units[number].root;
                self.at(work, Happening::Ended(index, number, root));
                self.at(5, answer(Answer::Stopped));
            }
            Step::AwaitEnd => {
                let machine = &self.hosts[index];
                let unit = &machine.units[number];
                let awaited = machine.agent.as_ref().and_then(|agent| Some(agent.intent(slot)?.identity));
                if unit.root.is_none() || unit.root != awaited {
                    self.at(1, answer(Answer::Ended));
                } else if !unit.stopping {
                    // The stop of a killed agent never went out: somebody does it by hand.
                    let root = unit.root;
                    let pause = self.rng.random_range(60_000..300_000);
                    self.at(pause, Happening::Ended(index, number, root));
                }
            }
            Step::Start => {
                let machine = &mut self.hosts[index];
                let intent = machine.agent.as_ref().and_then(|agent| agent.intent(slot));
                let is_taken_back = intent.is_some_and(
                    |intent| matches!(&intent.purpose, Purpose::Drain(id) if self.taken_back.contains(id)),
                );
                let unit = &mut machine.units[number];
                if unit.held && !is_taken_back {
                    let law = format!("{slot} is started although it is to stay drained");
                    self.broke(&law);
                    return self.at(20, answer(Answer::Started));
                }
                // One that came up with its machine is not to stay down either.
                unit.held = false;
                if unit.root.is_none() && !self.faults.broken_code {
                    let pause = self.rng.random_range(200..40_000);
                    self.at(pause, Happening::BackUp(index, number));
                }
                self.at(20, answer(Answer::Started));
            }
            Step::HoldDown => {
                let unit = &mut self.hosts[index].units[number];
                // One that was brought back meanwhile is left alone, unless it is too young to have work in hand.
                if unit.root.is_some() && self.rng.random_ratio(4, 5) {
                    return self.at(20, answer(Answer::NewLife));
                }
                (unit.stopping, unit.held) = (false, true);
                if unit.root.take().is_some() {
                    self.at(20, Happening::Scan(index));
                }
                self.at(20, answer(Answer::Held));
            }
            Step::Verify => self.at(100, answer(Answer::Verified)),
            Step::Kill | Step::Persist(_) | Step::Finish(_) => unreachable!("{step:?}"),
        }
    }

    /// A stop goes out: for a restart it must be of a unit that is not fresh, the first for what is wanted.
    fn stop(&mut self, index: usize, number: usize) {
        let machine = &mut self.hosts[index];
        let unit = &mut machine.units[number];
        let agent = machine.agent.as_ref().unwrap();
        let wanted = wanted(agent.desired());
        let is_restart = agent.intent(&unit.slot).is_some_and(|intent| matches!(intent.purpose, Purpose::Restart(_)));
        let forced = agent
            .intent(&unit.slot)
            .is_some_and(|intent| matches!(&intent.purpose, Purpose::Drain(id) if self.forced.contains(id)));
        unit.forced |= forced;
        let mut law = None;
        if is_restart {
            let restarts = unit.restarts.entry(wanted).or_default();
            *restarts += 1;
            if *restarts > 1 {
                law = Some(format!("{} is stopped {restarts} times for {wanted}", unit.slot));
            } else if unit.loaded == wanted {
                law = Some(format!("{} is stopped although it holds {wanted}", unit.slot));
            }
        }
        unit.stopping = unit.root.is_some();
        self.stops += 1;
        if self.aborted {
            law = Some("a stop goes out after the abort has arrived everywhere".into());
        }
        if let Some(law) = law {
            self.broke(&law);
        }
        self.check_budget();
    }

    pub(super) fn ended(&mut self, index: usize, number: usize, root: Option<ProcessIdentity>) {
        let unit = &mut self.hosts[index].units[number];
        if unit.root != root {
            // It ended before, and another one is in its place.
            return;
        }
        unit.root = None;
        unit.stopping = false;
        let slot = unit.slot.clone();
        self.at(20, Happening::Scan(index));
        self.answer(index, &slot, Answer::Ended);
    }

    pub(super) fn back_up(&mut self, index: usize, number: usize) {
        let root = self.fresh_identity();
        let machine = &mut self.hosts[index];
        let unit = &mut machine.units[number];
        if unit.root.is_none() && !unit.held && !machine.is_off {
            unit.root = Some(root);
            unit.forced = false;
            unit.loaded = machine.source;
            let delay = self.rng.random_range(100..2_000);
            self.at(delay, Happening::Scan(index));
        }
    }

    pub(super) fn answer(&mut self, index: usize, slot: &SlotId, answer: Answer) {
        let machine = &mut self.hosts[index];
        let now = machine.clock.read(self.now);
        let Some(agent) = machine.agent.as_mut() else { return };
        let wanted = wanted(agent.desired());
        let unit = machine.units.iter().find(|unit| unit.slot == *slot).unwrap();
        match answer {
            Answer::Preflight => {
                let Some(asked) = agent.intent(slot).cloned() else { return };
                let is_right = matches!(asked.purpose, Purpose::Drain(_)) || machine.source == wanted;
                let cleared = Cleared { means: "sim".into(), ends_root: true };
                agent.handle_preflight(&asked, if is_right { Ok(cleared) } else { Err("source".into()) }, now);
            }
            Answer::Stopped => agent.handle_stopped(slot, Ok(()), now),
            Answer::Started => agent.handle_started(slot, Ok(()), now),
            Answer::Ended => agent.handle_ended(slot, now),
            Answer::Held => agent.handle_held(slot, Ok(()), now),
            Answer::NewLife => agent.handle_new_life(slot, "simulated".into(), now),
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
        let now = machine.clock.read(self.now);
        let Some(agent) = machine.agent.as_mut() else { return };
        let desired = agent.desired().apps.get(&self.app).map(|app| app.revision);
        let mut scan = Scan { begun_at: now, full: true, ..Scan::default() };
        let wanted = wanted(agent.desired());
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
