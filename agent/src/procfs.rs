//! What `/proc` says about one process: parsed from bytes that the process partly wrote itself.
//!
//! Sources: proc(5) of man-pages 6. Reading happens in the reader (and, for what anybody may read, in
//! `discover`); nothing here decides what a process is.

mod parse;

pub(crate) use parse::{Stat, Status};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use unstale_protocol::ids::{Pid, ProcessIdentity};

/// Most bytes of a command line that are looked at.
const COMMAND_MAX_BYTES: u64 = 64 << 10;
/// Most arguments of a command line that are kept.
const ARGUMENTS_MAX: usize = 512;
/// Most bytes of an environment that are looked at.
const ENVIRONMENT_MAX_BYTES: u64 = 1 << 20;
/// Longest value of an environment variable that is kept, in bytes.
const VALUE_MAX_BYTES: usize = 4096;
/// Most bytes of `/proc/PID/stat`: 52 numbers and a name of at most 63 bytes.
const STAT_MAX_BYTES: usize = 2048;
/// Most bytes of any other file of `/proc`; `maps` of a large process has some thousand lines.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// Environment variables that are kept; `SUPERVISOR_` is a prefix.
const VARIABLES: [&str; 12] = [
    "PWD",
    "UNSTALE_APP",
    "REMAP_SIGTERM",
    "PYTHONPATH",
    "PYTHONPYCACHEPREFIX",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONOPTIMIZE",
    "CELERY_APP",
    "DJANGO_SETTINGS_MODULE",
    "HONCHO_PROCESS_NAME",
    "INVOCATION_ID",
    "KUBERNETES_SERVICE_HOST",
];

/// Longest `/proc/PID/maps` that is searched for addresses, in bytes.
pub(crate) const MAPS_MAX_BYTES: u64 = 32 << 20;

/// Why something of `/proc` could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The process has ended, or its pid belongs to another one now.
    #[error("process {0} has ended")]
    Gone(Pid),
    /// The kernel refused.
    #[error("/proc/{pid}/{name}: {why}")]
    Refused {
        /// Whose.
        pid: Pid,
        /// Which file.
        name: &'static str,
        /// What the kernel said.
        why: rustix::io::Errno,
    },
    /// The file does not look as proc(5) says.
    #[error("/proc/{pid}/{name} is not in the known form")]
    Form {
        /// Whose.
        pid: Pid,
        /// Which file.
        name: &'static str,
    },
}

/// Whether a process runs Python, as far as `/proc` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpreter {
    /// Its program is a Python, or it has a Python library mapped.
    Yes,
    /// Neither.
    No,
    /// Program and maps cannot be read.
    Unreadable,
}

/// What is known of one process without reading its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Who it is.
    pub identity: ProcessIdentity,
    /// Its parent.
    pub parent: Pid,
    /// Its name as the kernel keeps it, at most 15 bytes.
    pub comm: String,
    /// Real user id.
    pub uid: u32,
    /// When it started, in milliseconds since the Unix epoch.
    pub started_at_ms: u64,
    /// Its command line.
    pub command: Vec<String>,
    /// Whether it has a controlling terminal.
    pub has_terminal: bool,
    /// Its cgroup path.
    pub cgroup: String,
    /// Inode of its mount namespace; 0 where it cannot be read.
    pub mount_namespace: u64,
    /// Its pid in its own pid namespace.
    pub inner_pid: Pid,
    /// Signals with a handler.
    pub caught_signals: u64,
    /// Program, as the target sees it; `None` where it cannot be read.
    pub exe: Option<String>,
    /// Working directory, as the target sees it; `None` where it cannot be read.
    pub cwd: Option<String>,
    /// Its root directory is not ours.
    pub other_root: bool,
    /// The environment variables that matter here.
    pub environment: Vec<(String, String)>,
    /// Whether its environment was overwritten with zeros, as titles do.
    pub blank_environment: bool,
    /// Address where its stack begins: equal in processes that were forked and did not execute anything since.
    /// 0 where it cannot be read.
    pub stack_start: u64,
    /// Whether it runs Python.
    pub python: Interpreter,
    /// Configuration file of a supervisord that was started without `-c`, found in its places.
    pub supervisord_config: Option<String>,
    /// Why details are missing.
    pub denied: Option<String>,
}

