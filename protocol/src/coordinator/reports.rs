//! What reports change: hosts, permits, halts. A report counts once; older ones change nothing.

use super::budget::first_app;
use super::record::{Event, HostRecord, PermitRecord, Record};
use super::{Action, Coordinator, Host, Standing, event};
use crate::host::PERMIT_LIFETIME;
use crate::ids::{AppName, HostName, PoolName, Revision, SlotId, Version};
use crate::message::{DoneResult, Mode, Phase, Purpose, Report, SlotReport};
use crate::time::Moment;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Coordinator {
    /// Takes a host's report.
    pub fn handle_report(&mut self, report: Report, now: Moment) {
        self.expire(now);
        if !self.is_news(&report, now) {
            return;
        }
        let report = Arc::new(report);
        if report.author == self.author {
            self.see_asserted(report.accepted);
        }
        if self.is_rival(report.accepted, report.author) {
            self.partial = true;
            // What a rival desired under this number is not known here, however low its version.
            let generation = self.version.generation.next().max(report.accepted.generation);
            self.learn_of_later_reign(Version { generation, ..report.accepted }, now);
        } else if report.accepted > self.version {
            self.partial = true;
            self.learn_of_later_reign(report.accepted, now);
        } else if report.accepted < self.version {
            self.learn_of_unknown_state(report.accepted, now);
        }
        let mut records = self.take_in(&report, now);
        let unproven = self.free_permits(&report, &mut records);
        self.count_again(&report.host);
        self.requests.look_again_at(&report.host);
        if !records.is_empty() {
            self.actions.push_back(Action::Store(records));
        }
        self.learn_revisions(&report);
        self.halt_on_failures(&report);
        self.halt_on_unproven_canaries(&report, &unproven);
        self.find_hosts();
        self.trust_hosts(now);
        self.adopt_drains(&report);
        self.complete(now);
        self.review(now);
    }

    /// Orders reports by (incarnation counter, sequence). The same counter with other random bytes means two
    /// agents of one name: neither is judged, until one of them has been silent for long.
    fn is_news(&mut self, report: &Report, now: Moment) -> bool {
        let silent_after = self.policy.silent_after;
        let host = self.hosts.entry(report.host.clone()).or_insert_with(Host::unheard);
        let is_news = match host.record.incarnation {
            Some(known) if report.incarnation.counter < known.counter => {
                host.outnumbered = Some(report.incarnation.counter);
                false
            }
            Some(known) if report.incarnation.counter == known.counter && report.incarnation != known => {
                host.twin_at = Some(now);
                false
            }
            Some(known) if known == report.incarnation => {
                host.twin_at = host.twin_at.filter(|at| now.since(*at) < silent_after);
                // A life that has left is over: words of it from before may come late, or from somebody who kept them.
                let is_over = host.record.left && !report.leaving;
                !is_over && host.report.as_ref().is_none_or(|last| report.sequence > last.sequence)
            }
            _ => {
                host.twin_at = None;
                true
            }
        };
        if is_news {
            host.outnumbered = None;
        }
        is_news
    }

    fn take_in(&mut self, report: &Arc<Report>, now: Moment) -> Vec<Record> {
        let mut records = Vec::new();
        let follows = report.accepted.epoch == self.version.epoch && !self.is_rival(report.accepted, report.author);
        let heard_after = self.listening.total(now);
        let Some(host) = self.hosts.get_mut(&report.host) else { return records };
        let before = host.report.replace(Arc::clone(report));
        host.heard_at = Some(now);
        host.heard_after = heard_after;
        // One that does not understand what is desired does nothing, whoever asks it. A new life that has not looked yet
        // does not know what is down.
        let is_heard = report.scanned && (follows || report.unsupported.is_some());
        host.heard_in = is_heard.then_some(self.version.epoch);
        let is_still = before.as_deref().is_some_and(|last| says_the_same(last, report));
        if !is_still {
            host.still_since = Some(now);
        }
        // Most reports say what the last one said: what was kept and recorded then would come out the same.
        if is_still && before.as_deref().is_some_and(|last| counts_the_same(last, report)) {
            return records;
        }
        let record = HostRecord {
            pools: pools_of(report, &host.record.pools),
            incarnation: Some(report.incarnation),
            left: report.leaving,
            apps: apps_of(report, host.record.apps.as_ref()),
        };
        if host.record.left != record.left {
            let what = if record.left { "host left" } else { "host is back" };
            records.push(host_event(&report.host, what));
        }
        if host.record != record {
            host.record = record.clone();
            records.push(Record::Host(report.host.clone(), Some(record)));
        }
        let of_this_life = before.as_deref().filter(|before| before.incarnation == report.incarnation);
        // A new life of its agent proves everything anew: what it has not proven yet is not found wrong.
        let had_converged = of_this_life.map(|_| std::mem::take(&mut host.looks_again)).unwrap_or_default();
        host.looks_again = of_this_life.map(|before| looks_again(&had_converged, before, report)).unwrap_or_default();
        records.extend(changes(&report.host, before.as_deref(), report, &had_converged));
        records
    }

    /// A permit is freed by a report that shows its slot done, or not acting under a new incarnation or with
    /// an agent clock past the nonce's life. Never by a timer.
    ///
    /// Returns those whose unit came back and could not be judged.
    fn free_permits(&mut self, report: &Report, records: &mut Vec<Record>) -> Vec<(SlotId, PermitRecord)> {
        let mut unproven = Vec::new();
        if self.permits.of(&report.host).next().is_none() {
            return unproven;
        }
        let slots: BTreeMap<&SlotId, &SlotReport> = report.slots.iter().map(|slot| (&slot.slot, slot)).collect();
        let freed = self.permits.prune(&report.host, |slot, permit| !is_over(permit, slots.get(slot).copied(), report));
        for (slot, permit) in freed {
            let done = slots.get(&slot).and_then(|slot| slot.done.as_ref()).filter(|done| done.nonce == permit.nonce);
            records.push(Record::Permit(report.host.clone(), slot.clone(), None));
            match done.map(|done| done.result) {
                Some(DoneResult::Restarted) => self.count_verified(&permit, records),
                Some(DoneResult::Unproven) => unproven.push((slot, permit)),
                _ => {}
            }
        }
        unproven
    }

    fn count_verified(&mut self, permit: &PermitRecord, records: &mut Vec<Record>) {
        let Purpose::Restart(apps) = &permit.purpose else { return };
        for (app, revision) in apps {
            let Some(rollout) = self.rollouts.get_mut(app).and_then(|revisions| revisions.get_mut(revision)) else {
                continue;
            };
            if rollout.terms.canary.is_none() {
                continue;
            }
            self.requests.look_again(permit.pools.clone());
            for pool in &permit.pools {
                let verified = rollout.verified.entry(pool.clone()).or_default();
                *verified = verified.saturating_add(1);
            }
            records.push(Record::Rollout(app.clone(), rollout.clone()));
        }
    }

    /// A canary that came back and cannot be judged has shown nothing: the rest must not follow by itself. Looked at once,
    /// when its permit is freed: whoever resumes has the next one tried.
    fn halt_on_unproven_canaries(&mut self, report: &Report, unproven: &[(SlotId, PermitRecord)]) {
        if self.standing == Standing::Standby {
            return;
        }
        for (slot, permit) in unproven {
            let Purpose::Restart(apps) = &permit.purpose else { continue };
            for (app, revision) in apps {
                let current = self.rollouts.get(app).and_then(|revisions| revisions.values().next_back());
                let is_canary = current.is_some_and(|rollout| {
                    let verified = |pool| rollout.verified.get(pool).copied().unwrap_or(0);
                    let is_unverified = |canary| permit.pools.iter().any(|pool| verified(pool) < canary);
                    rollout.revision == *revision
                        && rollout.mode == Mode::Run
                        && rollout.terms.canary.is_some_and(is_unverified)
                });
                if is_canary {
                    let because = format!("the canary {slot} on {} is back and cannot be judged", report.host);
                    // The only refusals are of apps and revisions that do not exist.
                    let halted = self.set_mode(app, Some(*revision), Mode::Halt, "halted", &because);
                    debug_assert!(halted.is_ok());
                }
            }
        }
    }

    /// A unit that failed in the current attempt halts the rollouts that it was restarted for.
    fn halt_on_failures(&mut self, report: &Report) {
        if self.standing == Standing::Standby {
            return;
        }
        let mut halts: BTreeMap<AppName, (Revision, String)> = BTreeMap::new();
        for slot in report.slots.iter().filter(|slot| slot.phase == Phase::Failed) {
            let Some(done) = slot.done.as_ref().filter(|done| done.result == DoneResult::Failed) else { continue };
            let Purpose::Restart(apps) = &done.purpose else { continue };
            for (app, revision) in apps {
                let because = format!("{} on {}: {}", slot.slot, report.host, done.because);
                halts.entry(app.clone()).or_insert((*revision, because));
            }
        }
        for (app, (revision, because)) in halts {
            let Some(rollout) = self.rollouts.get(&app).and_then(|revisions| revisions.values().next_back()) else {
                continue;
            };
            // A report of before a resume tells of what the resume was for.
            let has_seen_attempt = report.accepted.generation >= rollout.attempt;
            if rollout.revision == revision && rollout.mode == Mode::Run && has_seen_attempt {
                // The only refusals are of apps and revisions that do not exist.
                let halted = self.set_mode(&app, Some(revision), Mode::Halt, "halted", &because);
                debug_assert!(halted.is_ok());
            }
        }
    }
}

