//! Why what a host last said may not tell how things stand there, or what it has: one judgement, for `why` and for orders
//! that choose among what was reported.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use unstale_protocol::coordinator::{Coordinator, HostStatus, RolloutStatus};
use unstale_protocol::ids::{AppName, HostName, Revision};
use unstale_protocol::message::Report;
use unstale_protocol::time::Moment;

/// What is said of what stands on hosts by a coordinator that hears none of them.
pub(super) const STANDS_BY: &str = "this coordinator stands by and hears no reports";
/// What happens next where an agent has not looked yet.
const LOOKS: &str = "its agent looks by itself: ask again in a moment";

/// Why the last report of a host may not tell how things stand.
#[derive(Debug)]
pub(super) struct Doubt {
    pub(super) because: String,
    pub(super) next: String,
    /// The host has said that it leaves: what it said then stays said, and nobody waits for it.
    pub(super) has_left: bool,
}

impl Doubt {
    fn new(because: impl Into<String>, next: impl Into<String>) -> Self {
        Self { because: because.into(), next: next.into(), has_left: false }
    }

    fn left(machine: &Coordinator, host: &HostName) -> Self {
        let permits = machine.left_hosts().find(|(name, _)| *name == host).map_or(0, |(_, permits)| permits);
        let doubt = Self::new(left(host, permits), "nothing: its agent looks again when it comes back");
        Self { has_left: true, ..doubt }
    }

    pub(super) fn about_host(&self, said: &str) -> String {
        if said.is_empty() { self.because.clone() } else { format!("{}; it last said: {said}", self.because) }
    }

    pub(super) fn about_slot(&self, host: &HostName, said: &str) -> String {
        format!("{host}: {}", self.about_host(said))
    }
}

/// The judgement on all hosts at one moment.
#[derive(Debug)]
pub(super) struct Doubts<'a> {
    machine: &'a Coordinator,
    now: Moment,
    /// The current rollout of each app, where it is asked for.
    rollouts: OnceCell<Vec<RolloutStatus>>,
}

impl<'a> Doubts<'a> {
    pub(super) fn new(machine: &'a Coordinator, now: Moment) -> Self {
        Self { machine, now, rollouts: OnceCell::new() }
    }

    /// Returns why nothing that a host last said may hold any more.
    pub(super) fn of_host(&self, report: &Report) -> Option<Doubt> {
        let host = &report.host;
        if self.machine.is_host_doubled(host) {
            return Some(doubled());
        }
        if self.machine.is_unheard(self.now) {
            return Some(Doubt::new(STANDS_BY, "ask the coordinator that leads"));
        }
        // Nobody waits for a host that has left, unless it is configured.
        let is_awaited = || !report.leaving || self.expected(host).next().is_some();
        if self.machine.is_host_silent(host, self.now) && is_awaited() {
            let span = crate::render::elapsed(self.machine.heard_ms_ago(host, self.now).unwrap_or(0));
            let rest = if report.scanned {
                ": what has come up there since is not known"
            } else {
                ", and was not looked at before"
            };
            return Some(Doubt::new(format!("it has been silent for {span}{rest}"), self.start_or_forget(host)));
        }
        if report.leaving {
            return Some(Doubt::left(self.machine, host));
        }
        if let Some(name) = &report.unsupported {
            let next = "nothing by itself: install the coordinator's version of `unstale` there";
            return Some(Doubt::new(too_old(name), next));
        }
        (!report.scanned).then(|| Doubt::new("it has not been looked at since its agent started", LOOKS))
    }

    /// Returns why what a host last said of some apps may not be of what is announced now.
    pub(super) fn of_apps(&self, report: &Report, is_meant: impl Fn(&AppName) -> bool) -> Option<Doubt> {
        let mut meant = self.machine.apps().filter(|(app, _)| is_meant(app));
        let (app, revision) = meant.find(|(app, revision)| !self.has_judged(report, app, *revision))?;
        Some(Doubt::new(format!("it has not been looked at since {app}@{revision} was announced"), LOOKS))
    }

