//! One host whose units, files and coordinator do as they please, and what the rules allow its agent at each step.
//!
//! As in `fleet`: the rules stand here a second time, written down from the design and not from the machine.

#[path = "site/rules.rs"]
mod rules;

use crate::host::{Input, Twist};
use std::collections::{BTreeMap, BTreeSet};
use unstale_protocol::fingerprint::{Fingerprint, Salt};
use unstale_protocol::host::{
    Action, AppView, Host, HostPolicy, PurgeResult, Record, Scan, SlotRecord, UnitJudgement, UnitView, Vacancy,
};
use unstale_protocol::ids::{
    AppName, DrainId, Epoch, Generation, HostName, Incarnation, Pid, PoolName, ProcessIdentity, Revision, SlotId,
    UnitId, Version,
};
use unstale_protocol::message::{
    Ask, Desired, DesiredApp, DesiredDrain, DoneResult, Mode, Nonce, Permit, Purpose, Want,
};
use unstale_protocol::restart::{Action as Step, Cleared, Intent, Verified};
use unstale_protocol::time::Moment;
use unstale_protocol::verdict::{Cure, Verdict};

pub(crate) const SLOTS: usize = 2;

/// What the design promises; each is a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Law {
    Permit,
    Order,
    Purge,
    Ask,
    Retry,
    Abort,
    StopOnce,
    DiskFirst,
    Proven,
    Drained,
    Pools,
    Gone,
    Sequence,
    Spin,
}

fn app(index: usize) -> AppName {
    AppName::new(["shop", "desk"][index % 2]).unwrap()
}

fn slot(index: usize) -> SlotId {
    SlotId::new(format!("celery/systemd/{}.service", index % SLOTS)).unwrap()
}

fn pools(index: usize) -> BTreeSet<PoolName> {
    (0..=index % SLOTS).map(|number| PoolName::new(format!("pool/{number}")).unwrap()).collect()
}

fn name() -> HostName {
    HostName::new("web-1").unwrap()
}

#[derive(Clone, Debug)]
struct Unit {
    root: Option<ProcessIdentity>,
    /// The revision of each app that it holds.
    loaded: [u64; 2],
    /// What is up cannot be read.
    hidden: bool,
    /// Its supervisor would bring it back.
    listed: bool,
}

/// What the rules remember. `disk` outlives the agent, and so does what stands below it.
#[derive(Debug, Default)]
struct Book {
    sequence: u64,
    owes_refusal: Option<Version>,
    scan: Option<Scan>,
    /// Since when each app's files are known to be right, and whether they were looked at again.
    right: BTreeMap<AppName, (Revision, Moment, bool)>,
    accepted: Version,
    stopped: BTreeSet<(SlotId, ProcessIdentity)>,
    stopped_for: BTreeSet<(SlotId, Nonce)>,
    failed: BTreeMap<(SlotId, AppName), (Revision, Generation)>,
    records: BTreeMap<SlotId, SlotRecord>,
    /// Slots that we left down, and in which nothing was seen up since.
    down: BTreeSet<SlotId>,
    /// Slots that a drain emptied.
    drained: BTreeMap<SlotId, DrainId>,
    intents: BTreeMap<SlotId, Intent>,
}

pub(crate) struct Site {
    now: u64,
    born_at: u64,
    incarnation: Incarnation,
    host: Host,
    disk: Vec<Record>,
    wanted: Desired,
    history: Vec<Desired>,
    source: [u64; 2],
    stale_files: [BTreeSet<String>; 2],
    units: Vec<Unit>,
    asks: Vec<Ask>,
    open: BTreeMap<SlotId, Step>,
    purging: Vec<(AppName, BTreeSet<String>)>,
    next_pid: u32,
    book: Book,
    pub(crate) restarted: u32,
    pub(crate) broken: Vec<(Law, String)>,
}

impl Site {
    pub(crate) fn new() -> Self {
        let incarnation = Incarnation { counter: 1, random: Salt([1; 16]) };
        let host = Host::new(name(), incarnation, HostPolicy::default(), Vec::new(), 7, Moment(0));
        let unit = Unit { root: None, loaded: [0; 2], hidden: false, listed: true };
        let mut site = Self {
            now: 5_000,
            born_at: 5_000,
            incarnation,
            host,
            disk: Vec::new(),
            wanted: Desired { epoch: Epoch(1), generation: Generation(1), ..Desired::default() },
            history: Vec::new(),
            source: [0; 2],
            stale_files: Default::default(),
            units: vec![unit; SLOTS],
            asks: Vec::new(),
            open: BTreeMap::new(),
            purging: Vec::new(),
            next_pid: 1,
            book: Book::default(),
            restarted: 0,
            broken: Vec::new(),
        };
        (0..SLOTS).for_each(|number| site.come_back(number));
        site.settle(None);
        site
    }

