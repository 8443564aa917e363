//! `unstale demo`: the whole story on this machine with a real worker, in a minute.
//!
//! A Celery worker under a supervisord of its own, in a directory of its own, with a directory for a broker. It
//! runs the real commands as anybody would type them. Nothing is left running, whatever ends it.

mod stage;
mod venv;

use crate::cli::{DemoArgs, Surroundings};
use crate::render::style;
use crate::report::{self, Exit};
use crate::shutdown;
use anyhow::{Context as _, bail};
use stage::Stage;
use std::time::Duration;
use tokio_util::task::TaskTracker;

/// The task that is in flight while its worker is restarted, in seconds.
const LONG_TASK_S: u32 = 6;
/// How long the worker may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(40);
/// How long a task may take to begin, or a short one to end.
const TASK_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) async fn run(args: DemoArgs, surroundings: Surroundings) -> anyhow::Result<Exit> {
    let tasks = TaskTracker::new();
    let interrupted = shutdown::listen(&tasks).context("cannot listen to signals")?;
    let venv = tokio::select! {
        venv = venv::prepare(&args, &surroundings) => venv?,
        () = interrupted.cancelled() => return Ok(Exit::Detached),
    };
    let mut stage = Stage::set(venv)?;
    let played = tokio::select! {
        played = play(&mut stage) => Some(played),
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

async fn play(stage: &mut Stage) -> anyhow::Result<()> {
    say(&format!("1. A Celery worker starts under supervisord, in {}", stage.directory().display()));
    stage.start_supervisord()?;
    stage.until("the worker is ready", START_TIMEOUT, |stage| stage.worker_log().contains(" ready.")).await?;
    quote(&["class CrmType(str, enum.Enum):", "    HUBSPOT = \"HUBSPOT\"", "    SALESFORCE = \"salesforce\""]);

    say(&format!("2. A task of {LONG_TASK_S} s is in its hands"));
    stage.send("long", LONG_TASK_S).await?;
    stage.until("the task begins", TASK_TIMEOUT, |stage| stage.ledger().contains("started long")).await?;

    say(
        "3. A deploy changes the source: \"HUBSPOT\" becomes \"hubspot\". Same size, same time, so Python trusts its old bytecode",
    );
    stage.flip()?;

    say("4. What do the workers hold?");
    let found = stage.unstale(&["inspect", "--root", "."], &[]).await?;
    if found != Some(1) {
        bail!("`unstale inspect` ended with {found:?}: the stale worker was not found");
    }

    say("5. The coordinator and the agent of this host start, in one process");
    stage.start_up()?;
    stage.until("`unstale up` listens", TASK_TIMEOUT, Stage::is_up).await?;

    say("6. The deploy hook announces the new source and waits for proof");
    let socket = format!("unix:{}", stage.socket().display());
    let ended =
        stage.unstale(&["broadcast", "--app", "shop", "app", "--timeout", "2m"], &["--coordinator", &socket]).await?;
    if ended != Some(0) {
        bail!("`unstale broadcast` ended with {ended:?} instead of 0");
    }

    say("7. Look again, with the workers' own memory as the witness");
    let ended = stage.unstale(&["inspect", "--root", "."], &[]).await?;
    if ended != Some(0) {
        bail!("`unstale inspect` ended with {ended:?}: a process still holds the old value");
    }
    stage.send("next", 0).await?;
    stage.until("the next task ends", TASK_TIMEOUT, |stage| stage.ledger().contains("finished next")).await?;
    prove(&stage.ledger())
}

/// Reads the tasks' own notes: the long one ran once and whole, and the next one writes the new label.
fn prove(ledger: &str) -> anyhow::Result<()> {
    let count = |start: &str| ledger.lines().filter(|line| line.starts_with(start)).count();
    let runs = (count("started long"), count("finished long"));
    if runs != (1, 1) {
        bail!("the task in flight was started {} and finished {} times instead of once", runs.0, runs.1);
    }
    let Some(next) = ledger.lines().find(|line| line.starts_with("finished next")) else {
        bail!("the next task has left no note");
    };
    if !next.contains("'hubspot'") {
        bail!("the next task still writes the old label: {next}");
    }
    say("Proof");
    report::answer(&format!(
        "   {} the task that was in flight finished, exactly once\n   {} no process holds the old value\n   {} the next task {}\n",
        style::good("✓"),
        style::good("✓"),
        style::good("✓"),
        next.trim_start_matches("finished next: "),
    ));
    Ok(())
}

fn say(line: &str) {
    report::answer(&format!("\n{}\n", style::strong(line)));
}

fn quote(lines: &[&str]) {
    for line in lines {
        report::answer(&format!("   {}\n", style::quiet(line)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proof_needs_one_whole_run_and_the_new_label() {
        let check = |ledger: &str, holds: bool| assert_eq!(prove(ledger).is_ok(), holds, "{ledger}");
        check("started long\nfinished long: inserts 'HUBSPOT'\nstarted next\nfinished next: inserts 'hubspot'\n", true);
        check("started long\nfinished long: inserts 'HUBSPOT'\nfinished next: inserts 'HUBSPOT'\n", false);
        check("started long\nstarted long\nfinished long: x\nfinished next: inserts 'hubspot'\n", false);
        check("started long\nfinished next: inserts 'hubspot'\n", false);
        check("", false);
    }
}
