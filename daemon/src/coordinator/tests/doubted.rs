//! What is said of hosts that are silent, have left, or have not judged what is announced now.

use super::*;
use unstale_protocol::fingerprint::Salt;

/// A report of another agent that answers to the same name.
fn twin_of(host: &str, accepted: Version) -> serde_json::Value {
    let mut twin = fresh_report(host, accepted, 1);
    twin["incarnation"]["random"] = serde_json::to_value(Salt([7; 16])).unwrap();
    twin
}

#[tokio::test(start_paused = true)]
async fn a_host_is_fresh_only_where_it_has_judged_what_is_announced_now() {
    let (_directory, state) = state();
    with_driver(&state, async |asker, side| {
        broadcast(&asker).await;
        let now = desired(&side).version();
        let twin = twin_of("doubled", now);
        let changed = |host: &str, change: &dyn Fn(&mut serde_json::Value)| {
            let mut report = fresh_report(host, now, 1);
            change(&mut report);
            report
        };
        for report in [
            fresh_report("known", now, 1),
            fresh_report("doubled", now, 1),
            twin,
            fresh_report("deaf", Version::default(), 1),
            fresh_report("behind", now, 0),
            changed("unseen", &|report| report["apps"]["shop"]["unseen"] = true.into()),
            changed("without", &|report| report["apps"] = serde_json::json!({})),
            changed("new", &|report| report["scanned"] = false.into()),
            changed("left", &|report| report["leaving"] = true.into()),
            changed("last", &|_| ()),
        ] {
            deliver(&side, &report);
        }
        // Whoever asks may be answered before the bus is heard.
        while !asker.ask(Command::Status).await.unwrap().hosts.iter().any(|host| host.host == "last") {}

        assert_eq!(explained(&asker, "known").await, [said("fresh", ""), said("fresh", "shop@1 converged")]);
        let announced = "it has not been looked at since shop@1 was announced";
        for (host, doubt, last) in [
            ("doubled", "two agents answer to this name", "; it last said: shop@1 converged"),
            ("deaf", announced, "; it last said: shop@1 converged"),
            ("behind", announced, "; it last said: shop@0 converged"),
            ("unseen", announced, "; it last said: shop@1 converged"),
            ("without", announced, ""),
            ("new", "it has not been looked at since its agent started", "; it last said: shop@1 converged"),
        ] {
            let of_slot = said("unknown", &format!("{host}: {doubt}; it last said: fresh"));
            assert_eq!(explained(&asker, host).await, [of_slot, said("unknown", &format!("{doubt}{last}"))], "{host}");
        }
        let of_slot = said("fresh", "left: it has left; it last said: fresh");
        let of_host = said("fresh", "it has left; it last said: shop@1 converged");
        assert_eq!(explained(&asker, "left").await, [of_slot, of_host]);
        // It is configured, and has said nothing.
        assert_eq!(explained(&asker, "here").await, [said("unknown", "it has not reported")]);
        assert_eq!(explained(&asker, "nobody").await, []);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nothing_on_a_silent_host_is_fresh_and_it_is_said_what_to_do() {
    let (_directory, state) = state();
    with_driver(&state, async |asker, side| {
        broadcast(&asker).await;
        deliver(&side, &fresh_report("web-1", desired(&side).version(), 1));
        while asker.ask(Command::Status).await.unwrap().hosts.iter().all(|host| host.host != "web-1") {}
        tokio::time::sleep(std::time::Duration::from_mins(4)).await;
        for target in ["unit:celery:web-1", "host:web-1"] {
            let why = asker.ask(|answer| Command::Why(target.parse().unwrap(), answer)).await.unwrap();
            for finding in &why.findings {
                assert_eq!(finding.verdict, "unknown", "{finding:?}");
                assert!(finding.because.contains("silent for 4 m"), "{finding:?}");
                let next = finding.next.as_ref().unwrap();
                assert!(next.contains("start its agent, or `unstale forget host:web-1`"), "{finding:?}");
            }
            assert!(!why.findings.is_empty(), "{target}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_has_left_is_said_to_have_and_nobody_waits_for_it() {
    let (_directory, state) = state();
    let standing = async |asker: &Asker| {
        let status = asker.ask(Command::Status).await.unwrap();
        let host = status.hosts.into_iter().find(|host| host.host == "web-1")?;
        Some((host.standing, host.reported_ms_ago.is_some(), status.apps[0].because.clone()))
    };
    let unheard = Some("here: has not reported on this revision yet".to_owned());
    with_driver(&state, async |asker, side| {
        broadcast(&asker).await;
        let mut report = fresh_report("web-1", desired(&side).version(), 1);
        report["leaving"] = true.into();
        deliver(&side, &report);
        while standing(&asker).await.is_none() {}
        tokio::time::sleep(std::time::Duration::from_mins(2)).await;
        assert_eq!(standing(&asker).await.unwrap(), ("left".to_owned(), true, unheard.clone()));
        tokio::time::sleep(std::time::Duration::from_mins(4)).await;
        assert_eq!(standing(&asker).await.unwrap().0, "left");
        let drain = serde_json::from_value(serde_json::json!({"selectors": ["app:shop"], "dry_run": true})).unwrap();
        let refused = asker.ask(|answer| Command::Drain(drain, caller(), answer)).await.unwrap_err();
        assert_eq!(refused.code, "no-such-unit", "{refused:?}");
    })
    .await;
    // The next life of the coordinator has heard nothing of it.
    with_driver(&state, async |asker, _side| {
        let (standing, is_heard, _) = standing(&asker).await.unwrap();
        assert_eq!((standing.as_str(), is_heard), ("left", false));
        assert_eq!(explained(&asker, "web-1").await, [said("not judged", "it has left")]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_doubts_what_why_doubts() {
    let (_directory, state) = state();
    with_driver(&state, async |asker, side| {
        broadcast(&asker).await;
        let now = desired(&side).version();
        let twin = twin_of("doubled", now);
        let mut new = fresh_report("new", now, 1);
        new["scanned"] = false.into();
        let deaf = fresh_report("deaf", Version::default(), 1);
        let silent = [new, fresh_report("silent", now, 1)];
        for report in &silent {
            deliver(&side, report);
        }
        while asker.ask(Command::Status).await.unwrap().hosts.iter().all(|host| host.host != "silent") {}
        tokio::time::sleep(std::time::Duration::from_mins(4)).await;
        let heard = [fresh_report("doubled", now, 1), twin, deaf, fresh_report("known", now, 1)];
        for report in &heard {
            deliver(&side, report);
        }
        while asker.ask(Command::Status).await.unwrap().hosts.iter().all(|host| host.host != "known") {}

        let drain = serde_json::from_value(serde_json::json!({"selectors": ["app:shop"], "dry_run": true})).unwrap();
        let drains = asker.ask(|answer| Command::Drain(drain, caller(), answer)).await.unwrap();
        let unseen: Vec<_> = drains.unseen.iter().map(|unseen| (unseen.host.as_str(), &unseen.because)).collect();
        assert_eq!(
            unseen.iter().map(|(host, _)| *host).collect::<Vec<_>>(),
            ["deaf", "doubled", "here", "new", "silent"]
        );
        for (host, because) in &unseen {
            let (verdict, explained) = explained(&asker, host).await.pop().unwrap();
            assert!(verdict == "unknown" && explained.starts_with(because.as_str()), "{host}: {because}; {explained}");
        }
        assert!(unseen[4].1.ends_with(": what has come up there since is not known"), "{unseen:?}");
    })
    .await;
}

#[tokio::test]
async fn a_host_that_configuration_names_is_not_forgotten_and_it_is_said_what_to_do() {
    let (_directory, state) = state();
    with_driver(&state, async |asker, side| {
        broadcast(&asker).await;
        let next = async || {
            let why = asker.ask(|answer| Command::Why("host:here".parse().unwrap(), answer)).await.unwrap();
            why.findings[0].next.clone().unwrap()
        };
        let reconfigure = "take it out of `[coordinator] expected_hosts` and start the coordinator again";
        let said = next().await;
        assert!(said.contains(reconfigure) && !said.contains("forget"), "{said}");
        let here = HostName::new("here").unwrap();
        let refused = asker.ask(|answer| Command::Forget(here.clone(), caller(), answer)).await.unwrap_err();
        assert_eq!(refused.code, "configured-host");
        assert!(refused.message.contains("`[coordinator] expected_hosts` names it"), "{refused:?}");
        assert!(refused.help.unwrap().contains("take it out there"));
        let nobody = HostName::new("nobody").unwrap();
        let refused = asker.ask(|answer| Command::Forget(nobody, caller(), answer)).await.unwrap_err();
        assert_eq!(refused.code, "no-such-host");
        // Once it was heard there is something to forget, and it is expected all the same.
        deliver(&side, &fresh_report("here", desired(&side).version(), 1));
        while asker.ask(Command::Status).await.unwrap().hosts[0].reported_ms_ago.is_none() {}
        let status = asker.ask(|answer| Command::Forget(here, caller(), answer)).await.unwrap();
        assert_eq!((status.hosts[0].host.as_str(), status.hosts[0].standing.as_str()), ("here", "expected"));
    })
    .await;
}

#[tokio::test]
async fn a_drained_unit_that_is_to_come_back_is_said_to_be_given_back_by_its_agent() {
    let (_directory, state) = state();
    with_driver(&state, async |asker, side| {
        broadcast(&asker).await;
        let mut report = fresh_report("web-1", desired(&side).version(), 1);
        report["slots"][0]["phase"] = "drained".into();
        deliver(&side, &report);
        while asker.ask(Command::Status).await.unwrap().hosts.iter().all(|host| host.host != "web-1") {}
        let target = "slot:celery/systemd:w.service";
        let next = async || {
            let why = asker.ask(|answer| Command::Why(target.parse().unwrap(), answer)).await.unwrap();
            why.findings[0].next.clone().unwrap()
        };
        assert_eq!(next().await, "its agent gives it back");
        let drain = serde_json::from_value(serde_json::json!({"selectors": [target]})).unwrap();
        asker.ask(|answer| Command::Drain(drain, caller(), answer)).await.unwrap();
        assert_eq!(next().await, "stays out of work until `unstale undrain`");
    })
    .await;
}