    fn moment(&self) -> Moment {
        Moment(self.now - self.born_at)
    }

    fn broke(&mut self, law: Law, what: impl Into<String>) {
        self.broken.push((law, format!("at {} ms: {}", self.now, what.into())));
    }

    pub(crate) fn feed(&mut self, input: &Input) {
        self.now += 1;
        let now = self.moment();
        let mut cause = None;
        match *input {
            Input::Announce(index) => self.announce(index % 2),
            Input::Mode(index, mode) => self.set_mode(&app(index), mode),
            Input::Drain(number) => self.drain(number),
            Input::Undrain => {
                self.wanted.drains.pop();
                self.publish();
            }
            Input::Reign => {
                self.wanted.epoch = self.wanted.epoch.next();
                self.publish();
            }
            Input::Hear(back) => {
                if let Some(index) = self.history.len().checked_sub(1 + back) {
                    self.hear(&self.history[index].clone());
                }
            }
            Input::HearReplaced => {
                let mut desired = self.wanted.clone();
                desired.epoch = Epoch(desired.epoch.0 - 1);
                desired.generation = Generation(desired.generation.0 + 5);
                self.hear(&desired);
            }
            Input::Source(index, dirty) => {
                let index = index % 2;
                self.source[index] = self.wanted.apps.get(&app(index)).map_or(0, |app| app.revision.0);
                if dirty {
                    self.stale_files[index].insert(format!("/srv/{index}.pyc"));
                }
            }
            Input::Scan { full, late } => self.scan(full, late),
            Input::Permit { slot: number, back, twist } => {
                cause = self.permit(number, back, twist);
                if let Some((permit, _)) = &cause {
                    self.host.handle_permit(permit, now);
                }
            }
            Input::Answer(number, good) => self.answer(&slot(number), number % SLOTS, good),
            Input::Advance(number) => self.advance(number % SLOTS),
            Input::End(number) => self.units[number % SLOTS].root = None,
            Input::Back(number) => self.come_back(number % SLOTS),
            Input::BackOld(number) => {
                let loaded = self.units[number % SLOTS].loaded;
                self.come_back(number % SLOTS);
                self.units[number % SLOTS].loaded = loaded;
            }
            Input::List(number) => self.units[number % SLOTS].listed ^= true,
            Input::Hide(number) => self.units[number % SLOTS].hidden ^= true,
            Input::Purged(good) => self.purged(good),
            Input::Wait(span) => {
                self.now += span;
                self.host.handle_timeout(self.moment());
                let next = self.host.poll_timeout();
                if next.is_some_and(|next| next <= self.moment()) {
                    self.broke(Law::Spin, format!("wants to be called at {next:?}"));
                }
            }
            Input::Connect => self.host.handle_connected(now),
            Input::Kill => self.kill(),
        }
        self.settle(cause.as_ref());
        if self.host.accepted() != self.book.accepted {
            self.broke(Law::Order, format!("{:?} holds, not {:?}", self.host.accepted(), self.book.accepted));
        }
    }

    // What the coordinator does.

    fn publish(&mut self) {
        self.wanted.generation = self.wanted.generation.next();
        self.history.push(self.wanted.clone());
    }

    fn announce(&mut self, index: usize) {
        let attempt = self.wanted.generation.next();
        let revision = self.wanted.apps.get(&app(index)).map_or(Revision(1), |app| app.revision.next());
        let manifest = Fingerprint([u8::try_from(revision.0 % 256).unwrap(); 32]);
        self.wanted.apps.insert(
            app(index),
            DesiredApp { revision, mode: Mode::Run, manifest, attempt, fingerprint: None, terms: None },
        );
        self.publish();
    }

    fn set_mode(&mut self, name: &AppName, mode: Mode) {
        let attempt = self.wanted.generation.next();
        let Some(app) = self.wanted.apps.get_mut(name).filter(|app| app.mode != Mode::Abort) else { return };
        if app.mode != Mode::Run && mode == Mode::Run {
            app.attempt = attempt;
        }
        app.mode = mode;
        self.publish();
    }

    fn drain(&mut self, number: usize) {
        let id = DrainId::new(format!("drain-{}", self.history.len())).unwrap();
        if self.wanted.drains.iter().all(|drain| drain.slot != slot(number)) {
            let (host, slot) = (name(), slot(number));
            self.wanted.drains.push(DesiredDrain { id, host, slot, deadline_ms: None, force: false });
        }
        self.publish();
    }

