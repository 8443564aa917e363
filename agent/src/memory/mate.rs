//! A second thread that compares, too: what a walk looked at lies scattered, and copying it is the kernel's work.
//!
//! It is started before the reader gives up the right to start threads, sleeps between comparisons, and allocates
//! nothing: what it needs comes with the question.

use super::Error;
use super::linux::LinuxProcess;
use super::memo::{Memo, Pass};
use crate::reading::Cost;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Stack of the thread, in bytes: it only copies and compares.
const STACK_BYTES: usize = 128 << 10;

/// A part in a comparison.
struct Job {
    memo: Arc<Memo>,
    source: Arc<LinuxProcess>,
    is_own: bool,
    pass: Arc<Pass>,
    buffer: Vec<u8>,
}

/// What came of it.
struct Done {
    result: Result<(), Error>,
    cost: Cost,
    buffer: Vec<u8>,
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
            while let Ok(Job { memo, source, is_own, pass, mut buffer }) = asked.recv() {
                let mut cost = Cost::default();
                let result = memo.compare(source.as_ref(), is_own, &pass, &mut buffer, &mut cost);
                if answer.send(Done { result, cost, buffer }).is_err() {
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
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.len() < memo.room() {
            buffer.resize(memo.room(), 0);
        }
        let job = Job { memo: Arc::clone(memo), source: Arc::clone(source), is_own, pass: Arc::clone(pass), buffer };
        self.jobs.send(job).is_ok()
    }

    /// Waits until its part is done.
    pub(crate) fn finish(&mut self, cost: &mut Cost) -> Result<(), Error> {
        let Done { result, cost: spent, buffer } =
            self.done.recv().map_err(|_| Error::Other("the thread that compares has ended".to_owned()))?;
        self.buffer = buffer;
        cost.add(spent.calls, spent.bytes);
        result
    }
}
