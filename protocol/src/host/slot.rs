//! One slot on one host: what is up in it, what is being done to it, what is remembered of it.

use super::app::App;
use super::input::{Failure, Record, SlotRecord, UnitView, Vacancy};
use crate::ids::{AppName, DrainId, ProcessIdentity, Revision, SlotId, Version};
use crate::message::{DesiredApp, DesiredDrain, Done, DoneResult, Mode, Nonce, Phase, Purpose, Want};
use crate::restart::{Finished, Intent, IntentPhase, Restart, RestartPolicy, Sight, Task};
use crate::time::Moment;
use crate::verdict::{Cure, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a unit that the pre-flight refused is left alone before it is asked for again.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// How long a drained unit that could not be given back is left alone before that is tried again.
const UNDRAIN_PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) view: Option<UnitView>,
    pub(super) vacancy: Option<Vacancy>,
    pub(super) action: Option<Restart>,
    pub(super) record: SlotRecord,
    refused: Option<(Moment, String)>,
    /// The slot is not given back before this moment: the last try was in vain.
    undrain_at: Option<Moment>,
    /// Why the last try to give the slot back failed, until it is given back.
    undrain_failed: Option<String>,
    forget: bool,
    /// When the list of processes behind `view` was taken.
    seen_at: Moment,
    /// The root that was last seen, and when it was seen first.
    up_since: Option<(ProcessIdentity, Moment)>,
    /// Lists taken before this moment say nothing: an action ended since.
    not_before: Moment,
}

impl Slot {
    /// Takes what was seen in the slot. A failure is over once a fresh unit has stayed up for the `window`: one that
    /// starts and dies again and again is fresh each time it is looked at.
    pub(super) fn see(&mut self, unit: &UnitView, begun_at: Moment, window: Duration, now: Moment) {
        self.seen_at = begun_at;
        let up_since = match self.up_since {
            Some((root, since)) if root == unit.root => since,
            _ => begun_at,
        };
        self.up_since = Some((unit.root, up_since));
        self.view = Some(unit.clone());
        self.vacancy = None;
        self.forget = false;
        let apps = unit.apps.iter().map(|(name, app)| (name.clone(), app.revision));
        if self.is_remnant(unit.root) {
            self.record.apps.extend(apps);
        } else {
            self.record.apps = apps.collect();
            self.record.pools.clone_from(&unit.pools);
            self.record.last_unit = Some(unit.unit.clone());
        }
        if let Some(action) = &mut self.action {
            if begun_at >= self.not_before {
                action.handle_sight(&Sight::Up(unit.root), now);
            }
        } else if !unit.apps.values().any(|app| app.verdict == Verdict::Stale) && begun_at.since(up_since) >= window {
            self.record.failed = None;
        } else if let Some(failure) = &mut self.record.failed {
            failure.down = false;
        }
        if self.refused.as_ref().is_some_and(|(until, _)| now >= *until) {
            self.refused = None;
        }
    }

    pub(super) fn see_vacant(&mut self, vacancy: Option<&Vacancy>, now: Moment) {
        let Some(vacancy) = vacancy else { return };
        if self.view.as_ref().is_some_and(|view| view.bystander) {
            // A bystander that ended leaves nothing behind.
            self.record.apps.clear();
            self.forget = true;
        }
        self.view = None;
        self.vacancy = Some(vacancy.clone());
        if let Some(action) = &mut self.action {
            let sight = match vacancy {
                Vacancy::Down | Vacancy::Gone => Sight::Down,
                Vacancy::GaveUp(why) => Sight::GaveUp(why.clone()),
            };
            action.handle_sight(&sight, now);
        }
    }

    pub(super) fn is_forgettable(&self) -> bool {
        self.forget
            && self.view.is_none()
            && self.action.is_none()
            && self.record.drained.is_none()
            && !self.record.failed.as_ref().is_some_and(|failure| failure.down)
    }

