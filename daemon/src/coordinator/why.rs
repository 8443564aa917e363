//! Everything known about a target, as `unstale.why/1` says it.

use super::LocalEvidence;
use super::answers::{is_chosen, is_chosen_other, is_worker, phase_word, worst};
use super::doubt::{self, Doubt, Doubts};
use super::journal::Journal;
use crate::api;
use crate::cli::Selector;
use unstale_protocol::coordinator::Coordinator;
use unstale_protocol::ids::{HostName, ProcessIdentity, SlotId};
use unstale_protocol::message::{OtherUnit, Phase, Report, SlotReport};
use unstale_protocol::time::Moment;
use unstale_protocol::verdict::{Cure, Verdict};

/// Events that are shown per finding.
const HISTORY_MAX: usize = 20;
/// Workers of no announced app that are named for a host.
const OTHERS_SHOWN: usize = 10;
/// Stands where a verdict stands, of what no rollout judges.
const NOT_JUDGED: &str = "not judged";

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
    let doubts = Doubts::new(machine, now);
    for report in machine.reports() {
        let of_host = doubts.of_host(report);
        let is_wanted = |slot: &SlotReport| all.iter().any(|selector| is_chosen(selector, report, slot));
        for slot in report.slots.iter().filter(|slot| is_wanted(slot)) {
            let mut finding = finding(machine, journal, report, slot, (&doubts, of_host.as_ref()));
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
            findings.push(host_finding(journal, report, &doubts, of_host));
        }
    }
    if let Selector::Host(name) = target
        && !machine.reports().any(|report| report.host == *name)
    {
        findings.extend(unheard_finding(journal, name, &doubts));
    }
    api::Why { schema: "unstale.why/1".to_owned(), target: target.to_string(), findings }
}

/// A host that is expected, or has left, and has said nothing to this coordinator.
fn unheard_finding(journal: &Journal, host: &HostName, doubts: &Doubts<'_>) -> Option<api::WhyFinding> {
    let doubt = doubts.of_unheard(host)?;
    let uncounted = doubts.expected(host).filter(|(_, one)| one.uncounted);
    Some(api::WhyFinding {
        host: host.to_string(),
        slot: None,
        unit: None,
        verdict: if doubt.has_left { NOT_JUDGED } else { Verdict::Unknown.as_str() }.to_owned(),
        because: doubt.because,
        evidence: uncounted.map(|(app, _)| doubt::uncounted(app)).collect(),
        history: history_of_host(journal, host),
        next: Some(doubt.next),
    })
}

fn finding(
    machine: &Coordinator,
    journal: &Journal,
    report: &Report,
    slot: &SlotReport,
    (doubts, of_host): (&Doubts<'_>, Option<&Doubt>),
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
        None => doubts.of_apps(report, |app| slot.apps.contains_key(app)),
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
        None if is_returning(machine, report, slot) => Some("its agent gives it back".to_owned()),
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

fn host_finding(journal: &Journal, report: &Report, doubts: &Doubts<'_>, of_host: Option<Doubt>) -> api::WhyFinding {
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
    let (verdict, because, next) = match of_host.or_else(|| doubts.of_apps(report, |_| true)) {
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

/// Tells whether a slot is still drained although it is to be given back.
fn is_returning(machine: &Coordinator, report: &Report, slot: &SlotReport) -> bool {
    let is_kept = || {
        let mut drains = machine.drains().into_iter().map(|drain| drain.record);
        drains.any(|drain| drain.host == report.host && drain.slot == slot.slot)
    };
    slot.phase == Phase::Drained && !is_kept()
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
