//! The program itself: run once, or kept running as `unstale up`.

use crate::harness::app::Place;
use crate::harness::process::{Running, command as plain_command};
use crate::harness::wait::eventually_some;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A configuration that lets tests end soon: a look twice a second, a short survival window.
pub(crate) const QUICK: &str = "[agent]\nscan_interval = \"500ms\"\nsurvival_window = \"2s\"\n";

/// What a run of the program gave.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Exit code; 128 + signal where one ended it.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

impl Answer {
    /// Fails unless the exit code is this one; shows both outputs.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code\nstdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Fails if the coordinator could not be asked.
    #[track_caller]
    pub(crate) fn expect_running(&self) {
        assert_ne!(self.code, 2, "{self:?}");
    }

    /// The last JSON object on standard output.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let mut last = None;
        for value in serde_json::Deserializer::from_str(&self.stdout).into_iter::<Value>() {
            last =
                Some(value.unwrap_or_else(|error| panic!("{error}\nstdout: {}\nstderr: {}", self.stdout, self.stderr)));
        }
        last.unwrap_or_else(|| panic!("no JSON (exit code {})\nstderr: {}", self.code, self.stderr))
    }
}

/// The program's command, with nothing of the caller's environment that could change what it does.
pub(crate) fn program() -> Command {
    let mut command = plain_command(env!("CARGO_BIN_EXE_unstale"));
    command.env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub(crate) fn unstale<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Answer {
    let mut command = program();
    command.args(arguments);
    answer(command)
}

/// Runs a prepared command to its end.
pub(crate) fn answer(mut command: Command) -> Answer {
    use std::os::unix::process::ExitStatusExt;
    let output = command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    Answer {
        code: output.status.code().or_else(|| output.status.signal().map(|signal| 128 + signal)).expect("ended"),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Looks at the workers whose code lies below `root`, as JSON, whatever the exit code.
pub(crate) fn inspect(root: &Path) -> Value {
    unstale([OsStr::new("inspect"), "--output".as_ref(), "json".as_ref(), "--root".as_ref(), root.as_os_str()]).json()
}

/// The enum entry of this name in a worker's entry.
#[track_caller]
pub(crate) fn entry<'a>(worker: &'a Value, name: &str) -> &'a Value {
    array(worker, "enums")
        .iter()
        .find(|entry| entry["enum"] == name)
        .unwrap_or_else(|| panic!("no enum {name} in {worker:#}"))
}

/// An array in a JSON object.
#[track_caller]
pub(crate) fn array<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().unwrap_or_else(|| panic!("no array {field} in {value:#}"))
}

/// The workers of an `inspect` answer as (pid, verdict), in the order given.
pub(crate) fn verdicts(inspected: &Value) -> Vec<(u32, String)> {
    array(inspected, "workers").iter().map(|worker| (pid_of(worker), text(worker, "verdict"))).collect()
}

/// The pid of a worker's entry.
#[track_caller]
pub(crate) fn pid_of(worker: &Value) -> u32 {
    worker["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap_or_else(|| panic!("no pid in {worker:#}"))
}

/// A text field, or nothing where it is absent or null.
pub(crate) fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

/// `unstale up`, watching the workers below some directories.
#[derive(Debug)]
pub(crate) struct Up {
    /// The process.
    pub(crate) process: Running,
    /// Its control socket.
    pub(crate) socket: PathBuf,
    /// Its state.
    pub(crate) state: PathBuf,
}

impl Up {
    /// Starts it with its state, socket and log in `place`, looking only at workers below it, and waits until it answers.
    pub(crate) fn start(place: &Place) -> Self {
        Self::start_with(place, QUICK)
    }

    /// The same with another configuration file.
    pub(crate) fn start_with(place: &Place, configuration: &str) -> Self {
        let config = place.join("unstale.toml");
        fs::write(&config, configuration).expect("a configuration file");
        let (socket, state) = (place.join("up.sock"), place.join("state"));
        let mut command = program();
        command.arg("up").arg("--state-dir").arg(&state).arg("--socket").arg(&socket);
        command.arg("--root").arg(place.path()).arg("--config").arg(&config);
        let process = Running::start(&mut command, &place.join("up.log"));
        let mut up = Self { process, socket, state };
        eventually_some("unstale up answers", 30, || {
            assert!(!up.process.has_ended(), "unstale up ended: {}", up.process.log());
            let answer = up.run(["status"]);
            if answer.code == 2 { Err((answer, up.process.log())) } else { Ok(()) }
        });
        up
    }

    /// Runs a command of the program against this coordinator.
    pub(crate) fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Answer {
        answer(self.command(arguments))
    }

    /// A command of the program against this coordinator.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = program();
        command.args(arguments).env("UNSTALE_COORDINATOR", format!("unix:{}", self.socket.display()));
        command
    }

    /// Broadcasts the source in `code` as `app`, waits for the outcome, and returns the answer.
    pub(crate) fn broadcast(&self, app: &str, code: &Path, more: &[&str]) -> Answer {
        let mut command = self.command(["broadcast", "--output", "json", "--app", app]);
        if !more.contains(&"--timeout") {
            command.args(["--timeout", "180s"]);
        }
        command.args(more).arg(code);
        answer(command)
    }
}
