//! Units that no rollout judges: those of no announced app, and those whose claim to one has no effect.

use super::{Survey, Surveyor};
use crate::process::{Kind, Unit};
use std::collections::{BTreeMap, BTreeSet};
use unstale_protocol::host::{OtherView, UnitView};
use unstale_protocol::ids::SlotId;

/// Most of them that are handed on; claims come first, plain Python processes last.
const OTHERS_MAX: usize = 500;

/// Stands where an app's name stands in the pool of a unit that has none; no app can have this name.
const NO_APP: &str = "-";

impl Surveyor {
    pub(super) fn others(&self, units: &[Unit], survey: &Survey) -> Vec<OtherView> {
        let judged: BTreeSet<&SlotId> = survey.scan.units.iter().map(|view| &view.slot).collect();
        let mut others: Vec<(u8, OtherView)> = Vec::new();
        for unit in units {
            let claims = survey.unbound.get(&unit.slot).cloned().unwrap_or_default();
            let is_judged = judged.contains(&unit.slot);
            let Some(root) = unit.root().filter(|_| !is_judged || !claims.is_empty()) else { continue };
            let importance = match (claims.is_empty(), unit.kind) {
                (false, _) => 0,
                (true, Kind::Python) => 2,
                (true, _) => 1,
            };
            let view = UnitView {
                slot: unit.slot.clone(),
                unit: unit.id.clone(),
                root: root.identity,
                pools: self.pools_of(unit, [NO_APP].into_iter()),
                bystander: unit.is_bystander(),
                apps: BTreeMap::new(),
                blocked: None,
            };
            others.push((importance, OtherView { view, claims }));
        }
        others.sort_by_key(|(importance, _)| *importance);
        others.into_iter().take(OTHERS_MAX).map(|(_, other)| other).collect()
    }
}
