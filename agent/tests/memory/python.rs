//! Interpreters of this machine, and processes of them that end with the test.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use unstale_agent::memory::{self, Cache};
use unstale_agent::reading::{Outcome, ReadOptions, Reading};
use unstale_protocol::ids::{Pid, ProcessIdentity};

/// The directory `tests/` of the source tree.
pub(crate) fn tests_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").canonicalize().expect("tests/")
}

/// Where the Python programs of the tests lie.
pub(crate) fn fixtures() -> PathBuf {
    tests_dir().join("fixtures")
}

/// Returns the interpreters of known versions, by release.
pub(crate) fn interpreters() -> Vec<(String, PathBuf)> {
    static FOUND: OnceLock<Vec<(String, PathBuf)>> = OnceLock::new();
    FOUND.get_or_init(discover).clone()
}

/// Asks `tests/pythons`.
fn discover() -> Vec<(String, PathBuf)> {
    let output = Command::new(tests_dir().join("pythons")).output().expect("tests/pythons runs");
    let listed = String::from_utf8(output.stdout).expect("text");
    let known = |release: &str| {
        let minor = release.split('.').nth(1).and_then(|minor| minor.parse::<u8>().ok());
        minor.is_some_and(|minor| (8..=13).contains(&minor))
    };
    let found: Vec<(String, PathBuf)> = listed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(release, _)| known(release))
        .map(|(release, path)| (release.to_owned(), PathBuf::from(path)))
        .collect();
    assert!(!found.is_empty(), "no CPython 3.8 to 3.13 found; on Debian: apt-get install python3");
    found
}

/// A Python process that has said something on standard output and waits for standard input to end.
pub(crate) struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Running {
    /// Starts a program.
    pub(crate) fn start(python: &Path, arguments: &[&str], directory: &Path) -> Self {
        let mut child = Command::new(python)
            .args(arguments)
            .current_dir(directory)
            .env_remove("PYTHONPATH")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the interpreter starts");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, output }
    }

    /// Waits for a line of JSON.
    pub(crate) fn line(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// Writes a line to its standard input and waits for a line of its answer.
    pub(crate) fn tell(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().expect("piped");
        writeln!(input, "{line}").expect("it listens");
        self.line();
    }

    pub(crate) fn identity(&self) -> ProcessIdentity {
        identity(self.child.id())
    }

    pub(crate) fn read(&self, options: &ReadOptions) -> Reading {
        memory::read(self.identity(), options, &mut Cache::new())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if self.child.kill().is_ok() {
            assert!(self.child.wait().is_ok(), "the process can be waited for");
        }
    }
}

/// Reads the start time of a process: field 22 of `/proc/PID/stat`.
pub(crate) fn identity(pid: u32) -> ProcessIdentity {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let start_ticks = fields.split_ascii_whitespace().nth(19).and_then(|text| text.parse().ok()).expect("field 22");
    ProcessIdentity { pid: Pid(pid), start_ticks, pid_namespace: 0 }
}

/// Demands a complete reading.
pub(crate) fn complete(reading: Reading) -> Reading {
    assert_eq!(reading.outcome, Outcome::Complete);
    reading
}

/// A virtual environment with these packages, made on first use by `tests/venv`.
pub(crate) fn venv(python: &Path, name: &str, packages: &[&str]) -> PathBuf {
    let output = Command::new(tests_dir().join("venv")).arg(python).arg(name).args(packages).output();
    let output = output.expect("tests/venv runs");
    assert!(output.status.success(), "tests/venv: {}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).expect("text").trim_end())
}