    /// Tells whether the slot belongs to no announced app and nothing of ours is remembered or under way in it.
    pub(super) fn is_nobodys(&self) -> bool {
        self.record.apps.is_empty()
            && self.action.is_none()
            && self.record.drained.is_none()
            && !self.record.failed.as_ref().is_some_and(|failure| failure.down)
    }

    /// Tells whether there is nothing to say of the slot: it is nobody's, and nothing was seen in it.
    pub(super) fn is_blank(&self) -> bool {
        self.is_nobodys() && self.view.is_none() && self.vacancy.is_none()
    }

    /// Follows the desired apps: failures and refusals of earlier attempts no longer count, and what is down by us is
    /// started again; slots that are gone are kept only for the revision they were gone in.
    pub(super) fn follow_attempts(
        &mut self,
        id: &SlotId,
        apps: &BTreeMap<AppName, DesiredApp>,
        tried_again: &BTreeSet<AppName>,
        policy: RestartPolicy,
        now: Moment,
    ) {
        if self.record.apps.keys().any(|name| tried_again.contains(name)) {
            self.refused = None;
        }
        self.forget = !self
            .record
            .apps
            .iter()
            .any(|(name, revision)| apps.get(name).is_some_and(|app| app.revision == *revision));
        let Some(failure) = &self.record.failed else { return };
        let is_old = failure.attempts.iter().all(|(name, (revision, generation))| {
            apps.get(name).is_none_or(|app| app.revision != *revision || app.attempt > *generation)
        });
        if !is_old {
            return;
        }
        let may_act = failure.attempts.keys().any(|name| apps.get(name).is_some_and(|app| app.mode == Mode::Run));
        let (down, done) = (failure.down, self.record.done.clone());
        if !down {
            self.record.failed = None;
        } else if let (true, Some(done), Some(identity), None) = (may_act, done, self.record.stopped, &self.action) {
            self.record.failed = None;
            self.action = Some(Restart::recover(
                Intent {
                    slot: id.clone(),
                    identity,
                    version: Version::default(),
                    nonce: done.nonce,
                    purpose: done.purpose,
                    task: Task::Restart,
                    phase: IntentPhase::Starting,
                    means: self.record.means.clone(),
                },
                true,
                policy,
                now,
            ));
        }
    }

    pub(super) fn abort_for(&mut self, aborted: &BTreeSet<AppName>, now: Moment) {
        let Some(action) = &mut self.action else { return };
        if let Purpose::Restart(apps) = &action.intent().purpose
            && apps.keys().all(|name| aborted.contains(name))
        {
            action.handle_abort(now);
        }
    }

    /// Calls back an action that has touched nothing yet and rests on what is wanted no more: another content of an app, or
    /// a drain that was taken back.
    pub(super) fn call_back(&mut self, changed: &BTreeSet<AppName>, drains: &BTreeSet<DrainId>, now: Moment) {
        let Some(action) = &mut self.action else { return };
        let rests_on_it = match &action.intent().purpose {
            Purpose::Restart(apps) => apps.keys().all(|name| !changed.contains(name)),
            Purpose::Drain(id) => drains.contains(id),
        };
        if !rests_on_it {
            action.handle_abort(now);
        }
    }

    /// Says what permit the slot wants, if any.
    pub(super) fn want(
        &self,
        id: &SlotId,
        drain: Option<&DesiredDrain>,
        desired: &BTreeMap<AppName, DesiredApp>,
        apps: &BTreeMap<AppName, App>,
    ) -> Option<Want> {
        let view = self.view.as_ref()?;
        if self.action.is_some() || self.refused.is_some() || self.is_outdated() {
            return None;
        }
        let purpose = match drain {
            Some(drain) => Purpose::Drain(drain.id.clone()),
            None => Purpose::Restart(self.stale_apps(view, desired, apps)?),
        };
        Some(Want { slot: id.clone(), identity: view.root, pools: view.pools.clone(), purpose })
    }

