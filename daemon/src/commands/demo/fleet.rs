//! The story of a fleet: three hosts on this machine, each with an agent and a worker, over a real Redis.
//!
//! An agent looks only at what lies below its host's directory, which is all that makes it a host here.

use super::redis::{Broker, Redis};
use super::shop::Shop;
use super::stage::Stage;
use super::{NOT_CONVERGED, NOT_CURED, NOT_FOUND, START_TIMEOUT, TASK_TIMEOUT, prove, quote, say};
use crate::api::Status;
use anyhow::{Context as _, bail};
use std::fs;
use std::path::Path;

const HOSTS: [&str; 3] = ["web-1", "web-2", "web-3"];
/// The task that each worker has in its hands, in seconds.
const LONG_TASK_S: u32 = 10;
/// So that nobody has to watch three workers being watched for ten seconds each.
const AGENTS: &str = "[agent]\nscan_interval = \"1s\"\nsurvival_window = \"3s\"\n";

pub(super) async fn play(stage: &mut Stage, venv: &Path, redis: &Redis) -> anyhow::Result<()> {
    say(&format!("1. Three hosts with a Celery worker each, in {}", stage.directory().display()));
    let shops = HOSTS.iter().map(|name| Shop::write(stage, name, venv)).collect::<anyhow::Result<Vec<_>>>()?;
    for shop in &shops {
        shop.start(stage)?;
    }
    quote(&Shop::SOURCE);

    say("2. A Redis with the access rules of deploy/redis.acl: coordinator and agents may do what they need, no more");
    let broker = redis.start(stage)?;
    stage.until("Redis listens", START_TIMEOUT, || broker.listens()).await?;

    say("3. Keys: the coordinator signs what it announces, and each agent speaks for its own host only");
    make_keys(stage).await?;

    say("4. One coordinator, and an agent on every host");
    start_roles(stage, &broker).await?;
    stage.until("the workers are ready", START_TIMEOUT, || shops.iter().all(Shop::is_ready)).await?;
    let socket = stage.directory().join("coordinator.sock").display().to_string();
    let coordinator = format!("unix:{socket}");
    wait_for_hosts(stage, &coordinator).await?;
    stage.unstale(&["status"], &["--coordinator", &coordinator]).await?;

    say(&format!("5. A task of {LONG_TASK_S} s is in each worker's hands when a deploy changes the source"));
    for shop in &shops {
        shop.send(stage, "long", LONG_TASK_S).await?;
    }
    stage.until("the tasks begin", TASK_TIMEOUT, || all_noted(&shops, "started long")).await?;
    quote(&["\"HUBSPOT\" becomes \"hubspot\": same size, same time, so Python trusts its old bytecode"]);
    for shop in &shops {
        shop.flip()?;
    }

    say("6. What do the workers of a host hold?");
    stage.expect(&["inspect", "--root", "web-1"], &[], 1, NOT_FOUND).await?;

    say("7. The deploy hook announces the new source once, and waits for proof from all: one host at a time");
    let arguments = ["broadcast", "--app", "shop", "web-1/app", "--timeout", "3m"];
    stage.expect(&arguments, &["--coordinator", &coordinator], 0, NOT_CONVERGED).await?;

    say("8. Where the fleet stands");
    stage.unstale(&["status"], &["--coordinator", &coordinator]).await?;

    say("9. Look again, with the workers' own memory as the witness");
    let everywhere = ["inspect", "--root", "web-1", "--root", "web-2", "--root", "web-3"];
    stage.expect(&everywhere, &[], 0, NOT_CURED).await?;
    for shop in &shops {
        shop.send(stage, "next", 0).await?;
    }
    stage.until("the next tasks end", TASK_TIMEOUT, || all_noted(&shops, "finished next")).await?;
    prove_all(&shops)
}

/// Tells whether the tasks of all hosts noted this.
fn all_noted(shops: &[Shop], words: &str) -> bool {
    shops.iter().all(|shop| shop.ledger().contains(words))
}

/// Makes a key for each role, and makes them known to each other.
async fn make_keys(stage: &Stage) -> anyhow::Result<()> {
    let of_coordinator = place(stage, "coordinator");
    let unseen = ["--keys", of_coordinator.as_str()];
    let coordinator = stage.answer(&["keys", "new", "coordinator"], &unseen).await?;
    for host in HOSTS {
        let of_agent = place(stage, host);
        let agent = stage.answer(&["keys", "new", "agent", "--host", host], &["--keys", &of_agent]).await?;
        stage.answer(&["keys", "enrol", &agent], &unseen).await?;
        stage.answer(&["keys", "enrol", &coordinator], &["--keys", &of_agent]).await?;
    }
    Ok(())
}

