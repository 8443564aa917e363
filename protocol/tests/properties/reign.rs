//! Coordinators that take over from each other: what one learns of the other, and what it waits for.

#[path = "reign/again.rs"]
mod again;
#[path = "reign/beside.rs"]
mod beside;
#[path = "reign/hand.rs"]
mod hand;
#[path = "reign/left.rs"]
mod left;
#[path = "reign/roster.rs"]
mod roster;

use std::collections::BTreeMap;
use unstale_protocol::coordinator::{
    Action, Broadcast, Coordinator, CoordinatorPolicy, DrainRecord, Leadership, Lease, Outcome, Record, Refused, Terms,
};
use unstale_protocol::fingerprint::{Fingerprint, Salt};
use unstale_protocol::host::{Action as HostAction, Host, HostPolicy};
use unstale_protocol::ids::{
    AppName, DrainId, Epoch, Generation, HostName, Incarnation, Pid, PoolName, ProcessIdentity, Revision, SlotId,
    Version,
};
use unstale_protocol::message::{
    AppReport, Ask, Desired, Done, DoneResult, Mode, Nonce, Permit, Phase, PoolReport, Purpose, Report, SlotReport,
    UnitCounts, Want,
};
use unstale_protocol::time::Moment;

const MINUTE: u64 = 60_000;

/// A coordinator, its disk, and what it has sent.
struct Seat {
    machine: Coordinator,
    disk: Vec<Record>,
    published: Vec<Desired>,
    granted: Vec<Permit>,
}

impl Seat {
    fn new(life: u8, disk: Vec<Record>) -> Self {
        let policy = CoordinatorPolicy {
            leadership: Leadership::Leased,
            life: Salt([life; 16]),
            ..CoordinatorPolicy::default()
        };
        let machine = Coordinator::new(policy, disk.clone(), Moment(0));
        Self { machine, disk, published: Vec::new(), granted: Vec::new() }
    }

    fn leading(life: u8, epoch: u64) -> Self {
        let mut seat = Self::new(life, Vec::new());
        seat.lead(Some(epoch), 0);
        seat
    }

    fn lead(&mut self, epoch: Option<u64>, now: u64) {
        let lease = Lease { until: Moment(now + 60 * MINUTE), epoch: epoch.map(Epoch) };
        self.machine.handle_lease(lease, Moment(now));
        self.act();
    }

    fn act(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Store(records) => self.disk.extend(records),
                Action::Publish(desired) => self.published.push(desired),
                Action::Grant(permit) => self.granted.push(permit),
                Action::LookUp(_) | Action::Fetch(_) | Action::Keep(..) => unreachable!("no manifest is looked for"),
            }
        }
    }

    fn find(&mut self, found: Option<&Desired>, now: u64) {
        self.machine.handle_found(found, Moment(now));
        self.act();
    }

    fn hear(&mut self, report: &Report, now: u64) {
        self.machine.handle_report(report.clone(), Moment(now));
        self.act();
    }

    fn broadcast(&mut self, contents: u8, now: u64) -> Revision {
        let broadcast = Broadcast {
            app: app(),
            manifest: Fingerprint([contents; 32]),
            fingerprint: Fingerprint([contents; 32]),
            terms: Terms { canary: Some(2), ..Terms::default() },
            asked_by: "test".into(),
            message: None,
            meta: BTreeMap::new(),
            at_ms: 0,
        };
        let accepted = self.machine.handle_broadcast(&broadcast, Moment(now)).unwrap();
        self.act();
        accepted.revision
    }

    fn last(&self) -> &Desired {
        self.published.last().unwrap()
    }

    /// Asks for the slot of a host, and returns how many permits went out for it.
    fn ask(&mut self, name: &str, now: u64) -> usize {
        let want = Want {
            slot: slot(),
            identity: identity(),
            pools: [pool()].into(),
            purpose: Purpose::Restart([(app(), self.last().apps[&app()].revision)].into()),
        };
        let nonce = Nonce { incarnation: life(1), at: Moment(now) };
        let ask = Ask { host: host(name), nonce, version: self.machine.version(), wants: vec![want] };
        let before = self.granted.len();
        self.machine.handle_ask(ask, Moment(now));
        self.act();
        self.granted.len() - before
    }
}

