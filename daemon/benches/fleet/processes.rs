//! What the kernel says of processes: CPU time, memory; and this one's limit of open files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::VecDeque;
use std::fs;
use std::time::{Duration, Instant};

/// Lets this process and what it starts open as many files as the system allows.
pub(crate) fn raise_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// CPU time that a process has used with all its threads, in seconds: the first word of `/proc/PID/task/*/schedstat`,
/// in nanoseconds. The ticks of `/proc/PID/stat` are samples, and too coarse for what takes a few of them.
pub(crate) fn cpu(pid: u32) -> f64 {
    let of_thread = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
    };
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().map(of_thread).sum()
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
    /// What leases and timers cost meanwhile, in seconds.
    const NOTHING: f64 = 0.025;
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
