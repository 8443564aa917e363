//! The machine for one host: the agent's mind.
//!
//! It takes the desired state, permits and what the eyes saw, and decides what to purge, what to ask for,
//! which unit to act on, and what to report. It judges nothing itself: verdicts come in with the scans.

mod app;
mod input;
mod numbering;
mod report;
mod slot;

pub use input::{
    Announced, AppView, OtherView, PurgeResult, Record, Scan, SlotRecord, UnitJudgement, UnitView, Vacancy,
};
pub use numbering::Numbering;

use crate::ids::{AppName, DrainId, HostName, Incarnation, SlotId, Version};
use crate::message::{
    Ask, Desired, DesiredDrain, Mode, Nonce, Permit, ProbeReport, Purpose, Report, Want, not_understood,
};
use crate::restart::{Action as Step, Cleared, Intent, IntentPhase, Restart, RestartPolicy, Task, Verified};
use crate::time::{Jitter, Moment};
use app::App;
use slot::Slot;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How old a permit's nonce may be when the agent takes it, by the agent's own clock.
pub const PERMIT_LIFETIME: Duration = Duration::from_secs(20);

/// What may differ between hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPolicy {
    /// How long steps of one action may take.
    pub restart: RestartPolicy,
    /// How long after files were first right their bytecode is looked at again before anything is proven.
    pub second_look: Duration,
    /// Pause between reports without a change; jittered by a sixth either way.
    pub report_interval: Duration,
    /// Least pause between two reports of changes.
    pub change_interval: Duration,
    /// Shortest pause between two requests; the longest is twice that.
    pub ask_interval: Duration,
}

impl Default for HostPolicy {
    fn default() -> Self {
        Self {
            restart: RestartPolicy::default(),
            second_look: Duration::from_secs(10),
            report_interval: Duration::from_mins(1),
            change_interval: Duration::from_secs(2),
            ask_interval: Duration::from_secs(8),
        }
    }
}

/// What the agent is to do next, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Write these to disk, in one transaction, before doing what follows.
    Store(Vec<Record>),
    /// Send the report.
    Report(Report),
    /// Send the request.
    Ask(Ask),
    /// Look at files and at all memory again now.
    Look,
    /// Remove these files, proven stale for this app. Answer: [`Host::handle_purged`].
    Purge {
        /// The app.
        app: AppName,
        /// Absolute paths as the worker's mount namespace has them, each with the slot that showed it.
        files: BTreeSet<String>,
    },
    /// Do one step of the action on this slot.
    Step {
        /// The slot.
        slot: SlotId,
        /// The step.
        step: Step,
    },
}

/// One host's way through the desired states.
#[derive(Debug)]
pub struct Host {
    name: HostName,
    policy: HostPolicy,
    incarnation: Incarnation,
    sequence: u64,
    jitter: Jitter,
    desired: Desired,
    unsupported: Option<String>,
    refused: Option<Version>,
    leaving: bool,
    apps: BTreeMap<AppName, App>,
    slots: BTreeMap<SlotId, Slot>,
    /// Units that no rollout judges.
    others: Vec<OtherView>,
    /// Answers to the dry runs that are desired.
    probes: BTreeMap<String, ProbeReport>,
    decided: BTreeSet<Announced>,
    /// As last seen.
    numbering: Numbering,
    is_numbering_stored: bool,
    /// Requests under way, by slot, as they were last sent.
    wants: BTreeMap<SlotId, Want>,
    ask_at: Option<Moment>,
    report_at: Moment,
    /// All hosts hear of a new state at once: each says what came of it at another moment, not before this one.
    quiet_until: Moment,
    reported: Option<Report>,
    reported_at: Option<Moment>,
    scanned: bool,
    actions: VecDeque<Action>,
}

impl Host {
    /// Starts the mind of `name` with what its disk remembers. `seed` feeds the jitter of timers.
    pub fn new(
        name: HostName,
        incarnation: Incarnation,
        policy: HostPolicy,
        records: Vec<Record>,
        seed: u64,
        now: Moment,
    ) -> Self {
        let mut host = Self {
            name,
            policy,
            incarnation,
            sequence: 0,
            jitter: Jitter::new(seed),
            desired: Desired::default(),
            unsupported: None,
            refused: None,
            leaving: false,
            apps: BTreeMap::new(),
            slots: BTreeMap::new(),
            others: Vec::new(),
            probes: BTreeMap::new(),
            decided: BTreeSet::new(),
            numbering: Numbering::default(),
            is_numbering_stored: true,
            wants: BTreeMap::new(),
            ask_at: None,
            report_at: now,
            quiet_until: now,
            reported: None,
            reported_at: None,
            scanned: false,
            actions: VecDeque::new(),
        };
        for record in records {
            host.remember(record, now);
        }
        host
    }