fn app() -> AppName {
    AppName::new("shop").unwrap()
}

fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

fn slot() -> SlotId {
    SlotId::new("celery/systemd/shop.service").unwrap()
}

fn pool() -> PoolName {
    PoolName::new("shop/celery/shop").unwrap()
}

fn identity() -> ProcessIdentity {
    ProcessIdentity { pid: Pid(7), start_ticks: 7, pid_namespace: 1 }
}

fn life(counter: u64) -> Incarnation {
    Incarnation { counter, random: Salt([1; 16]) }
}

/// What an agent says that follows this state: one unit, up.
fn report(name: &str, sequence: u64, follows: &Desired) -> Report {
    let apps = follows.apps.iter().map(|(name, wanted)| {
        let units = UnitCounts { fresh: 1, ..Default::default() };
        (name.clone(), AppReport { revision: wanted.revision, converged: true, units, ..AppReport::default() })
    });
    Report {
        host: host(name),
        incarnation: life(1),
        sequence,
        clock: Moment(sequence),
        accepted: follows.version(),
        author: follows.author,
        refused: None,
        unsupported: None,
        leaving: false,
        scanned: true,
        apps: apps.collect(),
        pools: [(pool(), PoolReport { total: 1, unavailable: 0 })].into(),
        slots: Vec::new(),
        omitted: 0,
        others: Vec::new(),
        others_omitted: 0,
        rejected: BTreeMap::new(),
        probes: BTreeMap::new(),
    }
}

/// The same, with its slot drained by that drain.
fn drained(name: &str, sequence: u64, follows: &Desired, drain: &DrainId) -> Report {
    let done = Done {
        nonce: Nonce { incarnation: life(1), at: Moment(1) },
        result: DoneResult::Drained,
        purpose: Purpose::Drain(drain.clone()),
        elapsed_ms: 1,
        because: String::new(),
    };
    let slot = SlotReport {
        slot: slot(),
        unit: None,
        last_unit: None,
        identity: None,
        pools: [pool()].into(),
        apps: BTreeMap::new(),
        phase: Phase::Drained,
        because: String::new(),
        done: Some(done),
    };
    Report { slots: vec![slot], ..report(name, sequence, follows) }
}

fn drain(seat: &mut Seat, name: &str, now: u64) -> DrainId {
    let record = DrainRecord {
        host: host(name),
        slot: slot(),
        deadline_ms: None,
        force: false,
        asked_by: "test".into(),
        at_ms: 0,
        since: Version::default(),
    };
    let ids = seat.machine.handle_drain(vec![record], Moment(now)).unwrap();
    seat.act();
    ids.into_iter().next().unwrap()
}

#[test]
fn one_that_stands_by_says_nothing_and_obeys_nobody() {
    let mut seat = Seat::new(1, Vec::new());
    seat.find(None, 10_000);
    seat.hear(&report("web-1", 1, &Desired::default()), 10_000);
    assert!(seat.published.is_empty());
    assert_eq!(seat.machine.handle_abort(&app(), None, "test", Moment(10_000)), Err(Refused::NotLeader(None)));
    assert!(!seat.machine.leads(Moment(10_000)));
}

#[test]
fn a_takeover_goes_on_with_what_the_bus_holds() {
    let mut first = Seat::leading(1, 1);
    first.broadcast(7, 1);
    let id = drain(&mut first, "web-1", 2);
    first.machine.handle_pause(&app(), None, "test", Moment(3)).unwrap();
    first.act();
    let mut second = Seat::new(2, Vec::new());
    second.find(Some(first.last()), 5);
    second.lead(Some(2), 10);
    let desired = second.last();
    let wanted = &desired.apps[&app()];
    assert_eq!((wanted.revision, wanted.mode), (Revision(1), Mode::Pause));
    assert_eq!(wanted.terms.as_ref().and_then(|terms| terms.canary), Some(2));
    assert_eq!(desired.drains.iter().map(|drain| &drain.id).collect::<Vec<_>>(), [&id]);
    assert!(desired.version() > first.last().version() && !desired.partial);
    assert_eq!(Seat::new(2, second.disk).machine.desired().apps.len(), 1, "what was learned is on its disk");
}

