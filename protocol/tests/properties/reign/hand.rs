//! What people do to a fleet, and what they are told of it.

use super::*;
use unstale_protocol::coordinator::{MaxUnavailable, Reports};

/// The end of the last action on the slot, with nothing under way now.
fn ended(
    name: &str,
    sequence: u64,
    follows: &Desired,
    (result, purpose, asked_at): (DoneResult, Purpose, u64),
) -> Report {
    let mut report = drained(name, sequence, follows, &DrainId::new("none").unwrap());
    let slot = &mut report.slots[0];
    slot.phase = Phase::Up;
    let nonce = Nonce { incarnation: life(1), at: Moment(asked_at) };
    slot.done = Some(Done { nonce, result, purpose, elapsed_ms: 1, because: String::new() });
    report
}

#[test]
fn a_drain_that_was_given_up_is_asked_for_anew_under_another_name() {
    let mut seat = Seat::leading(1, 1);
    let first = drain(&mut seat, "web-1", 10);
    assert_eq!(drain(&mut seat, "web-1", 11), first, "nothing came of it yet");
    let refused = (DoneResult::Refused, Purpose::Drain(first.clone()), 1);
    seat.hear(&ended("web-1", 1, &seat.last().clone(), refused), 12);
    let second = drain(&mut seat, "web-1", 13);
    assert_ne!(second, first);
    assert_eq!(seat.last().drains.iter().map(|drain| &drain.id).collect::<Vec<_>>(), [&second]);
    // A later life gives no name again, whatever was taken back meanwhile.
    seat.machine.handle_undrain(&second, Moment(14)).unwrap();
    seat.act();
    let policy = CoordinatorPolicy::default();
    let mut machine = Coordinator::new(policy, seat.disk.clone(), Moment(0));
    while machine.poll_action().is_some() {}
    let mut later = Seat { machine, disk: seat.disk, published: Vec::new(), granted: Vec::new() };
    let third = drain(&mut later, "web-1", 15);
    assert!(third != first && third != second, "{third}");
}

#[test]
fn a_host_that_is_forgotten_leaves_no_drain_behind() {
    let mut seat = Seat::leading(1, 1);
    seat.hear(&report("web-1", 1, &seat.last().clone()), 9);
    drain(&mut seat, "web-1", 10);
    let other = drain(&mut seat, "web-2", 11);
    let before = seat.last().version();
    seat.machine.handle_forget(&host("web-1"), Moment(12)).unwrap();
    seat.act();
    assert_eq!(seat.last().drains.iter().map(|drain| &drain.id).collect::<Vec<_>>(), [&other]);
    assert!(seat.last().version() > before, "agents hear of it");
    let machine = Coordinator::new(CoordinatorPolicy::default(), seat.disk, Moment(0));
    assert_eq!(machine.drains().len(), 1);
}

#[test]
fn nothing_follows_a_canary_that_cannot_be_judged() {
    let mut seat = Seat::leading(1, 1);
    let revision = seat.broadcast(7, 1);
    let now = 2 * MINUTE;
    seat.hear(&report("web-1", 1, &seat.last().clone()), now);
    assert_eq!(seat.ask("web-1", now + 1), 1);
    let purpose = Purpose::Restart([(app(), revision)].into());
    let unproven = ended("web-1", 2, &seat.last().clone(), (DoneResult::Unproven, purpose, now + 1));
    seat.hear(&unproven, now + 2);
    let status = seat.machine.status(&app(), revision, Moment(now + 3)).unwrap();
    assert!(
        matches!(&status.outcome, Outcome::Halted(why) if why.contains("cannot be judged")),
        "{:?}",
        status.outcome
    );
    assert_eq!(seat.ask("web-1", now + 4), 0);
    // Whoever resumes has the next one tried, although the last one's end is still reported.
    seat.machine.handle_resume(&app(), None, None, "test", Moment(now + 5)).unwrap();
    seat.act();
    seat.hear(&Report { sequence: 3, accepted: seat.last().version(), ..unproven }, now + 6);
    assert_eq!(seat.ask("web-1", now + 7), 1);
}

