//! `unstale status`: where the fleet stands.

use super::follow::{self, Wait};
use crate::api::{Status, StatusHost, StatusSlot};
use crate::cli::{AppTarget, LogArgs, Output, Selector, StatusArgs, Surroundings};
use crate::client::Client;
use crate::clock::Clock;
use crate::render::{self, status::Scope};
use crate::report::{self, Exit};
use anyhow::{Context as _, bail};
use std::collections::BTreeSet;
use unstale_protocol::ids::AppName;

/// What a status is narrowed to.
enum Narrow {
    App(AppTarget),
    Selector(Selector),
}

pub(super) async fn run(args: StatusArgs, log: LogArgs, surroundings: Surroundings) -> anyhow::Result<Exit> {
    let narrows = args.targets.iter().map(|text| narrow(text)).collect::<anyhow::Result<Vec<_>>>()?;
    let client = Client::find(&args.coordinator, &surroundings).await?;
    if args.watch {
        let target = match narrows.as_slice() {
            [Narrow::App(target)] => target.clone(),
            [] => super::abort::only_one(&client, "watch").await?,
            _ => bail!("--watch follows one rollout: write `unstale status APP@REV --watch`"),
        };
        let wait = Wait {
            client: &client,
            target: &target,
            accepted: None,
            limit: args.timeout.limit(),
            log,
            clock: Clock::start(),
        };
        let rollout = wait.run().await?;
        match args.output.output {
            Output::Json => report::answer_json(&rollout),
            Output::Text => report::answer(&render::broadcast::text(&rollout)),
        }
        return Ok(follow::exit(rollout.outcome));
    }
    if let [Narrow::App(target @ AppTarget { revision: Some(_), .. })] = narrows.as_slice() {
        let rollout: crate::api::Rollout = client.get(&super::abort::path(target)).await?;
        match args.output.output {
            Output::Json => report::answer_json(&rollout),
            Output::Text => report::answer(&render::broadcast::text(&rollout)),
        }
        return Ok(Exit::Clean);
    }
    let mut status: Status = client.get("/v1/status").await?;
    let scope = if narrows.is_empty() {
        Scope::Fleet
    } else {
        Scope::Part { asked: &args.targets, announced: status.apps.len() }
    };
    keep(&mut status, &narrows);
    match args.output.output {
        Output::Json => report::answer_json(&status),
        Output::Text => report::answer(&render::status::text(&status, scope)),
    }
    Ok(Exit::Clean)
}

fn narrow(text: &str) -> anyhow::Result<Narrow> {
    if text.contains(':') || text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Narrow::Selector(text.parse().with_context(|| format!("`{}`", render::plain(text)))?));
    }
    Ok(Narrow::App(text.parse().with_context(|| format!("`{}`", render::plain(text)))?))
}

/// Leaves only what one of the narrows chooses; several are *or*.
fn keep(status: &mut Status, narrows: &[Narrow]) {
    if narrows.is_empty() {
        return;
    }
    let app_is_chosen = |app: &AppName| {
        narrows.iter().any(|narrow| match narrow {
            Narrow::App(target) => target.app == *app,
            Narrow::Selector(Selector::App(name)) => name == app,
            Narrow::Selector(_) => false,
        })
    };
    // A host or a slot that was asked for by itself brings the apps that it belongs to.
    let mut named: BTreeSet<AppName> = BTreeSet::new();
    let is_whole = |host: &StatusHost| {
        narrows
            .iter()
            .any(|narrow| matches!(narrow, Narrow::Selector(Selector::Host(name)) if name.as_str() == host.host))
    };
    for host in &mut status.hosts {
        if is_whole(host) {
            named.extend(apps_of(host));
            continue;
        }
        let is_asked_for = |slot: &StatusSlot| {
            narrows.iter().any(|narrow| match narrow {
                Narrow::Selector(Selector::Unit(unit)) => slot.unit.as_deref() == Some(unit.as_str()),
                Narrow::Selector(Selector::Slot(id)) => slot.slot == id.as_str(),
                Narrow::Selector(Selector::Pid(pid)) => slot.pid == Some(pid.0),
                Narrow::Selector(Selector::Pool(name)) => slot.pools.contains(name),
                Narrow::App(_) | Narrow::Selector(Selector::Host(_) | Selector::App(_)) => false,
            })
        };
        let of_slots: BTreeSet<AppName> =
            host.slots.iter().filter(|slot| is_asked_for(slot)).flat_map(|slot| slot.apps.iter().cloned()).collect();
        host.slots.retain(|slot| is_asked_for(slot) || slot.apps.iter().any(app_is_chosen));
        host.apps.retain(|app, _| app_is_chosen(app) || of_slots.contains(app));
        named.extend(of_slots);
        host.others.retain(|other| {
            narrows.iter().any(|narrow| match narrow {
                Narrow::Selector(Selector::Unit(unit)) => other.unit == unit.as_str(),
                Narrow::Selector(Selector::Slot(id)) => other.slot == id.as_str(),
                Narrow::Selector(Selector::Pid(pid)) => other.pid == pid.0,
                // `claims shop: …`: its claims are about this app.
                Narrow::App(AppTarget { app, .. }) | Narrow::Selector(Selector::App(app)) => {
                    other.claims.iter().any(|claim| claim.starts_with(&format!("claims {app}:")))
                }
                Narrow::Selector(_) => false,
            })
        });
        host.others_omitted = 0;
    }
    status.apps.retain(|app| app_is_chosen(&app.app) || named.contains(&app.app));
    status
        .hosts
        .retain(|host| is_whole(host) || !host.apps.is_empty() || !host.slots.is_empty() || !host.others.is_empty());
}

