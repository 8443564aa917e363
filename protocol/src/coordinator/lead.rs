//! Who leads: standing by, taking over on a lease, losing it, and what is learned of other reigns.
//!
//! A coordinator that stands by follows the desired state that it finds on the bus, and hears reports where the bus brings
//! them to all, so that it can take over at once. It grants nothing, publishes nothing and obeys no operator. One that
//! leads does so until its lease ends on its own clock, whatever the store says.

use super::record::{DrainRecord, Event, Record, RolloutRecord};
use super::{Action, Coordinator, Refused};
use crate::fingerprint::Salt;
use crate::ids::{DrainId, Epoch, HostName, Version};
use crate::message::{Desired, DesiredApp, DesiredDrain, Mode, Phase, Purpose, Report, not_understood};
use crate::time::Moment;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Whether others can lead the same fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leadership {
    /// Nobody else can: this one leads from its start to its end, and takes no lease.
    #[default]
    Sole,
    /// Whoever holds the lease leads; this one stands by until it does.
    Leased,
}

/// Whom the bus brings the reports of hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reports {
    /// Every coordinator, also those that stand by.
    #[default]
    ToAll,
    /// Who leads, and nobody else: they come out of a queue.
    ToLeader,
}

/// Leave to lead for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// When it ends, on this machine's own clock: the lease's length after the moment *before* it was asked for.
    pub until: Moment,
    /// The number that the store gave to the reign; `None` where the store gives none. One below
    /// [`Coordinator::least_epoch`] does not do: the machine stands by until a later lease bears a higher one.
    pub epoch: Option<Epoch>,
}

/// Whether a coordinator leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It leads, and nobody else can.
    Sole,
    /// It leads.
    Leading {
        /// When its lease ends unless it is renewed.
        until: Moment,
    },
    /// It is warm, and does nothing.
    Standby,
}

/// How long the bus has brought reports here, which is all that silence may be measured by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Listening {
    before: Duration,
    since: Option<Moment>,
    /// The bus is connected, whomever it brings reports.
    pub(super) is_connected: bool,
}

impl Listening {
    fn begin(&mut self, now: Moment) {
        self.since.get_or_insert(now);
    }

    fn end(&mut self, now: Moment) {
        if let Some(since) = self.since.take() {
            self.before = self.before.saturating_add(now.since(since));
        }
    }

    /// Returns how long in all, up to `now`.
    pub(super) fn total(&self, now: Moment) -> Duration {
        self.before.saturating_add(self.since.map_or(Duration::ZERO, |since| now.since(since)))
    }
}

impl Coordinator {
    /// Tells whether this coordinator leads: nothing that it decided may leave after that has ended.
    pub fn leads(&self, now: Moment) -> bool {
        self.standing(now) != Standing::Standby
    }

    /// Returns the host of the coordinator that leads, as far as it is known here: while this one stands by, the host of
    /// whoever wrote what is desired.
    pub fn leader(&self, now: Moment) -> Option<&HostName> {
        if self.leads(now) { self.policy.host.as_ref() } else { self.led_on.as_ref() }
    }

    /// Returns whether, and how long, this coordinator leads.
    pub fn standing(&self, now: Moment) -> Standing {
        match self.standing {
            Standing::Leading { until } if now >= until => Standing::Standby,
            standing => standing,
        }
    }

    /// Returns the least number that does for a reign of this coordinator: what it reigns under while it leads, else
    /// one more than the highest that it has seen on its disk, on the bus and in reports.
    pub fn least_epoch(&self) -> Epoch {
        match self.standing {
            Standing::Standby => self.seen.epoch.max(self.version.epoch).next(),
            Standing::Sole | Standing::Leading { .. } => self.version.epoch,
        }
    }

    /// Takes a lease, the first or a renewed one. One that has ended already changes nothing.
    pub fn handle_lease(&mut self, lease: Lease, now: Moment) {
        self.expire(now);
        if lease.until <= now {
            return;
        }
        match (self.standing, lease.epoch) {
            (Standing::Sole, _) => return,
            (Standing::Leading { until }, None) => self.standing = Standing::Leading { until: until.max(lease.until) },
            (Standing::Leading { until }, Some(given)) if given == self.version.epoch => {
                self.standing = Standing::Leading { until: until.max(lease.until) };
            }
            (Standing::Standby, None) => self.take_over(self.least_epoch(), lease, now),
            (Standing::Leading { .. } | Standing::Standby, Some(given)) => {
                if given > self.version.epoch && given > self.seen.epoch {
                    self.take_over(given, lease, now);
                }
            }
        }
        self.review(now);
    }

