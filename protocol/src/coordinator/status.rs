//! How far a rollout has come, as plain data. Computed from the last reports each time it is asked for.

use super::{Coordinator, DrainRecord, Event, Host, PermitRecord, RolloutRecord};
use crate::ids::{AppName, DrainId, HostName, Revision, SlotId, UnitId, Version};
use crate::message::{AppReport, Done, Mode, Phase, SlotReport};
use crate::time::Moment;
use crate::verdict::Verdict;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How a rollout stands or ended. Each but the first two ends a waiting command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "because")]
pub enum Outcome {
    /// Still going on; the text says what is waited for.
    InProgress(String),
    /// Paused by an operator.
    Paused(String),
    /// Every expected host has converged, and no tracked worker is stale or unknown.
    Converged,
    /// Nothing more will happen by itself, and not everything is proven.
    Incomplete(String),
    /// Nothing more will happen by itself, and something is proven stale.
    Failed(String),
    /// Halted by policy.
    Halted(String),
    /// A newer revision took its place.
    Superseded,
    /// Ended by an operator.
    Aborted,
}

/// Units by what came of them, over all hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Proven fresh: restarted and untouched ones.
    pub converged: u32,
    /// Of these, restarted for this revision.
    pub restarted: u32,
    /// Of these, left alone.
    pub untouched: u32,
    /// Failed.
    pub failed: u32,
    /// Waiting: for source, for a permit, under action.
    pub waiting: u32,
    /// Stale, and cannot be restarted.
    pub blocked: u32,
    /// Ended, and nothing brings them back.
    pub gone: u32,
    /// Not proven either way.
    pub unknown: u32,
    /// Last known on hosts that are silent, or that do not come to be heard here: what became of them is not known, and they
    /// are part of no proof.
    #[serde(default)]
    pub unheard: u32,
}

/// One unit as it was last reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitStatus {
    /// The host.
    pub host: HostName,
    /// The slot.
    pub slot: SlotId,
    /// The life of the unit in it.
    pub unit: Option<UnitId>,
    /// Where it stands.
    pub phase: Phase,
    /// The verdict for this app, where something is up.
    pub verdict: Option<Verdict>,
    /// What it rests on, or what it waits for.
    pub because: String,
    /// The last action that ended.
    pub done: Option<Done>,
}

/// One host as it was last heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// The host.
    pub host: HostName,
    /// Milliseconds since its last report; `None` where there was none in this reign.
    pub heard_ms_ago: Option<u64>,
    /// No report for so long that it counts as silent.
    pub silent: bool,
    /// Two agents answer to its name.
    pub doubled: bool,
    /// It was not heard since the takeover, and what it has of the app is not known: no unit of the app is restarted.
    #[serde(default)]
    pub uncounted: bool,
    /// How far the app has come there, where it was reported.
    pub app: Option<AppReport>,
    /// The highest desired state it has accepted.
    pub accepted: Option<Version>,
}

/// How far one schema version has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutStatus {
    /// The app.
    pub app: AppName,
    /// What is kept of it.
    pub record: RolloutRecord,
    /// How it stands.
    pub outcome: Outcome,
    /// Units over all hosts.
    pub units: Counts,
    /// Files removed for it.
    pub purged_files: u32,
    /// Enums and bindings outside verdicts.
    pub untracked: u32,
    /// Bystanders that hold the app.
    pub bystanders: u32,
    /// Whoever is asked stands by, and hears nothing of the hosts: all of this may be long past.
    #[serde(default)]
    pub unheard: bool,
    /// The hosts that are expected.
    pub hosts: Vec<HostStatus>,
    /// Units that are not fresh or were acted on.
    pub detail: Vec<UnitStatus>,
    /// Units left out of reports for want of room.
    pub omitted: u32,
}

