//! The driver before a real store and bus, with an agent that only answers.

mod doubted;

use super::*;
use crate::bus::ends::{self, CoordinatorSide, ToCoordinator};
use crate::bus::envelope::{Encoded, FleetName};
use crate::cli::{AppTarget, Selector};
use crate::control::{self, Asker, Caller};
use crate::store::{StateDir, Which};
use std::collections::BTreeMap;
use unstale_protocol::coordinator::{Leadership, Reports};
use unstale_protocol::ids::{Epoch, Generation, HostName, Incarnation, Revision, SchemaVersion, Version};
use unstale_protocol::manifest::Manifest;
use unstale_protocol::message::{Desired, Upward};
use unstale_protocol::piece::Piece;
use unstale_protocol::time::Moment;

fn shop() -> AppName {
    AppName::new("shop").unwrap()
}

fn caller() -> Caller {
    Caller { uid: 0, pid: None }
}

fn request() -> api::BroadcastRequest {
    serde_json::from_value(serde_json::json!({"app": "shop", "manifest": Manifest::default(), "message": "why"}))
        .unwrap()
}

/// Runs a coordinator on `state` while `check` talks to it.
async fn with_driver<F: Future<Output = ()>>(state: &StateDir, check: impl FnOnce(Asker, CoordinatorSide) -> F) {
    let host = HostName::new("here").unwrap();
    let policy = CoordinatorPolicy { expected_hosts: [host].into(), ..CoordinatorPolicy::default() };
    with_policy(state, policy, None, check).await;
}

/// The same with this policy, on a bus of this name.
async fn with_policy<F: Future<Output = ()>>(
    state: &StateDir,
    policy: CoordinatorPolicy,
    bus: Option<String>,
    check: impl FnOnce(Asker, CoordinatorSide) -> F,
) {
    let (end, side) = ends::coordinator();
    let (asker, desk) = control::channel();
    let store = state.open(Which::Coordinator).unwrap();
    let driver = Driver::new(policy, store, (end, seal()), desk, Clock::start()).unwrap().with_bus_url(bus);
    let shutdown = CancellationToken::new();
    let (ended, ()) = tokio::join!(driver.run(shutdown.clone()), async {
        check(asker, side).await;
        shutdown.cancel();
    });
    ended.unwrap();
}

async fn broadcast(asker: &Asker) -> api::BroadcastAccepted {
    asker.ask(|answer| Command::Broadcast(Box::new(request()), caller(), answer)).await.unwrap()
}

fn seal() -> Seal {
    Seal::bare(FleetName::new("default").unwrap())
}

fn desired(side: &CoordinatorSide) -> Desired {
    let envelope = side.desired.borrow().clone().unwrap();
    serde_json::from_str(&seal().open(Channel::Desired, &envelope).unwrap().payload).unwrap()
}

fn manifest(side: &CoordinatorSide) -> Manifest {
    let digest = desired(side).apps[&shop()].manifest;
    let envelope = side.manifests.borrow().get(&digest).cloned().unwrap();
    let payload = seal().open(Channel::Manifest, &envelope).unwrap().payload;
    assert_eq!(Fingerprint::of_bytes(payload.as_bytes()), digest);
    serde_json::from_str(&payload).unwrap()
}

fn state() -> (tempfile::TempDir, StateDir) {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::take(&directory.path().join("state")).unwrap();
    (directory, state)
}

#[tokio::test]
async fn a_broadcast_is_published_with_its_manifest() {
    let (_directory, state) = state();
    with_driver(&state, async |asker, side| {
        let accepted = broadcast(&asker).await;
        assert_eq!((accepted.standing, accepted.baseline.revision), (api::Standing::New, Revision(1)));
        assert_eq!(manifest(&side), Manifest::default());
        let again = broadcast(&asker).await;
        assert_eq!((again.standing, again.baseline.revision), (api::Standing::Attached, Revision(1)));
        assert_eq!(again.notes, ["source equals shop@1: was this run before the new files arrived?"]);
    })
    .await;
}

