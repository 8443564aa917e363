//! Everything known about a target, as `unstale.why/1` says it.

use super::LocalEvidence;
use super::answers::{STANDS_BY, is_chosen, is_chosen_other, is_worker, phase_word, worst};
use super::journal::Journal;
use crate::api;
use crate::cli::Selector;
use unstale_protocol::coordinator::{Coordinator, HostStatus};
use unstale_protocol::ids::{AppName, HostName, ProcessIdentity, Revision, SlotId};
use unstale_protocol::message::{OtherUnit, Phase, Report, SlotReport};
use unstale_protocol::time::Moment;
use unstale_protocol::verdict::{Cure, Verdict};

/// Events that are shown per finding.
const HISTORY_MAX: usize = 20;
/// Workers of no announced app that are named for a host.
const OTHERS_SHOWN: usize = 10;
/// Stands where a verdict stands, of what no rollout judges.
const NOT_JUDGED: &str = "not judged";
/// What happens next where an agent has not looked yet.
const LOOKS: &str = "its agent looks by itself: ask again in a moment";

/// Returns everything known about a target.
pub(super) fn why(
    machine: &Coordinator,
    journal: &Journal,
    local: &dyn LocalEvidence,
    target: &Selector,
    all: &[Selector],
    now: Moment,
) -> api::Why {
    let mut findings = Vec::new();
    for report in machine.reports() {
        let of_host = doubt_of_host(machine, report, now);
        let is_wanted = |slot: &SlotReport| all.iter().any(|selector| is_chosen(selector, report, slot));
        for slot in report.slots.iter().filter(|slot| is_wanted(slot)) {
            let mut finding = finding(machine, journal, report, slot, of_host.as_ref());
            let claims = report.others.iter().filter(|unit| unit.slot == slot.slot).flat_map(|unit| &unit.claims);
            finding.evidence.extend(claims.map(|claim| format!("claim without effect: {claim}")));
            finding.evidence.extend(local.lines(&report.host, &slot.slot));
            findings.push(finding);
        }
        let is_wanted = |unit: &OtherUnit| {
            all.iter().any(|selector| !matches!(selector, Selector::Host(_)) && is_chosen_other(selector, report, unit))
        };
        for unit in report.others.iter().filter(|unit| is_wanted(unit)) {
            if !report.slots.iter().any(|slot| slot.slot == unit.slot) {
                let mut finding = other_finding(journal, report, unit, local);
                if let Some(doubt) = &of_host {
                    finding.because = doubt.about_slot(&report.host, &finding.because);
                    finding.next = Some(doubt.next.clone());
                }
                findings.push(finding);
            }
        }
        if let Selector::Host(name) = target
            && report.host == *name
        {
            findings.push(host_finding(machine, journal, report, of_host));
        }
    }
    if let Selector::Host(name) = target
        && !machine.reports().any(|report| report.host == *name)
    {
        findings.extend(unheard_finding(machine, journal, name, now));
    }
    api::Why { schema: "unstale.why/1".to_owned(), target: target.to_string(), findings }
}

/// Why the last report of a host may not tell how things stand.
#[derive(Debug)]
struct Doubt {
    because: String,
    next: String,
    /// The host has said that it leaves: what it said then stays said.
    has_left: bool,
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

    fn about_host(&self, said: &str) -> String {
        if said.is_empty() { self.because.clone() } else { format!("{}; it last said: {said}", self.because) }
    }

    fn about_slot(&self, host: &HostName, said: &str) -> String {
        format!("{host}: {}", self.about_host(said))
    }
}

