//! The simulated world: what is really up, what really happens, and the laws that must hold.

mod brain;
mod broker;
mod clock;
mod machine;
mod people;

use self::brain::{Brain, LeaseAnswer};
use self::broker::{Broker, Party, Write};
use self::clock::Clock;
use self::machine::{Answer, Machine, Unit};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::rc::Rc;
use unstale_protocol::coordinator::{MaxUnavailable, Outcome, Record as CoordinatorRecord};
use unstale_protocol::fingerprint::Fingerprint;
use unstale_protocol::ids::{AppName, DrainId, Epoch, HostName, Pid, PoolName, ProcessIdentity, SlotId};
use unstale_protocol::message::{Desired, Permit, Upward};

/// What the coordinators talk through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    /// Nobody else can lead.
    Embedded,
    /// Leases with numbers, and writes that are compared with them.
    Redis,
    /// Leases without numbers, and writes that are compared with nothing.
    Amqp,
}

/// How the fleet is built. All but the first are known to be unsafe, and the laws must say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Design {
    Whole,
    /// Nothing is retained, and nothing is said twice.
    EventOnly,
    /// Whatever is written arrives, and agents take what comes.
    NoFencing,
    /// The same, but agents refuse lower reigns.
    EpochOnly,
    /// Permits end at a moment of the wall clock, which differs between hosts.
    WallExpiry,
    /// Who was given a lease once never asks its own clock whether it has ended.
    EndlessLease,
}

/// What goes wrong, in percent of messages or as switches.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fault, and all of them go together")]
pub(crate) struct Faults {
    pub(crate) tier: Tier,
    pub(crate) hosts: usize,
    pub(crate) lost: u32,
    pub(crate) repeated: u32,
    pub(crate) slow: u32,
    /// Agents and coordinators are killed and started again.
    pub(crate) kills: bool,
    /// Coordinators sleep, also between deciding and writing.
    pub(crate) pauses: bool,
    /// Of the writes, how many of a hundred wait for the end of such a sleep.
    pub(crate) stalls: u32,
    /// Two coordinators; with disks of their own, or one for both.
    pub(crate) rivals: Option<bool>,
    /// The broker forgets, goes back and goes away.
    pub(crate) broker: bool,
    /// The broker falls into two halves once, and heals onto one of them.
    pub(crate) splits: bool,
    /// People drain units and give them back.
    pub(crate) drains: bool,
    /// All disks of coordinators and all that the broker held is lost once.
    pub(crate) loses_everything: bool,
    /// Later revisions come while the first is under way.
    pub(crate) revisions: u64,
    /// New code does not start.
    pub(crate) broken_code: bool,
    /// Machines shut down, and come back later.
    pub(crate) shutdowns: bool,
}

impl Faults {
    pub(crate) fn calm() -> Self {
        Self {
            tier: Tier::Embedded,
            hosts: 6,
            lost: 0,
            repeated: 0,
            slow: 0,
            kills: false,
            pauses: false,
            stalls: 1,
            rivals: None,
            broker: false,
            splits: false,
            drains: false,
            loses_everything: false,
            revisions: 1,
            broken_code: false,
            shutdowns: false,
        }
    }

    /// A single coordinator over a bus that loses, repeats, delays and reorders.
    pub(crate) fn one_coordinator() -> Self {
        Self { lost: 10, repeated: 5, slow: 5, kills: true, drains: true, revisions: 3, ..Self::calm() }
    }

    /// Everything that can go wrong in a fleet.
    pub(crate) fn everything(seed: u64) -> Self {
        Self {
            tier: if seed.is_multiple_of(2) { Tier::Redis } else { Tier::Amqp },
            lost: 5,
            pauses: true,
            rivals: Some(!seed.is_multiple_of(3)),
            broker: true,
            loses_everything: seed.is_multiple_of(10),
            ..Self::one_coordinator()
        }
    }
}

/// Faults stop then; some time later everything must have converged.
const FAULTS_END_MS: u64 = 12 * 60_000;
/// Every coordinator has heard by then what the hosts have of the first app.
const POOLS_KNOWN_MS: u64 = 240_000;
const END_MS: u64 = FAULTS_END_MS + 90 * 60_000;
const UNITS_PER_POOL: u32 = 2;
const WRITTEN_EVERY: u64 = 16;

/// How many units may be unavailable at once in all pools together.
pub(crate) const BUDGET: u32 = 2 * UNITS_PER_POOL;

