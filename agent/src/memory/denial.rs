//! Why the kernel refused to show memory, and what to type or set: `ptrace(2)`, "access mode checking".

use std::fs;
use std::os::unix::fs::MetadataExt;
use unstale_protocol::ids::Pid;

/// `CAP_SYS_PTRACE` in a capability set: `linux/capability.h`.
const CAP_SYS_PTRACE: u64 = 1 << 19;

/// What is known when the kernel has refused.
#[derive(Clone, Debug, Default)]
struct Situation {
    pid: u32,
    /// Own effective capabilities.
    effective: u64,
    /// Own user id.
    own_uid: u32,
    /// `/proc/self/uid_map` is not the identity.
    nested: bool,
    /// `kernel.yama.ptrace_scope`.
    yama: u32,
    /// The target's real, effective and saved user ids.
    target_uids: Vec<u32>,
    /// Owner of `/proc/PID`: root where the target is not dumpable.
    owner: u32,
    /// The target's permitted capabilities.
    target_permitted: u64,
    /// Own label of the security module.
    label: String,
}

/// Explains a refusal to people.
pub(crate) fn explain(pid: Pid) -> String {
    reason(&look(pid))
}

fn look(pid: Pid) -> Situation {
    // A process may name itself as it likes.
    let read = |path: &str| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let (own, target) = (read("/proc/self/status"), read(&format!("/proc/{pid}/status")));
    let map = read("/proc/self/uid_map");
    let identity: Vec<&str> = map.split_ascii_whitespace().collect();
    Situation {
        pid: pid.0,
        effective: capabilities(&own, "CapEff:"),
        own_uid: uids(&own).get(1).copied().unwrap_or_default(),
        nested: !identity.is_empty() && identity != ["0", "0", "4294967295"],
        yama: read("/proc/sys/kernel/yama/ptrace_scope").trim().parse().unwrap_or_default(),
        target_uids: uids(&target),
        owner: fs::metadata(format!("/proc/{pid}")).map_or(0, |metadata| metadata.uid()),
        target_permitted: capabilities(&target, "CapPrm:"),
        label: read("/proc/self/attr/current").trim_end_matches(['\0', '\n']).to_owned(),
    }
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default()
}

fn capabilities(status: &str, name: &str) -> u64 {
    u64::from_str_radix(field(status, name).trim(), 16).unwrap_or_default()
}

fn uids(status: &str) -> Vec<u32> {
    field(status, "Uid:").split_ascii_whitespace().take(3).filter_map(|uid| uid.parse().ok()).collect()
}

fn reason(situation: &Situation) -> String {
    const GRANT: &str =
        "run unstale with sudo, or give it CAP_SYS_PTRACE (systemd: AmbientCapabilities=CAP_SYS_PTRACE)";
    let pid = situation.pid;
    let capable = situation.effective & CAP_SYS_PTRACE != 0;
    if situation.yama >= 3 {
        return format!(
            "kernel.yama.ptrace_scope is {}: nobody may read the memory of process {pid}, root included; set it to 2 or less and reboot",
            situation.yama
        );
    }
    if capable && situation.nested {
        return format!(
            "CAP_SYS_PTRACE holds only inside this user namespace, and process {pid} lies outside; run unstale in the host's user namespace (systemd: PrivateUsers=no)"
        );
    }
    if !capable {
        let foreign = situation.target_uids.iter().find(|uid| **uid != situation.own_uid);
        let because = match () {
            () if situation.yama == 2 => "kernel.yama.ptrace_scope is 2, which asks for CAP_SYS_PTRACE".to_owned(),
            () if foreign.is_some() => {
                format!(
                    "it belongs to user {} and this is user {}",
                    foreign.copied().unwrap_or_default(),
                    situation.own_uid
                )
            }
            () if situation.yama == 1 => {
                "kernel.yama.ptrace_scope is 1, which allows only a process's own ancestors".to_owned()
            }
            () if situation.owner == 0 && situation.own_uid != 0 => {
                "it is not dumpable: it was started with other rights than it has now".to_owned()
            }
            () if situation.target_permitted & !situation.effective != 0 => {
                "it has capabilities that unstale has not".to_owned()
            }
            () => "CAP_SYS_PTRACE is missing".to_owned(),
        };
        return format!("may not read the memory of process {pid}: {because}; {GRANT}");
    }
    match situation.label.as_str() {
        "" | "unconfined" => format!(
            "a security module of the kernel forbids reading the memory of process {pid}; see dmesg and the audit log"
        ),
        label => format!(
            "the security profile {label:?} forbids reading the memory of process {pid}; run unstale unconfined (containers: apparmor=unconfined, label=disable)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_what_to_change() {
        let check = |situation: Situation, want: &str| {
            let found = reason(&situation);
            assert!(found.contains(want), "{found}");
        };
        let mine = Situation { pid: 7, own_uid: 1000, target_uids: vec![1000; 3], owner: 1000, ..Situation::default() };
        let capable = Situation { effective: CAP_SYS_PTRACE, ..mine.clone() };
        check(
            Situation { target_uids: vec![33; 3], ..mine.clone() },
            "user 33 and this is user 1000; run unstale with sudo",
        );
        check(Situation { yama: 1, ..mine.clone() }, "ptrace_scope is 1");
        check(Situation { yama: 2, ..mine.clone() }, "ptrace_scope is 2");
        check(Situation { yama: 3, ..capable.clone() }, "root included");
        check(Situation { owner: 0, ..mine.clone() }, "not dumpable");
        check(Situation { target_permitted: 4, ..mine.clone() }, "capabilities that unstale has not");
        check(Situation { nested: true, ..capable.clone() }, "PrivateUsers=no");
        check(Situation { label: "docker-default (enforce)".to_owned(), ..capable.clone() }, "apparmor=unconfined");
        check(capable, "security module");
        check(mine, "CAP_SYS_PTRACE is missing");
    }

    #[test]
    fn fields_of_status_are_found() {
        let status = "Name:\tx\nUid:\t1000\t33\t0\t1000\nCapPrm:\t0000000000080000\n";
        assert_eq!(uids(status), [1000, 33, 0]);
        assert_eq!(capabilities(status, "CapPrm:"), CAP_SYS_PTRACE);
        assert_eq!(capabilities(status, "CapEff:"), 0);
    }
}
