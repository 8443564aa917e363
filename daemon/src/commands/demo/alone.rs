//! The story of one host: coordinator and agent in one process.

use super::shop::Shop;
use super::stage::Stage;
use super::{NOT_CONVERGED, NOT_CURED, NOT_FOUND, START_TIMEOUT, TASK_TIMEOUT, prove, quote, say};
use std::path::Path;

/// The task that is in flight while its worker is restarted, in seconds.
const LONG_TASK_S: u32 = 6;

pub(super) async fn play(stage: &mut Stage, venv: &Path) -> anyhow::Result<()> {
    say(&format!("1. A Celery worker starts under supervisord, in {}", stage.directory().display()));
    let shop = Shop::write(stage, "", venv)?;
    shop.start(stage)?;
    stage.until("the worker is ready", START_TIMEOUT, || shop.is_ready()).await?;
    quote(&Shop::SOURCE);

    say(&format!("2. A task of {LONG_TASK_S} s is in its hands"));
    shop.send(stage, "long", LONG_TASK_S).await?;
    stage.until("the task begins", TASK_TIMEOUT, || shop.ledger().contains("started long")).await?;

    say(
        "3. A deploy changes the source: \"HUBSPOT\" becomes \"hubspot\". Same size, same time, so Python trusts its old bytecode",
    );
    shop.flip()?;

    say("4. What do the workers hold?");
    stage.expect(&["inspect", "--root", "."], &[], 1, NOT_FOUND).await?;

    say("5. The coordinator and the agent of this host start, in one process");
    let socket = stage.directory().join("unstale.sock");
    let (memory, listens) = (stage.directory().join("state"), socket.display().to_string());
    let unseen = ["--state-dir", &memory.display().to_string(), "--socket", &listens];
    stage.start_unstale("`unstale up`", "up.log", &["up", "--root", "."], &unseen, &[])?;
    stage.until("`unstale up` listens", TASK_TIMEOUT, || socket.exists()).await?;

    say("6. The deploy hook announces the new source and waits for proof");
    let coordinator = format!("unix:{listens}");
    let arguments = ["broadcast", "--app", "shop", "app", "--timeout", "2m"];
    stage.expect(&arguments, &["--coordinator", &coordinator], 0, NOT_CONVERGED).await?;

    say("7. Look again, with the workers' own memory as the witness");
    stage.expect(&["inspect", "--root", "."], &[], 0, NOT_CURED).await?;
    shop.send(stage, "next", 0).await?;
    stage.until("the next task ends", TASK_TIMEOUT, || shop.ledger().contains("finished next")).await?;
    let next = shop.new_label()?;
    prove(&[
        "the task that was in flight finished, exactly once".to_owned(),
        "no process holds the old value".to_owned(),
        format!("the next task {next}"),
    ]);
    Ok(())
}
