//! How a helper process gives up its rights at its own start.
//!
//! The same binary runs as agent, reader and parser; what a part may do is decided here, by the part
//! itself, before it reads its first request: capabilities, limits, the parent-death signal and a
//! seccomp filter. Called by `reader::serve` and `parser::serve`, by nobody else. It cannot be undone.

mod filter;

use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities, set_no_new_privs,
};

/// Address space of the reader, in bytes.
const READER_ADDRESS_SPACE_BYTES: u64 = 256 << 20;
/// Address space of the parser, in bytes; its work stack lies in it.
const PARSER_ADDRESS_SPACE_BYTES: u64 = 1 << 30;
/// Descriptors that the reader may hold at once.
const READER_DESCRIPTORS: u64 = 256;
/// Descriptors that the parser may hold at once: the three it was born with, and a few for the runtime.
const PARSER_DESCRIPTORS: u64 = 8;

/// Why a part could not give up its rights; it must end then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A limit, a capability or a process attribute could not be set.
    #[error("cannot set {what}: {source}")]
    Attribute {
        /// Which one.
        what: &'static str,
        /// What the kernel said.
        source: rustix::io::Errno,
    },
    /// The system call filter could not be made or installed.
    #[error("cannot install the system call filter: {0}")]
    Filter(String),
}

fn attribute(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
    move |source| Error::Attribute { what, source }
}

/// Prepares this process to become a reader: few capabilities, bounded memory; threads can still be made.
///
/// Keeps `CAP_SYS_PTRACE` and `CAP_DAC_READ_SEARCH` where it has them.
///
/// # Errors
/// [`Error`] where the kernel refused one of the steps.
pub fn prepare_reader() -> Result<(), Error> {
    die_with_parent()?;
    keep(CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH)?;
    limit(Resource::As, READER_ADDRESS_SPACE_BYTES, "RLIMIT_AS")
}

/// Turns this prepared process with all its threads into a reader: it may look at other processes and read files,
/// nothing else.
///
/// # Errors
/// [`Error`] where the kernel refused one of the steps.
pub fn enter_reader() -> Result<(), Error> {
    limit(Resource::Nofile, READER_DESCRIPTORS, "RLIMIT_NOFILE")?;
    common_limits()?;
    filter::install(filter::reader()?)
}

/// Prepares this process to become a parser: no capability, bounded memory; threads can still be made.
///
/// # Errors
/// [`Error`] where the kernel refused one of the steps.
pub fn prepare_parser() -> Result<(), Error> {
    die_with_parent()?;
    keep(CapabilitySet::empty())?;
    limit(Resource::As, PARSER_ADDRESS_SPACE_BYTES, "RLIMIT_AS")
}

/// Turns this prepared process with all its threads into a parser: it may compute and answer, nothing else.
///
/// # Errors
/// [`Error`] where the kernel refused one of the steps.
pub fn enter_parser() -> Result<(), Error> {
    limit(Resource::Nofile, PARSER_DESCRIPTORS, "RLIMIT_NOFILE")?;
    common_limits()?;
    filter::install(filter::parser()?)
}

fn die_with_parent() -> Result<(), Error> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(attribute("the parent-death signal"))
}

/// Leaves only those of `wanted` that this process has, none of them inheritable.
fn keep(wanted: CapabilitySet) -> Result<(), Error> {
    set_no_new_privs(true).map_err(attribute("no_new_privs"))?;
    let now = capabilities(None).map_err(attribute("capabilities"))?;
    clear_ambient_capability_set().map_err(attribute("ambient capabilities"))?;
    let kept = now.permitted & wanted;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(attribute("capabilities"))
}

/// No core file (it would hold foreign memory), no growth of any file, no new process or thread.
fn common_limits() -> Result<(), Error> {
    limit(Resource::Core, 0, "RLIMIT_CORE")?;
    limit(Resource::Fsize, 0, "RLIMIT_FSIZE")?;
    limit(Resource::Nproc, 0, "RLIMIT_NPROC")
}

fn limit(resource: Resource, value: u64, what: &'static str) -> Result<(), Error> {
    // Never above a limit that is already stricter: raising the hard limit needs a capability.
    let old = rustix::process::getrlimit(resource);
    let value = old.maximum.map_or(value, |maximum| maximum.min(value));
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) }).map_err(attribute(what))
}
