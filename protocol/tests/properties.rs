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
#[path = "properties/restart.rs"]
mod restart;
#[path = "properties/site.rs"]
mod site;

use proptest::test_runner::{Config, RngSeed};

/// The same stories in every run, unless `PROPTEST_RNG_SEED` asks for others.
fn config(cases: u32) -> Config {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    match config.rng_seed {
        RngSeed::Random => Config { rng_seed: RngSeed::Fixed(7), ..config },
        RngSeed::Fixed(_) => config,
    }
}
