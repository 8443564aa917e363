//! What the host says about itself: a summary always, detail as far as there is room.

use super::input::{UnitJudgement, UnitView};
use super::slot::Slot;
use super::{Action, Host};
use crate::ids::{AppName, PoolName, Revision, SlotId};
use crate::message::{
    AppReport, DoneResult, OtherUnit, Phase, PoolReport, ProbeReport, ProbeUnit, Purpose, Report, SlotJudgement,
    SlotReport, UnitCounts,
};
use crate::time::Moment;
use crate::verdict::{Cure, Verdict};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Most bytes of JSON that the slots of one report may take.
const DETAIL_MAX_BYTES: usize = 32 * 1024;

/// Room kept for commas and brackets around each of them.
const ITEM_OVERHEAD_BYTES: usize = 2;

/// Most bytes of JSON that the units and the files in the answer to one dry run may take.
const PROBE_UNITS_MAX_BYTES: usize = 24 * 1024;
const PROBE_FILES_MAX_BYTES: usize = 8 * 1024;

impl Host {
    /// A report is due on what every host hears at this moment: at a random one within the pause of changes.
    pub(super) fn report_with_others(&mut self, now: Moment) {
        // Of states that come one upon the other the first decides.
        if self.quiet_until <= now {
            self.quiet_until = now.after(self.jitter.part_of(self.policy.change_interval));
        }
        self.report_at = self.report_at.min(self.quiet_until);
    }

    /// Returns when the next report is due, at the latest.
    pub(super) fn report_due(&self) -> Moment {
        self.report_at
    }

    /// Sends a report where one is due or something has changed.
    pub(super) fn collect_report(&mut self, now: Moment) {
        let draft = self.draft();
        let has_changed = self.reported.as_ref() != Some(&draft);
        if has_changed && now < self.report_at {
            let earliest = self.reported_at.map_or(now, |at| at.after(self.policy.change_interval));
            self.report_at = self.report_at.min(earliest.max(self.quiet_until));
        }
        if now < self.report_at {
            return;
        }
        self.sequence = self.sequence.saturating_add(1);
        let mut report = Report { sequence: self.sequence, clock: now, ..draft.clone() };
        report.others = self.other_units(&report.slots);
        let mut room = DETAIL_MAX_BYTES;
        report.omitted = truncate(&mut report.slots, &mut room);
        report.others_omitted = truncate(&mut report.others, &mut room);
        self.refused = None;
        self.reported = Some(draft);
        self.reported_at = Some(now);
        let interval = self.policy.report_interval;
        let sixth = interval / 6;
        let pause = interval.saturating_sub(sixth) + self.jitter.part_of(sixth * 2);
        self.report_at = now.after(pause.max(Duration::from_millis(1)));
        self.store_numbering();
        self.actions.push_back(Action::Report(report));
    }

    /// What there is to say, without what differs in every report and what is no news.
    fn draft(&self) -> Report {
        let slots = self.slot_reports();
        let mut others = self.other_units(&slots);
        others.retain(is_worth_a_report);
        Report {
            host: self.name.clone(),
            incarnation: self.incarnation,
            sequence: 0,
            clock: Moment(0),
            accepted: self.desired.version(),
            author: self.desired.author,
            refused: self.refused,
            unsupported: self.unsupported.clone(),
            leaving: self.leaving,
            scanned: self.scanned,
            apps: self.apps.keys().map(|name| (name.clone(), self.app_report(name))).collect(),
            pools: self.pool_reports(),
            slots,
            omitted: 0,
            others,
            others_omitted: 0,
            probes: self.probes.clone(),
            rejected: BTreeMap::new(),
        }
    }

    /// Units that no slot of the report stands for, and claims without effect; the latter first.
    fn other_units(&self, slots: &[SlotReport]) -> Vec<OtherUnit> {
        let reported: BTreeSet<&SlotId> = slots.iter().map(|report| &report.slot).collect();
        let mut others: Vec<OtherUnit> = self
            .others
            .iter()
            .filter(|other| !other.claims.is_empty() || !reported.contains(&other.view.slot))
            .map(|other| OtherUnit {
                slot: other.view.slot.clone(),
                unit: other.view.unit.clone(),
                identity: other.view.root,
                bystander: other.view.bystander,
                claims: other.claims.clone(),
            })
            .collect();
        others.sort_by_cached_key(|other| (!is_worth_a_report(other), other.slot.clone()));
        others
    }