/// One drain as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainStatus {
    /// Its name.
    pub id: DrainId,
    /// What was asked for.
    pub record: DrainRecord,
    /// Where the slot stands, where its host has reported it.
    pub phase: Option<Phase>,
    /// What that rests on.
    pub because: String,
    /// The last action that ended on the slot.
    pub done: Option<Done>,
    /// Whether a permit for it is outstanding.
    pub permitted: bool,
}

impl Coordinator {
    /// Returns all apps with their current revisions.
    pub fn apps(&self) -> impl Iterator<Item = (&AppName, Revision)> {
        self.rollouts.iter().filter_map(|(app, revisions)| Some((app, *revisions.last_key_value()?.0)))
    }

    /// Returns all revisions of an app, as they are kept.
    pub fn rollouts(&self, app: &AppName) -> impl Iterator<Item = &RolloutRecord> {
        self.rollouts.get(app).into_iter().flat_map(|revisions| revisions.values())
    }

    /// Returns how far a revision has come; `None` where there is no such revision.
    pub fn status(&self, app: &AppName, revision: Revision, now: Moment) -> Option<RolloutStatus> {
        let record = self.rollouts.get(app)?.get(&revision)?.clone();
        let mut status = RolloutStatus {
            app: app.clone(),
            record,
            outcome: Outcome::Superseded,
            units: Counts::default(),
            purged_files: 0,
            untracked: 0,
            bystanders: 0,
            unheard: self.is_unheard(now),
            hosts: Vec::new(),
            detail: Vec::new(),
            omitted: 0,
        };
        for (name, host) in self.expected() {
            let of_app = |report: &crate::message::Report| {
                report.apps.get(app).filter(|of_app| of_app.revision == revision).cloned()
            };
            let app_report = host.and_then(|host| host.report.as_deref()).and_then(of_app);
            let silent = self.is_silent(host, now);
            if let Some(report) = &app_report {
                status.add(report, !silent && !status.unheard);
            }
            if let Some(report) = host.and_then(|host| host.report.as_ref()) {
                status.omitted = status.omitted.saturating_add(report.omitted);
                let of_app = report.slots.iter().filter(|slot| belongs(slot, app, revision));
                status.detail.extend(of_app.map(|slot| unit_status(name, slot, app)));
            }
            status.hosts.push(HostStatus {
                host: name.clone(),
                heard_ms_ago: host
                    .and_then(|host| host.heard_at)
                    .map(|at| u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX)),
                silent,
                doubled: host.is_some_and(Host::is_doubled),
                uncounted: self.tally.uncounted().get(app).is_some_and(|hosts| hosts.contains(name)),
                app: app_report,
                accepted: host.and_then(|host| host.report.as_ref()).map(|report| report.accepted),
            });
        }
        status.outcome = self.outcome(&status, now);
        Some(status)
    }

    /// Returns the hosts that are expected: configured ones, even where they have left, and heard ones that have not.
    pub(super) fn expected(&self) -> impl Iterator<Item = (&HostName, Option<&Host>)> {
        let configured = &self.policy.expected_hosts;
        let unheard = configured.iter().filter(|name| !self.hosts.contains_key(*name));
        let heard = self.hosts.iter().filter(|(name, host)| !host.record.left || configured.contains(*name));
        heard.map(|(name, host)| (name, Some(host))).chain(unheard.map(|name| (name, None)))
    }

    pub(super) fn is_silent(&self, host: Option<&Host>, now: Moment) -> bool {
        if self.is_unheard(now) {
            return false;
        }
        let heard_after = host.filter(|host| host.heard_at.is_some()).map_or(Duration::ZERO, |host| host.heard_after);
        self.listening.total(now).saturating_sub(heard_after) >= self.policy.silent_after
    }

    fn outcome(&self, status: &RolloutStatus, now: Moment) -> Outcome {
        let current = self.rollouts.get(&status.app).and_then(|revisions| revisions.last_key_value());
        if current.is_some_and(|(revision, _)| *revision != status.record.revision) {
            return Outcome::Superseded;
        }
        let because = status.record.mode_because.clone();
        match status.record.mode {
            Mode::Abort => return Outcome::Aborted,
            _ if !self.leads(now) => return Outcome::InProgress(self.led_elsewhere(now)),
            Mode::Halt if !self.is_anything_under_way(status) => return Outcome::Halted(because),
            Mode::Halt => return Outcome::InProgress(format!("halted, finishing what was begun: {because}")),
            Mode::Pause => return Outcome::Paused(because),
            Mode::Run => {}
        }
        self.progress(status, now)
    }

    /// Says why nothing can be said of a rollout here.
    fn led_elsewhere(&self, now: Moment) -> String {
        let whom = match self.leader(now) {
            Some(host) => format!("the one on {host}, which leads,"),
            None => "the one that leads".to_owned(),
        };
        format!("this coordinator stands by: how far it is, {whom} can say")
    }

    fn progress(&self, status: &RolloutStatus, now: Moment) -> Outcome {
        let terms = &status.record.terms;
        let enough = terms.expect_hosts.is_some_and(|wanted| heard_hosts(status) >= wanted);
        let knows_fleet = self.knew_hosts || !self.policy.expected_hosts.is_empty() || enough;
        if !knows_fleet && now.since(self.started_at) < self.policy.first_wait {
            return Outcome::InProgress("waiting for hosts to report".into());
        }
        if self.lost_hosts {
            let why = "the list of hosts was lost: say how many there are with `unstale resume --hosts N`";
            return Outcome::InProgress(why.into());
        }
        let mut silent = Vec::new();
        let mut open = Vec::new();
        let mut unproven = Vec::new();
        // One status for each host that is expected, in this order.
        for (host, (_, known)) in status.hosts.iter().zip(self.expected()) {
            if host.doubled {
                unproven.push(format!("two agents answer to the name {}", host.host));
            } else if host.silent {
                silent.push(host.host.to_string());
            } else if let Some(why) = self.what_is_open(host, known, status, now) {
                open.push(format!("{}: {why}", host.host));
            }
        }
        if !open.is_empty() {
            let withheld = self.uncounted(&status.app);
            return Outcome::InProgress(join(&withheld.into_iter().chain(open).collect::<Vec<_>>()));
        }
        let units = &status.units;
        if units.failed > 0 || units.blocked > 0 {
            let failed = (units.failed > 0).then(|| format!("{} failed", counted(units.failed, "unit")));
            let blocked =
                (units.blocked > 0).then(|| format!("{} cannot be restarted", counted(units.blocked, "unit")));
            return Outcome::Failed(failed.into_iter().chain(blocked).collect::<Vec<_>>().join(", "));
        }
        if !silent.is_empty() && !terms.ignore_silent {
            unproven.push(format!("silent: {}", silent.join(", ")));
        }
        if terms.expect_hosts.is_some_and(|wanted| heard_hosts(status) < wanted) {
            unproven.push(format!("only {} reported", counted(heard_hosts(status), "host")));
        }
        if units.unknown > 0 {
            unproven.push(format!("{} cannot be judged", counted(units.unknown, "unit")));
        }
        if units.converged == 0 && !terms.allow_empty {
            unproven.push("no worker holds this app: nothing is proven".into());
        }
        let bystanders: u32 =
            status.hosts.iter().filter_map(|host| host.app.as_ref()).map(|app| app.bystanders_not_fresh).sum();
        if terms.strict && bystanders > 0 {
            return Outcome::Failed(format!("{} on a terminal not fresh", counted(bystanders, "bystander")));
        }
        if unproven.is_empty() { Outcome::Converged } else { Outcome::Incomplete(join(&unproven)) }
    }

    /// Returns what a host still does or waits for; `None` where nothing more will happen there by itself.
    fn what_is_open(
        &self,
        host: &HostStatus,
        known: Option<&Host>,
        status: &RolloutStatus,
        now: Moment,
    ) -> Option<String> {
        let Some(app) = &host.app else { return Some("has not reported on this revision yet".into()) };
        let follows = known.is_some_and(|host| self.is_heard(host));
        if !follows || host.accepted.is_none_or(|accepted| accepted.generation < status.record.attempt) {
            return Some("has not taken in the announcement yet".into());
        }
        if app.converged {
            return None;
        }
        if app.unseen {
            // Its counts are of before this attempt.
            return Some(app.waiting.clone().unwrap_or_else(|| "looking again".to_owned()));
        }
        let units = &app.units;
        if units.acting > 0 || units.stale > 0 {
            let acting = (units.acting > 0).then(|| format!("{} under way", counted(units.acting, "unit")));
            let stale = (units.stale > 0).then(|| format!("{} to go", counted(units.stale, "unit")));
            return Some(acting.into_iter().chain(stale).collect::<Vec<_>>().join(", "));
        }
        if units.waiting > 0 {
            let source = app.source.as_ref().map_or(String::new(), |source| format!(" (its source is {source})"));
            return Some(format!("{} waiting for source{source}", counted(units.waiting, "unit")));
        }
        let still = known.and_then(|host| host.still_since);
        let has_settled = still.is_some_and(|since| now.since(since) >= self.policy.settle_wait);
        if units.failed + units.blocked > 0 || (units.unknown > 0 && has_settled) {
            return None;
        }
        Some(app.waiting.clone().unwrap_or_else(|| "looking again".to_owned()))
    }

    fn is_anything_under_way(&self, status: &RolloutStatus) -> bool {
        let acting = status.detail.iter().any(|unit| unit.phase.is_acting());
        acting || self.permits.iter().any(|(_, _, permit)| is_for(permit, &status.app))
    }

    /// Returns all drains as they stand.
    pub fn drains(&self) -> Vec<DrainStatus> {
        self.drains
            .iter()
            .map(|(id, record)| {
                let slot = self
                    .hosts
                    .get(&record.host)
                    .and_then(|host| host.report.as_ref())
                    .and_then(|report| report.slots.iter().find(|slot| slot.slot == record.slot));
                DrainStatus {
                    id: id.clone(),
                    record: record.clone(),
                    phase: slot.map(|slot| slot.phase),
                    because: slot.map_or_else(String::new, |slot| slot.because.clone()),
                    done: slot.and_then(|slot| slot.done.clone()),
                    permitted: self.permits.get(&record.host, &record.slot).is_some(),
                }
            })
            .collect()
    }

    /// Returns the last report of every host, for selectors and `why`.
    pub fn reports(&self) -> impl Iterator<Item = &crate::message::Report> {
        self.hosts.values().filter_map(|host| host.report.as_deref())
    }

    /// Tells whether no report of a host has come for so long that it counts as silent.
    pub fn is_host_silent(&self, host: &HostName, now: Moment) -> bool {
        self.is_silent(self.hosts.get(host), now)
    }

    /// Tells whether configuration names the host: then it is expected whatever else is known of it.
    pub fn is_host_configured(&self, host: &HostName) -> bool {
        self.policy.expected_hosts.contains(host)
    }

    /// Tells whether anything is kept of the host, so that it can be forgotten.
    pub fn is_host_known(&self, host: &HostName) -> bool {
        self.hosts.contains_key(host)
    }

    /// Returns the hosts that have said that they leave and were not heard since, with how many permits of each are still
    /// outstanding.
    pub fn left_hosts(&self) -> impl Iterator<Item = (&HostName, usize)> {
        let left = self.hosts.iter().filter(|(_, host)| host.record.left);
        left.map(|(name, _)| (name, self.permits.of(name).count()))
    }

    /// Tells whether two agents answer to the name of a host: neither is believed.
    pub fn is_host_doubled(&self, host: &HostName) -> bool {
        self.hosts.get(host).is_some_and(Host::is_doubled)
    }

    /// Returns the number of an agent's life that is not believed, and of the known one above it. Where the host is
    /// silent, its agent has lost its state and counts its lives anew.
    pub fn outnumbered(&self, host: &HostName) -> Option<(u64, u64)> {
        let host = self.hosts.get(host)?;
        Some((host.outnumbered?, host.record.incarnation?.counter))
    }

    /// Returns how long ago a host reported, in milliseconds; `None` where it did not in this reign.
    pub fn heard_ms_ago(&self, host: &HostName, now: Moment) -> Option<u64> {
        let heard_at = self.hosts.get(host)?.heard_at?;
        Some(u64::try_from(now.since(heard_at).as_millis()).unwrap_or(u64::MAX))
    }

    /// Returns the outstanding permits.
    pub fn permits(&self) -> impl Iterator<Item = (&HostName, &SlotId, &PermitRecord)> {
        self.permits.iter()
    }

    /// Says which hosts may have units of the app under action that are not known here, so that none is restarted before
    /// they are heard or forgotten; `None` where there are none.
    pub fn uncounted(&self, app: &AppName) -> Option<String> {
        let hosts = self.tally.uncounted().get(app)?;
        let first = hosts.first()?;
        let others = if hosts.len() > 1 { format!(" and {} more", hosts.len() - 1) } else { String::new() };
        Some(format!(
            "no unit of {app} is restarted: {first}{others} did not report since the takeover, and how many it has there is \
             not known; `unstale forget host:{first}` if it will not come back"
        ))
    }
}

