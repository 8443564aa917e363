//! Reigns that did not know of each other, and what nobody is left to know.

use super::*;

#[test]
fn a_number_that_was_only_reserved_does_not_outrank_what_was_published() {
    let mut first = Seat::leading(1, 1);
    first.broadcast(7, 1);
    let known = first.last().clone();
    let mut second = Seat::new(2, Vec::new());
    second.find(Some(&known), 5);
    second.lead(None, 10);
    let reign = second.last().clone();
    first.find(Some(&reign), 20);
    // The first one leads again under a number that goes no further than its own disk.
    first.lead(None, 30);
    first.machine.handle_lease_lost(Moment(40));
    let id = drain(&mut second, "web-1", 50);
    assert!(second.last().version() < first.machine.version());
    first.find(Some(second.last()), 60);
    first.lead(None, 70);
    assert_eq!(first.last().drains.iter().map(|drain| &drain.id).collect::<Vec<_>>(), [&id]);
    assert!(first.last().version() > second.last().version());
    // What is known to have gone out holds against what is older.
    let own = first.last().clone();
    first.find(Some(&own), 80);
    first.find(Some(&Desired { drains: Vec::new(), ..reign }), 90);
    assert_eq!(first.last().drains.len(), 1);
}

#[test]
fn one_that_reigned_at_the_same_time_ends_no_drain_that_it_never_knew() {
    let mut first = Seat::new(1, Vec::new());
    first.lead(None, 0);
    let rival = first.last().clone();
    let mut second = Seat::new(2, Vec::new());
    second.lead(None, 0);
    let id = drain(&mut second, "web-1", 5);
    second.find(Some(&rival), 10);
    assert!(second.last().epoch > rival.epoch);
    assert_eq!(second.last().drains.iter().map(|drain| &drain.id).collect::<Vec<_>>(), [&id]);
}

#[test]
fn a_reign_that_began_without_knowing_of_a_state_is_told_of_it_first() {
    let mut first = Seat::leading(1, 1);
    let mut second = Seat::new(2, Vec::new());
    second.find(Some(first.last()), 1);
    let id = drain(&mut first, "web-1", 2);
    first.broadcast(7, 3);
    let known = first.last().clone();
    let mut agent = Host::new(host("web-1"), life(1), HostPolicy::default(), Vec::new(), 1, Moment(0));
    agent.handle_desired(&known, Moment(1));
    second.lead(Some(2), 10);
    agent.handle_desired(second.last(), Moment(2));
    assert_eq!(agent.accepted(), known.version());
    second.hear(&drained("web-1", 1, &known, &id), 20);
    assert!(second.last().partial);
    assert_eq!(second.last().drains.iter().map(|drain| &drain.id).collect::<Vec<_>>(), [&id]);
    agent.handle_desired(second.last(), Moment(3));
    assert_eq!(agent.accepted(), second.last().version());
}

#[test]
fn nothing_is_restarted_beside_a_host_of_which_nobody_knows_what_it_has() {
    let unseen = |follows: &Desired| {
        let mut early = report("web-2", 1, follows);
        early.pools.clear();
        early.apps.values_mut().for_each(|app| app.unseen = true);
        early
    };
    let check = |is_same_disk: bool, looked_for: bool, want: usize| {
        let mut first = Seat::leading(1, 1);
        let mut second = Seat::new(2, Vec::new());
        second.hear(&unseen(first.last()), 1);
        first.hear(&unseen(first.last()), 1);
        first.broadcast(7, 2);
        let known = first.last().clone();
        let mut next = if is_same_disk { Seat::new(2, first.disk) } else { second };
        next.find(Some(&known), 3);
        if looked_for {
            let mut nothing = unseen(&known);
            nothing.sequence = 2;
            nothing.apps.values_mut().for_each(|app| app.unseen = false);
            next.hear(&nothing, 4);
        }
        next.lead(Some(2), 10);
        let reign = next.last().clone();
        next.hear(&report("web-1", 1, &reign), 20);
        assert_eq!(next.ask("web-1", MINUTE), want, "the same disk: {is_same_disk}, looked for: {looked_for}");
        let status = next.machine.status(&app(), Revision(1), Moment(MINUTE)).unwrap();
        let named: Vec<_> = status.hosts.iter().filter(|host| host.uncounted).map(|host| host.host.as_str()).collect();
        assert_eq!(named, if want == 0 { vec!["web-2"] } else { vec![] });
        assert_eq!(next.machine.uncounted(&app()).is_some_and(|why| why.contains("forget host:web-2")), want == 0);
        next
    };
    check(true, false, 1);
    check(false, true, 1);
    let mut next = check(false, false, 0);
    next.machine.handle_forget(&host("web-2"), Moment(MINUTE + 1)).unwrap();
    next.act();
    assert_eq!(next.granted.len(), 1, "what waited is granted at once");
    let mut next = check(false, false, 0);
    let reign = next.last().clone();
    let mut late = unseen(&reign);
    late.sequence = 3;
    next.hear(&late, MINUTE + 1);
    assert_eq!(next.granted.len(), 1, "what waited is granted at once");
}
