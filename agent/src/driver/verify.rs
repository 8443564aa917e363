//! What the processes of a unit that is back hold, and whether that proves anything.

use super::Input;
use crate::process::Unit;
use crate::survey::{Asked, Survey, Surveyor};
use std::collections::BTreeSet;
use tokio::sync::Mutex;
use unstale_protocol::host::UnitView;
use unstale_protocol::ids::{AppName, SlotId};
use unstale_protocol::restart::Verified;
use unstale_protocol::verdict::{Cure, Verdict};

/// Reads all processes of the slot again. `apps` are those that the unit was restarted for.
pub(super) async fn verify(surveyor: &Mutex<Surveyor>, slot: SlotId, apps: &BTreeSet<AppName>, asked: &Asked) -> Input {
    let mut surveyor = surveyor.lock().await;
    let survey = match surveyor.survey(asked).await {
        Ok(survey) => survey,
        Err(error) => return Input::Verified(slot, Verified::Unknown(error.to_string()), None),
    };
    let verified = verdict(&slot, apps, asked, &survey, |unit| surveyor.unread(unit));
    Input::Verified(slot, verified, Some((asked.begun_at, survey)))
}

/// Sums up what was seen of the slot. `unread` says why it is not known what a unit holds.
fn verdict(
    slot: &SlotId,
    apps: &BTreeSet<AppName>,
    asked: &Asked,
    survey: &Survey,
    unread: impl Fn(&Unit) -> Option<String>,
) -> Verified {
    let Some(unit) = survey.units.iter().find(|unit| unit.slot == *slot) else {
        return Verified::Unknown("nothing is up".into());
    };
    let view = survey.scan.units.iter().find(|view| view.slot == *slot);
    let worst = view.and_then(|view| view.apps.values().max_by_key(|judged| judged.verdict));
    match worst.map(|judged| (judged.verdict, judged.cure, judged.because.clone())) {
        Some((Verdict::Unknown, _, why)) => Verified::Unknown(why),
        Some((Verdict::Stale, Cure::WaitForSource, why)) => Verified::SourceMovedOn(why),
        Some((Verdict::Stale, _, why)) => Verified::Stale(why),
        None | Some((Verdict::Fresh | Verdict::Untracked, ..)) => {
            unjudged(unit, view, apps, asked, survey, unread).map_or(Verified::Fresh, Verified::Unknown)
        }
    }
}

