//! `status` as text: apps, hosts, what is not fresh, and what blocks.

use super::{elapsed, plain, style, table};
use crate::api::{
    DrainStanding, Outcome, Status, StatusApp, StatusBus, StatusHost, StatusHostApp, StatusOther, StatusSlot,
};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// How much of the fleet a status is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scope<'a> {
    /// All of it.
    Fleet,
    /// What is left after narrowing.
    Part {
        /// What it was narrowed to, as it was written.
        asked: &'a [String],
        /// How many apps were announced, chosen or not.
        announced: usize,
    },
}

/// Returns the answer for people.
pub(crate) fn text(status: &Status, scope: Scope<'_>) -> String {
    let mut out = String::new();
    if let Some(blocked) = &status.blocked {
        writeln!(out, "{} {}\n", style::doubtful("blocked:"), plain(blocked)).unwrap_or_default();
    }
    if let Some(bus) = &status.bus {
        write_bus(&mut out, bus, status.epoch);
    }
    let announced = match scope {
        Scope::Fleet => status.apps.len(),
        Scope::Part { announced, .. } => announced,
    };
    if announced == 0 {
        out.push_str("Nothing was announced yet: `unstale broadcast --app NAME PATH` does.\n");
    }
    if let Scope::Part { asked, .. } = scope
        && status.apps.is_empty()
        && status.hosts.is_empty()
    {
        let asked = asked.iter().map(|text| format!("`{}`", plain(text))).collect::<Vec<_>>().join(" or ");
        writeln!(out, "nothing matches {asked}; `unstale status` lists hosts and units").unwrap_or_default();
        return out;
    }
    for app in &status.apps {
        write_app(&mut out, app);
    }
    // In a fleet that grows and shrinks there are ever more of these: they are named, and no more, unless asked for.
    let (gone, hosts): (Vec<&StatusHost>, Vec<&StatusHost>) =
        status.hosts.iter().partition(|host| host.standing == "left" && matches!(scope, Scope::Fleet));
    write_hosts(&mut out, &hosts, scope);
    if !gone.is_empty() {
        writeln!(out, "\nleft: {}", some_of(gone.iter().map(|host| plain(&host.host)))).unwrap_or_default();
    }
    for host in &status.hosts {
        let name = style::strong(&plain(&host.host));
        if let Some(because) = &host.because {
            writeln!(out, "\n{name}: {}", plain(because)).unwrap_or_default();
        }
        if !host.rejected.is_empty() {
            writeln!(out, "\n{name}: messages that changed nothing: {}", reasons(&host.rejected)).unwrap_or_default();
        }
        let is_drained =
            |slot: &StatusSlot| status.drains.iter().any(|drain| drain.host == host.host && drain.slot == slot.slot);
        // What is drained is listed below, what is plainly fresh is not.
        let is_telling = |slot: &&StatusSlot| (slot.verdict != "fresh" || slot.phase != "up") && !is_drained(slot);
        let slots: Vec<_> = host.slots.iter().filter(is_telling).collect();
        let is_gone = gone.iter().any(|left| left.host == host.host);
        if slots.is_empty() || is_gone {
            continue;
        }
        writeln!(out, "\nOn {name}:").unwrap_or_default();
        for slot in slots {
            write_slot(&mut out, slot);
        }
        if host.omitted > 0 {
            writeln!(out, "  and {} more that its report had no room for", host.omitted).unwrap_or_default();
        }
    }
    for host in &hosts {
        write_others(&mut out, host);
    }
    if !status.drains.is_empty() {
        out.push_str("\nTaken out of work by hand:\n");
        out.push_str(&super::drain::lines(&status.drains));
    }
    out
}

/// Writes a line for each host and app.
fn write_hosts(out: &mut String, hosts: &[&StatusHost], scope: Scope<'_>) {
    let mut rows = Vec::new();
    for host in hosts {
        let standing = match host.standing.as_str() {
            "reporting" => style::good("reporting"),
            other => style::doubtful(&plain(other)),
        };
        let ago = host.reported_ms_ago.map(|ms| format!("{} ago", elapsed(ms))).unwrap_or_default();
        if host.apps.is_empty() {
            rows.push(vec![style::strong(&plain(&host.host)), standing, ago, without_apps(host, scope).to_owned()]);
            continue;
        }
        for (number, (app, state)) in host.apps.iter().enumerate() {
            let first = number == 0;
            let only = |text: String| if first { text } else { String::new() };
            rows.push(vec![
                only(style::strong(&plain(&host.host))),
                only(standing.clone()),
                only(ago.clone()),
                format!("{app}@{}", state.revision),
                matrix(state),
            ]);
        }
    }
    if !rows.is_empty() {
        out.push('\n');
        for line in table(&rows) {
            writeln!(out, "{line}").unwrap_or_default();
        }
    }
}

