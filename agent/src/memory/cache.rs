//! What earlier reads learnt: addresses that only save time, each checked before it is used.

use super::locate::Runtime;
use super::modules::Remembered;
use super::source::Buffers;
use crate::reading::ReadOptions;
use std::collections::BTreeMap;
use std::sync::Arc;
use unstale_protocol::ids::{Pid, ProcessIdentity};

/// Most processes remembered.
const MAX_PROCESSES: usize = 1_024;

/// What is known of one interpreter.
#[derive(Clone, Debug)]
pub(crate) struct KnownInterpreter {
    pub(crate) address: u64,
    pub(crate) modules: u64,
    /// The class `enum.Enum`.
    pub(crate) root: u64,
    /// Interned names and their addresses.
    pub(crate) names: Vec<(&'static str, u64)>,
    pub(crate) remembered: Arc<Remembered>,
}

/// What is known of one process.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) runtime: Runtime,
    pub(crate) interpreters: Vec<KnownInterpreter>,
    /// What was asked when the modules were judged.
    pub(crate) options: ReadOptions,
}

#[derive(Debug)]
struct Entry {
    parent: Pid,
    used: u64,
    known: Known,
}

/// Addresses of processes that were read before. Forked children share their parent's addresses, so what is
/// known of a parent or of a sibling is tried first.
#[derive(Debug, Default)]
pub struct Cache {
    processes: BTreeMap<ProcessIdentity, Entry>,
    buffers: Buffers,
    clock: u64,
}

impl Cache {
    /// Returns an empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all processes for which `alive` says no.
    pub fn retain(&mut self, mut alive: impl FnMut(&ProcessIdentity) -> bool) {
        self.processes.retain(|identity, _| alive(identity));
    }

    /// Takes what is known of a process, of its parent, or of a child of the same parent.
    pub(crate) fn take(&mut self, identity: ProcessIdentity, parent: Pid) -> Option<Known> {
        if let Some(entry) = self.processes.remove(&identity) {
            return Some(entry.known);
        }
        let related = |(other, entry): &(&ProcessIdentity, &Entry)| other.pid == parent || entry.parent == parent;
        self.processes.iter().find(related).map(|(_, entry)| entry.known.clone())
    }

    /// Keeps what is known of a process.
    pub(crate) fn put(&mut self, identity: ProcessIdentity, parent: Pid, known: Known) {
        self.clock += 1;
        self.processes.insert(identity, Entry { parent, used: self.clock, known });
        if self.processes.len() > MAX_PROCESSES
            && let Some(oldest) =
                self.processes.iter().min_by_key(|(_, entry)| entry.used).map(|(identity, _)| *identity)
        {
            self.processes.remove(&oldest);
        }
    }

    pub(crate) fn take_buffers(&mut self) -> Buffers {
        std::mem::take(&mut self.buffers)
    }

    pub(crate) fn give_buffers(&mut self, mut buffers: Buffers) {
        buffers.shrink();
        self.buffers = buffers;
    }
}