#[test]
fn a_number_that_is_too_low_does_not_lead() {
    let mut first = Seat::leading(1, 5);
    first.broadcast(7, 1);
    let mut second = Seat::new(2, Vec::new());
    second.hear(&report("web-1", 1, first.last()), 5);
    second.lead(Some(5), 10);
    assert!(second.published.is_empty(), "reign 5 has an owner");
    assert_eq!(second.machine.least_epoch(), Epoch(6));
    second.lead(Some(6), 20);
    assert_eq!(second.last().epoch, Epoch(6));
}

#[test]
fn an_abort_outlives_a_reign_that_did_not_hear_it() {
    let mut first = Seat::leading(1, 1);
    first.broadcast(7, 1);
    let mut second = Seat::new(2, Vec::new());
    second.find(Some(first.last()), 5);
    first.machine.handle_abort(&app(), None, "test", Moment(6)).unwrap();
    first.act();
    second.lead(Some(2), 10);
    first.find(Some(second.last()), 20);
    first.lead(Some(3), 30);
    assert_eq!(first.last().apps[&app()].mode, Mode::Abort);
}

#[test]
fn a_revision_that_was_announced_never_goes_back() {
    let mut first = Seat::leading(1, 1);
    first.broadcast(7, 1);
    let mut second = Seat::new(2, Vec::new());
    second.find(Some(first.last()), 5);
    assert_eq!(first.broadcast(8, 6), Revision(2));
    second.lead(Some(2), 10);
    first.find(Some(second.last()), 20);
    first.lead(Some(3), 30);
    assert_eq!(first.last().apps[&app()].revision, Revision(2));
}

#[test]
fn a_number_that_hosts_have_followed_is_not_given_to_other_contents() {
    let mut first = Seat::leading(1, 1);
    first.broadcast(7, 1);
    let mut second = Seat::new(2, Vec::new());
    second.find(Some(first.last()), 5);
    first.broadcast(8, 6);
    second.lead(Some(2), 10);
    second.hear(&report("web-1", 1, first.last()), 20);
    assert_eq!(second.last().apps[&app()].mode, Mode::Pause, "shop@1 is not rolled out over shop@2");
    assert_eq!(second.broadcast(9, 30), Revision(3));
}

#[test]
fn what_is_drained_stays_so_although_nobody_remembers_who_asked() {
    let mut first = Seat::leading(1, 1);
    let id = drain(&mut first, "web-1", 2);
    let known = first.last().clone();
    let mut second = Seat::new(2, Vec::new());
    second.lead(Some(2), 10);
    assert!(second.last().partial, "somebody reigned before, and what they desired is not known");
    let reign = second.last().clone();
    second.hear(&drained("web-1", 1, &known, &id), 20);
    second.hear(&drained("web-1", 2, &reign, &id), 30);
    assert_eq!(second.last().drains.iter().map(|drain| &drain.id).collect::<Vec<_>>(), [&id]);
    let reign = second.last().clone();
    second.machine.handle_stated_hosts(1, Moment(40)).unwrap();
    second.hear(&drained("web-1", 3, &reign, &id), 2 * MINUTE);
    assert!(!second.last().partial, "every host has spoken");
    second.machine.handle_undrain(&id, Moment(2 * MINUTE)).unwrap();
    second.act();
    assert!(second.last().drains.is_empty());
}

#[test]
fn a_drain_that_people_took_back_is_not_learned_again() {
    let mut seat = Seat::new(2, Vec::new());
    seat.lead(Some(2), 10);
    let id = DrainId::new("drain-1-1").unwrap();
    let reign = seat.last().clone();
    seat.hear(&drained("web-1", 1, &reign, &id), 20);
    seat.machine.handle_undrain(&id, Moment(30)).unwrap();
    seat.act();
    seat.hear(&drained("web-1", 2, &reign, &id), 40);
    assert!(seat.last().drains.is_empty());
}

#[test]
fn an_agent_gives_nothing_back_on_the_word_of_one_who_may_not_know() {
    let record = unstale_protocol::host::SlotRecord {
        drained: Some(DrainId::new("drain-1-1").unwrap()),
        stopped: Some(identity()),
        ..Default::default()
    };
    let disk = vec![unstale_protocol::host::Record::Slot(slot(), Some(record))];
    let is_started = |partial: bool| {
        let mut agent = Host::new(host("web-1"), life(2), HostPolicy::default(), disk.clone(), 1, Moment(0));
        let desired = Desired { epoch: Epoch(2), generation: Generation(1), partial, ..Desired::default() };
        agent.handle_desired(&desired, Moment(1));
        std::iter::from_fn(|| agent.poll_action()).any(|action| matches!(action, HostAction::Step { .. }))
    };
    assert!(!is_started(true));
    assert!(is_started(false));
}