    /// Takes the news that the lease is lost: given up, refused, or not known to be held any more.
    pub fn handle_lease_lost(&mut self, now: Moment) {
        if matches!(self.standing, Standing::Leading { .. }) {
            self.stand_down("the lease is lost", now);
        }
        self.reviewed_at = now;
    }

    /// Takes the newest desired state that the bus holds; `None` where it holds none.
    pub fn handle_found(&mut self, found: Option<&Desired>, now: Moment) {
        self.expire(now);
        let Some(found) = found else { return self.publish_again(now) };
        let version = found.version();
        let is_rival = self.is_rival(version, found.author);
        if version >= self.version && found.author != self.policy.life {
            self.led_on.clone_from(&found.leader);
        }
        if !is_rival && found.author == self.author {
            self.see_asserted(version);
        }
        if version < self.version && !is_rival {
            return if self.is_beside(found) { self.learn_beside(found, now) } else { self.publish_again(now) };
        }
        if version == self.version && !is_rival {
            if self.standing == Standing::Standby {
                // What it said itself it knows better by now.
                if found.author != self.policy.life {
                    self.compare_hosts(found.hosts);
                }
            } else if !self.lost_hosts && found.hosts != Some(self.expected_count()) {
                self.publish_again(now);
            }
            return;
        }
        if not_understood(&found.must).is_none() {
            self.adopt(found);
        } else {
            self.partial = true;
        }
        self.compare_hosts(found.hosts);
        self.learn_of_later_reign(version, now);
        self.review(now);
    }

    /// Takes the news that the bus brings reports here from now on. A machine without rivals is always connected.
    pub fn handle_connected(&mut self, now: Moment) {
        self.expire(now);
        self.listening.is_connected = true;
        self.listen(now);
    }

    /// Takes the news that the bus brings no reports here any more: nobody becomes silent meanwhile.
    pub fn handle_disconnected(&mut self, now: Moment) {
        self.expire(now);
        if self.standing != Standing::Sole {
            self.listening.is_connected = false;
            self.listen(now);
        }
    }

    /// Begins or ends to listen, as the bus brings reports here or does not.
    pub(super) fn listen(&mut self, now: Moment) {
        let is_told = self.policy.reports == Reports::ToAll || self.standing != Standing::Standby;
        if self.listening.is_connected && is_told { self.listening.begin(now) } else { self.listening.end(now) }
    }

    /// Tells whether what hosts do does not come to be known here: this one stands by, and the bus brings it no reports.
    /// What it heard before proves nothing, and that it hears nothing makes nobody silent.
    pub fn is_unheard(&self, now: Moment) -> bool {
        let brings_none = self.policy.reports == Reports::ToLeader || !self.listening.is_connected;
        !self.leads(now) && brings_none
    }

    /// Stands down where the lease has ended.
    pub(super) fn expire(&mut self, now: Moment) {
        if self.standing != Standing::Standby && !self.leads(now) {
            self.stand_down("the lease has ended", now);
        }
    }

    /// Refuses what only a leader may do.
    pub(super) fn must_lead(&mut self, now: Moment) -> Result<(), Refused> {
        self.expire(now);
        if self.standing == Standing::Standby { Err(Refused::NotLeader(self.led_on.clone())) } else { Ok(()) }
    }

    fn stand_down(&mut self, because: &str, now: Moment) {
        // Reports may have ended with the lease, before anybody looked.
        let heard_until = match self.standing {
            Standing::Leading { until } if self.policy.reports == Reports::ToLeader => until.min(now),
            _ => now,
        };
        self.standing = Standing::Standby;
        self.listen(heard_until);
        self.requests.clear();
        self.probes.clear();
        self.actions.push_back(Action::Store(vec![reign_event("stood down", because)]));
    }

    fn take_over(&mut self, epoch: Epoch, lease: Lease, now: Moment) {
        self.standing = Standing::Leading { until: lease.until };
        self.led_on = None;
        self.listen(now);
        self.is_numbered = lease.epoch.is_some();
        self.started_at = now;
        // Somebody may have reigned, and desired, between what is known here and this number.
        let is_behind = self.seen > self.version;
        self.partial |= is_behind || epoch > self.version.epoch.next();
        self.doubt_hosts(is_behind);
        // What was told of an earlier reign says nothing of this one.
        self.hosts_elsewhere = None;
        self.actions.push_back(Action::Store(vec![reign_event("took over", &format!("epoch {epoch}"))]));
        self.reign(epoch, now);
    }

