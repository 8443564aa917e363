//! Rights: may this process read the workers of others?

use super::{Finding, read};

/// Bits of capabilities: `linux/capability.h`.
const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_KILL: u32 = 5;
const CAP_SYS_PTRACE: u32 = 19;

pub(super) fn look() -> Vec<Finding> {
    let status = read("/proc/self/status").unwrap_or_default();
    let is_root = rustix::process::geteuid().is_root();
    let scope = read("/proc/sys/kernel/yama/ptrace_scope").and_then(|text| text.parse().ok());
    let mounts = read("/proc/self/mountinfo").unwrap_or_default();
    let uid_map = read("/proc/self/uid_map").unwrap_or_default();
    let mut findings = vec![capabilities(effective(&status), is_root), yama(scope, effective(&status))];
    findings.push(hidepid(&mounts, effective(&status)));
    findings.push(user_namespace(&uid_map));
    findings
}

/// The effective capabilities: `CapEff` of proc(5), 0 where there is none.
fn effective(status: &str) -> u64 {
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    field.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

fn has(capabilities: u64, bit: u32) -> bool {
    capabilities >> bit & 1 == 1
}

fn capabilities(effective: u64, is_root: bool) -> Finding {
    const WHAT: &str = "right to read workers";
    let wanted = [
        (CAP_SYS_PTRACE, "CAP_SYS_PTRACE (memory of other users' processes)"),
        (CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH (their files and environment)"),
        (CAP_KILL, "CAP_KILL (drain them by signal)"),
    ];
    let lacking: Vec<&str> = wanted.iter().filter(|(bit, _)| !has(effective, *bit)).map(|(_, name)| *name).collect();
    if lacking.is_empty() {
        return Finding::good(WHAT, "processes of every user");
    }
    if is_root {
        return Finding::missing(
            WHAT,
            format!("root, but without {}", lacking.join(", ")),
            "give the container or unit these capabilities (`--cap-add`, `AmbientCapabilities=`)",
        );
    }
    if has(effective, CAP_SYS_PTRACE) {
        return Finding::note(
            WHAT,
            format!("without {}", lacking.join(", ")),
            "grant what you need of them, or run as root",
        );
    }
    Finding::note(
        WHAT,
        "only your own processes",
        "run as root, or `setcap cap_sys_ptrace,cap_dac_read_search,cap_kill=ep` on the binary, to reach other users'",
    )
}

/// Kernel documentation, `admin-guide/LSM/Yama.rst`.
fn yama(scope: Option<u32>, effective: u64) -> Finding {
    const WHAT: &str = "kernel.yama.ptrace_scope";
    match scope {
        None => Finding::good(WHAT, "the kernel has no Yama: classic rules hold"),
        Some(0) => Finding::good(WHAT, "0: processes of the same user may be read"),
        Some(number @ (1 | 2)) if has(effective, CAP_SYS_PTRACE) => {
            Finding::good(WHAT, format!("{number}: CAP_SYS_PTRACE is there"))
        }
        Some(number @ (1 | 2)) => Finding::missing(
            WHAT,
            format!("{number}: even your own workers cannot be read without CAP_SYS_PTRACE"),
            "run as root, grant CAP_SYS_PTRACE, or `sysctl kernel.yama.ptrace_scope=0`",
        ),
        Some(number) => Finding::missing(
            WHAT,
            format!("{number}: nobody may read another process, and it cannot be lowered before a reboot"),
            "set `kernel.yama.ptrace_scope` to 2 or less in /etc/sysctl.d and reboot",
        ),
    }
}

/// Mount options of proc(5).
fn hidepid(mountinfo: &str, effective: u64) -> Finding {
    const WHAT: &str = "visibility of /proc";
    let options = mountinfo
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some("/proc"))
        .filter_map(|line| line.split(' ').next_back())
        .next_back()
        .unwrap_or_default();
    let hidden = options.split(',').find_map(|option| option.strip_prefix("hidepid="));
    match hidden {
        None | Some("0" | "off") => Finding::good(WHAT, "processes of other users are listed"),
        Some(_) if has(effective, CAP_SYS_PTRACE) => {
            Finding::good(WHAT, "hidepid is set, and CAP_SYS_PTRACE sees through it")
        }
        Some(mode) => Finding::note(
            WHAT,
            format!("hidepid={mode}: workers of other users do not show"),
            "run as root, or join the group of the mount's `gid=` option",
        ),
    }
}

/// `user_namespaces(7)`: the initial namespace maps all ids onto themselves.
fn user_namespace(uid_map: &str) -> Finding {
    const WHAT: &str = "user namespace";
    let fields: Vec<&str> = uid_map.split_whitespace().collect();
    if fields == ["0", "0", "4294967295"] {
        return Finding::good(WHAT, "the initial one");
    }
    Finding::note(
        WHAT,
        "a child: only workers in it and below it can be read",
        "run unstale outside the container to see the whole host",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Standing;
    use super::*;

    #[test]
    fn rights_are_told_from_what_the_kernel_says() {
        let all = u64::MAX;
        let check = |finding: Finding, standing: Standing| assert_eq!(finding.standing, standing, "{finding:?}");
        check(capabilities(all, true), Standing::Good);
        check(capabilities(0, true), Standing::Missing);
        check(capabilities(0, false), Standing::Note);
        check(capabilities(1 << CAP_SYS_PTRACE, false), Standing::Note);
        check(yama(None, 0), Standing::Good);
        check(yama(Some(0), 0), Standing::Good);
        check(yama(Some(1), 0), Standing::Missing);
        check(yama(Some(1), all), Standing::Good);
        check(yama(Some(3), all), Standing::Missing);
        let mount = |options: &str| {
            format!("22 1 0:5 / /proc rw,nosuid - proc proc {options}\n30 1 0:6 / /sys rw - sysfs sysfs rw")
        };
        check(hidepid(&mount("rw"), 0), Standing::Good);
        check(hidepid(&mount("rw,hidepid=invisible"), 0), Standing::Note);
        check(hidepid(&mount("rw,hidepid=2"), all), Standing::Good);
        check(user_namespace("         0          0 4294967295"), Standing::Good);
        check(user_namespace("0 1000 1"), Standing::Note);
    }

    #[test]
    fn capabilities_are_read_in_hexadecimal() {
        assert_eq!(effective("Name:\tx\nCapEff:\t000001ffffffffff\n"), 0x1ff_ffff_ffff);
        assert_eq!(effective("nothing"), 0);
    }
}