#[test]
fn the_configured_budget_holds_for_drains_and_yields_to_that_of_a_pool() {
    let budget = |policy: CoordinatorPolicy| {
        let machine = Coordinator::new(
            CoordinatorPolicy { takeover_wait: std::time::Duration::ZERO, ..policy },
            Vec::new(),
            Moment(0),
        );
        let mut seat = Seat { machine, disk: Vec::new(), published: Vec::new(), granted: Vec::new() };
        seat.act();
        let slots: Vec<SlotId> = (0..20).map(|number| SlotId::new(format!("celery/none/{number}")).unwrap()).collect();
        let follows = seat.machine.desired();
        let full = Report {
            pools: [(pool(), PoolReport { total: 20, unavailable: 0 })].into(),
            ..report("web-1", 1, &follows)
        };
        seat.hear(&full, 1);
        let drains = slots.iter().map(|slot| DrainRecord {
            host: host("web-1"),
            slot: slot.clone(),
            deadline_ms: None,
            force: false,
            asked_by: "test".into(),
            at_ms: 0,
            since: Version::default(),
        });
        let ids = seat.machine.handle_drain(drains.collect(), Moment(2)).unwrap();
        seat.act();
        seat.hear(&Report { sequence: 2, accepted: seat.last().version(), ..full }, 3);
        let wants = slots.iter().zip(&ids).map(|(slot, id)| Want {
            slot: slot.clone(),
            identity: identity(),
            pools: [pool()].into(),
            purpose: Purpose::Drain(id.clone()),
        });
        let nonce = Nonce { incarnation: life(1), at: Moment(4) };
        let version = seat.machine.version();
        seat.machine.handle_ask(Ask { host: host("web-1"), nonce, version, wants: wants.collect() }, Moment(4));
        seat.act();
        seat.granted.len()
    };
    let units = |text: &str| text.parse::<MaxUnavailable>().unwrap();
    let usual = CoordinatorPolicy::default;
    assert_eq!(budget(usual()), 2, "a tenth of twenty");
    assert_eq!(budget(CoordinatorPolicy { max_unavailable: units("25%"), ..usual() }), 5);
    let pools: BTreeMap<_, _> = [(pool(), units("1"))].into();
    assert_eq!(budget(CoordinatorPolicy { max_unavailable: units("25%"), pools, ..usual() }), 1);
}

#[test]
fn an_agent_that_has_lost_its_state_is_told_from_late_words() {
    let mut seat = Seat::leading(1, 1);
    let follows = seat.last().clone();
    let known = Report { incarnation: life(57), ..report("web-1", 1, &follows) };
    seat.hear(&known, 10);
    assert_eq!(seat.machine.outnumbered(&host("web-1")), None);
    seat.hear(&report("web-1", 1, &follows), 20);
    assert_eq!(seat.machine.outnumbered(&host("web-1")), Some((1, 57)));
    seat.hear(&Report { sequence: 2, ..known }, 30);
    assert_eq!(seat.machine.outnumbered(&host("web-1")), None, "the known one goes on");
}

#[test]
fn a_second_agent_that_was_stopped_counts_no_longer() {
    let mut seat = Seat::leading(1, 1);
    let follows = seat.last().clone();
    let known = report("web-1", 1, &follows);
    seat.hear(&known, 10);
    let twin = Incarnation { counter: 1, random: Salt([2; 16]) };
    seat.hear(&Report { incarnation: twin, ..known.clone() }, 20);
    seat.hear(&Report { sequence: 2, ..known.clone() }, 30);
    assert!(seat.machine.is_host_doubled(&host("web-1")));
    seat.hear(&Report { sequence: 3, ..known }, 20 + 3 * MINUTE);
    assert!(!seat.machine.is_host_doubled(&host("web-1")));
}

/// A coordinator that leads without a number, on a bus that brings reports to these.
fn connected(reports: Reports) -> Seat {
    let policy = CoordinatorPolicy {
        leadership: Leadership::Leased,
        life: Salt([1; 16]),
        reports,
        ..CoordinatorPolicy::default()
    };
    let mut machine = Coordinator::new(policy, Vec::new(), Moment(0));
    machine.handle_connected(Moment(0));
    let mut seat = Seat { machine, disk: Vec::new(), published: Vec::new(), granted: Vec::new() };
    seat.lead(None, 0);
    seat
}

#[test]
fn who_stands_by_and_hears_no_reports_proves_nothing_and_calls_nobody_silent() {
    let mut seat = connected(Reports::ToLeader);
    let revision = seat.broadcast(7, 1);
    seat.hear(&report("web-1", 1, &seat.last().clone()), 2);
    let status = |seat: &Seat, now: u64| seat.machine.status(&app(), revision, Moment(now)).unwrap();
    assert_eq!(status(&seat, 2 * MINUTE).outcome, Outcome::Converged);
    seat.machine.handle_lease_lost(Moment(2 * MINUTE));
    for now in [2 * MINUTE, 10 * MINUTE] {
        let told = status(&seat, now);
        assert!(matches!(&told.outcome, Outcome::InProgress(why) if why.contains("stands by")), "{:?}", told.outcome);
        assert_eq!((told.hosts[0].silent, told.units.converged, told.units.unheard), (false, 0, 1));
    }
    // A quarter of an hour in which it could hear nobody makes nobody silent once it leads again.
    seat.lead(None, 17 * MINUTE);
    assert!(!status(&seat, 17 * MINUTE).hosts[0].silent);
    assert!(status(&seat, 18 * MINUTE + 10).hosts[0].silent, "it has listened for three minutes in all");
    // A lease that ended unseen: nothing was heard since then either.
    seat.hear(&report("web-1", 2, &seat.last().clone()), 19 * MINUTE);
    let lapsed = 17 * MINUTE + 60 * MINUTE;
    assert!(status(&seat, lapsed - 1).hosts[0].silent);
    seat.hear(&report("web-1", 3, &seat.last().clone()), lapsed - 2);
    assert!(!status(&seat, lapsed + 10 * MINUTE).hosts[0].silent);
    seat.machine.handle_timeout(Moment(lapsed + 10 * MINUTE));
    seat.lead(None, lapsed + 10 * MINUTE);
    assert!(!status(&seat, lapsed + 10 * MINUTE + 1).hosts[0].silent);
}

