//! `broadcast` and `status --watch` as text: what came of a rollout, and of the check before it.

mod dry_run;

use super::{count, elapsed, plain, style};
use crate::api::{Finding, Outcome, Rollout, RolloutUnits, Severity};
use std::fmt::Write as _;

/// Units named before the rest are counted.
const UNITS_SHOWN: usize = 20;

/// Returns the summary for people.
pub(crate) fn text(rollout: &Rollout) -> String {
    if rollout.dry_run {
        return dry_run::text(rollout);
    }
    let mut out = String::new();
    let words = rollout.outcome.as_str().replace('_', " ");
    let outcome = match rollout.outcome {
        Outcome::Converged => style::good("converged and verified"),
        Outcome::Failed | Outcome::Halted | Outcome::Refused => style::bad(&words),
        Outcome::Incomplete | Outcome::Timeout | Outcome::InProgress | Outcome::Paused => style::doubtful(&words),
        Outcome::Superseded | Outcome::Aborted | Outcome::Detached => style::strong(&words),
    };
    let name = format!("{}@{}", rollout.app, rollout.revision);
    writeln!(out, "{}  {outcome} after {}", style::strong(&name), elapsed(rollout.elapsed_ms)).unwrap_or_default();
    if let Some(because) = &rollout.because {
        writeln!(out, "  because {}", plain(because)).unwrap_or_default();
    }
    writeln!(out, "  {}: {}", count(rollout.hosts, "host"), units(&rollout.units)).unwrap_or_default();
    if rollout.purged_files > 0 {
        writeln!(out, "  {} of stale bytecode removed", count(rollout.purged_files, "file")).unwrap_or_default();
    }
    if rollout.untracked > 0 {
        writeln!(
            out,
            "  {} outside verdicts: values that no source text determines",
            count(rollout.untracked, "untracked enum")
        )
        .unwrap_or_default();
    }
    if rollout.bystanders > 0 {
        writeln!(out, "  {} on a terminal, left alone", count(rollout.bystanders, "bystander")).unwrap_or_default();
    }
    if !rollout.silent.is_empty() {
        let names: Vec<String> = rollout.silent.iter().map(|host| plain(host)).collect();
        let left_out = match rollout.units.unheard {
            0 => String::new(),
            number => format!(" ({} last known there, part of no proof)", count(number, "unit")),
        };
        writeln!(out, "  silent: {}{left_out}", names.join(", ")).unwrap_or_default();
    }
    let told: Vec<_> =
        rollout.units_detail.iter().filter(|unit| unit.outcome != "converged" || unit.action != "none").collect();
    for unit in told.iter().take(UNITS_SHOWN) {
        let word = match unit.outcome.as_str() {
            "converged" => style::good(&plain(&unit.action)),
            "failed" | "blocked" => style::bad(&plain(&unit.outcome)),
            _ => style::doubtful(&plain(&unit.outcome)),
        };
        let took = if unit.elapsed_ms > 0 { format!(" in {}", elapsed(unit.elapsed_ms)) } else { String::new() };
        writeln!(out, "  {word}{took}  {}  {}", plain(&unit.unit), style::quiet(&plain(&unit.host)))
            .unwrap_or_default();
        if !unit.because.is_empty() {
            writeln!(out, "      because {}", plain(&unit.because)).unwrap_or_default();
        }
    }
    if let Some(more @ 1..) = told.len().checked_sub(UNITS_SHOWN) {
        writeln!(out, "  and {more} more").unwrap_or_default();
    }
    if let Some(next) = next_step(rollout.outcome, &name) {
        writeln!(out, "  {next}").unwrap_or_default();
    }
    out
}

/// Returns what is said where the check refused the broadcast; the findings were shown before.
pub(crate) fn refused(rollout: &Rollout) -> String {
    let next = next_step(Outcome::Refused, rollout.app.as_str()).unwrap_or_default();
    format!("{}  {}\n  {next}\n", style::strong(rollout.app.as_str()), style::bad("refused"))
}

/// Returns what the check before a broadcast found.
pub(crate) fn findings(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let severity = match finding.severity {
            Severity::Error => style::bad("error"),
            Severity::Warning => style::doubtful("warning"),
        };
        writeln!(out, "{severity}[{}] {}", finding.code, plain(&finding.message)).unwrap_or_default();
        writeln!(out, "  {} {}", style::good("help:"), plain(&finding.help)).unwrap_or_default();
    }
    out
}

