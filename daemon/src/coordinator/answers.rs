//! The machine's plain data as the control API says it.

use super::LocalEvidence;
use super::journal::Journal;
use crate::api;
use crate::cli::Selector;
use std::collections::BTreeMap;
use unstale_protocol::coordinator::{Coordinator, DrainStatus, Outcome, RolloutStatus, UnitStatus};
use unstale_protocol::ids::{HostName, SlotId};
use unstale_protocol::message::{DoneResult, Phase, Purpose, Report, SlotReport};
use unstale_protocol::time::Moment;
use unstale_protocol::verdict::{Cure, Verdict};

/// Events that `why` shows per finding.
const HISTORY_MAX: usize = 20;

/// Returns one rollout; `wall_ms` is for its age, which people see.
pub(super) fn rollout(status: &RolloutStatus, wall_ms: u64) -> api::Rollout {
    let (outcome, because) = outcome(&status.outcome);
    let mut units = api::RolloutUnits {
        converged: status.units.converged,
        restarted: status.units.restarted,
        untouched: status.units.untouched,
        failed: status.units.failed,
        blocked: status.units.blocked,
        gone: status.units.gone,
        unknown: status.units.unknown,
        ..api::RolloutUnits::default()
    };
    let mut sources: BTreeMap<String, u32> = BTreeMap::new();
    for app in status.hosts.iter().filter_map(|host| host.app.as_ref()) {
        units.waiting = units.waiting.saturating_add(app.units.waiting);
        units.pending = units.pending.saturating_add(app.units.stale).saturating_add(app.units.acting);
        if let Some(source) = &app.source {
            *sources.entry(source.clone()).or_default() += 1;
        }
    }
    api::Rollout {
        schema: "unstale.broadcast/1".to_owned(),
        app: status.app.clone(),
        revision: status.record.revision,
        fingerprint: status.record.fingerprint.to_string(),
        outcome,
        because,
        hosts: u32::try_from(status.hosts.len()).unwrap_or(u32::MAX),
        silent: status.hosts.iter().filter(|host| host.silent).map(|host| host.host.to_string()).collect(),
        sources,
        units,
        untracked: status.untracked,
        bystanders: status.bystanders,
        purged_files: status.purged_files,
        elapsed_ms: wall_ms.saturating_sub(status.record.at_ms),
        units_detail: status.detail.iter().map(|unit| detail(unit, status)).collect(),
        findings: Vec::new(),
    }
}

fn outcome(outcome: &Outcome) -> (api::Outcome, Option<String>) {
    let because = |text: &String| (!text.is_empty()).then(|| text.clone());
    match outcome {
        Outcome::InProgress(text) => (api::Outcome::InProgress, because(text)),
        Outcome::Paused(text) => (api::Outcome::Paused, because(text)),
        Outcome::Converged => (api::Outcome::Converged, None),
        Outcome::Incomplete(text) => (api::Outcome::Incomplete, because(text)),
        Outcome::Failed(text) => (api::Outcome::Failed, because(text)),
        Outcome::Halted(text) => (api::Outcome::Halted, because(text)),
        Outcome::Superseded => (api::Outcome::Superseded, None),
        Outcome::Aborted => (api::Outcome::Aborted, None),
    }
}

