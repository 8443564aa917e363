//! `[[units]]`: what an administrator says of units that no supervisor brings back.

use super::glob;
use crate::discover::own_supervisor;
use crate::process::{Supervisor, Unit};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// Most of a command's error output that is kept.
const ERROR_MAX_BYTES: u64 = 4096;
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
    /// The command that starts it, run without a shell. It must hand over and end, or be the worker itself.
    pub start: Vec<String>,
    /// A command that must succeed before the unit is stopped.
    pub preflight: Vec<String>,
    /// The user that runs both commands; units of other users do not fit. Default: the agent's own.
    pub user: Option<String>,
    /// The directory that both run in. Default: `/`.
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
    /// What happened, with the end of what it wrote.
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
        // A command line can be imitated by anybody; the user that it runs as cannot.
        let user = self.user.as_ref().is_none_or(|user| *user == root.user);
        slot && command && user
    }

    /// Returns the start command, where there is one.
    pub fn start_command(&self) -> Option<StartCommand> {
        self.resolved(&self.start)
    }

    /// Returns the pre-flight command, where there is one.
    pub fn preflight_command(&self) -> Option<StartCommand> {
        self.resolved(&self.preflight)
    }

    fn resolved(&self, argv: &[String]) -> Option<StartCommand> {
        let directory = self.directory.clone().unwrap_or_else(|| PathBuf::from("/"));
        (!argv.is_empty()).then(|| StartCommand { argv: argv.to_vec(), user: self.user.clone(), directory })
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
        match tokio::time::timeout(deadline, finished(&mut child)).await {
            Ok(end) => self.judge(end),
            Err(_) => Err(self.error(&format!("did not end within {} s", deadline.as_secs()))),
        }
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
    let mut bytes = Vec::new();
    if let Some(errors) = child.stderr.take() {
        let mut errors = errors.take(ERROR_MAX_BYTES);
        errors.read_to_end(&mut bytes).await?;
        // The rest is read too: a closed pipe would end a command that has much to say.
        tokio::io::copy(&mut errors.into_inner(), &mut tokio::io::sink()).await?;
    }
    let status = child.wait().await?;
    Ok((status, String::from_utf8_lossy(&bytes).trim().to_owned()))
}
