//! The system calls that a part may make.
//!
//! Both lists name what is allowed; everything else answers `EPERM`, so that a library's optional call
//! does not end the process. Descriptors 0, 1 and 2 stay what they are: only 1 and 2 can be written to,
//! none of the three can be closed, and nothing can be duplicated onto them.

use super::Error;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    apply_filter_all_threads,
};
use std::collections::BTreeMap;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Calls without a condition that both parts need: memory, locks, signals of their own, clocks, the end.
const COMMON: &[i64] = &[
    libc::SYS_read,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_ppoll,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What the reader needs beside [`COMMON`]: looking at processes and at files.
const READING: &[i64] = &[
    libc::SYS_process_vm_readv,
    libc::SYS_pidfd_open,
    libc::SYS_openat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_readv,
    libc::SYS_faccessat,
    libc::SYS_getcwd,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getppid,
    libc::SYS_getcpu,
    libc::SYS_capget,
    libc::SYS_uname,
];

/// Old forms of calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
mod old {
    pub(super) const COMMON: &[i64] = &[libc::SYS_poll];
    pub(super) const READING: &[i64] = &[libc::SYS_readlink, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access];
}
#[cfg(not(target_arch = "x86_64"))]
mod old {
    pub(super) const COMMON: &[i64] = &[];
    pub(super) const READING: &[i64] = &[];
}

/// Builds the filter of the reader.
pub(super) fn reader() -> Result<SeccompFilter, Error> {
    let mut rules = common()?;
    for call in READING.iter().chain(old::READING) {
        rules.insert(*call, Vec::new());
    }
    rules.insert(libc::SYS_close, vec![rule(vec![condition(0, SeccompCmpOp::Gt, 2)?])?]);
    rules.insert(
        libc::SYS_fcntl,
        vec![
            rule(vec![condition(1, SeccompCmpOp::Eq, number(libc::F_GETFD))?])?,
            rule(vec![condition(1, SeccompCmpOp::Eq, number(libc::F_GETFL))?])?,
            rule(vec![condition(1, SeccompCmpOp::Eq, number(libc::F_SETFD))?])?,
        ],
    );
    // Its own thread's processors, nobody else's.
    rules.insert(libc::SYS_sched_setaffinity, vec![rule(vec![condition(0, SeccompCmpOp::Eq, 0)?])?]);
    rules.insert(libc::SYS_openat, vec![rule(vec![only_reading(2)?])?]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![rule(vec![only_reading(1)?])?]);
    build(rules)
}

/// Builds the filter of the parser.
pub(super) fn parser() -> Result<SeccompFilter, Error> {
    build(common()?)
}

/// Installs `filter` for every thread of this process.
pub(super) fn install(filter: SeccompFilter) -> Result<(), Error> {
    let program: seccompiler::BpfProgram =
        filter.try_into().map_err(|error: seccompiler::BackendError| Error::Filter(error.to_string()))?;
    apply_filter_all_threads(&program).map_err(|error| Error::Filter(error.to_string()))
}

fn common() -> Result<Rules, Error> {
    let mut rules: Rules = COMMON.iter().chain(old::COMMON).map(|call| (*call, Vec::new())).collect();
    let answers = || rule(vec![condition(0, SeccompCmpOp::Ge, 1)?, condition(0, SeccompCmpOp::Le, 2)?]);
    rules.insert(libc::SYS_write, vec![answers()?]);
    rules.insert(libc::SYS_writev, vec![answers()?]);
    let not_executable = || rule(vec![condition(2, SeccompCmpOp::MaskedEq(number(libc::PROT_EXEC)), 0)?]);
    rules.insert(libc::SYS_mmap, vec![not_executable()?]);
    rules.insert(libc::SYS_mprotect, vec![not_executable()?]);
    Ok(rules)
}

/// Holds where the flags in argument `index` of an `open` neither write, nor make, nor empty a file.
fn only_reading(index: u8) -> Result<SeccompCondition, Error> {
    let forbidden = number(libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY));
    condition(index, SeccompCmpOp::MaskedEq(forbidden), 0)
}

fn build(rules: Rules) -> Result<SeccompFilter, Error> {
    let arch: TargetArch = std::env::consts::ARCH
        .try_into()
        .map_err(|_| Error::Filter(format!("no filter is known for {}", std::env::consts::ARCH)))?;
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch).map_err(|error| Error::Filter(error.to_string()))
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, Error> {
    SeccompRule::new(conditions).map_err(|error| Error::Filter(error.to_string()))
}

fn condition(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, Error> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)
        .map_err(|error| Error::Filter(error.to_string()))
}

fn number(flag: libc::c_int) -> u64 {
    u64::from(flag.unsigned_abs())
}
