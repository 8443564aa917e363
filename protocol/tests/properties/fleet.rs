//! A coordinator between agents that say all sorts of things, and what the rules allow it at each step.
//!
//! The rules stand here a second time, written down from the design and not from the machine. Every decision of
//! the machine is held against them; what differs is kept with the law that it breaks.

#[path = "fleet/agent.rs"]
mod agent;
#[path = "fleet/rules.rs"]
mod rules;

use self::agent::{Agent, Standing, Unit, identity};
use crate::coordinator::Input;
use std::collections::{BTreeMap, BTreeSet};
use unstale_protocol::coordinator::{
    Action, Broadcast, Coordinator, CoordinatorPolicy, DrainRecord, Leadership, Lease, MaxUnavailable, PermitRecord,
    Record, Terms,
};
use unstale_protocol::fingerprint::{Fingerprint, Salt};
use unstale_protocol::ids::{AppName, Epoch, Generation, HostName, Incarnation, PoolName, Revision, SlotId, Version};
use unstale_protocol::message::{Ask, Desired, Mode, Nonce, Permit, Purpose, Report, Upward, Want};
use unstale_protocol::time::Moment;
use unstale_protocol::verdict::Verdict;

pub(crate) const HOSTS: usize = 3;
pub(crate) const SLOTS: usize = 2;
pub(crate) const APPS: [&str; 2] = ["shop", "desk"];

/// What the design promises; each is a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Law {
    DiskFirst,
    YoungRequest,
    RightAgent,
    Takeover,
    Lease,
    LostFleet,
    Budget,
    Canary,
    Mode,
    Freed,
    Withheld,
    Heard,
    Desired,
    Verdict,
    Named,
    Spin,
}

pub(crate) fn app(index: usize) -> AppName {
    AppName::new(APPS[index % APPS.len()]).unwrap()
}

pub(crate) fn host(index: usize) -> HostName {
    HostName::new(format!("host-{}", index % HOSTS)).unwrap()
}

pub(crate) fn slot(index: usize) -> SlotId {
    SlotId::new(format!("celery/systemd/{}.service", index % SLOTS)).unwrap()
}

/// The first slot is in one pool, the second in two.
fn pools(index: usize) -> BTreeSet<PoolName> {
    (0..=index % SLOTS).map(|number| PoolName::new(format!("pool/{number}")).unwrap()).collect()
}

/// The first slot belongs to one app, the second to both.
fn apps(index: usize) -> impl Iterator<Item = AppName> {
    (0..=index % SLOTS).map(app)
}

/// More than most fleets here have, so that the last unit is what the rules must spare; and a small one.
fn limits() -> BTreeMap<PoolName, MaxUnavailable> {
    [3, 1]
        .into_iter()
        .enumerate()
        .map(|(number, units)| (PoolName::new(format!("pool/{number}")).unwrap(), MaxUnavailable::Units(units)))
        .collect()
}

fn digest(number: u8) -> Fingerprint {
    Fingerprint([number; 32])
}

/// What the rules remember.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is known or not, whatever the others are")]
struct Book {
    known: BTreeMap<HostName, Incarnation>,
    totals: BTreeMap<HostName, BTreeMap<PoolName, u32>>,
    left: BTreeSet<HostName>,
    heard: BTreeMap<HostName, (Report, u64)>,
    /// Heard since the last time the epoch was raised.
    heard_in_reign: BTreeSet<HostName>,
    /// When a second agent of a name was heard last.
    doubled: BTreeMap<HostName, u64>,
    permits: BTreeMap<(HostName, SlotId), PermitRecord>,
    asks: BTreeMap<(HostName, SlotId), (Ask, Want, u64)>,
    verified: BTreeMap<(AppName, Revision, PoolName), u32>,
    canaries: BTreeMap<(AppName, Revision), u32>,
    modes: BTreeMap<AppName, (Revision, Mode, u8)>,
    /// When the lease ends, where there is one; none where nobody else can lead.
    lease: Option<u64>,
    /// A report showed a reign that is not known here while it stood by.
    behind: bool,
    reign_at: u64,
    started_at: u64,
    /// When it began to lead.
    led_since: u64,
    /// It began with a list of hosts that was whole.
    knew_hosts: bool,
    /// The list of hosts is whole for the next life.
    whole: bool,
    lost: bool,
    stated: Option<u32>,
    /// Those that had left by then.
    left_when_stated: BTreeSet<HostName>,
}

