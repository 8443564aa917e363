//! Reads the enums that a live CPython process has really loaded: from outside, without stopping it.
//!
//! No ptrace, no signal, nothing of the process is run. What is read: the runtime, `sys.modules`, the
//! subclasses of `enum.Enum` with their members' values, and SQLAlchemy's mapped classes. Called by the
//! reader process; everything above [`Source`] is pure and works on recordings too ([`Image`]).
//!
//! A reading is accepted only if every bound class is what its module's name leads to, and if the bytes
//! that would change with it are the same when all is read. Else it is tried again, and in the end the
//! answer is "changing". Memory is hostile: every length has a bound, every address is checked.

mod bindings;
mod cache;
pub(crate) mod denial;
mod elf;
mod enums;
mod facts;
mod heap;
mod image;
mod layout;
mod linux;
mod locate;
mod mate;
mod memo;
mod modules;
mod source;
mod value;
mod walk;

pub use cache::Cache;
pub use image::{Image, ImageError};
pub use linux::LinuxProcess;
pub use source::{Copied, Fault, Mapping, Source, Span};

use crate::reading::{Cost, Outcome, ReadOptions, Reading};
use cache::{Known, Remembered};
use mate::Mate;
use memo::Pass;
use source::Buffers;
use std::sync::Arc;
use std::time::Duration;
use unstale_protocol::ids::ProcessIdentity;
pub(crate) use walk::Answer;

/// Most times that a walk is tried again.
const MAX_RETRIES: u32 = 20;
/// Pause before the next try.
const PAUSE: Duration = Duration::from_millis(2);

/// Why a walk ended without an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// An address is not mapped.
    #[error("no memory at {0:#x}")]
    Unmapped(u64),
    /// Something is not what it must be.
    #[error("{0} makes no sense")]
    Implausible(&'static str),
    /// Guarded bytes changed.
    #[error("classes changed while they were read")]
    Changed,
    /// A bound was reached.
    #[error("more than the bound of {0}")]
    Limit(&'static str),
    /// Something is not there yet.
    #[error("{0}")]
    Starting(String),
    /// No interpreter of the process has `enum`.
    #[error("enum is not imported")]
    NoEnum,
    /// The process is no CPython of a known version.
    #[error("{0}")]
    Unsupported(String),
    /// The kernel refused.
    #[error("denied")]
    Denied,
    /// The process is gone.
    #[error("gone")]
    Gone,
    /// Something else went wrong.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// Returns how many times it is worth trying again. A bound may have been reached by a number that was
    /// half-written, but trying is expensive then.
    fn patience(&self) -> u32 {
        match self {
            Self::Unmapped(_) | Self::Implausible(_) | Self::Changed => MAX_RETRIES,
            Self::Limit(_) => 3,
            _ => 0,
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Denied => Self::Denied,
            Fault::Gone => Self::Gone,
            Fault::Other(text) => Self::Other(text),
        }
    }
}

/// Reads one process.
///
/// `cache` holds what earlier reads learnt of this process and of those it was forked from; it only saves
/// time. Blocks for about a millisecond, and for up to 20 short pauses where classes keep changing; a page
/// served by a user's file system or `userfaultfd` can block for ever, so the caller must be able to kill
/// the process that this runs in.
pub fn read(identity: ProcessIdentity, options: &ReadOptions, cache: &mut Cache) -> Reading {
    look(identity, options, cache).reading()
}

/// What [`read`] comes to, before it is copied for anybody.
pub(crate) struct Look {
    identity: ProcessIdentity,
    outcome: Outcome,
    pub(crate) cost: Cost,
    /// What was found where the outcome is complete: the same one for all processes that were found alike.
    pub(crate) answer: Option<Arc<Answer>>,
}

impl Look {
    /// Copies it.
    pub(crate) fn reading(self) -> Reading {
        let mut reading = Reading { outcome: self.outcome, cost: self.cost, ..blank(self.identity) };
        if let Some(answer) = &self.answer {
            fill(&mut reading, answer);
        }
        reading
    }
}

/// Reads one process, as [`read`] does.
pub(crate) fn look(identity: ProcessIdentity, options: &ReadOptions, cache: &mut Cache) -> Look {
    let mut look = Look { identity, outcome: Outcome::Gone, cost: Cost::default(), answer: None };
    let process = match linux::open(identity, options.through_mem) {
        Ok(process) => process,
        Err(error) => {
            look.outcome = outcome(error, identity, false);
            return look;
        }
    };
    cache.tidy(linux::is_same);
    let memos = cache.memos(identity, process.parent, options);
    let known = cache.known(identity, process.parent);
    let mut buffers = cache.take_buffers();
    let source = Arc::new(process.source);
    let recalled = recall(&source, identity, &memos, cache.mate(), &mut look.cost);
    let answer = match recalled {
        Ok(Some((answer, memo))) => {
            cache.recalled(identity, process.parent, memo.of(identity));
            // Where nothing changes there will hardly be another walk.
            buffers = Buffers::default();
            Ok(answer)
        }
        Ok(None) => tries(source.as_ref(), options, known, &mut buffers, &mut look.cost).map(|walked| {
            let memo = walked.memo.map(|memo| Remembered::new(identity, options, memo));
            cache.put(identity, process.parent, walked.known, memo);
            walked.answer
        }),
        Err(error) => Err((error, false)),
    };
    cache.give_buffers(buffers);
    let same = linux::is_same(identity);
    match answer {
        _ if !same => {}
        Ok(answer) => {
            look.outcome = Outcome::Complete;
            look.answer = Some(answer);
        }
        Err((error, changed)) => look.outcome = outcome(error, identity, changed),
    }
    look
}

/// Finds the memo that a process is as it says.
fn recall<'m>(
    source: &Arc<LinuxProcess>,
    identity: ProcessIdentity,
    memos: &'m [Remembered],
    mut mate: Option<&mut Mate>,
    cost: &mut Cost,
) -> Result<Option<(Arc<Answer>, &'m Remembered)>, Error> {
    let mut buffer = Vec::new();
    for remembered in memos {
        let Remembered { memo, .. } = remembered;
        let is_own = remembered.is_of(identity);
        let pass = Arc::new(Pass::default());
        buffer.resize(memo.room(), 0);
        let mut joined = mate.as_deref_mut();
        let has_joined = joined.as_mut().is_some_and(|mate| mate.join(memo, source, is_own, &pass));
        let own = memo.compare(source.as_ref(), is_own, &pass, &mut buffer, cost);
        let theirs = joined.filter(|_| has_joined).map_or(Ok(()), |mate| mate.finish(cost));
        own.and(theirs)?;
        if !pass.differs() {
            return Ok(Some((Arc::clone(memo.answer()), remembered)));
        }
    }
    Ok(None)
}

