//! Every enum of a unit with all its layers, one line each: `inspect --all-layers`.

use super::{InspectBinding, InspectEnum, InspectLayer, InspectWorker, plain, show, style};
use std::fmt::Write as _;
use unstale_protocol::verdict::Verdict;

/// Writes what the processes of a unit hold. What forked children repeat is said once.
pub(super) fn write(out: &mut String, unit: &[&InspectWorker]) {
    writeln!(out, "    {}", style::quiet("all enums:")).unwrap_or_default();
    let mut shown: Vec<&InspectEnum> = Vec::new();
    for entry in unit.iter().flat_map(|worker| worker.enums.iter()) {
        if !shown.contains(&entry) {
            write_enum(out, entry);
            shown.push(entry);
        }
    }
}

fn write_enum(out: &mut String, entry: &InspectEnum) {
    let name = style::strong(&plain(&entry.name));
    writeln!(out, "    {name}  {}", style::verdict(entry.verdict)).unwrap_or_default();
    let memory = entry.layers.get("memory");
    for name in ["memory", "source", "bytecode"] {
        let Some(layer) = entry.layers.get(name) else { continue };
        let is_same = name != "memory" && memory.is_some_and(|memory| holds_the_same(memory, layer));
        let what = if is_same { "the same".to_owned() } else { members(layer) };
        let path = layer.path.as_deref().map(|path| format!("  {}", style::quiet(&plain(path)))).unwrap_or_default();
        let stale = if layer.stale == Some(true) { format!("  {}", style::bad("stale")) } else { String::new() };
        writeln!(out, "      {name:<8} {what}{stale}{path}").unwrap_or_default();
    }
    for binding in &entry.bindings {
        write_binding(out, binding);
    }
    if let Some((name, labels)) =
        entry.layers.get("database").and_then(|layer| Some((layer.type_name.as_deref()?, layer.labels.as_deref()?)))
    {
        writeln!(out, "      database {} has {}", plain(name), quoted(labels)).unwrap_or_default();
    }
}

fn write_binding(out: &mut String, binding: &InspectBinding) {
    let Some(sent) = &binding.memory else { return };
    let verdict = match binding.verdict {
        Verdict::Fresh => String::new(),
        verdict => format!("  {}", style::verdict(verdict)),
    };
    writeln!(out, "      {} sends {}{verdict}", plain(&binding.column), quoted(sent)).unwrap_or_default();
    let Some(known) = &binding.database else { return };
    let lacks: Vec<String> = sent.iter().filter(|label| !known.contains(label)).cloned().collect();
    if !lacks.is_empty() {
        let words = style::doubtful("the database lacks");
        writeln!(out, "        {words} {}", quoted(&lacks)).unwrap_or_default();
    }
}

fn holds_the_same(memory: &InspectLayer, layer: &InspectLayer) -> bool {
    memory.members == layer.members && memory.aliases == layer.aliases
}

fn members(layer: &InspectLayer) -> String {
    let member = |(name, value): &(String, serde_json::Value)| format!("{} = {}", plain(name), show(value));
    let alias = |(name, canonical): &(String, String)| format!("{} is {}", plain(name), plain(canonical));
    let all: Vec<String> = layer.members.iter().map(member).chain(layer.aliases.iter().map(alias)).collect();
    if all.is_empty() { "no members".to_owned() } else { all.join(", ") }
}

fn quoted(labels: &[String]) -> String {
    let label = |label: &String| plain(&format!("{label:?}"));
    if labels.is_empty() { "no labels".to_owned() } else { labels.iter().map(label).collect::<Vec<_>>().join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeMap;

    #[test]
    fn a_fresh_enum_shows_each_layer_once_and_what_the_database_lacks() {
        let layer = |path: Option<&str>| InspectLayer {
            members: vec![("HUBSPOT".into(), json!("hubspot"))],
            aliases: vec![("HS".into(), "HUBSPOT".into())],
            path: path.map(Into::into),
            ..InspectLayer::default()
        };
        let database = InspectLayer {
            type_name: Some("public.crm_type".into()),
            labels: Some(vec!["HUBSPOT\x1b".into()]),
            ..InspectLayer::default()
        };
        let entry = InspectEnum {
            name: "app.enums:CrmType".into(),
            verdict: Verdict::Fresh,
            because: None,
            layers: BTreeMap::from([
                ("memory".into(), layer(None)),
                ("source".into(), layer(Some("/srv/enums.py"))),
                ("database".into(), database),
            ]),
            bindings: vec![InspectBinding {
                column: "app.models:Conn.crm_type".into(),
                type_name: Some("crm_type".into()),
                memory: Some(vec!["hubspot".into()]),
                source: None,
                database: Some(vec!["HUBSPOT".into()]),
                verdict: Verdict::Fresh,
            }],
        };
        let mut out = String::new();
        write_enum(&mut out, &entry);
        insta::assert_snapshot!(anstream::adapter::strip_str(&out).to_string(), @r#"
            app.enums:CrmType  fresh
              memory   HUBSPOT = "hubspot", HS is HUBSPOT
              source   the same  /srv/enums.py
              app.models:Conn.crm_type sends "hubspot"
                the database lacks "hubspot"
              database public.crm_type has "HUBSPOT\u{1b}"
        "#);
    }
}
