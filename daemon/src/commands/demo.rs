//! `unstale demo`: the whole story on this machine with a real worker, in a minute; with `--fleet` on three hosts.
//!
//! Each worker is a Celery worker under a supervisord of its own, in a directory of its own, with a directory for a
//! broker. The real commands run as anybody would type them. Nothing is left running, whatever ends it.

mod alone;
mod fleet;
mod redis;
mod shop;
mod stage;
mod venv;

use crate::cli::{DemoArgs, Surroundings};
use crate::render::style;
use crate::report::{self, Exit};
use crate::shutdown;
use anyhow::Context as _;
use redis::Redis;
use stage::Stage;
use std::time::Duration;
use tokio_util::task::TaskTracker;

/// How long a worker or a role may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(40);
/// How long a task may take to begin, or a short one to end.
const TASK_TIMEOUT: Duration = Duration::from_secs(30);

/// What it means where a command of the story ends otherwise than it must.
const NOT_FOUND: &str = ": the stale worker was not found";
const NOT_CONVERGED: &str = " instead of 0";
const NOT_CURED: &str = ": a process still holds the old value";

pub(super) async fn run(args: DemoArgs, surroundings: Surroundings) -> anyhow::Result<Exit> {
    let redis = if args.fleet { Some(Redis::find(&args.redis)?) } else { None };
    let tasks = TaskTracker::new();
    let interrupted = shutdown::listen(&tasks).context("cannot listen to signals")?;
    let venv = tokio::select! {
        venv = venv::prepare(&args, &surroundings) => venv?,
        () = interrupted.cancelled() => return Ok(Exit::Detached),
    };
    let mut stage = Stage::set()?;
    let played = tokio::select! {
        played = async {
            match &redis {
                Some(redis) => fleet::play(&mut stage, &venv, redis).await,
                None => alone::play(&mut stage, &venv).await,
            }
        } => Some(played),
        () = interrupted.cancelled() => None,
    };
    let directory = stage.directory().display().to_string();
    let logs = if matches!(played, Some(Err(_))) { stage.logs() } else { String::new() };
    stage.strike().await;
    interrupted.cancel();
    match played {
        Some(Ok(())) => {
            report::answer(&format!("\nNothing is left running, and {directory} is gone.\n"));
            Ok(Exit::Clean)
        }
        Some(Err(error)) => {
            report::note(&logs);
            Err(error)
        }
        None => {
            report::note("interrupted; nothing is left running");
            Ok(Exit::Detached)
        }
    }
}

/// Says what comes next.
fn say(line: &str) {
    report::answer(&format!("\n{}\n", style::strong(line)));
}

/// Shows what belongs to it.
fn quote(lines: &[&str]) {
    for line in lines {
        report::answer(&format!("   {}\n", style::quiet(line)));
    }
}

/// Says what has been proven.
fn prove(lines: &[String]) {
    say("Proof");
    for line in lines {
        report::answer(&format!("   {} {line}\n", style::good("✓")));
    }
}
