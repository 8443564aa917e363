//! What the host says of units that no rollout judges, and of dry runs.

mod meanwhile;
mod moments;
mod turns;

use super::*;
use crate::fingerprint::Salt;
use crate::ids::{Epoch, Generation, Pid, PoolName, ProcessIdentity, Revision, UnitId};
use crate::message::{DesiredApp, Phase, Probe};
use crate::verdict::{Cure, Verdict};

fn host() -> Host {
    let incarnation = Incarnation { counter: 1, random: Salt([1; 16]) };
    let name = HostName::new("web-1").unwrap();
    Host::new(name, incarnation, HostPolicy::default(), Vec::new(), 7, Moment(0))
}

fn other(kind: &str, pid: u32, claims: &[&str]) -> OtherView {
    let identity = ProcessIdentity { pid: Pid(pid), start_ticks: 1, pid_namespace: 0 };
    let view = UnitView {
        slot: SlotId::new(format!("{kind}/none/{pid}")).unwrap(),
        unit: UnitId::new(format!("{kind}:{pid}")).unwrap(),
        root: identity,
        pools: BTreeSet::new(),
        bystander: false,
        apps: BTreeMap::new(),
        blocked: None,
    };
    OtherView { view, claims: claims.iter().map(|&claim| claim.to_owned()).collect() }
}

fn desired(generation: u64) -> Desired {
    Desired { epoch: Epoch(1), generation: Generation(generation), ..Desired::default() }
}

/// The first revision of one app, announced (again) with this generation.
fn announced(generation: u64) -> Desired {
    let app = DesiredApp {
        revision: Revision(1),
        mode: Mode::Run,
        manifest: crate::fingerprint::Fingerprint::of_bytes(b"x"),
        attempt: Generation(generation),
        fingerprint: None,
        terms: None,
    };
    Desired { apps: BTreeMap::from([(AppName::new("shop").unwrap(), app)]), ..desired(generation) }
}

fn drain_of(view: &OtherView) -> DesiredDrain {
    DesiredDrain {
        id: DrainId::new("drain-1").unwrap(),
        host: HostName::new("web-1").unwrap(),
        slot: view.view.slot.clone(),
        deadline_ms: None,
        force: false,
    }
}

/// Takes all actions; returns the newest report and the newest request.
fn said(host: &mut Host) -> (Option<Report>, Option<Ask>) {
    let (mut report, mut ask) = (None, None);
    while let Some(action) = host.poll_action() {
        match action {
            Action::Report(newest) => report = Some(newest),
            Action::Ask(newest) => ask = Some(newest),
            _ => {}
        }
    }
    (report, ask)
}

#[test]
fn units_of_no_app_are_named_and_only_those_to_be_drained_become_slots() {
    let mut host = host();
    let (first, second) = (other("celery", 7, &[]), other("gunicorn", 8, &[]));
    let scan = |begun: u64| Scan {
        begun_at: Moment(begun),
        full: true,
        others: vec![first.clone(), second.clone()],
        ..Scan::default()
    };
    host.handle_scan(&scan(0), Moment(0));
    let (report, ask) = said(&mut host);
    let report = report.unwrap();
    assert!(report.slots.is_empty() && ask.is_none());
    assert_eq!(report.others.iter().map(|unit| unit.identity.pid.0).collect::<Vec<_>>(), [7, 8]);

    host.handle_desired(&Desired { drains: vec![drain_of(&first)], ..desired(1) }, Moment(10));
    host.handle_scan(&scan(10), Moment(20));
    let (_, ask) = said(&mut host);
    assert_eq!(ask.unwrap().wants.iter().map(|want| &want.slot).collect::<Vec<_>>(), [&first.view.slot]);
    host.handle_timeout(Moment(3_000));
    let report = said(&mut host).0.unwrap();
    assert_eq!(report.slots.iter().map(|slot| slot.phase).collect::<Vec<_>>(), [Phase::Asking]);
    assert_eq!(report.others.iter().map(|unit| unit.identity.pid.0).collect::<Vec<_>>(), [8]);

    host.handle_desired(&desired(2), Moment(4_000));
    host.handle_scan(&scan(4_000), Moment(4_010));
    host.handle_timeout(Moment(9_000));
    let report = said(&mut host).0.unwrap();
    assert!(report.slots.is_empty() && report.others.len() == 2, "{report:?}");
}

