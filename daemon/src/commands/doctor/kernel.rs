//! What the kernel can do, tried out, and its limits.

use super::{Finding, read};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::process::PidfdFlags;
use std::io::IoSliceMut;

/// Directories that a busy host may have to watch: sources of a few apps with their packages.
const WATCHES_WANTED: u64 = 16_384;
const INSTANCES_WANTED: u64 = 128;

pub(super) fn look() -> Vec<Finding> {
    let number = |path: &str| read(path).and_then(|text| text.parse().ok());
    vec![
        pidfd(),
        openat2(),
        memory(),
        limit("fs.inotify.max_user_watches", number("/proc/sys/fs/inotify/max_user_watches"), WATCHES_WANTED),
        limit("fs.inotify.max_user_instances", number("/proc/sys/fs/inotify/max_user_instances"), INSTANCES_WANTED),
        clock(read("/sys/devices/system/clocksource/clocksource0/current_clocksource").as_deref()),
    ]
}

fn tried<T>(what: &'static str, result: &rustix::io::Result<T>, since: &str) -> Finding {
    match result {
        Ok(_) => Finding::good(what, "works"),
        Err(error) => Finding::missing(
            what,
            format!("does not work: {error}"),
            format!("needs Linux {since} or later, and a seccomp profile that allows it"),
        ),
    }
}

fn pidfd() -> Finding {
    let own = rustix::process::getpid();
    tried(
        "pidfd_open (signals that hit the right process)",
        &rustix::process::pidfd_open(own, PidfdFlags::empty()),
        "5.3",
    )
}

fn openat2() -> Finding {
    let opened =
        rustix::fs::openat2(CWD, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    tried("openat2 (files of a worker, seen from its root)", &opened, "5.6")
}

/// Reads a word of this process as the reader reads workers: where a seccomp profile forbids the call, it does so for
/// every target.
fn memory() -> Finding {
    const WHAT: &str = "process_vm_readv (memory without a pause)";
    let (word, mut copy) = (*b"unstale!", [0; 8]);
    let remote = RemoteIoVec { base: word.as_ptr().addr(), len: word.len() };
    match process_vm_readv(nix::unistd::getpid(), &mut [IoSliceMut::new(&mut copy)], &[remote]) {
        Ok(8) if copy == word => Finding::good(WHAT, "works"),
        Ok(read) => Finding::missing(WHAT, format!("read {read} bytes of 8"), "please report this kernel"),
        Err(error) => Finding::missing(
            WHAT,
            format!("does not work: {error}"),
            "allow it in the seccomp profile of the container or unit",
        ),
    }
}

/// inotify(7).
fn limit(what: &'static str, found: Option<u64>, wanted: u64) -> Finding {
    match found {
        Some(found) if found >= wanted => Finding::good(what, found.to_string()),
        Some(found) => Finding::note(
            what,
            format!("{found}: large source trees may not be watched whole; they are then looked at every minute"),
            format!("`sysctl {what}={wanted}`, and the same line in /etc/sysctl.d"),
        ),
        None => Finding::note(what, "cannot be read", "changes of files are then found by looking every minute"),
    }
}

fn clock(source: Option<&str>) -> Finding {
    const WHAT: &str = "clock";
    match source {
        Some(source @ ("jiffies" | "refined-jiffies")) => Finding::note(
            WHAT,
            format!("the clock source `{source}` is coarse: waits may be off by milliseconds"),
            "nothing depends on it",
        ),
        Some(source) => Finding::good(WHAT, format!("monotonic, source {source}")),
        None => Finding::good(WHAT, "monotonic"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Standing;
    use super::*;

    #[test]
    fn limits_below_what_is_wanted_are_noted() {
        assert_eq!(limit("x", Some(8_192), 16_384).standing, Standing::Note);
        assert_eq!(limit("x", Some(16_384), 16_384).standing, Standing::Good);
        assert_eq!(limit("x", None, 1).standing, Standing::Note);
    }

    #[test]
    fn this_kernel_can_do_what_is_needed() {
        let standings = [pidfd(), openat2(), memory()].map(|finding| finding.standing);
        assert_eq!(standings, [Standing::Good; 3]);
    }
}
