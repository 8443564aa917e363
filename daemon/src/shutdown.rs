//! The end of a long-running command: the first SIGINT or SIGTERM cancels one token.
//!
//! A second one ends the process at once, as the kernel's default would.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Starts to listen and returns the token that the first signal cancels.
///
/// # Errors
/// Where the kernel refuses a handler.
pub(crate) fn listen(tasks: &TaskTracker) -> std::io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tasks.spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => tracing::info!(signal = "SIGINT", "shutting down"),
            _ = terminate.recv() => tracing::info!(signal = "SIGTERM", "shutting down"),
            () = cancel.cancelled() => {}
        }
        cancel.cancel();
    });
    Ok(token)
}
