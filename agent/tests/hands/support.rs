//! What the tests share: scratch directories, processes that end with the test, units made from live processes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;
use unstale_agent::process::{Kind, Process, Supervisor, Unit};
use unstale_protocol::ids::{Pid, ProcessIdentity, SlotId, UnitId};
use unstale_protocol::time::Moment;

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until `condition` holds, and returns what it found.
pub(crate) async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never came true: {what}"))
}

/// A moment, for starts that are counted.
pub(crate) fn at(seconds: u64) -> Moment {
    Moment(seconds * 1000)
}

/// A directory of its own, canonical.
pub(crate) struct Scratch {
    _directory: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        Self { _directory: directory, path }
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path.join(name)).unwrap_or_default()
    }
}

/// A process and all that it starts; ended with the test.
pub(crate) struct Running {
    child: Child,
    /// Descendants that were seen, by pid, with their start: children outlive a parent that is killed.
    seen: Mutex<BTreeMap<u32, u64>>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { child, seen: Mutex::default() }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    /// Takes its exit status, which it has ended with: a zombie keeps its pid.
    pub(crate) fn reap(&mut self) {
        self.child.wait().unwrap();
    }

    fn note_descendants(&self) {
        let mut seen = self.seen.lock().unwrap();
        for pid in descendants(self.pid()) {
            if let Some(stat) = stat(pid) {
                seen.insert(pid.0, stat.start_ticks);
            }
        }
    }

    /// The processes below it that have not ended, itself left out.
    pub(crate) fn below(&self) -> Vec<Pid> {
        self.note_descendants();
        descendants(self.pid())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.note_descendants();
        signal(self.pid(), rustix::process::Signal::TERM);
        let mut patience = 100;
        while patience > 0 && self.child.try_wait().is_ok_and(|status| status.is_none()) {
            pause();
            patience -= 1;
        }
        self.note_descendants();
        drop(self.child.kill());
        drop(self.child.wait());
        for (pid, start) in self.seen.lock().unwrap().iter() {
            if stat(Pid(*pid)).is_some_and(|stat| stat.start_ticks == *start) {
                signal(Pid(*pid), rustix::process::Signal::KILL);
            }
        }
    }
}

/// A tenth of a second on the way out, where no executor runs any more.
fn pause() {
    let span = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    rustix::event::poll(&mut [], Some(&span)).ok();
}

pub(crate) fn signal(pid: Pid, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid.0).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).ok();
}

/// Fields of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    pub(crate) state: char,
    pub(crate) parent: u32,
    pub(crate) start_ticks: u64,
}

pub(crate) fn stat(pid: Pid) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Stat {
        state: fields[0].chars().next()?,
        parent: fields[1].parse().ok()?,
        start_ticks: fields[19].parse().ok()?,
    })
}

pub(crate) fn is_alive(pid: Pid) -> bool {
    stat(pid).is_some_and(|stat| stat.state != 'Z')
}

pub(crate) fn descendants(root: Pid) -> Vec<Pid> {
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(parent) = open.pop() {
        for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid) else { continue };
            if stat(pid).is_some_and(|stat| stat.parent == parent.0 && stat.state != 'Z') {
                open.push(pid);
                found.push(pid);
            }
        }
    }
    found.sort();
    found
}

fn process(pid: Pid, kind: Kind) -> Option<Process> {
    let stat = stat(pid)?;
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let caught =
        read("status")?.lines().find_map(|line| line.strip_prefix("SigCgt:").map(str::trim).map(str::to_owned));
    let command: Vec<String> = read("cmdline")?.split_terminator('\0').map(str::to_owned).collect();
    let environment = read("environ").unwrap_or_default();
    let environment = environment.split('\0').filter_map(|pair| pair.split_once('='));
    let kept = environment.filter(|(name, _)| *name == "REMAP_SIGTERM");
    let titled = command.first().is_some_and(|word| word.starts_with("[celeryd:") || word.starts_with("gunicorn: "));
    Some(Process {
        identity: ProcessIdentity { pid, start_ticks: stat.start_ticks, pid_namespace: 0 },
        parent: Pid(stat.parent),
        uid: 0,
        user: "root".to_owned(),
        started_at_ms: 0,
        command,
        kind,
        titled,
        has_terminal: false,
        cgroup: String::new(),
        mount_namespace: 0,
        caught_signals: u64::from_str_radix(&caught?, 16).ok()?,
        cwd: None,
        environment: kept.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        denied: None,
    })
}

/// Makes a unit of the live process `root` and everything below it.
pub(crate) fn unit(root: Pid, kind: Kind, supervisor: Supervisor) -> Unit {
    let pids = std::iter::once(root).chain(descendants(root));
    let processes: Vec<Process> = pids.filter_map(|pid| process(pid, kind)).collect();
    assert_eq!(processes.first().map(|process| process.identity.pid), Some(root), "the root is gone");
    Unit {
        id: UnitId::new(format!("{kind}:{root}")).unwrap(),
        slot: SlotId::new(format!("{kind}/test/{root}")).unwrap(),
        service: "test".to_owned(),
        kind,
        supervisor,
        processes,
    }
}

/// Waits until `root` catches `TERM`: before that it is not up.
pub(crate) async fn catches_term(root: Pid) {
    eventually("the process catches TERM", async || {
        let process = process(root, Kind::Python)?;
        (process.caught_signals >> 14 & 1 == 1).then_some(())
    })
    .await;
}

/// The virtual environment of tests/requirements/NAME.txt.
pub(crate) fn venv(name: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests");
    let mut command = Command::new(tests.join("venv"));
    command.args(["python3", name]).stderr(Stdio::inherit());
    let output = command.output().unwrap();
    assert!(output.status.success(), "tests/venv cannot make {name}");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}
