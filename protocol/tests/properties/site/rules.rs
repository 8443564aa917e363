//! What the rules allow an agent to do, to ask for and to say.

use super::{Law, Site, name};
use std::collections::BTreeMap;
use unstale_protocol::host::{UnitView, Vacancy};
use unstale_protocol::ids::{AppName, DrainId, Generation, PoolName, Revision, SlotId};
use unstale_protocol::message::{Ask, Mode, Nonce, Phase, Purpose, Report, Want};
use unstale_protocol::restart::{Action as Step, IntentPhase};
use unstale_protocol::verdict::{Cure, Verdict};

impl Site {
    pub(super) fn check_step(&mut self, slot: &SlotId, step: &Step) {
        let phase = match step {
            Step::Stop => IntentPhase::Stopping,
            Step::Start => IntentPhase::Starting,
            Step::HoldDown => IntentPhase::HoldingDown,
            _ => return,
        };
        let intent = self.host.intent(slot).cloned();
        let written = self.book.intents.get(slot);
        if written
            .is_none_or(|written| written.phase != phase || intent.as_ref().is_some_and(|i| i.nonce != written.nonce))
        {
            self.broke(
                Law::DiskFirst,
                format!("{step:?} of {slot} while the disk says {:?}", self.book.intents.get(slot)),
            );
        }
        let drained = self.book.records.get(slot).and_then(|record| record.drained.clone());
        if *step == Step::Start
            && drained.is_some_and(|id| self.host.desired().drains.iter().any(|drain| drain.id == id))
        {
            self.broke(Law::Drained, format!("{slot} is started although it is to stay down"));
        }
        let (Step::Stop, Some(intent)) = (step, intent) else { return };
        if !self.book.stopped.insert((slot.clone(), intent.identity)) {
            self.broke(Law::StopOnce, format!("{slot} is stopped again: {intent:?}"));
        }
        self.book.stopped_for.insert((slot.clone(), intent.nonce));
        if let Purpose::Restart(apps) = &intent.purpose
            && apps.keys().all(|name| self.host.desired().apps.get(name).is_some_and(|app| app.mode == Mode::Abort))
        {
            self.broke(Law::Abort, format!("{slot} is stopped for what was aborted"));
        }
        let is_wanted = match &intent.purpose {
            Purpose::Restart(apps) => !self.is_superseded(apps),
            Purpose::Drain(id) => self.is_desired(id),
        };
        if !is_wanted {
            self.broke(Law::Abort, format!("{slot} is stopped for what is wanted no more"));
        }
    }

    /// One of these is wanted in another revision now, or not at all.
    pub(super) fn is_superseded(&self, apps: &BTreeMap<AppName, Revision>) -> bool {
        let desired = &self.host.desired().apps;
        apps.iter().any(|(name, revision)| desired.get(name).is_none_or(|app| app.revision != *revision))
    }

    pub(super) fn check_ask(&mut self, ask: Ask) {
        let nonce = Nonce { incarnation: self.incarnation, at: self.moment() };
        if ask.host != name() || ask.nonce != nonce || ask.version != self.book.accepted || ask.wants.is_empty() {
            self.broke(Law::Ask, format!("{ask:?}"));
        }
        for want in &ask.wants {
            if !self.may_want(want) || self.host.intent(&want.slot).is_some() {
                self.broke(Law::Ask, format!("{want:?}"));
            }
            let Purpose::Restart(apps) = &want.purpose else { continue };
            let again = apps.iter().find(|(name, revision)| {
                let attempt = self.host.desired().apps.get(*name).map_or(Generation(0), |app| app.attempt);
                self.book.failed.get(&(want.slot.clone(), (*name).clone())) == Some(&(**revision, attempt))
            });
            if again.is_some() {
                self.broke(Law::Retry, format!("{want:?} has failed in this attempt"));
            }
        }
        self.asks.push(ask);
    }

    pub(super) fn seen(&self, slot: &SlotId) -> Option<&UnitView> {
        self.book.scan.as_ref()?.units.iter().find(|unit| unit.slot == *slot)
    }

    fn may_want(&self, want: &Want) -> bool {
        let desired = self.host.desired();
        let Some(unit) = self.seen(&want.slot).filter(|unit| unit.root == want.identity) else { return false };
        match &want.purpose {
            Purpose::Drain(id) => desired.drains.iter().any(|drain| drain.id == *id && drain.slot == want.slot),
            Purpose::Restart(apps) => apps.iter().all(|(name, revision)| {
                let runs = desired.apps.get(name).is_some_and(|app| app.revision == *revision && app.mode == Mode::Run);
                let judged = unit.apps.get(name);
                runs && judged.is_some_and(|judged| {
                    (judged.revision, judged.verdict, judged.cure) == (*revision, Verdict::Stale, Cure::Restart)
                })
            }),
        }
    }