#[tokio::test]
async fn a_coordinator_that_starts_again_goes_on_under_a_higher_epoch() {
    let (_directory, state) = state();
    with_driver(&state, async |asker, _side| drop(broadcast(&asker).await)).await;
    with_driver(&state, async |asker, side| {
        let status = asker.ask(Command::Status).await.unwrap();
        assert_eq!(status.epoch, 2);
        assert_eq!(status.apps.iter().map(|app| app.revision).collect::<Vec<_>>(), [Revision(1)]);
        assert_eq!(manifest(&side), Manifest::default());
        let version = SchemaVersion { app: shop(), revision: Revision(1) };
        let events = asker.ask(|answer| Command::Events(version, 0, answer)).await.unwrap();
        assert_eq!(events.events.iter().map(|event| event.what.as_str()).collect::<Vec<_>>(), ["announced"]);
    })
    .await;
}

#[tokio::test]
async fn an_aborted_rollout_ends_and_says_who_ended_it() {
    let (_directory, state) = state();
    with_driver(&state, async |asker, side| {
        broadcast(&asker).await;
        let target = AppTarget { app: shop(), revision: None };
        let hand = api::HandRequest { message: Some("wrong branch".into()), ..api::HandRequest::default() };
        let rollout = asker.ask(|answer| Command::Abort(target.clone(), hand, caller(), answer)).await.unwrap();
        assert_eq!(rollout.outcome, api::Outcome::Aborted);
        let refused = asker
            .ask(|answer| Command::Resume(target, api::HandRequest::default(), caller(), answer))
            .await
            .unwrap_err();
        assert_eq!(refused.code, "aborted");
        assert_eq!(desired(&side).apps[&shop()].mode, unstale_protocol::message::Mode::Abort);
        assert_eq!(broadcast(&asker).await.baseline.revision, Revision(2));
    })
    .await;
}

#[tokio::test]
async fn what_is_not_there_is_refused_with_advice() {
    let (_directory, state) = state();
    with_driver(&state, async |asker, _side| {
        let target = AppTarget { app: shop(), revision: None };
        let no_rollout = asker.ask(|answer| Command::Rollout(target, answer)).await.unwrap_err();
        assert_eq!((no_rollout.status, no_rollout.help.is_some()), (404, true));
        let drain: api::DrainRequest = serde_json::from_value(serde_json::json!({"selectors": ["pid:7"]})).unwrap();
        let no_unit = asker.ask(|answer| Command::Drain(drain, caller(), answer)).await.unwrap_err();
        assert_eq!(no_unit.code, "no-such-unit");
        let why = asker.ask(|answer| Command::Why(Selector::Pid(Pid(7)), answer)).await.unwrap();
        assert!(why.findings.is_empty());
        let mut long = request();
        long.meta = BTreeMap::from([("k".into(), "x".repeat(NOTE_MAX_BYTES + 1))]);
        let refused = asker.ask(|answer| Command::Broadcast(Box::new(long), caller(), answer)).await.unwrap_err();
        assert_eq!(refused.code, "note-too-long");
    })
    .await;
}