#[test]
fn two_reigns_of_one_number_are_two() {
    let mut first = Seat::new(1, Vec::new());
    first.lead(None, 0);
    first.broadcast(7, 1);
    let mut second = Seat::new(2, Vec::new());
    second.lead(None, 0);
    second.broadcast(8, 1);
    assert_eq!(first.last().version(), second.last().version());
    let mut agent = Host::new(host("web-1"), life(1), HostPolicy::default(), Vec::new(), 1, Moment(0));
    agent.handle_desired(first.last(), Moment(1));
    agent.handle_desired(second.last(), Moment(2));
    assert_eq!(agent.desired().author, first.last().author, "the one that was heard first is kept");
    let rival = report("web-1", 1, first.last());
    second.hear(&rival, 10);
    assert!(second.last().epoch > rival.accepted.epoch, "it rules above both");
}

#[test]
fn hosts_that_another_coordinator_counted_are_waited_for() {
    let mut first = Seat::leading(1, 1);
    first.broadcast(7, 1);
    for name in ["web-1", "web-2"] {
        let reign = first.last().clone();
        first.hear(&report(name, 1, &reign), 10_000);
    }
    first.find(None, 20_000);
    assert_eq!(first.last().hosts, Some(2));
    let mut second = Seat::new(2, Vec::new());
    second.find(Some(first.last()), 5);
    second.lead(Some(2), 10);
    let reign = second.last().clone();
    second.hear(&report("web-1", 2, &reign), 20);
    assert_eq!(second.ask("web-1", MINUTE), 0, "web-2 may be at work");
    second.hear(&report("web-2", 2, &reign), MINUTE + 1);
    assert_eq!(second.granted.len(), 1, "what waited is granted at once");
}

#[test]
fn a_count_is_not_believed_of_one_who_does_not_know() {
    let mut first = Seat::new(1, Vec::new());
    first.lead(Some(1), 0);
    let other = Desired { epoch: Epoch(5), ..first.last().clone() };
    first.hear(&report("web-1", 1, &other), 10);
    first.lead(Some(6), 20);
    assert_eq!(first.last().hosts, None, "its list of hosts is lost");
    first.broadcast(7, 30);
    let mut second = Seat::new(2, Vec::new());
    second.find(Some(first.last()), 5);
    second.lead(Some(7), 10);
    let reign = second.last().clone();
    second.hear(&report("web-1", 2, &reign), 20);
    assert_eq!(second.ask("web-1", MINUTE), 0);
    second.machine.handle_stated_hosts(1, Moment(MINUTE)).unwrap();
    assert_eq!(second.ask("web-1", MINUTE), 1);
}

#[test]
fn a_host_is_heard_once_it_follows_the_new_reign_and_has_looked() {
    let check = |accepted: Version, scanned: bool, want: usize| {
        let mut first = Seat::leading(1, 1);
        first.broadcast(7, 1);
        let old = first.last().clone();
        for name in ["web-1", "web-2", "web-3"] {
            first.hear(&report(name, 1, &old), 10);
        }
        let mut again = Seat::new(3, first.disk);
        again.find(Some(&old), 5);
        again.lead(Some(2), 10);
        let reign = again.last().clone();
        for name in ["web-1", "web-2"] {
            again.hear(&report(name, 2, &reign), 20);
        }
        let last = Report { accepted: accepted.max(old.version()), scanned, ..report("web-3", 2, &reign) };
        let last = if accepted == reign.version() { last } else { Report { author: old.author, ..last } };
        again.hear(&last, 20);
        assert_eq!(again.ask("web-1", MINUTE), want, "{accepted} {scanned}");
    };
    let new = Version { epoch: Epoch(2), generation: Generation(3) };
    check(new, true, 1);
    check(new, false, 0);
    check(Version::default(), true, 0);
}

