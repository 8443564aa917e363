//! Source and bytecode against the real interpreters: every CPython from 3.8 on that is found here.

#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "python/harness.rs"]
mod harness;

use harness::{Interpreter, fixtures, interpreters, modules_below};
use std::collections::BTreeMap;
use std::sync::Arc;
use unstale_agent::python::DefinedEnum;
use unstale_agent::python::ir::Summary;
use unstale_agent::python::link::{ModuleKind, Project};
use unstale_agent::{bytecode, source};
use unstale_protocol::ids::PythonVersion;
use unstale_protocol::value::Value;

type Modules = BTreeMap<String, (ModuleKind, Arc<Summary>)>;

fn from_source(modules: &[harness::Module]) -> Modules {
    let lower = |module: &harness::Module| {
        let text = source::decode(&module.bytes).expect("decodes");
        let summary = source::summarize(&text).unwrap_or_else(|error| panic!("{}: {error}", module.name));
        (module.name.clone(), (module.kind, Arc::new(summary)))
    };
    modules.iter().map(lower).collect()
}

fn evaluate(modules: &Modules, python: PythonVersion) -> BTreeMap<String, DefinedEnum> {
    let mut project = Project::new(python);
    for (name, (kind, summary)) in modules {
        project.insert(name.clone(), *kind, summary.clone());
    }
    let all = modules.keys().flat_map(|name| project.definitions(name).enums);
    all.map(|defined| (defined.name.to_string(), defined)).collect()
}

/// Holds what was computed against what the interpreter says. `exact`: nothing may be left open.
fn check(interpreter: &Interpreter, layer: &str, found: &BTreeMap<String, DefinedEnum>, names: &[&str], exact: bool) {
    let real = interpreter.enums(names);
    let at = |name: &str| format!("{layer}, Python {}: {name}", interpreter.version);
    let seen: Vec<_> =
        found.keys().filter(|name| names.iter().any(|module| name.starts_with(&format!("{module}:")))).collect();
    assert_eq!(seen, real.keys().collect::<Vec<_>>(), "{layer}, Python {}", interpreter.version);
    for (name, (bases, definition)) in &real {
        let ours = &found[name];
        assert_eq!(ours.bases, *bases, "{}", at(name));
        if exact {
            assert!(ours.members_known, "{}", at(name));
        } else if !ours.members_known {
            continue;
        }
        let comparison = ours.definition.compare(definition);
        assert_eq!(comparison.differences, [], "{}\n{:?}\n{definition:?}", at(name), ours.definition);
        let open: Vec<_> =
            comparison.undecided.iter().filter(|member| definition.value(member).is_none_or(Value::is_known)).collect();
        assert!(!exact || open.is_empty(), "{}: {open:?} {:?}", at(name), ours.definition);
    }
}

/// The fixtures that an interpreter can import, and whether everything in them is determined by text.
fn zoo(interpreter: &Interpreter) -> Vec<(&'static str, bool)> {
    let mut zoo = vec![
        ("members", true),
        ("branches", true),
        ("linked.kinds", true),
        ("linked.base", true),
        ("linked.sub.deep", true),
        ("linked.uses", true),
        ("unknown", false),
    ];
    if interpreter.version.minor >= 11 {
        zoo.push(("members_311", true));
    }
    zoo
}

#[test]
fn source_says_what_every_interpreter_makes_of_it() {
    let modules = from_source(&modules_below(&fixtures()));
    let mut count = 0;
    for interpreter in interpreters() {
        let found = evaluate(&modules, interpreter.version);
        for (name, exact) in zoo(&interpreter) {
            check(&interpreter, "source", &found, &[name], exact);
        }
        count += 1;
    }
    assert!(count > 0, "no CPython from 3.8 on was found: install python3");
}

#[test]
fn bytecode_says_the_same_as_its_source() {
    let fixtures = modules_below(&fixtures());
    for interpreter in interpreters() {
        let pycs = interpreter.compile(&fixtures);
        let lower = |(name, kind, pyc): &(String, ModuleKind, Vec<u8>)| {
            let summary =
                bytecode::summarize(pyc, interpreter.version).unwrap_or_else(|error| panic!("{name}: {error}"));
            (name.clone(), (*kind, Arc::new(summary)))
        };
        let found = evaluate(&pycs.iter().map(lower).collect(), interpreter.version);
        for (name, exact) in zoo(&interpreter) {
            check(&interpreter, "bytecode", &found, &[name], exact);
        }
    }
}
