//! A real systemd in namespaces of its own, as pid 1 or as a user's instance. Needs root.

use crate::harness::app::{App, Place};
use crate::harness::process::{Running, children, command as plain_command};
use crate::harness::python::{interpreters, run, tests_dir};
use crate::harness::unstale::program;
use crate::harness::wait::{eventually, eventually_some};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which kind of instance runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instance {
    /// Pid 1 of a pid namespace: numbers inside differ from those outside.
    System,
    /// `systemd --user` of the caller.
    User,
}

/// The manager, and the directory that both sides see.
#[derive(Debug)]
pub(crate) struct Systemd {
    process: Option<Running>,
    instance: Instance,
    manager: u32,
    dir: PathBuf,
}

impl Systemd {
    /// Boots it with units that run command lines of an app, and waits until it answers.
    pub(crate) fn start(place: &Place, instance: Instance) -> Self {
        assert!(rustix::process::geteuid().is_root(), "systemd in namespaces needs root: run tests/run");
        let dir = place.path();
        let mut command = Command::new(tests_dir().join("systemd"));
        command.arg(if instance == Instance::System { "system" } else { "user" }).arg(&dir);
        command.env("UNSTALE_SYSTEMD_BINDS", binds());
        let process = Running::start(&mut command, &place.join("systemd.log"));
        let manager = eventually_some("systemd starts", 20, || {
            let started = children(process.pid());
            started
                .iter()
                .copied()
                .find(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "systemd\n"))
                .ok_or_else(|| format!("children {started:?}; log: {}", process.log()))
        });
        let this = Self { process: Some(process), instance, manager, dir };
        eventually_some("systemd answers", 20, || {
            let mut command = this.command(Path::new("systemctl"));
            this.scope(&mut command).arg("list-units");
            let output = command.output().map_err(|error| error.to_string())?;
            if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
        });
        this
    }

    /// A command inside: with its mounts, and with its pids where it is pid 1.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = plain_command("nsenter");
        command.arg("--target").arg(self.manager.to_string()).arg("--mount");
        if self.instance == Instance::System {
            command.args(["--pid", "--cgroup", "--uts", "--ipc", "--root", "--wd=/"]);
        }
        command.arg("--").arg(program);
        if self.instance == Instance::User {
            let runtime = format!("/run/user/{}", rustix::process::geteuid().as_raw());
            command.env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={runtime}/bus"));
            command.env("XDG_RUNTIME_DIR", runtime);
        }
        command
    }

    /// The program under test, inside.
    pub(crate) fn unstale(&self) -> Command {
        let mut command = self.command(Path::new(program().get_program()));
        command.env("NO_COLOR", "1");
        command
    }

    /// Runs `systemctl`, which must succeed.
    pub(crate) fn control(&self, arguments: &[&str]) -> String {
        let mut command = self.command(Path::new("systemctl"));
        self.scope(&mut command).args(arguments);
        run(command)
    }

    /// Writes a service that runs a command line of an app, reloads, starts it, and returns its main pid as seen inside.
    pub(crate) fn service(&self, name: &str, app: &App, command_line: &[String], options: &[&str]) -> u32 {
        let environment: Vec<String> =
            app.environment().iter().map(|(name, value)| format!("Environment={name}={value}")).collect();
        let text = format!(
            "[Service]\nType=exec\nWorkingDirectory={}\n{}\nExecStart={}\nStandardOutput=append:{log}\n\
             StandardError=append:{log}\n{}\n",
            app.code.display(),
            environment.join("\n"),
            command_line.join(" "),
            options.join("\n"),
            log = self.dir.join(format!("{name}.log")).display(),
        );
        fs::write(self.dir.join("units").join(name), text).expect("a unit file");
        self.control(&["daemon-reload"]);
        self.control(&["start", name]);
        self.main_pid(name)
    }

    /// What a service has printed.
    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(format!("{name}.log"))).unwrap_or_default()
    }

    /// Waits until a service has printed `text` this many times.
    pub(crate) fn wait_for_log(&self, name: &str, text: &str, count: usize) {
        eventually(
            &format!("{name} prints {text:?} {count} times"),
            40,
            || self.log(name),
            |log| log.matches(text).count() >= count,
        );
    }

    /// The main pid of a service, as seen inside; 0 where it does not run.
    pub(crate) fn main_pid(&self, name: &str) -> u32 {
        self.control(&["show", "--property=MainPID", "--value", name]).trim().parse().expect("a number")
    }

    fn scope<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if self.instance == Instance::User { command.arg("--user") } else { command }
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        drop(self.process.take());
        let Ok(cgroup) = fs::read_to_string(self.dir.join("cgroup")) else { return };
        let cgroup = PathBuf::from(cgroup.trim_end());
        // The kernel empties it a moment after the last process was reaped.
        let left = || {
            remove_cgroups(&cgroup);
            cgroup.exists()
        };
        if std::thread::panicking() {
            left();
        } else {
            eventually("the cgroup is empty", 10, left, |left| !left);
        }
    }
}

/// Directories that have to be shown inside, should they be file systems of their own.
fn binds() -> String {
    let mut shown = vec![PathBuf::from(program().get_program())];
    shown.extend(interpreters().into_iter().map(|python| python.path));
    let mut folders: Vec<String> = shown
        .iter()
        .filter_map(|path| path.parent()?.parent())
        .filter(|folder| is_mount_below_root(folder))
        .map(|folder| folder.display().to_string())
        .collect();
    folders.sort();
    folders.dedup();
    folders.join(" ")
}

fn is_mount_below_root(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).map(|data| data.dev()).ok();
    device(folder) != device(Path::new("/"))
}

fn remove_cgroups(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    drop(fs::remove_dir(cgroup));
}
