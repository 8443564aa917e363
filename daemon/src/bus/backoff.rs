//! How long to wait before trying a broker again: full jitter, so that ten thousand agents do not come back at once.
//!
//! Pure: random numbers come in. Used by every transport.

use std::fs::File;
use std::io::Read as _;
use std::time::Duration;

/// The longest pause after the first failure; it doubles with each further one.
const FIRST: Duration = Duration::from_millis(250);
/// The longest pause.
const MOST: Duration = Duration::from_secs(30);

/// How often in a row a session could not be had, or ended at once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Counts a failure and returns how long to wait: any time up to a bound, as `random` chooses.
    pub(super) fn failed(&mut self, random: u64) -> Duration {
        let doubled = 1_u32.checked_shl(self.failures).and_then(|factor| FIRST.checked_mul(factor)).unwrap_or(MOST);
        self.failures = self.failures.saturating_add(1);
        let bound = u64::try_from(doubled.min(MOST).as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(random % (bound + 1))
    }

    /// A session was had, and was as it should be.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

/// Returns a random number. Where the kernel gives none the pause is the shortest there is.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_or(0, |()| u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_again_after_a_session() {
        let mut backoff = Backoff::default();
        // `bound` itself is the largest remainder.
        let longest = |backoff: &mut Backoff, bound: u64| {
            let mut copy = *backoff;
            assert_eq!(copy.failed(bound), Duration::from_millis(bound));
            assert_eq!(backoff.failed(bound + 1), Duration::ZERO);
        };
        for bound in [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
            longest(&mut backoff, bound);
        }
        for _ in 0..100 {
            assert!(backoff.failed(u64::MAX) <= MOST);
        }
        backoff.succeeded();
        longest(&mut backoff, 250);
    }
}
