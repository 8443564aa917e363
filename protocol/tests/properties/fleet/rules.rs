//! What the rules allow a coordinator, and what they say that it knows.

use super::{Fleet, Law, digest, limits};
use std::collections::{BTreeMap, BTreeSet};
use unstale_protocol::coordinator::{MaxUnavailable, Outcome, PermitRecord};
use unstale_protocol::ids::{AppName, HostName, PoolName, Revision, SlotId, Version};
use unstale_protocol::message::{Ask, Desired, DoneResult, Mode, Phase, Purpose, Report, SlotReport, Want};

impl Fleet {
    /// What the rules say that a report changes.
    pub(super) fn hear(&mut self, report: &Report, before: Version) {
        let book = &mut self.book;
        let name = &report.host;
        let known = book.known.get(name).copied();
        let same_life = known == Some(report.incarnation);
        let is_news = match known {
            Some(known) if report.incarnation.counter < known.counter => false,
            Some(known) if report.incarnation.counter == known.counter && !same_life => {
                book.doubled.insert(name.clone(), self.now);
                false
            }
            _ if same_life => {
                // The other one has been silent for long.
                book.doubled.retain(|host, at| host != name || self.now - *at < 180_000);
                let is_over = book.left.contains(name) && !report.leaving;
                !is_over && book.heard.get(name).is_none_or(|(last, _)| report.sequence > last.sequence)
            }
            _ => {
                book.doubled.remove(name);
                true
            }
        };
        if !is_news {
            return;
        }
        let leads = book.lease.is_none_or(|until| self.now < until);
        book.behind |= report.accepted > before && !leads;
        if report.accepted > before && leads {
            book.lost |= !book.knew_hosts && self.policy.expected_hosts.is_empty();
            book.heard_in_reign.clear();
            book.reign_at = self.now;
        }
        book.known.insert(name.clone(), report.incarnation);
        book.totals.insert(name.clone(), report.pools.iter().map(|(name, pool)| (name.clone(), pool.total)).collect());
        if report.leaving {
            book.left.insert(name.clone())
        } else {
            book.left.remove(name)
        };
        book.heard.insert(name.clone(), (report.clone(), self.now));
        if report.accepted.epoch == self.machine.version().epoch {
            book.heard_in_reign.insert(name.clone());
        }
        self.find_hosts();
        self.trust_hosts();
        let unproven = self.free(report);
        self.halt(report);
        self.halt_canaries(&unproven);
    }

    /// Those whose leave was heard in this life, and whom nobody expects.
    pub(super) fn gone(&self) -> impl Iterator<Item = &HostName> {
        let is_gone =
            |name: &&HostName| self.book.heard.contains_key(*name) && !self.policy.expected_hosts.contains(*name);
        self.book.left.iter().filter(is_gone)
    }

    pub(super) fn find_hosts(&mut self) {
        let heard = u32::try_from(self.book.heard.len()).unwrap();
        let uncounted = self.gone().filter(|name| self.book.left_when_stated.contains(*name)).count();
        let is_found = self.book.stated.is_some_and(|stated| heard >= stated + u32::try_from(uncounted).unwrap());
        self.book.whole |= self.book.lost && is_found;
        self.book.lost &= !is_found;
    }

    /// A list is trusted by the next life once this one has led for as long as every host needs to speak.
    pub(super) fn trust_hosts(&mut self) {
        let has_led = self.leads() && self.now >= self.book.reign_at + 70_000;
        self.book.whole |= has_led && !self.book.lost && !self.book.known.is_empty();
    }

    /// Returns those whose unit is back and was not proven.
    fn free(&mut self, report: &Report) -> Vec<PermitRecord> {
        let mut unproven = Vec::new();
        let held: Vec<_> = self
            .book
            .permits
            .iter()
            .filter(|((host, _), _)| *host == report.host)
            .map(|(key, permit)| (key.clone(), permit.clone()))
            .collect();
        for (key, permit) in held {
            let slot = report.slots.iter().find(|slot| slot.slot == key.1).unwrap();
            let done = slot.done.as_ref().filter(|done| done.nonce == permit.nonce);
            let later_life = report.incarnation.counter > permit.nonce.incarnation.counter;
            let too_old =
                report.incarnation == permit.nonce.incarnation && report.clock.0 >= permit.nonce.at.0 + 20_000;
            if slot.phase.is_acting() || !(done.is_some() || later_life || too_old) {
                continue;
            }
            if let (Purpose::Restart(apps), true) =
                (&permit.purpose, done.is_some_and(|done| done.result == DoneResult::Restarted))
            {
                for (name, revision) in apps
                    .iter()
                    .filter(|(name, revision)| self.book.canaries.contains_key(&((*name).clone(), **revision)))
                {
                    for pool in &permit.pools {
                        *self.book.verified.entry((name.clone(), *revision, pool.clone())).or_default() += 1;
                    }
                }
            }
            if done.is_some_and(|done| done.result == DoneResult::Unproven) {
                unproven.push(permit);
            }
            self.book.permits.remove(&key);
        }
        unproven
    }

