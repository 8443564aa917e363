//! Permits: who may act now. Budget is counted from what is outstanding, what hosts report, and what is not known.

use super::record::{MaxUnavailable, PermitRecord, Record};
use super::requests::Key;
use super::{Action, Coordinator, Event, Host, Pending, Standing};
use crate::ids::{HostName, PoolName, SlotId};
use crate::message::{Mode, Permit, Phase, Purpose};
use crate::time::Moment;
use std::collections::BTreeSet;

impl Coordinator {
    /// Grants what may be granted now.
    pub(super) fn review(&mut self, now: Moment) {
        self.reviewed_at = now;
        self.end_turns(now);
        self.search(now);
        self.requests.expire(self.policy.ask_lifetime, now);
        let can_grant = self.may_grant(now);
        if can_grant && !self.could_grant {
            self.requests.look_again_at_all();
        }
        self.could_grant = can_grant;
        let fresh = self.requests.take_fresh();
        let changed = self.requests.take_changed();
        if !can_grant {
            return;
        }
        for key in fresh {
            self.try_grant(&key);
        }
        for pool in changed {
            self.fill(&pool);
        }
        // What was granted just now has left less room, not more.
        drop(self.requests.take_changed());
    }

    /// Grants what waits in a pool while it has room.
    fn fill(&mut self, pool: &PoolName) {
        if !self.is_counted(pool) {
            return;
        }
        let mut last = None;
        while self.used(pool) < self.most(pool) {
            let Some(key) = self.requests.next_in(pool, last.as_ref()) else { return };
            self.try_grant(&key);
            last = Some(key);
        }
    }

    fn try_grant(&mut self, key: &Key) {
        let is_grantable = self.requests.get(key).is_some_and(|pending| self.is_grantable(&key.0, &key.1, pending));
        if is_grantable && let Some(pending) = self.requests.remove(key) {
            self.grant(key.clone(), pending);
        }
    }

    fn may_grant(&self, now: Moment) -> bool {
        let has_waited = now >= self.reign_at.after(self.policy.takeover_wait);
        has_waited && self.leads(now) && !self.lost_hosts
    }

    /// Tells whether the host was heard to follow this reign: it takes no other's permits since, and what it said
    /// before may be of before another's permits.
    pub(super) fn is_heard(&self, host: &Host) -> bool {
        host.heard_in == Some(self.version.epoch)
    }

    /// Tells whether a host has left, so that what is down there uses no budget: only what was permitted or under way. It
    /// may be back under another reign that has granted what this disk lacks: after a takeover it counts as one that was
    /// not heard, until all have had their turn to speak.
    fn is_gone(&self, host: &Host) -> bool {
        let nobody_else_granted = !self.partial && (self.standing == Standing::Sole || self.all_had_turn);
        host.record.left && (nobody_else_granted || self.is_heard(host))
    }

    /// Believes those that have left once each host that is back has had its turn to say so.
    fn end_turns(&mut self, now: Moment) {
        if !self.all_had_turn && self.standing != Standing::Standby && now >= self.partial_end() {
            self.all_had_turn = true;
            self.count_all_again();
        }
    }

    fn is_grantable(&self, host: &HostName, slot: &SlotId, pending: &Pending) -> bool {
        let Some(known) = self.hosts.get(host) else { return false };
        let is_current = known.record.incarnation == Some(pending.nonce.incarnation)
            && self.is_heard(known)
            && !known.record.left
            && !known.is_doubled()
            && pending.version == self.version;
        if !is_current || self.permits.get(host, slot).is_some() {
            return false;
        }
        match &pending.want.purpose {
            Purpose::Restart(apps) => {
                let all_run = apps.iter().all(|(app, revision)| {
                    self.rollouts
                        .get(app)
                        .and_then(|revisions| revisions.values().next_back())
                        .is_some_and(|rollout| rollout.revision == *revision && rollout.mode == Mode::Run)
                });
                all_run && !self.policy.drains_only && self.has_room(pending) && self.canary_allows(pending)
            }
            Purpose::Drain(id) => self.drains.get(id).is_some_and(|drain| {
                drain.host == *host && drain.slot == *slot && (drain.force || self.has_room(pending))
            }),
        }
    }

    fn has_room(&self, pending: &Pending) -> bool {
        !pending.want.pools.is_empty()
            && pending.want.pools.iter().all(|pool| self.used(pool) < self.limit(pool, pending))
            && pending.want.pools.iter().all(|pool| self.is_counted(pool))
    }

    /// Tells whether no host may have units in the pool that are not counted. A pool that does not begin with the name of
    /// an app, as those that configuration names, may have units of any.
    fn is_counted(&self, pool: &PoolName) -> bool {
        let uncounted = self.tally.uncounted();
        if uncounted.is_empty() {
            return true;
        }
        let owner = pool.as_str().split('/').next().unwrap_or_default();
        let is_of_one = self.rollouts.keys().any(|app| app.as_str() == owner);
        is_of_one && uncounted.keys().all(|app| app.as_str() != owner)
    }

    /// Returns how many units of the pool may be unavailable for this purpose.
    fn limit(&self, pool: &PoolName, pending: &Pending) -> u32 {
        let configured = self.configured(pool);
        let total = self.total(pool);
        let Purpose::Restart(apps) = &pending.want.purpose else { return configured.of(total) };
        apps.keys()
            .filter_map(|app| self.rollouts.get(app)?.values().next_back()?.terms.max_unavailable)
            .map(|stated| stated.of(total))
            .min()
            .unwrap_or_else(|| configured.of(total))
    }