/// The directory of keys on one host.
fn place(stage: &Stage, host: &str) -> String {
    stage.directory().join(host).join("keys").display().to_string()
}

async fn start_roles(stage: &mut Stage, broker: &Broker) -> anyhow::Result<()> {
    let root = stage.directory().to_owned();
    let path = |name: &str| root.join(name).display().to_string();
    let (memory, socket, keys) = (path("coordinator/state"), path("coordinator.sock"), place(stage, "coordinator"));
    let url = broker.url("unstale-coordinator");
    stage.start_unstale(
        "the coordinator",
        "coordinator.log",
        // A first start knows of no host: told how many to wait for, it need not wait for others that may report yet.
        &["coordinator", "--bus", &url, "--expect-hosts", "3"],
        &["--state-dir", &memory, "--socket", &socket, "--keys", &keys],
        &[("UNSTALE_BUS_PASSWORD", &broker.coordinator)],
    )?;
    let config = path("agent.toml");
    fs::write(&config, AGENTS).context("cannot write a configuration file")?;
    let url = broker.url("unstale-agent");
    for host in HOSTS {
        let (memory, keys) = (path(&format!("{host}/state")), place(stage, host));
        stage.start_unstale(
            &format!("the agent of {host}"),
            &format!("{host}-agent.log"),
            &["agent", "--host", host, "--root", host, "--bus", &url],
            &["--state-dir", &memory, "--keys", &keys, "--config", &config],
            &[("UNSTALE_BUS_PASSWORD", &broker.agents)],
        )?;
    }
    stage.until("the coordinator listens", START_TIMEOUT, || Path::new(&socket).exists()).await
}

/// Waits until the coordinator leads and every host was looked at.
async fn wait_for_hosts(stage: &mut Stage, coordinator: &str) -> anyhow::Result<()> {
    let wait = async {
        loop {
            if stage.status(coordinator).await?.is_some_and(|status| has_all_hosts(&status)) {
                return Ok(());
            }
            stage.until("every host reports", START_TIMEOUT, || true).await?;
            tokio::time::sleep(super::stage::LOOK_INTERVAL).await;
        }
    };
    match tokio::time::timeout(START_TIMEOUT, wait).await {
        Ok(result) => result,
        Err(_) => bail!("waited {} s in vain until every host reports", START_TIMEOUT.as_secs()),
    }
}

fn has_all_hosts(status: &Status) -> bool {
    let leads = status.bus.as_ref().is_some_and(|bus| bus.leads);
    leads && status.hosts.len() == HOSTS.len() && status.hosts.iter().all(|host| host.scanned)
}

/// Asserts what the tasks and the supervisors noted.
fn prove_all(shops: &[Shop]) -> anyhow::Result<()> {
    let mut spans = Vec::new();
    let mut label = String::new();
    for shop in shops {
        label = shop.new_label()?;
        let (ended, back) = shop.down()?;
        spans.push((ended, back, shop.name()));
    }
    spans.sort();
    one_at_a_time(&spans)?;
    let times: Vec<String> = spans
        .iter()
        .map(|(ended, back, name)| format!("{name} from {} to {}", time_of_day(ended), time_of_day(back)))
        .collect();
    prove(&[
        "each worker was restarted exactly once, and each task that was in flight finished, exactly once".to_owned(),
        format!("never were two down at once: {}", times.join(", ")),
        "no process on any host holds the old value".to_owned(),
        format!("the next task on each host {label}"),
    ]);
    Ok(())
}

/// Hours, minutes and seconds of `2026-01-31 12:00:00,123`.
fn time_of_day(time: &str) -> &str {
    time.get(11..19).unwrap_or(time)
}

fn one_at_a_time(sorted: &[(String, String, &str)]) -> anyhow::Result<()> {
    for pair in sorted.windows(2) {
        if let [(_, back, first), (ended, _, second)] = pair
            && back > ended
        {
            bail!("{first} was not back when {second} went down");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_that_were_down_at_once_are_no_proof() {
        let check = |spans: &[(&str, &str)], holds: bool| {
            let spans: Vec<_> = spans.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned(), "web")).collect();
            assert_eq!(one_at_a_time(&spans).is_ok(), holds, "{spans:?}");
        };
        check(&[("12:00:01", "12:00:03"), ("12:00:03", "12:00:05")], true);
        check(&[("12:00:01", "12:00:04"), ("12:00:03", "12:00:05")], false);
        check(&[], true);
    }
}