    fn stale_apps(
        &self,
        view: &UnitView,
        desired: &BTreeMap<AppName, DesiredApp>,
        apps: &BTreeMap<AppName, App>,
    ) -> Option<BTreeMap<AppName, Revision>> {
        if view.bystander || view.blocked.is_some() {
            return None;
        }
        let mut stale = BTreeMap::new();
        for (name, judged) in &view.apps {
            // One unknown verdict is enough to leave the unit alone, unless something is proven stale.
            if judged.verdict != Verdict::Stale || judged.cure != Cure::Restart {
                continue;
            }
            let Some(wanted) = desired.get(name) else { continue };
            let is_current = wanted.revision == judged.revision && apps.get(name).is_some();
            if wanted.mode == Mode::Run && is_current && !self.has_failed(name, wanted) {
                stale.insert(name.clone(), judged.revision);
            }
        }
        (!stale.is_empty()).then_some(stale)
    }

    fn has_failed(&self, name: &AppName, wanted: &DesiredApp) -> bool {
        self.record.failed.as_ref().is_some_and(|failure| {
            failure
                .attempts
                .get(name)
                .is_some_and(|(revision, attempt)| *revision == wanted.revision && *attempt >= wanted.attempt)
        })
    }

    /// Begins what a permit allows. False where something else is under way or the unit is another one now.
    pub(super) fn begin(&mut self, intent: Intent, policy: RestartPolicy, now: Moment) -> bool {
        let is_same = self.view.as_ref().is_some_and(|view| view.root == intent.identity);
        if self.action.is_some() || !is_same {
            return false;
        }
        self.action = Some(Restart::new(intent, policy, now));
        true
    }

    /// Forgets a drain that is none of `kept` where somebody else has given the slot back already. Returns what has to be
    /// written down: a next life of the agent would take the slot for a drained one again.
    pub(super) fn see_given_back(&mut self, id: &SlotId, kept: &BTreeSet<DrainId>) -> Option<Record> {
        let is_over = self.record.drained.as_ref().is_some_and(|drained| !kept.contains(drained));
        let is_up = self.action.is_none() && self.view.is_some() && !self.is_outdated();
        if !is_over || !is_up {
            return None;
        }
        self.record.drained = None;
        self.end_unheld();
        (self.undrain_at, self.undrain_failed) = (None, None);
        Some(Record::Slot(id.clone(), Some(self.record.clone())))
    }

    /// Gives a drained slot back where its drain is none of `kept`. False where nothing was begun.
    pub(super) fn begin_undrain(
        &mut self,
        id: &SlotId,
        kept: &BTreeSet<DrainId>,
        version: Version,
        nonce: Nonce,
        policy: RestartPolicy,
        now: Moment,
    ) -> bool {
        let Some(drained) = self.record.drained.clone() else { return false };
        if kept.contains(&drained) || self.action.is_some() {
            return false;
        }
        if self.undrain_at.is_some_and(|at| now < at) {
            return false;
        }
        let intent = Intent {
            slot: id.clone(),
            identity: self.record.stopped.unwrap_or(ProcessIdentity {
                pid: crate::ids::Pid(0),
                start_ticks: 0,
                pid_namespace: 0,
            }),
            version,
            nonce,
            purpose: Purpose::Drain(drained),
            task: Task::Undrain,
            phase: IntentPhase::Starting,
            means: self.record.means.clone(),
        };
        self.action = Some(Restart::recover(intent, true, policy, now));
        true
    }