    /// Nothing follows a canary that was not proven.
    fn halt_canaries(&mut self, unproven: &[PermitRecord]) {
        if !self.leads() {
            return;
        }
        for permit in unproven {
            let Purpose::Restart(apps) = &permit.purpose else { continue };
            for (name, revision) in apps {
                let Some(canary) = self.book.canaries.get(&(name.clone(), *revision)) else { continue };
                let verified = |pool: &PoolName| {
                    self.book.verified.get(&(name.clone(), *revision, pool.clone())).copied().unwrap_or(0)
                };
                let is_unverified = permit.pools.iter().any(|pool| verified(pool) < *canary);
                let Some((current, mode, _)) = self.book.modes.get_mut(name) else { continue };
                if is_unverified && current == revision && *mode == Mode::Run {
                    *mode = Mode::Halt;
                }
            }
        }
    }

    fn halt(&mut self, report: &Report) {
        if !self.leads() {
            return;
        }
        let desired = self.machine.desired();
        for slot in report.slots.iter().filter(|slot| slot.phase == Phase::Failed) {
            let Some(done) = slot.done.as_ref().filter(|done| done.result == DoneResult::Failed) else { continue };
            let Purpose::Restart(apps) = &done.purpose else { continue };
            for (name, revision) in apps {
                let Some((current, mode, _)) = self.book.modes.get_mut(name) else { continue };
                let has_seen = desired.apps.get(name).is_some_and(|app| report.accepted.generation >= app.attempt);
                if current == revision && *mode == Mode::Run && has_seen {
                    *mode = Mode::Halt;
                }
            }
        }
    }

    /// Returns the laws that a grant to this request would break now.
    pub(super) fn objections(&self, ask: &Ask, want: &Want, received_at: u64) -> Vec<Law> {
        let book = &self.book;
        let mut broken = Vec::new();
        let mut demand = |holds: bool, law: Law| {
            if !holds {
                broken.push(law);
            }
        };
        demand(self.now - received_at < 16_000, Law::YoungRequest);
        demand(ask.version == self.machine.version(), Law::YoungRequest);
        demand(self.now >= book.reign_at + 30_000, Law::Takeover);
        demand(self.leads(), Law::Lease);
        demand(
            book.known.get(&ask.host) == Some(&ask.nonce.incarnation) && !book.doubled.contains_key(&ask.host),
            Law::RightAgent,
        );
        demand(book.heard_in_reign.contains(&ask.host), Law::RightAgent);
        demand(!book.left.contains(&ask.host), Law::RightAgent);
        demand(!book.permits.contains_key(&(ask.host.clone(), want.slot.clone())), Law::Freed);
        demand(!book.lost, Law::LostFleet);
        let has_room = want.pools.iter().all(|pool| self.used(pool) < self.limit(pool));
        match &want.purpose {
            Purpose::Restart(apps) => {
                let runs = |(name, revision): (&AppName, &Revision)| {
                    book.modes.get(name).is_some_and(|(current, mode, _)| current == revision && *mode == Mode::Run)
                };
                demand(apps.iter().all(runs), Law::Mode);
                demand(has_room, Law::Budget);
                demand(apps.iter().all(|(name, revision)| self.canary_allows(name, *revision, want)), Law::Canary);
            }
            Purpose::Drain(id) => {
                let desired = self.machine.desired();
                let drain = desired.drains.iter().find(|drain| drain.id == *id);
                demand(drain.is_some(), Law::Mode);
                demand(has_room || drain.is_some_and(|drain| drain.force), Law::Budget);
            }
        }
        broken
    }

    fn limit(&self, pool: &PoolName) -> u32 {
        let there = self.book.totals.iter().filter(|(host, _)| !self.book.left.contains(*host));
        let total: u32 = there.filter_map(|(_, pools)| pools.get(pool)).sum();
        let MaxUnavailable::Units(wanted) = limits()[pool] else { unreachable!() };
        if total > 1 { wanted.min(total - 1) } else { wanted.min(1) }
    }

    /// Permits outstanding, what is reported away, and all of every host that was not heard from in this reign. Of a host
    /// that has left only what was permitted or under way, unless somebody else may have granted more.
    fn used(&self, pool: &PoolName) -> u32 {
        let hosts: BTreeSet<&HostName> =
            self.book.known.keys().chain(self.book.permits.keys().map(|(host, _)| host)).collect();
        hosts.into_iter().map(|name| self.used_by(name, pool)).sum()
    }

    fn used_by(&self, name: &HostName, pool: &PoolName) -> u32 {
        let held = self.book.permits.iter().filter(|((host, _), permit)| host == name && permit.pools.contains(pool));
        let mut away: BTreeSet<SlotId> = held.map(|((_, slot), _)| slot.clone()).collect();
        let had_turn = self.book.lease.is_none() || self.now >= self.book.reign_at + 70_000;
        let is_sure = self.book.heard_in_reign.contains(name) || (had_turn && !self.machine.desired().partial);
        if self.book.left.contains(name) && is_sure {
            let slots = self.book.heard.get(name).into_iter().flat_map(|(report, _)| &report.slots);
            let acting = slots.filter(|slot| slot.pools.contains(pool) && slot.phase.is_acting());
            away.extend(acting.map(|slot| slot.slot.clone()));
            return u32::try_from(away.len()).unwrap();
        }
        let last_words = self.book.heard.get(name).filter(|_| self.book.heard_in_reign.contains(name));
        let Some((report, _)) = last_words else {
            let known = self.book.totals.get(name).and_then(|pools| pools.get(pool)).copied().unwrap_or(0);
            return known.max(u32::try_from(away.len()).unwrap());
        };
        let is_away = |slot: &&SlotReport| slot.pools.contains(pool) && slot.phase != Phase::Up;
        away.extend(report.slots.iter().filter(is_away).map(|slot| slot.slot.clone()));
        u32::try_from(away.len()).unwrap()
    }

