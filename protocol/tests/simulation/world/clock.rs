//! A party's own clock: begins anywhere, and runs a little too fast or too slow.

use rand::Rng;
use unstale_protocol::time::Moment;

/// Most that a clock runs wrong, in thousandths.
const DRIFT: i64 = 10;

#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    began_at: u64,
    first: u64,
    drift: i64,
}

impl Clock {
    pub(super) fn random(now: u64, rng: &mut impl Rng) -> Self {
        Self { began_at: now, first: rng.random_range(0..1_000_000_000_000), drift: rng.random_range(-DRIFT..=DRIFT) }
    }

    /// What it shows at this instant.
    pub(super) fn read(&self, now: u64) -> Moment {
        let span = i64::try_from(now - self.began_at).unwrap();
        Moment(self.first + u64::try_from(span * (1_000 + self.drift) / 1_000).unwrap())
    }

    /// The first instant at which it shows at least that.
    pub(super) fn when(&self, moment: Moment) -> u64 {
        let span = i64::try_from(moment.0.saturating_sub(self.first)).unwrap_or(i64::MAX / 4_000);
        let span = span.min(i64::MAX / 4_000);
        let rate = 1_000 + self.drift;
        self.began_at + u64::try_from((span * 1_000 + rate - 1) / rate).unwrap()
    }
}
