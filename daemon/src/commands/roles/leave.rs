//! The end of an agent that was asked to stop: where its machine goes down with it, it says so first.
//!
//! Whoever cannot tell, or is not heard in time, has not left: it is silent then, as any host that is gone.

use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use unstale_agent::driver::Incoming;

/// How long the service manager has to say whether the machine goes down.
pub(super) const ASKING: Duration = Duration::from_millis(700);
/// How long the last report has to reach the bus. No shutdown takes longer for it.
const LEAVING: Duration = Duration::from_secs(1);

/// Waits until the process is asked to stop. Where `stops` then says that the machine goes down, the agent is told, and
/// has a moment to say so.
pub(super) async fn until_asked(
    asked: CancellationToken,
    stops: impl Future<Output = bool>,
    agent: mpsc::Sender<Incoming>,
    shutdown: CancellationToken,
) {
    tokio::select! {
        () = asked.cancelled() => {}
        () = shutdown.cancelled() => return asked.cancel(),
    }
    if stops.await {
        tracing::info!("the machine is shutting down: this host leaves");
        // An agent that takes nothing any more has nothing to say.
        if agent.try_send(Incoming::Leaving).is_ok() {
            drop(tokio::time::timeout(LEAVING, shutdown.cancelled()).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stops an agent on such a machine. Returns whether it was told to say that it leaves, and how long that took.
    #[expect(clippy::disallowed_methods, reason = "a test on virtual time")]
    async fn stopped(stops: bool) -> (bool, Duration) {
        let (asked, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let (agent, mut told) = mpsc::channel(1);
        asked.cancel();
        let begun = tokio::time::Instant::now();
        until_asked(asked, std::future::ready(stops), agent, shutdown).await;
        (matches!(told.try_recv(), Ok(Incoming::Leaving)), begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_leaves_with_its_machine_and_not_when_only_it_is_stopped() {
        assert_eq!(stopped(true).await, (true, LEAVING));
        assert_eq!(stopped(false).await, (false, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_fails_is_no_reason_to_leave() {
        let (asked, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let (agent, mut told) = mpsc::channel(1);
        shutdown.cancel();
        until_asked(asked.clone(), std::future::ready(true), agent, shutdown).await;
        assert!(told.try_recv().is_err());
        assert!(asked.is_cancelled(), "who waits for a signal waits no longer");
    }
}
