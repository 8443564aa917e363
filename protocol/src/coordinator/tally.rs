//! What the pools of the fleet have and what of it is in use, host by host, so that no decision walks the fleet.

use super::{Coordinator, Host, RolloutRecord};
use crate::ids::{AppName, HostName, PoolName, Revision};
use std::collections::{BTreeMap, BTreeSet};

/// Units of one pool: all of them, and those that use its budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) total: u32,
    pub(super) used: u32,
}

/// Every host's share of every pool, and their sums.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pools: BTreeMap<PoolName, Share>,
    hosts: BTreeMap<HostName, Vec<(PoolName, Share)>>,
    /// Hosts that may have units of an app that are not counted.
    uncounted: BTreeMap<AppName, BTreeSet<HostName>>,
}

impl Tally {
    pub(super) fn pool(&self, pool: &PoolName) -> Share {
        self.pools.get(pool).copied().unwrap_or_default()
    }

    /// Takes a host's shares in place of those that it had. Returns the pools whose sums have changed.
    fn set(&mut self, host: &HostName, shares: Vec<(PoolName, Share)>) -> BTreeSet<PoolName> {
        if self.hosts.get(host).map_or(&[][..], Vec::as_slice) == shares {
            return BTreeSet::new();
        }
        let before = if shares.is_empty() {
            self.hosts.remove(host).unwrap_or_default()
        } else {
            self.hosts.insert(host.clone(), shares.clone()).unwrap_or_default()
        };
        for (pool, share) in &before {
            if let Some(sum) = self.pools.get_mut(pool) {
                sum.total = sum.total.saturating_sub(share.total);
                sum.used = sum.used.saturating_sub(share.used);
                if *sum == Share::default() {
                    self.pools.remove(pool);
                }
            }
        }
        for (pool, share) in &shares {
            let sum = self.pools.entry(pool.clone()).or_default();
            sum.total = sum.total.saturating_add(share.total);
            sum.used = sum.used.saturating_add(share.used);
        }
        before.into_iter().chain(shares).map(|(pool, _)| pool).collect()
    }

    /// Takes the apps of which a host may have units that are not counted. Returns whether there are fewer than before.
    fn set_uncounted(&mut self, host: &HostName, apps: &BTreeSet<AppName>) -> bool {
        let mut are_fewer = false;
        self.uncounted.retain(|app, hosts| {
            are_fewer |= !apps.contains(app) && hosts.remove(host);
            !hosts.is_empty()
        });
        for app in apps {
            self.uncounted.entry(app.clone()).or_default().insert(host.clone());
        }
        are_fewer
    }

    pub(super) fn uncounted(&self) -> &BTreeMap<AppName, BTreeSet<HostName>> {
        &self.uncounted
    }

    pub(super) fn hosts(&self) -> impl Iterator<Item = &HostName> {
        self.hosts.keys()
    }
}

impl Coordinator {
    /// Counts a host's share of every pool again, after its report, a permit of its, or its end.
    pub(super) fn count_again(&mut self, name: &HostName) {
        let host = self.hosts.get(name);
        let mut pools: BTreeSet<&PoolName> = self.permits.of(name).flat_map(|(_, permit)| &permit.pools).collect();
        if let Some(host) = host {
            pools.extend(host.record.pools.keys());
            pools.extend(host.report.iter().flat_map(|report| report.pools.keys()));
        }
        let shares = pools
            .into_iter()
            .map(|pool| {
                let share = Share { total: total_of(host, pool), used: self.used_by(name, host, pool) };
                (pool.clone(), share)
            })
            .filter(|(_, share)| *share != Share::default())
            .collect();
        let changed = self.tally.set(name, shares);
        self.requests.look_again(changed);
        let uncounted = self.hosts.get(name).map_or_else(BTreeSet::new, |host| self.uncounted_at(host));
        if self.tally.set_uncounted(name, &uncounted) {
            self.requests.look_again_at_all();
        }
    }

    /// Returns the apps of which the host may have units under action that nobody here knows of. It was not heard in this
    /// reign, when it was last heard it had not looked for them, and somebody else may have granted since. What this disk
    /// has announced and granted alone is known without the host.
    fn uncounted_at(&self, host: &Host) -> BTreeSet<AppName> {
        let Some(looked_for) = host.record.apps.as_ref().filter(|_| !self.is_heard(host) && !host.record.left) else {
            return BTreeSet::new();
        };
        let may_be_granted_elsewhere = |revisions: &BTreeMap<Revision, RolloutRecord>| {
            let first = revisions.values().next();
            self.partial || first.is_some_and(|rollout| rollout.since.epoch <= self.adopted.epoch)
        };
        let apps = self
            .rollouts
            .iter()
            .filter(|(app, revisions)| !looked_for.contains(*app) && may_be_granted_elsewhere(revisions));
        apps.map(|(app, _)| app.clone()).collect()
    }

    /// Counts everybody again: what was heard before a reign does not count in it.
    pub(super) fn count_all_again(&mut self) {
        let counted = self.tally.hosts().chain(self.hosts.keys()).chain(self.permits.hosts());
        let names: BTreeSet<HostName> = counted.cloned().collect();
        for name in &names {
            self.count_again(name);
        }
    }
}

/// Returns how many units of the pool the host has, as far as anybody said.
fn total_of(host: Option<&Host>, pool: &PoolName) -> u32 {
    // What is not there keeps nothing up while others restart.
    let Some(host) = host.filter(|host| !host.record.left) else { return 0 };
    match &host.report {
        Some(report) if report.scanned => report.pools.get(pool).map_or(0, |pool| pool.total),
        _ => host.record.pools.get(pool).copied().unwrap_or(0),
    }
}
