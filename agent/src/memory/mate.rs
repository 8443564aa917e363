//! A second thread that copies and compares, too: what a walk looks at lies scattered, and copying it is the kernel's
//! work.
//!
//! It is started before the reader gives up the right to start threads, sleeps between its parts, and allocates
//! nothing: what it needs comes with the question.

use super::Error;
use super::linux::LinuxProcess;
use super::memo::{Memo, Pass};
use super::source::{Copied, Fault, Mapping, Source, Span};
use crate::reading::Cost;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Stack of the thread, in bytes: it only copies and compares.
const STACK_BYTES: usize = 128 << 10;

/// Fewest ranges that are shared: waking a thread takes as long as copying a few.
const LEAST_SHARED: usize = 48;

/// Largest buffer that is kept, in bytes: comparisons need less.
const MOST_KEPT: usize = 256 << 10;

/// Its part.
enum Part {
    /// In a comparison.
    Compare { memo: Arc<Memo>, is_own: bool, pass: Arc<Pass> },
    /// In copying: the ranges that it copies to the beginning of its buffer.
    Copy(Vec<Span>),
}

struct Job {
    /// The processor where the reader is.
    beside: usize,
    source: Arc<LinuxProcess>,
    part: Part,
    buffer: Vec<u8>,
}

/// What came of it.
struct Done {
    result: Result<Copied, Error>,
    cost: Cost,
    buffer: Vec<u8>,
}

impl Job {
    fn run(self) -> Done {
        let Self { beside: _, source, part, mut buffer } = self;
        let mut cost = Cost::default();
        let result = match part {
            Part::Compare { memo, is_own, pass } => {
                memo.compare(source.as_ref(), is_own, &pass, &mut buffer, &mut cost).map(|()| Copied::default())
            }
            Part::Copy(spans) => {
                let room = buffer.get_mut(..bytes_of(&spans)).unwrap_or_default();
                source.read(&spans, room).map_err(Error::from)
            }
        };
        Done { result, cost, buffer }
    }
}

/// Keeps the second thread off the reader's processor. A kernel wakes a thread where its waker runs, and where
/// processors share no cache it leaves it there although another one has nothing to do: the two would take turns.
struct Elsewhere {
    /// Where it may run at all.
    may: CpuSet,
    off: Option<usize>,
}

impl Elsewhere {
    fn new() -> Self {
        Self { may: sched_getaffinity(None).unwrap_or_default(), off: None }
    }

    fn keep_off(&mut self, processor: usize) {
        if self.off == Some(processor) {
            return;
        }
        self.off = Some(processor);
        let mut others = self.may;
        if processor < CpuSet::MAX_CPU {
            others.unset(processor);
        }
        if others.count() > 0 {
            // It may be refused: then the kernel goes on choosing.
            sched_setaffinity(None, &others).unwrap_or_default();
        }
    }
}

fn bytes_of(spans: &[Span]) -> usize {
    spans.iter().map(|span| span.len).sum()
}

/// The second thread.
#[derive(Debug)]
pub(crate) struct Mate {
    jobs: SyncSender<Job>,
    done: Receiver<Done>,
    /// Its buffer, while it sleeps.
    buffer: Vec<u8>,
}

