//! The list of hosts: when it is all there are, and when nobody can tell.

use super::*;

#[test]
fn a_lost_list_of_hosts_stays_lost_over_a_restart() {
    // It may die before it leads again: what it has heard meanwhile is no whole list either.
    for leads_again in [true, false] {
        let mut first = Seat::leading(1, 1);
        let other = Desired { epoch: Epoch(5), ..first.last().clone() };
        first.hear(&report("web-1", 1, &other), 10);
        if leads_again {
            first.lead(Some(6), 20);
            first.broadcast(7, 30);
        }
        let known = leads_again.then(|| first.last().clone());
        let mut again = Seat::new(3, first.disk);
        again.find(known.as_ref(), 5);
        again.lead(Some(7), 10);
        if !leads_again {
            again.broadcast(7, 15);
        }
        let reign = again.last().clone();
        again.hear(&report("web-1", 2, &reign), 20);
        assert_eq!(again.ask("web-1", MINUTE), 0, "{leads_again}");
        again.machine.handle_stated_hosts(1, Moment(MINUTE)).unwrap();
        assert_eq!(again.ask("web-1", MINUTE), 1, "{leads_again}");
    }
}

#[test]
fn a_number_that_others_must_have_had_shows_that_the_list_of_hosts_is_lost() {
    let mut seat = Seat::leading(1, 5);
    seat.broadcast(7, 1);
    let reign = seat.last().clone();
    seat.hear(&report("web-1", 1, &reign), 10);
    assert_eq!(seat.ask("web-1", MINUTE), 0);
    assert!(seat.machine.has_lost_hosts());
    seat.machine.handle_stated_hosts(1, Moment(MINUTE)).unwrap();
    assert_eq!(seat.ask("web-1", MINUTE), 1);
}

/// What the leader of another reign desires of a fleet of so many hosts.
fn told(hosts: u32) -> Desired {
    Desired { hosts: Some(hosts), ..Seat::leading(9, 5).last().clone() }
}

/// The last report of a host that leaves, and has nothing any more.
fn gone(name: &str, sequence: u64, follows: &Desired) -> Report {
    Report { leaving: true, pools: BTreeMap::new(), ..report(name, sequence, follows) }
}

/// A standby with an empty disk that has heard one host of a later reign, and was started again since.
fn restarted_standby(told: Option<&Desired>) -> Seat {
    let mut first = Seat::new(1, Vec::new());
    first.find(told, 5);
    first.hear(&report("web-1", 1, told.unwrap_or(&self::told(2))), 10);
    first.find(told, 15);
    Seat::new(2, first.disk)
}

#[test]
fn a_standby_does_not_take_the_hosts_it_heard_before_a_restart_for_all() {
    for (told, want) in [(None, 0), (Some(told(2)), 0), (Some(told(1)), 1)] {
        let mut again = restarted_standby(told.as_ref());
        // The bus has lost what it held, and nobody is there to say it again.
        again.find(None, 5);
        again.lead(Some(6), 10);
        again.broadcast(7, 15);
        let reign = again.last().clone();
        again.hear(&report("web-1", 2, &reign), 20);
        assert_eq!(again.ask("web-1", MINUTE), want, "{told:?}");
    }
}

#[test]
fn a_list_is_trusted_once_every_host_has_had_its_turn_to_speak() {
    for (heard_at, want) in [(10, 0), (2 * MINUTE, 1)] {
        let mut first = Seat::leading(1, 1);
        let reign = first.last().clone();
        first.hear(&report("web-1", 1, &reign), 5);
        first.hear(&report("web-1", 2, &reign), heard_at);
        // Only now, and only by a host that was away, it learns that it was not the first to lead.
        let mut again = Seat::new(2, first.disk);
        again.lead(Some(2), 10);
        again.hear(&report("web-2", 1, &told(2)), 15);
        again.lead(Some(6), 20);
        again.broadcast(7, 25);
        let reign = again.last().clone();
        for name in ["web-1", "web-2"] {
            again.hear(&report(name, 3, &reign), 30);
        }
        assert_eq!(again.ask("web-1", MINUTE), want, "{heard_at}");
    }
}

#[test]
fn a_host_that_leaves_makes_no_list_too_short() {
    let mut standby = Seat::new(1, Vec::new());
    let told = told(2);
    standby.find(Some(&told), 5);
    for name in ["web-1", "web-2"] {
        standby.hear(&report(name, 1, &told), 10);
    }
    standby.hear(&gone("web-2", 2, &told), 15);
    standby.find(Some(&told), 20);
    standby.lead(Some(6), 25);
    assert_eq!(standby.last().hosts, Some(1), "nobody has to speak first");
    standby.broadcast(7, 30);
    let reign = standby.last().clone();
    standby.hear(&report("web-1", 2, &reign), 35);
    assert_eq!(standby.ask("web-1", MINUTE), 1);
}

#[test]
fn a_host_that_has_left_is_not_among_those_that_an_operator_counts() {
    let mut seat = Seat::leading(1, 5);
    seat.broadcast(7, 1);
    let reign = seat.last().clone();
    seat.hear(&gone("web-3", 1, &reign), 5);
    seat.hear(&report("web-1", 1, &reign), 10);
    seat.machine.handle_stated_hosts(2, Moment(20)).unwrap();
    assert_eq!(seat.ask("web-1", MINUTE), 0, "web-2 was not heard yet");
    seat.hear(&report("web-2", 1, &reign), MINUTE + 1);
    assert_eq!(seat.granted.len(), 1);
}

#[test]
fn a_host_that_is_back_is_among_those_that_an_operator_counts() {
    let mut seat = Seat::leading(1, 5);
    seat.broadcast(7, 1);
    let reign = seat.last().clone();
    seat.hear(&gone("web-2", 1, &reign), 5);
    // It is up again, and has not said so yet.
    seat.machine.handle_stated_hosts(2, Moment(10)).unwrap();
    seat.hear(&report("web-1", 1, &reign), 20);
    assert_eq!(seat.ask("web-1", MINUTE), 0, "web-2 was not heard yet");
    seat.hear(&Report { incarnation: life(2), ..report("web-2", 1, &reign) }, MINUTE + 1);
    assert_eq!(seat.granted.len(), 1);
}
