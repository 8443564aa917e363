//! The few lines of procfs that hands need at the moment of acting: start times, parents, open pipes.

use crate::procfs::{self, Stat};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use unstale_protocol::ids::{Pid, ProcessIdentity};

/// Reads the state of `pid`; `None` where it is gone.
pub(crate) fn stat(pid: Pid) -> Option<Stat> {
    procfs::stat(pid).ok()
}

/// Tells whether `identity` is still that process, and has not ended.
pub(crate) fn is_alive(identity: &ProcessIdentity) -> bool {
    stat(identity.pid).is_some_and(|stat| stat.start_ticks == identity.start_ticks && !stat.is_dead())
}

/// Identifies the process that has `pid` now.
pub(crate) fn identify(pid: Pid) -> Option<ProcessIdentity> {
    Some(ProcessIdentity { pid, start_ticks: stat(pid)?.start_ticks, pid_namespace: 0 })
}

/// Returns the signals that `identity` has handlers for, bit 0 for signal 1: `SigCgt` of `/proc/PID/status`, proc(5).
/// `None` where it is gone or another process has its pid.
pub(crate) fn caught(identity: &ProcessIdentity) -> Option<u64> {
    let status = procfs::status(identity.pid).ok()?;
    is_alive(identity).then_some(status.caught_signals)
}

/// Returns how long ago a process started: `/proc/uptime`, proc(5), against its start time. Both count from the boot.
pub(crate) fn age(identity: &ProcessIdentity) -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    let uptime = Duration::try_from_secs_f64(uptime).ok()?;
    let per_second = rustix::param::clock_ticks_per_second();
    let millis = identity.start_ticks.checked_mul(1_000)?.checked_div(per_second)?;
    uptime.checked_sub(Duration::from_millis(millis)).or(Some(Duration::ZERO))
}

/// Returns `pid` and its ancestors, nearest first.
pub(crate) fn chain(pid: Pid) -> Vec<Pid> {
    let mut chain = vec![pid];
    let mut at = pid;
    // Parents change while we look; a bound instead of trust in the tree.
    while let Some(stat) = stat(at) {
        if stat.parent.0 == 0 || chain.len() >= 64 {
            break;
        }
        at = stat.parent;
        chain.push(at);
    }
    chain
}

/// Returns all descendants of `root`.
pub(crate) fn descendants(root: Pid) -> Vec<ProcessIdentity> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut children: BTreeMap<Pid, Vec<ProcessIdentity>> = BTreeMap::new();
    for entry in entries.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid) else { continue };
        if let Some(stat) = stat(pid) {
            let identity = ProcessIdentity { pid, start_ticks: stat.start_ticks, pid_namespace: 0 };
            children.entry(stat.parent).or_default().push(identity);
        }
    }
    let mut found = Vec::new();
    let mut open = vec![root];
    let mut seen = BTreeSet::new();
    while let Some(pid) = open.pop() {
        if !seen.insert(pid) {
            continue;
        }
        for child in children.remove(&pid).unwrap_or_default() {
            open.push(child.pid);
            found.push(child);
        }
    }
    found
}

/// Returns the processes of the service `name` of which `main` is one: those of its cgroup and below it. None where its
/// cgroup does not tell.
pub(crate) fn of_service(main: Pid, name: &str) -> Vec<Pid> {
    let path = procfs::cgroup(main);
    let mut parts: Vec<&str> = path.split('/').collect();
    let Some(at) = parts.iter().rposition(|part| *part == name) else { return Vec::new() };
    parts.truncate(at + 1);
    let service = parts.join("/");
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(Result::ok).filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid);
    let is_of_it = |pid: &Pid| {
        let path = procfs::cgroup(*pid);
        path.strip_prefix(&service).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    pids.filter(is_of_it).collect()
}

/// Returns what the executable link of `pid` says.
pub(crate) fn executable(pid: Pid) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// The system call that a process is blocked in: `/proc/PID/syscall`, proc(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// It runs, or is not in a system call.
    Running,
    /// Number and first three arguments.
    Blocked { number: u64, arguments: [u64; 3] },
}

/// Reads the system call of `pid`; `None` where it may not be seen.
pub(crate) fn call(pid: Pid) -> Option<Call> {
    parse_call(&std::fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?)
}

fn parse_call(text: &str) -> Option<Call> {
    let mut fields = text.split_ascii_whitespace();
    let first = fields.next()?;
    if first == "running" || first.starts_with('-') {
        return Some(Call::Running);
    }
    let hex = |field: Option<&str>| u64::from_str_radix(field?.strip_prefix("0x")?, 16).ok();
    let number = first.parse().ok()?;
    let arguments = [hex(fields.next())?, hex(fields.next())?, hex(fields.next())?];
    Some(Call::Blocked { number, arguments })
}