#[test]
fn plain_processes_that_come_and_go_are_no_news_but_claims_are() {
    let mut host = host();
    let reports = |host: &mut Host, others: Vec<OtherView>, at: u64| {
        host.handle_scan(&Scan { begun_at: Moment(at), others, ..Scan::default() }, Moment(at));
        host.handle_timeout(Moment(at + 2_500));
        said(host).0
    };
    reports(&mut host, Vec::new(), 0);
    assert_eq!(reports(&mut host, vec![other("python", 7, &[])], 5_000), None);
    assert!(reports(&mut host, vec![other("python", 7, &["claims shop"])], 10_000).is_some());
}

#[test]
fn an_answer_to_a_dry_run_is_reported_at_once_and_only_while_it_is_desired() {
    let mut host = host();
    let probe = Probe {
        id: "probe-1-1".into(),
        app: AppName::new("shop").unwrap(),
        manifest: crate::fingerprint::Fingerprint::of_bytes(b"x"),
    };
    host.handle_desired(&Desired { probes: vec![probe], ..desired(1) }, Moment(0));
    said(&mut host);
    let answers = |id: &str| BTreeMap::from([(id.to_owned(), ProbeReport::default())]);
    let mut scan = Scan { begun_at: Moment(10), full: true, probes: answers("probe-1-1"), ..Scan::default() };
    host.handle_scan(&scan, Moment(20));
    assert_eq!(said(&mut host).0.unwrap().probes, scan.probes);
    scan.probes = answers("probe-9-9");
    host.handle_desired(&desired(2), Moment(30));
    host.handle_scan(&scan, Moment(40));
    host.handle_timeout(Moment(70_000));
    assert!(said(&mut host).0.unwrap().probes.is_empty());
}

#[test]
fn a_newer_desired_state_is_asked_about_at_once() {
    let mut host = host();
    let unit = other("celery", 7, &[]);
    let first = Desired { drains: vec![drain_of(&unit)], ..desired(1) };
    host.handle_desired(&first, Moment(0));
    let scan = Scan { others: vec![unit], ..Scan::default() };
    host.handle_scan(&scan, Moment(10));
    assert!(said(&mut host).1.is_some());
    let second = Desired { apps: announced(2).apps, generation: Generation(2), ..first };
    host.handle_desired(&second, Moment(1_000));
    assert_eq!(said(&mut host).1.unwrap().version, second.version());
}

#[test]
fn what_was_decided_about_apps_is_written_down_once() {
    let mut host = host();
    let decided = BTreeSet::from([(AppName::new("shop").unwrap(), vec!["/srv/shop".to_owned()])]);
    let scan = Scan { decided: decided.clone(), ..Scan::default() };
    let mut stored = Vec::new();
    for at in 0..3 {
        host.handle_scan(&scan, Moment(at));
        while let Some(action) = host.poll_action() {
            if let Action::Store(records) = action {
                stored.extend(records);
            }
        }
    }
    assert_eq!(stored, [Record::Decided(decided)]);
}

/// The permit for the first thing that is asked for.
fn permit_for(ask: Ask) -> Permit {
    let want = ask.wants.into_iter().next().unwrap();
    Permit {
        host: ask.host,
        slot: want.slot,
        identity: want.identity,
        nonce: ask.nonce,
        version: ask.version,
        author: Salt::default(),
        purpose: want.purpose,
        must: Vec::new(),
    }
}

fn cleared() -> Cleared {
    Cleared { means: "means".into(), ends_root: true }
}

/// Grants what is asked for a slot and lets the action go on until its unit was told to end.
fn permit_and_stop(host: &mut Host, slot: &SlotId) {
    let ask = said(host).1.unwrap();
    host.handle_permit(&permit_for(ask), Moment(20));
    let asked = host.intent(slot).unwrap().clone();
    host.handle_preflight(&asked, Ok(cleared()), Moment(30));
    host.handle_stopped(slot, Ok(()), Moment(40));
}

/// The same until it has ended.
fn permit_and_end(host: &mut Host, slot: &SlotId) {
    permit_and_stop(host, slot);
    host.handle_ended(slot, Moment(50));
}