    /// Something was written under a reign that is not this one: rule above it, and wait as after any takeover. Where
    /// numbers come with the lease, that needs a new one.
    pub(super) fn learn_of_later_reign(&mut self, seen: Version, now: Moment) {
        self.seen = self.seen.max(seen);
        if self.standing == Standing::Standby {
            return;
        }
        self.doubt_hosts(self.seen > self.version);
        if self.is_numbered {
            // It may die before it leads again, and then its disk has hosts: they must not pass for all there are.
            self.actions.push_back(Action::Store(vec![self.reign_record()]));
            return self.stand_down("a later reign has come to light", now);
        }
        self.reign(self.seen.epoch.max(self.version.epoch).next(), now);
    }

    /// Asserts the desired state to a host that has not taken it in. Where it has taken in one of an earlier reign that is
    /// not below in the count of all states, this reign began without knowing of that one.
    pub(super) fn learn_of_unknown_state(&mut self, accepted: Version, now: Moment) {
        if accepted.generation < self.version.generation || self.standing == Standing::Standby {
            return self.publish_again(now);
        }
        self.partial = true;
        self.version.generation = accepted.generation.next();
        self.count_all_again();
        self.publish(Vec::new());
    }

    /// Tells whether a state was written under this reign's number by somebody else.
    pub(super) fn is_rival(&self, version: Version, author: Salt) -> bool {
        version.epoch == self.version.epoch && author != self.author && !author.is_unset() && !self.author.is_unset()
    }

    /// Tells whether a state with a lower number is news all the same: somebody else wrote it after all that this one is
    /// known to have said, and before its number came to light. A number that was only reserved outranks nothing.
    fn is_beside(&self, found: &Desired) -> bool {
        let version = found.version();
        let is_elses = found.author != self.author && !found.author.is_unset() && !self.author.is_unset();
        is_elses && version > self.asserted.max(self.adopted) && not_understood(&found.must).is_none()
    }

    fn learn_beside(&mut self, found: &Desired, now: Moment) {
        self.adopt(found);
        if self.standing != Standing::Standby {
            self.next_generation();
            self.count_all_again();
            self.publish(Vec::new());
        }
        self.review(now);
    }

    /// A state of this coordinator's own is out: the bus holds it, or a host follows it.
    pub(super) fn see_asserted(&mut self, version: Version) {
        self.asserted = self.asserted.max(version.min(self.version));
    }

    /// Learns what another reign desired. What is told of an app by the later reign holds, but a revision never goes
    /// back and an abort stays. A reign that is not later did not know what this one has desired since it last took
    /// something over: that stays, and nothing goes on that was stopped here.
    fn adopt(&mut self, found: &Desired) {
        let mut records = Vec::new();
        let version = found.version();
        let is_later = version > self.version && !self.is_rival(version, found.author);
        for (app, told) in &found.apps {
            let known = self.rollouts.get(app).and_then(|revisions| revisions.values().next_back());
            let is_stopped_here = |known: &RolloutRecord| known.revision == told.revision && known.mode != Mode::Run;
            if !is_later && told.mode == Mode::Run && known.is_some_and(is_stopped_here) {
                continue;
            }
            if let Some(rollout) = merged(known, told, version) {
                self.rollouts.entry(app.clone()).or_default().insert(rollout.revision, rollout.clone());
                records.push(Record::Rollout(app.clone(), rollout));
            }
        }
        let told: BTreeMap<&DrainId, &DesiredDrain> = found.drains.iter().map(|drain| (&drain.id, drain)).collect();
        if !found.partial {
            let adopted = self.adopted;
            // One that is older than what was taken over last, as an echo of what was said before that, knows nothing of it.
            let knows = |drain: &DrainRecord| is_later || (version > adopted && drain.since <= adopted);
            let is_gone = |(id, drain): &(&DrainId, &DrainRecord)| !told.contains_key(id) && knows(drain);
            let gone: Vec<DrainId> = self.drains.iter().filter(is_gone).map(|(id, _)| id.clone()).collect();
            for id in gone {
                self.drains.remove(&id);
                records.push(Record::Drain(id, None));
            }
        }
        for (id, drain) in told {
            if !is_later && self.released.contains(id) {
                continue;
            }
            let record = self.drains.entry(id.clone()).or_insert_with(|| drain.record(version));
            records.push(Record::Drain(id.clone(), Some(record.clone())));
        }
        self.partial = found.partial || (self.partial && version < self.version);
        self.has_adopted = true;
        self.adopted = self.adopted.max(version);
        if version > self.version {
            (self.version, self.author) = (version, found.author);
        }
        records.push(self.reign_record());
        self.actions.push_back(Action::Store(records));
    }