/// Returns what descriptor `fd` of `pid` is: `pipe:[4711]`.
pub(crate) fn descriptor(pid: Pid, fd: u64) -> Option<String> {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    Some(link.to_string_lossy().into_owned())
}

/// Returns the pipes that `pid` has open; `None` where they may not be seen.
pub(crate) fn pipes(pid: Pid) -> Option<BTreeSet<String>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let links = entries.filter_map(Result::ok).filter_map(|entry| std::fs::read_link(entry.path()).ok());
    Some(links.map(|link| link.to_string_lossy().into_owned()).filter(|link| link.starts_with("pipe:[")).collect())
}

/// Returns device and inode of the shared mapping that holds `address` in `pid`: `/proc/PID/maps`, proc(5).
pub(crate) fn shared_mapping(pid: Pid, address: u64) -> Option<String> {
    mappings(&maps(pid)).find(|(range, _)| range.contains(&address)).map(|(_, file)| file)
}

/// Tells whether `pid` shares the file `file`, device and inode.
pub(crate) fn has_mapping(pid: Pid, file: &str) -> bool {
    mappings(&maps(pid)).any(|(_, mapped)| mapped == file)
}

/// Reads the mappings of `pid`; nothing where they may not be seen. Their paths may hold any bytes.
fn maps(pid: Pid) -> String {
    let bytes = procfs::read(pid, "maps", procfs::MAPS_MAX_BYTES).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn mappings(maps: &str) -> impl Iterator<Item = (std::ops::Range<u64>, String)> {
    maps.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let shared = fields.next()?.ends_with('s');
        let file = format!("{} {}", fields.nth(1)?, fields.next()?);
        Some((hex(start)?..hex(end)?, file)).filter(|_| shared)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_whose_name_is_no_text_is_there_all_the_same() {
        let script = r"printf '(\377) S 1' > /proc/$$/comm; trap : USR1; echo named; read end";
        let mut command = std::process::Command::new("sh");
        let piped = std::process::Stdio::piped;
        let mut child = command.args(["-c", script]).stdin(piped()).stdout(piped()).spawn().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut String::new())
            .unwrap();
        let identity = identify(Pid(child.id())).unwrap();
        let own = Pid(std::process::id());
        assert!(is_alive(&identity) && descendants(own).contains(&identity));
        // USR1 is signal 10.
        assert_eq!(caught(&identity).unwrap() & 1 << 9, 1 << 9);
        assert_eq!(chain(identity.pid)[..2], [identity.pid, own]);
        drop(child.stdin.take());
        // Ended, and nobody has waited for it yet.
        let ended = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), ended).unwrap();
        assert!(stat(identity.pid).is_some() && !is_alive(&identity));
        child.wait().unwrap();
        assert!(!is_alive(&identity));
    }

    #[test]
    fn the_system_call_is_read() {
        let text = "0 0x7 0x7f0000000000 0x4 0x0 0x0 0x0 0x7ffe 0x7f00\n";
        let expected = Call::Blocked { number: 0, arguments: [7, 0x7f00_0000_0000, 4] };
        assert_eq!(parse_call(text), Some(expected));
        assert_eq!(parse_call("running\n"), Some(Call::Running));
        assert_eq!(parse_call("-1 0x0 0x0"), Some(Call::Running));
        assert_eq!(parse_call("0 7 8"), None);
    }

    #[test]
    fn only_shared_mappings_are_found_by_an_address_in_them() {
        let maps = "7f00-7f10 rw-p 00000000 00:00 0 \n7f10-7f20 rw-s 00000000 fe:00 99    /dev/shm/a b (deleted)\n\nx";
        let found: Vec<_> = mappings(maps).collect();
        assert_eq!(found, [(0x7f10..0x7f20, "fe:00 99".to_owned())]);
    }

    #[test]
    fn handlers_are_those_of_now_and_of_that_process_only() {
        use std::io::BufRead as _;
        use std::process::{Command, Stdio};
        let script = "read line; trap 'exit 0' TERM; echo ready; read line";
        let mut shell = Command::new("sh");
        let mut shell = shell.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let identity = identify(Pid(shell.id())).unwrap();
        let catches_term = || caught(&identity).unwrap() >> 14 & 1 == 1;
        assert!(!catches_term());
        let mut input = shell.stdin.take().unwrap();
        std::io::Write::write_all(&mut input, b"go on\n").unwrap();
        let mut ready = String::new();
        std::io::BufReader::new(shell.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
        assert!(catches_term());
        assert_eq!(caught(&ProcessIdentity { start_ticks: 1, ..identity }), None);
        drop(input);
        shell.wait().unwrap();
    }

    #[test]
    fn the_chain_of_this_process_begins_with_it() {
        let own = Pid(std::process::id());
        assert_eq!(chain(own).first(), Some(&own));
        assert!(is_alive(&identify(own).unwrap()));
        assert!(age(&identify(own).unwrap()).unwrap() < Duration::from_hours(1));
    }
}
