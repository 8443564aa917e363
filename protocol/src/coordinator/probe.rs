//! Dry runs: what hosts would do about a manifest that is not announced.
//!
//! They are part of the desired state while somebody asks about them, and of nothing else: no disk, no record, no
//! permit. A caller that goes away stops asking, and the dry run ends by itself.

use super::{Coordinator, Host, Refused, Terms};
use crate::fingerprint::Fingerprint;
use crate::ids::{AppName, HostName};
use crate::message::{Probe, ProbeReport};
use crate::time::Moment;

/// Most dry runs at a time: each costs every host a full look.
pub const PROBES_MAX: usize = 8;

/// A dry run under way.
#[derive(Debug)]
pub(super) struct Open {
    app: AppName,
    manifest: Fingerprint,
    terms: Terms,
    asked_at: Moment,
}

/// A dry run as far as it has been answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeStatus {
    /// The app.
    pub app: AppName,
    /// What the caller would want of the rollout.
    pub terms: Terms,
    /// The hosts that are expected.
    pub hosts: Vec<ProbeHost>,
}

/// One host's answer to a dry run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeHost {
    /// The host.
    pub host: HostName,
    /// No report for so long that it counts as silent.
    pub silent: bool,
    /// Two agents answer to its name: neither is believed.
    pub doubled: bool,
    /// What it would do; `None` where it has not answered yet.
    pub answer: Option<ProbeReport>,
}

impl Coordinator {
    /// Begins a dry run and returns its name. It ends once nobody has asked about it for the policy's lifetime.
    ///
    /// # Errors
    /// [`Refused::TooManyProbes`], [`Refused::NotLeader`].
    pub fn handle_probe(
        &mut self,
        app: AppName,
        manifest: Fingerprint,
        terms: Terms,
        now: Moment,
    ) -> Result<String, Refused> {
        self.must_lead(now)?;
        self.end_forgotten_probes(now);
        if self.probes.len() >= PROBES_MAX {
            return Err(Refused::TooManyProbes);
        }
        // An answer to a dry run of an earlier reign must not be taken for one to this.
        let id = format!("probe-{}-{}", self.version.epoch, self.next_probe);
        self.next_probe += 1;
        self.probes.insert(id.clone(), Open { app, manifest, terms, asked_at: now });
        self.next_generation();
        self.publish(Vec::new());
        Ok(id)
    }

    /// Returns how far a dry run has been answered, and keeps it going; `None` where there is none of that name.
    pub fn handle_probe_asked(&mut self, id: &str, now: Moment) -> Option<ProbeStatus> {
        self.expire(now);
        let probe = self.probes.get_mut(id)?;
        probe.asked_at = now;
        let (app, terms) = (probe.app.clone(), probe.terms.clone());
        let hosts = self
            .expected()
            .map(|(name, host)| ProbeHost {
                host: name.clone(),
                silent: self.is_silent(host, now),
                doubled: host.is_some_and(Host::is_doubled),
                answer: host.and_then(|host| host.report.as_ref()?.probes.get(id)).cloned(),
            })
            .collect();
        Some(ProbeStatus { app, terms, hosts })
    }

    /// Ends a dry run. One that has ended already changes nothing.
    pub fn handle_probe_over(&mut self, id: &str, now: Moment) {
        self.expire(now);
        if self.probes.remove(id).is_some() {
            self.next_generation();
            self.publish(Vec::new());
        }
    }

    pub(super) fn end_forgotten_probes(&mut self, now: Moment) {
        let before = self.probes.len();
        let lifetime = self.policy.probe_lifetime;
        self.probes.retain(|_, probe| now.since(probe.asked_at) < lifetime);
        if self.probes.len() < before {
            self.next_generation();
            self.publish(Vec::new());
        }
    }

    /// Returns when the first dry run is forgotten unless it is asked about.
    pub(super) fn probe_end(&self) -> Option<Moment> {
        self.probes.values().map(|probe| probe.asked_at.after(self.policy.probe_lifetime)).min()
    }