/// Says why a unit without a bad verdict is not proven fresh all the same: an app that it was restarted for has none.
fn unjudged(
    unit: &Unit,
    view: Option<&UnitView>,
    apps: &BTreeSet<AppName>,
    asked: &Asked,
    survey: &Survey,
    unread: impl Fn(&Unit) -> Option<String>,
) -> Option<String> {
    let missing: Vec<&AppName> =
        apps.iter().filter(|app| view.is_none_or(|view| !view.apps.contains_key(*app))).collect();
    for app in &missing {
        if let Some(revision) = asked.awaited.get(*app) {
            return Some(format!("the manifest of {app}@{revision} is not here yet"));
        }
    }
    // An app that is announced no more has nothing to be judged by.
    let is_announced = |app: &&AppName| asked.manifests.iter().any(|known| known.app == **app);
    let is_missing = missing.into_iter().any(|app| is_announced(&app));
    if is_missing && let Some(why) = survey.unbound.get(&unit.slot).and_then(|claims| claims.first()) {
        return Some(why.clone());
    }
    // Where all was read, what no app claims holds nothing of one; what could not be read claims nothing either.
    if is_missing || view.is_none() { unread(unit) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eyes::KnownManifest;
    use crate::process::{Kind, Supervisor};
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use unstale_protocol::host::{Scan, UnitJudgement};
    use unstale_protocol::ids::{Pid, ProcessIdentity, Revision, UnitId};
    use unstale_protocol::manifest::Manifest;
    use unstale_protocol::time::Moment;

    fn slot() -> SlotId {
        SlotId::new("celery/systemd/x.service").unwrap()
    }

    fn app(name: &str) -> AppName {
        AppName::new(name).unwrap()
    }

    fn asked(known: &[&str], awaited: &[&str]) -> Asked {
        let known = known.iter().map(|name| KnownManifest {
            app: app(name),
            revision: Revision(6),
            manifest: Arc::new(Manifest::default()),
        });
        Asked {
            begun_at: Moment(0),
            full: true,
            manifests: known.collect(),
            awaited: awaited.iter().map(|name| (app(name), Revision(6))).collect(),
            slots: BTreeMap::new(),
            probes: BTreeMap::new(),
        }
    }

    /// A unit that is up, with a fresh verdict for each of `fresh`.
    fn survey(fresh: &[&str]) -> Survey {
        let unit = Unit {
            id: UnitId::new("celery:7").unwrap(),
            slot: slot(),
            service: "x".to_owned(),
            kind: Kind::Celery,
            supervisor: Supervisor::None,
            processes: Vec::new(),
        };
        let judged = |name: &&str| {
            let (verdict, cure) = (Verdict::Fresh, Cure::None);
            (app(name), UnitJudgement { revision: Revision(6), verdict, cure, because: String::new() })
        };
        let view = UnitView {
            slot: slot(),
            unit: unit.id.clone(),
            root: ProcessIdentity { pid: Pid(7), start_ticks: 1, pid_namespace: 0 },
            pools: BTreeSet::new(),
            bystander: false,
            apps: fresh.iter().map(judged).collect(),
            blocked: None,
        };
        // A unit that no app claims is not among the judged ones.
        let units = if fresh.is_empty() { Vec::new() } else { vec![view] };
        Survey { scan: Scan { units, ..Scan::default() }, units: vec![unit], ..Survey::default() }
    }

    fn verdict_for_shop(asked: &Asked, survey: &Survey, unread: Option<&str>) -> Verified {
        verdict(&slot(), &BTreeSet::from([app("shop")]), asked, survey, |_| unread.map(str::to_owned))
    }

    #[test]
    fn a_unit_whose_manifest_is_not_here_is_not_called_fresh() {
        for (known, fresh) in [(&[][..], &[][..]), (&["desk"][..], &["desk"][..])] {
            let verified = verdict_for_shop(&asked(known, &["shop"]), &survey(fresh), None);
            assert_eq!(verified, Verified::Unknown("the manifest of shop@6 is not here yet".to_owned()));
        }
    }

    #[test]
    fn a_fresh_verdict_for_another_app_hides_neither_what_was_not_read_nor_a_claim_without_effect() {
        let asked = asked(&["desk", "shop"], &[]);
        let mut survey = survey(&["desk"]);
        assert_eq!(verdict_for_shop(&asked, &survey, None), Verified::Fresh);
        assert_eq!(verdict_for_shop(&asked, &survey, Some("denied")), Verified::Unknown("denied".to_owned()));
        survey.unbound.insert(slot(), vec!["claims shop".to_owned()]);
        assert_eq!(verdict_for_shop(&asked, &survey, None), Verified::Unknown("claims shop".to_owned()));
    }

    #[test]
    fn what_holds_nothing_of_the_app_or_of_an_app_that_is_announced_no_more_is_fresh_once_it_was_read() {
        for known in [&["shop"][..], &[][..]] {
            assert_eq!(verdict_for_shop(&asked(known, &[]), &survey(&[]), None), Verified::Fresh);
            let unread = verdict_for_shop(&asked(known, &[]), &survey(&[]), Some("denied"));
            assert_eq!(unread, Verified::Unknown("denied".to_owned()));
        }
        let of_both = survey(&["desk", "shop"]);
        assert_eq!(verdict_for_shop(&asked(&["desk", "shop"], &[]), &of_both, None), Verified::Fresh);
    }
}
