//! Rules of the house that no lint knows.

use crate::harness::python::{run, tests_dir};
use crate::harness::unstale::unstale;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The longest file, in lines that are neither blank nor comment.
const MOST_CODE_LINES: usize = 500;

fn root() -> PathBuf {
    tests_dir().parent().expect("the root").to_owned()
}

/// Every file of the tree below `folder` with one of these endings, sorted.
fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() {
                if !["target", ".git", "__pycache__"].contains(&name) {
                    folders.push(path);
                }
            } else if endings.is_empty() || endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no files below {folder}");
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What ships of a file: everything before its unit tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\n").next().unwrap_or_default()
}

fn is_code(line: &str) -> bool {
    let line = line.trim_start();
    !line.is_empty() && !line.starts_with("//")
}

/// Every dependency of a manifest: the names in a section.
fn dependencies(manifest: &str, section: &str) -> Vec<String> {
    read(&root().join(manifest))
        .lines()
        .skip_while(|line| *line != format!("[{section}]"))
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .filter_map(|line| Some(line.split(['.', ' ', '=']).next()?.to_owned()))
        .collect()
}

#[test]
fn no_file_is_longer_than_a_person_reads_in_one_go() {
    let long: Vec<String> = ["protocol", "agent", "daemon", "tests"]
        .iter()
        .flat_map(|folder| files(folder, &[".rs"]))
        .map(|path| (read(&path).lines().filter(|line| is_code(line)).count(), path))
        .filter(|(lines, _)| *lines > MOST_CODE_LINES)
        .map(|(lines, path)| format!("{}: {lines}", path.display()))
        .collect();
    assert!(long.is_empty(), "more than {MOST_CODE_LINES} lines of code, split by meaning: {long:#?}");
}

#[test]
fn the_protocol_does_no_io_reads_no_clock_and_draws_no_random_number() {
    let banned = [
        "tokio",
        "std::fs",
        "std::net",
        "std::process",
        "std::env",
        "std::thread",
        "std::os",
        "Instant::now",
        "SystemTime",
        "rand::",
        "getrandom",
    ];
    for path in files("protocol/src", &[".rs"]) {
        let text = read(&path);
        for (number, line) in without_tests(&text).lines().enumerate().filter(|(_, line)| is_code(line)) {
            for word in banned {
                assert!(!line.contains(word), "{}:{}: protocol names {word}", path.display(), number + 1);
            }
        }
    }
    let allowed = ["num-bigint", "serde", "serde_json", "sha2", "thiserror"];
    for name in dependencies("protocol/Cargo.toml", "dependencies") {
        assert!(allowed.contains(&name.as_str()), "protocol depends on {name}");
    }
}

#[test]
fn arrows_point_left() {
    for (folder, banned) in [
        ("protocol", vec!["unstale_agent", "unstale::"]),
        ("agent", vec!["unstale::", "axum", "tower_http", "redis::", "lapin", "redb", "clap::"]),
    ] {
        for path in files(&format!("{folder}/src"), &[".rs"]) {
            for (number, line) in read(&path).lines().enumerate().filter(|(_, line)| is_code(line)) {
                for word in &banned {
                    assert!(!line.contains(word), "{}:{}: {folder} names {word}", path.display(), number + 1);
                }
            }
        }
    }
    for name in ["axum", "clap", "lapin", "redb", "redis", "tower-http", "tracing-subscriber"] {
        assert!(
            !dependencies("agent/Cargo.toml", "dependencies").contains(&name.to_owned()),
            "agent depends on {name}"
        );
    }
}

#[test]
fn the_code_map_is_the_first_sentences_of_the_files() {
    let map = run(Command::new(tests_dir().join("map")));
    for row in map.lines().skip(2) {
        assert!(!row.ends_with("|  |"), "a file opens without `//!`: {row}");
    }
    assert!(
        read(&root().join("ARCHITECTURE.md")).contains(&map),
        "the map in ARCHITECTURE.md is old: tests/map --write"
    );
}

#[test]
fn every_planted_defect_still_fits_its_place() {
    let mut command = Command::new(tests_dir().join("defects"));
    command.arg("--check");
    assert_eq!(run(command), "");
}

#[test]
fn every_dependency_says_why_it_is_there() {
    let architecture = read(&root().join("ARCHITECTURE.md"));
    let used: BTreeSet<String> = ["protocol", "agent", "daemon"]
        .iter()
        .flat_map(|member| {
            let manifest = format!("{member}/Cargo.toml");
            [dependencies(&manifest, "dependencies"), dependencies(&manifest, "dev-dependencies")].concat()
        })
        .collect();
    for name in dependencies("Cargo.toml", "workspace.dependencies") {
        assert!(used.contains(&name), "no member uses {name}: take it out of Cargo.toml");
    }
    for name in used.iter().filter(|name| !name.starts_with("unstale")) {
        assert!(
            architecture.lines().any(|line| line.starts_with('|') && line.contains(&format!("`{name}`"))),
            "ARCHITECTURE.md does not say why `{name}` is there"
        );
    }
}