/// What is known of a host that is listed with no app.
fn without_apps(host: &StatusHost, scope: Scope<'_>) -> &'static str {
    match scope {
        _ if host.standing == "left" => "",
        _ if host.reported_ms_ago.is_none() => "has not reported",
        // Its apps may have been left out. What was chosen of it is listed below.
        Scope::Part { .. } if !host.slots.is_empty() || !host.others.is_empty() => "",
        _ => "no unit of an announced app",
    }
}

/// Names the first of many.
fn some_of(names: impl ExactSizeIterator<Item = String>) -> String {
    const SHOWN: usize = 10;
    let more = names.len().saturating_sub(SHOWN);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    names.take(SHOWN).collect::<Vec<_>>().join(", ") + &rest
}

fn write_slot(out: &mut String, slot: &StatusSlot) {
    let verdict = match slot.verdict.as_str() {
        "stale" => style::bad("stale"),
        "fresh" => style::good("fresh"),
        other => style::doubtful(&plain(other)),
    };
    let unit = slot
        .unit
        .as_deref()
        .map_or_else(|| plain(&slot.slot), |unit| format!("{} in {}", plain(unit), plain(&slot.slot)));
    let standing = match (slot.verdict.as_str(), phase(&slot.phase)) {
        ("none", "") => "up".to_owned(),
        ("none", words) => words.to_owned(),
        (_, "") => verdict,
        (_, words) => format!("{verdict}, {words}"),
    };
    writeln!(out, "  {standing}  {unit}").unwrap_or_default();
    if !slot.because.is_empty() {
        writeln!(out, "      because {}", plain(&slot.because)).unwrap_or_default();
    }
}

fn write_bus(out: &mut String, bus: &StatusBus, epoch: u64) {
    let standing = match (&bus.because, bus.leads) {
        (Some(because), _) => style::bad(&format!("not reached: {}", plain(because))),
        (None, true) => style::good(&format!("leads in epoch {epoch}")),
        (None, false) => match &bus.leader {
            Some(leader) => style::doubtful(&format!("stands by, the coordinator on {} leads", plain(leader))),
            None => style::doubtful("stands by, it does not lead"),
        },
    };
    writeln!(out, "fleet {} on {}: {standing}", style::strong(&plain(&bus.fleet)), plain(&bus.url)).unwrap_or_default();
    if bus.key.is_none() {
        let warning = "NOTHING IS SIGNED: whoever reaches the bus can have every worker restarted";
        writeln!(out, "{}", style::bad(warning)).unwrap_or_default();
    }
    if !bus.rejected.is_empty() {
        writeln!(out, "messages that changed nothing: {}", reasons(&bus.rejected)).unwrap_or_default();
    }
    out.push('\n');
}

fn reasons(rejected: &BTreeMap<String, u64>) -> String {
    let words = rejected.iter().map(|(reason, count)| format!("{} {count}", plain(reason).replace('_', " ")));
    style::doubtful(&words.collect::<Vec<_>>().join(", "))
}

fn write_app(out: &mut String, app: &StatusApp) {
    let words = app.outcome.as_str().replace('_', " ");
    let outcome = match app.outcome {
        Outcome::Converged => style::good(&words),
        Outcome::Failed | Outcome::Halted => style::bad(&words),
        _ => style::doubtful(&words),
    };
    writeln!(out, "{}  {outcome}", style::strong(&format!("{}@{}", app.app, app.revision))).unwrap_or_default();
    if let Some(because) = &app.because {
        writeln!(out, "  because {}", plain(because)).unwrap_or_default();
    }
    let by = app.by.as_deref().map(|by| format!("by {}", plain(by)));
    let why = app.message.as_deref().map(plain);
    let notes = app.meta.iter().map(|(key, value)| plain(&format!("{key}={value}")));
    let record: Vec<String> = by.into_iter().chain(why).chain(notes).collect();
    if !record.is_empty() {
        writeln!(out, "  {}", style::quiet(&record.join(", "))).unwrap_or_default();
    }
}

/// Claims that have no effect, and workers that belong to no announced app. Other Python programs are not named.
fn write_others(out: &mut String, host: &StatusHost) {
    const WORKERS_SHOWN: usize = 10;
    let name = style::strong(&plain(&host.host));
    let mut claims = host.others.iter().filter(|other| !other.claims.is_empty()).peekable();
    let mut begin = Some('\n');
    if claims.peek().is_some() {
        writeln!(out, "{}On {name}, without effect:", begin.take().into_iter().collect::<String>()).unwrap_or_default();
    }
    for other in claims {
        writeln!(out, "  {}  {}", plain(&other.unit), plain(&other.claims.join("; "))).unwrap_or_default();
    }
    let is_worker = |other: &&StatusOther| other.claims.is_empty() && !other.unit.starts_with("python:");
    let workers: Vec<String> = host.others.iter().filter(is_worker).map(|other| plain(&other.unit)).collect();
    if workers.is_empty() {
        return;
    }
    let more = workers.len().saturating_sub(WORKERS_SHOWN) + usize::try_from(host.others_omitted).unwrap_or(0);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    let names = workers.iter().take(WORKERS_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    let begin: String = begin.take().into_iter().collect();
    writeln!(out, "{begin}On {name}, of no announced app: {names}{rest}").unwrap_or_default();
}

/// The words for a phase; none for a unit that is simply up, or for a word of a newer coordinator.
fn phase(word: &str) -> &'static str {
    match word {
        "asking" => "waiting for leave",
        "preflight" => "being checked",
        "draining" => "draining",
        "starting" => "being brought back",
        "surviving" => "back, being watched",
        "verifying" => "being read again",
        "drained" => "drained",
        "failed" => "failed",
        "down" => "down",
        "gone" => "gone",
        _ => "",
    }
}

fn matrix(state: &StatusHostApp) -> String {
    let units = &state.units;
    let all = [
        (units.failed, "failed", true),
        (units.stale, "stale", true),
        (units.blocked, "cannot be restarted", true),
        (units.unknown, "unknown", true),
        (units.waiting, "waiting for source", true),
        (units.acting, "under way", true),
        (units.fresh, "fresh", false),
        (units.gone, "gone", false),
    ];
    let mut parts: Vec<String> = all
        .iter()
        .filter(|(number, _, _)| *number > 0)
        .map(|(number, word, doubtful)| {
            let text = format!("{number} {word}");
            if *doubtful { style::doubtful(&text) } else { text }
        })
        .collect();
    if state.converged {
        parts.insert(0, style::good("converged"));
    }
    match (&state.waiting, parts.is_empty()) {
        (None, true) => "no unit".to_owned(),
        (None, false) => parts.join(", "),
        (Some(waiting), true) => format!("({})", plain(waiting)),
        (Some(waiting), false) => format!("{} ({})", parts.join(", "), plain(waiting)),
    }
}

/// Tells whether a drain still has to end.
pub(crate) fn is_open(standing: DrainStanding) -> bool {
    !standing.is_end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use unstale_protocol::ids::{AppName, Revision};
    use unstale_protocol::message::UnitCounts;

    fn other(unit: &str, claims: &[&str]) -> StatusOther {
        StatusOther {
            slot: "x".into(),
            unit: unit.into(),
            pid: 7,
            bystander: false,
            claims: claims.iter().map(|&claim| claim.into()).collect(),
        }
    }

    #[test]
    fn a_fleet_is_a_matrix_of_hosts_and_apps() {
        let shop = AppName::new("shop").unwrap();
        let state = StatusHostApp {
            revision: Revision(7),
            units: UnitCounts { fresh: 3, stale: 1, ..UnitCounts::default() },
            ..StatusHostApp::default()
        };
        let status = Status {
            apps: vec![StatusApp {
                app: shop.clone(),
                revision: Revision(7),
                fingerprint: String::new(),
                outcome: Outcome::InProgress,
                because: Some("web-3 is not done".into()),
                announced_at_ms: 0,
                by: Some("deploy".into()),
                message: None,
                meta: BTreeMap::from([("sha".into(), "abc\x07".into())]),
            }],
            hosts: vec![StatusHost {
                host: "web-3".into(),
                standing: "reporting".into(),
                reported_ms_ago: Some(1_500),
                scanned: true,
                because: None,
                apps: BTreeMap::from([(shop, state)]),
                slots: vec![StatusSlot {
                    slot: "celery/systemd/shop.service".into(),
                    unit: Some("celery:4711".into()),
                    pid: Some(4711),
                    apps: Vec::new(),
                    pools: Vec::new(),
                    verdict: "stale".into(),
                    phase: "draining".into(),
                    because: "task shop.sync is in hand".into(),
                }],
                omitted: 0,
                others: vec![
                    other("python:7", &["claims shop: user nobody may not"]),
                    other("celery:8", &[]),
                    other("python:9", &[]),
                ],
                others_omitted: 0,
                rejected: BTreeMap::from([("unknown_key".into(), 3), ("\x07".into(), 1)]),
            }],
            ..Status::default()
        };
        insta::assert_snapshot!(anstream::adapter::strip_str(&text(&status, Scope::Fleet)).to_string(), @r#"
        shop@7  in progress
          because web-3 is not done
          by deploy, sha=abc\x07

        web-3  reporting  1.5 s ago  shop@7  1 stale, 3 fresh

        web-3: messages that changed nothing: \x07 1, unknown key 3

        On web-3:
          stale, draining  celery:4711 in celery/systemd/shop.service
              because task shop.sync is in hand

        On web-3, without effect:
          python:7  claims shop: user nobody may not
        On web-3, of no announced app: celery:8
        "#);
    }

    #[test]
    fn who_stands_by_says_who_leads() {
        let bus = |leader: Option<&str>| StatusBus {
            url: "redis://broker".into(),
            fleet: "default".into(),
            connected: true,
            leader: leader.map(str::to_owned),
            key: Some("k".into()),
            ..StatusBus::default()
        };
        let said = |leader| {
            let status = Status { bus: Some(bus(leader)), ..Status::default() };
            anstream::adapter::strip_str(&text(&status, Scope::Fleet)).to_string()
        };
        assert!(said(Some("web-9")).contains("stands by, the coordinator on web-9 leads"), "{}", said(Some("web-9")));
        assert!(said(None).contains("stands by, it does not lead"), "{}", said(None));
    }

    #[test]
    fn an_empty_fleet_says_what_to_do() {
        assert!(text(&Status::default(), Scope::Fleet).contains("unstale broadcast"));
    }

    #[test]
    fn a_selector_that_matches_nothing_is_no_empty_fleet() {
        let asked = ["pool:web".to_owned(), "host:\x07".to_owned()];
        let said = text(&Status::default(), Scope::Part { asked: &asked, announced: 1 });
        insta::assert_snapshot!(said, @r"nothing matches `pool:web` or `host:\x07`; `unstale status` lists hosts and units");
        let said = text(&Status::default(), Scope::Part { asked: &asked[..1], announced: 0 });
        assert!(said.contains("Nothing was announced yet") && said.contains("nothing matches"), "{said}");
    }

    #[test]
    fn hosts_that_have_left_are_named_and_no_more_unless_they_are_asked_for() {
        let left = |number: u32| StatusHost {
            host: format!("web-{number}"),
            standing: "left".into(),
            reported_ms_ago: None,
            scanned: false,
            because: (number == 2).then(|| "it has left with leave to restart 1 unit".to_owned()),
            apps: BTreeMap::new(),
            slots: Vec::new(),
            omitted: 0,
            others: vec![other("celery:8", &[])],
            others_omitted: 0,
            rejected: BTreeMap::new(),
        };
        let status = Status { hosts: (1..=12).map(left).collect(), ..Status::default() };
        let said = anstream::adapter::strip_str(&text(&status, Scope::Fleet)).to_string();
        let names = "left: web-1, web-2, web-3, web-4, web-5, web-6, web-7, web-8, web-9, web-10 and 2 more\n";
        assert!(said.contains(names) && !said.contains("has not reported") && !said.contains("celery:8"), "{said}");
        assert!(said.contains("web-2: it has left with leave to restart 1 unit"), "{said}");
        let asked = ["host:web-3".to_owned()];
        let status = Status { hosts: vec![left(3)], ..Status::default() };
        let said = text(&status, Scope::Part { asked: &asked, announced: 1 });
        let said = anstream::adapter::strip_str(&said).to_string();
        assert!(said.contains("web-3  left") && said.contains("celery:8"), "{said}");
    }

    #[test]
    fn what_a_silent_host_has_is_not_claimed_to_be_known() {
        let host = |reported_ms_ago, others| StatusHost {
            host: "web-3".into(),
            standing: "expected".into(),
            reported_ms_ago,
            scanned: false,
            because: None,
            apps: BTreeMap::new(),
            slots: Vec::new(),
            omitted: 0,
            others,
            others_omitted: 0,
            rejected: BTreeMap::new(),
        };
        let part = Scope::Part { asked: &[], announced: 1 };
        assert_eq!(without_apps(&host(None, Vec::new()), Scope::Fleet), "has not reported");
        assert_eq!(without_apps(&host(None, Vec::new()), part), "has not reported");
        assert_eq!(without_apps(&host(Some(1), Vec::new()), part), "no unit of an announced app");
        assert_eq!(
            without_apps(&host(Some(1), vec![other("celery:8", &[])]), Scope::Fleet),
            "no unit of an announced app"
        );
        assert_eq!(without_apps(&host(Some(1), vec![other("celery:8", &[])]), part), "");
    }
}
