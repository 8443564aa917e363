//! `why` as text: evidence, history, next step.

use super::{plain, style};
use crate::api::Why;
use std::fmt::Write as _;

/// Returns the answer for people.
pub(crate) fn text(why: &Why) -> String {
    let mut out = String::new();
    if why.findings.is_empty() {
        writeln!(out, "Nothing is known about {}.", plain(&why.target)).unwrap_or_default();
    }
    for finding in &why.findings {
        let verdict = match finding.verdict.as_str() {
            "stale" | "failed" => style::bad(&plain(&finding.verdict)),
            "fresh" => style::good("fresh"),
            other => style::doubtful(&plain(other)),
        };
        let name = finding.unit.as_deref().or(finding.slot.as_deref()).unwrap_or(&finding.host);
        let place = match &finding.slot {
            Some(slot) if finding.unit.is_some() => format!("in {} on {}", plain(slot), plain(&finding.host)),
            None if finding.unit.is_none() => String::new(),
            _ => format!("on {}", plain(&finding.host)),
        };
        let place = if place.is_empty() { place } else { format!("  {}", style::quiet(&place)) };
        writeln!(out, "{verdict}  {}{place}", style::strong(&plain(name))).unwrap_or_default();
        writeln!(out, "  because {}", plain(&finding.because)).unwrap_or_default();
        for line in &finding.evidence {
            writeln!(out, "    {}", plain(line)).unwrap_or_default();
        }
        if !finding.history.is_empty() {
            out.push_str("  history\n");
        }
        for event in &finding.history {
            writeln!(out, "    {}  {}", style::quiet(&clock(event.at_ms)), plain(&event.text)).unwrap_or_default();
        }
        if let Some(next) = &finding.next {
            writeln!(out, "  next: {}", plain(next)).unwrap_or_default();
        }
    }
    out
}

/// A time of day in UTC, for telling events apart.
fn clock(at_ms: u64) -> String {
    let seconds = at_ms / 1_000 % 86_400;
    format!("{:02}:{:02}:{:02}Z", seconds / 3_600, seconds % 3_600 / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Event, WhyFinding};

    #[test]
    fn evidence_history_and_next_step_follow_the_verdict() {
        let event = Event {
            number: 3,
            at_ms: 45_296_000,
            host: None,
            slot: None,
            what: "granted".into(),
            text: "restart granted".into(),
        };
        let finding = WhyFinding {
            host: "web-3".into(),
            slot: Some("celery/systemd/shop.service".into()),
            unit: Some("celery:4711".into()),
            verdict: "stale".into(),
            because: "memory of app.enums:CrmType differs".into(),
            evidence: vec!["HUBSPOT = \"HUBSPOT\" in memory".into()],
            history: vec![event],
            next: Some("drains, then restarts".into()),
        };
        let why = Why { target: "pid:4711".into(), findings: vec![finding], ..Why::default() };
        insta::assert_snapshot!(anstream::adapter::strip_str(&text(&why)).to_string(), @r#"
        stale  celery:4711  in celery/systemd/shop.service on web-3
          because memory of app.enums:CrmType differs
            HUBSPOT = "HUBSPOT" in memory
          history
            12:34:56Z  restart granted
          next: drains, then restarts
        "#);
    }
}
