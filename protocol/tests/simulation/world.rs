//! The simulated world: what is really up, what really happens, and the laws that must hold.

mod machine;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use unstale_protocol::coordinator::{
    Action as CoordinatorAction, Broadcast, Coordinator, CoordinatorPolicy, MaxUnavailable, Outcome,
    Record as CoordinatorRecord, Terms,
};
use unstale_protocol::fingerprint::{Fingerprint, Salt};
use unstale_protocol::host::{Host, HostPolicy, Record as HostRecord};
use unstale_protocol::ids::{AppName, HostName, Incarnation, Pid, PoolName, ProcessIdentity, Revision, SlotId};
use unstale_protocol::message::{Desired, Permit, Upward};
use unstale_protocol::time::Moment;

/// What goes wrong, in percent of messages or as switches.
#[derive(Clone, Debug)]
pub(crate) struct Faults {
    pub(crate) lost: u32,
    pub(crate) repeated: u32,
    pub(crate) slow: u32,
    /// Agents and the coordinator are killed and started again.
    pub(crate) kills: bool,
    /// A second and third revision come while the first is under way.
    pub(crate) revisions: u64,
    /// New code does not start.
    pub(crate) broken_code: bool,
}

impl Faults {
    pub(crate) fn calm() -> Self {
        Self { lost: 0, repeated: 0, slow: 0, kills: false, revisions: 1, broken_code: false }
    }

    pub(crate) fn everything() -> Self {
        Self { lost: 10, repeated: 5, slow: 5, kills: true, revisions: 3, broken_code: false }
    }
}

/// Faults stop then; some time later everything must have converged.
const FAULTS_END_MS: u64 = 8 * 60_000;
const END_MS: u64 = FAULTS_END_MS + 40 * 60_000;
const SCAN_INTERVAL_MS: u64 = 2_000;
const MAX_UNAVAILABLE: u32 = 2;