#[test]
fn who_stands_by_and_hears_all_reports_knows_who_is_silent() {
    let mut seat = connected(Reports::ToAll);
    let revision = seat.broadcast(7, 1);
    seat.machine.handle_lease_lost(Moment(2));
    seat.hear(&report("web-1", 1, &seat.last().clone()), 3);
    let status = |seat: &Seat, now: u64| seat.machine.status(&app(), revision, Moment(now)).unwrap();
    // How it stands is for the leader to say all the same.
    assert!(matches!(status(&seat, 2 * MINUTE).outcome, Outcome::InProgress(_)));
    assert!(!status(&seat, 2 * MINUTE).hosts[0].silent && status(&seat, 4 * MINUTE).hosts[0].silent);
    assert!(matches!(status(&seat, 4 * MINUTE).outcome, Outcome::InProgress(_)));
    // Once the bus is lost it is no wiser than any other.
    seat.machine.handle_disconnected(Moment(5 * MINUTE));
    assert!(matches!(status(&seat, 6 * MINUTE).outcome, Outcome::InProgress(_)));
}

#[test]
fn what_silent_hosts_had_is_part_of_no_proof() {
    let mut seat = connected(Reports::ToAll);
    let broadcast = Broadcast {
        app: app(),
        manifest: Fingerprint([7; 32]),
        fingerprint: Fingerprint([7; 32]),
        terms: Terms { ignore_silent: true, ..Terms::default() },
        asked_by: "test".into(),
        message: None,
        meta: BTreeMap::new(),
        at_ms: 0,
    };
    let revision = seat.machine.handle_broadcast(&broadcast, Moment(1)).unwrap().revision;
    seat.act();
    let known = seat.last().clone();
    seat.hear(&report("web-1", 1, &known), 2);
    seat.hear(&report("web-2", 1, &known), 2);
    seat.hear(&report("web-1", 2, &known), 4 * MINUTE);
    let status = |now: u64| seat.machine.status(&app(), revision, Moment(now)).unwrap();
    let one = status(4 * MINUTE);
    assert_eq!((one.outcome, one.units.converged, one.units.unheard), (Outcome::Converged, 1, 1));
    let none = status(8 * MINUTE);
    assert_eq!((none.units.converged, none.units.unheard), (0, 2));
    assert!(
        matches!(&none.outcome, Outcome::Incomplete(why) if why.contains("nothing is proven")),
        "{:?}",
        none.outcome
    );
}

#[test]
fn who_stands_by_names_the_host_that_leads() {
    let policy = CoordinatorPolicy { host: Some(host("web-7")), ..CoordinatorPolicy::default() };
    let led = Coordinator::new(policy, Vec::new(), Moment(0));
    assert_eq!(led.leader(Moment(0)), Some(&host("web-7")));
    let found = Desired { epoch: Epoch(5), author: Salt([7; 16]), ..led.desired() };
    let mut seat = connected(Reports::ToLeader);
    let revision = seat.broadcast(7, 1);
    seat.machine.handle_lease_lost(Moment(2));
    assert_eq!(seat.machine.leader(Moment(3)), None);
    seat.find(Some(&found), 4);
    assert_eq!(seat.machine.leader(Moment(4)), Some(&host("web-7")));
    let refused = seat.machine.handle_abort(&app(), None, "test", Moment(5)).unwrap_err().to_string();
    assert_eq!(refused, "this coordinator stands by: the one on web-7 leads the fleet");
    let told = seat.machine.status(&app(), revision, Moment(6)).unwrap().outcome;
    assert!(matches!(&told, Outcome::InProgress(why) if why.contains("web-7, which leads")), "{told:?}");
    // What is older says nothing of who leads now; and a reign of its own ends what it knew of others.
    seat.find(Some(&Desired { epoch: Epoch(1), leader: Some(host("web-1")), ..found }), 7);
    assert_eq!(seat.machine.leader(Moment(8)), Some(&host("web-7")));
    seat.lead(None, 9);
    seat.machine.handle_lease_lost(Moment(10));
    assert_eq!(seat.machine.leader(Moment(11)), None);
}
