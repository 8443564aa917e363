//! What earlier reads learnt: addresses and memos that only save time, each checked before it is used.

use super::locate::Runtime;
use super::mate::Mate;
use super::memo::Memo;
use super::rest::Rest;
use super::source::Buffers;
use crate::reading::ReadOptions;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use unstale_protocol::ids::{Pid, ProcessIdentity};

/// Most processes remembered.
const MAX_PROCESSES: usize = 1_024;
/// Most bytes of all memos.
const MAX_MEMOS: usize = 64 << 20;
/// Most questions about one process that are remembered: what holds enums, all modules, everything.
const MAX_QUESTIONS: usize = 3;
/// How often processes that have ended are looked for, in reads.
const TIDY_EVERY: u64 = 64;
/// Most memos of relatives that a process is compared with.
const MAX_RELATIVES: usize = 3;

/// What is known of one interpreter.
#[derive(Clone, Debug)]
pub(crate) struct KnownInterpreter {
    pub(crate) address: u64,
    pub(crate) modules: u64,
    /// The class `enum.Enum`.
    pub(crate) root: u64,
    /// Interned names and their addresses.
    pub(crate) names: Vec<(&'static str, u64)>,
}

/// What is known of one process.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) runtime: Runtime,
    pub(crate) interpreters: Vec<KnownInterpreter>,
}

#[derive(Debug)]
struct Entry {
    parent: Pid,
    used: u64,
    known: Known,
    /// One for each question, the last one last.
    memos: Vec<Remembered>,
}

impl Entry {
    fn remember(&mut self, remembered: Remembered) {
        self.memos.retain(|other| !other.answers(&remembered.options));
        self.memos.push(remembered);
        if self.memos.len() > MAX_QUESTIONS {
            self.memos.remove(0);
        }
    }
}

/// A memo with the question that it answers.
#[derive(Clone, Debug)]
pub(crate) struct Remembered {
    options: ReadOptions,
    /// The process that is so: it was walked, or found to be like one that was.
    of: ProcessIdentity,
    /// How it rested before that began.
    rest: Option<Rest>,
    pub(crate) memo: Arc<Memo>,
}

impl Remembered {
    pub(crate) fn new(of: ProcessIdentity, rest: Option<Rest>, options: &ReadOptions, memo: Arc<Memo>) -> Self {
        Self { options: options.clone(), of, rest, memo }
    }

    /// Says that a process was found to be alike, and how it rested before.
    pub(crate) fn of(&self, identity: ProcessIdentity, rest: Option<Rest>) -> Self {
        Self { of: identity, rest, ..self.clone() }
    }

    /// Tells whether a process that rests so has not run since it was found to be so.
    pub(crate) fn still_rests(&self, identity: ProcessIdentity, rest: Option<&Rest>) -> bool {
        self.is_of(identity) && rest.is_some() && self.rest.as_ref() == rest
    }

    pub(crate) fn is_of(&self, identity: ProcessIdentity) -> bool {
        self.of == identity
    }

    /// Tells whether it answers this question: the way that memory is read does not matter.
    fn answers(&self, options: &ReadOptions) -> bool {
        let ReadOptions { all, app_packages, app_roots, list_modules, through_mem: _ } = options;
        self.options.all == *all
            && self.options.app_packages == *app_packages
            && self.options.app_roots == *app_roots
            && self.options.list_modules == *list_modules
    }
}

/// What is known of processes that were read before. Forked children share their parent's addresses, so what is
/// known of a parent or of a sibling is tried first.
#[derive(Debug, Default)]
pub struct Cache {
    processes: BTreeMap<ProcessIdentity, Entry>,
    buffers: Buffers,
    clock: u64,
    mate: Option<Mate>,
}

impl Cache {
    /// Returns an empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns an empty cache with a second thread, which halves the time of most reads.
    ///
    /// # Errors
    /// The kernel refused another thread.
    pub fn with_mate() -> std::io::Result<Self> {
        Ok(Self { mate: Some(Mate::start()?), ..Self::default() })
    }

    pub(crate) fn mate(&mut self) -> Option<&mut Mate> {
        self.mate.as_mut()
    }