#[test]
fn the_top_level_folders_are_five() {
    let mut seen: Vec<String> = fs::read_dir(root())
        .expect("the root")
        .filter_map(Result::ok)
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.') && name != "target")
        .collect();
    seen.sort();
    assert_eq!(seen, ["agent", "daemon", "deploy", "protocol", "tests"]);
}

#[test]
fn names_say_what_a_thing_does_and_not_that_it_is_of_use() {
    for path in ["protocol", "agent", "daemon", "tests"].iter().flat_map(|folder| files(folder, &[".rs"])) {
        for (number, line) in read(&path).lines().enumerate() {
            let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            for pair in words.windows(2) {
                let [keyword, name] = pair else { continue };
                if ["struct", "enum", "trait", "type", "mod"].contains(keyword) {
                    for banned in ["manager", "helper", "util"] {
                        assert!(
                            !name.to_lowercase().split('_').any(|part| part.starts_with(banned))
                                && !name.to_lowercase().ends_with(banned),
                            "{}:{}: {name}",
                            path.display(),
                            number + 1
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_tree_speaks_only_of_itself() {
    // Put together here so that this file does not find itself.
    let banned = [["/wo", "rk/"].concat(), ["/ro", "ot/"].concat(), ["facts", "/"].concat()];
    let mut paths: Vec<PathBuf> = ["protocol", "agent", "daemon", "deploy", "tests", ".ci"]
        .iter()
        .flat_map(|folder| files(folder, &[]))
        .collect();
    for entry in fs::read_dir(root()).expect("the root").filter_map(Result::ok) {
        if entry.path().is_file() && entry.file_name() != ".git" && entry.file_name() != "Cargo.lock" {
            paths.push(entry.path());
        }
    }
    for path in paths {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            for word in &banned {
                for (place, _) in line.match_indices(word.as_str()) {
                    // Part of a longer path (`/proc/PID/root/etc`) is another thing than a path of its own.
                    let longer = line[..place].ends_with(|c: char| c.is_alphanumeric() || "}$_)".contains(c));
                    assert!(longer, "{}:{}: {line}", path.display(), number + 1);
                }
            }
        }
    }
}

#[test]
fn every_environment_variable_is_documented() {
    let documents: String =
        ["README.md", "CONTRIBUTING.md", "deploy/unstale.toml"].iter().map(|name| read(&root().join(name))).collect();
    for path in ["protocol", "agent", "daemon", "tests"].iter().flat_map(|folder| files(folder, &[".rs"])) {
        let text = read(&path);
        for (start, _) in text.match_indices("UNSTALE_") {
            let name: String = text[start..]
                .chars()
                .take_while(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_')
                .collect();
            // A bare prefix (`UNSTALE_*`) names no variable.
            if !name.ends_with('_') {
                assert!(documents.contains(&name), "{}: {name} is in no document", path.display());
            }
        }
    }
}

#[test]
fn every_key_of_the_reference_configuration_has_a_comment() {
    let text = read(&root().join("deploy/unstale.toml"));
    let mut above = "";
    for (number, line) in text.lines().enumerate() {
        let key = line.trim_start_matches("# ").trim_start_matches('#');
        let is_key =
            key.split_once(" = ").is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
        if is_key {
            assert!(above.starts_with('#'), "deploy/unstale.toml:{}: {line} has no comment above it", number + 1);
        }
        above = line;
    }
}

#[test]
fn the_help_names_every_exit_code() {
    let said = unstale(["--help"]).expect(0);
    for code in ["0", "1", "2", "3", "4", "5", "101", "130"] {
        assert!(
            said.stdout.lines().any(|line| line.trim_start().starts_with(&format!("{code} "))),
            "exit code {code} is not in the help: {}",
            said.stdout
        );
    }
}

#[test]
fn every_script_says_what_it_is_and_stops_at_the_first_error() {
    for path in [".ci", "tests"].iter().flat_map(|folder| files(folder, &[])) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        if text.starts_with("#!/usr/bin/env bash") {
            assert!(text.lines().nth(1).is_some_and(|line| line.starts_with("# ")), "{}", path.display());
            assert!(text.contains("set -euo pipefail"), "{}", path.display());
        }
    }
}
