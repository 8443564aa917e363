//! The machine's plain data as the control API says it.

use super::doubt::{self, Doubts};
use crate::api;
use crate::cli::Selector;
use std::collections::{BTreeMap, BTreeSet};
use unstale_protocol::coordinator::{Coordinator, DrainStatus, HostStatus, Outcome, RolloutStatus, UnitStatus};
use unstale_protocol::ids::{AppName, HostName, SlotId};
use unstale_protocol::message::{DoneResult, OtherUnit, Phase, Purpose, Report, SlotReport};
use unstale_protocol::time::Moment;
use unstale_protocol::verdict::Verdict;

/// What is said of a host whose name two agents answer to.
const DOUBLED: &str = "two agents answer to this name: stop one, or give it another --host; where there is one alone, it has \
                       lost its state: `unstale forget` the host, and it is taken in again";
/// How a host stands that reported before this coordinator stood by.
const UNHEARD: &str = "unheard";
/// What is said of a unit whose host is silent, or comes to be heard by somebody else.
const NOT_HEARD: &str = "its host is not heard now";
/// How a host stands whose machine has gone down: nobody waits for it.
const LEFT: &str = "left";
/// Most reasons for which messages changed nothing on one host, and the longest of them, in bytes.
const REASONS_MAX: usize = 16;
const REASON_MAX_BYTES: usize = 32;

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
        unheard: status.units.unheard,
        ..api::RolloutUnits::default()
    };
    let mut sources: BTreeMap<String, u32> = BTreeMap::new();
    let is_out = |host: &HostStatus| host.silent || status.unheard;
    for app in status.hosts.iter().filter(|host| !is_out(host)).filter_map(|host| host.app.as_ref()) {
        units.waiting = units.waiting.saturating_add(app.units.waiting);
        units.pending = units.pending.saturating_add(app.units.stale).saturating_add(app.units.acting);
        if let Some(source) = &app.source {
            *sources.entry(source.clone()).or_default() += 1;
        }
    }
    let out: BTreeSet<&HostName> = status.hosts.iter().filter(|host| is_out(host)).map(|host| &host.host).collect();
    let details = status.detail.iter().map(|unit| detail(unit, status, !out.contains(&unit.host)));
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
        units_detail: details.collect(),
        findings: Vec::new(),
        dry_run: false,
        would_purge: Vec::new(),
        omitted: status.omitted,
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