    pub(super) fn check_report(&mut self, report: &Report) {
        self.book.sequence += 1;
        let order = (report.incarnation, report.sequence, report.clock, report.accepted);
        if order != (self.incarnation, self.book.sequence, self.moment(), self.book.accepted) {
            self.broke(Law::Sequence, format!("{order:?}"));
        }
        let owed = self.book.owes_refusal.take();
        if report.refused != owed {
            self.broke(Law::Order, format!("{owed:?} was refused, and {:?} is said to be", report.refused));
        }
        for (name, app) in report.apps.iter().filter(|(_, app)| app.converged) {
            if let Err(why) = self.is_proven(name, app.revision) {
                self.broke(Law::Proven, format!("{name} is said to be proven although {why}"));
            }
        }
        self.check_slots(report);
    }

    fn is_proven(&self, name: &AppName, revision: Revision) -> Result<(), String> {
        let demand = |holds: bool, why: &str| if holds { Ok(()) } else { Err(why.to_owned()) };
        demand(
            self.host.desired().apps.get(name).is_some_and(|app| app.revision == revision),
            "it is another revision",
        )?;
        let right = self.book.right.get(name);
        demand(right.is_some_and(|(_, _, twice)| *twice), "its files were not looked at again")?;
        let scan = self.book.scan.as_ref().ok_or("nothing was looked at")?;
        for unit in scan.units.iter().filter(|unit| unit.apps.contains_key(name)) {
            let judged = &unit.apps[name];
            let is_fresh = (judged.revision, judged.verdict, judged.cure) == (revision, Verdict::Fresh, Cure::None);
            demand(is_fresh, "a unit is not fresh")?;
            demand(self.host.intent(&unit.slot).is_none(), "a unit is under action")?;
        }
        Ok(())
    }

    /// A drain that still holds emptied the slot.
    fn is_drained(&self, slot: &SlotId) -> bool {
        self.book.drained.get(slot).is_some_and(|id| self.is_desired(id))
    }

    fn is_desired(&self, id: &DrainId) -> bool {
        self.host.desired().drains.iter().any(|drain| drain.id == *id)
    }

    /// A drain that still holds ended its unit, well or not.
    fn is_ended_by_a_drain(&self, slot: &SlotId) -> bool {
        let drained = self.book.records.get(slot).and_then(|record| record.drained.as_ref());
        drained.is_some_and(|id| self.is_desired(id))
    }

    fn check_slots(&mut self, report: &Report) {
        let mut pools: BTreeMap<PoolName, (u32, u32)> = BTreeMap::new();
        for said in &report.slots {
            let is_vacant = said.identity.is_none();
            let is_acting = self.host.intent(&said.slot).is_some();
            let scan = self.book.scan.as_ref();
            let is_unlisted = scan.is_some_and(|scan| scan.vacant.get(&said.slot) == Some(&Vacancy::Gone));
            let by_us = self.book.down.contains(&said.slot) || self.is_ended_by_a_drain(&said.slot);
            let is_away = is_acting || said.phase == Phase::Drained || (is_vacant && (by_us || !is_unlisted));
            for pool in said.pools.iter().filter(|_| said.phase != Phase::Gone) {
                let (total, away) = pools.entry(pool.clone()).or_default();
                (*total, *away) = (*total + 1, *away + u32::from(is_away));
            }
            if said.phase == Phase::Gone && (!is_unlisted || by_us) {
                self.broke(Law::Gone, format!("{said:?} of {:?}", self.book.records.get(&said.slot)));
            }
        }
        let said = report.pools.iter().map(|(name, pool)| (name.clone(), (pool.total, pool.unavailable)));
        if said.collect::<BTreeMap<_, _>>() != pools {
            self.broke(Law::Pools, format!("{:?} instead of {pools:?}", report.pools));
        }
        for drain in self.host.desired().drains.clone() {
            // Somebody gave it back: it is drained again.
            let is_seen = self.seen(&drain.slot).is_some() || self.host.intent(&drain.slot).is_some();
            let said = report.slots.iter().find(|said| said.slot == drain.slot);
            if self.is_drained(&drain.slot) && !is_seen && said.is_none_or(|said| said.phase != Phase::Drained) {
                self.broke(Law::Drained, format!("{drain:?} is said to be {said:?}"));
            }
        }
    }
}