/// Returns how many units the host has in each pool. One that has not looked yet only remembers some of them.
fn pools_of(report: &Report, known: &BTreeMap<PoolName, u32>) -> BTreeMap<PoolName, u32> {
    let mut pools: BTreeMap<PoolName, u32> =
        report.pools.iter().map(|(name, pool)| (name.clone(), pool.total)).collect();
    if !report.scanned {
        for (name, total) in known {
            let said = pools.entry(name.clone()).or_default();
            *said = (*said).max(*total);
        }
    }
    pools
}

/// Returns the apps whose units `pools_of` counts: those that were looked for, now or when the app was last heard of.
fn apps_of(report: &Report, known: Option<&BTreeSet<AppName>>) -> Option<BTreeSet<AppName>> {
    if !report.scanned {
        return known.cloned();
    }
    let is_known = |app: &AppName| known.is_some_and(|known| known.contains(app));
    let looked_for = report.apps.iter().filter(|(name, app)| !app.unseen || is_known(name));
    Some(looked_for.map(|(name, _)| name.clone()).collect())
}

fn is_over(permit: &PermitRecord, slot: Option<&SlotReport>, report: &Report) -> bool {
    let is_done = slot.and_then(|slot| slot.done.as_ref()).is_some_and(|done| done.nonce == permit.nonce);
    let is_acting = slot.is_some_and(|slot| slot.phase.is_acting());
    let is_newer_life = report.incarnation.counter > permit.nonce.incarnation.counter;
    let has_expired =
        report.incarnation == permit.nonce.incarnation && report.clock >= permit.nonce.at.after(PERMIT_LIFETIME);
    // Slots under action come first in a report, so one that is left out is not acting.
    !is_acting && (is_done || is_newer_life || has_expired)
}

