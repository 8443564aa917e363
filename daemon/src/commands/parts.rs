//! The helper processes: this same binary under a hidden command, with fewer rights.

use std::path::PathBuf;
use std::time::Duration;
use unstale_agent::child::Program;
use unstale_agent::purge::Purger;

/// The binary that runs, also where its file was replaced meanwhile.
const SELF: &str = "/proc/self/exe";
/// How long one purge may take.
const PURGE_DEADLINE: Duration = Duration::from_secs(30);

/// Reads memory and files of other processes.
pub(super) fn reader() -> Program {
    Program { path: PathBuf::from(SELF), args: vec!["__reader".to_owned()] }
}

/// Parses untrusted bytes, without any right.
pub(super) fn parser() -> Program {
    Program { path: PathBuf::from(SELF), args: vec!["__parser".to_owned()] }
}

/// Removes files with their owner's rights.
pub(super) fn purger() -> Purger {
    Purger { program: PathBuf::from(SELF), arguments: vec!["__purge".to_owned()], deadline: PURGE_DEADLINE }
}
