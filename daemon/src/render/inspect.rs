//! `inspect` as text: a verdict per unit, what differs side by side, the layer that is wrong, the cure.

mod layers;

use super::{count, plain, style};
use crate::api::{Inspect, InspectBinding, InspectEnum, InspectLayer, InspectWorker};
use serde_json::Value as Json;
use std::fmt::Write as _;
use unstale_protocol::verdict::Verdict;

/// Fresh units named before the rest are counted.
const FRESH_SHOWN: usize = 20;

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// What is not fresh, in full; what is, by name.
    Findings,
    /// Every enum with every layer that was asked for.
    Everything,
}

/// Returns the answer for people.
pub(crate) fn text(inspect: &Inspect, detail: Detail) -> String {
    let mut out = String::new();
    if inspect.workers.is_empty() {
        let python = inspect.summary.without_enums;
        let line = if python == 0 && inspect.summary.unreadable == 0 {
            "No Python process was found on this host.\n".to_owned()
        } else if python == 0 {
            "No Python process that you may read was found on this host.\n".to_owned()
        } else {
            format!("{}, none of which has an enum of an app.\n", processes(python))
        };
        out.push_str(&line);
        return out;
    }
    let mut units: Vec<Vec<&InspectWorker>> = Vec::new();
    for worker in &inspect.workers {
        match units.iter_mut().find(|unit| unit.first().is_some_and(|first| first.unit == worker.unit)) {
            Some(unit) => unit.push(worker),
            None => units.push(vec![worker]),
        }
    }
    // What needs a person comes first; the order within is the one of the answer.
    units.sort_by_key(|unit| match verdict(unit) {
        Verdict::Stale => 0,
        Verdict::Unknown => 1,
        Verdict::Fresh | Verdict::Untracked => 2,
    });
    let mut fresh = 0;
    for unit in &units {
        if verdict(unit) == Verdict::Fresh {
            fresh += 1;
            if fresh > FRESH_SHOWN && detail == Detail::Findings {
                continue;
            }
        }
        write_unit(&mut out, unit);
        if detail == Detail::Everything {
            layers::write(&mut out, unit);
        }
    }
    if let (Some(more @ 1..), Detail::Findings) = (fresh.checked_sub(FRESH_SHOWN), detail) {
        writeln!(out, "and {more} more fresh units").unwrap_or_default();
    }
    out.push('\n');
    out.push_str(&summary(inspect, units.len()));
    out
}

/// Returns what stderr says beside the answer: what `sudo` would add.
pub(crate) fn notes(inspect: &Inspect) -> Vec<String> {
    let mut notes = Vec::new();
    if inspect.summary.unreadable > 0 {
        notes.push(format!(
            "{} of other users may not be read; `sudo unstale inspect` would show them",
            processes(inspect.summary.unreadable)
        ));
    }
    notes
}

fn processes(number: u32) -> String {
    if number == 1 { "1 Python process".to_owned() } else { format!("{number} Python processes") }
}

fn verdict(unit: &[&InspectWorker]) -> Verdict {
    unit.iter().map(|worker| worker.verdict).max().unwrap_or(Verdict::Unknown)
}

