//! Interpreters and virtual environments.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A CPython on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interpreter {
    /// Its release: `3.11.7`.
    pub(crate) release: String,
    /// The program.
    pub(crate) path: PathBuf,
}

impl Interpreter {
    /// The minor version: 11 for 3.11.7.
    pub(crate) fn minor(&self) -> u32 {
        self.release.split('.').nth(1).and_then(|minor| minor.parse().ok()).expect("a release")
    }
}

/// The directory `tests/` of the source tree.
pub(crate) fn tests_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").canonicalize().expect("tests/")
}

/// Every supported interpreter on this machine, oldest first. There is at least one.
pub(crate) fn interpreters() -> Vec<Interpreter> {
    let listed = run(Command::new(tests_dir().join("pythons")));
    let found: Vec<Interpreter> = listed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(release, path)| Interpreter { release: release.to_owned(), path: PathBuf::from(path) })
        .filter(|python| (8..=13).contains(&python.minor()))
        .collect();
    assert!(!found.is_empty(), "no CPython between 3.8 and 3.13 found; on Debian: apt-get install python3");
    found
}

/// The newest of [`interpreters`].
pub(crate) fn newest() -> Interpreter {
    interpreters().pop().expect("at least one")
}

/// A virtual environment with what `tests/requirements/NAME.txt` lists, made on first use.
pub(crate) fn venv(interpreter: &Interpreter, name: &str) -> PathBuf {
    let mut command = Command::new(tests_dir().join("venv"));
    command.arg(&interpreter.path).arg(name);
    PathBuf::from(run(command).trim_end())
}

/// Runs a command that must succeed, and returns what it prints.
pub(crate) fn run(mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}