#[test]
fn a_slot_counts_as_drained_at_once_and_can_be_given_back_before_the_next_look() {
    let mut host = host();
    let unit = other("celery", 7, &[]);
    let slot = unit.view.slot.clone();
    let drain = Desired { drains: vec![drain_of(&unit)], ..desired(1) };
    host.handle_desired(&drain, Moment(0));
    host.handle_scan(&Scan { begun_at: Moment(1), others: vec![unit], ..Scan::default() }, Moment(10));
    permit_and_end(&mut host, &slot);
    host.handle_held(&slot, Ok(()), Moment(5_000));
    host.handle_timeout(Moment(9_000));
    let phases = |report: Report| report.slots.iter().map(|slot| slot.phase).collect::<Vec<_>>();
    assert_eq!(phases(said(&mut host).0.unwrap()), [Phase::Drained]);
    // Taken back before anything was looked at again: it must be started, not be taken for one that is up.
    host.handle_desired(&desired(2), Moment(9_100));
    assert_eq!(steps(&mut host), [Step::Start]);
}

/// Takes all actions; returns the steps.
fn steps(host: &mut Host) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some(action) = host.poll_action() {
        if let Action::Step { step, .. } = action {
            steps.push(step);
        }
    }
    steps
}

#[test]
fn an_undrain_that_follows_its_drain_at_once_is_told_from_it() {
    let mut host = host();
    let unit = other("celery", 7, &[]);
    let slot = unit.view.slot.clone();
    host.handle_desired(&Desired { drains: vec![drain_of(&unit)], ..desired(1) }, Moment(0));
    host.handle_scan(&Scan { begun_at: Moment(1), others: vec![unit], ..Scan::default() }, Moment(10));
    permit_and_stop(&mut host, &slot);
    // Taken back while it has work in hand: the drain goes on to its end.
    host.handle_desired(&desired(2), Moment(1_000));
    host.handle_ended(&slot, Moment(5_000));
    assert_eq!(steps(&mut host).last(), Some(&Step::HoldDown));
    let drain = host.intent(&slot).unwrap().clone();
    host.handle_held(&slot, Ok(()), Moment(5_010));
    let undrain = host.intent(&slot).unwrap();
    assert_eq!((&undrain.task, &undrain.means), (&Task::Undrain, &drain.means));
    assert_ne!(undrain.nonce, drain.nonce);
    assert_eq!(steps(&mut host), [Step::Start]);
}

/// A host whose one unit has ended by a drain, and is about to be kept down.
fn ended_by_a_drain() -> (Host, SlotId) {
    let mut host = host();
    let unit = other("celery", 7, &[]);
    let slot = unit.view.slot.clone();
    host.handle_desired(&Desired { drains: vec![drain_of(&unit)], ..desired(1) }, Moment(0));
    host.handle_scan(&Scan { begun_at: Moment(1), others: vec![unit], ..Scan::default() }, Moment(10));
    permit_and_end(&mut host, &slot);
    (host, slot)
}

/// A host whose one unit was drained by hand.
fn drained() -> (Host, SlotId) {
    let (mut host, slot) = ended_by_a_drain();
    host.handle_held(&slot, Ok(()), Moment(5_000));
    (host, slot)
}

#[test]
fn an_undrain_that_failed_is_tried_again_after_a_pause() {
    let (mut host, slot) = drained();
    host.handle_desired(&desired(2), Moment(9_000));
    assert_eq!(steps(&mut host).last(), Some(&Step::Start));
    host.handle_started(&slot, Err("start request repeated too quickly".into()), Moment(9_200));
    let vacant = BTreeMap::from([(slot, Vacancy::Down)]);
    host.handle_scan(&Scan { begun_at: Moment(9_300), vacant, ..Scan::default() }, Moment(9_400));
    assert_eq!(steps(&mut host), []);
    // Its own timers bring it there.
    let mut begun = Vec::new();
    while let Some(at) = host.poll_timeout().filter(|at| *at < Moment(60_000)) {
        host.handle_timeout(at);
        begun.extend(steps(&mut host).into_iter().map(|step| (at, step)));
        assert!(host.poll_timeout() > Some(at), "the timer of {at:?} stays due");
    }
    assert_eq!(begun, [(Moment(39_200), Step::Start)]);
}

