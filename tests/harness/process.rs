//! Child processes that stop with their owner, and questions about processes.
//!
//! A stop freezes the whole tree below the child first, so that no supervisor brings anything back
//! while the tree is taken down. Signals go through pidfds, never to a bare number.

use crate::harness::wait::{eventually, eventually_some};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A process that a test started. Its standard output and error go to a file.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts `command` with both outputs in `log` and no input.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let output = File::options().create(true).append(true).open(log).expect("log file");
        let errors = output.try_clone().expect("log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { child, log: log.to_owned() }
    }

    /// The process's number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has printed `text`.
    pub(crate) fn wait_for_log(&self, text: &str, seconds: u64) {
        eventually(&format!("pid {} prints {text:?}", self.pid()), seconds, || self.log(), |log| log.contains(text));
    }

    /// Sends a signal to this one process.
    pub(crate) fn signal(&self, signal: Signal) {
        signal_pid(self.pid(), signal);
    }

    /// Waits for its end and returns its exit code (128 + the signal's number where a signal ended it).
    pub(crate) fn wait(&mut self, seconds: u64) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let status = eventually_some(&format!("pid {} ends", self.pid()), seconds, || {
            self.child.try_wait().expect("own child").ok_or_else(|| fs::read_to_string(&self.log).unwrap_or_default())
        });
        status.code().or_else(|| status.signal().map(|signal| 128 + signal)).expect("ended")
    }

    /// Tells whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("own child").is_some()
    }
}

/// A command without what in the tests' own environment would change how Python or the program under test behaves.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["PYTHON", "UNSTALE_", "SUPERVISOR_"].iter().any(|prefix| text.starts_with(prefix)) || text == "DATABASE_URL"
        {
            command.env_remove(&name);
        }
    }
    command
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            kill_tree(self.child.id());
        }
        drop(self.child.wait());
    }
}

/// Sends a signal to one process, which must be there.
pub(crate) fn signal_pid(pid: u32, signal: Signal) {
    let handle = open(pid).unwrap_or_else(|| panic!("pid {pid} is gone"));
    pidfd_send_signal(handle, signal).unwrap_or_else(|error| panic!("signal {signal:?} to {pid}: {error}"));
}

/// Kills a process and everything below it.
pub(crate) fn kill_tree(root: u32) {
    let mut frozen: BTreeMap<u32, OwnedFd> = BTreeMap::new();
    loop {
        let new: Vec<u32> = tree(root).into_iter().filter(|pid| !frozen.contains_key(pid)).collect();
        if new.is_empty() {
            break;
        }
        for pid in new {
            if let Some(handle) = open(pid) {
                hit(&handle, Signal::STOP);
                frozen.insert(pid, handle);
            }
        }
    }
    for handle in frozen.values() {
        hit(handle, Signal::KILL);
    }
}

/// A process and its descendants, parents first.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in all() {
        if let Some(stat) = stat(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut tree = Vec::new();
    let mut next = vec![root];
    while let Some(pid) = next.pop() {
        if stat(pid).is_some_and(|stat| stat.state != 'Z') {
            tree.push(pid);
            next.extend(children.remove(&pid).unwrap_or_default());
        }
    }
    tree
}

/// The direct children of a process that run (no zombies), lowest number first.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    all().into_iter().filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == parent && stat.state != 'Z')).collect()
}

/// Tells whether a process runs (a zombie does not).
pub(crate) fn is_running(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.state != 'Z')
}

/// A few fields of `/proc/PID/stat` (proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// Field 3.
    pub(crate) state: char,
    /// Field 4.
    pub(crate) parent: u32,
    /// Field 22, in clock ticks since boot.
    pub(crate) start: u64,
}

/// Reads `/proc/PID/stat`; `None` where there is no such process.
pub(crate) fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    // The name stands in parentheses and may hold both spaces and parentheses.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
    })
}

/// Forced and own context switches of a process so far, from `/proc/PID/status`.
pub(crate) fn forced_switches(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process that runs");
    let line = status.lines().find(|line| line.starts_with("nonvoluntary_ctxt_switches:")).expect("its switches");
    line.rsplit(char::is_whitespace).next().and_then(|number| number.parse().ok()).expect("a number")
}

/// Every process, lowest number first.
pub(crate) fn all() -> Vec<u32> {
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

fn hit(handle: &OwnedFd, signal: Signal) {
    // The only refusal is that the process is gone, which is what is wanted.
    pidfd_send_signal(handle, signal).unwrap_or_default();
}

fn open(pid: u32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()
}
