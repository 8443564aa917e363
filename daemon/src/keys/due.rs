//! When the files of keys are to be looked at.

use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// How often.
const INTERVAL: Duration = Duration::from_secs(5);

/// Comes again and again; never where there are no keys: who has nothing to do is not woken.
#[derive(Debug)]
pub(crate) struct KeysDue(Option<Interval>);

impl KeysDue {
    /// Of an end that has keys, or none.
    pub(crate) fn new(has_keys: bool) -> Self {
        Self(has_keys.then(|| {
            let mut interval = interval(INTERVAL);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        }))
    }

    /// Waits for the next time.
    ///
    /// # Cancel safety
    /// Safe: a time that was not waited for to the end comes again.
    pub(crate) async fn tick(&mut self) {
        match &mut self.0 {
            Some(interval) => {
                interval.tick().await;
            }
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_keys_the_time_never_comes() {
        let soon = Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, KeysDue::new(false).tick()).await.is_err());
        assert!(tokio::time::timeout(soon, KeysDue::new(true).tick()).await.is_ok());
    }
}