fn apps_of(host: &StatusHost) -> impl Iterator<Item = AppName> {
    host.apps.keys().chain(host.slots.iter().flat_map(|slot| &slot.apps)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Outcome, StatusApp, StatusHostApp};
    use std::collections::BTreeMap;
    use unstale_protocol::ids::{PoolName, Revision};

    fn app(name: &str) -> AppName {
        AppName::new(name).unwrap()
    }

    fn slot(name: &str, of: &str) -> StatusSlot {
        StatusSlot {
            slot: format!("celery/none/{name}"),
            unit: Some(format!("celery:{name}")),
            pid: name.parse().ok(),
            apps: vec![app(of)],
            pools: vec![PoolName::new(format!("{of}-pool")).unwrap()],
            verdict: "stale".into(),
            phase: "up".into(),
            because: String::new(),
        }
    }

    fn host(name: &str, slots: Vec<StatusSlot>) -> StatusHost {
        let apps = slots.iter().flat_map(|slot| slot.apps.clone()).map(|app| (app, StatusHostApp::default()));
        StatusHost {
            host: name.into(),
            standing: if slots.is_empty() { "expected".into() } else { "reporting".into() },
            reported_ms_ago: None,
            scanned: true,
            because: None,
            apps: apps.collect(),
            slots,
            omitted: 0,
            others: Vec::new(),
            others_omitted: 0,
            rejected: BTreeMap::new(),
        }
    }

    /// Two apps on web-1, one of them on web-2, and web-3, which has not reported.
    fn fleet() -> Status {
        let announced = |name: &str| StatusApp {
            app: app(name),
            revision: Revision(1),
            fingerprint: String::new(),
            outcome: Outcome::InProgress,
            because: None,
            announced_at_ms: 0,
            by: None,
            message: None,
            meta: BTreeMap::new(),
        };
        Status {
            apps: vec![announced("mail"), announced("shop")],
            hosts: vec![
                host("web-1", vec![slot("11", "shop"), slot("12", "mail")]),
                host("web-2", vec![slot("21", "shop")]),
                host("web-3", Vec::new()),
            ],
            ..Status::default()
        }
    }

    #[test]
    fn every_selector_leaves_what_it_names_and_the_apps_of_that() {
        let check = |asked: &[&str], apps: &str, left: &str| {
            let mut status = fleet();
            keep(&mut status, &asked.iter().map(|text| narrow(text).unwrap()).collect::<Vec<_>>());
            let names: Vec<_> = status.apps.iter().map(|app| app.app.as_str()).collect();
            let hosts = status.hosts.iter().map(|host| {
                let of_host = host.apps.keys().map(AppName::as_str);
                let slots = host.slots.iter().filter_map(|slot| slot.unit.as_deref());
                let words: Vec<_> = std::iter::once(host.host.as_str()).chain(of_host).chain(slots).collect();
                words.join(" ")
            });
            assert_eq!(
                (names.join(" ").as_str(), hosts.collect::<Vec<_>>().join(", ").as_str()),
                (apps, left),
                "{asked:?}"
            );
        };
        let shop = "web-1 shop celery:11, web-2 shop celery:21";
        check(&["shop"], "shop", shop);
        check(&["app:shop"], "shop", shop);
        check(&["pool:shop-pool"], "shop", shop);
        check(&["host:web-2"], "shop", "web-2 shop celery:21");
        check(&["host:web-3"], "", "web-3");
        check(&["celery:12"], "mail", "web-1 mail celery:12");
        check(&["slot:celery/none/12"], "mail", "web-1 mail celery:12");
        check(&["21"], "shop", "web-2 shop celery:21");
        check(&["21", "celery:12"], "mail shop", "web-1 mail celery:12, web-2 shop celery:21");
        check(&["pool:web"], "", "");
    }
}