/// Lists the numbers of all processes.
///
/// # Errors
/// What the kernel says of `/proc`.
pub(crate) fn pids() -> std::io::Result<BTreeSet<Pid>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
    // On the stack: this is what an idle agent does every two seconds.
    let mut room = [std::mem::MaybeUninit::uninit(); 4096];
    let mut entries = rustix::fs::RawDir::new(&proc, &mut room);
    let mut pids = BTreeSet::new();
    while let Some(entry) = entries.next() {
        pids.extend(entry?.file_name().to_str().ok().and_then(|name| name.parse().ok()).map(Pid));
    }
    Ok(pids)
}

/// Reads `/proc/PID/stat`, which anybody may.
///
/// # Errors
/// [`Error`] where the process is gone or the line is not in the known form.
pub(crate) fn stat(pid: Pid) -> Result<Stat, Error> {
    let fail = |error| refused(pid, "stat", error);
    let file = open(pid, "stat")?;
    // One line, which the kernel gives as a whole; an idle agent reads little else.
    let mut line = [0; STAT_MAX_BYTES];
    let length = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut line)).map_err(fail)?;
    Stat::parse(line.get(..length).unwrap_or_default()).ok_or(Error::Form { pid, name: "stat" })
}

/// Reads `/proc/PID/status`, which anybody may.
///
/// # Errors
/// [`Error`] where the process is gone or a line is missing.
pub(crate) fn status(pid: Pid) -> Result<Status, Error> {
    let bytes = read(pid, "status", FILE_MAX_BYTES)?;
    Status::parse(&bytes).ok_or(Error::Form { pid, name: "status" })
}

/// Reads the command line, which anybody may: arguments in order, text that is not UTF-8 replaced.
///
/// # Errors
/// [`Error`] where the process is gone.
pub(crate) fn command(pid: Pid) -> Result<Vec<String>, Error> {
    Ok(parse::command(&read(pid, "cmdline", COMMAND_MAX_BYTES)?, ARGUMENTS_MAX))
}

/// Tells who the process `pid` is now.
///
/// # Errors
/// [`Error::Gone`] where there is none.
pub fn identity(pid: Pid) -> Result<ProcessIdentity, Error> {
    Ok(ProcessIdentity { pid, start_ticks: stat(pid)?.start_ticks, pid_namespace: namespace(pid, "ns/pid") })
}

/// Returns the inode of a namespace of the process, 0 where it cannot be read.
pub(crate) fn namespace(pid: Pid, name: &'static str) -> u64 {
    link(pid, name).ok().and_then(|text| parse::namespace(&text)).unwrap_or(0)
}

/// Returns the variables of the environment that matter here, and whether it was overwritten with zeros.
///
/// # Errors
/// [`Error`] where it cannot be read.
pub(crate) fn environment(pid: Pid) -> Result<(Vec<(String, String)>, bool), Error> {
    let bytes = read(pid, "environ", ENVIRONMENT_MAX_BYTES)?;
    let blank = !bytes.is_empty() && bytes.iter().all(|byte| *byte == 0);
    let kept = |name: &str| VARIABLES.contains(&name) || name.starts_with("SUPERVISOR_");
    Ok((parse::environment(&bytes, VALUE_MAX_BYTES, kept), blank))
}

/// Returns a link of `/proc/PID` as text, without the mark of a deleted file.
pub(crate) fn link(pid: Pid, name: &'static str) -> Result<String, Error> {
    let path = format!("/proc/{pid}/{name}");
    let target = rustix::fs::readlink(&path, Vec::new()).map_err(|error| refused(pid, name, error))?;
    let text = String::from_utf8_lossy(std::ffi::OsStr::from_bytes(target.as_bytes()).as_bytes()).into_owned();
    Ok(text.strip_suffix(" (deleted)").map_or(text.clone(), str::to_owned))
}

/// Returns the cgroup path of a process; empty where it cannot be read.
pub(crate) fn cgroup(pid: Pid) -> String {
    parse::cgroup(&read(pid, "cgroup", FILE_MAX_BYTES).unwrap_or_default())
}

/// Reads a file of `/proc/PID`, at most `limit` bytes of it.
pub(crate) fn read(pid: Pid, name: &'static str, limit: u64) -> Result<Vec<u8>, Error> {
    use std::io::Read;
    let fail = |error| refused(pid, name, error);
    let file = open(pid, name)?;
    // Room at once for what most of these files hold: growing into it costs a call a step.
    let mut bytes = Vec::with_capacity(4096);
    std::fs::File::from(file)
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| fail(rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)))?;
    Ok(bytes)
}

