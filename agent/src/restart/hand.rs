//! What a unit has in hand, as far as it can be seen without its broker.
//!
//! An idle prefork child of Celery waits for four bytes from a pipe that its main process holds too; a task
//! that waits on a pipe of its own is told apart by that. With brokers that have no event loop (files, memory) all
//! children share one pipe: one reads, the others wait for a semaphore that the main process made. One look may err: a queue full of very short tasks looks
//! idle now and then. What is prefetched cannot be seen at all.

use super::facts::{Pool, UnitFacts};
use super::proc::{self, Call};
use crate::process::{Kind, Process, Unit};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use unstale_protocol::ids::Pid;

#[cfg(target_arch = "x86_64")]
mod number {
    pub(super) const READ: u64 = 0;
    pub(super) const FUTEX: u64 = 202;
    /// `epoll_wait`, `epoll_pwait`, `epoll_pwait2`.
    pub(super) const WAITS: [u64; 3] = [232, 281, 441];
}
#[cfg(not(target_arch = "x86_64"))]
mod number {
    /// The numbers that the newer architectures share.
    pub(super) const READ: u64 = 63;
    pub(super) const FUTEX: u64 = 98;
    pub(super) const WAITS: [u64; 3] = [22, 22, 441];
}

/// What the processes that run tasks do right now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InHand {
    /// Those that have a task in hand.
    pub busy: Vec<Pid>,
    /// Those that wait for one.
    pub idle: Vec<Pid>,
    /// Those of which it cannot be said, by kind or by right.
    pub unknown: Vec<Pid>,
}

impl InHand {
    /// Tells whether every process that runs tasks was seen to wait for one.
    pub fn is_idle(&self) -> bool {
        self.busy.is_empty() && self.unknown.is_empty()
    }
}

/// Looks once at what `unit` has in hand.
pub fn in_hand(unit: &Unit, facts: &UnitFacts) -> InHand {
    let mut hand = InHand::default();
    let Some(root) = unit.root() else { return hand };
    match (unit.kind, facts.pool()) {
        (Kind::Celery, Pool::Prefork) => {
            let shared = proc::pipes(root.identity.pid);
            let children = unit.processes.iter().skip(1).filter(|child| is_pool_child(child));
            children.for_each(|child| prefork_child(child.identity.pid, root.identity.pid, shared.as_ref(), &mut hand));
        }
        (Kind::Celery, Pool::Solo) => {
            let pid = root.identity.pid;
            match proc::call(pid) {
                Some(Call::Blocked { number, .. }) if number::WAITS.contains(&number) => hand.idle.push(pid),
                Some(_) => hand.busy.push(pid),
                None => hand.unknown.push(pid),
            }
        }
        _ => hand.unknown.push(root.identity.pid),
    }
    hand
}

/// An embedded beat is a child too, and never has a task.
fn is_pool_child(child: &Process) -> bool {
    child.kind == Kind::Celery
}

fn prefork_child(pid: Pid, main: Pid, shared: Option<&BTreeSet<String>>, hand: &mut InHand) {
    let (Some(call), Some(shared)) = (proc::call(pid), shared) else {
        // A child that has just ended has nothing in hand.
        if proc::stat(pid).is_some() {
            hand.unknown.push(pid);
        }
        return;
    };
    let waits = match call {
        Call::Blocked { number: number::READ, arguments: [fd, _, 4] } => {
            proc::descriptor(pid, fd).is_some_and(|pipe| shared.contains(&pipe))
        }
        Call::Blocked { number: number::FUTEX, arguments: [address, operation, _] } => {
            waits_between_processes(operation) && is_pool_semaphore(pid, main, address)
        }
        _ => false,
    };
    if waits { hand.idle.push(pid) } else { hand.busy.push(pid) }
}

/// `FUTEX_WAIT` or `FUTEX_WAIT_BITSET` without `FUTEX_PRIVATE_FLAG`: futex(2).
fn waits_between_processes(operation: u64) -> bool {
    const PRIVATE: u64 = 128;
    operation & PRIVATE == 0 && matches!(operation & 0x7f, 0 | 9)
}

/// Tells whether `address` lies in memory that the main process shares with its pool, which is where the pool's
/// semaphores are. One that a task has made for itself is not in the main process.
fn is_pool_semaphore(pid: Pid, main: Pid, address: u64) -> bool {
    proc::shared_mapping(pid, address).is_some_and(|mapping| proc::has_mapping(main, &mapping))
}