impl RolloutStatus {
    fn add(&mut self, report: &AppReport, is_heard: bool) {
        let units = &report.units;
        // What failed stays failed, whoever has fallen silent since.
        self.units.failed += units.failed;
        self.units.blocked += units.blocked;
        self.units.gone += units.gone;
        self.purged_files = self.purged_files.saturating_add(report.purged_files);
        self.untracked = self.untracked.saturating_add(report.untracked);
        self.bystanders = self.bystanders.saturating_add(report.bystanders);
        if !is_heard {
            self.units.unheard += units.fresh + units.waiting + units.stale + units.acting + units.unknown;
            return;
        }
        self.units.converged += units.fresh;
        self.units.restarted += units.restarted;
        self.units.untouched += units.fresh.saturating_sub(units.restarted);
        self.units.waiting += units.waiting + units.stale + units.acting;
        self.units.unknown += units.unknown;
    }
}

impl Event {
    /// Tells whether the event belongs to this revision of this app.
    pub fn is_of(&self, app: &AppName, revision: Revision) -> bool {
        self.app.as_ref() == Some(app) && self.revision == Some(revision)
    }
}

fn heard_hosts(status: &RolloutStatus) -> u32 {
    let heard = status.hosts.iter().filter(|host| host.heard_ms_ago.is_some() && !host.silent).count();
    u32::try_from(heard).unwrap_or(u32::MAX)
}

