//! When workers really stopped and came back, by their own notes, which name the machine's monotonic clock.

use crate::harness::hosts::Host;
use std::collections::BTreeMap;

/// One restart of the worker on one host.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Restart {
    /// The host.
    pub(crate) host: String,
    /// When it was told to stop, in seconds; takes no new task from then on.
    pub(crate) stopping: f64,
    /// When it took tasks again.
    pub(crate) ready: f64,
}

/// What all workers of a fleet have noted up to some time.
#[derive(Clone, Debug)]
pub(crate) struct Mark(BTreeMap<String, (usize, usize)>);

fn times(host: &Host, word: &str) -> Vec<f64> {
    let lines = host.app.journal(&format!("{word} "));
    let last = lines.iter().filter_map(|line| line.rsplit(' ').next()?.parse().ok());
    last.collect()
}

impl Mark {
    /// Marks how much has happened by now.
    pub(crate) fn set(hosts: &[Host]) -> Self {
        let of = |host: &Host| (host.name.clone(), (times(host, "stopping").len(), times(host, "ready").len()));
        Self(hosts.iter().map(of).collect())
    }

    /// Returns the restarts since then, in the order in which they began. Every worker must be back.
    #[track_caller]
    pub(crate) fn restarts_since(&self, hosts: &[Host]) -> Vec<Restart> {
        let mut all = Vec::new();
        for host in hosts {
            let (stopped, came) = self.0.get(&host.name).copied().unwrap_or_default();
            let stopping = times(host, "stopping").split_off(stopped);
            let ready = times(host, "ready").split_off(came);
            assert_eq!(
                stopping.len(),
                ready.len(),
                "each stop of {} is followed by a start: {stopping:?} {ready:?}",
                host.name
            );
            for (stopping, ready) in stopping.into_iter().zip(ready) {
                assert!(stopping < ready, "{} stopped at {stopping} and was back at {ready}", host.name);
                all.push(Restart { host: host.name.clone(), stopping, ready });
            }
        }
        all.sort_by(|one, other| one.stopping.total_cmp(&other.stopping));
        all
    }
}

/// Returns how many were down at once at most.
pub(crate) fn most_down_at_once(restarts: &[Restart]) -> usize {
    // It can only grow where one stops.
    let down_at = |time: f64| restarts.iter().filter(|one| one.stopping <= time && time < one.ready).count();
    restarts.iter().map(|one| down_at(one.stopping)).max().unwrap_or(0)
}

#[test]
fn the_most_that_were_down_at_once_are_counted() {
    let one = |stopping: f64, ready: f64| Restart { host: "web".to_owned(), stopping, ready };
    assert_eq!(most_down_at_once(&[]), 0);
    assert_eq!(most_down_at_once(&[one(1.0, 2.0), one(2.0, 3.0)]), 1);
    assert_eq!(most_down_at_once(&[one(1.0, 4.0), one(2.0, 3.0), one(2.5, 5.0), one(4.0, 6.0)]), 3);
}