/// Reads a recording, or whatever else implements [`Source`], as [`read`] reads a process, but once: a
/// recording does not change.
pub fn read_source(source: &dyn Source, identity: ProcessIdentity, options: &ReadOptions) -> Reading {
    let mut reading = blank(identity);
    let mut attempt = walk::Attempt::new(source, options, Buffers::default());
    match attempt.run(None) {
        Ok(walked) => {
            reading.outcome = Outcome::Complete;
            fill(&mut reading, &walked.answer);
        }
        Err(error) => reading.outcome = outcome(error, identity, false),
    }
    (_, reading.cost) = attempt.finish();
    reading
}

/// Records every byte that a read of a process looks at, for tests. The names of mapped files lose their
/// directories.
///
/// # Errors
/// Why the process could not be read.
pub fn record(identity: ProcessIdentity, options: &ReadOptions) -> Result<Image, String> {
    let process = linux::open(identity, options.through_mem).map_err(|error| error.to_string())?;
    let mut failure = String::new();
    for _ in 0..=MAX_RETRIES {
        let mut attempt = walk::Attempt::new(&process.source, options, Buffers::default());
        match attempt.run(None) {
            Ok(_) => return attempt.into_image().map_err(|error| error.to_string()),
            Err(error) => failure = error.to_string(),
        }
        pause();
    }
    Err(failure)
}

fn blank(identity: ProcessIdentity) -> Reading {
    Reading {
        identity,
        outcome: Outcome::Gone,
        interpreter: None,
        modules: Vec::new(),
        enums: Vec::new(),
        mapped: Vec::new(),
        cost: Cost::default(),
    }
}

fn fill(reading: &mut Reading, answer: &Answer) {
    reading.interpreter = Some(answer.interpreter.clone());
    reading.modules.clone_from(&answer.modules);
    reading.enums.clone_from(&answer.enums);
    reading.mapped.clone_from(&answer.mapped);
}

/// Walks until an answer holds still; on failure tells also whether something was seen to change.
fn tries(
    source: &dyn Source,
    options: &ReadOptions,
    known: Option<Known>,
    buffers: &mut Buffers,
    cost: &mut Cost,
) -> Result<walk::Walked, (Error, bool)> {
    let mut known = known;
    let mut changed = false;
    loop {
        let mut attempt = walk::Attempt::new(source, options, std::mem::take(buffers));
        // What is known is doubted once it has not helped.
        let walked = attempt.run(known.take());
        changed |= walked.is_err() && attempt.has_moved();
        let (used, spent) = attempt.finish();
        *buffers = used;
        cost.calls = cost.calls.saturating_add(spent.calls);
        cost.bytes = cost.bytes.saturating_add(spent.bytes);
        match walked {
            Ok(walked) => return Ok(walked),
            Err(error) if cost.retries < error.patience() => {
                cost.retries += 1;
                pause();
            }
            Err(error) => return Err((error, changed)),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the reader process has no executor; memory needs a moment to settle")]
fn pause() {
    std::thread::sleep(PAUSE);
}

fn outcome(error: Error, identity: ProcessIdentity, changed: bool) -> Outcome {
    match error {
        Error::Changed => Outcome::Changing(error.to_string()),
        Error::Unmapped(_) | Error::Implausible(_) | Error::Limit(_) if changed => {
            Outcome::Changing("classes went on changing".to_owned())
        }
        Error::Unmapped(_) | Error::Implausible(_) | Error::Other(_) => Outcome::Damaged(error.to_string()),
        Error::Limit(_) => Outcome::Limit(error.to_string()),
        Error::Starting(why) => Outcome::Starting(why),
        Error::NoEnum => Outcome::NoEnum,
        Error::Unsupported(what) => Outcome::Unsupported(what),
        Error::Denied => Outcome::Denied(denial::explain(identity.pid)),
        Error::Gone => Outcome::Gone,
    }
}
