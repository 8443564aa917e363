//! What the fleet's bus costs, side by side in one run with what its broker can do at best.
//!
//! `cargo bench -p unstale --bench fleet` measures all; `-- redis fanout 1000` chooses broker, part and number of agents.
//! The parts: `fanout` (one desired state to everybody, against the broker's own lossy fan-out of the same bytes; for
//! Redis also what bare readers of a stream cost, the least that a fan-out without loss can; and a broker that is killed
//! in between), `reports` (10,000 signed reports collected, verified and stored, against the same
//! bytes only written), `memory` (coordinator with 5,000 agents, an agent with the bus connected). Needs redis-server and
//! rabbitmq-server; endpoints are tasks of this process that run the product's own transports.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "it measures, prints, and ends where something is wrong"
)]

/// The product's own modules, as far as the bus needs them.
#[path = "../src"]
#[expect(dead_code, unused_imports, reason = "a part of them is used here")]
mod product {
    pub(crate) mod bus;
    pub(crate) mod clock;
    pub(crate) mod keys;
    pub(crate) mod percent;
}

/// What keys want to know of the surroundings: nothing, since every directory is stated.
mod cli {
    use std::path::PathBuf;

    #[derive(Debug, Default)]
    pub(crate) struct Surroundings {}

    impl Surroundings {
        #[expect(clippy::unused_self, reason = "as the command line's own")]
        pub(crate) fn config_home(&self) -> Option<PathBuf> {
            None
        }
    }
}

mod fleet {
    pub(crate) mod brokers;
    pub(crate) mod fanout;
    pub(crate) mod processes;
    pub(crate) mod raw;
    pub(crate) mod reports;
}

use fleet::brokers::{Broker, Kind};
use fleet::{fanout, processes, reports};
use product::{bus, clock, keys, percent};

/// Agents that are connected at once, where nothing else is said.
const FLEETS: [usize; 2] = [1_000, 5_000];

/// One line of the answer, with a dash where there is no aim.
fn line(what: &str, ours: &str, raw: &str, ratio: f64, aim: &str, is_met: bool) {
    println!("  {what:<44} {ours:>12} {raw:>12} {ratio:>7.2}  {aim:<14}{}", if is_met { "" } else { " MISSED" });
}

fn main() {
    let said: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let is_said = |word: &str| said.iter().any(|said| said == word);
    let stated: Vec<usize> = said.iter().filter_map(|word| word.parse().ok()).collect();
    let fleets = if stated.is_empty() { FLEETS.to_vec() } else { stated };
    let wants = |word: &str, others: &[&str]| is_said(word) || !others.iter().any(|other| is_said(other));
    let parts = ["fanout", "reports", "memory"];
    processes::raise_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for kind in [Kind::Redis, Kind::RabbitMq] {
        if !wants(kind.word(), &["redis", "rabbitmq"]) {
            continue;
        }
        println!("{kind:?}{:50} ours          raw   ratio  aim", "");
        if wants("fanout", &parts) {
            for hosts in &fleets {
                runtime.block_on(fanout::measure(&mut Broker::start(kind), *hosts));
            }
        }
        if wants("reports", &parts) {
            runtime.block_on(reports::rate(&Broker::start(kind)));
        }
        if wants("memory", &parts) {
            runtime.block_on(reports::memory(&Broker::start(kind)));
        }
    }
}
