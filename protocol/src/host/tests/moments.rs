//! When a host says something that everybody has heard of, and the last thing that it says.

use super::*;

#[test]
fn a_new_state_is_answered_within_two_seconds_and_not_by_all_at_once() {
    let mut moments = BTreeSet::new();
    for seed in 0..50 {
        let incarnation = Incarnation { counter: 1, random: Salt([1; 16]) };
        let name = HostName::new(format!("web-{seed}")).unwrap();
        let mut host = Host::new(name, incarnation, HostPolicy::default(), Vec::new(), seed << 32, Moment(0));
        host.handle_connected(Moment(0));
        assert!(said(&mut host).0.is_some());
        host.handle_desired(&announced(1), Moment(10_000));
        // The next state comes before the first one is answered: one answer does for both.
        host.handle_desired(&announced(2), Moment(10_000));
        let mut at = Moment(10_000);
        if said(&mut host).0.is_none() {
            at = host.poll_timeout().unwrap();
            host.handle_timeout(at);
            let report = said(&mut host).0.unwrap();
            assert_eq!(report.accepted.generation, Generation(2));
        }
        assert!((10_000..12_000).contains(&at.0), "seed {seed}: {at:?}");
        moments.insert(at.0 / 100);
        // What is new afterwards is said as soon as ever, and who leaves or comes back does not wait.
        host.handle_desired(&announced(3), Moment(30_000));
        host.handle_leaving(Moment(30_000));
        assert!(said(&mut host).0.unwrap().leaving);
    }
    assert!(moments.len() > 10, "{moments:?}");
}

#[test]
fn a_host_that_leaves_says_so_and_begins_nothing() {
    for leaves in [false, true] {
        let mut host = host();
        let unit = other("celery", 7, &[]);
        host.handle_desired(&Desired { drains: vec![drain_of(&unit)], ..desired(1) }, Moment(1));
        host.handle_scan(&Scan { full: true, others: vec![unit.clone()], ..Scan::default() }, Moment(2));
        let ask = said(&mut host).1.unwrap();
        if leaves {
            host.handle_leaving(Moment(3));
            let (report, again) = said(&mut host);
            assert_eq!((report.unwrap().leaving, again), (true, None));
        }
        host.handle_permit(&permit_for(ask), Moment(4));
        assert_eq!(host.intent(&unit.view.slot).is_none(), leaves);
    }
}