fn detail(unit: &UnitStatus, status: &RolloutStatus) -> api::RolloutUnit {
    let done = unit.done.as_ref().filter(|done| match &done.purpose {
        Purpose::Restart(apps) => apps.get(&status.app) == Some(&status.record.revision),
        Purpose::Drain(_) => true,
    });
    let outcome = match (unit.phase, unit.verdict) {
        (Phase::Failed, _) => "failed",
        (Phase::Gone, _) => "gone",
        (Phase::Drained, _) => "drained",
        (phase, _) if phase.is_acting() || matches!(phase, Phase::Asking | Phase::Down) => "pending",
        (_, Some(Verdict::Fresh)) => "converged",
        (_, Some(Verdict::Stale)) if done.is_some_and(|done| done.result == DoneResult::Refused) => "blocked",
        (_, Some(Verdict::Stale)) => "waiting",
        (_, Some(Verdict::Unknown | Verdict::Untracked) | None) => "unknown",
    };
    let action = match done.map(|done| done.result) {
        Some(DoneResult::Restarted | DoneResult::Unproven) => "restarted",
        Some(DoneResult::Drained) => "drained",
        _ => "none",
    };
    let because = match done {
        Some(done) if outcome == "converged" && !done.because.is_empty() => done.because.clone(),
        _ => unit.because.clone(),
    };
    api::RolloutUnit {
        host: unit.host.to_string(),
        unit: unit.unit.as_ref().map_or_else(|| unit.slot.to_string(), ToString::to_string),
        slot: unit.slot.to_string(),
        outcome: outcome.to_owned(),
        action: action.to_owned(),
        because,
        elapsed_ms: done.map_or(0, |done| done.elapsed_ms),
    }
}

/// Returns where the fleet stands.
pub(super) fn status(machine: &Coordinator, now: Moment) -> api::Status {
    let version = machine.version();
    let all: Vec<RolloutStatus> =
        machine.apps().filter_map(|(app, revision)| machine.status(app, revision, now)).collect();
    let apps = all
        .iter()
        .map(|status| {
            let (outcome, because) = outcome(&status.outcome);
            api::StatusApp {
                app: status.app.clone(),
                revision: status.record.revision,
                fingerprint: status.record.fingerprint.to_string(),
                outcome,
                because,
                announced_at_ms: status.record.at_ms,
                by: Some(status.record.asked_by.clone()),
                message: status.record.message.clone(),
                meta: status.record.meta.clone(),
            }
        })
        .collect();
    let blocked = machine
        .has_lost_hosts()
        .then(|| "the list of hosts was lost: say how many there are with `unstale resume APP --hosts N`".to_owned());
    api::Status {
        schema: "unstale.status/1".to_owned(),
        epoch: version.epoch.0,
        generation: version.generation.0,
        blocked,
        apps,
        hosts: hosts(machine, &all),
        drains: machine.drains().iter().map(drain).collect(),
    }
}

fn hosts(machine: &Coordinator, rollouts: &[RolloutStatus]) -> Vec<api::StatusHost> {
    let mut hosts: BTreeMap<String, api::StatusHost> = BTreeMap::new();
    let empty = |name: &HostName| api::StatusHost {
        host: name.to_string(),
        standing: "reporting".to_owned(),
        reported_ms_ago: None,
        because: None,
        apps: BTreeMap::new(),
        slots: Vec::new(),
        omitted: 0,
    };
    for report in machine.reports() {
        let host = hosts.entry(report.host.to_string()).or_insert_with(|| empty(&report.host));
        host.slots = report.slots.iter().map(slot).collect();
        host.omitted = report.omitted;
        if report.leaving {
            "leaving".clone_into(&mut host.standing);
        }
        if let Some(name) = &report.unsupported {
            host.because = Some(format!("its agent is too old: it does not understand `{name}`"));
        } else if let Some(refused) = report.refused {
            host.because = Some(format!("it refused the older desired state {refused}"));
        }
    }
    for rollout in rollouts {
        for of_host in &rollout.hosts {
            let host = hosts.entry(of_host.host.to_string()).or_insert_with(|| empty(&of_host.host));
            host.reported_ms_ago = of_host.heard_ms_ago;
            if of_host.silent {
                "silent".clone_into(&mut host.standing);
            } else if of_host.heard_ms_ago.is_none() {
                "expected".clone_into(&mut host.standing);
            }
            if of_host.doubled {
                host.because = Some("two agents answer to this name: stop one, or give it another --host".to_owned());
            }
            if let Some(app) = &of_host.app {
                host.apps.insert(
                    rollout.app.clone(),
                    api::StatusHostApp {
                        revision: app.revision,
                        converged: app.converged,
                        waiting: app.waiting.clone(),
                        units: app.units,
                        untracked: app.untracked,
                        bystanders: app.bystanders,
                    },
                );
            }
        }
    }
    hosts.into_values().collect()
}