#[test]
fn a_unit_that_is_back_is_given_back_although_it_cannot_be_read() {
    let (mut host, slot) = drained();
    host.handle_desired(&desired(2), Moment(9_000));
    host.handle_started(&slot, Ok(()), Moment(9_100));
    let mut view = other("celery", 8, &[]).view;
    view.slot = slot.clone();
    let others = vec![OtherView { view, claims: Vec::new() }];
    host.handle_scan(&Scan { begun_at: Moment(9_200), others, ..Scan::default() }, Moment(9_300));
    let mut verified = 0;
    while let Some(at) = host.poll_timeout().filter(|at| host.intent(&slot).is_some() && *at < Moment(90_000)) {
        host.handle_timeout(at);
        if steps(&mut host).contains(&Step::Verify) {
            verified += 1;
            host.handle_verified(&slot, Verified::Unknown("reading it took too long".into()), at);
        }
    }
    assert!(verified > 1);
    let is_drained = |action: Action| match action {
        Action::Store(records) => records.into_iter().find_map(|record| match record {
            Record::Slot(_, Some(record)) => Some(record.drained.is_some()),
            _ => None,
        }),
        _ => None,
    };
    assert_eq!(std::iter::from_fn(|| host.poll_action()).find_map(is_drained), Some(false));
}

#[test]
fn files_that_cannot_be_removed_are_tried_again_soon_and_then_once_a_minute() {
    let mut host = host();
    let app = AppName::new("shop").unwrap();
    let files = BTreeSet::from(["/srv/shop/old.pyc".to_owned()]);
    let scan = |files: &BTreeSet<String>, at: Moment| {
        let view = AppView { revision: Revision(1), stale_files: files.clone(), ..AppView::default() };
        Scan { begun_at: at, full: true, apps: BTreeMap::from([(app.clone(), view)]), ..Scan::default() }
    };
    let why = "it is not there as this agent sees files".to_owned();
    let result = PurgeResult {
        refused: files.iter().map(|file| (file.clone(), why.clone())).collect(),
        ..PurgeResult::default()
    };
    host.handle_desired(&announced(1), Moment(0));
    host.handle_scan(&scan(&files, Moment(0)), Moment(0));
    let (mut at, mut purged) = (Moment(0), Vec::new());
    while at < Moment(150_000) {
        while let Some(action) = host.poll_action() {
            match action {
                Action::Purge { .. } => {
                    purged.push(at.0);
                    host.handle_purged(&app, &result, at);
                }
                Action::Look => host.handle_scan(&scan(&files, at), at),
                _ => {}
            }
            assert!(purged.len() < 9, "{purged:?}");
        }
        at = host.poll_timeout().unwrap();
        host.handle_timeout(at);
    }
    assert_eq!(purged, [0, 2_000, 60_000, 120_000]);
    // Somebody else removed it.
    host.handle_scan(&scan(&BTreeSet::new(), at), at);
    host.handle_timeout(Moment(at.0 + 3_000));
    let waiting = said(&mut host).0.unwrap().apps[&app].waiting.clone();
    assert!(!waiting.unwrap_or_default().contains("could not be removed"));
}