    /// Keeps a slot down for another drain than the one that ended its unit and could not do that. False where nothing
    /// was begun.
    pub(super) fn hold_again(
        &mut self,
        id: &SlotId,
        drain: &DesiredDrain,
        version: Version,
        nonce: Nonce,
        policy: RestartPolicy,
        now: Moment,
    ) -> bool {
        let is_by_another = self.record.drained.as_ref().is_some_and(|drained| *drained != drain.id);
        let Some(identity) = self.record.stopped.filter(|_| is_by_another && self.record.unheld) else { return false };
        if self.action.is_some() || !self.is_held_down() {
            return false;
        }
        let intent = Intent {
            slot: id.clone(),
            identity,
            version,
            nonce,
            purpose: Purpose::Drain(drain.id.clone()),
            task: Task::Drain { deadline_ms: drain.deadline_ms, force: drain.force },
            phase: IntentPhase::HoldingDown,
            means: self.record.means.clone(),
        };
        self.action = Some(Restart::recover(intent, true, policy, now));
        true
    }

    /// Forgets that a drain could not keep the slot down: another one did, or it is given back.
    fn end_unheld(&mut self) {
        if std::mem::take(&mut self.record.unheld) {
            self.record.failed = None;
        }
    }

    /// Takes the end of an action and returns what has to be written down.
    pub(super) fn finish(
        &mut self,
        id: &SlotId,
        finished: &Finished,
        desired: &BTreeMap<AppName, DesiredApp>,
        now: Moment,
    ) -> Vec<Record> {
        let Some(action) = self.action.take() else { return Vec::new() };
        let intent = action.intent().clone();
        let elapsed_ms = u64::try_from(action.elapsed(now).as_millis()).unwrap_or(u64::MAX);
        if finished.down {
            self.record.stopped = Some(intent.identity);
            self.record.means.clone_from(&intent.means);
        }
        match finished.result {
            DoneResult::Restarted => self.record.failed = None,
            DoneResult::Undrained => {
                self.record.drained = None;
                self.end_unheld();
                // That of an earlier try, which was for no app.
                self.record.failed.take_if(|failure| failure.attempts.is_empty());
            }
            DoneResult::Drained => {
                self.undrain_failed = None;
                if let Purpose::Drain(drain) = &intent.purpose {
                    self.record.drained = Some(drain.clone());
                }
                self.end_unheld();
            }
            DoneResult::Failed => {
                self.record.failed = Some(failure(&intent, finished, desired));
                // What is down by a drain is given back by its undrain, however the drain ended.
                if let (true, Task::Drain { .. }, Purpose::Drain(drain)) =
                    (finished.down, &intent.task, &intent.purpose)
                {
                    self.record.drained = Some(drain.clone());
                    self.record.unheld = true;
                }
            }
            DoneResult::Refused => self.refused = Some((now.after(REFUSED_PAUSE), finished.because.clone())),
            DoneResult::Cancelled | DoneResult::Unproven => {}
        }
        if intent.task == Task::Undrain {
            // What stood in its way stands there still; a look may also find the unit up meanwhile.
            let failed = finished.result != DoneResult::Undrained;
            self.undrain_at = failed.then(|| now.after(UNDRAIN_PAUSE));
            self.undrain_failed = failed.then(|| finished.because.clone());
        }
        self.record.done = Some(Done {
            nonce: intent.nonce,
            result: finished.result,
            purpose: intent.purpose,
            elapsed_ms,
            because: finished.because.clone(),
        });
        self.not_before = now;
        vec![Record::IntentOver(id.clone()), Record::Slot(id.clone(), Some(self.record.clone()))]
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Moment) {
        if let Some(action) = &mut self.action {
            action.handle_timeout(now);
        }
        if self.undrain_at.is_some_and(|at| now >= at) {
            self.undrain_at = None;
        }
    }

    /// Returns when [`Slot::handle_timeout`] wants to be called.
    pub(super) fn poll_timeout(&self) -> Option<Moment> {
        let step = self.action.as_ref().and_then(Restart::poll_timeout);
        step.into_iter().chain(self.undrain_at).min()
    }