fn worst(slot: &SlotReport) -> Option<Verdict> {
    slot.apps.values().map(|judged| judged.verdict).max()
}

fn slot(slot: &SlotReport) -> api::StatusSlot {
    api::StatusSlot {
        slot: slot.slot.to_string(),
        unit: slot.unit.as_ref().or(slot.last_unit.as_ref()).map(ToString::to_string),
        pid: slot.identity.map(|identity| identity.pid.0),
        apps: slot.apps.keys().cloned().collect(),
        pools: slot.pools.iter().cloned().collect(),
        verdict: match (&slot.unit, worst(slot)) {
            (Some(_), Some(verdict)) => verdict.as_str().to_owned(),
            (Some(_), None) => Verdict::Unknown.as_str().to_owned(),
            (None, _) => "none".to_owned(),
        },
        phase: phase(slot.phase),
        because: slot.because.clone(),
    }
}

/// The word of a phase, as JSON has it.
fn phase(phase: Phase) -> String {
    match serde_json::to_value(phase) {
        Ok(serde_json::Value::String(word)) => word,
        _ => format!("{phase:?}").to_lowercase(),
    }
}

/// Returns the slots that one of the selectors chooses.
pub(super) fn choose(machine: &Coordinator, selectors: &[Selector]) -> Vec<(HostName, SlotId)> {
    let mut chosen = Vec::new();
    for report in machine.reports() {
        for slot in &report.slots {
            if selectors.iter().any(|selector| is_chosen(selector, report, slot)) && slot.phase != Phase::Gone {
                chosen.push((report.host.clone(), slot.slot.clone()));
            }
        }
    }
    chosen
}

fn is_chosen(selector: &Selector, report: &Report, slot: &SlotReport) -> bool {
    match selector {
        Selector::Host(name) => report.host == *name,
        Selector::Unit(id) => slot.unit.as_ref().or(slot.last_unit.as_ref()) == Some(id),
        Selector::Slot(id) => slot.slot == *id,
        Selector::Pool(name) => slot.pools.contains(name),
        Selector::App(name) => slot.apps.contains_key(name),
        Selector::Pid(pid) => slot.identity.is_some_and(|identity| identity.pid == *pid),
    }
}

/// Wraps drains in their answer.
pub(super) fn drains(drains: Vec<api::Drain>) -> api::Drains {
    api::Drains { schema: "unstale.drain/1".to_owned(), drains }
}

/// Returns a drain that is not made.
pub(super) fn would_drain((host, slot): &(HostName, SlotId)) -> api::Drain {
    api::Drain {
        id: String::new(),
        host: host.to_string(),
        slot: slot.to_string(),
        standing: api::DrainStanding::WouldDrain,
        because: String::new(),
        since_ms: 0,
    }
}

/// Returns a drain as it stands.
pub(super) fn drain(status: &DrainStatus) -> api::Drain {
    let done = status.done.as_ref().filter(|done| matches!(&done.purpose, Purpose::Drain(id) if *id == status.id));
    let standing = match (status.phase, done.map(|done| done.result)) {
        (Some(Phase::Drained), _) => api::DrainStanding::Drained,
        (Some(phase), _) if phase.is_acting() => api::DrainStanding::Draining,
        (_, Some(DoneResult::Failed | DoneResult::Refused)) => api::DrainStanding::Failed,
        _ if status.permitted => api::DrainStanding::Draining,
        _ => api::DrainStanding::Waiting,
    };
    let because = match done {
        Some(done) if standing == api::DrainStanding::Failed => done.because.clone(),
        _ => status.because.clone(),
    };
    api::Drain {
        id: status.id.to_string(),
        host: status.record.host.to_string(),
        slot: status.record.slot.to_string(),
        standing,
        because,
        since_ms: status.record.at_ms,
    }
}

