//! Coordinators, hosts and workers over brokers that lose, repeat, delay, reorder, forget and go back, in virtual time.
//!
//! Every run follows from its seed: `UNSTALE_SEED=17 cargo test -p unstale-protocol --test simulation` runs
//! that one again, `UNSTALE_SEEDS=10000` that many, `UNSTALE_HOSTS=50` with that many hosts each. At every stop the
//! budget is held against what is really down, every permit that takes effect against the reigns, every restart is
//! counted, and in the end everything must have converged. Designs that are known to be unsafe must be found so.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

mod simulation {
    pub(crate) mod world;
}

use simulation::world::{BUDGET, Design, Faults, Tier, World};

/// Seeds of the ordinary run.
const SEEDS: u64 = 1_000;

/// Threads that share the seeds of one test.
const THREADS: u64 = 2;

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

fn sized(faults: &Faults) -> Faults {
    let hosts = number("UNSTALE_HOSTS").and_then(|hosts| usize::try_from(hosts).ok());
    Faults { hosts: hosts.unwrap_or(faults.hosts), ..faults.clone() }
}

/// Returns what is broken by the first seed that breaks something whose words are `expected`.
fn first_broken(
    faults: &(dyn Fn(u64) -> Faults + Sync),
    design: Design,
    share: u64,
    expected: &str,
) -> Option<(u64, String)> {
    let broken = |thread: u64| {
        let mut mine = seeds(share).filter(|seed| seed % THREADS == thread || number("UNSTALE_SEED").is_some());
        mine.find_map(|seed| {
            let what = World::new(seed, sized(&faults(seed)), design).run().err()?;
            what.contains(expected).then_some((seed, what))
        })
    };
    let threads = if number("UNSTALE_SEED").is_some() { 1 } else { THREADS };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || broken(thread))).collect();
        running.into_iter().filter_map(|thread| thread.join().unwrap()).min()
    })
}

fn check(faults: &(dyn Fn(u64) -> Faults + Sync), share: u64) {
    if let Some((seed, what)) = first_broken(faults, Design::Whole, share, "") {
        panic!("seed {seed}: {what}\nrun it again with UNSTALE_SEED={seed}");
    }
}

/// A design that is known to be unsafe is found to be, by a law whose words are `expected`.
fn find(faults: &(dyn Fn(u64) -> Faults + Sync), design: Design, expected: &str) {
    let found = first_broken(faults, design, 1, expected);
    assert!(found.is_some(), "{design:?} breaks nothing that says `{expected}`");
}

/// Agents often miss what a new leader says: where an old one can do harm.
fn deaf(seed: u64) -> Faults {
    Faults {
        lost: 20,
        stalls: 20,
        kills: false,
        broker: false,
        rivals: Some(true),
        loses_everything: false,
        ..Faults::everything(seed)
    }
}

/// The same on a RabbitMQ that falls into two halves, each with a leader.
fn deaf_in_two_halves(seed: u64) -> Faults {
    Faults { tier: Tier::Amqp, splits: true, ..deaf(seed) }
}

#[test]
fn a_calm_fleet_converges_with_each_stale_unit_restarted_once() {
    check(&|_| Faults::calm(), 10);
}

#[test]
fn a_faulty_bus_and_killed_processes_neither_break_the_budget_nor_the_end() {
    check(&|_| Faults::one_coordinator(), 4);
}

#[test]
fn two_coordinators_and_a_broker_that_forgets_break_no_law() {
    check(&Faults::everything, 1);
}

#[test]
fn fifty_hosts_and_a_broker_that_forgets_break_no_law() {
    check(&|seed| Faults { hosts: 50, ..Faults::everything(seed) }, 1);
}

#[test]
fn a_broker_in_two_halves_that_heals_onto_one_of_them_breaks_no_law() {
    check(&|seed| Faults { splits: true, loses_everything: false, ..Faults::everything(seed) }, 4);
}

/// Where designs that differ from this one in a single point are found to be unsafe.
#[test]
fn agents_that_miss_what_a_new_leader_says_break_no_law() {
    check(&deaf, 4);
    check(&deaf_in_two_halves, 1);
}

#[test]
fn machines_that_shut_down_and_come_back_break_no_law() {
    check(
        &|seed| Faults {
            shutdowns: true,
            ..if seed % 4 == 0 { Faults::one_coordinator() } else { Faults::everything(seed) }
        },
        2,
    );
}

#[test]
fn a_fleet_that_is_told_everything_once_stays_stale() {
    find(&Faults::everything, Design::EventOnly, "not converged");
}

#[test]
fn without_fencing_an_old_coordinator_is_obeyed() {
    find(&deaf, Design::NoFencing, "has granted");
}

#[test]
fn epochs_at_the_agents_alone_are_not_enough() {
    find(&deaf, Design::EpochOnly, "are unavailable");
}

#[test]
fn a_leader_that_does_not_ask_its_own_clock_grants_beside_its_successor() {
    find(&deaf_in_two_halves, Design::EndlessLease, "although it is to stay drained");
}

#[test]
fn permits_that_end_by_the_wall_clock_never_arrive_where_it_is_wrong() {
    find(&|_| Faults { tier: Tier::Redis, ..Faults::calm() }, Design::WallExpiry, "not converged");
}

#[test]
fn a_unit_that_does_not_come_back_halts_and_leaves_the_others_running() {
    for seed in seeds(10) {
        let mut world = World::new(seed, Faults { broken_code: true, ..Faults::calm() }, Design::Whole);
        let stopped = world.run_until_halted().unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        assert!(stopped >= 1, "seed {seed}: nothing was tried");
        assert!(stopped <= BUDGET, "seed {seed}: {stopped} units were stopped for broken code");
    }
}

#[test]
fn abort_stops_new_stops() {
    for seed in seeds(10) {
        let world = World::new(seed, Faults::calm(), Design::Whole);
        world.run_with_abort().unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
}