fn detail(unit: &UnitStatus, status: &RolloutStatus, is_heard: bool) -> api::RolloutUnit {
    let done = unit.done.as_ref().filter(|done| match &done.purpose {
        Purpose::Restart(apps) => apps.get(&status.app) == Some(&status.record.revision),
        Purpose::Drain(_) => true,
    });
    let outcome = match (unit.phase, unit.verdict) {
        (Phase::Failed, _) => "failed",
        (Phase::Gone, _) => "gone",
        (Phase::Drained, _) => "drained",
        (phase, _) if phase.is_acting() || matches!(phase, Phase::Asking | Phase::Down) => "pending",
        (_, Some(Verdict::Fresh)) if !is_heard => "unknown",
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
    let because = if is_heard {
        because
    } else if because.is_empty() {
        NOT_HEARD.to_owned()
    } else {
        format!("{NOT_HEARD}; it last said: {because}")
    };
    api::RolloutUnit {
        host: unit.host.to_string(),
        unit: unit.unit.as_ref().map_or_else(|| unit.slot.to_string(), ToString::to_string),
        slot: unit.slot.to_string(),
        outcome: outcome.to_owned(),
        action: action.to_owned(),
        means: None,
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
        .then(|| "the list of hosts was lost: say how many there are with `unstale resume APP --hosts N`".to_owned())
        .or_else(|| machine.apps().find_map(|(app, _)| machine.uncounted(app)));
    api::Status {
        schema: "unstale.status/1".to_owned(),
        epoch: version.epoch.0,
        generation: version.generation.0,
        blocked,
        bus: None,
        apps,
        hosts: hosts(machine, &all, now),
        drains: machine.drains().iter().map(drain).collect(),
        dry_runs: u32::try_from(machine.desired().probes.len()).unwrap_or(u32::MAX),
    }
}

fn hosts(machine: &Coordinator, rollouts: &[RolloutStatus], now: Moment) -> Vec<api::StatusHost> {
    let mut hosts: BTreeMap<String, api::StatusHost> = BTreeMap::new();
    let empty = |name: &HostName| api::StatusHost {
        host: name.to_string(),
        standing: "reporting".to_owned(),
        reported_ms_ago: None,
        scanned: false,
        because: None,
        apps: BTreeMap::new(),
        slots: Vec::new(),
        omitted: 0,
        others: Vec::new(),
        others_omitted: 0,
        rejected: BTreeMap::new(),
    };
    for report in machine.reports() {
        let host = hosts.entry(report.host.to_string()).or_insert_with(|| empty(&report.host));
        host.slots = report.slots.iter().map(slot).collect();
        host.omitted = report.omitted;
        host.scanned = report.scanned;
        host.reported_ms_ago = machine.heard_ms_ago(&report.host, now);
        host.others = report.others.iter().map(other).collect();
        host.others_omitted = report.others_omitted;
        host.rejected = rejected(report);
        if report.leaving {
            LEFT.clone_into(&mut host.standing);
        } else if machine.is_unheard(now) {
            UNHEARD.clone_into(&mut host.standing);
        } else if machine.is_host_silent(&report.host, now) {
            "silent".clone_into(&mut host.standing);
        }
        if machine.is_host_doubled(&report.host) {
            host.because = Some(DOUBLED.to_owned());
        } else if let Some(name) = &report.unsupported {
            host.because = Some(doubt::too_old(name));
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
                host.because = Some(DOUBLED.to_owned());
            } else if of_host.uncounted {
                host.because = Some(doubt::uncounted(&rollout.app));
            }
            if let Some(app) = &of_host.app {
                host.apps.insert(
                    rollout.app.clone(),
                    api::StatusHostApp {
                        revision: app.revision,
                        converged: app.converged,
                        waiting: app.waiting.clone(),
                        unseen: app.unseen,
                        units: app.units,
                        untracked: app.untracked,
                        bystanders: app.bystanders,
                    },
                );
            }
        }
    }
    for (name, permits) in machine.left_hosts() {
        let left = || api::StatusHost { standing: LEFT.to_owned(), ..empty(name) };
        let host = hosts.entry(name.to_string()).or_insert_with(left);
        if permits > 0 && host.because.is_none() {
            host.because = Some(doubt::left(name, permits));
        }
    }
    for (name, host) in &mut hosts {
        // While it is heard, late words of an earlier life are nothing to speak of.
        let is_unheard = matches!(host.standing.as_str(), "silent" | "expected");
        let lives = HostName::new(name.as_str()).ok().and_then(|name| machine.outnumbered(&name));
        if let (true, None, Some((life, known))) = (is_unheard, &host.because, lives) {
            host.because = Some(format!(
                "an agent that has lost its state answers to this name (its life {life}, known is {known}): `unstale forget \
                 host:{name}` takes it in"
            ));
        }
    }
    hosts.into_values().collect()
}

/// Returns why messages changed nothing there, up to a bound: whoever holds an agent's key can say anything.
fn rejected(report: &Report) -> BTreeMap<String, u64> {
    let known = report.rejected.iter().filter(|(reason, _)| reason.len() <= REASON_MAX_BYTES);
    known.take(REASONS_MAX).map(|(reason, count)| (reason.clone(), *count)).collect()
}

fn other(unit: &OtherUnit) -> api::StatusOther {
    api::StatusOther {
        slot: unit.slot.to_string(),
        unit: unit.unit.to_string(),
        pid: unit.identity.pid.0,
        bystander: unit.bystander,
        claims: unit.claims.clone(),
    }
}

pub(super) fn worst(slot: &SlotReport) -> Option<Verdict> {
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
            // Nothing is up, or it belongs to no announced app and is to be drained all the same.
            _ => "none".to_owned(),
        },
        phase: phase_word(slot.phase),
        because: slot.because.clone(),
    }
}

/// The word of a phase, as JSON has it.
pub(super) fn phase_word(phase: Phase) -> String {
    match serde_json::to_value(phase) {
        Ok(serde_json::Value::String(word)) => word,
        _ => format!("{phase:?}").to_lowercase(),
    }
}

