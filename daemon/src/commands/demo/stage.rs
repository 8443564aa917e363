//! The demo's stage: a directory with an app, a supervisord, `unstale up`. Striking it leaves nothing behind.

use crate::render::style;
use crate::report;
use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use std::fmt::Write as _;
use std::fs::{self, File, FileTimes};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// How often a condition is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long a part may take to end before it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(15);
/// Lines of each log that a failed demo shows.
const LOG_LINES: usize = 15;

/// A stage that is set.
#[derive(Debug)]
pub(super) struct Stage {
    directory: TempDir,
    root: PathBuf,
    venv: PathBuf,
    supervisord: Option<Child>,
    up: Option<Child>,
}

impl Stage {
    /// Writes the app into a new directory.
    ///
    /// # Errors
    /// Where the directory cannot be made or written.
    pub(super) fn set(venv: PathBuf) -> anyhow::Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("unstale-demo-").tempdir().context("cannot make a directory")?;
        let root = directory.path().canonicalize().context("cannot find the directory that was made")?;
        let stage = Self { directory, root, venv, supervisord: None, up: None };
        let text = |path: &Path| path.display().to_string().replace('%', "%%");
        let config = include_str!("supervisord.conf")
            .replace("{directory}", &text(&stage.root))
            .replace("{venv}", &text(&stage.venv));
        let files = [
            ("app/__init__.py", ""),
            ("app/enums.py", include_str!("enums.py")),
            ("app/models.py", include_str!("models.py")),
            ("app/tasks.py", include_str!("tasks.py")),
            ("send.py", include_str!("send.py")),
            ("supervisord.conf", config.as_str()),
            ("queue/.keep", ""),
            ("control/.keep", ""),
        ];
        for (name, content) in files {
            let path = stage.root.join(name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).with_context(|| format!("cannot make `{}`", parent.display()))?;
            }
            fs::write(&path, content).with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        Ok(stage)
    }

    /// Returns the directory.
    pub(super) fn directory(&self) -> &Path {
        &self.root
    }

    /// Returns where `unstale up` listens.
    pub(super) fn socket(&self) -> PathBuf {
        self.root.join("unstale.sock")
    }

    /// Returns what the tasks noted.
    pub(super) fn ledger(&self) -> String {
        self.read("ledger.txt")
    }

    /// Returns what the worker logged.
    pub(super) fn worker_log(&self) -> String {
        self.read("worker.log")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.root.join(name)).unwrap_or_default()
    }

    /// Tells whether `unstale up` listens.
    pub(super) fn is_up(&self) -> bool {
        self.socket().exists()
    }

    /// Returns the ends of all logs, for a demo that failed.
    pub(super) fn logs(&self) -> String {
        let mut out = String::new();
        for name in ["worker.log", "supervisord.log", "up.log"] {
            let text = self.read(name);
            let lines: Vec<&str> = text.lines().collect();
            let last = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
            let last: Vec<String> = last.iter().map(|line| crate::render::plain(line)).collect();
            // Writing to a String cannot fail.
            writeln!(out, "--- {name}\n{}", last.join("\n")).unwrap_or_default();
        }
        out
    }

    /// Starts supervisord, which starts the worker.
    ///
    /// # Errors
    /// Where it cannot be run.
    pub(super) fn start_supervisord(&mut self) -> anyhow::Result<()> {
        let mut command = self.program(&self.venv.join("bin/supervisord"));
        command.args(["-n", "-c"]).arg(self.root.join("supervisord.conf"));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.supervisord = Some(command.spawn().context("cannot start supervisord")?);
        Ok(())
    }

    /// Starts `unstale up` for this directory only.
    ///
    /// # Errors
    /// Where it cannot be run.
    pub(super) fn start_up(&mut self) -> anyhow::Result<()> {
        let arguments = ["up", "--root", "."];
        show(&arguments, &[]);
        let log = File::create(self.root.join("up.log")).context("cannot write a log")?;
        let mut command = self.program(Path::new("/proc/self/exe"));
        command.args(arguments).arg("--state-dir").arg(self.root.join("state")).arg("--socket").arg(self.socket());
        command.stdout(Stdio::null()).stderr(log);
        self.up = Some(command.spawn().context("cannot start `unstale up`")?);
        Ok(())
    }

    /// Sends a task to the worker.
    ///
    /// # Errors
    /// Where it cannot be sent.
    pub(super) async fn send(&self, name: &str, seconds: u32) -> anyhow::Result<()> {
        let mut command = self.program(&self.venv.join("bin/python"));
        // Whoever sends must not write the bytecode that this is all about.
        command.env("PYTHONDONTWRITEBYTECODE", "1").arg("send.py").arg(name).arg(seconds.to_string());
        let output =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).output().await.context("cannot send a task")?;
        if !output.status.success() {
            bail!("cannot send a task: {}", crate::render::plain(&String::from_utf8_lossy(&output.stderr)));
        }
        Ok(())
    }

    /// Changes the enum's source, keeping its size and its time of change.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub(super) fn flip(&self) -> anyhow::Result<()> {
        let path = self.root.join("app/enums.py");
        let change = || -> std::io::Result<()> {
            let modified = fs::metadata(&path)?.modified()?;
            let text = fs::read_to_string(&path)?.replace("= \"HUBSPOT\"", "= \"hubspot\"");
            let mut file = File::create(&path)?;
            file.write_all(text.as_bytes())?;
            file.set_times(FileTimes::new().set_modified(modified))
        };
        change().with_context(|| format!("cannot change `{}`", path.display()))
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

    /// Waits for a condition; a part that ended meanwhile, or the time limit, ends the demo.
    ///
    /// # Errors
    /// What was waited for in vain.
    pub(super) async fn until(
        &mut self,
        what: &str,
        limit: Duration,
        holds: impl Fn(&Self) -> bool,
    ) -> anyhow::Result<()> {
        let wait = async {
            while !holds(self) {
                for (name, part) in [("supervisord", &mut self.supervisord), ("`unstale up`", &mut self.up)] {
                    if let Some(ended) = part.as_mut().and_then(|part| part.try_wait().ok().flatten()) {
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

    /// Ends everything that was started and removes the directory.
    pub(super) async fn strike(mut self) {
        if let Some(up) = self.up.take() {
            end(up).await;
        }
        if let Some(supervisord) = self.supervisord.take() {
            let workers = supervisord.id().map(descendants).unwrap_or_default();
            end(supervisord).await;
            // A worker that its supervisor could not end must not outlive the demo.
            for worker in workers {
                pidfd_send_signal(worker, rustix::process::Signal::KILL).unwrap_or_default();
            }
        }
        if let Err(error) = self.directory.close() {
            report::note(&format!("cannot remove the demo's directory: {error}"));
        }
    }

    /// A program of the stage: a clean environment, and a group of its own, so that Ctrl-C reaches only us.
    fn program(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", &self.root).env("LANG", "C.UTF-8");
        command.current_dir(&self.root).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        command
    }
}

fn show(arguments: &[&str], unseen: &[&str]) {
    let more = if unseen.is_empty() { "" } else { " …" };
    report::answer(&format!("   {}\n", style::quiet(&format!("$ unstale {}{more}", arguments.join(" ")))));
}

/// Asks a part to end, and kills it when it does not.
async fn end(mut part: Child) {
    let pid = part.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid {
        // It has not been waited for: its number is still its own.
        kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).unwrap_or_default();
    }
    if tokio::time::timeout(END_TIMEOUT, part.wait()).await.is_err() {
        part.kill().await.unwrap_or_default();
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
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn the_edit_keeps_size_and_time() {
        let stage = Stage::set(PathBuf::from("/venv")).unwrap();
        let path = stage.directory().join("app/enums.py");
        let before = fs::metadata(&path).unwrap();
        stage.flip().unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(
            (before.size(), before.mtime(), before.mtime_nsec()),
            (after.size(), after.mtime(), after.mtime_nsec())
        );
        assert!(fs::read_to_string(&path).unwrap().contains("HUBSPOT = \"hubspot\""));
    }

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent("12 (a) b) S 7 12 12 0"), Some(7));
        assert_eq!(parent("nonsense"), None);
    }
}
