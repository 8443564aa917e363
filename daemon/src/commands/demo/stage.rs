//! The demo's stage: a directory, and the processes that were started in it. Striking it leaves nothing behind.

use crate::api::Status;
use crate::render::style;
use crate::report;
use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// How often a condition is looked at.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long a part may take to end before it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(15);
/// Lines of each log that a failed demo shows.
const LOG_LINES: usize = 15;

/// A stage that is set.
#[derive(Debug)]
pub(super) struct Stage {
    directory: TempDir,
    root: PathBuf,
    parts: Vec<Part>,
    logs: Vec<PathBuf>,
}

/// A process that belongs to it.
#[derive(Debug)]
struct Part {
    name: String,
    child: Child,
}

impl Stage {
    /// Makes a new directory.
    ///
    /// # Errors
    /// Where that cannot be made.
    pub(super) fn set() -> anyhow::Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("unstale-demo-").tempdir().context("cannot make a directory")?;
        let root = directory.path().canonicalize().context("cannot find the directory that was made")?;
        Ok(Self { directory, root, parts: Vec::new(), logs: Vec::new() })
    }

    /// Returns the directory.
    pub(super) fn directory(&self) -> &Path {
        &self.root
    }

    /// Returns the ends of all logs, for a demo that failed.
    pub(super) fn logs(&self) -> String {
        let mut out = String::new();
        for log in &self.logs {
            let text = fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
            let last: Vec<String> = last.iter().map(|line| crate::render::plain(line)).collect();
            let name = log.strip_prefix(&self.root).unwrap_or(log).display();
            // Writing to a String cannot fail.
            writeln!(out, "--- {name}\n{}", last.join("\n")).unwrap_or_default();
        }
        out
    }

    /// Starts a process that goes on until the stage is struck; what it logs is in `logs`.
    ///
    /// # Errors
    /// Where it cannot be run.
    pub(super) fn start(&mut self, name: &str, mut command: Command, logs: &[PathBuf]) -> anyhow::Result<()> {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        self.parts.push(Part { name: name.to_owned(), child });
        self.logs.extend_from_slice(logs);
        Ok(())
    }

    /// Starts one of our own roles, shows how, and keeps its log in the file `log`.
    ///
    /// # Errors
    /// Where it cannot be run.
    pub(super) fn start_unstale(
        &mut self,
        name: &str,
        log: &str,
        arguments: &[&str],
        unseen: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        show(arguments, unseen);
        let log = self.root.join(log);
        let errors = File::create(&log).context("cannot write a log")?;
        let mut command = self.program(Path::new("/proc/self/exe"));
        command.args(arguments).args(unseen).envs(environment.iter().copied()).stdout(Stdio::null()).stderr(errors);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        self.parts.push(Part { name: name.to_owned(), child });
        self.logs.push(log);
        Ok(())
    }

    /// Runs one of our own commands as a person would, shows it, and returns its exit code.
    ///
    /// # Errors
    /// Where it cannot be run.
    pub(super) async fn unstale(&self, arguments: &[&str], unseen: &[&str]) -> anyhow::Result<Option<i32>> {
        show(arguments, unseen);
        let mut command = Command::new("/proc/self/exe");
        command.args(arguments).args(unseen).current_dir(&self.root).stdin(Stdio::null()).kill_on_drop(true);
        let status = command.status().await.context("cannot run ourselves")?;
        Ok(status.code())
    }

    /// Runs one of our own commands as a person would, and shows it. With another exit code than `wanted` the demo ends:
    /// `otherwise` says what that means.
    ///
    /// # Errors
    /// Where it cannot be run, or ends otherwise.
    pub(super) async fn expect(
        &self,
        arguments: &[&str],
        unseen: &[&str],
        wanted: i32,
        otherwise: &str,
    ) -> anyhow::Result<()> {
        let ended = self.unstale(arguments, unseen).await?;
        if ended != Some(wanted) {
            bail!("`unstale {}` ended with {ended:?}{otherwise}", arguments.first().unwrap_or(&""));
        }
        Ok(())
    }

    /// Runs one of our own commands that must succeed, shows it shortened, and returns what it answers.
    ///
    /// # Errors
    /// Where it fails: what it said.
    pub(super) async fn answer(&self, arguments: &[&str], unseen: &[&str]) -> anyhow::Result<String> {
        let shown: Vec<String> = arguments.iter().map(|argument| shortened(argument)).collect();
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        show(&shown, unseen);
        let mut command = self.program(Path::new("/proc/self/exe"));
        let output = command.args(arguments).args(unseen).output().await.context("cannot run ourselves")?;
        if !output.status.success() {
            bail!("it failed: {}", crate::render::plain(&String::from_utf8_lossy(&output.stderr)));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Asks where the fleet stands, unseen; none where nobody answers yet.
    ///
    /// # Errors
    /// Where it cannot be run.
    pub(super) async fn status(&self, coordinator: &str) -> anyhow::Result<Option<Status>> {
        let mut command = self.program(Path::new("/proc/self/exe"));
        command.args(["status", "--output", "json", "--coordinator", coordinator]);
        let output = command.output().await.context("cannot run ourselves")?;
        Ok(serde_json::from_slice(&output.stdout).ok())
    }

    /// Waits for a condition; a part that ended meanwhile, or the time limit, ends the demo.
    ///
    /// # Errors
    /// What was waited for in vain.
    pub(super) async fn until(&mut self, what: &str, limit: Duration, holds: impl Fn() -> bool) -> anyhow::Result<()> {
        let wait = async {
            while !holds() {
                for Part { name, child } in &mut self.parts {
                    if let Ok(Some(ended)) = child.try_wait() {
                        bail!("{name} ended with {ended} before {what}");
                    }
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            Ok(())
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(result) => result,
            Err(_) => bail!("waited {} s in vain until {what}", limit.as_secs()),
        }
    }

    /// Ends everything that was started, the last first, and removes the directory.
    pub(super) async fn strike(mut self) {
        let parts = std::mem::take(&mut self.parts);
        let mut below = Vec::new();
        for Part { child, .. } in parts.iter().rev() {
            below.extend(child.id().map(descendants).unwrap_or_default());
            ask_to_end(child);
        }
        for Part { mut child, .. } in parts.into_iter().rev() {
            if tokio::time::timeout(END_TIMEOUT, child.wait()).await.is_err() {
                child.kill().await.unwrap_or_default();
            }
        }
        // A worker that its supervisor could not end must not outlive the demo.
        for process in below {
            pidfd_send_signal(process, rustix::process::Signal::KILL).unwrap_or_default();
        }
        if let Err(error) = self.directory.close() {
            report::note(&format!("cannot remove the demo's directory: {error}"));
        }
    }

    /// A program of the stage: a clean environment, and a group of its own, so that Ctrl-C reaches only us.
    pub(super) fn program(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", &self.root).env("LANG", "C.UTF-8");
        command.current_dir(&self.root).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        command
    }
}

/// Longest argument that is shown whole.
const SHOWN_CHARS: usize = 44;

/// A public key as people see it: role, kind and how it begins.
fn shortened(argument: &str) -> String {
    let mut chars = argument.chars();
    let begin: String = chars.by_ref().take(SHOWN_CHARS).collect();
    if chars.next().is_some() { format!("{begin}…") } else { begin }
}

fn show(arguments: &[&str], unseen: &[&str]) {
    let more = if unseen.is_empty() { "" } else { " …" };
    report::answer(&format!("   {}\n", style::quiet(&format!("$ unstale {}{more}", arguments.join(" ")))));
}

/// Asks a part to end.
fn ask_to_end(part: &Child) {
    if let Some(pid) = part.id().and_then(|pid| i32::try_from(pid).ok()) {
        // It has not been waited for: its number is still its own.
        kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).unwrap_or_default();
    }
}

/// Holds all processes below `root`, so that a number that is used again cannot be mistaken for one of them.
fn descendants(root: u32) -> Vec<OwnedFd> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| Some((pid, parent(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect();
    let mut family = vec![root];
    let mut at = 0;
    while let Some(parent) = family.get(at).copied() {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    let below = family.iter().skip(1).filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?));
    below.filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()).collect()
}

/// Field 4 of `/proc/PID/stat`, proc(5); the name in field 2 may hold anything.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent("12 (a) b) S 7 12 12 0"), Some(7));
        assert_eq!(parent("nonsense"), None);
    }
}