fn belongs(slot: &SlotReport, app: &AppName, revision: Revision) -> bool {
    let acted = slot.done.as_ref().is_some_and(
        |done| matches!(&done.purpose, crate::message::Purpose::Restart(apps) if apps.get(app) == Some(&revision)),
    );
    acted || slot.apps.contains_key(app)
}

fn unit_status(host: &HostName, slot: &SlotReport, app: &AppName) -> UnitStatus {
    UnitStatus {
        host: host.clone(),
        slot: slot.slot.clone(),
        unit: slot.unit.clone().or_else(|| slot.last_unit.clone()),
        phase: slot.phase,
        verdict: slot.unit.as_ref().and_then(|_| slot.apps.get(app)).map(|judged| judged.verdict),
        because: slot.because.clone(),
        done: slot.done.clone(),
    }
}

fn is_for(permit: &PermitRecord, app: &AppName) -> bool {
    matches!(&permit.purpose, crate::message::Purpose::Restart(apps) if apps.contains_key(app))
}

/// Returns `1 unit`, `2 units`.
pub(super) fn counted(number: u32, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

fn join(parts: &[String]) -> String {
    const SHOWN: usize = 5;
    let text = parts.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    if parts.len() > SHOWN { format!("{text}; and {} more", parts.len() - SHOWN) } else { text }
}
