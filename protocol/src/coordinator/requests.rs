//! Requests for permits that wait: by host and slot, by pool, and by age, so that each event touches only its own.

use super::Pending;
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
    all: BTreeMap<Key, Pending>,
    by_pool: BTreeMap<PoolName, BTreeSet<Key>>,
    /// Oldest first; an entry whose request is gone or newer says nothing.
    by_age: VecDeque<(Moment, Key)>,
    /// Pools in which something has changed since they were last looked at.
    changed: BTreeSet<PoolName>,
    /// Requests that are new, or whose host has spoken.
    fresh: BTreeSet<Key>,
}

impl Requests {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Pending> {
        self.all.get(key)
    }

    pub(super) fn insert(&mut self, key: Key, pending: Pending) {
        self.remove(&key);
        for pool in &pending.want.pools {
            self.by_pool.entry(pool.clone()).or_default().insert(key.clone());
        }
        self.by_age.push_back((pending.received_at, key.clone()));
        self.fresh.insert(key.clone());
        self.all.insert(key, pending);
    }

    pub(super) fn remove(&mut self, key: &Key) {
        let Some(pending) = self.all.remove(key) else { return };
        self.fresh.remove(key);
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

    fn of_host(&self, host: &HostName) -> Vec<Key> {
        let from = (host.clone(), SlotId::first());
        self.all.range(from..).map(|(key, _)| key).take_while(|key| key.0 == *host).cloned().collect()
    }

    pub(super) fn remove_host(&mut self, host: &HostName) {
        for key in self.of_host(host) {
            self.remove(&key);
        }
    }

    /// Drops those that have waited for that long.
    pub(super) fn expire(&mut self, lifetime: Duration, now: Moment) {
        while let Some((received_at, _)) = self.by_age.front() {
            if now.since(*received_at) < lifetime {
                break;
            }
            let Some((received_at, key)) = self.by_age.pop_front() else { break };
            if self.all.get(&key).is_some_and(|pending| pending.received_at == received_at) {
                self.remove(&key);
            }
        }
    }

    /// These pools may have room now.
    pub(super) fn look_again(&mut self, pools: BTreeSet<PoolName>) {
        self.changed.extend(pools);
    }

    /// What this host asked for may be granted now.
    pub(super) fn look_again_at(&mut self, host: &HostName) {
        self.fresh.extend(self.of_host(host));
    }

    /// Everything may be granted now.
    pub(super) fn look_again_at_all(&mut self) {
        self.fresh = self.all.keys().cloned().collect();
    }

    pub(super) fn take_fresh(&mut self) -> BTreeSet<Key> {
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
