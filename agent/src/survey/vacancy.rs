//! Slots in which nothing is up: does their supervisor still know them?

use super::{Asked, Survey, Surveyor};
use crate::process::Unit;
use crate::supervisor::SlotState;
use std::collections::BTreeSet;
use unstale_protocol::host::Vacancy;
use unstale_protocol::ids::SlotId;

impl Surveyor {
    /// Says of every slot that must be accounted for, and in which nothing is up, why that is so.
    pub(super) async fn find_vacancies(&mut self, units: &[Unit], asked: &Asked, survey: &mut Survey) {
        let up: BTreeSet<&SlotId> = units.iter().map(|unit| &unit.slot).collect();
        for (slot, plan) in &asked.slots {
            if up.contains(slot) {
                continue;
            }
            let state = match (plan, self.supervisors.get(slot)) {
                (Some(plan), _) => self.hands.state(plan).await,
                (None, Some(supervisor)) => self.hands.state_of(supervisor).await,
                (None, None) => SlotState::Gone,
            };
            survey.scan.vacant.insert(slot.clone(), vacancy(state));
        }
        self.supervisors.retain(|slot, _| up.contains(slot) || asked.slots.contains_key(slot));
    }
}

fn vacancy(state: SlotState) -> Vacancy {
    match state {
        SlotState::Gone => Vacancy::Gone,
        SlotState::GaveUp { why } => Vacancy::GaveUp(why),
        SlotState::Crashing { why } => Vacancy::GaveUp(format!("it starts and dies again and again: {why}")),
        SlotState::Up { .. }
        | SlotState::Starting
        | SlotState::Stopping
        | SlotState::Stopped
        | SlotState::Unreachable { .. } => Vacancy::Down,
    }
}