#[derive(Clone, Debug)]
enum Happening {
    /// The periodic scan, which asks for the next one.
    Tick(usize),
    /// A scan that was asked for.
    Scan(usize),
    /// Of a life, and when it was to be.
    HostTimeout(usize, u64, u64),
    BrainTimeout(usize, u64, u64),
    Renew(usize, u64),
    Deliver(Message),
    /// A write that was decided before a pause.
    Written(usize, u64, Write),
    Answer(usize, u64, SlotId, Answer),
    /// The process ends that it names.
    Ended(usize, usize, Option<ProcessIdentity>),
    BackUp(usize, usize),
    Broadcast(u64),
    SourceArrives(usize, u64),
    KillAgent(usize, u64),
    StartAgent(usize),
    ShutDown(usize, u64),
    Boot(usize),
    KillBrain(usize),
    PauseBrain(usize),
    StartBrain(usize),
    BreakBroker,
    Split,
    Heal,
    Drain,
    Undrain,
    LoseEverything,
    /// People look whether all that they said is still wanted.
    MakeUp,
}

#[derive(Clone, Debug)]
enum Message {
    Up(usize, Rc<Upward>),
    /// A report or request on its way to one coordinator.
    UpTo(usize, Rc<Upward>),
    Desired(usize, Rc<Desired>),
    Permit(usize, Rc<Permit>),
    Write(usize, u64, Write),
    Leased(usize, u64, LeaseAnswer),
}

pub(crate) struct World {
    rng: ChaCha8Rng,
    faults: Faults,
    design: Design,
    now: u64,
    order: u64,
    /// What is to happen, by its moment and the order in which it was decided.
    queue: BTreeMap<(u64, u64), Happening>,
    app: AppName,
    brains: Vec<Brain>,
    lives: u64,
    disks: Vec<Vec<CoordinatorRecord>>,
    broker: Broker,
    hosts: Vec<Machine>,
    /// The newest contents that people have announced; what they hold is a number here.
    announced: u64,
    /// The highest reign that has granted anything.
    granted_by: Epoch,
    next_pid: u32,
    stops: u32,
    aborted: bool,
    asked_at: u64,
    /// Drains that people have taken back, and those that were to go beyond the budget.
    taken_back: BTreeSet<DrainId>,
    forced: BTreeSet<DrainId>,
    broken: Option<String>,
}

fn digest(contents: u64) -> Fingerprint {
    Fingerprint([u8::try_from(contents).unwrap_or(0); 32])
}

fn pool(number: usize) -> PoolName {
    PoolName::new(format!("shop/celery/{}", number % 2)).unwrap()
}