#[tokio::test]
async fn a_drain_names_the_hosts_whose_units_are_not_known() {
    let slot = serde_json::json!({
        "slot": "celery/systemd:w.service", "unit": "celery:7:1:1", "identity": null, "pools": [], "phase": "up",
        "apps": {"shop": {"verdict": "fresh", "cure": "none"}}, "because": "",
    });
    let nothing = serde_json::json!({});
    let shop =
        |unseen: bool| serde_json::json!({"shop": {"revision": 1, "converged": false, "unseen": unseen, "units": {}}});
    let report = |host: &str, scanned: bool, apps: &serde_json::Value, slots: &[&serde_json::Value], omitted: u32| {
        let incarnation =
            serde_json::to_value(Incarnation { counter: 1, random: unstale_protocol::fingerprint::Salt::default() })
                .unwrap();
        serde_json::json!({
            "kind": "report", "host": host, "incarnation": incarnation, "sequence": 1, "clock": 0,
            "apps": apps, "pools": {}, "scanned": scanned, "slots": slots, "omitted": omitted,
        })
    };
    let (_directory, state) = state();
    with_driver(&state, async |asker, side| {
        broadcast(&asker).await;
        let mut left = report("left", true, &nothing, &[], 0);
        left["leaving"] = true.into();
        for mut report in [
            left,
            report("known", true, &shop(false), &[&slot], 0),
            report("new", false, &shop(true), &[], 0),
            report("here", true, &shop(false), &[], 3),
            report("early", true, &nothing, &[], 0),
            report("again", true, &shop(true), &[], 0),
        ] {
            report["accepted"] = serde_json::to_value(desired(&side).version()).unwrap();
            let closed = seal().close(Channel::Report, &report.to_string()).unwrap();
            ends::deliver(&side.incoming, ToCoordinator::Report(closed)).unwrap();
        }
        // Whoever asks may be answered before the bus is heard.
        while asker.ask(Command::Status).await.unwrap().hosts.iter().any(|host| host.reported_ms_ago.is_none()) {}
        let drain = async |selector: &str| {
            let drain = serde_json::from_value(serde_json::json!({"selectors": [selector], "dry_run": true})).unwrap();
            let drains = asker.ask(|answer| Command::Drain(drain, caller(), answer)).await.unwrap();
            assert_eq!(drains.drains.iter().map(|drain| drain.host.as_str()).collect::<Vec<_>>(), ["known"]);
            let unseen = drains.unseen.into_iter().map(|unseen| format!("{}: {}", unseen.host, unseen.because));
            unseen.collect::<Vec<_>>()
        };
        let wide = [
            "again: it has not been looked at since shop@1 was announced",
            "early: it has not been looked at since shop@1 was announced",
            "here: its report leaves 3 of its slots out",
            "new: it has not been looked at since its agent started",
        ];
        assert_eq!(drain("app:shop").await, wide);
        assert_eq!(drain("host:known").await, [""; 0]);
        assert_eq!(drain("slot:celery/systemd:w.service").await, [""; 0]);
        // Where nothing is found, it is said of whom it would have to be known.
        for (selector, expected) in [
            ("host:here", "no unit matches"),
            ("host:new", "no unit matches yet: new: it has not been looked at since its agent started"),
            (
                "pool:mail",
                "no unit matches yet: again: it has not been looked at since shop@1 was announced; early: it has not \
                 been looked at since shop@1 was announced; new: it has not been looked at since its agent started",
            ),
            ("app:mail", "no unit matches yet: new: it has not been looked at since its agent started"),
        ] {
            let drain = serde_json::from_value(serde_json::json!({"selectors": [selector], "dry_run": true})).unwrap();
            let refused = asker.ask(|answer| Command::Drain(drain, caller(), answer)).await.unwrap_err();
            assert_eq!(refused.message, expected, "{selector}");
        }
    })
    .await;
}

/// A host's report of one fresh worker of the app, and what it judged it by.
fn fresh_report(host: &str, accepted: Version, revision: u32) -> serde_json::Value {
    let slot = serde_json::json!({
        "slot": "celery/systemd:w.service", "unit": format!("celery:{host}"), "identity": null, "pools": [],
        "phase": "up", "apps": {"shop": {"verdict": "fresh", "cure": "none"}}, "because": "",
    });
    serde_json::json!({
        "kind": "report", "host": host, "sequence": 1, "clock": 0, "accepted": accepted, "scanned": true,
        "incarnation": Incarnation { counter: 1, random: unstale_protocol::fingerprint::Salt::default() },
        "apps": {"shop": {"revision": revision, "converged": true, "units": {}}}, "pools": {}, "slots": [slot],
    })
}

fn deliver(side: &CoordinatorSide, report: &serde_json::Value) {
    let closed = seal().close(Channel::Report, &report.to_string()).unwrap();
    ends::deliver(&side.incoming, ToCoordinator::Report(closed)).unwrap();
}

