//! Dry runs: begun, answered and ended; what hosts would do, as `unstale.broadcast/1` says it.

use super::{Driver, encoded, refusal};
use crate::api;
use crate::render::count;
use std::fmt::Display;
use unstale_protocol::coordinator::{ProbeHost, ProbeStatus};
use unstale_protocol::fingerprint::Fingerprint;
use unstale_protocol::ids::Revision;
use unstale_protocol::message::{ProbeReport, ProbeUnit};
use unstale_protocol::verdict::{Cure, Verdict};

impl Driver {
    /// Begins a dry run. Its manifest is laid out and not stored: a dry run dies with this process.
    pub(super) fn probe(
        &mut self,
        request: api::BroadcastRequest,
    ) -> anyhow::Result<Result<api::DryRun, api::Refusal>> {
        let bytes = match encoded(&request.manifest)? {
            Ok(bytes) => bytes,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let digest = Fingerprint::of_bytes(&bytes);
        let terms = self.terms(&request);
        self.lay_manifest_out(digest, &bytes)?;
        let begun = self.machine.handle_probe(request.app, digest, terms, self.clock.now());
        self.act()?;
        self.forget_manifests()?;
        Ok(begun.map_err(|refused| refusal(&refused)).and_then(|id| self.probe_status(&id)))
    }

    pub(super) fn probe_status(&mut self, id: &str) -> Result<api::DryRun, api::Refusal> {
        let status = self.machine.handle_probe_asked(id, self.clock.now());
        let missing = || {
            api::Refusal::new(
                404,
                "no-such-dry-run",
                "that dry run is over: nobody asked about it, or the coordinator was started again",
            )
            .help("begin it again")
        };
        status.map(|status| answer(id, &status)).ok_or_else(missing)
    }

    /// Ends a dry run and returns how far it had been answered.
    pub(super) fn probe_over(&mut self, id: &str) -> anyhow::Result<Result<api::DryRun, api::Refusal>> {
        let last = self.probe_status(id);
        self.machine.handle_probe_over(id, self.clock.now());
        self.act()?;
        self.forget_manifests()?;
        Ok(last)
    }
}

/// Returns a dry run as far as it has been answered.
fn answer(id: &str, status: &ProbeStatus) -> api::DryRun {
    let is_waited_for = |host: &&ProbeHost| host.answer.is_none() && !host.silent && !host.doubled;
    let waiting_for: Vec<String> =
        status.hosts.iter().filter(is_waited_for).map(|host| host.host.to_string()).collect();
    let mut units = api::RolloutUnits::default();
    let (mut untracked, mut bystanders, mut bystanders_not_fresh, mut omitted) = (0_u32, 0_u32, 0_u32, 0_u32);
    let (mut units_detail, mut would_purge) = (Vec::new(), Vec::new());
    for (host, answer) in answers(status) {
        units.converged = units.converged.saturating_add(answer.units.fresh);
        units.pending = units.pending.saturating_add(answer.units.stale);
        units.waiting = units.waiting.saturating_add(answer.units.waiting);
        units.blocked = units.blocked.saturating_add(answer.units.blocked);
        units.unknown = units.unknown.saturating_add(answer.units.unknown);
        untracked = untracked.saturating_add(answer.untracked);
        bystanders = bystanders.saturating_add(answer.bystanders);
        bystanders_not_fresh = bystanders_not_fresh.saturating_add(answer.bystanders_not_fresh);
        omitted = omitted.saturating_add(answer.omitted);
        units_detail.extend(answer.detail.iter().map(|unit| detail(host, unit)));
        let file = |path: &String| api::HostFile { host: host.to_string(), path: path.clone() };
        would_purge.extend(answer.files.iter().map(file));
    }
    units.untouched = units.converged;
    let (outcome, because) = outcome(status, &waiting_for, &units, bystanders_not_fresh);
    let rollout = api::Rollout {
        schema: "unstale.broadcast/1".to_owned(),
        app: status.app.clone(),
        revision: Revision(0),
        fingerprint: String::new(),
        outcome,
        because,
        hosts: u32::try_from(status.hosts.len()).unwrap_or(u32::MAX),
        silent: status.hosts.iter().filter(|host| host.silent).map(|host| host.host.to_string()).collect(),
        sources: std::collections::BTreeMap::new(),
        units,
        untracked,
        bystanders,
        purged_files: 0,
        elapsed_ms: 0,
        units_detail,
        findings: Vec::new(),
        dry_run: true,
        would_purge,
        omitted,
    };
    api::DryRun { id: id.to_owned(), waiting_for, rollout }
}

fn answers(status: &ProbeStatus) -> impl Iterator<Item = (&dyn Display, &ProbeReport)> {
    let believed = status.hosts.iter().filter(|host| !host.doubled);
    believed.filter_map(|host| Some((&host.host as &dyn Display, host.answer.as_ref()?)))
}

/// The outcome that a broadcast could come to as things stand: what is stale and would be cured counts as cured.
fn outcome(
    status: &ProbeStatus,
    waiting_for: &[String],
    units: &api::RolloutUnits,
    bystanders_not_fresh: u32,
) -> (api::Outcome, Option<String>) {
    let terms = &status.terms;
    if !waiting_for.is_empty() {
        return (api::Outcome::InProgress, Some(format!("waiting for {}", waiting_for.join(", "))));
    }
    let mut stale = Vec::new();
    if units.blocked > 0 {
        stale.push(format!("{} cannot be restarted", count(units.blocked, "stale unit")));
    }
    if units.waiting > 0 {
        stale.push(format!(
            "{} would wait for source: a restart would load the old one again",
            count(units.waiting, "unit")
        ));
    }
    if terms.strict && bystanders_not_fresh > 0 {
        stale.push(format!("{} on a terminal not fresh", count(bystanders_not_fresh, "bystander")));
    }
    if !stale.is_empty() {
        return (api::Outcome::Failed, Some(stale.join("; ")));
    }
    let names = |chosen: &dyn Fn(&ProbeHost) -> bool| -> Vec<String> {
        status.hosts.iter().filter(|host| chosen(host)).map(|host| host.host.to_string()).collect()
    };
    let mut unproven = Vec::new();
    let silent = names(&|host| host.silent && host.answer.is_none());
    if !silent.is_empty() && !terms.ignore_silent {
        unproven.push(format!("silent: {}", silent.join(", ")));
    }
    let doubled = names(&|host| host.doubled);
    if !doubled.is_empty() {
        unproven.push(format!("two agents answer to the name {}", doubled.join(", ")));
    }
    let heard = u32::try_from(answers(status).count()).unwrap_or(u32::MAX);
    if terms.expect_hosts.is_some_and(|wanted| heard < wanted) {
        unproven.push(format!("only {} answered", count(heard, "host")));
    }
    if units.unknown > 0 {
        unproven.push(format!("{} cannot be judged", count(units.unknown, "unit")));
    }
    if units.total() == 0 && !terms.allow_empty {
        unproven.push("no worker holds this app".to_owned());
    }
    if unproven.is_empty() {
        (api::Outcome::Converged, None)
    } else {
        (api::Outcome::Incomplete, Some(unproven.join("; ")))
    }
}

fn detail(host: &dyn Display, unit: &ProbeUnit) -> api::RolloutUnit {
    let outcome = match (unit.verdict, unit.cure) {
        (Verdict::Fresh | Verdict::Untracked, _) => "converged",
        (Verdict::Unknown, _) => "unknown",
        (Verdict::Stale, _) if unit.blocked.is_some() => "blocked",
        (Verdict::Stale, Cure::Deploy) => "blocked",
        (Verdict::Stale, Cure::WaitForSource) => "waiting",
        (Verdict::Stale, _) => "pending",
    };
    let action = match (outcome, unit.cure) {
        ("unknown" | "blocked", _) | (_, Cure::None) => "none",
        (_, Cure::Purge) => "purge",
        (_, Cure::Restart) => "restart",
        (_, Cure::PurgeThenRestart) => "purge_then_restart",
        (_, Cure::WaitForSource) => "wait_for_source",
        (_, Cure::Deploy) => "deploy",
    };
    let because = match &unit.blocked {
        Some(why) => format!("{why} ({})", unit.because),
        None => unit.because.clone(),
    };
    api::RolloutUnit {
        host: host.to_string(),
        unit: unit.unit.to_string(),
        slot: unit.slot.to_string(),
        outcome: outcome.to_owned(),
        action: action.to_owned(),
        means: unit.means.clone(),
        because,
        elapsed_ms: 0,
    }
}