impl World {
    pub(crate) fn new(seed: u64, faults: Faults, design: Design) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let hosts = if faults.hosts > 6 { faults.hosts } else { rng.random_range(1..=faults.hosts) };
        let separate = faults.rivals == Some(true);
        let brains = if faults.rivals.is_some() { 2 } else { 1 };
        let brains: Vec<Brain> =
            (0..brains).map(|index| Brain::new(if separate { index } else { 0 }, Clock::random(0, &mut rng))).collect();
        let mut world = Self {
            faults,
            design,
            now: 0,
            order: 0,
            queue: BTreeMap::new(),
            app: AppName::new("shop").unwrap(),
            disks: vec![Vec::new(); brains.len()],
            brains,
            lives: 0,
            broker: Broker::default(),
            hosts: Vec::new(),
            announced: 0,
            granted_by: Epoch(0),
            next_pid: 100,
            stops: 0,
            aborted: false,
            asked_at: 0,
            taken_back: BTreeSet::new(),
            forced: BTreeSet::new(),
            broken: None,
            rng,
        };
        for index in 0..hosts {
            let units = world.rng.random_range(1..=4);
            let units = (0..units).map(|number| world.unit(index, number)).collect();
            let clock = Clock::random(0, &mut world.rng);
            let skew = world.rng.random_range(-15_000..=15_000);
            world.hosts.push(Machine::new(HostName::new(format!("host-{index}")).unwrap(), units, clock, skew));
            world.start_agent(index);
            world.at(index as u64 * 10, Happening::Tick(index));
        }
        for index in 0..world.brains.len() {
            world.at(1 + index as u64 * 4_000, Happening::StartBrain(index));
        }
        world.schedule();
        world
    }

    /// Writes down what people do and what goes wrong.
    fn schedule(&mut self) {
        for revision in 1..=self.faults.revisions {
            let wait = if revision == 1 { 100_000 } else { self.rng.random_range(1_000..150_000) };
            self.at(wait * revision, Happening::Broadcast(revision));
        }
        let several = |world: &mut Self, most: u32, happening: &dyn Fn(&mut Self) -> Happening| {
            for _ in 0..world.rng.random_range(0..most) {
                let at = world.rng.random_range(0..FAULTS_END_MS);
                let happening = happening(world);
                world.at(at, happening);
            }
        };
        let brain = |world: &mut Self| world.rng.random_range(0..world.brains.len());
        if self.faults.kills {
            let most = u32::try_from(self.hosts.len()).unwrap().max(6);
            several(self, most, &|world| {
                let victim = world.rng.random_range(0..world.hosts.len());
                let longest = if world.rng.random_ratio(1, 8) { 15 * 60_000 } else { 120_000 };
                Happening::KillAgent(victim, world.rng.random_range(100..longest))
            });
            several(self, 5, &|world| Happening::KillBrain(brain(world)));
        }
        if self.faults.pauses {
            several(self, 8, &|world| Happening::PauseBrain(brain(world)));
        }
        if self.faults.broker {
            several(self, 5, &|_| Happening::BreakBroker);
        }
        if self.faults.splits {
            // An app that is announced for the first time in one half, and in the other one as well, is two: neither
            // leader can know what the other one's hosts have of it.
            let at = self.rng.random_range(POOLS_KNOWN_MS..FAULTS_END_MS);
            self.at(at, Happening::Split);
        }
        if self.faults.drains {
            several(self, 4, &|_| Happening::Drain);
            several(self, 3, &|_| Happening::Undrain);
        }
        if self.faults.shutdowns {
            several(self, 8, &|world| {
                let pause = world.rng.random_range(5_000..8 * 60_000);
                Happening::ShutDown(world.rng.random_range(0..world.hosts.len()), pause)
            });
        }
        if self.faults.loses_everything {
            let at = self.rng.random_range(200_000..FAULTS_END_MS);
            self.at(at, Happening::LoseEverything);
        }
        if self.faults.tier != Tier::Embedded || self.faults.drains {
            self.at(FAULTS_END_MS, Happening::MakeUp);
        }
    }

    fn unit(&mut self, host: usize, number: usize) -> Unit {
        let slot = SlotId::new(format!("celery/systemd/w{host}-{number}.service")).unwrap();
        Unit::new(slot, pool(number), self.fresh_identity())
    }

    fn fresh_identity(&mut self) -> ProcessIdentity {
        self.next_pid += 1;
        ProcessIdentity { pid: Pid(self.next_pid), start_ticks: self.now, pid_namespace: 1 }
    }

    fn at(&mut self, delay: u64, happening: Happening) {
        self.order += 1;
        self.queue.insert((self.now + delay, self.order), happening);
    }

    fn is_faulty(&self) -> bool {
        self.now < FAULTS_END_MS
    }

    fn broke(&mut self, law: &str) {
        let now = self.now;
        self.broken.get_or_insert_with(|| format!("at {now} ms {law}"));
    }

    /// What is said is one value that all hear. Each so many times it is written and read as on a real bus.
    fn said<T: Serialize + PartialEq + Debug>(
        &self,
        words: T,
        read: impl FnOnce(&str) -> serde_json::Result<T>,
    ) -> Rc<T> {
        if self.order.is_multiple_of(WRITTEN_EVERY) {
            assert_eq!(read(&serde_json::to_string(&words).unwrap()).unwrap(), words);
        }
        Rc::new(words)
    }

    fn send(&mut self, message: &Message) {
        let (lost, repeated, slow) =
            if self.is_faulty() { (self.faults.lost, self.faults.repeated, self.faults.slow) } else { (0, 0, 0) };
        if self.broker.is_down(self.now) || self.rng.random_ratio(lost, 100) {
            return;
        }
        for _ in 0..=u32::from(self.rng.random_ratio(repeated, 100)) {
            let is_slow = self.rng.random_ratio(slow, 100);
            let delay = if is_slow { self.rng.random_range(1_000..9_000) } else { self.rng.random_range(1..50) };
            self.at(delay, Happening::Deliver(message.clone()));
        }
    }

    fn deliver(&mut self, message: Message) {
        let sleeps = match &message {
            Message::UpTo(index, _) | Message::Leased(index, ..) => self.sleeps(*index),
            _ => None,
        };
        if let Some(rest) = sleeps {
            return self.at(rest, Happening::Deliver(message));
        }
        match message {
            Message::Up(host, upward) => {
                for index in 0..self.brains.len() {
                    // Out of a queue they go to who holds the lock, and to nobody else.
                    let is_told =
                        self.faults.tier != Tier::Amqp || self.broker.leases_to((index, self.brains[index].life));
                    if is_told && self.broker.joins(Party::Host(host), Party::Brain(index)) {
                        self.send(&Message::UpTo(index, Rc::clone(&upward)));
                    }
                }
            }
            Message::UpTo(index, upward) => self.hear(index, Rc::unwrap_or_clone(upward)),
            Message::Desired(index, desired) => self.desire(index, &desired),
            Message::Permit(index, permit) => self.permit(index, Rc::unwrap_or_clone(permit)),
            Message::Write(index, life, write) => self.written(index, life, &write),
            Message::Leased(index, life, answer) => self.leased(index, life, &answer),
        }
    }

    fn happen(&mut self, happening: Happening) {
        let sleeps = match &happening {
            Happening::BrainTimeout(index, ..) | Happening::Renew(index, _) => self.sleeps(*index),
            _ => None,
        };
        if let Some(rest) = sleeps {
            return self.at(rest, happening);
        }
        match happening {
            Happening::Tick(index) => {
                self.scan(index);
                self.at(machine::SCAN_INTERVAL_MS, Happening::Tick(index));
            }
            Happening::Scan(index) => self.scan(index),
            Happening::HostTimeout(index, life, at) => self.host_timeout(index, life, at),
            Happening::BrainTimeout(index, life, at) => self.brain_timeout(index, life, at),
            Happening::Renew(index, life) => self.renew(index, life),
            Happening::Deliver(message) => self.deliver(message),
            Happening::Written(index, life, write) => {
                self.write(index, life, write);
                self.pump_brain(index);
            }
            Happening::Answer(index, life, slot, answer) => {
                if self.hosts[index].life == life {
                    self.answer(index, &slot, answer);
                }
            }
            Happening::Ended(index, number, root) => self.ended(index, number, root),
            Happening::BackUp(index, number) => self.back_up(index, number),
            Happening::Broadcast(contents) => self.broadcast(contents),
            Happening::SourceArrives(index, contents) => {
                let machine = &mut self.hosts[index];
                machine.source = machine.source.max(contents);
                self.at(50, Happening::Scan(index));
            }
            Happening::KillAgent(index, pause) => {
                if self.hosts[index].agent.take().is_some() {
                    self.at(pause, Happening::StartAgent(index));
                }
            }
            Happening::StartAgent(index) => self.start_agent(index),
            Happening::ShutDown(index, pause) => self.shut_down(index, pause),
            Happening::Boot(index) => self.boot(index),
            Happening::KillBrain(index) => self.kill_brain(index),
            Happening::PauseBrain(index) => self.pause_brain(index),
            Happening::StartBrain(index) => self.start_brain(index),
            Happening::BreakBroker => self.break_broker(),
            Happening::Split => self.split(),
            Happening::Heal => self.heal(),
            Happening::Drain => self.drain(),
            Happening::Undrain => self.undrain(false),
            Happening::LoseEverything => {
                self.lose_everything();
                self.at(300_000, Happening::MakeUp);
            }
            Happening::MakeUp => {
                self.make_up();
                if !self.is_faulty() {
                    self.undrain(true);
                    self.at(60_000, Happening::MakeUp);
                }
            }
        }
    }

    /// A unit has just been told to stop: only that takes one away. What a machine takes with it was taken by nobody.
    fn check_budget(&mut self) {
        let mut away: BTreeMap<&PoolName, (u32, u32)> = BTreeMap::new();
        for (host, unit) in self.hosts.iter().flat_map(|host| host.units.iter().map(move |unit| (host, unit))) {
            let (down, total) = away.entry(&unit.pool).or_default();
            *total += 1;
            *down += u32::from((unit.root.is_none() || unit.stopping) && !unit.forced && !host.is_off);
        }
        let exceeded = away.into_iter().find_map(|(pool, (down, total))| {
            let limit = MaxUnavailable::Units(UNITS_PER_POOL).of(total);
            (down > limit).then(|| format!("{down} units of {pool} are unavailable; {limit} are allowed"))
        });
        if let Some(law) = exceeded {
            self.broke(&law);
        }
    }

    fn advance(&mut self) -> Result<bool, String> {
        let Some(((at, _), happening)) = self.queue.pop_first() else { return Ok(false) };
        self.now = at;
        self.happen(happening);
        self.broken.take().map_or(Ok(true), Err)
    }

    fn outcome(&self) -> Option<Outcome> {
        let brain = &self.brains[self.leader()?];
        let machine = brain.machine.as_ref()?;
        let (_, revision) = machine.apps().find(|(name, _)| **name == self.app)?;
        let status = machine.status(&self.app, revision, brain.clock.read(self.now))?;
        (status.record.manifest == digest(self.announced)).then_some(status.outcome)
    }

    /// Tells, every few seconds, whether it is time to ask how the rollout stands.
    fn is_time_to_ask(&mut self) -> bool {
        let has_faults = self.faults.kills || self.faults.broker;
        let is_quiet = self.announced == self.faults.revisions && !(self.is_faulty() && has_faults);
        let is_time = is_quiet && self.now >= self.asked_at + 2_000;
        if is_time {
            self.asked_at = self.now;
        }
        is_time
    }

    pub(crate) fn run(mut self) -> Result<(), String> {
        while self.now < END_MS && self.advance()? {
            if !self.is_time_to_ask() {
                continue;
            }
            self.check_standbys()?;
            if self.outcome() == Some(Outcome::Converged) {
                self.check_converged()?;
                if self.down().is_none() {
                    return Ok(());
                }
            }
        }
        let down = self.down().map(|unit| &unit.slot);
        Err(format!("not converged in time: {:?}, {:?} leads, {down:?} is down", self.outcome(), self.leader()))
    }

    /// Who stands by proves nothing that it does not hear, calls nobody silent for that, and says *converged* only where that
    /// is true.
    fn check_standbys(&self) -> Result<(), String> {
        for (index, brain) in self.brains.iter().enumerate() {
            let (Some(machine), now) = (&brain.machine, brain.clock.read(self.now)) else { continue };
            let revision = machine.apps().find(|(name, _)| **name == self.app).map(|(_, revision)| revision);
            let status = revision.and_then(|revision| machine.status(&self.app, revision, now));
            let is_asked = self.sleeps(index).is_none() && !machine.leads(now);
            let Some(status) = status.filter(|_| is_asked) else { continue };
            if self.faults.tier == Tier::Amqp {
                let is_end = !matches!(status.outcome, Outcome::InProgress(_) | Outcome::Superseded | Outcome::Aborted);
                if is_end || status.units.converged > 0 || status.hosts.iter().any(|host| host.silent) {
                    return Err(format!("coordinator {index} hears nothing and says {:?}", status.outcome));
                }
            } else if status.record.manifest == digest(self.announced) && status.outcome == Outcome::Converged {
                self.check_converged()?;
            }
        }
        Ok(())
    }

    /// *Converged* was said: it must be true of every unit in the world.
    fn check_converged(&self) -> Result<(), String> {
        for unit in self.hosts.iter().flat_map(|host| &host.units) {
            if unit.root.is_some() && unit.loaded != self.announced {
                return Err(format!("said to be converged, but {} holds {}", unit.slot, unit.loaded));
            }
        }
        Ok(())
    }

    fn down(&self) -> Option<&Unit> {
        self.hosts.iter().flat_map(|host| &host.units).find(|unit| unit.root.is_none())
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
        let index = self.leader().ok_or("no coordinator")?;
        let (app, now) = (self.app.clone(), self.brains[index].clock.read(self.now));
        let machine = self.brains[index].machine.as_mut().ok_or("no coordinator")?;
        machine.handle_abort(&app, None, "simulation", now).map_err(|error| error.to_string())?;
        self.pump_brain(index);
        let settled = self.now + 1_000;
        while self.now < settled && self.advance()? {}
        self.aborted = true;
        while self.now < settled + 20 * 60_000 && self.advance()? {}
        if self.outcome() != Some(Outcome::Aborted) {
            return Err(format!("{:?}", self.outcome()));
        }
        match self.down() {
            Some(unit) => Err(format!("{} was left down", unit.slot)),
            None => Ok(()),
        }
    }
}