pub(crate) struct Fleet {
    now: u64,
    policy: CoordinatorPolicy,
    machine: Coordinator,
    disk: Vec<Record>,
    agents: Vec<Agent>,
    said: Vec<Upward>,
    book: Book,
    version: Version,
    pub(crate) granted: u32,
    pub(crate) broken: Vec<(Law, String)>,
}

impl Fleet {
    /// `foreign`: the last agent has accepted the word of another coordinator, or of one whose disk was lost.
    pub(crate) fn new(configured: bool, foreign: bool, leadership: Leadership) -> Self {
        let policy = CoordinatorPolicy {
            leadership,
            life: Salt([9; 16]),
            pools: limits(),
            expected_hosts: configured.then(|| host(0)).into_iter().collect(),
            ..CoordinatorPolicy::default()
        };
        let unit = Unit { standing: Standing::Up, verdict: Verdict::Stale, done: None, permit: None };
        let agent = Agent {
            incarnation: Incarnation { counter: 1, random: Salt([1; 16]) },
            born_at: 0,
            sequence: 0,
            units: vec![unit; SLOTS],
            accepted: Desired::default(),
            deaf: false,
            leaving: false,
        };
        let mut fleet = Self {
            now: 1_000,
            machine: started(&policy, Vec::new()),
            policy,
            disk: Vec::new(),
            agents: vec![agent; HOSTS],
            said: Vec::new(),
            book: Book {
                reign_at: 1_000,
                started_at: 1_000,
                led_since: 1_000,
                lease: (leadership == Leadership::Leased).then_some(0),
                ..Book::default()
            },
            version: Version::default(),
            granted: 0,
            broken: Vec::new(),
        };
        if foreign {
            let accepted = Desired { epoch: Epoch(9), generation: Generation(9), ..Desired::default() };
            let last = &mut fleet.agents[HOSTS - 1];
            (last.accepted, last.deaf) = (accepted, true);
        }
        fleet.settle();
        fleet
    }

    fn moment(&self) -> Moment {
        Moment(self.now - self.book.started_at)
    }

    fn broke(&mut self, law: Law, what: impl Into<String>) {
        self.broken.push((law, format!("at {} ms: {}", self.now, what.into())));
    }

    /// Tells whether the coordinator leads now.
    pub(super) fn leads(&self) -> bool {
        self.book.lease.is_none_or(|until| self.now < until)
    }

    /// What a lease changes: the first one, or one after the last has ended, begins a reign.
    fn lease(&mut self, span: u64) {
        if self.policy.leadership == Leadership::Sole {
            return;
        }
        let until = self.now + span;
        let book = &mut self.book;
        let begins = book.lease.is_some_and(|until| self.now >= until) && span > 0;
        if begins {
            book.lost |= book.behind && !book.knew_hosts && self.policy.expected_hosts.is_empty();
            book.behind = false;
            book.heard_in_reign.clear();
            book.asks.clear();
            (book.reign_at, book.led_since) = (self.now, self.now);
        }
        book.lease = book.lease.map(|known| known.max(until));
        let until = Moment(until - book.started_at);
        self.machine.handle_lease(Lease { until, epoch: None }, self.moment());
    }

