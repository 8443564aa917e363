//! `[[units]]`: what an administrator says of units that no supervisor brings back.

use super::glob;
use crate::discover::own_supervisor;
use crate::display::escape::terminal;
use crate::process::{Supervisor, Unit};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// Most of the end of a command's error output that is kept.
const ERROR_MAX_BYTES: usize = 4096;
/// Most of its last line that is told.
const LINE_MAX_CHARS: usize = 300;
/// How long a start command is watched for an early failure.
const START_WATCH: Duration = Duration::from_secs(5);

/// One `[[units]]` table. It fits a unit where everything that it names fits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnitConfig {
    /// Pattern of the slot, with `*` and `?`: `celery/none/*`.
    pub slot: Option<String>,
    /// First words of the root's command line.
    pub command: Vec<String>,
    /// The command that starts it, run without a shell. It must hand over and end, or be the worker itself. Without
    /// `user` the table is about units of the agent's own user only.
    pub start: Vec<String>,
    /// A command that must succeed before the unit is stopped for a restart.
    pub preflight: Vec<String>,
    /// The user that runs both commands; units of other users do not fit. Default: the agent's own for `start`, the
    /// worker's for `preflight`.
    pub user: Option<String>,
    /// The directory that both run in. Default: `/` for `start`, the worker's for `preflight`.
    pub directory: Option<PathBuf>,
}

/// A command of the configuration, resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartCommand {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The user that runs it; `None` is the agent's own.
    pub user: Option<String>,
    /// The directory that it runs in.
    pub directory: PathBuf,
}

/// Why a configured command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{command}` {why}")]
pub struct CommandError {
    /// The command.
    pub command: String,
    /// What happened, with the last line of its error output.
    pub why: String,
}

impl UnitConfig {
    /// Tells whether this table is about `unit`. One that names neither slot nor command is about none.
    pub fn fits(&self, unit: &Unit) -> bool {
        let Some(root) = unit.root() else { return false };
        if self.slot.is_none() && self.command.is_empty() {
            return false;
        }
        let slot = self.slot.as_ref().is_none_or(|pattern| glob::fits(pattern, unit.slot.as_str()));
        let command = root.command.starts_with(&self.command);
        // A command line can be imitated by anybody; the user that it runs as cannot. What is started as the agent's own
        // user takes the place of nobody else's process: else whoever plays such a worker has it started, as root.
        let user = match &self.user {
            Some(user) => *user == root.user,
            None => self.start.is_empty() || root.uid == rustix::process::geteuid().as_raw(),
        };
        slot && command && user
    }

    /// Returns the start command, where there is one.
    pub fn start_command(&self) -> Option<StartCommand> {
        let directory = self.directory.clone().unwrap_or_else(|| PathBuf::from("/"));
        let command = || StartCommand { argv: self.start.clone(), user: self.user.clone(), directory };
        (!self.start.is_empty()).then(command)
    }

    /// Returns the pre-flight command of `unit`, where there is one. It may load the unit's code, so nobody runs it who
    /// has more rights than the unit.
    pub fn preflight_command(&self, unit: &Unit) -> Option<StartCommand> {
        let root = unit.root()?;
        let user = self.user.clone().unwrap_or_else(|| root.user.clone());
        let directory = self.directory.clone().or_else(|| root.cwd.as_ref().map(PathBuf::from));
        let directory = directory.unwrap_or_else(|| PathBuf::from("/"));
        let command = || StartCommand { argv: self.preflight.clone(), user: Some(user), directory };
        (!self.preflight.is_empty()).then(command)
    }
}

/// Refuses a configuration file that somebody other than root could have written.
///
/// # Errors
/// What is wrong with the file, and what to type.
pub fn check_trusted(file: &std::fs::File, path: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let metadata = file.metadata().map_err(|error| format!("{}: {error}", path.display()))?;
    if metadata.uid() != 0 {
        let (path, uid) = (path.display(), metadata.uid());
        return Err(format!("{path} belongs to uid {uid}, so its commands are not run; `chown root {path}`"));
    }
    if metadata.mode() & 0o022 != 0 {
        let path = path.display();
        return Err(format!("{path} can be written by others, so its commands are not run; `chmod go-w {path}`"));
    }
    Ok(())
}

impl StartCommand {
    /// Runs the command to its end.
    ///
    /// # Errors
    /// [`CommandError`] where it cannot be run, fails, or takes longer than `deadline`.
    pub async fn run(&self, deadline: Duration) -> Result<(), CommandError> {
        let mut child = self.command(None)?.kill_on_drop(true).spawn().map_err(|error| self.error(&error))?;
        if let Ok(end) = tokio::time::timeout(deadline, finished(&mut child)).await {
            return self.judge(end);
        }
        // Its children too: they would go on for nobody.
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(group) = group {
            // One that has just ended needs no end.
            kill_process_group(group, Signal::KILL).ok();
        }
        Err(self.error(&format!("did not end within {} s", deadline.as_secs())))
    }