    fn hear(&mut self, desired: &Desired) {
        self.host.handle_desired(desired, self.moment());
        let accepted = self.book.accepted;
        let is_unaware = desired.epoch > accepted.epoch && desired.generation <= accepted.generation;
        if desired.version() < accepted || is_unaware {
            self.book.owes_refusal = Some(desired.version());
        } else {
            self.book.accepted = desired.version();
        }
        if is_unaware {
            // The report says so, and the coordinator counts on from there.
            self.wanted.generation = self.wanted.generation.max(accepted.generation);
            self.publish();
        }
        let apps = &self.host.desired().apps;
        self.book.right.retain(|name, (revision, ..)| apps.get(name).is_some_and(|app| app.revision == *revision));
    }

    /// A permit that answers one of the last requests, perhaps with something wrong; and whether it may be taken.
    fn permit(&self, number: usize, back: usize, twist: Twist) -> Option<(Permit, bool)> {
        let ask = self.asks.get(self.asks.len().checked_sub(1 + back)?)?;
        let want = ask.wants.iter().find(|want| want.slot == slot(number)).or_else(|| ask.wants.first())?;
        let Want { slot, identity, purpose, .. } = want.clone();
        let (nonce, version) = (ask.nonce, ask.version);
        let mut permit =
            Permit { host: name(), slot, identity, nonce, version, author: Salt::default(), purpose, must: Vec::new() };
        match twist {
            Twist::Nothing => {}
            Twist::Host => permit.host = HostName::new("web-2").unwrap(),
            Twist::Life => permit.nonce.incarnation.random.0[0] ^= 1,
            Twist::Future => permit.nonce.at = Moment(permit.nonce.at.0 + 60_000),
            Twist::Version => permit.version.generation = permit.version.generation.next(),
            Twist::Root => permit.identity.start_ticks += 1,
            Twist::Slot => permit.slot = self::slot(number + 1),
            Twist::Purpose => permit.purpose = Purpose::Drain(DrainId::new("drain-x").unwrap()),
            Twist::Must => permit.must.push("teleport".into()),
        }
        let now = self.moment();
        let last = self.asks.last().into_iter().flat_map(|ask| &ask.wants).find(|want| want.slot == permit.slot);
        let is_wanted = last.is_some_and(|want| want.identity == permit.identity && want.purpose == permit.purpose);
        let is_young = permit.nonce.at <= now && now.0 - permit.nonce.at.0 < 20_000;
        let is_mine = permit.host == name() && permit.nonce.incarnation == self.incarnation;
        let is_idle = self.host.intent(&permit.slot).is_none();
        let is_same = self.seen(&permit.slot).is_some_and(|unit| unit.root == permit.identity);
        let is_current = permit.version == self.book.accepted && permit.must.is_empty();
        Some((permit, is_wanted && is_young && is_mine && is_idle && is_same && is_current))
    }

    // What the world does.

    /// Whatever is next where all goes well.
    fn advance(&mut self, number: usize) {
        let slot = slot(number);
        let judged = self.host.intent(&slot).map(|intent| intent.identity);
        let root = self.units[number].root;
        match self.open.get(&slot) {
            Some(Step::AwaitEnd) if root.is_some() && root == judged => self.units[number].root = None,
            Some(_) => self.answer(&slot, number, true),
            None if root.is_none() => self.come_back(number),
            None => self.scan(true, 0),
        }
    }

    fn come_back(&mut self, number: usize) {
        if self.units[number].root.is_none() {
            self.next_pid += 1;
            let root = ProcessIdentity { pid: Pid(self.next_pid), start_ticks: self.now, pid_namespace: 1 };
            self.units[number].root = Some(root);
            self.units[number].loaded = self.source;
        }
    }

    fn judge(&self, unit: &Unit, index: usize, wanted: Revision) -> UnitJudgement {
        let is_right = self.source[index] == wanted.0;
        let (verdict, cure) = match unit.loaded[index] {
            _ if unit.hidden => (Verdict::Unknown, Cure::None),
            loaded if loaded == wanted.0 => (Verdict::Fresh, Cure::None),
            _ if !is_right => (Verdict::Stale, Cure::WaitForSource),
            _ if !self.stale_files[index].is_empty() => (Verdict::Stale, Cure::PurgeThenRestart),
            _ => (Verdict::Stale, Cure::Restart),
        };
        UnitJudgement { revision: wanted, verdict, cure, because: "it was read".into() }
    }