    /// Forgets, now and then, all processes for which `alive` says no.
    pub(crate) fn tidy(&mut self, mut alive: impl FnMut(ProcessIdentity) -> bool) {
        self.clock += 1;
        if self.clock.is_multiple_of(TIDY_EVERY) {
            self.processes.retain(|identity, _| alive(*identity));
        }
    }

    /// Returns what is known of a process, then of its parent and of that one's other children, those that were
    /// read last first.
    fn related(&self, identity: ProcessIdentity, parent: Pid) -> impl Iterator<Item = &Entry> {
        let mut relatives: Vec<&Entry> = self
            .processes
            .iter()
            .filter(|(other, entry)| **other != identity && (other.pid == parent || entry.parent == parent))
            .map(|(_, entry)| entry)
            .collect();
        relatives.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.used));
        self.processes.get(&identity).into_iter().chain(relatives)
    }

    /// Returns the addresses of a process or of a relative.
    pub(crate) fn known(&self, identity: ProcessIdentity, parent: Pid) -> Option<Known> {
        self.related(identity, parent).next().map(|entry| entry.known.clone())
    }

    /// Returns the memos that a process is compared with.
    pub(crate) fn memos(&self, identity: ProcessIdentity, parent: Pid, options: &ReadOptions) -> Vec<Remembered> {
        let mut memos: Vec<Remembered> = Vec::new();
        for entry in self.related(identity, parent) {
            let Some(remembered) = entry.memos.iter().find(|remembered| remembered.answers(options)) else {
                continue;
            };
            // Forked children share one.
            if !memos.iter().any(|known| Arc::ptr_eq(&known.memo, &remembered.memo)) {
                memos.push(remembered.clone());
            }
            if memos.len() > MAX_RELATIVES {
                break;
            }
        }
        memos
    }

    /// Keeps what is known of a process.
    pub(crate) fn put(&mut self, identity: ProcessIdentity, parent: Pid, known: Known, memo: Option<Remembered>) {
        let memos = self.processes.remove(&identity).map_or_else(Vec::new, |entry| entry.memos);
        let mut entry = Entry { parent, used: self.clock, known, memos };
        if let Some(memo) = memo {
            entry.remember(memo);
        }
        self.processes.insert(identity, entry);
        if self.processes.len() > MAX_PROCESSES
            && let Some(oldest) =
                self.processes.iter().min_by_key(|(_, entry)| entry.used).map(|(identity, _)| *identity)
        {
            self.processes.remove(&oldest);
        }
        self.bound_memos();
    }

    /// Gives up the memos that were not used for longest.
    fn bound_memos(&mut self) {
        let mut entries: Vec<&mut Entry> = self.processes.values_mut().collect();
        entries.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.used));
        let mut counted: BTreeSet<usize> = BTreeSet::new();
        let mut bytes = 0_usize;
        for entry in entries {
            for remembered in &entry.memos {
                if counted.insert(Arc::as_ptr(&remembered.memo).addr()) {
                    bytes = bytes.saturating_add(remembered.memo.size());
                }
            }
            if bytes > MAX_MEMOS {
                entry.memos.clear();
            }
        }
    }

    /// Notes that a process is as a memo has it, which may be a relative's.
    pub(crate) fn recalled(&mut self, identity: ProcessIdentity, parent: Pid, memo: Remembered) {
        if let Some(entry) = self.processes.get_mut(&identity) {
            entry.used = self.clock;
            entry.remember(memo);
        } else if let Some(known) = self.known(identity, parent) {
            self.put(identity, parent, known, Some(memo));
        }
    }

    /// Forgets how processes rested: each is compared at its next read.
    pub fn doubt(&mut self) {
        self.processes.values_mut().flat_map(|entry| &mut entry.memos).for_each(|remembered| remembered.rest = None);
    }

    pub(crate) fn take_buffers(&mut self) -> Buffers {
        std::mem::take(&mut self.buffers)
    }

    pub(crate) fn give_buffers(&mut self, mut buffers: Buffers) {
        buffers.shrink();
        self.buffers = buffers;
    }
}
