//! Time as the machines see it: milliseconds on one owner's monotonic clock.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A point on the monotonic clock of the one who made it, in milliseconds since that owner's start.
///
/// Moments of different owners must never be compared: a coordinator treats an agent's moments as
/// opaque numbers that only go up within one incarnation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// Returns the moment `span` later, or the last one there is.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Returns how long ago `earlier` was; zero where it lies in the future.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Pseudo-random parts of pauses, so that many hosts do not do one thing at one moment. All of it follows from the seed:
/// xorshift.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// Begins with a seed; zero is as good as any.
    pub fn new(seed: u64) -> Self {
        // Of zero nothing but zero comes.
        Self(seed | 1)
    }

    /// Returns some part of `span`, in whole milliseconds.
    pub fn part_of(&mut self, span: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.0 % millis.max(1))
    }
}