fn says_the_same(a: &Report, b: &Report) -> bool {
    a.apps == b.apps && a.slots == b.slots && a.incarnation == b.incarnation
}

/// Tells whether what is kept of a host, beside what [`says_the_same`] compares, rests on the same words.
fn counts_the_same(a: &Report, b: &Report) -> bool {
    a.pools == b.pools && a.scanned == b.scanned && a.leaving == b.leaving
}

/// Returns the apps on which a host had converged before they were announced again and which it has not looked at since.
fn looks_again(known: &BTreeMap<AppName, Revision>, before: &Report, after: &Report) -> BTreeMap<AppName, Revision> {
    let had_converged = |name: &AppName, revision: Revision| {
        let last = before.apps.get(name);
        known.get(name) == Some(&revision) || last.is_some_and(|last| last.converged && last.revision == revision)
    };
    let unseen = after.apps.iter().filter(|(name, app)| app.unseen && had_converged(name, app.revision));
    unseen.map(|(name, app)| (name.clone(), app.revision)).collect()
}

/// Returns what is worth a line in the record. `looked_again` are the apps on which the host had converged before it was
/// asked to look again.
fn changes(
    host: &HostName,
    before: Option<&Report>,
    after: &Report,
    looked_again: &BTreeMap<AppName, Revision>,
) -> Vec<Record> {
    let old: BTreeMap<&SlotId, &SlotReport> =
        before.iter().flat_map(|report| &report.slots).map(|slot| (&slot.slot, slot)).collect();
    let mut records = Vec::new();
    for slot in &after.slots {
        let last = old.get(&slot.slot);
        if let Some(done) = &slot.done
            && last.is_none_or(|last| last.done.as_ref() != Some(done))
            && (before.is_some() || slot.phase == Phase::Failed)
        {
            let (app, revision) = first_app(&done.purpose);
            let word = result_word(done.result);
            records.push(slot_event(host, &slot.slot, app, revision, word, &done.because));
        }
        if last.is_none_or(|last| last.phase != slot.phase) && slot.phase.is_acting() {
            let (app, revision) = after
                .apps
                .iter()
                .find(|(name, _)| slot.apps.contains_key(*name))
                .map_or((None, None), |(name, app)| (Some(name.clone()), Some(app.revision)));
            records.push(slot_event(host, &slot.slot, app, revision, phase_word(slot.phase), &slot.because));
        }
    }
    for (name, app) in &after.apps {
        let last = before.and_then(|report| report.apps.get(name));
        let was_converged = last.is_some_and(|last| last.converged && last.revision == app.revision);
        let had_converged = was_converged || looked_again.get(name) == Some(&app.revision);
        let is_news = if app.converged { !was_converged } else { had_converged };
        // An attempt that no look has answered yet is no news of the units.
        if is_news && !app.unseen {
            let what = if app.converged { "host converged" } else { "host reopened" };
            let Record::Event(mut record) = event(what, name, app.revision, app.waiting.as_deref().unwrap_or(""))
            else {
                continue;
            };
            record.host = Some(host.clone());
            records.push(Record::Event(record));
        }
        let purged = app.purged_files.saturating_sub(last.map_or(0, |last| last.purged_files));
        if purged > 0 && last.is_some_and(|last| last.revision == app.revision) {
            let because = format!("{} of stale bytecode removed", super::status::counted(purged, "file"));
            let Record::Event(mut record) = event("purged", name, app.revision, &because) else { continue };
            record.host = Some(host.clone());
            records.push(Record::Event(record));
        }
    }
    records
}