    fn remember(&mut self, record: Record, now: Moment) {
        match record {
            Record::Desired(desired) => {
                self.desired = desired;
                self.follow_desired_apps(now);
            }
            Record::Slot(id, Some(record)) => self.slots.entry(id).or_default().record = record,
            Record::Slot(id, None) => {
                self.slots.remove(&id);
            }
            Record::Intent { intent, ends_root } => {
                let slot = self.slots.entry(intent.slot.clone()).or_default();
                slot.action = Some(Restart::recover(intent, ends_root, self.policy.restart, now));
            }
            Record::Decided(decided) => self.decided = decided,
            Record::Numbering(numbering) => self.numbering = numbering,
            Record::IntentOver(id) => {
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.action = None;
                }
            }
        }
    }

    /// Takes a desired state from the bus. Older ones are refused and said to be.
    pub fn handle_desired(&mut self, desired: &Desired, now: Moment) {
        let accepted = self.desired.version();
        // Two coordinators took the same number: the one that was heard first is kept until one rules above both.
        let is_rival = desired.epoch == accepted.epoch && desired.author != self.desired.author;
        // A reign that knows of a state counts on from its generation. One that does not, and does not say so, is told first.
        let is_unaware =
            desired.epoch > accepted.epoch && desired.generation <= accepted.generation && !desired.partial;
        if is_unaware {
            self.report_with_others(now);
        }
        if desired.version() < accepted || is_rival || is_unaware {
            self.refused = Some(desired.version());
            return;
        }
        if desired.version() == accepted {
            return;
        }
        if let Some(name) = not_understood(&desired.must) {
            self.unsupported = Some(name.to_owned());
            self.report_with_others(now);
            return;
        }
        self.unsupported = None;
        self.forget_other_contents(desired);
        let changed = app::changed(&self.desired, desired);
        self.desired = desired.clone();
        self.probes.retain(|id, _| desired.probes.iter().any(|probe| probe.id == *id));
        self.actions.push_back(Action::Store(vec![Record::Desired(desired.clone())]));
        // Requests that rest on the older state are not granted any more.
        self.ask_at = self.ask_at.map(|_| now);
        self.follow_desired_apps(now);
        let aborted: BTreeSet<_> = self.apps_in(Mode::Abort);
        let drains: BTreeSet<DrainId> = self.drains_here().map(|drain| drain.id.clone()).collect();
        for slot in self.slots.values_mut() {
            slot.abort_for(&aborted, now);
            slot.call_back(&changed, &drains, now);
        }
        self.actions.push_back(Action::Look);
        self.report_with_others(now);
        self.review(now);
    }

    /// A revision that means something else now was given its number twice: what was seen of the first says nothing.
    fn forget_other_contents(&mut self, desired: &Desired) {
        for (name, wanted) in &desired.apps {
            let known = self.desired.apps.get(name).and_then(|app| app.fingerprint);
            if known.is_some_and(|known| wanted.fingerprint.is_some_and(|fingerprint| fingerprint != known)) {
                self.apps.remove(name);
            }
        }
    }

    fn follow_desired_apps(&mut self, now: Moment) {
        self.apps.retain(|name, _| self.desired.apps.contains_key(name));
        let mut tried_again = BTreeSet::new();
        for (name, wanted) in &self.desired.apps {
            let new = || App::new(wanted.revision, wanted.attempt, now);
            let app = self.apps.entry(name.clone()).or_insert_with(new);
            if app.revision != wanted.revision {
                *app = new();
            }
            if app.follow_attempt(wanted.attempt, now) {
                tried_again.insert(name.clone());
            }
        }
        for (id, slot) in &mut self.slots {
            slot.follow_attempts(id, &self.desired.apps, &tried_again, self.policy.restart, now);
        }
    }

    fn apps_in(&self, mode: Mode) -> BTreeSet<AppName> {
        self.desired.apps.iter().filter(|(_, app)| app.mode == mode).map(|(name, _)| name.clone()).collect()
    }

    /// Takes what the eyes saw.
    pub fn handle_scan(&mut self, scan: &Scan, now: Moment) {
        self.scanned = true;
        for (name, view) in &scan.apps {
            if let Some(app) = self.apps.get_mut(name) {
                app.see(view, scan, self.policy.second_look, now);
            }
        }
        let adopted: Vec<&UnitView> =
            scan.others.iter().map(|other| &other.view).filter(|view| self.is_adopted(view)).collect();
        let window = self.policy.restart.survival_window;
        let mut seen = BTreeSet::new();
        for unit in scan.units.iter().chain(adopted) {
            self.slots.entry(unit.slot.clone()).or_default().see(unit, scan.begun_at, window, now);
            seen.insert(unit.slot.clone());
        }
        for (id, slot) in &mut self.slots {
            if !seen.contains(id) {
                slot.see_vacant(scan.vacant.get(id), now);
            }
        }
        self.slots.retain(|_, slot| !slot.is_forgettable());
        self.release_adopted();
        self.others.clone_from(&scan.others);
        self.take_probes(scan, now);
        self.see_numbering(&scan.numbering);
        if self.decided != scan.decided {
            self.decided.clone_from(&scan.decided);
            self.actions.push_back(Action::Store(vec![Record::Decided(scan.decided.clone())]));
        }
        self.review(now);
    }

    /// Tells whether a unit of no announced app is kept all the same: it is to be drained, or was.
    fn is_adopted(&self, view: &UnitView) -> bool {
        view.apps.is_empty()
            && match self.slots.get(&view.slot) {
                Some(slot) => slot.record.apps.is_empty(),
                None => self.drains_here().any(|drain| drain.slot == view.slot),
            }
    }

    /// Lets go of units of no announced app once nothing is wanted of them.
    fn release_adopted(&mut self) {
        let wanted: BTreeSet<SlotId> = self.drains_here().map(|drain| drain.slot.clone()).collect();
        let released: Vec<SlotId> = self
            .slots
            .iter()
            .filter(|(id, slot)| slot.is_nobodys() && !wanted.contains(*id))
            .map(|(id, _)| id.clone())
            .collect();
        if released.is_empty() {
            return;
        }
        self.slots.retain(|id, _| !released.contains(id));
        self.actions.push_back(Action::Store(released.into_iter().map(|id| Record::Slot(id, None)).collect()));
    }

    fn take_probes(&mut self, scan: &Scan, now: Moment) {
        let wanted = |id: &String| self.desired.probes.iter().any(|probe| probe.id == *id);
        let probes: BTreeMap<_, _> = scan
            .probes
            .iter()
            .filter(|(id, _)| wanted(id))
            .map(|(id, answer)| (id.clone(), report::bounded(answer.clone())))
            .collect();
        if probes.keys().any(|id| !self.probes.contains_key(id)) {
            // Somebody waits for it.
            self.report_at = now;
        }
        self.probes = probes;
    }

    /// Takes a permit. It counts only if everything it was asked for still holds.
    pub fn handle_permit(&mut self, permit: &Permit, now: Moment) {
        let acceptable = permit.host == self.name
            && permit.nonce.incarnation == self.incarnation
            && now.since(permit.nonce.at) < PERMIT_LIFETIME
            && permit.nonce.at <= now
            && permit.version == self.desired.version()
            && permit.author == self.desired.author
            && self.unsupported.is_none()
            && not_understood(&permit.must).is_none();
        let Some(want) = self.wants.get(&permit.slot) else { return };
        if !acceptable || want.identity != permit.identity || want.purpose != permit.purpose {
            return;
        }
        let task = match &permit.purpose {
            Purpose::Restart(_) => Task::Restart,
            Purpose::Drain(id) => match self.desired.drains.iter().find(|drain| drain.id == *id) {
                Some(drain) => Task::Drain { deadline_ms: drain.deadline_ms, force: drain.force },
                None => return,
            },
        };
        let intent = Intent {
            slot: permit.slot.clone(),
            identity: permit.identity,
            version: permit.version,
            nonce: permit.nonce,
            purpose: permit.purpose.clone(),
            task,
            phase: IntentPhase::Stopping,
            means: String::new(),
        };
        let Some(slot) = self.slots.get_mut(&permit.slot) else { return };
        if slot.begin(intent, self.policy.restart, now) {
            self.wants.remove(&permit.slot);
        }
        self.review(now);
    }

    /// Takes the answer of [`Step::Preflight`] of the action whose intent was `asked`. One that comes late, when another
    /// action has begun on the slot, changes nothing: it looked for another purpose, under another permit.
    pub fn handle_preflight(&mut self, asked: &Intent, answer: Result<Cleared, String>, now: Moment) {
        self.with_action(&asked.slot, now, |action| {
            if action.intent() == asked {
                action.handle_preflight(answer, now);
            }
        });
    }

    /// Takes the answer of [`Step::Stop`].
    pub fn handle_stopped(&mut self, slot: &SlotId, answer: Result<(), String>, now: Moment) {
        self.with_action(slot, now, |action| action.handle_stopped(answer, now));
    }

    /// Takes the news that everything that was told to stop has ended.
    pub fn handle_ended(&mut self, slot: &SlotId, now: Moment) {
        self.with_action(slot, now, |action| action.handle_ended(now));
    }

    /// Takes the answer of [`Step::Start`].
    pub fn handle_started(&mut self, slot: &SlotId, answer: Result<(), String>, now: Moment) {
        self.with_action(slot, now, |action| action.handle_started(answer, now));
    }

    /// Takes the answer of [`Step::HoldDown`].
    pub fn handle_held(&mut self, slot: &SlotId, answer: Result<(), String>, now: Moment) {
        self.with_action(slot, now, |action| action.handle_held(answer, now));
    }

    /// Takes the other answer of [`Step::HoldDown`]: a new life is up, and was left alone.
    pub fn handle_new_life(&mut self, slot: &SlotId, why: String, now: Moment) {
        self.with_action(slot, now, |action| action.handle_new_life(why, now));
    }

    /// Takes the answer of [`Step::Verify`].
    pub fn handle_verified(&mut self, slot: &SlotId, verified: Verified, now: Moment) {
        self.with_action(slot, now, |action| action.handle_verified(verified, now));
    }

    fn with_action(&mut self, slot: &SlotId, now: Moment, handle: impl FnOnce(&mut Restart)) {
        if let Some(action) = self.slots.get_mut(slot).and_then(|slot| slot.action.as_mut()) {
            handle(action);
            self.review(now);
        }
    }

    /// Takes the answer of [`Action::Purge`].
    pub fn handle_purged(&mut self, app: &AppName, result: &PurgeResult, now: Moment) {
        if let Some(app) = self.apps.get_mut(app) {
            app.purged(result, now);
            self.actions.push_back(Action::Look);
        }
        self.review(now);
    }

    /// Takes the news that the bus is connected (again): says everything at once.
    pub fn handle_connected(&mut self, now: Moment) {
        self.report_at = now;
        self.ask_at = self.ask_at.map(|_| now);
        self.review(now);
    }

    /// Takes the news that the machine is shutting down: says so, and begins nothing any more in this life.
    pub fn handle_leaving(&mut self, now: Moment) {
        self.leaving = true;
        self.report_at = now;
        self.review(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Moment) {
        for slot in self.slots.values_mut() {
            slot.handle_timeout(now);
        }
        // Every app's timer is taken off, not only the first one's.
        let due = self.apps.values_mut().filter_map(|app| app.look_is_due(now).then_some(())).count();
        if due > 0 {
            self.actions.push_back(Action::Look);
        }
        self.review(now);
    }

    /// Returns the next action.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns when [`Host::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let steps = self.slots.values().filter_map(Slot::poll_timeout);
        let looks = self.apps.values().filter_map(App::look_at);
        steps.chain(looks).chain(self.ask_at).chain([self.report_due()]).min()
    }

    /// Returns the highest desired state accepted.
    pub fn accepted(&self) -> Version {
        self.desired.version()
    }

    /// Returns the desired state that holds.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Returns the slots that a scan must account for, each with the means of its last action, empty where none.
    pub fn known_slots(&self) -> impl Iterator<Item = (&SlotId, &str)> {
        self.slots.iter().map(|(id, slot)| {
            let of_action = slot.action.as_ref().map(|action| action.intent().means.as_str());
            (id, of_action.filter(|means| !means.is_empty()).unwrap_or(&slot.record.means))
        })
    }

    /// Returns the intent of the action under way on a slot.
    pub fn intent(&self, slot: &SlotId) -> Option<&Intent> {
        Some(self.slots.get(slot)?.action.as_ref()?.intent())
    }

    /// Decides everything that follows from what is known now.
    fn review(&mut self, now: Moment) {
        self.collect_steps(now);
        self.begin_undrains(now);
        self.collect_purges();
        self.collect_wants(now);
        self.collect_report(now);
    }

    fn collect_steps(&mut self, now: Moment) {
        let mut out = Vec::new();
        for (id, slot) in &mut self.slots {
            while let Some(step) = slot.action.as_mut().and_then(Restart::poll_action) {
                match step {
                    Step::Persist(intent) => {
                        let ends_root = slot.action.as_ref().is_none_or(Restart::ends_root);
                        // With its pools: a next life must charge it to them while nothing is up in it.
                        let record = Record::Slot(id.clone(), Some(slot.record.clone()));
                        out.push(Action::Store(vec![record, Record::Intent { intent, ends_root }]));
                    }
                    Step::Finish(finished) => {
                        let records = slot.finish(id, &finished, &self.desired.apps, now);
                        out.push(Action::Store(records));
                        out.push(Action::Look);
                    }
                    other => out.push(Action::Step { slot: id.clone(), step: other }),
                }
            }
        }
        self.actions.extend(out);
    }

    /// A drained slot whose drain was taken back is given back; that needs no permit.
    fn begin_undrains(&mut self, now: Moment) {
        if self.desired.partial {
            return;
        }
        let version = self.desired.version();
        let nonce = Nonce { incarnation: self.incarnation, at: now };
        let drains: Vec<DesiredDrain> = self.drains_here().cloned().collect();
        let kept: BTreeSet<DrainId> = drains.iter().map(|drain| drain.id.clone()).collect();
        let mut given_back = Vec::new();
        let mut begun = false;
        for (id, slot) in &mut self.slots {
            given_back.extend(slot.see_given_back(id, &kept));
            if let Some(drain) = drains.iter().find(|drain| drain.slot == *id)
                && slot.hold_again(id, drain, version, nonce, self.policy.restart, now)
            {
                begun = true;
                continue;
            }
            begun |= slot.begin_undrain(id, &kept, version, nonce, self.policy.restart, now);
        }
        if !given_back.is_empty() {
            self.actions.push_back(Action::Store(given_back));
        }
        if begun {
            self.collect_steps(now);
        }
    }

    fn drains_here(&self) -> impl Iterator<Item = &DesiredDrain> {
        self.desired.drains.iter().filter(|drain| drain.host == self.name)
    }

    fn collect_purges(&mut self) {
        for (name, wanted) in &self.desired.apps {
            if !matches!(wanted.mode, Mode::Run | Mode::Halt) {
                continue;
            }
            if let Some(files) = self.apps.get_mut(name).and_then(App::next_purge) {
                self.actions.push_back(Action::Purge { app: name.clone(), files });
            }
        }
    }

    fn collect_wants(&mut self, now: Moment) {
        let mut wants = BTreeMap::new();
        // Nothing is begun on a machine that goes down.
        for (id, slot) in self.slots.iter().filter(|_| !self.leaving) {
            let drain = self.drains_here().find(|drain| drain.slot == *id);
            if let Some(want) = slot.want(id, drain, &self.desired.apps, &self.apps) {
                wants.insert(id.clone(), want);
            }
        }
        let is_news = wants.iter().any(|(id, want)| self.wants.get(id) != Some(want));
        self.wants = wants;
        if self.wants.is_empty() || self.unsupported.is_some() {
            self.ask_at = None;
            return;
        }
        if is_news || self.ask_at.is_none_or(|at| now >= at) {
            self.store_numbering();
            let nonce = Nonce { incarnation: self.incarnation, at: now };
            let wants = self.wants.values().cloned().collect();
            self.actions.push_back(Action::Ask(Ask {
                host: self.name.clone(),
                nonce,
                version: self.desired.version(),
                wants,
            }));
            let pause = self.policy.ask_interval;
            self.ask_at = Some(now.after(pause + self.jitter.part_of(pause)));
        }
    }
}

#[cfg(test)]
mod tests;
