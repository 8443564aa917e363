//! What the kernel says of processes: CPU time, memory; and this one's limit of open files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::VecDeque;
use std::fs;
use std::time::{Duration, Instant};

/// Ticks of a second in `/proc/PID/stat`: proc(5), `sysconf(_SC_CLK_TCK)`, 100 on every Linux that Rust knows.
const TICKS: f64 = 100.0;

/// Lets this process and what it starts open as many files as the system allows.
pub(crate) fn raise_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// CPU time that a process has used with all its threads, in seconds: fields 14 and 15 of `/proc/PID/stat`, proc(5).
pub(crate) fn cpu(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    [fields[11], fields[12]].iter().map(|field| field.parse::<f64>().unwrap() / TICKS).sum()
}

/// Anonymous memory of a process and those that it has started, in megabytes: `/proc/PID/status`, proc(5).
pub(crate) fn anonymous(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("RssAnon:")).unwrap_or_default();
    let own: f64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0.0);
    let mut sum = own * 1.024 / 1_000.0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        sum += children.split_whitespace().map(|child| anonymous(child.parse().unwrap())).sum::<f64>();
    }
    sum
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
pub(crate) fn clock() -> Instant {
    Instant::now()
}

pub(crate) async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// Waits until a process has had next to nothing to do for a second; returns when that second began.
pub(crate) async fn rests(pid: u32) -> Instant {
    /// What leases and timers cost meanwhile.
    const NOTHING: f64 = 2.5 / TICKS;
    let mut seen = VecDeque::new();
    loop {
        seen.push_back((clock(), cpu(pid)));
        let (since, before) = seen[0];
        if since.elapsed() >= Duration::from_secs(1) {
            if cpu(pid) - before < NOTHING {
                return since;
            }
            seen.pop_front();
        }
        pause(20).await;
    }
}
