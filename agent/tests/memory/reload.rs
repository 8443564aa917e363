//! Classes that change while they are read: what is accepted is never a mixture.

use crate::python::{Running, fixtures, interpreters};
use std::collections::BTreeSet;
use unstale_agent::memory::{self, Cache};
use unstale_agent::reading::{LoadedEnum, Outcome, ReadOptions, Standing};
use unstale_protocol::value::Value;

/// Generations of each version that are to be seen: reads go on until then, through still and stormy moments.
const GENERATIONS: usize = 12;
/// Most reads of each version.
const MAX_READS: usize = 20_000;

/// Demands one generation, ten members, one alias.
fn check(release: &str, class: &LoadedEnum) -> Option<String> {
    let names: Vec<&str> = class.definition.members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names, ["M0", "M1", "M2", "M3", "M4", "M5", "M6", "M7", "M8", "M9"], "{release} {}", class.name);
    let mut generations = BTreeSet::new();
    for (number, member) in class.definition.members.iter().enumerate() {
        let Value::Str(text) = &member.value else { panic!("{release} {}: {:?}", class.name, member.value) };
        let (generation, of) = text.split_once('.').expect("two parts");
        assert_eq!(of, number.to_string(), "{release} {}", class.name);
        generations.insert(generation.to_owned());
    }
    assert_eq!(generations.len(), 1, "{release} {}", class.name);
    let aliases: Vec<_> = class.definition.aliases.iter().map(|alias| (&*alias.name, &*alias.canonical)).collect();
    assert_eq!(aliases, [("ALIAS", "M3")], "{release} {}", class.name);
    generations.pop_first()
}

#[test]
fn a_class_that_is_being_replaced_is_never_read_wrongly() {
    for (release, python) in interpreters() {
        let mut running = Running::start(&python, &["reload_loop.py"], &fixtures().join("python"));
        running.line();
        let mut cache = Cache::new();
        let (mut reads, mut accepted, mut retries) = (0, 0, 0);
        let mut generations = BTreeSet::new();
        while generations.len() < GENERATIONS {
            reads += 1;
            assert!(reads <= MAX_READS, "{release}: {generations:?} is all that was seen, {accepted} reads accepted");
            let reading = memory::read(running.identity(), &ReadOptions::default(), &mut cache);
            retries += reading.cost.retries;
            match reading.outcome {
                Outcome::Complete => {}
                Outcome::Changing(_) => continue,
                other => panic!("{release}: {other:?}"),
            }
            let bound: Vec<&LoadedEnum> =
                reading.enums.iter().filter(|class| class.standing == Standing::Bound).collect();
            assert_eq!(bound.len(), 10, "{release}: a bound class is missing: {reading:?}");
            for class in bound {
                generations.extend(check(&release, class));
            }
            accepted += 1;
        }
        println!("{release}: {accepted} of {reads} reads accepted, {retries} retries");
    }
}
