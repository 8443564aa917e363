//! What has happened meanwhile: answers that come late, hands that were quicker, tries that failed.

use super::*;

#[test]
fn a_preflight_that_was_called_back_does_not_answer_for_the_next() {
    let mut host = host();
    let app = AppName::new("shop").unwrap();
    let wanted = |generation: u64, revision: u64, mode: Mode| {
        let mut desired = announced(generation);
        let of_app = desired.apps.get_mut(&app).unwrap();
        (of_app.revision, of_app.mode) = (Revision(revision), mode);
        desired
    };
    let mut view = other("celery", 7, &[]).view;
    let slot = view.slot.clone();
    let mut begin = |host: &mut Host, revision: u64, at: u64| {
        let (verdict, cure) = (Verdict::Stale, Cure::Restart);
        let judged = UnitJudgement { revision: Revision(revision), verdict, cure, because: String::new() };
        view.apps.insert(app.clone(), judged);
        let apps = BTreeMap::from([(app.clone(), AppView { revision: Revision(revision), ..AppView::default() })]);
        let scan = Scan { begun_at: Moment(at), full: true, units: vec![view.clone()], apps, ..Scan::default() };
        host.handle_scan(&scan, Moment(at + 10));
        let ask = said(host).1.unwrap();
        host.handle_permit(&permit_for(ask), Moment(at + 20));
        host.intent(&slot).unwrap().clone()
    };
    host.handle_desired(&wanted(1, 1, Mode::Run), Moment(0));
    let first = begin(&mut host, 1, 1);
    host.handle_desired(&wanted(2, 1, Mode::Abort), Moment(100));
    assert_eq!(host.intent(&first.slot), None);
    host.handle_desired(&wanted(3, 2, Mode::Run), Moment(200));
    let second = begin(&mut host, 2, 1_000);
    assert_eq!(steps(&mut host), [Step::Preflight]);
    for answer in [Err("its command took too long".to_owned()), Ok(cleared())] {
        host.handle_preflight(&first, answer, Moment(2_000));
        assert_eq!((steps(&mut host), host.intent(&first.slot)), (vec![], Some(&second)));
    }
    host.handle_preflight(&second, Ok(cleared()), Moment(3_000));
    assert_eq!(steps(&mut host), [Step::Stop]);
}

/// What is up again in a drained slot.
fn up_again(slot: &SlotId, at: u64) -> Scan {
    let mut view = other("celery", 8, &[]).view;
    view.slot = slot.clone();
    Scan { begun_at: Moment(at), others: vec![OtherView { view, claims: Vec::new() }], ..Scan::default() }
}

#[test]
fn a_slot_that_somebody_else_gave_back_is_written_down_as_one_that_is_not_drained() {
    let (mut host, slot) = drained();
    host.handle_desired(&desired(2), Moment(9_000));
    host.handle_started(&slot, Err("start request repeated too quickly".into()), Moment(9_200));
    host.handle_scan(&up_again(&slot, 9_300), Moment(9_400));
    let mut records = Vec::new();
    while let Some(action) = host.poll_action() {
        if let Action::Store(stored) = action {
            records.extend(stored);
        }
    }
    // The next life knows nothing else. It must not take the slot for a drained one once its unit is down again.
    let incarnation = Incarnation { counter: 2, random: Salt([2; 16]) };
    let name = HostName::new("web-1").unwrap();
    let mut next = Host::new(name, incarnation, HostPolicy::default(), records, 7, Moment(0));
    let vacant = BTreeMap::from([(slot, Vacancy::Down)]);
    next.handle_scan(&Scan { begun_at: Moment(1), vacant, ..Scan::default() }, Moment(10));
    assert_eq!(steps(&mut next), []);
}

#[test]
fn a_slot_that_could_not_be_given_back_says_why_until_it_is() {
    let (mut host, slot) = drained();
    let says = |host: &mut Host, at: u64| {
        host.handle_timeout(Moment(at));
        let report = said(host).0.unwrap();
        (report.slots[0].phase, report.slots[0].because.clone())
    };
    host.handle_desired(&desired(2), Moment(9_000));
    host.handle_started(&slot, Err("no such file".into()), Moment(9_200));
    let why = "it could not be started again: no such file";
    let tried = format!("drained by drain-1; giving it back failed and is tried again: {why}");
    assert_eq!(says(&mut host, 12_000), (Phase::Drained, tried));
    assert_eq!(says(&mut host, 42_000), (Phase::Starting, format!("giving it back failed before: {why}")));
    host.handle_started(&slot, Ok(()), Moment(42_100));
    host.handle_scan(&up_again(&slot, 43_000), Moment(43_100));
    host.handle_timeout(Moment(54_000));
    host.handle_verified(&slot, Verified::Stale("memory differs".into()), Moment(54_100));
    let (phase, because) = says(&mut host, 57_000);
    assert_eq!((phase, because.contains(why)), (Phase::Up, false), "{because}");
}