    fn canary_allows(&self, name: &AppName, revision: Revision, want: &Want) -> bool {
        let Some(canary) = self.book.canaries.get(&(name.clone(), revision)) else { return true };
        want.pools.iter().all(|pool| {
            let verified = self.book.verified.get(&(name.clone(), revision, pool.clone())).copied().unwrap_or(0);
            let begun = self.book.permits.values().filter(|permit| {
                permit.pools.contains(pool)
                    && matches!(&permit.purpose, Purpose::Restart(apps) if apps.get(name) == Some(&revision))
            });
            verified >= *canary || verified + u32::try_from(begun.count()).unwrap() < *canary
        })
    }

    /// What may be granted is granted.
    pub(super) fn check_withheld(&mut self) {
        let asks: Vec<_> = self.book.asks.values().cloned().collect();
        for (ask, want, at) in asks {
            if self.objections(&ask, &want, at).is_empty() {
                self.broke(Law::Withheld, format!("{want:?} of {}", ask.host));
            }
        }
    }

    pub(super) fn check_state(&mut self) {
        let permits: Vec<_> = self.machine.permits().map(|(host, slot, _)| (host.clone(), slot.clone())).collect();
        if permits != self.book.permits.keys().cloned().collect::<Vec<_>>() {
            self.broke(Law::Freed, format!("{permits:?} instead of {:?}", self.book.permits.keys()));
        }
        let reports: Vec<_> = self.machine.reports().map(|report| (report.incarnation, report.sequence)).collect();
        let heard = self.book.heard.values().map(|(report, _)| (report.incarnation, report.sequence));
        if reports != heard.collect::<Vec<_>>() {
            self.broke(Law::Heard, format!("{reports:?} are the last that count"));
        }
        let desired = self.machine.desired();
        let modes: BTreeMap<_, _> =
            desired.apps.iter().map(|(name, app)| (name.clone(), (app.revision, app.mode, app.manifest))).collect();
        let wanted: BTreeMap<_, _> = self
            .book
            .modes
            .iter()
            .map(|(name, (revision, mode, variant))| (name.clone(), (*revision, *mode, digest(*variant))))
            .collect();
        if modes != wanted {
            self.broke(Law::Desired, format!("{modes:?} instead of {wanted:?}"));
        }
        for name in wanted.keys() {
            self.check_outcome(name, &desired);
        }
    }

    /// *Converged* is said when all of it is proven, and only then, by who leads; who is silent is named.
    fn check_outcome(&mut self, name: &AppName, desired: &Desired) {
        let wanted = &desired.apps[name];
        let status = self.machine.status(name, wanted.revision, self.moment()).unwrap();
        let book = &self.book;
        let mut expected = self.policy.expected_hosts.clone();
        expected.extend(book.known.keys().filter(|host| !book.left.contains(*host)).cloned());
        let mut fresh = 0;
        let mut all_proven = true;
        let mut silent = BTreeSet::new();
        for host in &expected {
            let heard = book.heard.get(host);
            let since = heard.map_or(book.started_at, |(_, at)| *at);
            if self.now - since >= 180_000 {
                silent.insert(host.clone());
            }
            let Some((report, _)) = heard else {
                all_proven = false;
                continue;
            };
            let app = report.apps.get(name).filter(|app| app.revision == wanted.revision);
            fresh += app.map_or(0, |app| app.units.fresh);
            all_proven &= app.is_some_and(|app| app.converged)
                && book.heard_in_reign.contains(host)
                && report.accepted.generation >= wanted.attempt
                && !book.doubled.contains_key(host);
        }
        let knows_fleet = book.knew_hosts || !self.policy.expected_hosts.is_empty();
        let has_waited = knows_fleet || self.now - book.led_since >= 70_000;
        let is_proven = wanted.mode == Mode::Run
            && all_proven
            && silent.is_empty()
            && fresh > 0
            && has_waited
            && !book.lost
            && self.leads();
        if is_proven != (status.outcome == Outcome::Converged) {
            self.broke(Law::Verdict, format!("{name} is {:?}; proven: {is_proven}", status.outcome));
        }
        if let Outcome::Incomplete(why) = &status.outcome
            && let Some(host) =
                silent.iter().find(|host| !why.contains(host.as_str()) && !self.book.doubled.contains_key(*host))
        {
            self.broke(Law::Named, format!("{host} is silent, and {why:?} does not say so"));
        }
    }
}