#[test]
fn a_child_that_outlives_the_drained_unit_for_a_moment_does_not_take_its_name() {
    let mut host = host();
    let unit = other("celery", 7, &[]);
    let slot = unit.view.slot.clone();
    let drain = Desired { drains: vec![drain_of(&unit)], ..desired(1) };
    host.handle_desired(&drain, Moment(0));
    let pool = PoolName::new("shop").unwrap();
    let scan = |pid: u32, is_pooled: bool, at: u64| {
        let mut view = other("celery", pid, &[]).view;
        view.slot = slot.clone();
        view.pools = is_pooled.then(|| pool.clone()).into_iter().collect();
        Scan { begun_at: Moment(at), others: vec![OtherView { view, claims: Vec::new() }], ..Scan::default() }
    };
    host.handle_scan(&scan(7, true, 1), Moment(10));
    permit_and_stop(&mut host, &slot);
    // The main process has gone, its child has not.
    host.handle_scan(&scan(8, false, 45), Moment(46));
    host.handle_timeout(Moment(4_000));
    let named = |report: Report| report.slots[0].unit.clone();
    assert_eq!(named(said(&mut host).0.unwrap()), Some(UnitId::new("celery:7").unwrap()));
    host.handle_ended(&slot, Moment(5_000));
    host.handle_held(&slot, Ok(()), Moment(5_010));
    host.handle_timeout(Moment(9_000));
    let drained = |report: Report| {
        let [slot] = &report.slots[..] else { panic!("{:?}", report.slots) };
        assert_eq!(slot.phase, Phase::Drained);
        (slot.unit.clone(), slot.last_unit.clone(), slot.pools.clone())
    };
    let known = (None, Some(UnitId::new("celery:7").unwrap()), BTreeSet::from([pool.clone()]));
    assert_eq!(drained(said(&mut host).0.unwrap()), known);
    // A list that was begun before the drain's end comes after it.
    host.handle_scan(&scan(8, false, 5_005), Moment(9_100));
    let vacant = BTreeMap::from([(slot.clone(), Vacancy::Down)]);
    host.handle_scan(&Scan { begun_at: Moment(9_200), vacant, ..Scan::default() }, Moment(9_300));
    host.handle_timeout(Moment(200_000));
    assert_eq!(drained(said(&mut host).0.unwrap()), known);
}

#[test]
fn a_unit_that_is_being_drained_counts_for_an_app_that_is_announced_meanwhile() {
    let app = AppName::new("shop").unwrap();
    // The main process itself, or a child that has outlived it.
    for pid in [7, 8] {
        let mut host = host();
        let unit = other("celery", 7, &[]);
        let slot = unit.view.slot.clone();
        let drains = vec![drain_of(&unit)];
        host.handle_desired(&Desired { drains: drains.clone(), ..desired(1) }, Moment(0));
        host.handle_scan(&Scan { begun_at: Moment(1), others: vec![unit], ..Scan::default() }, Moment(10));
        permit_and_stop(&mut host, &slot);
        // It has an hour of work in hand.
        host.handle_desired(&Desired { drains, ..announced(2) }, Moment(1_000));
        for at in [2_000, 200_000] {
            let mut view = other("celery", pid, &[]).view;
            view.slot = slot.clone();
            let judged = UnitJudgement {
                revision: Revision(1),
                verdict: Verdict::Stale,
                cure: Cure::Restart,
                because: String::new(),
            };
            view.apps.insert(app.clone(), judged);
            let files = AppView { revision: Revision(1), files_right: true, ..AppView::default() };
            let apps = BTreeMap::from([(app.clone(), files)]);
            let scan = Scan { begun_at: Moment(at), full: true, units: vec![view], apps, ..Scan::default() };
            host.handle_scan(&scan, Moment(at + 10));
        }
        host.handle_timeout(Moment(300_000));
        let report = said(&mut host).0.unwrap();
        let of_app = &report.apps[&app];
        assert!(!of_app.converged && of_app.units.acting == 1, "{of_app:?}");
    }
}

#[test]
fn a_unit_that_dies_again_and_again_stays_failed_although_each_life_of_it_is_fresh() {
    let mut host = host();
    let app = AppName::new("shop").unwrap();
    host.handle_desired(&announced(1), Moment(0));
    let slot = other("celery", 7, &[]).view.slot;
    let scan = |pid: u32, verdict: Verdict, at: u64| {
        let cure = if verdict == Verdict::Stale { Cure::Restart } else { Cure::None };
        let judged = UnitJudgement { revision: Revision(1), verdict, cure, because: String::new() };
        let mut view = other("celery", pid, &[]).view;
        view.slot = slot.clone();
        view.apps.insert(app.clone(), judged);
        let files = AppView { revision: Revision(1), files_right: true, ..AppView::default() };
        let apps = BTreeMap::from([(app.clone(), files)]);
        Scan { begun_at: Moment(at), full: true, units: vec![view], apps, ..Scan::default() }
    };
    host.handle_scan(&scan(7, Verdict::Stale, 1), Moment(10));
    permit_and_end(&mut host, &slot);
    host.handle_started(&slot, Ok(()), Moment(60));
    for (pid, at) in [(8, 100), (9, 3_100), (10, 6_100)] {
        host.handle_scan(&scan(pid, Verdict::Fresh, at), Moment(at + 10));
    }
    host.handle_timeout(Moment(9_000));
    let phase = |report: Report| report.slots[0].phase;
    assert_eq!(phase(said(&mut host).0.unwrap()), Phase::Failed);
    // One that stays is no failure any more.
    host.handle_scan(&scan(10, Verdict::Fresh, 16_100), Moment(16_110));
    host.handle_timeout(Moment(20_000));
    assert_eq!(phase(said(&mut host).0.unwrap()), Phase::Up);
}