    fn scan(&mut self, full: bool, late: u64) {
        let begun_at = Moment(self.moment().0.saturating_sub(late));
        let mut scan = Scan { begun_at, full, ..Scan::default() };
        let revisions: Vec<_> =
            self.host.desired().apps.iter().map(|(name, app)| (name.clone(), app.revision)).collect();
        let index = |name: &AppName| usize::from(*name == app(1));
        for (name, revision) in &revisions {
            let stale_files = self.stale_files[index(name)].clone();
            let files_right = self.source[index(name)] == revision.0 && stale_files.is_empty();
            scan.apps
                .insert(name.clone(), AppView { revision: *revision, files_right, stale_files, ..AppView::default() });
        }
        for (number, unit) in self.units.iter().enumerate() {
            let Some(root) = unit.root else {
                scan.vacant.insert(slot(number), if unit.listed { Vacancy::Down } else { Vacancy::Gone });
                continue;
            };
            let of_unit = revisions.iter().filter(|(name, _)| index(name) <= number);
            scan.units.push(UnitView {
                slot: slot(number),
                unit: UnitId::new(format!("celery:{}", root.pid)).unwrap(),
                root,
                pools: pools(number),
                bystander: false,
                apps: of_unit
                    .map(|(name, revision)| (name.clone(), self.judge(unit, index(name), *revision)))
                    .collect(),
                blocked: None,
            });
        }
        self.note(&scan);
        self.host.handle_scan(&scan, self.moment());
    }

    /// What the rules make of a scan.
    fn note(&mut self, scan: &Scan) {
        let now = self.moment();
        for (name, view) in &scan.apps {
            let known = self.book.right.remove(name);
            if !view.files_right {
                continue;
            }
            let again = |since: Moment| scan.full && scan.begun_at.0 >= since.0 + 10_000;
            let right = match known {
                Some((_, since, twice)) => Some((view.revision, since, twice || again(since))),
                None => scan.full.then_some((view.revision, now, false)),
            };
            self.book.right.extend(right.map(|right| (name.clone(), right)));
        }
        for unit in scan.units.iter().filter(|unit| unit.apps.values().all(|app| app.verdict != Verdict::Stale)) {
            if self.host.intent(&unit.slot).is_none() {
                self.book.failed.retain(|(slot, _), _| *slot != unit.slot);
            }
        }
        let is_up = |slot: &SlotId| scan.units.iter().any(|unit| unit.slot == *slot);
        self.book.down.retain(|slot| !is_up(slot));
        self.book.scan = Some(scan.clone());
    }

    fn answer(&mut self, slot: &SlotId, number: usize, good: bool) {
        let now = self.moment();
        let Some(step) = self.open.get(slot).cloned() else { return };
        let root = self.units[number].root;
        let judged = self.host.intent(slot).map(|intent| intent.identity);
        let said = if good { Ok(()) } else { Err("no".to_owned()) };
        if step == Step::AwaitEnd && root.is_some() && root == judged {
            return;
        }
        self.open.remove(slot);
        match step {
            Step::Preflight => {
                let Some(asked) = self.host.intent(slot).cloned() else { return };
                let cleared = Cleared { means: "by its supervisor".into(), ends_root: true };
                self.host.handle_preflight(&asked, said.map(|()| cleared), now);
            }
            Step::Stop => {
                if let (false, Some(judged)) = (good, judged) {
                    // Refused before anything happened.
                    self.book.stopped.remove(&(slot.clone(), judged));
                }
                self.host.handle_stopped(slot, said, now);
            }
            Step::AwaitEnd => self.host.handle_ended(slot, now),
            Step::Start => self.host.handle_started(slot, said, now),
            Step::HoldDown if root.is_some() && root != judged => self.host.handle_new_life(slot, "up".into(), now),
            Step::HoldDown => self.host.handle_held(slot, said, now),
            Step::Verify => {
                let unit = self.units[number].clone();
                let wanted = self.host.desired().apps.iter();
                let stale = wanted
                    .map(|(name, app)| (usize::from(*name == self::app(1)), app.revision))
                    .any(|(index, revision)| index <= number && unit.loaded[index] != revision.0);
                let verified = match (unit.hidden, stale) {
                    (true, _) => Verified::Unknown("hidden".into()),
                    (false, false) => Verified::Fresh,
                    (false, true) if unit.loaded == self.source => Verified::SourceMovedOn("moved".into()),
                    (false, true) => Verified::Stale("other".into()),
                };
                self.host.handle_verified(slot, verified, now);
            }
            Step::Kill | Step::Persist(_) | Step::Finish(_) => {}
        }
    }

