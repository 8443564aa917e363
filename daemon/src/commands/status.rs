//! `unstale status`: where the fleet stands.

use super::follow::{self, Wait};
use crate::api::Status;
use crate::cli::{AppTarget, LogArgs, Output, Selector, StatusArgs, Surroundings};
use crate::client::Client;
use crate::clock::Clock;
use crate::render;
use crate::report::{self, Exit};
use anyhow::{Context as _, bail};

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
    keep(&mut status, &narrows);
    match args.output.output {
        Output::Json => report::answer_json(&status),
        Output::Text => report::answer(&render::status::text(&status)),
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
    let app_is_chosen = |app: &unstale_protocol::ids::AppName| {
        narrows.iter().any(|narrow| match narrow {
            Narrow::App(target) => target.app == *app,
            Narrow::Selector(Selector::App(name)) => name == app,
            Narrow::Selector(_) => false,
        })
    };
    status.apps.retain(|app| app_is_chosen(&app.app));
    for host in &mut status.hosts {
        let whole = narrows
            .iter()
            .any(|narrow| matches!(narrow, Narrow::Selector(Selector::Host(name)) if name.as_str() == host.host));
        if whole {
            continue;
        }
        host.apps.retain(|app, _| app_is_chosen(app));
        host.slots.retain(|slot| {
            !host.apps.is_empty()
                || narrows.iter().any(|narrow| match narrow {
                    Narrow::Selector(Selector::Unit(unit)) => slot.unit.as_deref() == Some(unit.as_str()),
                    Narrow::Selector(Selector::Slot(id)) => slot.slot == id.as_str(),
                    Narrow::Selector(Selector::Pid(pid)) => slot.pid == Some(pid.0),
                    Narrow::App(_) | Narrow::Selector(_) => false,
                })
        });
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
    status.hosts.retain(|host| !host.apps.is_empty() || !host.slots.is_empty() || !host.others.is_empty());
}