    /// Starts the command and watches it a moment; one that goes on running is taken for the worker itself.
    ///
    /// # Errors
    /// [`CommandError`] where it cannot be run, or fails at once.
    pub(crate) async fn start(&self) -> Result<(), CommandError> {
        // Its error output must outlive us: what runs on may write to it.
        let command = self.command(own_supervisor().as_ref());
        let mut child = command?.stderr(Stdio::null()).spawn().map_err(|error| self.error(&error))?;
        match tokio::time::timeout(START_WATCH, finished(&mut child)).await {
            Ok(end) => self.judge(end),
            Err(_) => Ok(()),
        }
    }

    /// Makes the command. One that stays runs in a scope of its own, apart from the service that this program runs
    /// in: else whoever stops that stops the worker, and the worker seems to be brought back by it.
    fn command(&self, apart_from: Option<&Supervisor>) -> Result<Command, CommandError> {
        let (program, arguments) = self.argv.split_first().ok_or_else(|| self.error(&"is empty"))?;
        let manager = match apart_from {
            Some(Supervisor::Systemd { user, .. }) => Some(*user),
            _ => None,
        };
        let mut command = Command::new(if manager.is_some() { "systemd-run" } else { program });
        command.env_clear();
        if let Some(user) = manager {
            command.args(["--scope", "--quiet", "--collect"]);
            if let Some(uid) = user {
                command.arg("--user").env("XDG_RUNTIME_DIR", format!("/run/user/{uid}"));
            }
            if let Some(name) = &self.user {
                command.arg(format!("--uid={name}"));
            }
            command.arg("--").arg(program);
        }
        command.args(arguments).current_dir(&self.directory);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A group of its own: a Ctrl-C meant for the agent must not reach it.
        command.process_group(0);
        let Some(name) = &self.user else { return Ok(command) };
        let user = nix::unistd::User::from_name(name).map_err(|error| self.error(&error))?;
        let user = user.ok_or_else(|| self.error(&format!("cannot run: there is no user {name:?}")))?;
        command.env("HOME", &user.dir).env("USER", name).env("LOGNAME", name);
        if manager.is_none() && user.uid != nix::unistd::geteuid() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        Ok(command)
    }

    fn judge(&self, end: std::io::Result<(std::process::ExitStatus, String)>) -> Result<(), CommandError> {
        match end {
            Ok((status, _)) if status.success() => Ok(()),
            Ok((status, words)) if words.is_empty() => Err(self.error(&format!("ended with {status}"))),
            Ok((status, words)) => Err(self.error(&format!("ended with {status}: {words}"))),
            Err(error) => Err(self.error(&error)),
        }
    }

    fn error(&self, why: &dyn std::fmt::Display) -> CommandError {
        CommandError { command: self.argv.join(" "), why: why.to_string() }
    }
}

async fn finished(child: &mut tokio::process::Child) -> std::io::Result<(std::process::ExitStatus, String)> {
    let mut end = Vec::with_capacity(2 * ERROR_MAX_BYTES);
    if let Some(mut errors) = child.stderr.take() {
        // To its end, whatever is kept: a closed pipe would end a command that has much to say.
        while errors.read_buf(&mut end).await? > 0 {
            end.drain(..end.len().saturating_sub(ERROR_MAX_BYTES));
        }
    }
    let status = child.wait().await?;
    Ok((status, last_line(&end)))
}

/// Returns the last line that says something: of a traceback the one with the reason.
fn last_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    terminal(&line.chars().take(LINE_MAX_CHARS).collect::<String>()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(output: &[u8], expected: &str) {
        assert_eq!(last_line(output), expected, "{:?}", String::from_utf8_lossy(output));
    }

    #[test]
    fn what_is_told_of_an_output_is_its_last_line_as_plain_text() {
        check(b"", "");
        check(b"\n \n", "");
        check(b"Traceback\n  File \"x\"\nImportError: no module named shop\n\n", "ImportError: no module named shop");
        check(b"\x1b[31mred\xff", "\\x1b[31mred\u{fffd}");
        check("x".repeat(4000).as_bytes(), &"x".repeat(LINE_MAX_CHARS));
    }

    #[tokio::test]
    async fn the_reason_is_told_however_much_was_written_before_it() {
        let script = "i=0; while [ $i -lt 2000 ]; do echo warning >&2; i=$((i+1)); done; echo the reason >&2; exit 3";
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let command = StartCommand { argv, user: None, directory: "/".into() };
        let error = command.run(Duration::from_secs(30)).await.unwrap_err();
        assert_eq!(error.why, "ended with exit status: 3: the reason");
    }
}
