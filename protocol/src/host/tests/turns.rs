//! Actions whose ground changes under them.

use super::*;

/// A host whose supervisor did not take the order to keep down what a drain has ended, as far as it was looked at since.
fn unheld() -> (Host, SlotId) {
    let (mut host, slot) = ended_by_a_drain();
    host.handle_held(&slot, Err("it does not stay down".into()), Moment(5_000));
    let vacant = BTreeMap::from([(slot.clone(), Vacancy::Down)]);
    host.handle_scan(&Scan { begun_at: Moment(5_100), vacant, ..Scan::default() }, Moment(5_200));
    host.handle_timeout(Moment(9_000));
    let [slot_report] = &said(&mut host).0.unwrap().slots[..] else { panic!("more slots than one") };
    assert_eq!((slot_report.phase, slot_report.identity), (Phase::Failed, None));
    (host, slot)
}

#[test]
fn what_a_drain_ended_and_could_not_keep_down_is_given_back_by_its_undrain() {
    let (mut host, slot) = unheld();
    host.handle_desired(&desired(2), Moment(9_100));
    assert_eq!(steps(&mut host), [Step::Start]);
    let undrain = host.intent(&slot).unwrap();
    assert_eq!((&undrain.task, undrain.means.as_str()), (&Task::Undrain, "means"));
    // It is back: nothing is left of the failure.
    let mut view = other("celery", 8, &[]).view;
    view.slot = slot.clone();
    let others = vec![OtherView { view, claims: Vec::new() }];
    host.handle_scan(&Scan { begun_at: Moment(9_200), others, ..Scan::default() }, Moment(9_300));
    host.handle_timeout(Moment(19_300));
    assert_eq!(steps(&mut host), [Step::Verify]);
    host.handle_verified(&slot, Verified::Fresh, Moment(19_400));
    host.handle_timeout(Moment(30_000));
    assert!(said(&mut host).0.unwrap().slots.iter().all(|slot| slot.phase != Phase::Failed));
}

#[test]
fn a_drain_that_is_asked_for_again_keeps_down_what_the_first_one_has_ended() {
    let (mut host, slot) = unheld();
    let mut again = drain_of(&other("celery", 7, &[]));
    again.id = DrainId::new("drain-2").unwrap();
    host.handle_desired(&Desired { drains: vec![again.clone()], ..desired(2) }, Moment(9_100));
    assert_eq!(steps(&mut host), [Step::HoldDown]);
    host.handle_held(&slot, Ok(()), Moment(9_200));
    host.handle_timeout(Moment(20_000));
    let report = said(&mut host).0.unwrap();
    assert_eq!(report.slots[0].phase, Phase::Drained);
    assert_eq!(report.slots[0].done.as_ref().unwrap().purpose, Purpose::Drain(again.id));
}

#[test]
fn a_new_life_in_a_slot_that_was_to_be_held_down_is_asked_for_like_any_other() {
    let (mut host, slot) = ended_by_a_drain();
    steps(&mut host);
    host.handle_new_life(&slot, "process 8 is up".into(), Moment(5_000));
    let mut view = other("celery", 8, &[]).view;
    view.slot = slot.clone();
    let others = vec![OtherView { view: view.clone(), claims: Vec::new() }];
    host.handle_scan(&Scan { begun_at: Moment(5_100), others, ..Scan::default() }, Moment(5_200));
    host.handle_timeout(Moment(9_000));
    let (report, ask) = said(&mut host);
    assert_eq!(report.unwrap().slots[0].phase, Phase::Asking);
    let want = &ask.unwrap().wants[0];
    assert_eq!((want.identity, &want.purpose), (view.root, &Purpose::Drain(DrainId::new("drain-1").unwrap())));
}

/// A host whose one unit is about to be restarted for the first revision, or to be drained: nothing is touched yet.
fn in_preflight(is_drain: bool) -> (Host, SlotId) {
    let mut host = host();
    let app = AppName::new("shop").unwrap();
    let mut unit = other("celery", 7, &[]);
    let drains = is_drain.then(|| drain_of(&unit)).into_iter().collect();
    let (verdict, cure) = if is_drain { (Verdict::Fresh, Cure::None) } else { (Verdict::Stale, Cure::Restart) };
    let judged = UnitJudgement { revision: Revision(1), verdict, cure, because: String::new() };
    unit.view.apps.insert(app.clone(), judged);
    let slot = unit.view.slot.clone();
    host.handle_desired(&Desired { drains, ..announced(1) }, Moment(0));
    let apps = BTreeMap::from([(app, AppView { revision: Revision(1), ..AppView::default() })]);
    let scan = Scan { begun_at: Moment(1), full: true, units: vec![unit.view], apps, ..Scan::default() };
    host.handle_scan(&scan, Moment(10));
    let ask = said(&mut host).1.unwrap();
    host.handle_permit(&permit_for(ask), Moment(20));
    assert_eq!(steps(&mut host), [Step::Preflight]);
    (host, slot)
}

#[test]
fn what_is_wanted_no_more_is_called_back_while_nothing_is_touched() {
    let mut superseded = announced(2);
    let mut recalled = announced(2);
    for app in superseded.apps.values_mut() {
        app.revision = Revision(2);
    }
    for app in recalled.apps.values_mut() {
        app.manifest = crate::fingerprint::Fingerprint::of_bytes(b"y");
    }
    let withdrawn = (true, announced(2));
    for (is_drain, wanted) in [(false, superseded), (false, recalled), (false, desired(2)), withdrawn] {
        let (mut host, slot) = in_preflight(is_drain);
        let asked = host.intent(&slot).unwrap().clone();
        host.handle_desired(&wanted, Moment(1_000));
        assert_eq!(host.intent(&slot), None);
        // What the hands say in the end changes nothing.
        host.handle_preflight(&asked, Ok(Cleared { means: "means".into(), ends_root: true }), Moment(30_000));
        assert_eq!(steps(&mut host), []);
    }
}

#[test]
fn what_is_still_wanted_is_not_called_back() {
    for is_drain in [false, true] {
        let (mut host, slot) = in_preflight(is_drain);
        let drains = host.desired().drains.clone();
        // Announced again, and another app beside it.
        let mut wanted = Desired { drains, ..announced(2) };
        wanted.apps.insert(AppName::new("desk").unwrap(), wanted.apps.values().next().unwrap().clone());
        host.handle_desired(&wanted, Moment(1_000));
        let asked = host.intent(&slot).unwrap().clone();
        host.handle_preflight(&asked, Ok(Cleared { means: "means".into(), ends_root: true }), Moment(2_000));
        assert_eq!(steps(&mut host), [Step::Stop]);
    }
}
