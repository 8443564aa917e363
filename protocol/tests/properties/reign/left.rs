//! Hosts whose machine has gone down: what they still use of a budget, and when they are expected again.

use super::*;
use std::collections::BTreeSet;

/// The last report of a host whose machine goes down, and whose unit is up or down by then.
fn leaving(name: &str, sequence: u64, follows: &Desired, unavailable: u32) -> Report {
    let pools = [(pool(), PoolReport { total: 1, unavailable })].into();
    Report { leaving: true, pools, ..report(name, sequence, follows) }
}

/// A fleet of such hosts that was told what is wanted long ago, all of them heard.
fn fleet(names: &[&str]) -> Seat {
    let mut seat = Seat::leading(1, 1);
    seat.broadcast(7, 1);
    let reign = seat.last().clone();
    for name in names {
        seat.hear(&report(name, 1, &reign), MINUTE);
    }
    seat
}

fn expected(seat: &Seat) -> BTreeSet<String> {
    let rollout = seat.machine.status(&app(), Revision(1), Moment(MINUTE)).unwrap();
    rollout.hosts.iter().map(|host| host.host.to_string()).collect()
}

#[test]
fn what_is_down_on_a_host_that_has_left_uses_no_budget() {
    for (unavailable, leaves, want) in [(1, false, 0), (1, true, 1), (0, true, 1)] {
        let mut seat = fleet(&["web-1", "web-2", "web-3"]);
        let reign = seat.last().clone();
        let last = Report { leaving: leaves, ..leaving("web-3", 2, &reign, unavailable) };
        seat.hear(&last, MINUTE + 1);
        assert_eq!(seat.ask("web-1", MINUTE + 2), want, "{unavailable} {leaves}");
    }
}

#[test]
fn a_host_that_has_left_keeps_nothing_up_while_the_last_ones_restart() {
    let mut seat = fleet(&["web-1", "web-2", "web-3"]);
    let most = Some("3".parse().unwrap());
    seat.machine.handle_resume(&app(), None, most, "test", Moment(MINUTE)).unwrap();
    seat.act();
    let reign = seat.last().clone();
    for name in ["web-1", "web-2"] {
        seat.hear(&report(name, 2, &reign), MINUTE);
    }
    seat.hear(&leaving("web-3", 2, &reign, 0), MINUTE + 1);
    assert_eq!(seat.ask("web-1", MINUTE + 2), 1);
    assert_eq!(seat.ask("web-2", MINUTE + 3), 0, "of the two that are there one stays up");
}

#[test]
fn what_was_granted_to_a_host_that_has_left_uses_budget_until_it_is_back_or_forgotten() {
    for is_forgotten in [true, false] {
        let mut seat = fleet(&["web-1", "web-2"]);
        let reign = seat.last().clone();
        assert_eq!(seat.ask("web-2", MINUTE + 1), 1);
        seat.hear(&leaving("web-2", 2, &reign, 0), MINUTE + 2);
        assert_eq!(seat.machine.left_hosts().collect::<Vec<_>>(), [(&host("web-2"), 1)]);
        assert_eq!(seat.ask("web-1", MINUTE + 3), 0);
        if is_forgotten {
            seat.machine.handle_forget(&host("web-2"), Moment(MINUTE + 4)).unwrap();
        } else {
            seat.hear(&Report { incarnation: life(2), ..report("web-2", 1, &reign) }, MINUTE + 4);
        }
        seat.act();
        assert_eq!(seat.granted.len(), 2, "{is_forgotten}");
    }
}

#[test]
fn what_was_under_way_when_a_host_left_uses_budget_although_nobody_here_granted_it() {
    for (phase, want) in [(Phase::Starting, 0), (Phase::Down, 1)] {
        let mut seat = fleet(&["web-1", "web-2"]);
        let reign = seat.last().clone();
        let mut last = drained("web-2", 2, &reign, &DrainId::new("none").unwrap());
        (last.slots[0].phase, last.leaving) = (phase, true);
        seat.hear(&last, MINUTE + 1);
        assert_eq!(seat.ask("web-1", MINUTE + 2), want, "{phase:?}");
    }
}

#[test]
fn nothing_is_granted_to_a_host_that_has_left() {
    let mut seat = fleet(&["web-1"]);
    seat.hear(&leaving("web-1", 2, &seat.last().clone(), 0), MINUTE + 1);
    assert_eq!(seat.ask("web-1", MINUTE + 2), 0);
}