#[test]
fn an_announcement_that_is_repeated_is_answered_by_a_full_look_that_began_after_it() {
    let mut host = host();
    let app = AppName::new("shop").unwrap();
    let scan = |blocked: Option<&str>, full: bool, at: u64| {
        let (verdict, cure) = (Verdict::Stale, Cure::Restart);
        let judged = UnitJudgement { revision: Revision(1), verdict, cure, because: String::new() };
        let mut view = other("celery", 7, &[]).view;
        view.apps.insert(app.clone(), judged);
        view.blocked = blocked.map(ToOwned::to_owned);
        let apps = BTreeMap::from([(app.clone(), AppView { revision: Revision(1), ..AppView::default() })]);
        Scan { begun_at: Moment(at), full, units: vec![view], apps, ..Scan::default() }
    };
    let unseen = |host: &mut Host, at: u64| {
        host.handle_timeout(Moment(at));
        said(host).0.unwrap().apps[&app].unseen
    };
    host.handle_desired(&announced(1), Moment(0));
    host.handle_scan(&scan(Some("nothing would bring it back"), true, 1), Moment(10));
    assert!(!unseen(&mut host, 3_000));

    host.handle_desired(&announced(2), Moment(10_000));
    assert!(unseen(&mut host, 12_000));
    // The first was under way before, the second looked only at what is new.
    host.handle_scan(&scan(Some("nothing would bring it back"), true, 9_990), Moment(12_010));
    host.handle_scan(&scan(Some("nothing would bring it back"), false, 12_020), Moment(12_030));
    assert!(unseen(&mut host, 80_000));
    // Announced with another manifest, which is not here yet: nothing was judged.
    let mut waiting = scan(None, true, 80_010);
    waiting.apps.get_mut(&app).unwrap().waiting = Some("its manifest is not here yet".into());
    waiting.units.clear();
    host.handle_scan(&waiting, Moment(80_020));
    assert!(unseen(&mut host, 150_000));
    host.handle_scan(&scan(None, true, 150_010), Moment(150_020));
    assert!(!unseen(&mut host, 155_000));
}

#[test]
fn what_the_preflight_refused_is_asked_for_again_with_the_next_announcement() {
    let mut host = host();
    let app = AppName::new("shop").unwrap();
    let judged =
        UnitJudgement { revision: Revision(1), verdict: Verdict::Stale, cure: Cure::Restart, because: String::new() };
    let mut view = other("celery", 7, &[]).view;
    view.apps.insert(app.clone(), judged);
    let slot = view.slot.clone();
    let apps = BTreeMap::from([(app, AppView { revision: Revision(1), ..AppView::default() })]);
    let scan = |at: u64| Scan {
        begun_at: Moment(at),
        full: true,
        units: vec![view.clone()],
        apps: apps.clone(),
        ..Scan::default()
    };
    host.handle_desired(&announced(1), Moment(0));
    host.handle_scan(&scan(1), Moment(10));
    let ask = said(&mut host).1.unwrap();
    host.handle_permit(&permit_for(ask), Moment(20));
    let asked = host.intent(&slot).unwrap().clone();
    host.handle_preflight(&asked, Err("it would not start again".into()), Moment(30));
    host.handle_scan(&scan(40), Moment(50));
    assert_eq!(said(&mut host).1, None);

    host.handle_desired(&announced(2), Moment(60));
    host.handle_scan(&scan(70), Moment(80));
    assert_eq!(said(&mut host).1.unwrap().wants.len(), 1);
}