    pub(crate) fn feed(&mut self, input: &Input) {
        let now = self.moment();
        if !self.leads() {
            self.book.asks.clear();
        }
        match *input {
            Input::Say(index) => self.say(index % HOSTS, 0),
            Input::Round => self.round(),
            Input::SayTwin(index) => self.say(index % HOSTS, 77),
            Input::Ask { host: index, first, second, both, old_life } => {
                self.ask(index % HOSTS, [first, second], both, old_life);
            }
            Input::Write(index) => {
                self.agents[index % HOSTS].sequence += 1;
                self.said.push(Upward::Report(self.agents[index % HOSTS].report(index % HOSTS, self.now)));
            }
            Input::Race { host, mode } => {
                self.agents[host % HOSTS].sequence += 1;
                let report = Upward::Report(self.agents[host % HOSTS].report(host % HOSTS, self.now));
                APPS.iter().enumerate().for_each(|(index, _)| self.set_mode(&app(index), mode));
                self.deliver(&report);
            }
            Input::Deliver(number) => {
                let number = self.said.len().checked_sub(1 + number);
                if let Some(message) = number.and_then(|number| self.said.get(number)).cloned() {
                    self.deliver(&message);
                }
            }
            Input::Wait(span) => self.wait(span),
            Input::Lease(span) => self.lease(span),
            Input::LeaseLost => {
                self.machine.handle_lease_lost(now);
                self.book.lease = self.book.lease.map(|_| self.now);
                if !self.leads() {
                    self.book.asks.clear();
                }
            }
            Input::Broadcast { app: index, variant, canary } => self.broadcast(index, variant, canary),
            Input::Mode { app: index, mode } => self.set_mode(&app(index), mode),
            Input::Drain { host: index, slot: number, force } => {
                let record = DrainRecord {
                    host: host(index),
                    slot: slot(number),
                    deadline_ms: None,
                    force,
                    asked_by: "test".into(),
                    at_ms: 0,
                    since: Version::default(),
                };
                let done = self.machine.handle_drain(vec![record], now);
                self.obeyed(done.is_ok());
            }
            Input::Undrain => {
                if let Some(drain) = self.machine.desired().drains.first() {
                    let done = self.machine.handle_undrain(&drain.id, now);
                    self.obeyed(done.is_ok());
                }
            }
            Input::Forget(index) => self.forget(&host(index)),
            Input::StateHosts(number) => {
                let done = self.machine.handle_stated_hosts(number, now);
                self.obeyed(done.is_ok());
                if done.is_ok() {
                    self.book.stated = Some(number);
                    self.book.left_when_stated = self.gone().cloned().collect();
                    self.find_hosts();
                }
            }
            Input::Restart => self.restart(),
            Input::Act => self.act(),
            Input::End(number, result) => self.end(number, result),
            Input::Die(index, number) => {
                let unit = &mut self.agents[index % HOSTS].units[number % SLOTS];
                unit.standing = if unit.standing == Standing::Down { Standing::Up } else { Standing::Down };
            }
            Input::Judge(index, number, verdict) => {
                self.agents[index % HOSTS].units[number % SLOTS].verdict = verdict;
            }
            Input::Reborn(index) => self.reborn(index % HOSTS),
            Input::Deaf(index) => self.agents[index % HOSTS].deaf ^= true,
            Input::Leave(index) => {
                self.agents[index % HOSTS].leaving = true;
                self.say(index % HOSTS, 0);
            }
        }
        self.settle();
        if matches!(input, Input::Wait(_) | Input::Ask { .. }) {
            self.check_withheld();
        }
        self.check_state();
    }

    fn wait(&mut self, span: u64) {
        self.now += span;
        self.machine.handle_timeout(self.moment());
        self.trust_hosts();
    }

    // What the agents do.

    fn say(&mut self, index: usize, twin: u8) {
        self.agents[index].sequence += 1;
        let mut report = self.agents[index].report(index, self.now);
        report.incarnation.random.0[0] ^= twin;
        self.said.push(Upward::Report(report.clone()));
        self.deliver(&Upward::Report(report));
    }

    fn round(&mut self) {
        for index in 0..HOSTS {
            self.say(index, 0);
            self.settle();
        }
        let desired = self.machine.desired();
        for index in 0..HOSTS {
            self.agents[index].deaf = false;
            self.agents[index].accepted = desired.clone();
            self.say(index, 0);
            self.settle();
        }
    }