fn write_unit(out: &mut String, unit: &[&InspectWorker]) {
    let Some(first) = unit.first() else { return };
    let verdict = verdict(unit);
    let children = unit.len() - 1;
    let family = match children {
        0 => String::new(),
        _ => format!(" + {}", if children == 1 { "1 child".to_owned() } else { format!("{children} children") }),
    };
    let supervisor = match &first.supervisor {
        Some(supervisor) if supervisor.kind != "none" => {
            format!(", {} {}", plain(&supervisor.kind), plain(&supervisor.name))
        }
        _ => String::new(),
    };
    let bystander = if first.bystander { ", on a terminal: never restarted" } else { "" };
    let python = first.python.as_deref().map(|version| format!(", Python {}", plain(version))).unwrap_or_default();
    writeln!(
        out,
        "{}  {}{family}  {}",
        style::verdict(verdict),
        style::strong(&plain(&first.unit)),
        style::quiet(&format!("({}{supervisor}{python}{bystander})", plain(&first.user))),
    )
    .unwrap_or_default();
    if verdict == Verdict::Fresh {
        return;
    }
    writeln!(out, "       {}", style::quiet(&shortened(&first.command))).unwrap_or_default();
    let mut shown: Vec<String> = Vec::new();
    for worker in unit.iter().filter(|worker| worker.verdict != Verdict::Fresh) {
        let mut block = String::new();
        for entry in worker.enums.iter().filter(|entry| matches!(entry.verdict, Verdict::Stale | Verdict::Unknown)) {
            write_enum(&mut block, entry);
        }
        if worker.enums.iter().all(|entry| matches!(entry.verdict, Verdict::Fresh | Verdict::Untracked)) {
            writeln!(block, "    because {}", plain(&worker.because)).unwrap_or_default();
        }
        // Forked children repeat their parent: the same findings are said once.
        if !shown.contains(&block) {
            out.push_str(&block);
            shown.push(block);
        }
    }
    let with: Vec<String> =
        unit.iter().filter(|worker| worker.verdict == verdict).map(|worker| worker.pid.to_string()).collect();
    if unit.len() > 1 {
        let label = if verdict == Verdict::Stale { "held by" } else { "about" };
        writeln!(out, "    {label} pid {}", with.join(", ")).unwrap_or_default();
    }
    if let Some(cure) = unit.iter().find_map(|worker| worker.cure.as_deref()) {
        writeln!(out, "    {} {}", style::good("cure:"), plain(cure)).unwrap_or_default();
    }
}

fn shortened(command: &[String]) -> String {
    const MAX_CHARS: usize = 110;
    let whole = plain(&command.join(" "));
    if whole.chars().count() <= MAX_CHARS {
        return whole;
    }
    whole.chars().take(MAX_CHARS - 1).chain(['…']).collect()
}

fn write_enum(out: &mut String, entry: &InspectEnum) {
    let because = entry.because.as_deref().map(|because| format!("  because {}", plain(because))).unwrap_or_default();
    writeln!(out, "    {}{because}", style::strong(&plain(&entry.name))).unwrap_or_default();
    if let (Some(memory), Some(source)) = (entry.layers.get("memory"), entry.layers.get("source")) {
        for line in differences(memory, source) {
            writeln!(out, "      {line}").unwrap_or_default();
        }
    }
    for binding in entry.bindings.iter().filter(|binding| binding.verdict == Verdict::Stale) {
        write_binding(out, binding);
    }
    let layer = |name: &str| entry.layers.get(name).and_then(|layer| layer.path.as_deref()).map(plain);
    if let Some(path) = layer("source") {
        writeln!(out, "      {}", style::quiet(&format!("source   {path}"))).unwrap_or_default();
    }
    if let Some(path) =
        layer("bytecode").filter(|_| entry.layers.get("bytecode").is_some_and(|layer| layer.stale == Some(true)))
    {
        writeln!(out, "      {} {path}", style::bad("bytecode is stale:")).unwrap_or_default();
    }
}

fn write_binding(out: &mut String, binding: &InspectBinding) {
    let memory = binding.memory.as_ref().map_or("?".to_owned(), |labels| {
        labels.iter().map(|label| plain(&format!("{label:?}"))).collect::<Vec<_>>().join(", ")
    });
    let source = binding.source.as_ref().map_or("?".to_owned(), |labels| {
        let label =
            |label: &Option<String>| label.as_ref().map_or("?".to_owned(), |label| plain(&format!("{label:?}")));
        labels.iter().map(label).collect::<Vec<_>>().join(", ")
    });
    writeln!(out, "      {} sends {memory}  ->  {}", plain(&binding.column), style::good(&source)).unwrap_or_default();
}

