//! Requests for permits that wait: by host and slot, by pool, and by age, so that each event touches only its own.

use super::Pending;
use super::slots::Slots;
use crate::ids::{HostName, PoolName, SlotId};
use crate::time::Moment;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::time::Duration;

/// Whose request: the host and the slot.
pub(super) type Key = (HostName, SlotId);

/// What waits, and what is to be looked at next.
#[derive(Debug, Default)]
pub(super) struct Requests {
    all: Slots<Pending>,
    by_pool: BTreeMap<PoolName, BTreeSet<Key>>,
    /// Oldest first; an entry whose request is gone or newer says nothing.
    by_age: VecDeque<(Moment, Key)>,
    /// Pools in which something has changed since they were last looked at.
    changed: BTreeSet<PoolName>,
    /// Requests that are new, or whose host has spoken. One that is gone meanwhile says nothing.
    fresh: Vec<Key>,
}

impl Requests {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn get(&self, (host, slot): &Key) -> Option<&Pending> {
        self.all.get(host, slot)
    }

    /// Takes what a host wants now in place of what it wanted.
    pub(super) fn replace(&mut self, host: &HostName, wanted: impl Iterator<Item = Pending>) {
        let wanted: Vec<Pending> = wanted.collect();
        let gone = self.all.prune(host, |slot, _| wanted.iter().any(|pending| pending.want.slot == *slot));
        for (slot, pending) in gone {
            self.leave_pools(&(host.clone(), slot), &pending);
        }
        for pending in wanted {
            let key = (host.clone(), pending.want.slot.clone());
            self.by_age.push_back((pending.received_at, key.clone()));
            self.fresh.push(key.clone());
            self.insert(key, pending);
        }
    }

    /// Most requests are the last one again, which is in its pools already.
    fn insert(&mut self, key: Key, pending: Pending) {
        if self.get(&key).is_some_and(|last| last.want.pools != pending.want.pools) {
            self.remove(&key);
        }
        if self.get(&key).is_none() {
            for pool in &pending.want.pools {
                self.by_pool.entry(pool.clone()).or_default().insert(key.clone());
            }
        }
        self.all.insert(key.0, key.1, pending);
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Pending> {
        let pending = self.all.remove(&key.0, &key.1)?;
        self.leave_pools(key, &pending);
        Some(pending)
    }

    fn leave_pools(&mut self, key: &Key, pending: &Pending) {
        for pool in &pending.want.pools {
            if let Some(keys) = self.by_pool.get_mut(pool) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_pool.remove(pool);
                }
            }
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn remove_host(&mut self, host: &HostName) {
        self.replace(host, std::iter::empty());
    }

    /// Drops those that have waited for that long.
    pub(super) fn expire(&mut self, lifetime: Duration, now: Moment) {
        while let Some((received_at, _)) = self.by_age.front() {
            if now.since(*received_at) < lifetime {
                break;
            }
            let Some((received_at, key)) = self.by_age.pop_front() else { break };
            if self.get(&key).is_some_and(|pending| pending.received_at == received_at) {
                self.remove(&key);
            }
        }
    }

    /// These pools may have room now.
    pub(super) fn look_again(&mut self, pools: impl IntoIterator<Item = PoolName>) {
        self.changed.extend(pools);
    }

    /// What this host asked for may be granted now.
    pub(super) fn look_again_at(&mut self, host: &HostName) {
        self.fresh.extend(self.all.of(host).map(|(slot, _)| (host.clone(), slot.clone())));
    }

    /// Everything may be granted now.
    pub(super) fn look_again_at_all(&mut self) {
        self.fresh = self.all.iter().map(|(host, slot, _)| (host.clone(), slot.clone())).collect();
    }

    pub(super) fn take_fresh(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.fresh)
    }

    pub(super) fn take_changed(&mut self) -> BTreeSet<PoolName> {
        std::mem::take(&mut self.changed)
    }

    /// Returns the request in a pool that follows that of `last`.
    pub(super) fn next_in(&self, pool: &PoolName, last: Option<&Key>) -> Option<Key> {
        let keys = self.by_pool.get(pool)?;
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        keys.range((from, Bound::Unbounded)).next().cloned()
    }
}
