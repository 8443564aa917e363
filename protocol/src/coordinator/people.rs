//! What people do: broadcasts, the hand on a rollout, drains, hosts that are forgotten.

use super::record::{Broadcast, DrainRecord, MaxUnavailable, Record, RolloutRecord};
use super::{Accepted, Action, Coordinator, Refused, event};
use crate::ids::{AppName, DrainId, HostName, Revision, Version};
use crate::message::{DoneResult, Mode, Phase, Purpose, SlotReport};
use crate::time::Moment;
use std::collections::BTreeMap;

impl Coordinator {
    /// Takes a broadcast. The same fingerprint as the current revision's re-attaches to it, except after an
    /// abort; anything else is a new revision.
    ///
    /// # Errors
    /// [`Refused::NotLeader`].
    pub fn handle_broadcast(&mut self, broadcast: &Broadcast, now: Moment) -> Result<Accepted, Refused> {
        self.must_lead(now)?;
        // A number that some host has followed already is not given to another content.
        let above = self.highest_revisions.get(&broadcast.app).copied().unwrap_or_default();
        let revisions = self.rollouts.entry(broadcast.app.clone()).or_default();
        let last = revisions.last_key_value().map(|(revision, _)| *revision);
        self.version.generation = self.version.generation.next();
        let version = self.version;
        let is_same = revisions.values().next_back().is_some_and(|current| {
            let is_same = current.fingerprint == broadcast.fingerprint || current.manifest == broadcast.manifest;
            is_same && current.mode != Mode::Abort && current.revision >= above
        });
        let last = last.unwrap_or_default();
        let revision = if is_same { last } else { last.max(above).next() };
        let rollout = revisions.entry(revision).or_insert_with(|| RolloutRecord {
            revision,
            manifest: broadcast.manifest,
            fingerprint: broadcast.fingerprint,
            mode: Mode::Run,
            mode_because: String::new(),
            attempt: version.generation,
            since: version,
            terms: broadcast.terms.clone(),
            verified: BTreeMap::new(),
            asked_by: broadcast.asked_by.clone(),
            message: broadcast.message.clone(),
            meta: broadcast.meta.clone(),
            at_ms: broadcast.at_ms,
        });
        rollout.terms = broadcast.terms.clone();
        // A halted rollout stays halted: only an operator's resume lets failed units be tried again.
        if rollout.mode != Mode::Halt {
            rollout.attempt = version.generation;
        }
        // The origin may differ although nothing that is compared does.
        rollout.manifest = broadcast.manifest;
        let record = rollout.clone();
        let what = if is_same { "announced again" } else { "announced" };
        let event = event(what, &broadcast.app, revision, &broadcast.asked_by);
        if revision != last {
            // Nothing may be known yet of what some host has of it.
            self.count_all_again();
        }
        self.publish(vec![Record::Rollout(broadcast.app.clone(), record), event]);
        self.review(now);
        Ok(Accepted { revision, is_same })
    }

    /// Stops purging and asking until resumed.
    ///
    /// # Errors
    /// [`Refused`] where there is no such current rollout, it was aborted, or another coordinator leads.
    pub fn handle_pause(
        &mut self,
        app: &AppName,
        revision: Option<Revision>,
        by: &str,
        now: Moment,
    ) -> Result<Revision, Refused> {
        self.must_lead(now)?;
        self.set_mode(app, revision, Mode::Pause, "paused", by)
    }

    /// Goes on after a pause or a halt. Units that failed are tried again.
    ///
    /// # Errors
    /// [`Refused`] where there is no such current rollout, it was aborted, or another coordinator leads.
    pub fn handle_resume(
        &mut self,
        app: &AppName,
        revision: Option<Revision>,
        max_unavailable: Option<MaxUnavailable>,
        by: &str,
        now: Moment,
    ) -> Result<Revision, Refused> {
        self.must_lead(now)?;
        let revision = self.current(app, revision)?;
        if let Some(rollout) = self.rollouts.get_mut(app).and_then(|revisions| revisions.get_mut(&revision)) {
            if rollout.mode == Mode::Abort {
                return Err(Refused::Aborted(app.clone(), revision));
            }
            rollout.attempt = self.version.generation.next();
            if max_unavailable.is_some() {
                rollout.terms.max_unavailable = max_unavailable;
            }
        }
        let revision = self.set_mode(app, Some(revision), Mode::Run, "resumed", by)?;
        self.review(now);
        Ok(revision)
    }

    /// Ends a rollout and calls back what was asked and not yet begun. Always wins.
    ///
    /// # Errors
    /// [`Refused`] where there is no such current rollout, or another coordinator leads.
    pub fn handle_abort(
        &mut self,
        app: &AppName,
        revision: Option<Revision>,
        by: &str,
        now: Moment,
    ) -> Result<Revision, Refused> {
        self.must_lead(now)?;
        self.set_mode(app, revision, Mode::Abort, "aborted", by)
    }

    fn current(&self, app: &AppName, revision: Option<Revision>) -> Result<Revision, Refused> {
        let current = self.rollouts.get(app).and_then(|revisions| revisions.last_key_value());
        let Some((current, _)) = current else { return Err(Refused::NoRollout(app.clone())) };
        match revision {
            Some(asked) if asked != *current => Err(Refused::NotCurrent(app.clone(), asked, *current)),
            _ => Ok(*current),
        }
    }