/// Members that differ, as `NAME = memory  ->  source`.
fn differences(memory: &InspectLayer, source: &InspectLayer) -> Vec<String> {
    let value = |layer: &InspectLayer, name: &str| {
        layer.members.iter().find(|(member, _)| member == name).map(|(_, value)| show(value))
    };
    let mut lines = Vec::new();
    for (name, held) in &memory.members {
        let held = show(held);
        match value(source, name) {
            Some(wanted) if wanted != held => {
                lines.push(format!("{} = {}  ->  {}", plain(name), style::bad(&held), style::good(&wanted)));
            }
            Some(_) => {}
            None => lines.push(format!("{} = {}  ->  {}", plain(name), style::bad(&held), style::good("gone"))),
        }
    }
    for (name, wanted) in &source.members {
        if value(memory, name).is_none() {
            lines.push(format!(
                "{}  {}  ->  {}",
                plain(name),
                style::bad("missing"),
                style::good(&format!("= {}", show(wanted)))
            ));
        }
    }
    if lines.is_empty() && !memory.members.iter().map(|(name, _)| name).eq(source.members.iter().map(|(name, _)| name))
    {
        let names =
            |layer: &InspectLayer| layer.members.iter().map(|(name, _)| plain(name)).collect::<Vec<_>>().join(", ");
        lines.push(format!("order {}  ->  {}", style::bad(&names(memory)), style::good(&names(source))));
    }
    for (name, canonical) in &memory.aliases {
        match source.aliases.iter().find(|(alias, _)| alias == name) {
            Some((_, wanted)) if wanted == canonical => {}
            Some((_, wanted)) => {
                lines.push(format!("alias {} of {}  ->  of {}", plain(name), plain(canonical), plain(wanted)));
            }
            None => lines.push(format!("alias {} of {}  ->  {}", plain(name), plain(canonical), style::good("gone"))),
        }
    }
    for (name, canonical) in
        source.aliases.iter().filter(|(name, _)| memory.aliases.iter().all(|(alias, _)| alias != name))
    {
        lines.push(format!("alias {}  {}  ->  of {}", plain(name), style::bad("missing"), plain(canonical)));
    }
    lines
}

/// A value as Python would write it, as far as JSON kept it.
fn show(value: &Json) -> String {
    let text = match value {
        Json::Null => "None".to_owned(),
        Json::Bool(true) => "True".to_owned(),
        Json::Bool(false) => "False".to_owned(),
        Json::Object(object) => match (object.get("repr"), object.get("unresolved")) {
            (Some(Json::String(repr)), _) => repr.clone(),
            (_, Some(Json::String(why))) => format!("(unresolved: {why})"),
            _ => value.to_string(),
        },
        other => other.to_string(),
    };
    plain(&text)
}

