//! Source and bytecode against the real interpreters: every CPython from 3.8 on that is found here.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "python/harness.rs"]
mod harness;

use harness::{Interpreter, fixtures, interpreters, modules_below};
use std::collections::BTreeMap;
use std::sync::Arc;
use unstale_agent::python::DefinedEnum;
use unstale_agent::python::ir::Summary;
use unstale_agent::python::link::{ModuleKind, Project};
use unstale_agent::{bytecode, source};
use unstale_protocol::binding::Sends;
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

/// What is compared of one file: every enum that both layers define.
struct Pair {
    source: BTreeMap<String, DefinedEnum>,
    bytecode: BTreeMap<String, DefinedEnum>,
}

impl Pair {
    fn of(text: &str, compiled: &Summary, python: PythonVersion) -> Option<Self> {
        let read = source::summarize(text).ok()?;
        let alone = |summary: Summary| {
            evaluate(&BTreeMap::from([("m".to_owned(), (ModuleKind::Module, Arc::new(summary)))]), python)
        };
        Some(Self { source: alone(read), bytecode: alone(compiled.clone()) })
    }

    fn differences(&self) -> Vec<String> {
        let both = self.source.iter().filter_map(|(name, ours)| Some((name, ours, self.bytecode.get(name)?)));
        let found = both.filter(|(_, ours, theirs)| ours.compare(theirs).is_different());
        found.map(|(name, ours, theirs)| format!("{name}: {ours:?} / {theirs:?}")).collect()
    }
}

/// The installed files that hold enums, with the bytecode that the interpreter itself would use.
fn installed(interpreter: &Interpreter) -> Vec<(String, String, Summary)> {
    let mut pairs = Vec::new();
    for (path, bytes, pyc) in interpreter.installed() {
        if !source::may_matter(&bytes) {
            continue;
        }
        let Ok(text) = source::decode(&bytes) else { continue };
        match bytecode::summarize(&pyc, interpreter.version) {
            Ok(summary) => pairs.push((path, text, summary)),
            Err(error) => panic!("{path}: {error}"),
        }
    }
    pairs
}

#[test]
fn fresh_pairs_never_differ_and_every_flipped_value_is_found() {
    #[expect(clippy::disallowed_methods, reason = "the number of flips is set for long runs")]
    let at_most = std::env::var("UNSTALE_FLIPS").ok().and_then(|text| text.parse().ok()).unwrap_or(4_usize);
    let (mut enums, mut flips) = (0, 0);
    let mut unequal = Vec::new();
    for interpreter in interpreters() {
        for (path, text, compiled) in installed(&interpreter) {
            let Some(pair) = Pair::of(&text, &compiled, interpreter.version) else { continue };
            assert_eq!(pair.differences(), Vec::<String>::new(), "{path}");
            enums += pair.source.len();
            if pair.source.len() != pair.bytecode.len() {
                unequal.push((path.clone(), pair.source.len(), pair.bytecode.len()));
            }
            for flipped in harness::flips(&text, &pair.source).into_iter().take(at_most) {
                let Some(pair) = Pair::of(&flipped, &compiled, interpreter.version) else { continue };
                assert_ne!(pair.differences(), Vec::<String>::new(), "a flipped value in {path} was missed");
                flips += 1;
            }
        }
    }
    println!("{enums} enums, {flips} flips, unequal counts: {unequal:?}");
    assert!(enums > 100 && flips > 100, "too little was compared: {enums} enums, {flips} flips");
}

