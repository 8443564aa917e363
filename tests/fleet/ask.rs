//! Asking without doing: dry runs, and units that no rollout judges.

use crate::harness::app::{App, Place};
use crate::harness::process::{is_running, stat};
use crate::harness::python::newest;
use crate::harness::unstale::{Up, array, text};
use crate::harness::wait::eventually;
use crate::harness::workers::wait_for_children;
use rustix::process::Signal;
use serde_json::Value;

use super::{Neighbours, Shop, Unkept, assert_all_fresh};

/// How many dry runs hosts are being asked about.
fn dry_runs(up: &Up) -> Value {
    up.run(["status", "--output", "json"]).json()["dry_runs"].clone()
}

#[test]
fn a_dry_run_says_which_units_would_be_restarted_how_and_which_files_removed_and_does_nothing() {
    let shop = Shop::start(&["autorestart=true"]);
    let main = shop.main();
    let start = stat(main);
    // Nothing is stale yet.
    let said = shop.up.broadcast("shop", &shop.app.code, &["--dry-run"]).expect(0).json();
    assert_eq!((text(&said, "outcome").as_str(), &said["units"]["converged"]), ("converged", &1.into()), "{said:#}");
    assert_eq!(said["dry_run"], true, "{said:#}");

    shop.app.flip();
    let said = shop.up.broadcast("shop", &shop.app.code, &["--dry-run"]).expect(0).json();
    assert_eq!(text(&said, "schema"), "unstale.broadcast/1");
    assert_eq!(text(&said, "outcome"), "converged", "{said:#}");
    assert_eq!((&said["units"]["pending"], &said["units"]["restarted"]), (&1.into(), &0.into()), "{said:#}");
    let unit = &said["units_detail"][0];
    assert_eq!(text(unit, "unit"), format!("celery:{main}"), "{said:#}");
    assert_eq!(text(unit, "action"), "purge_then_restart", "{said:#}");
    assert!(text(unit, "means").contains("TERM to the main process"), "{said:#}");
    assert!(text(unit, "because").contains("CrmType"), "{said:#}");
    let bytecode = shop.app.bytecode("enums", newest().minor());
    assert_eq!(text(&said["would_purge"][0], "path"), bytecode.display().to_string(), "{said:#}");
    let text = shop.up.run(["broadcast", "--dry-run", "--app", "shop", &shop.app.code.display().to_string()]).expect(0);
    assert!(text.stdout.contains("would remove bytecode, then restart"), "{text:?}");

    // Nothing was done, nothing was announced, and nothing of it stays behind.
    assert_eq!((shop.main(), stat(main)), (main, start));
    assert!(bytecode.exists());
    let status = shop.up.run(["status", "--output", "json"]).json();
    assert!(array(&status, "apps").is_empty(), "{status:#}");
    eventually("no dry run is left", 5, || dry_runs(&shop.up), |left| *left == 0);
    // What it said is what then happens.
    assert_eq!(shop.broadcast(&[])["outcome"], "converged");
    assert_all_fresh(&shop.place);
}

#[test]
fn a_dry_run_whose_caller_is_killed_ends_by_itself() {
    let shop = Shop::start(&["autorestart=true"]);
    shop.app.flip();
    let mut command = shop.up.command(["broadcast", "--dry-run", "--app", "shop"]);
    command.arg(&shop.app.code);
    let log = shop.place.join("dry.log");
    let mut asking = crate::harness::process::Running::start(&mut command, &log);
    eventually("the dry run is under way", 20, || dry_runs(&shop.up), |open| *open == 1);
    asking.signal(Signal::KILL);
    asking.wait(10);
    eventually("nobody asks any more", 40, || dry_runs(&shop.up), |left| *left == 0);
}

#[test]
fn a_dry_run_names_what_cannot_be_restarted_and_what_waits_for_source() {
    let Unkept { worker, app, place, .. } = &Unkept::start();
    let up = Up::start(place);
    // The new source is on its way.
    let coming = App::new(place, "coming");
    coming.flip();
    let said = up.broadcast("shop", &coming.code, &["--dry-run"]).expect(1).json();
    assert_eq!(text(&said["units_detail"][0], "action"), "wait_for_source", "{said:#}");
    app.flip();
    let said = up.broadcast("shop", &app.code, &["--dry-run"]).expect(1).json();
    assert_eq!(text(&said, "outcome"), "failed", "{said:#}");
    assert_eq!(said["units"]["blocked"], 1, "{said:#}");
    assert!(text(&said["units_detail"][0], "because").contains("cannot restart"), "{said:#}");
    assert!(is_running(worker.pid()));
    assert!(!worker.log().contains("shutdown"), "{}", worker.log());
}