impl Mate {
    /// Starts the thread and waits until it runs.
    ///
    /// # Errors
    /// The kernel refused another thread.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (jobs, asked) = sync_channel::<Job>(1);
        let (answer, done) = sync_channel::<Done>(1);
        let (ready, is_ready) = sync_channel::<()>(1);
        std::thread::Builder::new().name("mate".to_owned()).stack_size(STACK_BYTES).spawn(move || {
            if ready.send(()).is_err() {
                return;
            }
            let mut elsewhere = Elsewhere::new();
            while let Ok(job) = asked.recv() {
                elsewhere.keep_off(job.beside);
                if answer.send(job.run()).is_err() {
                    return;
                }
            }
        })?;
        is_ready.recv().map_err(std::io::Error::other)?;
        Ok(Self { jobs, done, buffer: Vec::new() })
    }

    /// Begins to take part in a comparison; [`Self::finish`] must follow. Tells whether it does.
    pub(crate) fn join(
        &mut self,
        memo: &Arc<Memo>,
        source: &Arc<LinuxProcess>,
        is_own: bool,
        pass: &Arc<Pass>,
    ) -> bool {
        let part = Part::Compare { memo: Arc::clone(memo), is_own, pass: Arc::clone(pass) };
        self.begin(source, part, memo.room())
    }

    /// Waits until its part in a comparison is done.
    pub(crate) fn finish(&mut self, cost: &mut Cost) -> Result<(), Error> {
        let (result, spent) = self.end()?;
        cost.add(spent.calls, spent.bytes);
        result.map(|_| ())
    }

    fn begin(&mut self, source: &Arc<LinuxProcess>, part: Part, room: usize) -> bool {
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.len() < room {
            buffer.resize(room, 0);
        }
        self.jobs.send(Job { beside: sched_getcpu(), source: Arc::clone(source), part, buffer }).is_ok()
    }

    fn end(&mut self) -> Result<(Result<Copied, Error>, Cost), Error> {
        let Done { result, cost, buffer } =
            self.done.recv().map_err(|_| Error::Other("the second thread has ended".to_owned()))?;
        self.buffer = buffer;
        Ok((result, cost))
    }
}

/// A live process, read with the second thread's help where each range takes a call.
pub(crate) struct Paired<'m> {
    pub(crate) process: Arc<LinuxProcess>,
    pub(crate) mate: RefCell<Option<&'m mut Mate>>,
}

impl Source for Paired<'_> {
    fn read(&self, spans: &[Span], buffer: &mut [u8]) -> Result<Copied, Fault> {
        let mut mate = self.mate.borrow_mut();
        let Some(mate) = mate.as_mut().filter(|_| spans.len() >= LEAST_SHARED && self.process.reads_one_by_one())
        else {
            return self.process.read(spans, buffer);
        };
        let (mine, theirs) = spans.split_at(spans.len() / 2);
        let (first, second) = buffer.split_at_mut(bytes_of(mine).min(buffer.len()));
        if !mate.begin(&self.process, Part::Copy(theirs.to_vec()), second.len()) {
            return self.process.read(spans, buffer);
        }
        let own = self.process.read(mine, first);
        let (others, _) = mate.end().map_err(|error| Fault::Other(error.to_string()))?;
        let mut copied = own?;
        // What follows a byte that could not be read does not count.
        if copied.bytes == first.len() {
            let others = others.map_err(|error| Fault::Other(error.to_string()))?;
            if let (Some(to), Some(from)) = (second.get_mut(..others.bytes), mate.buffer.get(..others.bytes)) {
                to.copy_from_slice(from);
                copied.bytes += others.bytes;
            }
            copied.calls = copied.calls.saturating_add(others.calls);
        }
        if mate.buffer.len() > MOST_KEPT {
            mate.buffer = Vec::new();
        }
        Ok(copied)
    }

    fn mappings(&self) -> Result<Vec<Mapping>, Fault> {
        self.process.mappings()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_leaves_the_processor_that_is_named_and_may_come_back_when_it_is_another() {
        // In a thread of its own: it is the thread's.
        let check = || {
            let now = || sched_getaffinity(None).unwrap();
            let all = now();
            let named: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|processor| all.is_set(*processor)).collect();
            let mut elsewhere = Elsewhere::new();
            for processor in named.iter().copied().chain([CpuSet::MAX_CPU]) {
                elsewhere.keep_off(processor);
                let mut want = all;
                if named.len() > 1 && processor < CpuSet::MAX_CPU {
                    want.unset(processor);
                }
                assert!(now() == want, "{processor} of {named:?}");
            }
        };
        std::thread::spawn(check).join().unwrap();
    }
}