    fn ask(&mut self, index: usize, wanted: [bool; SLOTS], both: bool, old_life: bool) {
        let agent = &self.agents[index];
        let mut incarnation = agent.incarnation;
        if old_life {
            incarnation.random.0[1] ^= 1;
        }
        let purpose = |number: usize| {
            let drain =
                agent.accepted.drains.iter().find(|drain| drain.host == host(index) && drain.slot == slot(number));
            if let Some(drain) = drain {
                return Purpose::Drain(drain.id.clone());
            }
            let revision = |name: &AppName| agent.accepted.apps.get(name).map_or(Revision(0), |app| app.revision);
            Purpose::Restart(apps(if both { number } else { 0 }).map(|name| (name.clone(), revision(&name))).collect())
        };
        let wants = (0..SLOTS)
            .filter(|number| wanted[*number] && agent.units[*number].standing == Standing::Up)
            .map(|number| Want {
                slot: slot(number),
                identity: identity(),
                pools: pools(number),
                purpose: purpose(number),
            })
            .collect();
        let nonce = Nonce { incarnation, at: Moment(self.now - agent.born_at) };
        let ask = Upward::Ask(Ask { host: host(index), nonce, version: agent.accepted.version(), wants });
        self.said.push(ask.clone());
        self.deliver(&ask);
    }

    // What people do.

    fn broadcast(&mut self, index: usize, variant: u8, canary: bool) {
        let name = app(index);
        let terms = Terms { canary: canary.then_some(1), ..Terms::default() };
        let broadcast = Broadcast {
            app: name.clone(),
            manifest: digest(variant),
            fingerprint: digest(variant),
            terms,
            asked_by: "test".into(),
            message: None,
            meta: BTreeMap::new(),
            at_ms: 0,
        };
        let now = self.moment();
        let accepted = self.machine.handle_broadcast(&broadcast, now);
        self.obeyed(accepted.is_ok());
        let Ok(accepted) = accepted else { return };
        let before = self.book.modes.get(&name).copied();
        let is_same = before.is_some_and(|(_, mode, known)| known == variant && mode != Mode::Abort);
        let revision = before.map_or(Revision(0), |(revision, ..)| revision);
        let (revision, mode) = match before {
            Some((_, mode, _)) if is_same => (revision, mode),
            _ => (revision.next(), Mode::Run),
        };
        if (accepted.revision, accepted.is_same) != (revision, is_same) {
            self.broke(Law::Desired, format!("{accepted:?} instead of {revision:?}, the same: {is_same}"));
        }
        self.book.modes.insert(name.clone(), (revision, mode, variant));
        if canary {
            self.book.canaries.insert((name, revision), 1);
        } else {
            self.book.canaries.remove(&(name, revision));
        }
    }

    fn set_mode(&mut self, name: &AppName, mode: Mode) {
        let now = self.moment();
        let done = match mode {
            Mode::Run => self.machine.handle_resume(name, None, None, "test", now),
            Mode::Abort => self.machine.handle_abort(name, None, "test", now),
            Mode::Pause | Mode::Halt => self.machine.handle_pause(name, None, "test", now),
        };
        let leads = self.leads();
        let Some((_, standing, _)) = self.book.modes.get_mut(name) else { return };
        let is_allowed = leads && (*standing != Mode::Abort || mode == Mode::Abort);
        if is_allowed {
            *standing = if mode == Mode::Halt { Mode::Pause } else { mode };
        }
        if done.is_ok() != is_allowed {
            self.broke(Law::Desired, format!("{mode:?} was answered by {done:?}"));
        }
    }

    /// People are obeyed by the one who leads, and by nobody else.
    fn obeyed(&mut self, was_obeyed: bool) {
        if was_obeyed != self.leads() {
            self.broke(Law::Lease, format!("obeyed: {was_obeyed}"));
        }
    }

    fn forget(&mut self, name: &HostName) {
        let now = self.moment();
        if self.machine.handle_forget(name, now).is_err() {
            return;
        }
        let book = &mut self.book;
        book.known.remove(name);
        book.totals.remove(name);
        book.left.remove(name);
        book.heard.remove(name);
        book.heard_in_reign.remove(name);
        book.doubled.remove(name);
        book.permits.retain(|(host, _), _| host != name);
        book.asks.retain(|(host, _), _| host != name);
    }

    fn restart(&mut self) {
        let book = &mut self.book;
        book.started_at = self.now;
        book.reign_at = self.now;
        book.heard.clear();
        book.heard_in_reign.clear();
        book.doubled.clear();
        book.asks.clear();
        book.lease = book.lease.map(|_| 0);
        book.behind = false;
        book.led_since = self.now;
        book.stated = None;
        book.knew_hosts = book.whole && !book.known.is_empty();
        self.machine = started(&self.policy, self.disk.clone());
        if self.leads() && self.machine.version().epoch <= self.version.epoch {
            self.broke(Law::Desired, "a new reign has no higher epoch");
        }
    }