    pub(super) fn set_mode(
        &mut self,
        app: &AppName,
        revision: Option<Revision>,
        mode: Mode,
        what: &str,
        because: &str,
    ) -> Result<Revision, Refused> {
        let revision = self.current(app, revision)?;
        let Some(rollout) = self.rollouts.get_mut(app).and_then(|revisions| revisions.get_mut(&revision)) else {
            return Err(Refused::NoRollout(app.clone()));
        };
        if rollout.mode == Mode::Abort && mode != Mode::Abort {
            return Err(Refused::Aborted(app.clone(), revision));
        }
        rollout.mode = mode;
        because.clone_into(&mut rollout.mode_because);
        let record = rollout.clone();
        self.next_generation();
        self.requests.clear();
        self.publish(vec![Record::Rollout(app.clone(), record), event(what, app, revision, because)]);
        Ok(revision)
    }

    /// Takes units out of work. Returns the drain of each, existing ones again.
    ///
    /// # Errors
    /// [`Refused::NotLeader`].
    pub fn handle_drain(&mut self, drains: Vec<DrainRecord>, now: Moment) -> Result<Vec<DrainId>, Refused> {
        self.must_lead(now)?;
        let mut ids = Vec::new();
        let mut records = Vec::new();
        let version = self.version;
        for mut drain in drains {
            let known = self.drains.iter().find(|(_, old)| old.host == drain.host && old.slot == drain.slot);
            let known = known.map(|(id, _)| id.clone());
            let id = match known {
                Some(id) if !self.has_given_up(&id, &drain) => id,
                known => {
                    // What its host said of the one that was given up must not be taken for a word on this one.
                    if let Some(old) = known {
                        records.push(self.release(old));
                    }
                    let Ok(id) = DrainId::new(self.drain_name()) else { continue };
                    id
                }
            };
            self.next_drain += 1;
            // Of an existing one, too: who asks again has the last word over a reign that knew nothing of it.
            drain.since = Version { generation: version.generation.next(), ..version };
            records.push(Record::Drain(id.clone(), Some(drain.clone())));
            self.drains.insert(id.clone(), drain);
            ids.push(id);
        }
        if !records.is_empty() {
            self.next_generation();
            self.publish(records);
        }
        self.review(now);
        Ok(ids)
    }

    /// No name is given twice, by a coordinator with another disk or after a start that knows nothing of drains that
    /// were taken back: agents remember them by name.
    fn drain_name(&self) -> String {
        format!("drain-{}-{}", self.version.epoch, self.next_drain)
    }

    /// Lets go of a drain, and of what its host may still say of it. Returns what is to be kept of that.
    fn release(&mut self, id: DrainId) -> Record {
        self.drains.remove(&id);
        self.released.insert(id.clone());
        Record::Drain(id, None)
    }

    /// Tells whether its host has said that the drain failed or was refused, and does nothing for it now.
    fn has_given_up(&self, id: &DrainId, drain: &DrainRecord) -> bool {
        let report = self.hosts.get(&drain.host).and_then(|host| host.report.as_ref());
        let slot = report.and_then(|report| report.slots.iter().find(|slot| slot.slot == drain.slot));
        let has_given_up = |slot: &SlotReport| {
            let done = slot.done.as_ref().filter(|done| done.purpose == Purpose::Drain(id.clone()));
            let is_over = done.is_some_and(|done| matches!(done.result, DoneResult::Failed | DoneResult::Refused));
            is_over && !slot.phase.is_acting() && slot.phase != Phase::Drained
        };
        slot.is_some_and(has_given_up) && self.permits.get(&drain.host, &drain.slot).is_none()
    }

    /// Gives a drained unit back.
    ///
    /// # Errors
    /// [`Refused::NoDrain`], [`Refused::NotLeader`].
    pub fn handle_undrain(&mut self, id: &DrainId, now: Moment) -> Result<(), Refused> {
        self.must_lead(now)?;
        if !self.drains.contains_key(id) {
            return Err(Refused::NoDrain(id.clone()));
        }
        let record = self.release(id.clone());
        self.next_generation();
        self.publish(vec![record]);
        self.review(now);
        Ok(())
    }

    /// Forgets a host that will not come back, and what was to be drained there: it uses no budget and is not expected,
    /// unless configuration names it.
    ///
    /// # Errors
    /// [`Refused::NoHost`], [`Refused::Configured`], [`Refused::NotLeader`].
    pub fn handle_forget(&mut self, name: &HostName, now: Moment) -> Result<(), Refused> {
        self.must_lead(now)?;
        if self.hosts.remove(name).is_none() {
            let is_configured = self.is_host_configured(name);
            return Err(if is_configured { Refused::Configured } else { Refused::NoHost }(name.clone()));
        }
        let mut records = vec![Record::Host(name.clone(), None)];
        let held = self.permits.prune(name, |_, _| false);
        records.extend(held.into_iter().map(|(slot, _)| Record::Permit(name.clone(), slot, None)));
        // Nobody will come who could take them back.
        let drains: Vec<DrainId> =
            self.drains.iter().filter(|(_, drain)| drain.host == *name).map(|(id, _)| id.clone()).collect();
        self.requests.remove_host(name);
        self.count_again(name);
        if drains.is_empty() {
            self.actions.push_back(Action::Store(records));
        } else {
            records.extend(drains.into_iter().map(|id| self.release(id)));
            self.next_generation();
            self.publish(records);
        }
        self.complete(now);
        self.review(now);
        Ok(())
    }
}