    /// Returns how many units of the pool may be unavailable for whatever purpose.
    fn most(&self, pool: &PoolName) -> u32 {
        let total = self.total(pool);
        let stated =
            self.rollouts.values().filter_map(|revisions| revisions.values().next_back()?.terms.max_unavailable);
        stated.chain([self.configured(pool)]).map(|limit| limit.of(total)).max().unwrap_or(0)
    }

    fn configured(&self, pool: &PoolName) -> MaxUnavailable {
        self.policy.pools.get(pool).copied().unwrap_or(self.policy.max_unavailable)
    }

    /// Returns how many units the pool has, as far as anybody said.
    pub(super) fn total(&self, pool: &PoolName) -> u32 {
        self.tally.pool(pool).total
    }

    /// Returns how much of the pool's budget is in use: permits outstanding, units reported down or acting,
    /// and the last-known units of hosts not heard from since this reign began.
    pub(super) fn used(&self, pool: &PoolName) -> u32 {
        self.tally.pool(pool).used
    }

    pub(super) fn used_by(&self, name: &HostName, host: Option<&Host>, pool: &PoolName) -> u32 {
        let permits: BTreeSet<&SlotId> =
            self.permits.of(name).filter(|(_, permit)| permit.pools.contains(pool)).map(|(slot, _)| slot).collect();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        if let Some(gone) = host.filter(|host| self.is_gone(host)) {
            let slots = gone.report.iter().flat_map(|report| &report.slots);
            let acting =
                slots.filter(|slot| slot.phase.is_acting() && slot.pools.contains(pool)).map(|slot| &slot.slot);
            return count(permits.into_iter().chain(acting).collect::<BTreeSet<_>>().len());
        }
        let Some(report) = host.filter(|host| self.is_heard(host)).and_then(|host| host.report.as_ref()) else {
            let last_known = host.and_then(|host| host.record.pools.get(pool)).copied().unwrap_or(0);
            return last_known.max(count(permits.len()));
        };
        let unavailable = report.pools.get(pool).map_or(0, |pool| pool.unavailable);
        let already_counted = report
            .slots
            .iter()
            .filter(|slot| permits.contains(&slot.slot) && slot.pools.contains(pool) && is_unavailable(slot.phase))
            .count();
        unavailable.saturating_add(count(permits.len() - already_counted))
    }

    fn canary_allows(&self, pending: &Pending) -> bool {
        let Purpose::Restart(apps) = &pending.want.purpose else { return true };
        apps.iter().all(|(app, revision)| {
            let Some(rollout) = self.rollouts.get(app).and_then(|revisions| revisions.get(revision)) else {
                return false;
            };
            let Some(canary) = rollout.terms.canary else { return true };
            pending.want.pools.iter().all(|pool| {
                let verified = rollout.verified.get(pool).copied().unwrap_or(0);
                if verified >= canary {
                    return true;
                }
                let outstanding = self
                    .permits
                    .iter()
                    .filter(|(_, _, permit)| {
                        permit.pools.contains(pool)
                            && matches!(&permit.purpose, Purpose::Restart(apps) if apps.get(app) == Some(revision))
                    })
                    .count();
                (verified as usize + outstanding) < canary as usize
            })
        })
    }

    fn grant(&mut self, key: (HostName, SlotId), pending: Pending) {
        // Only a drain by force is granted without room.
        let beyond: Vec<&str> = if self.has_room(&pending) {
            Vec::new()
        } else {
            pending.want.pools.iter().map(PoolName::as_str).collect()
        };
        let because = match beyond.as_slice() {
            [] => String::new(),
            pools => format!("by force, beyond the budget of {}", pools.join(", ")),
        };
        let Pending { nonce, version, want, .. } = pending;
        let permit = PermitRecord {
            identity: want.identity,
            nonce,
            version,
            pools: want.pools.clone(),
            purpose: want.purpose.clone(),
        };
        let (app, revision) = first_app(&want.purpose);
        let granted = Event {
            app,
            revision,
            host: Some(key.0.clone()),
            slot: Some(key.1.clone()),
            what: "permitted".into(),
            because,
        };
        self.actions.push_back(Action::Store(vec![
            Record::Permit(key.0.clone(), key.1.clone(), Some(permit.clone())),
            Record::Event(granted),
        ]));
        self.actions.push_back(Action::Grant(Permit {
            host: key.0.clone(),
            slot: key.1.clone(),
            identity: want.identity,
            nonce,
            version,
            author: self.author,
            purpose: want.purpose,
            must: Vec::new(),
        }));
        let (host, slot) = key;
        self.permits.insert(host.clone(), slot, permit);
        self.count_again(&host);
    }
}

pub(super) fn first_app(purpose: &Purpose) -> (Option<crate::ids::AppName>, Option<crate::ids::Revision>) {
    match purpose {
        Purpose::Restart(apps) => match apps.first_key_value() {
            Some((app, revision)) => (Some(app.clone()), Some(*revision)),
            None => (None, None),
        },
        Purpose::Drain(_) => (None, None),
    }
}

/// Tells whether a slot in this phase is counted as unavailable in its host's pools.
pub(super) fn is_unavailable(phase: Phase) -> bool {
    phase.is_acting() || matches!(phase, Phase::Drained | Phase::Down)
}