/// How many units may be unavailable at once in all pools together.
pub(crate) const BUDGET: u32 = 2 * MAX_UNAVAILABLE;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    /// The periodic scan, which asks for the next one.
    Tick(usize),
    /// A scan that was asked for.
    Scan(usize),
    HostTimeout(usize),
    CoordinatorTimeout,
    Deliver(Message),
    Answer(usize, u64, SlotId, Answer),
    Ended(usize, usize),
    BackUp(usize, usize),
    Broadcast,
    SourceArrives(usize, u64),
    KillAgent(usize),
    StartAgent(usize),
    KillCoordinator,
    StartCoordinator,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Message {
    Up(Vec<u8>),
    Desired(usize, Vec<u8>),
    Permit(usize, Vec<u8>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    Preflight,
    Stopped,
    Started,
    Verified,
    Ended,
}

#[derive(Debug)]
struct Unit {
    slot: SlotId,
    pool: PoolName,
    /// The process, while one is up.
    root: Option<ProcessIdentity>,
    loaded: u64,
    /// Told to stop; ends by itself.
    stopping: bool,
    /// Was up and may be brought back.
    down_by_us: bool,
    /// Stops per revision that was wanted at the time.
    stops: BTreeMap<u64, u32>,
}

#[derive(Debug)]
struct Machine {
    name: HostName,
    agent: Option<Host>,
    life: u64,
    started_at: u64,
    disk: Vec<HostRecord>,
    source: u64,
    units: Vec<Unit>,
    next_timeout: Option<u64>,
}

pub(crate) struct World {
    rng: ChaCha8Rng,
    faults: Faults,
    now: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    app: AppName,
    coordinator: Option<Coordinator>,
    coordinator_started_at: u64,
    coordinator_disk: Vec<CoordinatorRecord>,
    coordinator_timeout: Option<u64>,
    hosts: Vec<Machine>,
    announced: u64,
    retained: Option<Vec<u8>>,
    next_pid: u32,
    stops: u32,
    aborted: bool,
    asked_at: u64,
}

fn moment(now: u64, started_at: u64) -> Moment {
    Moment(now - started_at)
}

fn digest(revision: u64) -> Fingerprint {
    Fingerprint([u8::try_from(revision).unwrap_or(0); 32])
}

impl World {
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let app = AppName::new("shop").unwrap();
        let hosts = rng.random_range(1..=6);
        let mut world = Self {
            faults,
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            app,
            coordinator: None,
            coordinator_started_at: 0,
            coordinator_disk: Vec::new(),
            coordinator_timeout: None,
            hosts: Vec::new(),
            announced: 0,
            retained: None,
            next_pid: 100,
            stops: 0,
            aborted: false,
            asked_at: 0,
            rng,
        };
        for index in 0..hosts {
            let units = world.rng.random_range(1..=4);
            let units = (0..units).map(|number| world.unit(index, number)).collect();
            world.hosts.push(Machine {
                name: HostName::new(format!("host-{index}")).unwrap(),
                agent: None,
                life: 0,
                started_at: 0,
                disk: Vec::new(),
                source: 0,
                units,
                next_timeout: None,
            });
            world.start_agent(index);
            world.at(index as u64 * 10, Happening::Tick(index));
        }
        world.start_coordinator();
        for revision in 1..=world.faults.revisions {
            let wait = if revision == 1 { 100_000 } else { world.rng.random_range(1_000..120_000) };
            world.at(wait * revision, Happening::Broadcast);
        }
        if world.faults.kills {
            for _ in 0..world.rng.random_range(0..6) {
                let at = world.rng.random_range(0..FAULTS_END_MS);
                let victim = world.rng.random_range(0..hosts);
                world.at(at, Happening::KillAgent(victim));
            }
            for _ in 0..world.rng.random_range(0..4) {
                let at = world.rng.random_range(0..FAULTS_END_MS);
                world.at(at, Happening::KillCoordinator);
            }
        }
        world
    }

    fn unit(&mut self, host: usize, number: usize) -> Unit {
        let pool = PoolName::new(format!("shop/celery/{}", number % 2)).unwrap();
        Unit {
            slot: SlotId::new(format!("celery/systemd/w{host}-{number}.service")).unwrap(),
            pool,
            root: Some(self.fresh_identity()),
            loaded: 0,
            stopping: false,
            down_by_us: false,
            stops: BTreeMap::new(),
        }
    }

    fn fresh_identity(&mut self) -> ProcessIdentity {
        self.next_pid += 1;
        ProcessIdentity { pid: Pid(self.next_pid), start_ticks: self.now, pid_namespace: 1 }
    }

    fn at(&mut self, delay: u64, happening: Happening) {
        self.order += 1;
        self.queue.push(Reverse((self.now + delay, self.order, happening)));
    }

    fn policy() -> CoordinatorPolicy {
        let pools = (0..2).map(|number| {
            (PoolName::new(format!("shop/celery/{number}")).unwrap(), MaxUnavailable::Units(MAX_UNAVAILABLE))
        });
        CoordinatorPolicy { pools: pools.collect(), ..CoordinatorPolicy::default() }
    }

    fn start_coordinator(&mut self) {
        self.coordinator_started_at = self.now;
        self.coordinator = Some(Coordinator::new(Self::policy(), self.coordinator_disk.clone(), Moment(0)));
        self.pump_coordinator();
    }

    fn start_agent(&mut self, index: usize) {
        let seed = self.rng.random();
        let now = self.now;
        let machine = &mut self.hosts[index];
        machine.life += 1;
        machine.started_at = now;
        let incarnation =
            Incarnation { counter: machine.life, random: Salt([u8::try_from(machine.life % 256).unwrap(); 16]) };
        let mut agent =
            Host::new(machine.name.clone(), incarnation, HostPolicy::default(), machine.disk.clone(), seed, Moment(0));
        agent.handle_connected(Moment(0));
        machine.agent = Some(agent);
        if let Some(bytes) = self.retained.clone() {
            self.send(&Message::Desired(index, bytes));
        }
        self.pump_host(index);
    }

    fn faulty(&self) -> bool {
        self.now < FAULTS_END_MS
    }

    fn send(&mut self, message: &Message) {
        let (lost, repeated, slow) =
            if self.faulty() { (self.faults.lost, self.faults.repeated, self.faults.slow) } else { (0, 0, 0) };
        if self.rng.random_ratio(lost, 100) {
            return;
        }
        for _ in 0..=u32::from(self.rng.random_ratio(repeated, 100)) {
            let is_slow = self.rng.random_ratio(slow, 100);
            let delay = if is_slow { self.rng.random_range(1_000..9_000) } else { self.rng.random_range(1..50) };
            self.at(delay, Happening::Deliver(message.clone()));
        }
    }

    fn pump_coordinator(&mut self) {
        while let Some(action) = self.coordinator.as_mut().and_then(Coordinator::poll_action) {
            match action {
                CoordinatorAction::Store(records) => self.coordinator_disk.extend(records),
                CoordinatorAction::Publish(desired) => {
                    let bytes = serde_json::to_vec(&desired).unwrap();
                    self.retained = Some(bytes.clone());
                    for index in 0..self.hosts.len() {
                        self.send(&Message::Desired(index, bytes.clone()));
                    }
                }
                CoordinatorAction::Grant(permit) => {
                    let index = self.hosts.iter().position(|host| host.name == permit.host).unwrap();
                    self.send(&Message::Permit(index, serde_json::to_vec(&permit).unwrap()));
                }
            }
        }
        let due = self.coordinator.as_ref().and_then(Coordinator::poll_timeout);
        if let Some(at) = due.map(|at| at.0 + self.coordinator_started_at)
            && self.coordinator_timeout != Some(at)
        {
            assert!(at > self.now, "the driver would spin: {at} at {}", self.now);
            self.coordinator_timeout = Some(at);
            self.at(at - self.now, Happening::CoordinatorTimeout);
        }
    }

    fn deliver(&mut self, message: &Message) {
        match message {
            Message::Up(bytes) => {
                let now = moment(self.now, self.coordinator_started_at);
                let Some(coordinator) = self.coordinator.as_mut() else { return };
                match serde_json::from_slice(bytes).unwrap() {
                    Upward::Report(report) => coordinator.handle_report(&report, now),
                    Upward::Ask(ask) => coordinator.handle_ask(&ask, now),
                    Upward::Unknown => unreachable!(),
                }
                self.pump_coordinator();
            }
            Message::Desired(index, bytes) => {
                let machine = &mut self.hosts[*index];
                let now = moment(self.now, machine.started_at);
                let Some(agent) = machine.agent.as_mut() else { return };
                let desired: Desired = serde_json::from_slice(bytes).unwrap();
                agent.handle_desired(&desired, now);
                self.pump_host(*index);
            }
            Message::Permit(index, bytes) => {
                let machine = &mut self.hosts[*index];
                let now = moment(self.now, machine.started_at);
                let Some(agent) = machine.agent.as_mut() else { return };
                let permit: Permit = serde_json::from_slice(bytes).unwrap();
                agent.handle_permit(&permit, now);
                self.pump_host(*index);
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Tick(index) => {
                self.scan(index);
                self.at(SCAN_INTERVAL_MS, Happening::Tick(index));
            }
            Happening::Scan(index) => self.scan(index),
            Happening::HostTimeout(index) => {
                let machine = &mut self.hosts[index];
                machine.next_timeout = None;
                let now = moment(self.now, machine.started_at);
                if let Some(agent) = machine.agent.as_mut() {
                    agent.handle_timeout(now);
                    let next = agent.poll_timeout();
                    assert!(next.is_none_or(|next| next > now), "the driver would spin: {next:?} at {now:?}");
                }
                self.pump_host(index);
            }
            Happening::CoordinatorTimeout => {
                self.coordinator_timeout = None;
                let now = moment(self.now, self.coordinator_started_at);
                if let Some(coordinator) = self.coordinator.as_mut() {
                    coordinator.handle_timeout(now);
                }
                self.pump_coordinator();
            }
            Happening::Deliver(message) => self.deliver(&message),
            Happening::Answer(index, life, slot, answer) => {
                if self.hosts[index].life == life {
                    self.answer(index, &slot, answer);
                }
            }
            Happening::Ended(index, number) => {
                let unit = &mut self.hosts[index].units[number];
                unit.root = None;
                unit.stopping = false;
                let slot = unit.slot.clone();
                self.answer(index, &slot, Answer::Ended);
            }
            Happening::BackUp(index, number) => {
                let root = self.fresh_identity();
                let machine = &mut self.hosts[index];
                let unit = &mut machine.units[number];
                if unit.root.is_none() {
                    unit.root = Some(root);
                    unit.loaded = machine.source;
                    unit.down_by_us = false;
                }
            }
            Happening::Broadcast => self.broadcast(),
            Happening::SourceArrives(index, revision) => {
                let machine = &mut self.hosts[index];
                machine.source = machine.source.max(revision);
                self.at(50, Happening::Scan(index));
            }
            Happening::KillAgent(index) => {
                if self.hosts[index].agent.take().is_some() {
                    let pause = self.rng.random_range(100..120_000);
                    self.at(pause, Happening::StartAgent(index));
                }
            }
            Happening::StartAgent(index) => self.start_agent(index),
            Happening::KillCoordinator => {
                if self.coordinator.take().is_some() {
                    let pause = self.rng.random_range(100..60_000);
                    self.at(pause, Happening::StartCoordinator);
                }
            }
            Happening::StartCoordinator => self.start_coordinator(),
        }
    }

    fn broadcast(&mut self) {
        if self.coordinator.is_none() {
            self.at(5_000, Happening::Broadcast);
            return;
        }
        self.announced += 1;
        let revision = self.announced;
        let broadcast = Broadcast {
            app: self.app.clone(),
            manifest: digest(revision),
            fingerprint: digest(revision),
            terms: Terms::default(),
            asked_by: "simulation".into(),
            message: None,
            meta: BTreeMap::new(),
            at_ms: 0,
        };
        let now = moment(self.now, self.coordinator_started_at);
        if let Some(coordinator) = self.coordinator.as_mut() {
            let accepted = coordinator.handle_broadcast(&broadcast, now).unwrap();
            assert_eq!(accepted.revision, Revision(revision));
        }
        self.pump_coordinator();
        for index in 0..self.hosts.len() {
            let pause = self.rng.random_range(0..30_000);
            self.at(pause, Happening::SourceArrives(index, revision));
        }
    }

    fn check_laws(&self) -> Result<(), String> {
        let mut down: BTreeMap<&PoolName, u32> = BTreeMap::new();
        let mut total: BTreeMap<&PoolName, u32> = BTreeMap::new();
        for unit in self.hosts.iter().flat_map(|host| &host.units) {
            *total.entry(&unit.pool).or_default() += 1;
            *down.entry(&unit.pool).or_default() += u32::from(unit.root.is_none() || unit.stopping);
        }
        for (pool, down) in down {
            let limit = MaxUnavailable::Units(MAX_UNAVAILABLE).of(total[pool]);
            if down > limit {
                return Err(format!("at {} ms {down} units of {pool} are unavailable; {limit} are allowed", self.now));
            }
        }
        for unit in self.hosts.iter().flat_map(|host| &host.units) {
            if let Some((revision, stops)) = unit.stops.iter().find(|(_, stops)| **stops > 1) {
                return Err(format!("{} was stopped {stops} times for revision {revision}", unit.slot));
            }
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<bool, String> {
        let Some(Reverse((at, _, happening))) = self.queue.pop() else { return Ok(false) };
        self.now = at;
        self.happen(happening);
        self.check_laws()?;
        Ok(true)
    }

    fn outcome(&self) -> Option<Outcome> {
        let now = moment(self.now, self.coordinator_started_at);
        let status = self.coordinator.as_ref()?.status(&self.app, Revision(self.announced), now)?;
        Some(status.outcome)
    }

    /// Tells, at most once a second, whether it is time to ask how the rollout stands.
    fn is_time_to_ask(&mut self) -> bool {
        let is_quiet = self.announced == self.faults.revisions && !(self.faulty() && self.faults.kills);
        let is_time = is_quiet && self.now >= self.asked_at + 1_000;
        if is_time {
            self.asked_at = self.now;
        }
        is_time
    }

    pub(crate) fn run(mut self) -> Result<(), String> {
        while self.now < END_MS && self.advance()? {
            if self.is_time_to_ask() && self.outcome() == Some(Outcome::Converged) {
                return self.check_converged();
            }
        }
        Err(format!("not converged in time: {:?}", self.outcome()))
    }

    /// *Converged* was said: it must be true of every unit in the world.
    fn check_converged(&self) -> Result<(), String> {
        for unit in self.hosts.iter().flat_map(|host| &host.units) {
            if unit.root.is_some() && unit.loaded != self.announced {
                return Err(format!("said to be converged, but {} holds revision {}", unit.slot, unit.loaded));
            }
        }
        Ok(())
    }

    pub(crate) fn run_until_halted(&mut self) -> Result<u32, String> {
        while self.now < END_MS && self.advance()? {
            if self.is_time_to_ask() && matches!(self.outcome(), Some(Outcome::Halted(_))) {
                return Ok(self.stops);
            }
        }
        Err(format!("not halted: {:?}", self.outcome()))
    }

    pub(crate) fn run_with_abort(mut self) -> Result<(), String> {
        let abort_at = 100_000 + self.rng.random_range(100..60_000);
        while self.now < abort_at && self.advance()? {}
        let coordinator = self.coordinator.as_mut().ok_or("no coordinator")?;
        let now = moment(self.now, self.coordinator_started_at);
        coordinator.handle_abort(&self.app, None, "simulation", now).map_err(|error| error.to_string())?;
        self.pump_coordinator();
        let settled = self.now + 1_000;
        while self.now < settled && self.advance()? {}
        self.aborted = true;
        while self.now < settled + 20 * 60_000 && self.advance()? {}
        if self.outcome() != Some(Outcome::Aborted) {
            return Err(format!("{:?}", self.outcome()));
        }
        match self.hosts.iter().flat_map(|host| &host.units).find(|unit| unit.root.is_none()) {
            Some(unit) => Err(format!("{} was left down", unit.slot)),
            None => Ok(()),
        }
    }
}