#[test]
fn a_time_limit_that_passes_leaves_the_rollout_in_force_and_watch_sees_it_converge() {
    let shop = Shop::start(&["autorestart=true"]);
    // What is announced is not here yet, so the worker waits for it.
    let coming = App::new(&shop.place, "coming");
    coming.flip();
    let said = shop.up.broadcast("shop", &coming.code, &["--timeout", "6s"]).expect(3).json();
    assert_eq!(text(&said, "outcome"), "timeout", "{said:#}");
    let said = shop.up.run(["status", "shop@1", "--watch", "--timeout", "2s"]).expect(3);
    assert!(said.stdout.contains("stays in force"), "{said:?}");
    shop.app.flip();
    let said = shop.up.run(["status", "shop@1", "--watch", "--output", "json"]).expect(0).json();
    assert_eq!(text(&said, "outcome"), "converged", "{said:#}");
    assert_eq!(said["units"]["restarted"], 1, "{said:#}");
    assert_all_fresh(&shop.place);
}

#[test]
fn a_dry_run_that_finds_no_worker_proves_nothing() {
    let place = Place::new();
    let app = App::new(&place, "shop");
    let up = Up::start(&place);
    let said = up.broadcast("shop", &app.code, &["--dry-run"]).expect(3).json();
    assert_eq!(text(&said, "outcome"), "incomplete", "{said:#}");
    let said = up.broadcast("shop", &app.code, &["--dry-run", "--allow-empty"]).expect(0).json();
    assert_eq!(text(&said, "outcome"), "converged", "{said:#}");
}

#[test]
fn a_worker_of_no_announced_app_is_explained_drained_and_given_back() {
    let shop = Shop::start(&["autorestart=true"]);
    let main = shop.main();
    let child = wait_for_children(main, 2)[0];
    let unit = format!("celery:{main}");
    let status = eventually(
        "the worker is listed",
        20,
        || shop.up.run(["status", "--output", "json"]).json(),
        |status| array(&status["hosts"][0], "others").iter().any(|other| text(other, "unit") == unit),
    );
    let slot = text(&status["hosts"][0]["others"][0], "slot");
    for target in [unit.clone(), format!("slot:{slot}"), format!("pid:{child}")] {
        let said = shop.up.run(["why", &target]).expect(0);
        assert!(said.stdout.contains(&unit) && said.stdout.contains("belongs to no announced app"), "{said:?}");
    }
    let host = text(&status["hosts"][0], "host");
    let said = shop.up.run(["why", &format!("host:{host}")]).expect(0);
    assert!(said.stdout.contains(&format!("workers of no announced app: {unit}")), "{said:?}");

    let drained = shop.up.run(["drain", &unit, "--timeout", "60s", "--output", "json"]).expect(0).json();
    assert_eq!(text(&drained["drains"][0], "standing"), "drained", "{drained:#}");
    assert!(!is_running(main));
    assert!(shop.supervisord.control(&["status", "shop"]).contains("STOPPED"));
    shop.up.run(["undrain", &format!("slot:{slot}")]).expect(0);
    let new = shop.main();
    assert_ne!(new, main);
    let said = shop.up.run(["why", &format!("slot:{slot}")]).expect(0);
    assert!(said.stdout.contains(&format!("celery:{new}")), "{said:?}");
    // Being drained left no trace: it takes part in a rollout as any other.
    shop.supervisord.wait_until_ready("shop", 2);
    shop.app.flip();
    let result = shop.broadcast(&[]);
    assert_eq!(result["outcome"], "converged", "{result:#}");
}

#[test]
fn what_was_decided_about_an_app_survives_a_kill_while_its_only_unit_is_down() {
    let Neighbours { supervisord, one, two, place } = &Neighbours::start();
    let second = supervisord.wait_for_pid("two");
    let up = Up::start(place);
    up.broadcast("one", &one.code, &[]).expect(0);
    // Its only unit goes, and so does the agent; the neighbour has the same modules.
    supervisord.control(&["stop", "one"]);
    up.process.signal(Signal::KILL);
    let mut up = up;
    up.process.wait(10);
    drop(up);
    one.flip();
    two.flip();
    let up = Up::start(place);
    up.run(["broadcast", "--app", "one", "--detach", &one.code.display().to_string()]).expect(0);
    let status = eventually(
        "the host has judged the new revision",
        40,
        || up.run(["status", "--output", "json"]).json(),
        |status| {
            let of_app = &status["hosts"][0]["apps"]["one"];
            of_app["revision"] == 2 && !of_app["waiting"].as_str().is_some_and(|why| why.contains("not "))
        },
    );
    let units = &status["hosts"][0]["apps"]["one"]["units"];
    assert_eq!((&units["stale"], &units["fresh"]), (&0.into(), &0.into()), "{status:#}");
    let neighbour = format!("celery:{second}");
    let others = array(&status["hosts"][0], "others");
    assert!(others.iter().any(|other| text(other, "unit") == neighbour), "it became the app's: {status:#}");
    assert_eq!(supervisord.wait_for_pid("two"), second);
}
