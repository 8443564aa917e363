//! Processes that have not run since they were read.

use crate::python::{Running, complete, fixtures, interpreters};
use unstale_agent::memory::{self, Cache};
use unstale_agent::reading::{ReadOptions, Reading};

/// How often a process is read at most until it has fallen asleep: each takes a millisecond or more.
const MOST_READS: u32 = 20_000;

fn mood(reading: &Reading) -> serde_json::Value {
    let found = reading.enums.iter().find(|found| found.name.qualname == "Mood").expect("the class is loaded");
    serde_json::json!(found.definition.members)
}

/// Reads until the answer costs nothing.
fn at_rest(running: &Running, cache: &mut Cache, release: &str) -> Reading {
    for _ in 0..MOST_READS {
        let reading = complete(memory::read(running.identity(), &ReadOptions::default(), cache));
        if reading.cost.calls == 0 {
            return reading;
        }
    }
    panic!("{release}: it is read again and again");
}

#[test]
fn what_has_not_run_holds_what_it_held_and_what_has_is_looked_at_again() {
    for (release, python) in interpreters() {
        let mut running = Running::start(&python, &["resting.py"], &fixtures().join("python"));
        running.line();
        let mut cache = Cache::new();
        let cold = complete(running.read(&ReadOptions::default()));
        for value in ["awake", "asleep", "awake"] {
            let before = at_rest(&running, &mut cache, &release);
            running.tell(value);
            let after = complete(memory::read(running.identity(), &ReadOptions::default(), &mut cache));
            assert!(after.cost.calls > 0, "{release}: it has run");
            assert_eq!(mood(&after), mood(&complete(running.read(&ReadOptions::default()))), "{release}");
            assert_ne!(mood(&after), mood(&before), "{release}");
        }
        assert_ne!(mood(&at_rest(&running, &mut cache, &release)), mood(&cold), "{release}");
    }
}