    pub(super) fn desired_probes(&self) -> Vec<Probe> {
        let probe =
            |(id, open): (&String, &Open)| Probe { id: id.clone(), app: open.app.clone(), manifest: open.manifest };
        self.probes.iter().map(probe).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::{Action, CoordinatorPolicy};
    use crate::fingerprint::Salt;
    use crate::ids::{Incarnation, Version};
    use crate::message::{Desired, Report};
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn coordinator() -> Coordinator {
        let policy = CoordinatorPolicy {
            expected_hosts: [HostName::new("web-1").unwrap()].into(),
            ..CoordinatorPolicy::default()
        };
        Coordinator::new(policy, Vec::new(), Moment(0))
    }

    fn begin(machine: &mut Coordinator, now: Moment) -> String {
        let manifest = Fingerprint::of_bytes(b"manifest");
        machine.handle_probe(AppName::new("shop").unwrap(), manifest, Terms::default(), now).unwrap()
    }

    /// Does all actions and returns the newest desired state among them.
    fn published(machine: &mut Coordinator) -> Option<Desired> {
        let mut newest = None;
        while let Some(action) = machine.poll_action() {
            if let Action::Publish(desired) = action {
                newest = Some(desired);
            }
        }
        newest
    }

    fn report(machine: &Coordinator, sequence: u64, probes: BTreeMap<String, ProbeReport>) -> Report {
        Report {
            host: HostName::new("web-1").unwrap(),
            incarnation: Incarnation { counter: 1, random: Salt([1; 16]) },
            sequence,
            clock: Moment(sequence),
            accepted: machine.version(),
            author: Salt::default(),
            refused: None,
            unsupported: None,
            leaving: false,
            scanned: true,
            apps: BTreeMap::new(),
            pools: BTreeMap::new(),
            slots: Vec::new(),
            omitted: 0,
            others: Vec::new(),
            others_omitted: 0,
            rejected: BTreeMap::new(),
            probes,
        }
    }

    #[test]
    fn a_dry_run_is_desired_until_it_is_over_and_leaves_no_rollout_behind() {
        let mut machine = coordinator();
        let before: Version = published(&mut machine).unwrap().version();
        let id = begin(&mut machine, Moment(5));
        let desired = published(&mut machine).unwrap();
        assert!(desired.version() > before);
        assert_eq!(desired.probes.iter().map(|probe| probe.id.as_str()).collect::<Vec<_>>(), [id.as_str()]);
        machine.handle_probe_over(&id, Moment(5));
        assert!(published(&mut machine).unwrap().probes.is_empty());
        assert_eq!(machine.apps().count(), 0);
        assert_eq!(machine.handle_probe_asked(&id, Moment(6)), None);
    }

    #[test]
    fn a_dry_run_that_nobody_asks_about_ends_by_itself() {
        let mut machine = coordinator();
        let id = begin(&mut machine, Moment(0));
        assert_eq!(machine.poll_timeout(), Some(Moment(15_000)));
        assert!(machine.handle_probe_asked(&id, Moment(10_000)).is_some());
        machine.handle_timeout(Moment(15_000));
        assert_eq!(published(&mut machine).unwrap().probes.len(), 1);
        machine.handle_timeout(Moment(25_000));
        assert!(published(&mut machine).unwrap().probes.is_empty());
        assert_eq!(machine.poll_timeout(), None);
    }

    #[test]
    fn every_expected_host_is_waited_for_and_answers_to_another_dry_run_do_not_count() {
        let mut machine = coordinator();
        let other = begin(&mut machine, Moment(0));
        let id = begin(&mut machine, Moment(0));
        let answers = |machine: &mut Coordinator, now| {
            let status = machine.handle_probe_asked(&id, now).unwrap();
            status.hosts.iter().filter_map(|host| host.answer.clone()).count()
        };
        let message = report(&machine, 1, BTreeMap::from([(other, ProbeReport::default())]));
        machine.handle_report(message, Moment(1));
        assert_eq!(answers(&mut machine, Moment(1)), 0);
        let message = report(&machine, 2, BTreeMap::from([(id.clone(), ProbeReport::default())]));
        machine.handle_report(message, Moment(2));
        assert_eq!(answers(&mut machine, Moment(2)), 1);
    }

    #[test]
    fn only_so_many_dry_runs_are_under_way() {
        let mut machine = coordinator();
        for _ in 0..PROBES_MAX {
            begin(&mut machine, Moment(0));
        }
        let manifest = Fingerprint::of_bytes(b"manifest");
        let app = AppName::new("shop").unwrap();
        assert_eq!(
            machine.handle_probe(app.clone(), manifest, Terms::default(), Moment(1)),
            Err(Refused::TooManyProbes)
        );
        let later = Moment(1).after(Duration::from_secs(20));
        assert!(
            machine.handle_probe(app, manifest, Terms::default(), later).is_ok(),
            "those that nobody asks about make room"
        );
    }
}