/// Returns the counts that are not zero, in the order in which they matter.
pub(crate) fn units(units: &RolloutUnits) -> String {
    let mut parts = Vec::new();
    let mut part = |number: u32, text: String| {
        if number > 0 {
            parts.push(text);
        }
    };
    part(units.failed, style::bad(&format!("{} failed", units.failed)));
    part(units.blocked, style::bad(&format!("{} cannot be restarted", units.blocked)));
    part(units.unknown, style::doubtful(&format!("{} unknown", units.unknown)));
    part(units.waiting, style::doubtful(&format!("{} waiting for source", units.waiting)));
    part(units.unheard, style::doubtful(&format!("{} not heard of", units.unheard)));
    part(units.pending, format!("{} to go", units.pending));
    let converged = match (units.restarted, units.untouched) {
        (0, _) => format!("{} converged", units.converged),
        (restarted, untouched) => {
            format!("{} converged ({restarted} restarted, {untouched} untouched)", units.converged)
        }
    };
    part(units.converged, converged);
    part(units.gone, format!("{} gone", units.gone));
    let total = count(units.total(), "unit");
    if parts.is_empty() { total } else { format!("{total}, {}", parts.join(", ")) }
}

fn next_step(outcome: Outcome, name: &str) -> Option<String> {
    let app = name.split('@').next().unwrap_or(name);
    match outcome {
        Outcome::Timeout => Some(format!(
            "The rollout stays in force until it is superseded or aborted: `unstale status {name} --watch` comes back to it."
        )),
        Outcome::Detached => Some(format!("The rollout goes on: `unstale status {name} --watch` comes back to it.")),
        Outcome::Halted => {
            Some(format!("Look with `unstale status {app}`, then `unstale resume {name}` or `unstale abort {name}`."))
        }
        Outcome::Failed | Outcome::Incomplete => {
            Some("`unstale why UNIT` tells everything known about one of them.".to_owned())
        }
        Outcome::Refused => Some("Nothing was announced; `--force` announces it all the same.".to_owned()),
        Outcome::InProgress | Outcome::Paused | Outcome::Converged | Outcome::Superseded | Outcome::Aborted => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::RolloutUnit;
    use unstale_protocol::ids::{AppName, Revision};

    fn rollout(outcome: Outcome) -> Rollout {
        Rollout {
            schema: "unstale.broadcast/1".into(),
            app: AppName::new("shop").unwrap(),
            revision: Revision(7),
            fingerprint: String::new(),
            outcome,
            because: None,
            hosts: 1,
            silent: vec![],
            sources: std::collections::BTreeMap::new(),
            units: RolloutUnits { converged: 12, restarted: 4, untouched: 8, ..RolloutUnits::default() },
            untracked: 1,
            bystanders: 0,
            purged_files: 2,
            elapsed_ms: 5_310,
            units_detail: vec![],
            findings: vec![],
            dry_run: false,
            would_purge: vec![],
            omitted: 0,
        }
    }

    fn shown(rollout: &Rollout) -> String {
        anstream::adapter::strip_str(&text(rollout)).to_string()
    }

    #[test]
    fn a_converged_rollout_is_told_in_counts() {
        insta::assert_snapshot!(shown(&rollout(Outcome::Converged)), @r#"
        shop@7  converged and verified after 5.3 s
          1 host: 12 units, 12 converged (4 restarted, 8 untouched)
          2 files of stale bytecode removed
          1 untracked enum outside verdicts: values that no source text determines
        "#);
    }

    #[test]
    fn what_silent_hosts_had_is_said_to_be_no_part_of_the_proof() {
        let mut converged = rollout(Outcome::Converged);
        (converged.hosts, converged.silent) = (2, vec!["web-3".into()]);
        converged.units = RolloutUnits { converged: 8, untouched: 8, unheard: 4, ..RolloutUnits::default() };
        insta::assert_snapshot!(shown(&converged), @r#"
        shop@7  converged and verified after 5.3 s
          2 hosts: 12 units, 4 not heard of, 8 converged
          2 files of stale bytecode removed
          1 untracked enum outside verdicts: values that no source text determines
          silent: web-3 (4 units last known there, part of no proof)
        "#);
    }

    #[test]
    fn a_halted_rollout_names_what_failed_and_the_next_step() {
        let mut halted = rollout(Outcome::Halted);
        halted.because = Some("unit celery:4711 on web-3 did not come back".into());
        halted.units = RolloutUnits { failed: 1, pending: 3, ..RolloutUnits::default() };
        halted.units_detail = vec![RolloutUnit {
            host: "web-3".into(),
            unit: "celery:4711".into(),
            slot: "celery/systemd/shop.service".into(),
            outcome: "failed".into(),
            action: "restarted".into(),
            means: None,
            because: "it ended 2 s after its start\x1b[31m".into(),
            elapsed_ms: 4_100,
        }];
        insta::assert_snapshot!(shown(&halted), @r#"
        shop@7  halted after 5.3 s
          because unit celery:4711 on web-3 did not come back
          1 host: 4 units, 1 failed, 3 to go
          2 files of stale bytecode removed
          1 untracked enum outside verdicts: values that no source text determines
          failed in 4.1 s  celery:4711  web-3
              because it ended 2 s after its start\x1b[31m
          Look with `unstale status shop`, then `unstale resume shop@7` or `unstale abort shop@7`.
        "#);
    }
}
