//! Whether a process has run since it was read: what has not run holds what it held.
//!
//! The kernel counts how often each thread was given a processor (third number of `/proc/PID/task/TID/schedstat`,
//! `sched-stats.rst`), at the moment when it gets one. Threads that were asleep before a read began, and whose counts
//! are the same later, have done nothing in between; and nobody else writes to where a Python keeps its classes.

use crate::procfs::Stat;
use std::fs;
use unstale_protocol::ids::Pid;

/// Most threads that are asked for: beyond that, comparing memory is cheaper.
const MAX_THREADS: usize = 64;

/// All threads of a process at rest, each with how often it had run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rest(Vec<(u32, u64)>);

impl Rest {
    /// Returns how a process rests; `None` where a thread runs or may run at once, where there are many, or where the
    /// kernel does not count.
    pub(crate) fn of(pid: Pid) -> Option<Self> {
        let mut threads = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
            let entry = entry.ok()?;
            if threads.len() == MAX_THREADS {
                return None;
            }
            let directory = entry.path();
            // The count first: a thread that runs between the two is either seen to run, or counts more next time.
            let times = times(&fs::read_to_string(directory.join("schedstat")).ok()?)?;
            if is_running(&fs::read(directory.join("stat")).ok()?) {
                return None;
            }
            threads.push((entry.file_name().to_str()?.parse().ok()?, times));
        }
        threads.sort_unstable();
        Some(Self(threads)).filter(|rest| !rest.0.is_empty())
    }
}

/// Reads how often a thread has run; a kernel that does not count says 0.
fn times(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().nth(2)?.parse().ok().filter(|times| *times > 0)
}

/// Tells whether the state in `/proc/PID/task/TID/stat`, proc(5), is "running"; a thread that cannot be told is.
fn is_running(stat: &[u8]) -> bool {
    Stat::parse(stat).is_none_or(|stat| stat.state == 'R')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_does_not_count_is_not_trusted() {
        assert_eq!(times("1089 20 7\n"), Some(7));
        assert_eq!(times("0 0 0\n"), None);
        assert_eq!(times("1089\n"), None);
    }

    #[test]
    fn a_program_name_cannot_pretend_to_sleep() {
        let line = |name_and_state: &str| format!("7 ({name_and_state}{}", " 1".repeat(49)).into_bytes();
        assert!(is_running(&line("a) S ) R")));
        assert!(!is_running(&line("a) R ) S")));
        assert!(is_running(b"7 (python"));
        assert!(is_running(b"7 (python)"));
    }

    #[test]
    fn whoever_asks_about_itself_does_not_rest() {
        assert_eq!(Rest::of(Pid(std::process::id())), None);
    }
}