    fn has_judged(&self, report: &Report, app: &AppName, revision: Revision) -> bool {
        let rollout = self.machine.rollouts(app).find(|rollout| rollout.revision == revision);
        // The same revision may have been announced again.
        let has_heard = rollout.is_none_or(|rollout| report.accepted.generation >= rollout.attempt);
        has_heard && report.apps.get(app).is_some_and(|of_app| of_app.revision == revision && !of_app.unseen)
    }

    /// Returns how a host stands in the current rollout of each app, where it is expected.
    pub(super) fn expected(&self, host: &HostName) -> impl Iterator<Item = (&AppName, &HostStatus)> {
        let of_host = move |(_, one): &(&AppName, &HostStatus)| one.host == *host;
        self.all_expected().filter(of_host)
    }

    fn all_expected(&self) -> impl Iterator<Item = (&AppName, &HostStatus)> {
        let current = || self.machine.apps().filter_map(|(app, of)| self.machine.status(app, of, self.now)).collect();
        let rollouts = self.rollouts.get_or_init(current);
        rollouts.iter().flat_map(|rollout| rollout.hosts.iter().map(move |one| (&rollout.app, one)))
    }

    /// Returns why nothing is known of a host that has said nothing to this coordinator; `None` where nobody waits for
    /// it and it is not known to have left.
    pub(super) fn of_unheard(&self, host: &HostName) -> Option<Doubt> {
        let first = self.expected(host).next();
        match first {
            Some((_, expected)) if expected.doubled => Some(doubled()),
            Some(_) => Some(Doubt::new("it has not reported", self.start_or_forget(host))),
            None if self.machine.left_hosts().any(|(name, _)| name == host) => Some(Doubt::left(self.machine, host)),
            None => None,
        }
    }

    fn start_or_forget(&self, host: &HostName) -> String {
        let forget = format!("`unstale forget host:{host}`");
        let reconfigure = "take it out of `[coordinator] expected_hosts` and start the coordinator again";
        let end = match (self.machine.is_host_configured(host), self.machine.is_host_known(host)) {
            (false, _) => forget,
            (true, false) => reconfigure.to_owned(),
            (true, true) => format!("{reconfigure}, then {forget},"),
        };
        format!("nothing by itself: start its agent, or {end} if it will not come back")
    }

    /// Returns the hosts that may have units that nobody knows of, or of whose units nobody knows which of these apps
    /// they hold, each with the reason.
    pub(super) fn of_fleet(&self, apps: &[AppName]) -> BTreeMap<HostName, String> {
        let of_report = |report: &Report| {
            self.of_host(report)
                .or_else(|| self.of_apps(report, |app| apps.contains(app)))
                .filter(|doubt| !doubt.has_left)
        };
        let heard: BTreeSet<&HostName> = self.machine.reports().map(|report| &report.host).collect();
        let unheard = self.all_expected().filter(|(_, one)| !heard.contains(&one.host));
        let unheard = unheard.filter_map(|(_, one)| Some((one.host.clone(), self.of_unheard(&one.host)?.because)));
        let reports = self.machine.reports();
        let doubted = reports.filter_map(|report| Some((report.host.clone(), of_report(report)?.because)));
        doubted.chain(unheard).collect()
    }
}

/// What is said of a host whose agent does not understand what is desired.
pub(super) fn too_old(name: &str) -> String {
    format!("its agent is too old: it does not understand `{name}`")
}

/// What is said of a host that was not heard since a takeover.
pub(super) fn uncounted(app: &AppName) -> String {
    format!("how many units of {app} it has is not known since the takeover")
}

fn doubled() -> Doubt {
    Doubt::new("two agents answer to this name", "nothing by itself: stop one, or give it another --host")
}

/// Says that a host has left, and what of it still counts.
pub(super) fn left(host: &HostName, permits: usize) -> String {
    let units = if permits == 1 { "1 unit".to_owned() } else { format!("{permits} units") };
    let rest = format!("which use budget until it is back, or until `unstale forget host:{host}`");
    if permits == 0 { "it has left".to_owned() } else { format!("it has left with leave to restart {units}, {rest}") }
}