#[test]
fn a_host_that_has_left_is_expected_again_in_its_next_life_and_by_nothing_older() {
    let mut seat = fleet(&["web-1", "web-2"]);
    let reign = seat.last().clone();
    seat.hear(&leaving("web-2", 3, &reign, 0), MINUTE + 1);
    assert_eq!(expected(&seat), BTreeSet::from(["web-1".to_owned()]));
    // Another life of the coordinator does not know any more which reports of that life it has heard.
    let mut seat = Seat::new(2, seat.disk);
    seat.lead(Some(2), 0);
    let reign = seat.last().clone();
    seat.hear(&report("web-2", 2, &reign), 1);
    assert_eq!(expected(&seat), BTreeSet::from(["web-1".to_owned()]), "those words are of before");
    seat.hear(&Report { incarnation: life(2), ..report("web-2", 1, &reign) }, 2);
    assert_eq!(expected(&seat).len(), 2);
    let told = seat.disk.iter().filter_map(|record| match record {
        Record::Event(event) if event.host == Some(host("web-2")) && event.app.is_none() => Some(event.what.as_str()),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), ["host left", "host is back"]);
    seat.hear(&leaving("web-2", 9, &reign, 0), 3);
    assert_eq!(expected(&seat).len(), 2, "that life was over long ago");
}

#[test]
fn after_a_takeover_a_host_that_has_left_counts_until_it_had_its_turn_to_say_that_it_is_back() {
    let mut seat = fleet(&["web-1", "web-2"]);
    seat.hear(&leaving("web-2", 2, &seat.last().clone(), 0), MINUTE + 1);
    let mut seat = Seat::new(2, seat.disk);
    seat.lead(Some(2), 0);
    let reign = seat.last().clone();
    seat.hear(&report("web-1", 2, &reign), 1);
    assert_eq!(seat.ask("web-1", 40_000), 0, "another one may have granted it something");
    assert_eq!(seat.ask("web-1", 71_000), 1);
}

#[test]
fn a_host_that_has_left_counts_as_long_as_not_all_is_known_that_was_granted() {
    let mut seat = fleet(&["web-1", "web-2"]);
    seat.hear(&leaving("web-2", 2, &seat.last().clone(), 0), 2 * MINUTE);
    let mut seat = Seat::new(2, seat.disk);
    // Another one has reigned in between.
    seat.lead(Some(3), 0);
    let reign = seat.last().clone();
    seat.machine.handle_timeout(Moment(71_000));
    seat.act();
    assert!(seat.machine.desired().partial);
    seat.hear(&report("web-1", 2, &reign), 2 * MINUTE);
    assert!(!seat.machine.desired().partial);
    assert_eq!(seat.ask("web-1", 2 * MINUTE + 1), 1);
}

#[test]
fn a_drain_on_a_host_that_has_left_is_not_lost_with_everything_else() {
    let mut first = fleet(&["web-1", "web-2"]);
    let drain = drain(&mut first, "web-2", MINUTE);
    let reign = first.last().clone();
    // Another one, with an empty disk, hears the last words of the host before it leads.
    let mut seat = Seat::new(2, Vec::new());
    seat.hear(&Report { leaving: true, ..drained("web-2", 2, &reign, &drain) }, 1);
    seat.lead(Some(9), 2);
    seat.machine.handle_stated_hosts(1, Moment(3)).unwrap();
    let reign = seat.last().clone();
    seat.hear(&report("web-1", 2, &reign), 4);
    seat.machine.handle_timeout(Moment(75_000));
    seat.act();
    assert!(!seat.last().partial);
    assert_eq!(seat.last().drains.iter().map(|drain| &drain.id).collect::<Vec<_>>(), [&drain]);
}

#[test]
fn who_alone_can_grant_believes_at_once_that_a_host_has_left() {
    let first = {
        let mut seat = fleet(&["web-1", "web-2"]);
        seat.hear(&leaving("web-2", 2, &seat.last().clone(), 0), MINUTE + 1);
        seat
    };
    let policy = CoordinatorPolicy { takeover_wait: std::time::Duration::ZERO, ..CoordinatorPolicy::default() };
    let machine = Coordinator::new(policy, first.disk.clone(), Moment(0));
    let mut seat = Seat { machine, disk: first.disk, published: Vec::new(), granted: Vec::new() };
    seat.act();
    let reign = seat.last().clone();
    seat.hear(&report("web-1", 2, &reign), 1);
    assert_eq!(seat.ask("web-1", 2), 1);
}

#[test]
fn a_host_that_only_configuration_names_is_not_forgotten_and_it_is_said_why() {
    let policy = CoordinatorPolicy { expected_hosts: [host("web-9")].into(), ..CoordinatorPolicy::default() };
    let mut machine = Coordinator::new(policy, Vec::new(), Moment(0));
    let refused = machine.handle_forget(&host("web-9"), Moment(1)).unwrap_err();
    assert_eq!(refused, Refused::Configured(host("web-9")));
    assert!(refused.to_string().contains("expected_hosts"), "{refused}");
    assert_eq!(machine.handle_forget(&host("web-8"), Moment(1)), Err(Refused::NoHost(host("web-8"))));
    // One that was heard is forgotten, with all that it used, and is expected none the less.
    machine.handle_report(report("web-9", 1, &machine.desired()), Moment(2));
    assert_eq!(machine.handle_forget(&host("web-9"), Moment(3)), Ok(()));
    assert!(machine.is_host_configured(&host("web-9")));
}