    fn purged(&mut self, good: bool) {
        let Some((name, files)) = self.purging.pop() else { return };
        let mut result = PurgeResult::default();
        if good {
            self.stale_files[usize::from(name == app(1))].clear();
            result.removed = files;
        } else {
            result.refused = files.into_iter().map(|file| (file, "read-only".to_owned())).collect();
        }
        self.host.handle_purged(&name, &result, self.moment());
    }

    fn kill(&mut self) {
        let counter = self.incarnation.counter + 1;
        self.incarnation = Incarnation { counter, random: Salt([u8::try_from(counter % 256).unwrap(); 16]) };
        self.born_at = self.now;
        self.host = Host::new(name(), self.incarnation, HostPolicy::default(), self.disk.clone(), counter, Moment(0));
        self.host.handle_connected(Moment(0));
        self.open.clear();
        self.asks.clear();
        self.purging.clear();
        let book = &mut self.book;
        (book.sequence, book.owes_refusal, book.scan) = (0, None, None);
        book.right.clear();
    }

    // What the agent does, and whether it may.

    fn settle(&mut self, cause: Option<&(Permit, bool)>) {
        while let Some(action) = self.host.poll_action() {
            match action {
                Action::Store(records) => records.into_iter().for_each(|record| self.store(record)),
                Action::Report(report) => self.check_report(&report),
                Action::Ask(ask) => self.check_ask(ask),
                Action::Look => {}
                Action::Purge { app, files } => {
                    let mode = self.host.desired().apps.get(&app).map(|app| app.mode);
                    if !matches!(mode, Some(Mode::Run | Mode::Halt)) {
                        self.broke(Law::Purge, format!("{files:?} are purged under {mode:?}"));
                    }
                    self.purging.push((app, files));
                }
                Action::Step { slot, step } => {
                    let is_allowed = cause.is_some_and(|(permit, valid)| *valid && permit.slot == slot);
                    if step == Step::Preflight && !is_allowed {
                        self.broke(Law::Permit, format!("{slot} is acted on because of {cause:?}"));
                    }
                    self.check_step(&slot, &step);
                    self.open.insert(slot, step);
                }
            }
        }
    }

    fn store(&mut self, record: Record) {
        match &record {
            Record::Intent { intent, .. } => {
                self.book.intents.insert(intent.slot.clone(), intent.clone());
            }
            Record::IntentOver(slot) => {
                self.book.intents.remove(slot);
                self.open.remove(slot);
            }
            Record::Slot(slot, Some(record)) => self.end(slot, record),
            Record::Slot(slot, None) => {
                self.book.records.remove(slot);
            }
            Record::Desired(_) | Record::Decided(_) | Record::Numbering(_) => {}
        }
        self.disk.push(record);
    }

    fn end(&mut self, slot: &SlotId, record: &SlotRecord) {
        self.book.records.insert(slot.clone(), record.clone());
        if record.drained.is_some() || record.failed.as_ref().is_some_and(|failure| failure.down) {
            self.book.down.insert(slot.clone());
        } else {
            self.book.down.remove(slot);
        }
        let Some(done) = &record.done else { return };
        match (&done.purpose, done.result) {
            (Purpose::Drain(id), DoneResult::Drained) => {
                self.book.drained.insert(slot.clone(), id.clone());
            }
            // What failed says that it did, also of a slot that an earlier drain had emptied.
            (_, DoneResult::Undrained) | (Purpose::Drain(_), DoneResult::Failed) => {
                self.book.drained.remove(slot);
            }
            _ => {}
        }
        self.restarted += u32::from(done.result == DoneResult::Restarted);
        let Purpose::Restart(apps) = &done.purpose else { return };
        let desired = self.host.desired().clone();
        let mode = |name: &AppName| desired.apps.get(name).map(|app| app.mode);
        if done.result == DoneResult::Failed {
            for (name, revision) in apps {
                let attempt = desired.apps.get(name).map_or(Generation(0), |app| app.attempt);
                self.book.failed.insert((slot.clone(), name.clone()), (*revision, attempt));
            }
        }
        if done.result == DoneResult::Cancelled {
            let is_aborted = apps.keys().all(|name| mode(name) == Some(Mode::Abort));
            if !(is_aborted || self.is_superseded(apps)) || self.book.stopped_for.contains(&(slot.clone(), done.nonce))
            {
                self.broke(Law::Abort, format!("{slot} was cancelled: {done:?}"));
            }
        }
    }
}