    /// Says where the slot stands, and what that rests on.
    pub(super) fn phase(&self, wanted: bool) -> (Phase, String) {
        if let Some(action) = &self.action {
            let note = match &self.undrain_failed {
                Some(why) if action.intent().task == Task::Undrain => format!("giving it back failed before: {why}"),
                _ => action.note().to_owned(),
            };
            return (action.phase(), note);
        }
        let has_failed = self.record.unheld && self.record.failed.is_some();
        if let Some(drain) = self.record.drained.as_ref().filter(|_| self.is_held_down() && !has_failed) {
            let tried = self.undrain_failed.as_ref();
            let tried = tried.map(|why| format!("; giving it back failed and is tried again: {why}"));
            return (Phase::Drained, format!("drained by {drain}{}", tried.unwrap_or_default()));
        }
        if let Some(failure) = &self.record.failed {
            return (Phase::Failed, failure.because.clone());
        }
        match (&self.view, &self.vacancy) {
            (Some(view), _) => {
                let because = self.refusal().map_or_else(|| view.because(), ToOwned::to_owned);
                (if wanted { Phase::Asking } else { Phase::Up }, because)
            }
            (None, Some(Vacancy::Gone)) => (Phase::Gone, "ended, and nothing brings it back".into()),
            (None, Some(Vacancy::GaveUp(why))) => (Phase::Down, why.clone()),
            (None, _) => (Phase::Down, "not up; its supervisor lists it".into()),
        }
    }

    /// Returns why the unit cannot be restarted, where that is so.
    pub(super) fn refusal(&self) -> Option<&str> {
        let blocked = self.view.as_ref().and_then(|view| view.blocked.as_deref());
        blocked.or(self.refused.as_ref().map(|(_, why)| why.as_str()))
    }

    /// Tells whether what was last seen is of before the last action's end.
    pub(super) fn is_outdated(&self) -> bool {
        self.seen_at < self.not_before
    }

    /// Tells whether the slot is drained and nothing is up in it: what was seen before the drain's end was seen says
    /// nothing about now.
    fn is_held_down(&self) -> bool {
        self.record.drained.is_some() && (self.view.is_none() || self.is_outdated())
    }

    /// Returns what is up in the slot, as far as it was looked at.
    pub(super) fn standing_view(&self) -> Option<&UnitView> {
        self.view.as_ref().filter(|_| !self.is_held_down())
    }

    /// Tells whether what was last seen, with this root, is what is left of a unit on its way out: a child that outlives
    /// its parent for a moment looks like a unit of its own. The slot remembers the one that is drained, by which it is
    /// asked back; what the remnant holds counts all the same.
    fn is_remnant(&self, root: ProcessIdentity) -> bool {
        let is_ending = |action: &Restart| action.phase() == Phase::Draining && action.intent().identity != root;
        self.action.as_ref().is_some_and(is_ending) || self.is_held_down()
    }

    /// Tells whether the slot uses budget.
    pub(super) fn is_unavailable(&self) -> bool {
        let is_bystander = self.view.as_ref().is_some_and(|view| view.bystander);
        let by_us = self.record.drained.is_some() || self.record.failed.as_ref().is_some_and(|failure| failure.down);
        let is_down = self.is_held_down() || self.view.is_none() && (by_us || self.vacancy != Some(Vacancy::Gone));
        !is_bystander && (self.action.is_some() || is_down)
    }
}

fn failure(intent: &Intent, finished: &Finished, desired: &BTreeMap<AppName, DesiredApp>) -> Failure {
    let attempts = match &intent.purpose {
        Purpose::Restart(apps) => apps
            .iter()
            .map(|(name, revision)| {
                let attempt = desired.get(name).map(|app| app.attempt).unwrap_or_default();
                (name.clone(), (*revision, attempt))
            })
            .collect(),
        Purpose::Drain(_) => BTreeMap::new(),
    };
    Failure { attempts, because: finished.because.clone(), down: finished.down, untouched: false }
}

impl UnitView {
    /// Returns what the worst of its verdicts rests on.
    pub(super) fn because(&self) -> String {
        self.apps
            .values()
            .max_by_key(|app| app.verdict)
            .map_or_else(|| "belongs to no announced app".to_owned(), |app| app.because.clone())
    }
}