fn summary(inspect: &Inspect, units: usize) -> String {
    let counts = &inspect.summary;
    let mut parts = vec![format!(
        "{} in {}: {} fresh, {} stale, {} unknown",
        count(counts.workers, "worker"),
        count(u32::try_from(units).unwrap_or(u32::MAX), "unit"),
        counts.fresh,
        counts.stale,
        counts.unknown
    )];
    if counts.untracked > 0 {
        let noun = if counts.untracked == 1 { "enum" } else { "enums" };
        parts.push(format!("{} {noun} untracked (values that no source text determines)", counts.untracked));
    }
    if counts.bystanders > 0 {
        parts.push(format!("{} on a terminal", count(counts.bystanders, "process").replace("processs", "processes")));
    }
    if counts.without_enums > 0 {
        parts.push(format!("{} without an enum of an app", processes(counts.without_enums)));
    }
    parts.join(" · ") + "\n"
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::{InspectSummary, InspectSupervisor};
    use serde_json::json;
    use std::collections::BTreeMap;

    fn layer(members: &[(&str, Json)], path: &str) -> InspectLayer {
        let members = members.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        InspectLayer { members, path: Some(path.to_owned()), ..InspectLayer::default() }
    }

    fn worker(pid: u32, role: &str, verdict: Verdict, enums: Vec<InspectEnum>) -> InspectWorker {
        InspectWorker {
            pid,
            started_at_ms: 0,
            parent_pid: 1,
            user: "shop".into(),
            kind: "celery".into(),
            role: role.into(),
            unit: "celery:4711".into(),
            slot: "celery/systemd/shop.service".into(),
            app: None,
            python: Some("3.11.7".into()),
            supervisor: Some(InspectSupervisor { kind: "systemd".into(), name: "shop.service".into() }),
            command: vec!["celery".into(), "-A".into(), "shop\x1b[2J".into(), "worker".into()],
            verdict,
            because: "memory of app.enums:CrmType differs from its source".into(),
            cure: (verdict == Verdict::Stale).then(|| "restart unit celery:4711".into()),
            untracked: 0,
            bystander: false,
            enums: std::sync::Arc::new(enums.into()),
        }
    }

    fn stale_enum() -> InspectEnum {
        let memory = layer(&[("HUBSPOT", json!("HUBSPOT")), ("OLD", json!(1)), ("BIG", json!({"repr": "b\"x\""}))], "");
        let source = layer(
            &[("HUBSPOT", json!("hubspot")), ("BIG", json!({"repr": "b\"x\""})), ("NEW", json!(null))],
            "/srv/shop/app/enums.py",
        );
        InspectEnum {
            name: "app.enums:CrmType".into(),
            verdict: Verdict::Stale,
            because: Some("memory differs from its source".into()),
            layers: BTreeMap::from([("memory".into(), memory), ("source".into(), source)]),
            bindings: vec![InspectBinding {
                column: "app.models:Conn.crm_type".into(),
                type_name: Some("crm_type".into()),
                memory: Some(vec!["HUBSPOT".into()]),
                source: Some(vec![Some("hubspot".into()), None]),
                database: None,
                verdict: Verdict::Stale,
            }],
        }
    }

    fn shown(inspect: &Inspect) -> String {
        anstream::adapter::strip_str(&text(inspect, Detail::Findings)).to_string()
    }

    #[test]
    fn a_stale_unit_is_told_once_for_all_its_children() {
        let inspect = Inspect {
            summary: InspectSummary {
                workers: 3,
                stale: 3,
                unreadable: 2,
                without_enums: 7,
                ..InspectSummary::default()
            },
            workers: (0..3)
                .map(|n| worker(4711 + n, if n == 0 { "main" } else { "child" }, Verdict::Stale, vec![stale_enum()]))
                .collect(),
            ..Inspect::default()
        };
        insta::assert_snapshot!(shown(&inspect), @r#"
        stale  celery:4711 + 2 children  (shop, systemd shop.service, Python 3.11.7)
               celery -A shop\x1b[2J worker
            app.enums:CrmType  because memory differs from its source
              HUBSPOT = "HUBSPOT"  ->  "hubspot"
              OLD = 1  ->  gone
              NEW  missing  ->  = None
              app.models:Conn.crm_type sends "HUBSPOT"  ->  "hubspot", ?
              source   /srv/shop/app/enums.py
            held by pid 4711, 4712, 4713
            cure: restart unit celery:4711

        3 workers in 1 unit: 0 fresh, 3 stale, 0 unknown · 7 Python processes without an enum of an app
        "#);
        insta::assert_snapshot!(notes(&inspect).join("\n"), @"2 Python processes of other users may not be read; `sudo unstale inspect` would show them");
    }

    #[test]
    fn an_unknown_worker_says_what_is_missing() {
        let mut unknown = worker(7, "main", Verdict::Unknown, vec![]);
        unknown.because = "its memory may not be read: run as root, or grant CAP_SYS_PTRACE".into();
        let inspect = Inspect {
            summary: InspectSummary { workers: 1, unknown: 1, ..InspectSummary::default() },
            workers: vec![unknown],
            ..Inspect::default()
        };
        insta::assert_snapshot!(shown(&inspect), @r#"
        unknown  celery:4711  (shop, systemd shop.service, Python 3.11.7)
               celery -A shop\x1b[2J worker
            because its memory may not be read: run as root, or grant CAP_SYS_PTRACE

        1 worker in 1 unit: 0 fresh, 0 stale, 1 unknown
        "#);
    }

    #[test]
    fn a_host_without_workers_says_so() {
        assert_eq!(shown(&Inspect::default()), "No Python process was found on this host.\n");
        let summary = InspectSummary { without_enums: 40, ..InspectSummary::default() };
        assert_eq!(
            shown(&Inspect { summary, ..Inspect::default() }),
            "40 Python processes, none of which has an enum of an app.\n"
        );
    }
}
