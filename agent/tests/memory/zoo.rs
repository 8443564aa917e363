//! Every kind of enum class, read as the process itself sees it.

use crate::python::{Running, complete, fixtures, identity, interpreters};
use serde_json::{Value as Json, json};
use std::path::Path;
use unstale_agent::memory::{self, Cache};
use unstale_agent::reading::{Outcome, ReadOptions, Reading};

/// What the process prints of itself, made from a reading.
fn seen(reading: &Reading) -> Json {
    let enums: Vec<Json> = reading
        .enums
        .iter()
        .map(|found| {
            json!({
                "name": found.name, "bases": found.bases, "members": found.definition.members,
                "aliases": found.definition.aliases, "standing": found.standing,
            })
        })
        .collect();
    json!({ "enums": enums, "interpreter": reading.interpreter })
}

/// Compares class by class, so that a failure says which.
fn equal(release: &str, reading: &Reading, said: &Json) {
    let found = seen(reading);
    let sorted = |all: &Json| {
        let mut all = all["enums"].as_array().cloned().unwrap_or_default();
        all.sort_by_key(|class| (class["name"].to_string(), class["standing"].to_string()));
        all
    };
    let (ours, theirs) = (sorted(&found), sorted(said));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs, "{release}");
    }
    assert_eq!(ours.len(), theirs.len(), "{release}");
    assert_eq!(found["interpreter"], said["interpreter"], "{release}");
}

fn zoo(python: &Path, arguments: &[&str]) -> (Running, Json) {
    let mut running = Running::start(python, arguments, &fixtures().join("python"));
    let said = running.line();
    (running, said)
}

#[test]
fn a_reading_equals_what_the_process_sees() {
    for (release, python) in interpreters() {
        let (running, said) = zoo(&python, &["zoo.py", "an argument"]);
        for through_mem in [false, true] {
            let reading = complete(running.read(&ReadOptions { through_mem, ..ReadOptions::default() }));
            equal(&release, &reading, &said);
            let modules: Vec<_> = reading.modules.iter().map(|module| module.name.as_str()).collect();
            assert_eq!(modules, ["__main__"], "{release}");
            assert_eq!(json!(reading.modules[0].file), said["file"], "{release}");
            assert_eq!(reading.modules[0].spec_name, None);
        }
    }
}

#[test]
fn a_warm_reading_equals_a_cold_one() {
    for (release, python) in interpreters() {
        let (running, said) = zoo(&python, &["zoo.py"]);
        let mut cache = Cache::new();
        let cold = complete(memory::read(running.identity(), &ReadOptions::default(), &mut cache));
        cache.doubt();
        let warm = complete(memory::read(running.identity(), &ReadOptions::default(), &mut cache));
        equal(&release, &warm, &said);
        assert_eq!((&cold.modules, &cold.enums), (&warm.modules, &warm.enums), "{release}");
        assert!(warm.cost.calls < cold.cost.calls, "{release}: {:?} {:?}", warm.cost, cold.cost);
    }
}

#[test]
fn a_module_run_by_name_tells_its_name() {
    for (release, python) in interpreters() {
        let (running, said) = zoo(&python, &["-m", "zoo"]);
        let reading = complete(running.read(&ReadOptions::default()));
        equal(&release, &reading, &said);
        assert_eq!(reading.modules[0].spec_name.as_deref(), Some("zoo"), "{release}");
    }
}

#[test]
fn a_forked_child_is_read_with_its_parents_addresses() {
    for (release, python) in interpreters() {
        let (running, said) = zoo(&python, &["zoo.py", "--fork"]);
        let child = identity(said["child"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid"));
        let mut cache = Cache::new();
        let parent = complete(memory::read(running.identity(), &ReadOptions::default(), &mut cache));
        let child = complete(memory::read(child, &ReadOptions::default(), &mut cache));
        equal(&release, &child, &said);
        assert_eq!(parent.enums, child.enums, "{release}");
        assert!(child.cost.calls < parent.cost.calls, "{release}: the parent's addresses were not used");
    }
}

#[test]
fn a_forked_child_that_changed_is_not_taken_for_its_relatives() {
    for (release, python) in interpreters() {
        let mut running = Running::start(&python, &["altered.py"], &fixtures().join("python"));
        let said = running.line();
        let children = said.as_object().expect("children by what they changed");
        // Alone and with a second thread; twice each, since a child that was found alike is compared with less.
        for mut cache in [Cache::new(), Cache::with_mate().expect("a thread")] {
            let parent = complete(memory::read(running.identity(), &ReadOptions::default(), &mut cache));
            for (round, (change, pid)) in (0..2).flat_map(|round| children.iter().map(move |child| (round, child))) {
                let pid = identity(pid.as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid"));
                cache.doubt();
                let warm = complete(memory::read(pid, &ReadOptions::default(), &mut cache));
                let cold = complete(memory::read(pid, &ReadOptions::default(), &mut Cache::new()));
                let found = |reading: &Reading| (reading.enums.clone(), reading.modules.clone());
                assert_eq!(found(&warm), found(&cold), "{release} {change} {round}");
                assert_eq!(warm.enums == parent.enums, change == "nothing", "{release} {change} {round}");
            }
        }
    }
}

#[test]
fn a_process_that_is_gone_is_gone() {
    let (_, python) = interpreters().remove(0);
    let (running, _) = zoo(&python, &["zoo.py"]);
    let who = running.identity();
    let other = unstale_protocol::ids::ProcessIdentity { start_ticks: who.start_ticks + 1, ..who };
    assert_eq!(memory::read(other, &ReadOptions::default(), &mut Cache::new()).outcome, Outcome::Gone);
    drop(running);
    assert_eq!(memory::read(who, &ReadOptions::default(), &mut Cache::new()).outcome, Outcome::Gone);
}

#[test]
fn what_is_no_python_is_refused_by_name() {
    let reading = memory::read(identity(std::process::id()), &ReadOptions::default(), &mut Cache::new());
    assert_eq!(reading.outcome, Outcome::Unsupported("no Python interpreter in its memory".to_owned()));
}
