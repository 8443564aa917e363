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
