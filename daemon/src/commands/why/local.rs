//! `why --local` where no coordinator listens: one look at this host, as `inspect` looks, told as `why` tells it.
//!
//! No rollout is known here: what is wanted is what each worker's own source says.

use crate::api::{Why, WhyFinding};
use crate::cli::Selector;
use crate::commands::{parts, roles};
use crate::config::Config;
use anyhow::{Context as _, bail};
use std::collections::BTreeMap;
use std::sync::Arc;
use unstale_agent::display::escape;
use unstale_agent::eyes::Eyes;
use unstale_agent::inspect::{InspectOptions, InspectedWorker, inspect};
use unstale_agent::process::Unit;
use unstale_agent::restart::{Hands, Plan, Refusal, UnitFacts};
use unstale_agent::supervisor::Reach;
use unstale_protocol::ids::{Pid, SlotId};
use unstale_protocol::verdict::{Cure, Verdict};

/// Lines of evidence per unit; the rest are counted.
const LINES_MAX: usize = 40;

/// Looks at what `target` names on this host and explains it.
///
/// # Errors
/// Where the processes cannot be looked at, or the target is something that only a coordinator knows.
pub(super) async fn look(target: &Selector, config: &Config) -> anyhow::Result<Why> {
    let host = roles::name(config)?;
    let mut eyes = Eyes::new(parts::reader(), parts::parser());
    let listed = eyes.units().await.context("cannot look at the processes of this host")?;
    let is_chosen = |unit: &&Unit| match target {
        Selector::Host(name) => *name == host,
        Selector::Unit(id) => unit.id == *id,
        Selector::Slot(id) => unit.slot == *id,
        Selector::Pid(pid) => unit.processes.iter().any(|process| process.identity.pid == *pid),
        Selector::Pool(_) | Selector::App(_) => false,
    };
    if matches!(target, Selector::Pool(_) | Selector::App(_)) {
        bail!("which units {target} has is known to a coordinator only: name a unit, a slot, a process or this host");
    }
    let chosen: Vec<&Unit> = listed.units.iter().filter(is_chosen).collect();
    let mut options = InspectOptions { uid: rustix::process::getuid().as_raw(), ..InspectOptions::default() };
    if !matches!(target, Selector::Host(_)) {
        options.pids = chosen.iter().flat_map(|unit| &unit.processes).map(|process| process.identity.pid).collect();
    }
    let mut units: BTreeMap<SlotId, (Arc<Unit>, Vec<InspectedWorker>)> = BTreeMap::new();
    // Without a pid everything would be looked at.
    if !chosen.is_empty() {
        let inspection = inspect(&mut eyes, &options).await.context("cannot look at the processes of this host")?;
        for worker in inspection.workers {
            let entry = units.entry(worker.unit.slot.clone());
            entry.or_insert_with(|| (Arc::clone(&worker.unit), Vec::new())).1.push(worker);
        }
    }
    let hands = Hands::new(Reach::default());
    let mut findings = Vec::new();
    for (unit, workers) in units.values() {
        let root = unit.root().and_then(|root| eyes.seen(&root.identity));
        let facts = UnitFacts::of(unit).with_interpreter(root.and_then(|sight| sight.reading.interpreter.as_ref()));
        let plan = hands.plan(unit, &facts, &config.units).await;
        findings.push(finding(host.as_str(), unit, workers, plan));
    }
    Ok(Why { schema: "unstale.why/1".to_owned(), target: target.to_string(), findings })
}

fn finding(host: &str, unit: &Unit, workers: &[InspectedWorker], plan: Result<Plan, Refusal>) -> WhyFinding {
    let worst = workers.iter().max_by_key(|worker| worker.judged.verdict);
    let verdict = worst.and_then(|worker| worker.judged.verdict);
    let because = match (worst, verdict) {
        (Some(worker), Some(Verdict::Fresh)) => worker.judged.because.clone(),
        (Some(worker), Some(_)) => format!("{}: {}", process(worker.process.identity.pid), worker.judged.because),
        _ => "it holds no enum of an app".to_owned(),
    };
    let cure = workers.iter().map(|worker| worker.judged.cure).max().unwrap_or(Cure::None);
    let (means, next) = match plan {
        Ok(plan) => (format!("it would be restarted by: {}", plan.means), next(cure, None)),
        Err(refusal) => (refusal.to_string(), next(cure, Some(&refusal.to_string()))),
    };
    let mut evidence = vec![means];
    let of_process = |worker: &InspectedWorker| {
        let telling =
            worker.judged.enums.iter().filter(|entry| matches!(entry.verdict, Verdict::Stale | Verdict::Unknown));
        let verdict = worker.judged.verdict.map_or("not judged", Verdict::as_str);
        let head = format!("by its own source: {verdict}");
        let said = std::iter::once(head).chain(telling.flat_map(roles::differences)).collect();
        (worker.process.identity.pid, escape::command(&worker.process.command), said)
    };
    let processes: Vec<_> = workers.iter().map(of_process).collect();
    evidence.extend(roles::told(&processes));
    if let Some(more @ 1..) = evidence.len().checked_sub(LINES_MAX) {
        evidence.truncate(LINES_MAX);
        evidence.push(format!("and {more} lines more"));
    }
    WhyFinding {
        host: host.to_owned(),
        slot: Some(unit.slot.to_string()),
        unit: Some(unit.id.to_string()),
        verdict: verdict.map_or("not judged", Verdict::as_str).to_owned(),
        because,
        evidence,
        history: Vec::new(),
        next,
    }
}

fn process(pid: Pid) -> String {
    format!("process {pid}")
}

/// Says what would cure the unit. Nothing happens by itself here: nobody is asked, and nobody acts.
fn next(cure: Cure, refusal: Option<&str>) -> Option<String> {
    let text = match (cure, refusal) {
        (Cure::None, _) => return None,
        (Cure::Purge, _) => "nothing by itself: its stale bytecode has to be removed",
        (Cure::Restart | Cure::PurgeThenRestart, Some(_)) => "nothing by itself, and `unstale` could not restart it",
        (Cure::Restart, None) => "nothing by itself: `unstale broadcast` under `unstale up` restarts it",
        (Cure::PurgeThenRestart, None) => {
            "nothing by itself: `unstale broadcast` under `unstale up` removes its stale bytecode and restarts it"
        }
        (Cure::WaitForSource, _) => "a restart would load the old source again: the new one has to arrive first",
        (Cure::Deploy, _) => "its source lies in an immutable image: deploy the new one",
    };
    Some(text.to_owned())
}