/// Returns why nothing that a host last said may hold any more.
fn doubt_of_host(machine: &Coordinator, report: &Report, now: Moment) -> Option<Doubt> {
    let host = &report.host;
    if machine.is_host_doubled(host) {
        return Some(doubled());
    }
    if machine.is_unheard(now) {
        return Some(Doubt::new(STANDS_BY, "ask the coordinator that leads"));
    }
    // Nobody waits for a host that has left, unless it is configured.
    let is_awaited = || !report.leaving || !expected(machine, host, now).is_empty();
    if machine.is_host_silent(host, now) && is_awaited() {
        let span = crate::render::elapsed(machine.heard_ms_ago(host, now).unwrap_or(0));
        let rest = if report.scanned {
            ": what has come up there since is not known"
        } else {
            ", and was not looked at before"
        };
        return Some(Doubt::new(format!("silent for {span}{rest}"), start_or_forget(machine, host)));
    }
    if report.leaving {
        return Some(Doubt::left(machine, host));
    }
    if let Some(name) = &report.unsupported {
        let because = format!("its agent is too old: it does not understand `{name}`");
        return Some(Doubt::new(because, "nothing by itself: install the coordinator's version of `unstale` there"));
    }
    (!report.scanned).then(|| Doubt::new("it has not been looked at since its agent started", LOOKS))
}

/// Returns why what a host last said of some apps may not be of what is announced now.
fn doubt_of_apps(machine: &Coordinator, report: &Report, is_meant: impl Fn(&AppName) -> bool) -> Option<Doubt> {
    let mut meant = machine.apps().filter(|(app, _)| is_meant(app));
    let (app, revision) = meant.find(|(app, revision)| !has_judged(machine, report, app, *revision))?;
    Some(Doubt::new(format!("it has not been looked at since {app}@{revision} was announced"), LOOKS))
}