/// Returns the slots that one of the selectors chooses.
pub(super) fn choose(machine: &Coordinator, selectors: &[Selector]) -> Vec<(HostName, SlotId)> {
    let mut chosen = Vec::new();
    for report in machine.reports() {
        // What a host had that has left is not there; who means it all the same names the host or the slot.
        let is_there =
            |selector: &Selector| !report.leaving || !matches!(selector, Selector::Pool(_) | Selector::App(_));
        for slot in &report.slots {
            let is_meant = |selector| is_there(selector) && is_chosen(selector, report, slot);
            if selectors.iter().any(is_meant) && slot.phase != Phase::Gone {
                chosen.push((report.host.clone(), slot.slot.clone()));
            }
        }
        for unit in &report.others {
            let slot = (report.host.clone(), unit.slot.clone());
            // A whole host is drained of its workers, not of every program that happens to be written in Python.
            let is_wanted = |selector| match selector {
                &Selector::Host(_) => is_chosen_other(selector, report, unit) && is_worker(unit),
                _ => is_chosen_other(selector, report, unit),
            };
            if selectors.iter().any(is_wanted) && !chosen.contains(&slot) {
                chosen.push(slot);
            }
        }
    }
    chosen
}

/// Tells whether a unit is of a kind that is recognised as a worker.
pub(super) fn is_worker(unit: &OtherUnit) -> bool {
    !unit.unit.as_str().starts_with("python:")
}

pub(super) fn is_chosen_other(selector: &Selector, report: &Report, unit: &OtherUnit) -> bool {
    match selector {
        Selector::Host(name) => report.host == *name,
        Selector::Unit(id) => unit.unit == *id,
        Selector::Slot(id) => unit.slot == *id,
        Selector::Pid(pid) => unit.identity.pid == *pid,
        Selector::Pool(_) | Selector::App(_) => false,
    }
}

pub(super) fn is_chosen(selector: &Selector, report: &Report, slot: &SlotReport) -> bool {
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
    api::Drains { schema: "unstale.drain/1".to_owned(), drains, unseen: Vec::new() }
}

/// Returns the hosts that may have units which these select and nobody knows of: an order by host, pool or app chooses
/// among what was reported.
pub(super) fn unseen(machine: &Coordinator, selectors: &[Selector], now: Moment) -> Vec<api::Unseen> {
    let is_wide = selectors.iter().any(|one| matches!(one, Selector::Pool(_) | Selector::App(_)));
    let mut unseen = Doubts::new(machine, now).of_fleet(&looked_for(machine, selectors));
    for report in machine.reports() {
        // Units of no announced app are chosen by host only.
        let others_omitted = if names(selectors, report.host.as_str()) { report.others_omitted } else { 0 };
        let omitted = report.omitted.saturating_add(others_omitted);
        if omitted > 0 {
            let left_out = || format!("its report leaves {omitted} of its slots out");
            unseen.entry(report.host.clone()).or_insert_with(left_out);
        }
    }
    let is_meant = |host: &HostName| is_wide || names(selectors, host.as_str());
    let meant = unseen.into_iter().filter(|(host, _)| is_meant(host));
    meant.map(|(host, because)| api::Unseen { host: host.to_string(), because }).collect()
}

/// Tells whether one of these selects the host by its name.
pub(super) fn names(selectors: &[Selector], host: &str) -> bool {
    selectors.iter().any(|one| matches!(one, Selector::Host(name) if name.as_str() == host))
}

/// Returns the announced apps whose units these choose by what the units hold: a pool may have units of any.
pub(super) fn looked_for(machine: &Coordinator, selectors: &[Selector]) -> Vec<AppName> {
    let is_looked_for = |app: &AppName| {
        selectors.iter().any(|one| match one {
            Selector::Pool(_) => true,
            Selector::App(name) => name == app,
            Selector::Host(_) | Selector::Unit(_) | Selector::Slot(_) | Selector::Pid(_) => false,
        })
    };
    machine.apps().map(|(app, _)| app).filter(|app| is_looked_for(app)).cloned().collect()
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
    // While its slot is not acted on yet, what is reported of it is its verdict.
    let is_acted_on = status.phase.is_some_and(Phase::is_acting);
    let because = match done {
        Some(done) if standing == api::DrainStanding::Failed => done.because.clone(),
        _ if is_acted_on => status.because.clone(),
        _ => String::new(),
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
