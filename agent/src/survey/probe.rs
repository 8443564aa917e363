//! Dry runs: what would be done if a manifest were announced. Nothing of it is remembered.

use super::{Asked, Survey, Surveyor};
use crate::process::Unit;
use std::collections::BTreeMap;
use unstale_protocol::host::{AppView, UnitView};
use unstale_protocol::ids::{AppName, ProcessIdentity};
use unstale_protocol::message::{ProbeReport, ProbeUnit, UnitCounts};
use unstale_protocol::verdict::{Cure, Verdict};

const MAY_NOT_PURGE: &str = "its stale bytecode may not be removed by this agent: [agent] allow";

impl Surveyor {
    /// Judges the units by each dry run's manifest, as if it were announced beside what is.
    pub(super) async fn answer_probes(&mut self, units: &[Unit], asked: &Asked) -> BTreeMap<String, ProbeReport> {
        let mut answers = BTreeMap::new();
        for (id, known) in &asked.probes {
            let mut manifests = asked.manifests.clone();
            manifests.retain(|other| other.app != known.app);
            manifests.push(known.clone());
            let (claims, _) = self.claims(units, &manifests).await;
            let alone = Asked { manifests: vec![known.clone()], ..asked.clone() };
            let mut survey = Survey::default();
            let view = AppView { revision: known.revision, files_right: true, ..AppView::default() };
            survey.scan.apps.insert(known.app.clone(), view);
            for unit in units {
                self.judge_unit(unit, claims.get(&unit.slot), &alone, &mut survey);
            }
            self.find_blocks(units, &mut survey).await;
            answers.insert(id.clone(), self.answer(&known.app, &survey));
        }
        answers
    }

    fn answer(&self, app: &AppName, survey: &Survey) -> ProbeReport {
        let mut answer = ProbeReport::default();
        for view in &survey.scan.units {
            let Some(judged) = view.apps.get(app).filter(|_| !view.bystander) else { continue };
            let detail = ProbeUnit {
                slot: view.slot.clone(),
                unit: view.unit.clone(),
                verdict: judged.verdict,
                cure: judged.cure,
                because: judged.because.clone(),
                means: judged.cure.is_restart().then(|| self.means(&view.root)).flatten(),
                blocked: self.blocked(view, judged.verdict, judged.cure),
            };
            count(&mut answer.units, &detail);
            answer.detail.push(detail);
        }
        if let Some(view) = survey.scan.apps.get(app) {
            if self.rules().allow.purge {
                answer.files = view.stale_files.iter().cloned().collect();
            }
            answer.untracked = view.untracked;
            answer.bystanders = view.bystanders;
            answer.bystanders_not_fresh = view.bystanders_not_fresh;
        }
        answer
    }

    fn means(&self, root: &ProcessIdentity) -> Option<String> {
        self.blocks.get(root).and_then(|planned| planned.as_ref().ok()).cloned()
    }

    fn blocked(&self, view: &UnitView, verdict: Verdict, cure: Cure) -> Option<String> {
        let needs_purge = matches!(cure, Cure::Purge | Cure::PurgeThenRestart);
        if needs_purge && verdict == Verdict::Stale && !self.rules().allow.purge {
            return Some(MAY_NOT_PURGE.to_owned());
        }
        view.blocked.clone()
    }
}

fn count(units: &mut UnitCounts, unit: &ProbeUnit) {
    match (unit.verdict, unit.cure) {
        (Verdict::Fresh | Verdict::Untracked, _) => units.fresh += 1,
        (Verdict::Unknown, _) => units.unknown += 1,
        (Verdict::Stale, _) if unit.blocked.is_some() => units.blocked += 1,
        (Verdict::Stale, Cure::Deploy) => units.blocked += 1,
        (Verdict::Stale, Cure::WaitForSource) => units.waiting += 1,
        (Verdict::Stale, _) => units.stale += 1,
    }
}