fn open(pid: Pid, name: &'static str) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(format!("/proc/{pid}/{name}"), flags, Mode::empty()).map_err(|error| refused(pid, name, error))
}

fn refused(pid: Pid, name: &'static str, error: rustix::io::Errno) -> Error {
    match error {
        rustix::io::Errno::NOENT | rustix::io::Errno::SRCH => Error::Gone(pid),
        _ => Error::Refused { pid, name, why: error },
    }
}

/// Reads everything that is known of `pid` without its memory; `boot_at_ms` is when the host was started.
///
/// # Errors
/// [`Error::Gone`] where the process ended meanwhile, and whatever refuses what anybody may read.
pub(crate) fn facts(pid: Pid, boot_at_ms: u64) -> Result<Facts, Error> {
    let stat_before = stat(pid)?;
    let status = status(pid)?;
    let command = command(pid)?;
    let root = link(pid, "root");
    let denied = match &root {
        Err(Error::Gone(_)) | Ok(_) => None,
        Err(_) => Some(crate::memory::denial::explain(pid)),
    };
    let root = root.unwrap_or_else(|_| "/".to_owned());
    let inside = |path: String| parse::inside(&root, &path);
    let exe = link(pid, "exe").ok().map(inside);
    let cwd = link(pid, "cwd").ok().map(inside);
    let (environment, blank_environment) = environment(pid).unwrap_or_default();
    let python = interpreter(pid, exe.as_deref(), &command);
    let facts = Facts {
        identity: ProcessIdentity {
            pid,
            start_ticks: stat_before.start_ticks,
            pid_namespace: namespace(pid, "ns/pid"),
        },
        parent: stat_before.parent,
        comm: stat_before.comm,
        uid: status.uid,
        started_at_ms: boot_at_ms.saturating_add(ticks_to_ms(stat_before.start_ticks)),
        has_terminal: stat_before.has_terminal,
        cgroup: cgroup(pid),
        mount_namespace: namespace(pid, "ns/mnt"),
        inner_pid: Pid(status.inner_pid),
        caught_signals: status.caught_signals,
        other_root: root != "/",
        supervisord_config: None,
        stack_start: stat_before.stack_start,
        command,
        exe,
        cwd,
        environment,
        blank_environment,
        python,
        denied,
    };
    // All of it must be of one process: a pid may have been used again between two files.
    if stat(pid)?.start_ticks == facts.identity.start_ticks { Ok(facts) } else { Err(Error::Gone(pid)) }
}

/// Returns when the host was started, in milliseconds since the Unix epoch; 0 where the kernel does not say.
pub fn boot_at_ms() -> u64 {
    std::fs::read("/proc/stat").ok().and_then(|bytes| parse::boot_time(&bytes)).unwrap_or(0).saturating_mul(1000)
}

/// Turns clock ticks since boot into milliseconds.
pub(crate) fn ticks_to_ms(ticks: u64) -> u64 {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    (ticks / per_second).saturating_mul(1000).saturating_add((ticks % per_second).saturating_mul(1000) / per_second)
}

fn interpreter(pid: Pid, exe: Option<&str>, command: &[String]) -> Interpreter {
    if exe.is_some_and(is_python_program) {
        return Interpreter::Yes;
    }
    match read(pid, "maps", FILE_MAX_BYTES) {
        // A kernel thread has no maps and no program.
        Ok(maps) if maps.is_empty() => Interpreter::No,
        Ok(maps) if parse::maps_python(&maps) => Interpreter::Yes,
        Ok(_) if exe.is_some() => Interpreter::No,
        // Without rights the command line is all there is.
        _ if command.first().is_some_and(|program| is_python_program(program)) => Interpreter::Yes,
        _ => Interpreter::Unreadable,
    }
}

/// Tells whether a program's file name is that of an interpreter: `python3.11`, `pypy3`, `uwsgi`.
pub(crate) fn is_python_program(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let versioned = |stem: &str| {
        name.strip_prefix(stem)
            .is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 't' | 'd' | 'm' | '-')))
    };
    versioned("python")
        || versioned("pypy")
        || name == "uwsgi"
        || name.starts_with("uwsgi-")
        || name.starts_with("uwsgi_python")
}