fn host_event(host: &HostName, what: &str) -> Record {
    Record::Event(Event {
        app: None,
        revision: None,
        host: Some(host.clone()),
        slot: None,
        what: what.to_owned(),
        because: String::new(),
    })
}

fn slot_event(
    host: &HostName,
    slot: &SlotId,
    app: Option<AppName>,
    revision: Option<Revision>,
    what: &str,
    because: &str,
) -> Record {
    Record::Event(Event {
        app,
        revision,
        host: Some(host.clone()),
        slot: Some(slot.clone()),
        what: what.to_owned(),
        because: because.to_owned(),
    })
}

fn result_word(result: DoneResult) -> &'static str {
    match result {
        DoneResult::Restarted => "restarted",
        DoneResult::Drained => "drained",
        DoneResult::Undrained => "undrained",
        DoneResult::Cancelled => "cancelled",
        DoneResult::Refused => "refused",
        DoneResult::Failed => "failed",
        DoneResult::Unproven => "unproven",
    }
}

fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Up => "up",
        Phase::Asking => "asking",
        Phase::Preflight => "checking",
        Phase::Draining => "draining",
        Phase::Starting => "starting",
        Phase::Surviving => "back, watching",
        Phase::Verifying => "verifying",
        Phase::Drained => "drained",
        Phase::Failed => "failed",
        Phase::Down => "down",
        Phase::Gone => "gone",
    }
}