    fn app_report(&self, name: &AppName) -> AppReport {
        let Some(app) = self.apps.get(name) else { return AppReport::default() };
        let mut units = UnitCounts::default();
        let mut all_settled = true;
        for slot in self.slots.values() {
            if let Some(settled) = count(slot, name, app.revision, &mut units) {
                all_settled &= settled;
            }
        }
        let unseen = !self.scanned || !app.is_seen();
        let waiting = if self.unsupported.is_some() {
            Some("the desired state needs a newer agent".to_owned())
        } else if let Some(why) = &app.view.waiting {
            Some(why.clone())
        } else if unseen {
            Some("not looked yet".to_owned())
        } else if !app.view.stale_files.is_empty() {
            Some(app.refused.values().next().map_or_else(
                || "removing stale bytecode".to_owned(),
                |why| format!("stale bytecode could not be removed: {why}"),
            ))
        } else if app.view.files_right && !app.is_proven_right() {
            Some("looking again at bytecode".to_owned())
        } else {
            None
        };
        AppReport {
            revision: app.revision,
            converged: waiting.is_none() && all_settled && app.is_proven_right(),
            waiting,
            unseen,
            source: app.view.source.clone(),
            units,
            untracked: app.view.untracked,
            bystanders: app.view.bystanders,
            bystanders_not_fresh: app.view.bystanders_not_fresh,
            purged_files: app.purged_files,
        }
    }

    fn pool_reports(&self) -> BTreeMap<PoolName, PoolReport> {
        let mut pools: BTreeMap<PoolName, PoolReport> = BTreeMap::new();
        for slot in self.slots.values() {
            let is_bystander = slot.view.as_ref().is_some_and(|view| view.bystander);
            let (phase, _) = slot.phase(false);
            if is_bystander || phase == Phase::Gone || slot.is_blank() {
                continue;
            }
            for name in &slot.record.pools {
                let pool = pools.entry(name.clone()).or_default();
                pool.total = pool.total.saturating_add(1);
                pool.unavailable = pool.unavailable.saturating_add(u32::from(slot.is_unavailable()));
            }
        }
        pools
    }

    fn slot_reports(&self) -> Vec<SlotReport> {
        let mut reports: Vec<_> = self
            .slots
            .iter()
            .filter(|(_, slot)| !slot.is_blank())
            .map(|(id, slot)| {
                let (phase, because) = slot.phase(self.wants.contains_key(id));
                let view = slot.standing_view();
                SlotReport {
                    slot: id.clone(),
                    unit: view.map(|view| slot.record.last_unit.as_ref().unwrap_or(&view.unit).clone()),
                    last_unit: if view.is_none() { slot.record.last_unit.clone() } else { None },
                    identity: view.map(|view| view.root),
                    pools: slot.record.pools.clone(),
                    apps: view.map_or_else(|| vacant_apps(slot), seen_apps),
                    phase,
                    because,
                    done: slot.record.done.clone(),
                }
            })
            .collect();
        reports.sort_by_cached_key(|report| (importance(report), report.slot.clone()));
        reports
    }
}

/// Keeps what there is room for, the most important first, and returns how many were left out.
fn truncate<T: Serialize>(items: &mut Vec<T>, room: &mut usize) -> u32 {
    let kept = items
        .iter()
        .take_while(|item| {
            let size = serde_json::to_vec(item).map_or(usize::MAX, |json| json.len() + ITEM_OVERHEAD_BYTES);
            let fits = size <= *room;
            *room = room.saturating_sub(size);
            fits
        })
        .count();
    let omitted = u32::try_from(items.len() - kept).unwrap_or(u32::MAX);
    items.truncate(kept);
    omitted
}