/// Returns a drain that was just taken back.
pub(super) fn returning(status: &DrainStatus) -> api::Drain {
    api::Drain { standing: api::DrainStanding::Returning, because: String::new(), ..drain(status) }
}

/// Returns everything known about a target.
pub(super) fn why(
    machine: &Coordinator,
    journal: &Journal,
    local: &dyn LocalEvidence,
    target: &Selector,
    all: &[Selector],
) -> api::Why {
    let mut findings = Vec::new();
    for report in machine.reports() {
        let is_wanted = |slot: &SlotReport| all.iter().any(|selector| is_chosen(selector, report, slot));
        for slot in report.slots.iter().filter(|slot| is_wanted(slot)) {
            let mut finding = finding(machine, journal, report, slot);
            finding.evidence.extend(local.lines(&report.host, &slot.slot));
            findings.push(finding);
        }
        if let Selector::Host(name) = target
            && report.host == *name
        {
            findings.push(host_finding(journal, report));
        }
    }
    api::Why { schema: "unstale.why/1".to_owned(), target: target.to_string(), findings }
}

fn finding(machine: &Coordinator, journal: &Journal, report: &Report, slot: &SlotReport) -> api::WhyFinding {
    let mut evidence: Vec<String> = slot
        .apps
        .iter()
        .map(|(app, judged)| format!("{app}: {}, cure: {}", judged.verdict.as_str(), cure(judged.cure)))
        .collect();
    if !slot.pools.is_empty() {
        let pools: Vec<String> = slot.pools.iter().map(ToString::to_string).collect();
        evidence.push(format!("pools: {}", pools.join(", ")));
    }
    if let Some(identity) = slot.identity {
        evidence.push(format!("main process {}, started at tick {} of this boot", identity.pid, identity.start_ticks));
    }
    if let Some(done) = &slot.done {
        let result = format!("{:?}", done.result).to_lowercase();
        evidence.push(format!("last action: {result} after {} ms because {}", done.elapsed_ms, done.because));
    }
    let has_permit = machine.permits().any(|(host, id, _)| *host == report.host && *id == slot.slot);
    api::WhyFinding {
        host: report.host.to_string(),
        slot: Some(slot.slot.to_string()),
        unit: slot.unit.as_ref().map(ToString::to_string),
        verdict: if slot.phase == Phase::Failed {
            "failed".to_owned()
        } else {
            worst(slot).map_or("unknown", Verdict::as_str).to_owned()
        },
        because: slot.because.clone(),
        evidence,
        history: journal.last(HISTORY_MAX, |event| {
            event.host.as_ref() == Some(&report.host) && event.slot.as_ref() == Some(&slot.slot)
        }),
        next: next(slot, has_permit),
    }
}

fn host_finding(journal: &Journal, report: &Report) -> api::WhyFinding {
    let apps: Vec<String> = report
        .apps
        .iter()
        .map(|(app, state)| {
            let waiting = state.waiting.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
            let standing = if state.converged { "converged" } else { "not converged" };
            format!("{app}@{} {standing}{waiting}", state.revision)
        })
        .collect();
    let all_converged = report.apps.values().all(|app| app.converged) && !report.apps.is_empty();
    api::WhyFinding {
        host: report.host.to_string(),
        slot: None,
        unit: None,
        verdict: if all_converged { "fresh" } else { "unknown" }.to_owned(),
        because: if apps.is_empty() { "it holds no announced app".to_owned() } else { apps.join("; ") },
        evidence: vec![format!(
            "accepted desired state {}, report {} of its agent's life {}",
            report.accepted, report.sequence, report.incarnation.counter
        )],
        history: journal.last(HISTORY_MAX, |event| event.host.as_ref() == Some(&report.host)),
        next: None,
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
            Cure::Purge | Cure::Restart | Cure::PurgeThenRestart => "its agent asks for leave",
        },
    };
    Some(text.to_owned())
}
