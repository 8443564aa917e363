//! Coordinator, hosts and workers over a bus that loses, repeats, delays and reorders, in virtual time.
//!
//! Every run follows from its seed: `UNSTALE_SEED=17 cargo test -p unstale-protocol --test simulation` runs
//! that one again, `UNSTALE_SEEDS=10000` that many. At each instant the budget is held against what is
//! really down, every stop is counted, and in the end everything must have converged.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

mod simulation {
    pub(crate) mod world;
}

use simulation::world::{BUDGET, Faults, World};

/// Seeds of the ordinary run.
const SEEDS: u64 = 1_000;

#[expect(clippy::disallowed_methods, reason = "tests take their seeds from the environment")]
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seeds(share: u64) -> std::ops::Range<u64> {
    match number("UNSTALE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..(number("UNSTALE_SEEDS").unwrap_or(SEEDS) / share).max(1),
    }
}

fn check(faults: &Faults, share: u64) {
    for seed in seeds(share) {
        let outcome = World::new(seed, faults.clone()).run();
        if let Err(what) = outcome {
            panic!("seed {seed}: {what}\nrun it again with UNSTALE_SEED={seed}");
        }
    }
}

#[test]
fn a_calm_fleet_converges_with_each_stale_unit_restarted_once() {
    check(&Faults::calm(), 5);
}

#[test]
fn a_faulty_bus_and_killed_processes_neither_break_the_budget_nor_the_end() {
    check(&Faults::everything(), 1);
}

#[test]
fn a_unit_that_does_not_come_back_halts_and_leaves_the_others_running() {
    for seed in seeds(5) {
        let mut world = World::new(seed, Faults { broken_code: true, ..Faults::calm() });
        let stopped = world.run_until_halted().unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        assert!(stopped >= 1, "seed {seed}: nothing was tried");
        assert!(stopped <= BUDGET, "seed {seed}: {stopped} units were stopped for broken code");
    }
}

#[test]
fn abort_stops_new_stops() {
    for seed in seeds(5) {
        World::new(seed, Faults::calm()).run_with_abort().unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
}