#[test]
fn what_the_bus_lost_is_written_again() {
    let mut seat = Seat::leading(1, 1);
    seat.broadcast(7, 1);
    let older = seat.published[0].clone();
    let newest = seat.last().clone();
    for (found, now) in [(None, 10_000), (Some(&older), 20_000)] {
        let before = seat.published.len();
        seat.find(found, now);
        assert_eq!(seat.published[before..], *std::slice::from_ref(&newest));
    }
    let before = seat.published.len();
    seat.find(Some(&newest), 30_000);
    assert_eq!(seat.published.len(), before);
}

#[test]
fn a_lease_ends_by_itself_and_whoever_held_it_rules_anew() {
    let mut seat = Seat::new(1, Vec::new());
    seat.machine.handle_lease(Lease { until: Moment(10_000), epoch: None }, Moment(0));
    seat.act();
    let before = seat.machine.version().epoch;
    assert!(seat.machine.leads(Moment(9_999)) && !seat.machine.leads(Moment(10_000)));
    assert_eq!(seat.machine.poll_timeout(), Some(Moment(10_000)));
    seat.machine.handle_lease(Lease { until: Moment(20_000), epoch: None }, Moment(10_000));
    assert!(seat.machine.version().epoch > before);
    seat.machine.handle_lease_lost(Moment(10_001));
    assert!(!seat.machine.leads(Moment(10_001)));
}

#[test]
fn nobody_becomes_silent_while_the_bus_is_away() {
    let mut seat = Seat::leading(1, 1);
    seat.machine.handle_connected(Moment(0));
    seat.broadcast(7, 1);
    let reign = seat.last().clone();
    seat.hear(&report("web-1", 1, &reign), 1_000);
    seat.machine.handle_disconnected(Moment(61_000));
    let is_silent = |seat: &Seat, now: u64| {
        let status = seat.machine.status(&app(), Revision(1), Moment(now)).unwrap();
        let is_named = matches!(&status.outcome, Outcome::Incomplete(why) if why.contains("web-1"));
        assert_eq!(status.hosts[0].silent, is_named, "{:?}", status.outcome);
        is_named
    };
    assert!(!is_silent(&seat, 30 * MINUTE));
    seat.machine.handle_connected(Moment(30 * MINUTE));
    assert!(!is_silent(&seat, 30 * MINUTE + 119_000));
    assert!(is_silent(&seat, 30 * MINUTE + 120_000));
}

#[test]
fn what_was_said_to_an_earlier_reign_does_not_count() {
    let mut seat = Seat::leading(1, 1);
    seat.broadcast(7, 1);
    let old = seat.last().clone();
    for name in ["web-1", "web-2"] {
        seat.hear(&report(name, 1, &old), 2);
    }
    seat.machine.handle_lease_lost(Moment(5));
    seat.act();
    seat.lead(Some(2), 10);
    let reign = seat.last().clone();
    seat.hear(&report("web-1", 2, &reign), 20);
    assert_eq!(seat.ask("web-1", MINUTE), 0, "web-2 may act on a permit of another reign");
    seat.hear(&report("web-2", 2, &reign), MINUTE + 1);
    assert_eq!(seat.granted.len(), 1);
}

#[test]
fn what_is_reported_of_before_a_repeated_broadcast_does_not_end_it() {
    let mut seat = Seat::leading(1, 1);
    let mut outcomes = Vec::new();
    for (sequence, unseen) in [(1, false), (2, true), (3, false)] {
        if sequence < 3 {
            seat.broadcast(7, 2 * MINUTE * sequence);
        }
        let follows = seat.last().clone();
        let mut report = report("web-1", sequence, &follows);
        let said = report.apps.get_mut(&app()).unwrap();
        *said = AppReport { converged: false, unseen, ..said.clone() };
        said.units = UnitCounts { blocked: 1, ..UnitCounts::default() };
        seat.hear(&report, 2 * MINUTE * sequence);
        let status = seat.machine.status(&app(), Revision(1), Moment(2 * MINUTE * sequence)).unwrap();
        outcomes.push(status.outcome);
    }
    assert!(matches!(&outcomes[0], Outcome::Failed(why) if why.contains("cannot be restarted")), "{outcomes:?}");
    assert!(matches!(&outcomes[1], Outcome::InProgress(_)), "{outcomes:?}");
    assert_eq!(outcomes[2], outcomes[0]);
}
