//! Something about slots, by host: what concerns one host is found by its name alone, and costs nothing where there is
//! nothing. Permits and requests are kept so.

use crate::ids::{HostName, SlotId};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// One `T` for each slot that has one, ordered by host, then slot.
#[derive(Debug)]
pub(super) struct Slots<T>(BTreeMap<HostName, BTreeMap<SlotId, T>>);

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Slots<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, host: &HostName, slot: &SlotId) -> Option<&T> {
        self.0.get(host)?.get(slot)
    }

    /// Returns those of one host.
    pub(super) fn of(&self, host: &HostName) -> impl Iterator<Item = (&SlotId, &T)> {
        self.0.get(host).into_iter().flatten()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&HostName, &SlotId, &T)> {
        self.0.iter().flat_map(|(host, slots)| slots.iter().map(move |(slot, value)| (host, slot, value)))
    }

    /// Returns the hosts that have any.
    pub(super) fn hosts(&self) -> impl Iterator<Item = &HostName> {
        self.0.keys()
    }

    pub(super) fn insert(&mut self, host: HostName, slot: SlotId, value: T) -> Option<T> {
        self.0.entry(host).or_default().insert(slot, value)
    }

    pub(super) fn remove(&mut self, host: &HostName, slot: &SlotId) -> Option<T> {
        let slots = self.0.get_mut(host)?;
        let removed = slots.remove(slot);
        if slots.is_empty() {
            self.0.remove(host);
        }
        removed
    }

    /// Removes those of one host for which `is_kept` does not hold, and returns them.
    pub(super) fn prune(&mut self, host: &HostName, mut is_kept: impl FnMut(&SlotId, &T) -> bool) -> Vec<(SlotId, T)> {
        let Entry::Occupied(mut of_host) = self.0.entry(host.clone()) else { return Vec::new() };
        let removed = of_host.get_mut().extract_if(.., |slot, value| !is_kept(slot, value)).collect();
        if of_host.get().is_empty() {
            of_host.remove();
        }
        removed
    }
}