#[test]
fn damaged_bytecode_does_no_harm() {
    #[expect(clippy::disallowed_methods, reason = "the number of rounds is set for long runs")]
    let rounds = std::env::var("UNSTALE_DAMAGED").ok().and_then(|text| text.parse().ok()).unwrap_or(4_000_u64);
    let fixtures = modules_below(&fixtures());
    for interpreter in interpreters() {
        let pycs = interpreter.compile(&fixtures);
        let mut random = harness::Random(u64::from(interpreter.version.minor));
        for _ in 0..rounds {
            let (name, kind, pyc) = &pycs[random.below(pycs.len())];
            let mut damaged = pyc.clone();
            for _ in 0..=random.below(4) {
                let at = 16 + random.below(damaged.len() - 16);
                match random.below(3) {
                    0 => damaged[at] ^= 1 << random.below(8),
                    1 => damaged[at] = u8::try_from(random.below(256)).expect("a byte"),
                    _ if at > 20 => damaged.truncate(at),
                    _ => {}
                }
            }
            if let Ok(summary) = bytecode::summarize(&damaged, interpreter.version) {
                evaluate(&BTreeMap::from([(name.clone(), (*kind, Arc::new(summary)))]), interpreter.version);
            }
        }
    }
}

/// Holds the bindings of `modules` against what SQLAlchemy itself makes of them.
fn check_bindings(requirements: &[&str], name: &str, modules: &[&str], unresolved: &[&str]) {
    let interpreter = harness::venv(name, requirements);
    let real = interpreter.bindings(modules);
    let mut project = Project::new(interpreter.version);
    for (name, (kind, summary)) in from_source(&modules_below(&fixtures())) {
        project.insert(name, kind, summary);
    }
    let mut compiled = Project::new(interpreter.version);
    for (name, kind, pyc) in interpreter.compile(&modules_below(&fixtures())) {
        compiled.insert(name, kind, Arc::new(bytecode::summarize(&pyc, interpreter.version).expect("bytecode")));
    }
    for (layer, project) in [("source", project), ("bytecode", compiled)] {
        let mut found = BTreeMap::new();
        let mut plain = std::collections::BTreeSet::new();
        for module in modules {
            let evaluated = project.definitions(module);
            found.extend(evaluated.bindings.into_iter().map(|binding| (binding.column.to_string(), binding)));
            for mapped in evaluated.mapped {
                plain.extend(mapped.plain.iter().map(|column| format!("{}.{column}", mapped.name)));
            }
        }
        let wanted: Vec<_> = real.iter().filter(|(_, real)| real.is_some()).map(|(name, _)| name).collect();
        assert_eq!(found.keys().collect::<Vec<_>>(), wanted, "{layer}");
        for (column, real) in &real {
            let Some(real) = real else {
                continue;
            };
            assert!(!plain.contains(column), "{layer}: {column} is said to be plain");
            let ours = found.get(column).expect("was found");
            assert_eq!(ours.enum_name.as_ref().map(ToString::to_string), real.enum_name, "{layer}: {column}");
            assert_eq!(ours.type_name, real.name, "{layer}: {column}");
            assert_eq!(ours.schema, real.schema, "{layer}: {column}");
            assert_eq!(ours.native, real.native, "{layer}: {column}");
            if unresolved.iter().any(|name| column.ends_with(name)) {
                assert!(matches!(ours.sends, Some(Sends::Unresolved { .. })), "{layer}: {column}: {ours:?}");
                continue;
            }
            let labels: Vec<_> = ours.labels.iter().map(|label| label.text().unwrap_or("?").to_owned()).collect();
            assert_eq!(labels, real.labels, "{layer}: {column}: {ours:?}");
        }
        for column in &plain {
            assert_eq!(real.get(column), Some(&None), "{layer}: {column} is said to be plain");
        }
    }
}

#[test]
fn bindings_are_those_of_sqlalchemy_1_4() {
    check_bindings(&["sqlalchemy>=1.4,<2.0"], "bind-sa14", &["bound.classic"], &[".members"]);
}

#[test]
fn bindings_are_those_of_sqlalchemy_2_0() {
    let modules = ["bound.classic", "bound.annotated", "bound.models"];
    check_bindings(&["sqlalchemy>=2.0,<2.1", "sqlmodel"], "bind-sa20", &modules, &[".members"]);
}

#[test]
fn choices_are_those_of_django() {
    let interpreter = harness::venv("bind-dj", &["django"]);
    let fixtures = modules_below(&fixtures());
    check(&interpreter, "source", &evaluate(&from_source(&fixtures), interpreter.version), &["choices"], true);
}
