//! What always holds of the machines, whatever is fed to them in whatever order.
//!
//! `tests/defects` breaks the machines by hand and holds these properties to finding each break.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "properties/coordinator.rs"]
mod coordinator;
#[path = "properties/fleet.rs"]
mod fleet;
#[path = "properties/host.rs"]
mod host;
#[path = "properties/reign.rs"]
mod reign;
#[path = "properties/restart.rs"]
mod restart;
#[path = "properties/site.rs"]
mod site;

use proptest::prop_assert;
use proptest::test_runner::{Config, RngSeed, TestCaseError};

/// The same stories in every run, unless `PROPTEST_RNG_SEED` asks for others.
fn config(cases: u32) -> Config {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    match config.rng_seed {
        RngSeed::Random => Config { rng_seed: RngSeed::Fixed(7), ..config },
        RngSeed::Fixed(_) => config,
    }
}

/// Demands that a law was not broken, or says how it was.
fn unbroken<Law: PartialEq>(broken: &[(Law, String)], law: &Law) -> Result<(), TestCaseError> {
    let found = broken.iter().find(|(broken, _)| broken == law);
    prop_assert!(found.is_none(), "{}", found.unwrap().1);
    Ok(())
}
