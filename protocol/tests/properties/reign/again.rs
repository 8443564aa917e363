//! What a host says again, and what of it is new: most reports say what the last one said.

use super::{Seat, app, host, life, pool, report};
use unstale_protocol::coordinator::{HostRecord, Record};
use unstale_protocol::message::{PoolReport, Report};
use unstale_protocol::time::Moment;

/// Hears these one after another, and returns what was kept of the host after each; none where nothing was.
fn kept_of(reports: impl IntoIterator<Item = Report>) -> Vec<Option<HostRecord>> {
    let mut seat = Seat::leading(1, 1);
    seat.broadcast(7, 5);
    let mut kept = Vec::new();
    for (sequence, said) in (1..).zip(reports) {
        let before = seat.disk.len();
        let follows = seat.last().clone();
        let (accepted, author) = (follows.version(), follows.author);
        seat.hear(&Report { sequence, clock: Moment(sequence), accepted, author, ..said }, 10 * sequence);
        kept.push(seat.disk[before..].iter().rev().find_map(|record| match record {
            Record::Host(name, Some(record)) if *name == host("web-1") => Some(record.clone()),
            _ => None,
        }));
    }
    kept
}

fn said() -> Report {
    let mut seat = Seat::leading(1, 1);
    seat.broadcast(7, 5);
    report("web-1", 1, seat.last())
}

#[test]
fn what_is_said_again_is_not_kept_again() {
    let kept = kept_of([said(), said(), said()]);
    assert!(kept[0].is_some() && kept[1..] == [None, None], "{kept:?}");
}

#[test]
fn a_pool_that_has_grown_counts_although_nothing_else_is_new() {
    let grown = Report { pools: [(pool(), PoolReport { total: 5, unavailable: 0 })].into(), ..said() };
    let kept = kept_of([said(), grown, said()]);
    let totals = kept.iter().map(|kept| kept.as_ref().and_then(|kept| kept.pools.get(&pool()).copied()));
    assert_eq!(totals.collect::<Vec<_>>(), [Some(1), Some(5), Some(1)]);
}

#[test]
fn who_leaves_is_known_to_have_left_and_to_be_back() {
    let back = Report { incarnation: life(2), ..said() };
    let kept = kept_of([said(), Report { leaving: true, ..said() }, back]);
    let left = kept.iter().map(|kept| kept.as_ref().map(|kept| kept.left));
    assert_eq!(left.collect::<Vec<_>>(), [Some(false), Some(true), Some(false)]);
}

#[test]
fn who_has_looked_at_last_is_known_to_have_although_it_found_what_it_remembered() {
    let kept = kept_of([Report { scanned: false, ..said() }, said()]);
    let apps = kept.iter().map(|kept| kept.as_ref().map(|kept| kept.apps.iter().flatten().any(|name| *name == app())));
    assert_eq!(apps.collect::<Vec<_>>(), [Some(false), Some(true)]);
}

#[test]
fn a_host_that_looks_again_and_is_no_longer_right_is_said_to_be_reopened() {
    let (right, looking, wrong) = ((true, false), (false, true), (false, false));
    let check = |story: &[(u64, (bool, bool))], expected: &[&str]| {
        let mut seat = Seat::leading(1, 1);
        seat.broadcast(7, 5);
        for (sequence, (counter, (converged, unseen))) in (1..).zip(story) {
            let mut report = report("web-1", sequence, seat.last());
            report.incarnation = life(*counter);
            let said = report.apps.get_mut(&app()).unwrap();
            (said.converged, said.unseen) = (*converged, *unseen);
            seat.hear(&report, 10 * sequence);
        }
        let events = seat.disk.iter().filter_map(|record| match record {
            Record::Event(event) if event.host.is_some() => Some(event.what.as_str()),
            _ => None,
        });
        assert_eq!(events.collect::<Vec<_>>(), expected, "{story:?}");
    };
    check(&[(1, right), (1, wrong)], &["host converged", "host reopened"]);
    check(&[(1, right), (1, looking), (1, looking), (1, wrong), (1, wrong)], &["host converged", "host reopened"]);
    check(&[(1, right), (1, looking), (1, right), (1, looking), (1, right)], &["host converged"; 3]);
    check(&[(1, looking), (1, wrong)], &[]);
    // A new life of the agent has to prove everything anew.
    check(&[(1, right), (2, looking), (2, wrong), (2, right)], &["host converged"; 2]);
    check(&[(1, right), (1, looking), (2, wrong)], &["host converged"]);
}
