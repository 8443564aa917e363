//! Waiting for a condition, with a bound and the last observation in the failure text.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(25);

/// How many times its bound a wait may really take: bounds are those of a quiet machine, and a busy one is no failure.
const PATIENCE: u64 = 4;

/// Returns the clock's reading: the one place of the tests that asks for it.
#[expect(clippy::disallowed_methods, reason = "tests wait for real processes")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Looks until `observe` gives a value, and returns it; fails after `seconds` with the last refusal.
#[expect(clippy::disallowed_methods, reason = "the one place where tests pause, between two looks")]
pub(crate) fn eventually_some<T, E: Debug>(what: &str, seconds: u64, mut observe: impl FnMut() -> Result<T, E>) -> T {
    let deadline = now() + Duration::from_secs(seconds * PATIENCE);
    loop {
        match observe() {
            Ok(value) => return value,
            Err(refusal) if now() > deadline => {
                panic!("{what}: not within {} s; last seen: {refusal:#?}", seconds * PATIENCE)
            }
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}

/// Looks until `condition` holds for what `observe` gives; fails after `seconds` with the last observation.
pub(crate) fn eventually<T: Debug>(
    what: &str,
    seconds: u64,
    mut observe: impl FnMut() -> T,
    condition: impl Fn(&T) -> bool,
) -> T {
    eventually_some(what, seconds, || {
        let seen = observe();
        if condition(&seen) { Ok(seen) } else { Err(seen) }
    })
}
