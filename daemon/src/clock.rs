//! The one place in this package that reads clocks. Everything else takes a time as an argument.

use tokio::time::Instant;
use unstale_protocol::time::Moment;

/// This process's monotonic clock, from zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
}

impl Clock {
    /// Starts the clock.
    #[expect(clippy::disallowed_methods, reason = "the one place where the monotonic clock comes in")]
    pub(crate) fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// Returns the present moment.
    #[expect(clippy::disallowed_methods, reason = "the one place where the monotonic clock comes in")]
    pub(crate) fn now(self) -> Moment {
        let elapsed = Instant::now().duration_since(self.started);
        Moment(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }

    /// Waits until `due`; for ever where there is none.
    pub(crate) async fn until(self, due: Option<Moment>) {
        match due {
            Some(due) => tokio::time::sleep(due.since(self.now())).await,
            None => std::future::pending().await,
        }
    }
}

/// Returns the wall clock in milliseconds since the Unix epoch: for people, it decides nothing.
#[expect(clippy::disallowed_methods, reason = "the one place where the wall clock comes in")]
pub(crate) fn wall_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