    /// Learns the drains that no coordinator's memory names any more from the slots that are drained.
    pub(super) fn adopt_drains(&mut self, report: &Report) {
        if !self.partial || self.standing == Standing::Standby {
            return;
        }
        let mut records = Vec::new();
        for slot in report.slots.iter().filter(|slot| slot.phase == Phase::Drained) {
            let Some(Purpose::Drain(id)) = slot.done.as_ref().map(|done| &done.purpose) else { continue };
            if self.drains.contains_key(id) || self.released.contains(id) {
                continue;
            }
            let drain = DesiredDrain {
                id: id.clone(),
                host: report.host.clone(),
                slot: slot.slot.clone(),
                deadline_ms: None,
                force: false,
            };
            let record = drain.record(Version { generation: self.version.generation.next(), ..self.version });
            records.push(Record::Drain(id.clone(), Some(record.clone())));
            self.drains.insert(id.clone(), record);
        }
        if !records.is_empty() {
            self.next_generation();
            self.publish(records);
        }
    }

    /// Everything that was desired before is known once every host has spoken and the takeover is long enough ago for
    /// those that nobody knew.
    pub(super) fn complete(&mut self, now: Moment) {
        if self.partial
            && !self.lost_hosts
            && self.standing != Standing::Standby
            && now >= self.partial_end()
            && self.hosts.values().all(|host| host.record.left || (self.is_heard(host) && !host.is_acting()))
        {
            // Those that have left say nothing in this reign: what they last said is all that tells of drains there.
            let left = self.hosts.values().filter(|host| host.record.left);
            let last_words: Vec<Arc<Report>> = left.filter_map(|host| host.report.clone()).collect();
            for report in &last_words {
                self.adopt_drains(report);
            }
            self.partial = false;
            // Those that have left are believed from now on.
            self.count_all_again();
            self.next_generation();
            self.publish(Vec::new());
        }
    }

    pub(super) fn partial_end(&self) -> Moment {
        self.reign_at.after(self.policy.first_wait)
    }

    /// Takes note of revisions that hosts have followed and that this disk does not know: their numbers are not given
    /// again, and what is known meanwhile is not rolled out in their place.
    pub(super) fn learn_revisions(&mut self, report: &Report) {
        let mut unknown = Vec::new();
        for (app, told) in &report.apps {
            let Some(revisions) = self.rollouts.get(app) else { continue };
            let Some((current, rollout)) = revisions.last_key_value() else { continue };
            let highest = self.highest_revisions.get(app).copied().unwrap_or_default().max(*current);
            if told.revision > highest {
                self.highest_revisions.insert(app.clone(), told.revision);
                if rollout.mode == Mode::Run {
                    unknown.push((app.clone(), told.revision));
                }
            }
        }
        if self.standing == Standing::Standby {
            return;
        }
        for (app, revision) in unknown {
            let because =
                format!("{} has followed {app}@{revision}, which is not known here: broadcast again", report.host);
            // The only refusals are of apps and revisions that do not exist.
            let paused = self.set_mode(&app, None, Mode::Pause, "paused", &because);
            debug_assert!(paused.is_ok());
        }
    }
}

/// Returns the rollout that follows from what is known and what a later reign told; `None` where that is what is known.
fn merged(known: Option<&RolloutRecord>, told: &DesiredApp, version: Version) -> Option<RolloutRecord> {
    if known.is_some_and(|known| known.revision > told.revision) {
        return None;
    }
    let fingerprint = told.fingerprint.unwrap_or(told.manifest);
    let is_same = |known: &&RolloutRecord| {
        known.revision == told.revision && (known.fingerprint == fingerprint || known.manifest == told.manifest)
    };
    let mut rollout = match known.filter(is_same) {
        Some(known) => known.clone(),
        None => RolloutRecord {
            revision: told.revision,
            manifest: told.manifest,
            fingerprint,
            mode: told.mode,
            mode_because: String::new(),
            attempt: told.attempt,
            since: version,
            terms: told.terms.clone().unwrap_or_default(),
            verified: BTreeMap::new(),
            asked_by: "another coordinator".into(),
            message: None,
            meta: BTreeMap::new(),
            at_ms: 0,
        },
    };
    rollout.manifest = told.manifest;
    rollout.attempt = rollout.attempt.max(told.attempt);
    if let Some(terms) = &told.terms {
        rollout.terms = terms.clone();
    }
    if rollout.mode != Mode::Abort && rollout.mode != told.mode {
        rollout.mode = told.mode;
        rollout.mode_because = "as another coordinator said".into();
    }
    if told.terms.is_none() && rollout.mode == Mode::Run && !known.as_ref().is_some_and(is_same) {
        rollout.mode = Mode::Pause;
        rollout.mode_because = "what its broadcast wanted is not known here: resume it, or broadcast again".into();
    }
    (known != Some(&rollout)).then_some(rollout)
}

fn reign_event(what: &str, because: &str) -> Record {
    Record::Event(Event {
        app: None,
        revision: None,
        host: None,
        slot: None,
        what: what.to_owned(),
        because: because.to_owned(),
    })
}