/// Asks about the worker of [`fresh_report`] and about its host, and returns verdict and reason of both.
async fn explained(asker: &Asker, host: &str) -> Vec<(String, String)> {
    let target = Selector::Host(HostName::new(host).unwrap());
    let why = asker.ask(|answer| Command::Why(target, answer)).await.unwrap();
    why.findings.into_iter().map(|finding| (finding.verdict, finding.because)).collect()
}

fn said(verdict: &str, because: &str) -> (String, String) {
    (verdict.to_owned(), because.to_owned())
}

#[tokio::test]
async fn more_drains_than_agents_can_be_told_of_are_refused() {
    const HOSTS: usize = 60;
    let slots: Vec<serde_json::Value> = (0..120)
        .map(|number| {
            serde_json::json!({
                "slot": format!("celery/none/{number}"), "unit": format!("celery:{number}"), "identity": null, "pools": [],
                "phase": "up", "apps": {"shop": {"verdict": "fresh", "cure": "none"}}, "because": "",
            })
        })
        .collect();
    let incarnation = Incarnation { counter: 1, random: unstale_protocol::fingerprint::Salt::default() };
    let report = |number: usize| {
        serde_json::json!({
            "kind": "report", "host": format!("web-{number}"), "incarnation": incarnation, "sequence": 1, "clock": 0,
            "accepted": Version::default(), "apps": {}, "pools": {}, "scanned": true, "slots": slots,
        })
    };
    let (_directory, state) = state();
    with_driver(&state, async |asker, side| {
        broadcast(&asker).await;
        for number in 0..HOSTS {
            let closed = seal().close(Channel::Report, &report(number).to_string()).unwrap();
            ends::deliver(&side.incoming, ToCoordinator::Report(closed)).unwrap();
        }
        let heard = |status: &api::Status| status.hosts.iter().filter(|host| host.scanned).count();
        while heard(&asker.ask(Command::Status).await.unwrap()) < HOSTS {}
        let before = desired(&side);
        let drain = async |selector: &str| {
            let drain = serde_json::from_value(serde_json::json!({"selectors": [selector]})).unwrap();
            asker.ask(|answer| Command::Drain(drain, caller(), answer)).await
        };
        assert_eq!(drain("app:shop").await.unwrap_err().code, "too-many-drains");
        assert_eq!(desired(&side), before);
        assert_eq!(drain("host:web-7").await.unwrap().drains.len(), slots.len());
    })
    .await;
}

#[tokio::test]
async fn nonsense_on_the_bus_changes_nothing() {
    let (_directory, state) = state();
    with_driver(&state, async |asker, side| {
        let closed = |payload: &str| seal().close(Channel::Report, payload).unwrap();
        for message in [b"".as_slice(), b"{", b"[]", &[0xff; 64]] {
            ends::deliver(&side.incoming, ToCoordinator::Report(message.into())).unwrap();
        }
        for payload in ["", "[]", "{\"kind\":\"song\"}", "{\"kind\":\"report\"}"] {
            ends::deliver(&side.incoming, ToCoordinator::Report(closed(payload))).unwrap();
        }
        assert_eq!(asker.ask(Command::Status).await.unwrap().hosts, []);
    })
    .await;
}