/// Keeps of an answer to a dry run what there is room for, what is not fresh before files and fresh units.
pub(super) fn bounded(mut answer: ProbeReport) -> ProbeReport {
    let importance = |unit: &ProbeUnit| match (&unit.blocked, unit.verdict) {
        (Some(_), _) => 0,
        (None, Verdict::Stale) => 1,
        (None, Verdict::Unknown) => 2,
        (None, Verdict::Fresh | Verdict::Untracked) => 3,
    };
    answer.detail.sort_by_cached_key(|unit| (importance(unit), unit.slot.clone()));
    let mut room = PROBE_UNITS_MAX_BYTES;
    let units = truncate(&mut answer.detail, &mut room);
    let mut room = PROBE_FILES_MAX_BYTES;
    let files = truncate(&mut answer.files, &mut room);
    answer.omitted = answer.omitted.saturating_add(units).saturating_add(files);
    answer
}

/// Other plain Python processes come and go by themselves: they are named, but their coming and going is no news.
fn is_worth_a_report(other: &OtherUnit) -> bool {
    !other.claims.is_empty() || !other.unit.as_str().starts_with("python:")
}

fn seen_apps(view: &UnitView) -> BTreeMap<AppName, SlotJudgement> {
    let judged = |app: &UnitJudgement| SlotJudgement { verdict: app.verdict, cure: app.cure };
    view.apps.iter().map(|(name, app)| (name.clone(), judged(app))).collect()
}

/// A slot in which nothing is up still belongs to its apps; there is nothing to judge.
fn vacant_apps(slot: &Slot) -> BTreeMap<AppName, SlotJudgement> {
    let nothing = || SlotJudgement { verdict: Verdict::Untracked, cure: Cure::None };
    slot.record.apps.keys().map(|name| (name.clone(), nothing())).collect()
}

/// Lower comes first: what uses budget, then what is not fresh, then what has changed.
fn importance(report: &SlotReport) -> u8 {
    let worst = report.apps.values().map(|app| app.verdict).max();
    match (report.phase, worst) {
        (phase, _) if phase.is_acting() => 0,
        (Phase::Drained | Phase::Failed | Phase::Down, _) => 1,
        (_, Some(Verdict::Stale)) => 2,
        (_, Some(Verdict::Unknown)) => 3,
        (Phase::Gone, _) => 4,
        _ if report.done.is_some() => 5,
        _ => 6,
    }
}

/// Counts one slot for one app. Returns whether it is settled; `None` where it does not belong to the app.
fn count(slot: &Slot, name: &AppName, revision: Revision, units: &mut UnitCounts) -> Option<bool> {
    if !slot.record.apps.contains_key(name) {
        return None;
    }
    if slot.view.as_ref().is_some_and(|view| view.bystander) {
        return None;
    }
    let (phase, _) = slot.phase(false);
    match phase {
        Phase::Gone => units.gone += 1,
        Phase::Failed => units.failed += 1,
        Phase::Drained | Phase::Down => units.acting += 1,
        phase if phase.is_acting() => units.acting += 1,
        _ => {}
    }
    if phase == Phase::Failed || phase.is_acting() {
        return Some(false);
    }
    if phase == Phase::Up && slot.is_outdated() {
        units.acting += 1;
        return Some(false);
    }
    let Some(judged) = slot.standing_view().and_then(|view| view.apps.get(name)) else {
        return Some(true);
    };
    if judged.revision != revision {
        units.unknown += 1;
        return Some(false);
    }
    match (judged.verdict, judged.cure) {
        (Verdict::Fresh | Verdict::Untracked, _) => {
            units.fresh += 1;
            units.restarted += u32::from(was_restarted(slot, name, revision));
            return Some(judged.cure == Cure::None);
        }
        (Verdict::Unknown, _) => units.unknown += 1,
        (Verdict::Stale, Cure::WaitForSource) => units.waiting += 1,
        (Verdict::Stale, Cure::Deploy) => units.blocked += 1,
        (Verdict::Stale, _) if slot.refusal().is_some() => units.blocked += 1,
        (Verdict::Stale, _) => units.stale += 1,
    }
    Some(false)
}

fn was_restarted(slot: &Slot, name: &AppName, revision: Revision) -> bool {
    slot.record.done.as_ref().is_some_and(|done| {
        done.result == DoneResult::Restarted
            && matches!(&done.purpose, Purpose::Restart(apps) if apps.get(name) == Some(&revision))
    })
}
