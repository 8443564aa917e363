//! `broadcast --dry-run`: every host is asked what it would do. Nothing is announced, nothing is touched.

use crate::api::{BroadcastRequest, DryRun, Outcome, Rollout};
use crate::cli::LogArgs;
use crate::client::{Client, ClientError, encoded};
use crate::clock::Clock;
use crate::render;
use crate::render::progress::Progress;
use std::time::Duration;
use unstale_protocol::time::Moment;

/// How often the answers are read; each time also keeps the dry run going.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);
/// How long hosts are waited for: a look at everything takes seconds.
const ANSWERS_TIMEOUT: Duration = Duration::from_mins(1);
/// How long units may take that cannot be judged yet, once all hosts have answered: workers may just be starting.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks all hosts and returns what they would do. The wait is `limit` at most.
///
/// # Errors
/// [`ClientError`].
pub(super) async fn run(
    client: &Client,
    request: &BroadcastRequest,
    limit: Option<Duration>,
    log: LogArgs,
) -> Result<Rollout, ClientError> {
    let mut progress = Progress::start(log, &format!("asking all hosts what they would do about {}", request.app));
    let begun: DryRun = client.post("/v1/probes", request).await?;
    let place = format!("/v1/probes/{}", encoded(&begun.id));
    let limit = limit.unwrap_or(ANSWERS_TIMEOUT).min(ANSWERS_TIMEOUT);
    let asked = tokio::select! {
        asked = answers(client, &place, limit, request.allow_empty, &mut progress) => asked,
        _ = tokio::signal::ctrl_c() => Ok(Rollout { outcome: Outcome::Detached, ..begun.rollout }),
    };
    progress.finish();
    // Without this it ends all the same, a little later.
    drop(client.delete::<DryRun>(&place).await);
    asked
}

async fn answers(
    client: &Client,
    place: &str,
    limit: Duration,
    allow_empty: bool,
    progress: &mut Progress,
) -> Result<Rollout, ClientError> {
    let clock = Clock::start();
    let mut whole_at: Option<Moment> = None;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let DryRun { waiting_for, rollout, .. } = client.get(place).await?;
        let now = clock.now();
        if waiting_for.is_empty() {
            let whole_at = *whole_at.get_or_insert(now);
            let may_change = rollout.units.unknown > 0 || (rollout.units.total() == 0 && !allow_empty);
            if !may_change || now.since(whole_at) >= SETTLE_TIMEOUT.min(limit) {
                return Ok(rollout);
            }
            progress.show("some workers cannot be judged yet: looking again");
        } else {
            progress.show(&render::plain(&format!("waiting for {}", waiting_for.join(", "))));
        }
        if now.since(Moment::default()) >= limit {
            let because = format!("not answered in time: {}", waiting_for.join(", "));
            let stale = rollout.units.blocked + rollout.units.waiting > 0;
            let outcome = if stale { Outcome::Failed } else { Outcome::Incomplete };
            return Ok(Rollout { outcome, because: Some(because), ..rollout });
        }
    }
}
