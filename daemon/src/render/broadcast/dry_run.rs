//! A dry run as text: what would be done to which unit, and which files would be removed.

use super::super::{count, elapsed, plain, style};
use super::UNITS_SHOWN;
use crate::api::{Outcome, Rollout, RolloutUnit, RolloutUnits};
use std::fmt::Write as _;

/// Files named before the rest are counted.
const FILES_SHOWN: usize = 20;

/// Returns the answer for people.
pub(super) fn text(rollout: &Rollout) -> String {
    let mut out = String::new();
    let head = match rollout.outcome {
        Outcome::Converged if rollout.units.pending > 0 || !rollout.would_purge.is_empty() => {
            style::good("everything stale could be cured")
        }
        Outcome::Converged => style::good("nothing is stale"),
        Outcome::Failed => style::bad("not everything stale could be cured"),
        Outcome::Detached => style::doubtful("interrupted"),
        _ => style::doubtful("not everything is known"),
    };
    let took = elapsed(rollout.elapsed_ms);
    writeln!(out, "{}  dry run, nothing was done: {head} ({took})", style::strong(rollout.app.as_str()))
        .unwrap_or_default();
    if let Some(because) = &rollout.because {
        writeln!(out, "  because {}", plain(because)).unwrap_or_default();
    }
    writeln!(out, "  {}: {}", count(rollout.hosts, "host"), counts(&rollout.units)).unwrap_or_default();
    let told: Vec<&RolloutUnit> =
        rollout.units_detail.iter().filter(|unit| unit.outcome != "converged" || unit.action != "none").collect();
    for unit in told.iter().take(UNITS_SHOWN) {
        write_unit(&mut out, unit);
    }
    if let Some(more @ 1..) = told.len().checked_sub(UNITS_SHOWN) {
        writeln!(out, "  and {more} more").unwrap_or_default();
    }
    if !rollout.would_purge.is_empty() {
        let files = count(u32::try_from(rollout.would_purge.len()).unwrap_or(u32::MAX), "file");
        writeln!(out, "  {} {files} of stale bytecode", style::strong("would remove")).unwrap_or_default();
    }
    for file in rollout.would_purge.iter().take(FILES_SHOWN) {
        writeln!(out, "      {}  {}", plain(&file.path), style::quiet(&plain(&file.host))).unwrap_or_default();
    }
    if let Some(more @ 1..) = rollout.would_purge.len().checked_sub(FILES_SHOWN) {
        writeln!(out, "      and {more} more").unwrap_or_default();
    }
    if rollout.omitted > 0 {
        writeln!(out, "  {} more that their hosts had no room to name", rollout.omitted).unwrap_or_default();
    }
    if rollout.bystanders > 0 {
        writeln!(out, "  {} on a terminal would be left alone", count(rollout.bystanders, "bystander"))
            .unwrap_or_default();
    }
    out
}

fn counts(units: &RolloutUnits) -> String {
    let parts = [
        (units.blocked, style::bad("cannot be restarted")),
        (units.unknown, style::doubtful("unknown")),
        (units.waiting, style::doubtful("would wait for source")),
        (units.pending, "would be cured".to_owned()),
        (units.converged, "fresh".to_owned()),
    ];
    let shown =
        parts.into_iter().filter(|(number, _)| *number > 0).map(|(number, words)| format!(", {number} {words}"));
    format!("{}{}", count(units.total(), "unit"), shown.collect::<String>())
}

fn write_unit(out: &mut String, unit: &RolloutUnit) {
    let words = match (unit.outcome.as_str(), unit.action.as_str()) {
        ("blocked", _) => style::bad("cannot be restarted"),
        ("unknown", _) => style::doubtful("unknown"),
        (_, "restart") => style::strong("would restart"),
        (_, "purge_then_restart") => style::strong("would remove bytecode, then restart"),
        (_, "purge") => style::strong("would remove bytecode, no restart"),
        (_, "wait_for_source") => style::doubtful("would wait for source"),
        (_, "deploy") => style::bad("needs a deploy"),
        (outcome, _) => plain(outcome),
    };
    writeln!(out, "  {words}  {}  {}", plain(&unit.unit), style::quiet(&plain(&unit.host))).unwrap_or_default();
    if !unit.because.is_empty() {
        writeln!(out, "      because {}", plain(&unit.because)).unwrap_or_default();
    }
    if let Some(means) = &unit.means {
        writeln!(out, "      by {}", plain(means)).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::HostFile;
    use unstale_protocol::ids::{AppName, Revision};

    #[test]
    fn a_dry_run_says_what_would_be_done_to_which_unit_and_how() {
        let unit = |pid: u32, outcome: &str, action: &str, because: &str, means: Option<&str>| RolloutUnit {
            host: "web-3".into(),
            unit: format!("celery:{pid}"),
            slot: "celery/systemd/shop.service".into(),
            outcome: outcome.into(),
            action: action.into(),
            means: means.map(Into::into),
            because: because.into(),
            elapsed_ms: 0,
        };
        let rollout = Rollout {
            schema: "unstale.broadcast/1".into(),
            app: AppName::new("shop").unwrap(),
            revision: Revision(0),
            fingerprint: String::new(),
            outcome: Outcome::Failed,
            because: Some("1 stale unit cannot be restarted".into()),
            hosts: 1,
            silent: vec![],
            sources: std::collections::BTreeMap::new(),
            units: RolloutUnits { converged: 1, untouched: 1, pending: 1, blocked: 1, ..RolloutUnits::default() },
            untracked: 0,
            bystanders: 1,
            purged_files: 0,
            elapsed_ms: 2_310,
            units_detail: vec![
                unit(7, "blocked", "none", "cannot restart: nothing would bring it back", None),
                unit(8, "pending", "purge_then_restart", "memory differs\x1b[2J", Some("TERM to the main process")),
                unit(9, "converged", "none", "", None),
            ],
            findings: vec![],
            dry_run: true,
            would_purge: vec![HostFile { host: "web-3".into(), path: "/srv/shop/enums.cpython-311.pyc".into() }],
            omitted: 0,
        };
        insta::assert_snapshot!(anstream::adapter::strip_str(&text(&rollout)).to_string(), @r#"
        shop  dry run, nothing was done: not everything stale could be cured (2.3 s)
          because 1 stale unit cannot be restarted
          1 host: 3 units, 1 cannot be restarted, 1 would be cured, 1 fresh
          cannot be restarted  celery:7  web-3
              because cannot restart: nothing would bring it back
          would remove bytecode, then restart  celery:8  web-3
              because memory differs\x1b[2J
              by TERM to the main process
          would remove 1 file of stale bytecode
              /srv/shop/enums.cpython-311.pyc  web-3
          1 bystander on a terminal would be left alone
        "#);
    }
}