#[tokio::test]
async fn a_report_with_numbers_that_leave_no_room_changes_nothing() {
    let (_directory, state) = state();
    with_driver(&state, async |asker, side| {
        broadcast(&asker).await;
        let before = desired(&side);
        let incarnation = Incarnation { counter: 1, random: unstale_protocol::fingerprint::Salt::default() };
        let report = |epoch: u64, generation: u64, revision: u64| {
            let accepted = Version { epoch: Epoch(epoch), generation: Generation(generation) };
            serde_json::json!({
                "kind": "report", "host": "web-1", "incarnation": serde_json::to_value(incarnation).unwrap(),
                "sequence": 1, "clock": 0, "accepted": serde_json::to_value(accepted).unwrap(),
                "apps": {"shop": {"revision": revision, "converged": true, "units": {}}},
                "pools": {}, "slots": [],
            })
        };
        let deliver = |report: serde_json::Value| {
            let closed = seal().close(Channel::Report, &report.to_string()).unwrap();
            ends::deliver(&side.incoming, ToCoordinator::Report(closed)).unwrap();
        };
        let beyond = (1 << 52) + 1;
        for report in [report(beyond, 1, 1), report(1, u64::MAX, 1), report(1, 1, u64::MAX)] {
            deliver(report);
        }
        let mut last = report(0, 0, 1);
        last["host"] = "here".into();
        deliver(last);
        // Whoever asks may be answered before the bus is heard.
        let heard = loop {
            let hosts = asker.ask(Command::Status).await.unwrap().hosts;
            let heard: Vec<_> = hosts.into_iter().filter(|host| host.reported_ms_ago.is_some()).collect();
            if !heard.is_empty() {
                break heard;
            }
        };
        assert_eq!(heard.iter().map(|host| host.host.as_str()).collect::<Vec<_>>(), ["here"]);
        assert_eq!(desired(&side).version(), before.version());
        // What counting may reach is believed.
        deliver(report(1 << 52, 1 << 52, 1 << 52));
        while desired(&side).version() == before.version() {
            asker.ask(Command::Status).await.unwrap();
        }
        assert_eq!(desired(&side).epoch, Epoch(beyond));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_the_bus_has_lost_or_holds_instead_is_written_again() {
    let (_directory, state) = state();
    with_driver(&state, async |asker, mut side| {
        broadcast(&asker).await;
        let older = seal().close(Channel::Desired, "{\"epoch\":1,\"generation\":1}").unwrap();
        for found in [None, Some(older), Some::<Encoded>((*b"noise").into())] {
            let ours = side.desired.borrow_and_update().clone();
            // Not at once: it may be on its way.
            while !side.desired.has_changed().unwrap() {
                ends::deliver(&side.incoming, ToCoordinator::Tip(found.clone())).unwrap();
                tokio::time::sleep(std::time::Duration::from_secs(3)).await;
            }
            assert_eq!(*side.desired.borrow(), ours);
        }
    })
    .await;
}

#[tokio::test]
async fn who_stands_by_and_hears_no_reports_claims_nothing_and_names_who_leads() {
    let (_directory, state) = state();
    let policy = CoordinatorPolicy {
        leadership: Leadership::Leased,
        reports: Reports::ToLeader,
        host: Some(HostName::new("web-1").unwrap()),
        life: unstale_protocol::fingerprint::Salt([1; 16]),
        ..CoordinatorPolicy::default()
    };
    with_policy(&state, policy, Some("amqp://broker".to_owned()), async |asker, side| {
        let status = async || asker.ask(Command::Status).await.unwrap();
        let bus = async || status().await.bus.unwrap();
        side.link.send_replace(Link::Up(1));
        let lease = ends::Lease { epoch: None, until: Moment(600_000) };
        ends::deliver(&side.incoming, ToCoordinator::Lease(Some(lease))).unwrap();
        while !bus().await.leads {}
        assert_eq!((bus().await.leader.as_deref(), bus().await.signed), (Some("web-1"), Some(false)));
        broadcast(&asker).await;
        let ours = desired(&side);
        assert_eq!(ours.leader.as_ref().map(HostName::as_str), Some("web-1"));
        deliver(&side, &fresh_report("web-2", ours.version(), 1));
        while !status().await.hosts.iter().any(|host| host.scanned) {}
        // Another one takes the lead, with what this one has announced.
        ends::deliver(&side.incoming, ToCoordinator::Lease(None)).unwrap();
        let leader = HostName::new("web-9").unwrap();
        let author = unstale_protocol::fingerprint::Salt([9; 16]);
        let theirs = Desired { epoch: Epoch(7), leader: Some(leader), author, ..ours };
        let theirs = seal().close(Channel::Desired, &serde_json::to_string(&theirs).unwrap()).unwrap();
        ends::deliver(&side.incoming, ToCoordinator::Tip(Some(theirs))).unwrap();
        while bus().await.leader.as_deref() != Some("web-9") {}
        assert_eq!((bus().await.leads, status().await.hosts[0].standing.as_str()), (false, "unheard"));
        let target = AppTarget { app: shop(), revision: None };
        let rollout = asker.ask(|answer| Command::Rollout(target, answer)).await.unwrap();
        assert!(!rollout.outcome.is_end() && rollout.because.unwrap().contains("web-9"));
        assert_eq!((rollout.silent, rollout.units.converged), (Vec::<String>::new(), 0));
        for (verdict, because) in explained(&asker, "web-2").await {
            assert!(verdict == "unknown" && because.contains("stands by"), "{verdict}: {because}");
        }
        let refused = asker.ask(|answer| Command::Broadcast(Box::new(request()), caller(), answer)).await.unwrap_err();
        assert!(refused.code == "not-leader" && refused.message.contains("web-9"), "{refused:?}");
    })
    .await;
}

/// A report of a host that has judged the first revision.
fn judged(host: &str, sequence: u64) -> Encoded {
    let incarnation = Incarnation { counter: 1, random: unstale_protocol::fingerprint::Salt::default() };
    let report = serde_json::json!({
        "kind": "report", "host": host, "incarnation": serde_json::to_value(incarnation).unwrap(),
        "sequence": sequence, "clock": 0, "accepted": serde_json::to_value(Version::default()).unwrap(),
        "apps": {"shop": {"revision": 1, "converged": true, "units": {}}}, "pools": {}, "slots": [], "scanned": true,
    });
    seal().close(Channel::Report, &report.to_string()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_the_disk_lacks_is_fetched_from_a_host_and_kept() {
    let (_directory, state) = state();
    with_driver(&state, async |asker, _side| drop(broadcast(&asker).await)).await;
    let store = state.open(Which::Coordinator).unwrap();
    let (digest, bytes) = records::manifests(&store).unwrap().remove(0);
    let gone = Change { table: records::MANIFESTS.to_owned(), key: digest.to_string(), value: None };
    store.commit(&[gone]).unwrap();
    drop(store);
    with_driver(&state, async |asker, mut side| {
        let blocked = async || asker.ask(Command::Status).await.unwrap().blocked.unwrap_or_default();
        while !blocked().await.contains("the manifest of shop@1 is not here yet") {}
        ends::deliver(&side.incoming, ToCoordinator::Report(judged("here", 1))).unwrap();
        // Noise under its digest changes nothing.
        let noise = seal().close(Channel::Manifest, "[]").unwrap();
        ends::deliver(&side.incoming, ToCoordinator::Manifest(digest, noise)).unwrap();
        let mut is_looked_for = false;
        let fetch = loop {
            match side.outgoing.receive().await.unwrap() {
                FromCoordinator::LookUp(of) => is_looked_for |= of == digest,
                FromCoordinator::Permit(host, envelope) => {
                    assert_eq!(host.as_str(), "here");
                    let payload = seal().open(Channel::Permit, &envelope).unwrap().payload;
                    break serde_json::from_str(&payload).unwrap();
                }
                FromCoordinator::Forget(_) => {}
            }
        };
        assert!(is_looked_for && blocked().await.contains("is not here yet"));
        let piece = Piece::cut(&fetch, std::str::from_utf8(&bytes).unwrap()).unwrap();
        let answer = serde_json::to_string(&Upward::Piece(piece)).unwrap();
        let answer = seal().close(Channel::Report, &answer).unwrap();
        ends::deliver(&side.incoming, ToCoordinator::Report(answer)).unwrap();
        while blocked().await.contains("manifest") {}
        assert_eq!(manifest(&side), Manifest::default());
        let version = SchemaVersion { app: shop(), revision: Revision(1) };
        let events = asker.ask(|answer| Command::Events(version, 0, answer)).await.unwrap().events;
        assert!(events.iter().any(|event| event.text == "manifest fetched: from here"), "{events:?}");
    })
    .await;
    let store = state.open(Which::Coordinator).unwrap();
    assert_eq!(records::manifests(&store).unwrap(), [(digest, bytes)]);
}