    // What the coordinator is told.

    fn deliver(&mut self, message: &Upward) {
        let now = self.moment();
        match message {
            Upward::Report(report) => {
                let before = self.machine.version();
                self.machine.handle_report(report.clone(), now);
                self.hear(report, before);
            }
            Upward::Ask(ask) => {
                self.machine.handle_ask(ask.clone(), now);
                self.book.asks.retain(|(host, _), _| *host != ask.host);
                if !self.leads() {
                    return;
                }
                for want in &ask.wants {
                    let key = (ask.host.clone(), want.slot.clone());
                    self.book.asks.insert(key, (ask.clone(), want.clone(), self.now));
                }
            }
            Upward::Piece(_) | Upward::Unknown => unreachable!(),
        }
    }

    // What the coordinator does, and whether it may.

    fn settle(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Store(records) => self.disk.extend(records),
                Action::Publish(desired) => self.take_published(&desired),
                Action::Grant(permit) => self.take_grant(permit),
                Action::LookUp(_) | Action::Fetch(_) | Action::Keep(..) => unreachable!("no manifest is looked for"),
            }
        }
        let next = self.machine.poll_timeout();
        if next.is_some_and(|next| next <= self.moment()) {
            self.broke(Law::Spin, format!("wants to be called at {next:?}"));
        }
    }

    fn take_published(&mut self, desired: &Desired) {
        if !self.leads() {
            self.broke(Law::Lease, format!("{:?} was published", desired.version()));
        }
        let last = self.disk.iter().rev().find_map(|record| match record {
            Record::Reign { epoch, generation, .. } => Some(Version { epoch: *epoch, generation: *generation }),
            _ => None,
        });
        let is_written = last == Some(desired.version());
        if !is_written {
            self.broke(Law::DiskFirst, format!("{:?} was published and is not on disk", desired.version()));
        }
        if desired.version() < self.version {
            self.broke(Law::Desired, format!("{:?} after {:?}", desired.version(), self.version));
        }
        self.version = desired.version();
        for agent in self.agents.iter_mut().filter(|agent| !agent.deaf && agent.accepted.version() <= desired.version())
        {
            agent.accepted = desired.clone();
        }
    }

    fn take_grant(&mut self, permit: Permit) {
        self.granted += 1;
        let key = (permit.host.clone(), permit.slot.clone());
        let last = self.disk.iter().rev().find_map(|record| match record {
            Record::Permit(host, slot, record) if *host == key.0 && *slot == key.1 => Some(record.clone()),
            _ => None,
        });
        if last.flatten().is_none_or(|record| record.nonce != permit.nonce) {
            self.broke(Law::DiskFirst, format!("a permit went out that is not on disk: {permit:?}"));
        }
        let Some((ask, want, at)) = self.book.asks.remove(&key) else {
            return self.broke(Law::YoungRequest, format!("nobody asked for {permit:?}"));
        };
        let echoes = ask.nonce == permit.nonce && want.identity == permit.identity && want.purpose == permit.purpose;
        if !echoes || permit.version != ask.version {
            self.broke(Law::YoungRequest, format!("{permit:?} answers {ask:?}"));
        }
        for law in self.objections(&ask, &want, at) {
            self.broke(law, format!("granted: {permit:?}"));
        }
        let (nonce, version) = (permit.nonce, permit.version);
        let record = PermitRecord { identity: want.identity, nonce, version, pools: want.pools, purpose: want.purpose };
        self.book.permits.insert(key, record);
        let index = (0..HOSTS).find(|index| host(*index) == permit.host).unwrap();
        let number = (0..SLOTS).find(|number| slot(*number) == permit.slot).unwrap();
        self.agents[index].units[number].permit = Some(permit);
    }
}

/// A coordinator that has just started, with the bus connected.
fn started(policy: &CoordinatorPolicy, records: Vec<Record>) -> Coordinator {
    let mut machine = Coordinator::new(policy.clone(), records, Moment(0));
    machine.handle_connected(Moment(0));
    machine
}