fn has_judged(machine: &Coordinator, report: &Report, app: &AppName, revision: Revision) -> bool {
    let rollout = machine.rollouts(app).find(|rollout| rollout.revision == revision);
    // The same revision may have been announced again.
    let has_heard = rollout.is_none_or(|rollout| report.accepted.generation >= rollout.attempt);
    has_heard && report.apps.get(app).is_some_and(|of_app| of_app.revision == revision && !of_app.unseen)
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

fn start_or_forget(machine: &Coordinator, host: &HostName) -> String {
    let forget = format!("`unstale forget host:{host}`");
    let reconfigure = "take it out of `[coordinator] expected_hosts` and start the coordinator again";
    let end = match (machine.is_host_configured(host), machine.is_host_known(host)) {
        (false, _) => forget,
        (true, false) => reconfigure.to_owned(),
        (true, true) => format!("{reconfigure}, then {forget},"),
    };
    format!("nothing by itself: start its agent, or {end} if it will not come back")
}

/// Returns how a host stands in the current rollout of each app, where it is expected.
fn expected(machine: &Coordinator, host: &HostName, now: Moment) -> Vec<(AppName, HostStatus)> {
    let rollouts = machine.apps().filter_map(|(app, revision)| machine.status(app, revision, now));
    let of_host = rollouts.flat_map(|rollout| rollout.hosts.into_iter().map(move |one| (rollout.app.clone(), one)));
    of_host.filter(|(_, one)| one.host == *host).collect()
}

/// A host that is expected, or has left, and has said nothing to this coordinator.
fn unheard_finding(machine: &Coordinator, journal: &Journal, host: &HostName, now: Moment) -> Option<api::WhyFinding> {
    let expected = expected(machine, host, now);
    let doubt = match expected.first() {
        Some((_, first)) if first.doubled => doubled(),
        Some(_) => Doubt::new("it has not reported", start_or_forget(machine, host)),
        None if machine.left_hosts().any(|(name, _)| name == host) => Doubt::left(machine, host),
        None => return None,
    };
    let uncounted = expected.iter().filter(|(_, one)| one.uncounted);
    Some(api::WhyFinding {
        host: host.to_string(),
        slot: None,
        unit: None,
        verdict: if doubt.has_left { NOT_JUDGED } else { Verdict::Unknown.as_str() }.to_owned(),
        because: doubt.because,
        evidence: uncounted
            .map(|(app, _)| format!("how many units of {app} it has is not known since the takeover"))
            .collect(),
        history: history_of_host(journal, host),
        next: Some(doubt.next),
    })
}

fn finding(
    machine: &Coordinator,
    journal: &Journal,
    report: &Report,
    slot: &SlotReport,
    of_host: Option<&Doubt>,
) -> api::WhyFinding {
    let mut evidence: Vec<String> = slot
        .apps
        .iter()
        .map(|(app, judged)| match slot.unit {
            Some(_) => format!("{app}: {}, cure: {}", judged.verdict.as_str(), cure(judged.cure)),
            None => format!("app: {app}"),
        })
        .collect();
    if !slot.pools.is_empty() {
        let pools: Vec<String> = slot.pools.iter().map(ToString::to_string).collect();
        evidence.push(format!("pools: {}", pools.join(", ")));
    }
    if let Some(identity) = slot.identity {
        evidence.push(started(identity));
    }
    if let Some(done) = &slot.done {
        let result = format!("{:?}", done.result).to_lowercase();
        let because = if done.because.is_empty() { String::new() } else { format!(" because {}", done.because) };
        evidence.push(format!("last action: {result} after {}{because}", crate::render::elapsed(done.elapsed_ms)));
    }
    let has_permit = machine.permits().any(|(host, id, _)| *host == report.host && *id == slot.slot);
    let (verdict, is_judged) = match (slot.phase, &slot.unit) {
        (Phase::Failed, _) => ("failed".to_owned(), false),
        // There is nothing to judge.
        (phase, None) => (phase_word(phase), false),
        (_, Some(_)) => (worst(slot).map_or(NOT_JUDGED, Verdict::as_str).to_owned(), !slot.apps.is_empty()),
    };
    let of_apps = match of_host {
        Some(_) => None,
        None => doubt_of_apps(machine, report, |app| slot.apps.contains_key(app)),
    };
    let doubt = of_host.or(of_apps.as_ref());
    let because = match doubt {
        Some(doubt) if slot.because.is_empty() => doubt.about_slot(&report.host, &verdict),
        Some(doubt) => doubt.about_slot(&report.host, &format!("{verdict}, because {}", slot.because)),
        None => slot.because.clone(),
    };
    let verdict = match doubt {
        Some(doubt) if is_judged && !doubt.has_left => Verdict::Unknown.as_str().to_owned(),
        _ => verdict,
    };
    // Where nothing that the host said may hold, neither may what it was to do next.
    let next = match of_host {
        Some(doubt) => Some(doubt.next.clone()),
        None => next(slot, has_permit).or_else(|| of_apps.map(|doubt| doubt.next)),
    };
    api::WhyFinding {
        host: report.host.to_string(),
        slot: Some(slot.slot.to_string()),
        unit: slot.unit.as_ref().map(ToString::to_string),
        verdict,
        because,
        evidence,
        history: history(journal, report, &slot.slot),
        next,
    }
}

/// A unit that no rollout judges.
fn other_finding(journal: &Journal, report: &Report, unit: &OtherUnit, local: &dyn LocalEvidence) -> api::WhyFinding {
    let mut because = unit.claims.join("; ");
    if because.is_empty() {
        "it belongs to no announced app".clone_into(&mut because);
    } else {
        because.push_str(": it has no effect");
    }
    let mut evidence = vec![started(unit.identity)];
    evidence.extend(local.lines(&report.host, &unit.slot));
    let next = if unit.claims.is_empty() {
        format!(
            "nothing by itself: `unstale inspect --pid {}` on its host compares it with its source",
            unit.identity.pid
        )
    } else {
        "nothing by itself: `[apps.NAME] users` or `roots` in the agent's configuration let a claim bind".to_owned()
    };
    api::WhyFinding {
        host: report.host.to_string(),
        slot: Some(unit.slot.to_string()),
        unit: Some(unit.unit.to_string()),
        verdict: NOT_JUDGED.to_owned(),
        because,
        evidence,
        history: history(journal, report, &unit.slot),
        next: Some(next),
    }
}

fn started(identity: ProcessIdentity) -> String {
    format!("main process {}", identity.pid)
}

fn history(journal: &Journal, report: &Report, slot: &SlotId) -> Vec<api::Event> {
    journal.last(HISTORY_MAX, |event| event.host.as_ref() == Some(&report.host) && event.slot.as_ref() == Some(slot))
}

fn history_of_host(journal: &Journal, host: &HostName) -> Vec<api::Event> {
    journal.last(HISTORY_MAX, |event| event.host.as_ref() == Some(host))
}

fn host_finding(machine: &Coordinator, journal: &Journal, report: &Report, of_host: Option<Doubt>) -> api::WhyFinding {
    let apps: Vec<String> = report
        .apps
        .iter()
        .map(|(app, state)| {
            let waiting = state.waiting.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
            let standing = if state.converged { "converged" } else { "not converged" };
            format!("{app}@{} {standing}{waiting}", state.revision)
        })
        .collect();
    let mut evidence = vec![format!(
        "accepted desired state {}, report {} of its agent's life {}",
        report.accepted, report.sequence, report.incarnation.counter
    )];
    let others = || report.others.iter().filter(|unit| unit.claims.is_empty());
    let workers: Vec<&str> = others().filter(|unit| is_worker(unit)).map(|unit| unit.unit.as_str()).collect();
    if !workers.is_empty() {
        let more = workers.len().saturating_sub(OTHERS_SHOWN);
        let names = workers.iter().take(OTHERS_SHOWN).copied().collect::<Vec<_>>().join(", ");
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        evidence.push(format!("workers of no announced app: {names}{rest}"));
    }
    let plain = others().filter(|unit| !is_worker(unit)).count();
    if plain > 0 {
        evidence.push(format!("other Python programs: {plain}"));
    }
    for unit in report.others.iter().filter(|unit| !unit.claims.is_empty()) {
        evidence.push(format!("{}: claim without effect: {}", unit.unit, unit.claims.join("; ")));
    }
    let all_converged = report.apps.values().all(|app| app.converged) && !report.apps.is_empty();
    let verdict = match (report.apps.is_empty(), all_converged) {
        (true, _) => NOT_JUDGED,
        (false, true) => Verdict::Fresh.as_str(),
        (false, false) => Verdict::Unknown.as_str(),
    };
    let said = apps.join("; ");
    let (verdict, because, next) = match of_host.or_else(|| doubt_of_apps(machine, report, |_| true)) {
        Some(doubt) => {
            let verdict = if doubt.has_left { verdict } else { Verdict::Unknown.as_str() };
            (verdict, doubt.about_host(&said), Some(doubt.next))
        }
        None if apps.is_empty() => (verdict, "it holds no announced app".to_owned(), None),
        None => (verdict, said, (!all_converged).then(|| "`unstale status` lists its units".to_owned())),
    };
    api::WhyFinding {
        host: report.host.to_string(),
        slot: None,
        unit: None,
        verdict: verdict.to_owned(),
        because,
        evidence,
        history: history_of_host(journal, &report.host),
        next,
    }
}

fn cure(cure: Cure) -> &'static str {
    match cure {
        Cure::None => "none needed",
        Cure::Purge => "purge its stale bytecode",
        Cure::Restart => "restart",
        Cure::PurgeThenRestart => "purge its stale bytecode, then restart",
        Cure::WaitForSource => "wait for the new source",
        Cure::Deploy => "deploy: its source lies in an immutable image",
    }
}

fn next(slot: &SlotReport, has_permit: bool) -> Option<String> {
    let text = match slot.phase {
        Phase::Asking if has_permit => "leave was given; its agent begins when it arrives",
        Phase::Asking => "waits for leave: the pool's budget is in use, or the rollout is paused or halted",
        Phase::Preflight => "is checked before anything is touched",
        Phase::Draining => "finishes the work in hand, then ends",
        Phase::Starting => "is being brought back",
        Phase::Surviving => "is watched until it has been up long enough",
        Phase::Verifying => "its memory is read again",
        Phase::Drained => "stays out of work until `unstale undrain`",
        Phase::Failed => "nothing by itself: mend what failed, then `unstale resume`",
        Phase::Down => "may be brought back by its supervisor",
        Phase::Gone => "nothing: it ended and nobody brings it back",
        Phase::Up => match slot.apps.values().map(|judged| judged.cure).max()? {
            Cure::WaitForSource => "goes on by itself when the new source is there",
            Cure::Deploy => "ends with the process: deploy the new image",
            Cure::None => return None,
            Cure::Purge | Cure::Restart | Cure::PurgeThenRestart => {
                "its agent asks for leave once nothing stands in the way"
            }
        },
    };
    Some(text.to_owned())
}
