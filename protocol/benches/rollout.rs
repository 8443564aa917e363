//! What a rollout costs the coordinator's mind: time per event, memory per host, and whole rollouts in virtual time.
//!
//! `cargo bench -p unstale-protocol` prints a table; `-- 1000 10000` says how many hosts. Every host has one unit of one
//! pool, reports, asks, acts for half a minute and reports again; the budget is the default, a tenth.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "it measures, prints, and ends where something is wrong"
)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant};
use unstale_protocol::coordinator::{Action, Broadcast, Coordinator, CoordinatorPolicy, Outcome, Terms};
use unstale_protocol::fingerprint::{Fingerprint, Salt};
use unstale_protocol::ids::{
    AppName, HostName, Incarnation, Pid, PoolName, ProcessIdentity, Revision, SlotId, UnitId, Version,
};
use unstale_protocol::message::{
    AppReport, Ask, Done, DoneResult, Nonce, Permit, Phase, PoolReport, Purpose, Report, SlotJudgement, SlotReport,
    UnitCounts, Want,
};
use unstale_protocol::time::Moment;
use unstale_protocol::verdict::{Cure, Verdict};

/// How long a restart takes, how often a host asks, and how often it reports, in virtual milliseconds.
const RESTART_MS: u64 = 30_000;
const REPORT_MS: u64 = 60_000;
const ASK_MS: u64 = 12_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Report(usize),
    /// The report of every minute.
    Beat(usize),
    Ask(usize),
    Done(usize),
}

/// A host as far as the coordinator hears it.
#[derive(Clone, Debug)]
struct Agent {
    name: HostName,
    sequence: u64,
    phase: Phase,
    done: Option<Nonce>,
    permit: Option<Permit>,
}

struct Fleet {
    machine: Coordinator,
    agents: Vec<Agent>,
    queue: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    order: u64,
    now: u64,
    accepted: Version,
    done: usize,
    events: u64,
    spent: Duration,
    slowest: Duration,
}

fn app() -> AppName {
    AppName::new("shop").unwrap()
}

fn pool() -> PoolName {
    PoolName::new("shop/celery/shop").unwrap()
}

fn slot() -> SlotId {
    SlotId::new("celery/systemd/shop.service").unwrap()
}

fn identity(number: usize) -> ProcessIdentity {
    ProcessIdentity { pid: Pid(u32::try_from(number).unwrap()), start_ticks: 1, pid_namespace: 1 }
}

fn life() -> Incarnation {
    Incarnation { counter: 1, random: Salt([1; 16]) }
}

impl Fleet {
    fn new(hosts: usize) -> Self {
        let policy = CoordinatorPolicy { takeover_wait: Duration::ZERO, ..CoordinatorPolicy::default() };
        let agents = (0..hosts).map(|number| Agent {
            name: HostName::new(format!("host-{number:06}")).unwrap(),
            sequence: 0,
            phase: Phase::Up,
            done: None,
            permit: None,
        });
        Self {
            machine: Coordinator::new(policy, Vec::new(), Moment(0)),
            agents: agents.collect(),
            queue: BinaryHeap::new(),
            order: 0,
            now: 0,
            accepted: Version::default(),
            done: 0,
            events: 0,
            spent: Duration::ZERO,
            slowest: Duration::ZERO,
        }
    }

    fn at(&mut self, delay: u64, happening: Happening) {
        self.order += 1;
        self.queue.push(Reverse((self.now + delay, self.order, happening)));
    }

    fn report(&mut self, number: usize) -> Report {
        let agent = &mut self.agents[number];
        agent.sequence += 1;
        let is_done = agent.done.is_some();
        let verdict = if is_done { Verdict::Fresh } else { Verdict::Stale };
        let units = match (agent.phase.is_acting(), is_done) {
            (true, _) => UnitCounts { acting: 1, ..UnitCounts::default() },
            (false, true) => UnitCounts { fresh: 1, restarted: 1, ..UnitCounts::default() },
            (false, false) => UnitCounts { stale: 1, ..UnitCounts::default() },
        };
        let purpose = Purpose::Restart([(app(), Revision(1))].into());
        let done = agent.done.map(|nonce| Done {
            nonce,
            result: DoneResult::Restarted,
            purpose,
            elapsed_ms: RESTART_MS,
            because: "its new processes were read and are fresh".into(),
        });
        let slot = SlotReport {
            slot: slot(),
            unit: Some(UnitId::new(format!("celery:{number}")).unwrap()),
            last_unit: None,
            identity: Some(identity(number)),
            pools: [pool()].into(),
            apps: [(app(), SlotJudgement { verdict, cure: Cure::Restart })].into(),
            phase: agent.phase,
            because: "memory of app.enums:CrmType differs from its source".into(),
            done,
        };
        let of_app = AppReport { revision: Revision(1), converged: is_done, units, ..AppReport::default() };
        Report {
            host: agent.name.clone(),
            incarnation: life(),
            sequence: agent.sequence,
            clock: Moment(self.now),
            accepted: self.accepted,
            author: Salt::default(),
            refused: None,
            unsupported: None,
            leaving: false,
            scanned: true,
            apps: [(app(), of_app)].into(),
            pools: [(pool(), PoolReport { total: 1, unavailable: u32::from(agent.phase.is_acting()) })].into(),
            slots: vec![slot],
            omitted: 0,
            others: Vec::new(),
            others_omitted: 0,
            rejected: BTreeMap::new(),
            probes: BTreeMap::new(),
        }
    }

