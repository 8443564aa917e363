//! Reads the enums that a live CPython process has really loaded: from outside, without stopping it.
//!
//! No ptrace, no signal, nothing of the process is run. What is read: the runtime, `sys.modules`, the
//! subclasses of `enum.Enum` with their members' values, and SQLAlchemy's mapped classes. Called by the
//! reader process; everything above [`Source`] is pure and works on recordings too ([`Image`]).
//!
//! A reading is accepted only if every bound class is what its module's name leads to, and if all bytes that
//! it rests on are the same when all is read. Else it is tried again, and in the end the answer is
//! "changing". A process that was read before and has not run since is not read again. Memory is hostile: every
//! length has a bound, every address is checked.

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
mod rest;
mod source;
mod value;
mod walk;

pub use cache::Cache;
pub use image::{Image, ImageError};
pub use linux::LinuxProcess;
pub use source::{Copied, Fault, Mapping, Source, Span};

use crate::reading::{Cost, Outcome, ReadOptions, Reading};
use cache::{Known, Remembered};
use mate::{Mate, Paired};
use memo::{Memo, Pass};
use rest::Rest;
use source::Buffers;
use std::cell::RefCell;
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
    // Before anything is looked at: what it does from now on counts.
    let rest = Rest::of(identity.pid);
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
    let recalled = match memos.iter().find(|remembered| remembered.still_rests(identity, rest.as_ref())) {
        Some(remembered) => Ok(Some((Arc::clone(remembered.memo.answer()), remembered))),
        None => recall(&source, identity, &memos, cache.mate(), &mut look.cost),
    };
    let answer = match recalled {
        Ok(Some((answer, memo))) => {
            cache.recalled(identity, process.parent, memo.of(identity, rest));
            // Where nothing changes there will hardly be another walk.
            buffers = Buffers::default();
            Ok(answer)
        }
        Ok(None) => tries(&source, options, known, &mut buffers, cache.mate(), &mut look.cost).map(|held| {
            let memo = held.memo.map(|memo| Remembered::new(identity, rest, options, memo));
            cache.put(identity, process.parent, held.known, memo);
            held.answer
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
    for remembered in memos {
        if is_as(source, &remembered.memo, remembered.is_of(identity), mate.as_deref_mut(), cost)? {
            return Ok(Some((Arc::clone(remembered.memo.answer()), remembered)));
        }
    }
    Ok(None)
}

/// Compares a process with a memo, with the second thread's help where there is one. `is_own` says that it is the
/// process that was walked, and was seen to be as the memo says since.
fn is_as(
    source: &Arc<LinuxProcess>,
    memo: &Arc<Memo>,
    is_own: bool,
    mut mate: Option<&mut Mate>,
    cost: &mut Cost,
) -> Result<bool, Error> {
    let pass = Arc::new(Pass::default());
    let mut buffer = vec![0; memo.room()];
    let has_joined = mate.as_mut().is_some_and(|mate| mate.join(memo, source, is_own, &pass));
    let own = memo.compare(source.as_ref(), is_own, &pass, &mut buffer, cost);
    let theirs = mate.filter(|_| has_joined).map_or(Ok(()), |mate| mate.finish(cost));
    own.and(theirs)?;
    Ok(!pass.differs())
}

/// Reads a recording, or whatever else implements [`Source`], as [`read`] reads a process, but without patience: a
/// recording does not change.
pub fn read_source(source: &dyn Source, identity: ProcessIdentity, options: &ReadOptions) -> Reading {
    let mut reading = blank(identity);
    let mut last = None;
    for _ in 0..2 {
        let mut attempt = walk::Attempt::new(source, options, Buffers::default());
        let held = once(&mut attempt, None, &mut last, |memo| memo.is_in(source, &mut reading.cost));
        let (_, spent) = attempt.finish();
        reading.cost.add(spent.calls, spent.bytes);
        match held {
            Ok(held) => {
                reading.outcome = Outcome::Complete;
                fill(&mut reading, &held.answer);
                return reading;
            }
            Err(error) => reading.outcome = outcome(error, identity, false),
        }
        if last.is_none() {
            break;
        }
    }
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
        match attempt.run(None).and_then(|mut walked| attempt.check(&mut walked.answer)) {
            Ok(()) => return attempt.into_image().map_err(|error| error.to_string()),
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
    source: &Arc<LinuxProcess>,
    options: &ReadOptions,
    known: Option<Known>,
    buffers: &mut Buffers,
    mate: Option<&mut Mate>,
    cost: &mut Cost,
) -> Result<Held, (Error, bool)> {
    let paired = Paired { process: Arc::clone(source), mate: RefCell::new(mate) };
    let mut known = known;
    let mut changed = false;
    let mut last = None;
    loop {
        let mut attempt = walk::Attempt::new(&paired, options, std::mem::take(buffers));
        // What is known is doubted once it has not helped.
        let held = once(&mut attempt, known.take(), &mut last, |memo| {
            is_as(source, memo, false, paired.mate.borrow_mut().as_deref_mut(), cost)
        });
        changed |= held.is_err() && attempt.has_moved();
        let (used, spent) = attempt.finish();
        *buffers = used;
        cost.add(spent.calls, spent.bytes);
        match held {
            Ok(held) => return Ok(held),
            Err(error) if cost.retries < error.patience() => {
                cost.retries += 1;
                pause();
            }
            Err(error) => return Err((error, changed)),
        }
    }
}

/// Walks once and finds out whether the answer held still. `last` is the answer of the try before, `is_still` compares
/// the process with all that the walk looked at.
///
/// It held still if all bytes that it rests on are the same once more when it is there: then it is the answer of
/// that moment. Guards alone would not do. Where a module is loaded again and again, the same addresses come to hold
/// the same things after each garbage collection, so what is guarded can be as it was although all of it was
/// something else in between. In a process that never rests, because it counts in a variable next to its enums, what
/// is guarded must hold still and two walks must come to the same answer.
fn once(
    attempt: &mut walk::Attempt<'_>,
    known: Option<Known>,
    last: &mut Option<Arc<Answer>>,
    is_still: impl FnOnce(&Arc<Memo>) -> Result<bool, Error>,
) -> Result<Held, Error> {
    let walk::Walked { mut answer, known, memo } = attempt.run(known)?;
    if let Some(memo) = memo.map(Arc::new)
        && is_still(&memo)?
    {
        return Ok(Held { answer, known, memo: Some(memo) });
    }
    attempt.check(&mut answer)?;
    if last.replace(Arc::clone(&answer)).is_some_and(|last| last == answer) {
        return Ok(Held { answer, known, memo: None });
    }
    Err(Error::Changed)
}

/// A walk whose answer held still.
struct Held {
    answer: Arc<Answer>,
    known: Known,
    memo: Option<Arc<Memo>>,
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
