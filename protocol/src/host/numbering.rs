//! Numbers of equal units that nobody supervises: which process has which, and when that is written down.

use super::{Action, Host, Record};
use crate::ids::{ProcessIdentity, SlotId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which process has which number, within one boot of the machine.
///
/// Eyes that begin anew need it: a drain of the first of two equal units must not fall on the second one, which would
/// be the first of those that are left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbering {
    /// `/proc/sys/kernel/random/boot_id`: start times count from the boot. Empty where it is not known.
    #[serde(default)]
    pub boot_id: String,
    /// The root of the unit in each slot whose name ends with such a number.
    #[serde(default)]
    pub given: BTreeMap<SlotId, ProcessIdentity>,
}

impl Host {
    pub(super) fn see_numbering(&mut self, seen: &Numbering) {
        if self.numbering != *seen {
            self.numbering.clone_from(seen);
            self.is_numbering_stored = false;
        }
    }

    /// Writes the numbers down. Called before a message leaves: nobody else can mean a slot that was never named.
    /// Plain processes that come and go are no news, and cost no write of their own.
    pub(super) fn store_numbering(&mut self) {
        if !self.is_numbering_stored {
            self.is_numbering_stored = true;
            self.actions.push_back(Action::Store(vec![Record::Numbering(self.numbering.clone())]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{HostPolicy, OtherView, Scan, UnitView};
    use super::*;
    use crate::fingerprint::Salt;
    use crate::ids::{DrainId, Epoch, Generation, HostName, Incarnation, Pid, UnitId};
    use crate::message::{Desired, DesiredDrain};
    use crate::time::Moment;
    use std::collections::BTreeSet;

    fn host(records: Vec<Record>) -> Host {
        let incarnation = Incarnation { counter: 1, random: Salt([1; 16]) };
        Host::new(HostName::new("web-1").unwrap(), incarnation, HostPolicy::default(), records, 7, Moment(0))
    }

    fn slot(number: u32) -> SlotId {
        SlotId::new(format!("celery/none/0a1b2c3d/0/{number}")).unwrap()
    }

    /// A look that shows one unit for each number; the process of number n is n.
    fn scan(kind: &str, numbers: &[u32], at: u64) -> Scan {
        let identity = |number: u32| ProcessIdentity { pid: Pid(number), start_ticks: 1, pid_namespace: 0 };
        let other = |&number: &u32| OtherView {
            view: UnitView {
                slot: slot(number),
                unit: UnitId::new(format!("{kind}:{number}")).unwrap(),
                root: identity(number),
                pools: BTreeSet::new(),
                bystander: false,
                apps: BTreeMap::new(),
                blocked: None,
            },
            claims: Vec::new(),
        };
        let given = numbers.iter().map(|&number| (slot(number), identity(number))).collect();
        let numbering = Numbering { boot_id: "boot".to_owned(), given };
        Scan { begun_at: Moment(at), others: numbers.iter().map(other).collect(), numbering, ..Scan::default() }
    }

    /// What is written and said, in that order.
    fn done(host: &mut Host) -> Vec<String> {
        let mut done = Vec::new();
        while let Some(action) = host.poll_action() {
            match action {
                Action::Store(records) => done.extend(records.into_iter().filter_map(|record| match record {
                    Record::Numbering(kept) => Some(format!("{} written", kept.given.len())),
                    _ => None,
                })),
                Action::Report(report) => done.push(format!("{} reported", report.others.len())),
                Action::Ask(_) => done.push("asked".to_owned()),
                _ => {}
            }
        }
        done
    }

    #[test]
    fn numbers_are_written_once_and_before_a_report_names_them() {
        let mut host = host(Vec::new());
        host.handle_scan(&scan("celery", &[1, 2], 0), Moment(0));
        assert_eq!(done(&mut host), ["2 written", "2 reported"]);
        host.handle_scan(&scan("celery", &[1, 2], 10_000), Moment(10_000));
        host.handle_timeout(Moment(100_000));
        assert_eq!(done(&mut host), ["2 reported"]);
        host.handle_scan(&scan("celery", &[2], 110_000), Moment(110_000));
        host.handle_timeout(Moment(113_000));
        assert_eq!(done(&mut host), ["1 written", "1 reported"]);
    }

    #[test]
    fn numbers_are_written_before_a_permit_is_asked_for() {
        let mut host = host(Vec::new());
        let drain = DesiredDrain {
            id: DrainId::new("drain-1").unwrap(),
            host: HostName::new("web-1").unwrap(),
            slot: slot(1),
            deadline_ms: None,
            force: false,
        };
        let drains = vec![drain];
        let desired = Desired { epoch: Epoch(1), generation: Generation(1), drains, ..Desired::default() };
        host.handle_desired(&desired, Moment(0));
        done(&mut host);
        host.handle_scan(&scan("celery", &[1, 2], 10), Moment(10));
        assert_eq!(done(&mut host), ["2 written", "asked"]);
    }

    #[test]
    fn plain_processes_that_come_and_go_cost_no_write_between_two_reports() {
        let mut host = host(Vec::new());
        host.handle_scan(&scan("python", &[1], 0), Moment(0));
        done(&mut host);
        for at in 1..10_u64 {
            let numbers: &[u32] = if at % 2 == 0 { &[1] } else { &[1, 2] };
            host.handle_scan(&scan("python", numbers, at * 2_500), Moment(at * 2_500));
            host.handle_timeout(Moment(at * 2_500 + 1_000));
        }
        assert!(done(&mut host).is_empty());
        host.handle_timeout(Moment(100_000));
        assert_eq!(done(&mut host), ["2 written", "2 reported"]);
    }

    #[test]
    fn what_the_disk_remembers_is_not_written_again() {
        let seen = scan("celery", &[1, 2], 0);
        let mut host = host(vec![Record::Numbering(seen.numbering.clone())]);
        host.handle_scan(&seen, Moment(0));
        assert_eq!(done(&mut host), ["2 reported"]);
    }
}