    fn ask(&self, number: usize) -> Ask {
        let want = Want {
            slot: slot(),
            identity: identity(number),
            pools: [pool()].into(),
            purpose: Purpose::Restart([(app(), Revision(1))].into()),
        };
        let nonce = Nonce { incarnation: life(), at: Moment(self.now) };
        Ask { host: self.agents[number].name.clone(), nonce, version: self.accepted, wants: vec![want] }
    }

    /// Feeds the machine one event, takes the time, and does what it wants.
    fn feed(&mut self, event: impl FnOnce(&mut Coordinator, Moment)) {
        let now = Moment(self.now);
        let began = clock();
        event(&mut self.machine, now);
        let actions: Vec<Action> = std::iter::from_fn(|| self.machine.poll_action()).collect();
        let spent = began.elapsed();
        self.events += 1;
        self.spent += spent;
        self.slowest = self.slowest.max(spent);
        for action in actions {
            match action {
                Action::Store(_) | Action::LookUp(_) | Action::Fetch(_) | Action::Keep(..) => {}
                Action::Publish(desired) => self.accepted = desired.version(),
                Action::Grant(permit) => {
                    let number: usize = permit.host.as_str().trim_start_matches("host-").parse().unwrap();
                    let agent = &mut self.agents[number];
                    agent.phase = Phase::Draining;
                    agent.permit = Some(permit);
                    self.at(1_000, Happening::Report(number));
                    self.at(RESTART_MS, Happening::Done(number));
                }
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Report(number) => {
                let report = self.report(number);
                self.feed(|machine, now| machine.handle_report(report, now));
            }
            Happening::Beat(number) => {
                self.happen(Happening::Report(number));
                if self.done < self.agents.len() {
                    self.at(REPORT_MS, Happening::Beat(number));
                }
            }
            Happening::Ask(number) => {
                let agent = &self.agents[number];
                if agent.done.is_none() && agent.permit.is_none() {
                    let ask = self.ask(number);
                    self.feed(|machine, now| machine.handle_ask(ask, now));
                    self.at(ASK_MS, Happening::Ask(number));
                }
            }
            Happening::Done(number) => {
                let agent = &mut self.agents[number];
                agent.done = agent.permit.as_ref().map(|permit| permit.nonce);
                agent.phase = Phase::Up;
                self.done += 1;
                self.happen(Happening::Report(number));
            }
        }
    }

    fn begin(&mut self) {
        let broadcast = Broadcast {
            app: app(),
            manifest: Fingerprint([1; 32]),
            fingerprint: Fingerprint([1; 32]),
            terms: Terms::default(),
            asked_by: "bench".into(),
            message: None,
            meta: BTreeMap::new(),
            at_ms: 0,
        };
        self.feed(|machine, now| drop(machine.handle_broadcast(&broadcast, now)));
        for number in 0..self.agents.len() {
            let spread = u64::try_from(number).unwrap() * 2_000 / u64::try_from(self.agents.len()).unwrap();
            self.at(spread, Happening::Beat(number));
            self.at(2_000 + spread * 4, Happening::Ask(number));
        }
    }

    fn run(&mut self) {
        while let Some(Reverse((at, _, happening))) = self.queue.pop() {
            self.now = at;
            self.happen(happening);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn clock() -> Instant {
    Instant::now()
}

/// Resident memory of this process, in bytes: `/proc/self/statm`, proc(5), in pages.
fn resident() -> u64 {
    const PAGE_BYTES: u64 = 4096;
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * PAGE_BYTES
}

fn measure(hosts: usize) {
    let began = clock();
    let mut fleet = Fleet::new(hosts);
    fleet.begin();
    let before = resident();
    let everybody = fleet.agents.len();
    for number in 0..everybody {
        fleet.happen(Happening::Report(number));
    }
    let memory = resident().saturating_sub(before) / u64::try_from(everybody).unwrap();
    fleet.run();
    let whole = began.elapsed();
    let asked = clock();
    let status = fleet.machine.status(&app(), Revision(1), Moment(fleet.now)).unwrap();
    let status_took = asked.elapsed();
    assert_eq!(status.outcome, Outcome::Converged);
    assert_eq!(usize::try_from(status.units.restarted).unwrap(), hosts);
    println!(
        "{hosts:>7}  {:>9}  {:>11.2}  {:>12.0}  {memory:>10}  {:>9.2}  {:>10.0}  {:>9.1}",
        fleet.events,
        fleet.spent.as_secs_f64() * 1e6 / f64::from(u32::try_from(fleet.events).unwrap()),
        fleet.slowest.as_secs_f64() * 1e6,
        whole.as_secs_f64(),
        fleet.now / 1_000,
        status_took.as_secs_f64() * 1e3,
    );
}

fn main() {
    let stated: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let sizes = if stated.is_empty() { vec![1_000, 10_000, 100_000] } else { stated };
    println!("  hosts     events   us/event   slowest, us   bytes/host   whole, s   virtual, s  status, ms");
    for hosts in sizes {
        measure(hosts);
    }
}
