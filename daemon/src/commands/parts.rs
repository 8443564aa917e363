//! The helper processes: this same binary under a hidden name, with fewer rights.

use crate::report::{self, Exit};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;
use unstale_agent::child::Program;
use unstale_agent::purge::Purger;

/// The binary that runs, also where its file was replaced meanwhile.
const SELF: &str = "/proc/self/exe";
/// How long one purge may take.
const PURGE_DEADLINE: Duration = Duration::from_secs(30);

const READER: &str = "__reader";
const PARSER: &str = "__parser";
const PURGER: &str = "__purge";

/// Serves as the part of this name, if there is one; the command line is not even parsed: a look waits for its parts.
pub(crate) fn serve(name: Option<&OsStr>) -> Option<Exit> {
    match name?.to_str()? {
        READER => Some(Exit::Part(unstale_agent::reader::serve())),
        PARSER => Some(Exit::Part(unstale_agent::parser::serve())),
        PURGER => Some(match unstale_agent::purge::serve(std::io::stdin(), std::io::stdout()) {
            Ok(()) => Exit::Clean,
            Err(error) => {
                report::note(&format!("the purging child failed: {error}"));
                Exit::Error
            }
        }),
        _ => None,
    }
}

/// Reads memory and files of other processes.
pub(super) fn reader() -> Program {
    Program { path: PathBuf::from(SELF), args: vec![READER.to_owned()] }
}

/// Parses untrusted bytes, without any right.
pub(super) fn parser() -> Program {
    Program { path: PathBuf::from(SELF), args: vec![PARSER.to_owned()] }
}

/// Removes files with their owner's rights.
pub(super) fn purger() -> Purger {
    Purger { program: PathBuf::from(SELF), arguments: vec![PURGER.to_owned()], deadline: PURGE_DEADLINE }
}
