//! The operator's hand: drain and undrain, pause, resume and abort, a kill in the middle, and questions.

use crate::harness::app::{App, Place};
use crate::harness::process::is_running;
use crate::harness::python::{newest, venv};
use crate::harness::unstale::{QUICK, Up, array, inspect, pid_of, text, verdicts};
use crate::harness::wait::eventually;
use crate::harness::workers::{celery_command, start_alone};
use rustix::process::Signal;
use serde_json::Value;

use super::{Shop, assert_all_fresh, wait_for_waiting};

#[test]
fn a_drained_unit_stays_out_of_work_across_a_kill_until_it_is_given_back() {
    let mut shop = Shop::start(&["autorestart=true"]);
    // Units are those of announced apps; this announcement finds all of it fresh.
    shop.broadcast(&[]);
    let main = shop.main();
    let pid = main.to_string();
    shop.up.run(["drain", &format!("pid:{pid}"), "--timeout", "40s"]).expect(0);
    assert!(!is_running(main));
    assert!(shop.supervisord.control(&["status", "shop"]).contains("STOPPED"));
    shop.up.process.signal(Signal::KILL);
    shop.up.process.wait(10);
    drop(shop.up);
    shop.up = Up::start(&shop.place);
    let status = shop.up.run(["status", "--output", "json"]);
    assert!(status.stdout.contains("supervisord"), "the drain is remembered: {status:?}");
    assert!(shop.supervisord.control(&["status", "shop"]).contains("STOPPED"));
    let slot = slot_in(&status.json()).unwrap_or_else(|| panic!("no slot in {status:?}"));
    shop.up.run(["undrain", &format!("slot:{slot}")]).expect(0);
    assert_ne!(shop.main(), main);
}

#[test]
fn a_drain_of_one_of_two_equal_workers_falls_on_no_other_when_the_agent_is_restarted() {
    let place = Place::new();
    let app = App::new(&place, "shop");
    let command = celery_command(&venv(&newest(), "worker"), 1);
    let [first, second] = ["first", "second"].map(|name| {
        let worker = start_alone(&place, &app, name, &command);
        worker.wait_for_log("ready.", 30);
        worker
    });
    let script = place.join("start-worker");
    app.script(&script, &format!("setsid {} >{} 2>&1 </dev/null &", command.join(" "), place.join("again").display()));
    let configuration =
        format!("{QUICK}[[units]]\nslot = \"celery/none/*\"\nstart = [{script:?}]\ndirectory = {:?}\n", app.code);
    let unit = format!("celery:{}", second.pid());
    // The slot of the second one, once the agent has looked at the host.
    let slot = |up: &Up| {
        let status = eventually(
            "the host was looked at",
            20,
            || up.run(["status", "--output", "json"]).json(),
            |status| status["hosts"][0]["scanned"] == true,
        );
        let other = array(&status["hosts"][0], "others").iter().find(|other| text(other, "unit") == unit);
        text(other.unwrap_or_else(|| panic!("not a unit like any other: {status:#}")), "slot")
    };
    let mut up = Up::start_with(&place, &configuration);
    let named = slot(&up);
    up.run(["drain", &format!("pid:{}", first.pid()), "--timeout", "60s"]).expect(0);
    assert!(!is_running(first.pid()));
    up.process.signal(Signal::KILL);
    up.process.wait(10);
    drop(up);
    let up = Up::start_with(&place, &configuration);
    assert_eq!(slot(&up), named);
    let drained = format!("slot:{}1", named.strip_suffix('2').expect("the second of two"));
    up.run(["undrain", &drained]).expect(0);
    assert_eq!(slot(&up), named);
    assert!(is_running(second.pid()) && !second.log().contains("shutdown"), "{}", second.log());
}

#[test]
fn a_worker_that_a_rollout_has_just_started_can_be_drained() {
    let shop = Shop::start(&["autorestart=true"]);
    shop.app.flip();
    let result = shop.broadcast(&[]);
    assert_eq!(result["units"]["restarted"], 1, "{result:#}");
    // Its first sight was before it had installed its handlers; what it catches now counts.
    let main = shop.main();
    shop.up.run(["drain", &format!("pid:{main}"), "--timeout", "60s"]).expect(0);
    assert!(!is_running(main));
    shop.up.run(["undrain", "app:shop"]).expect(0);
    assert_ne!(shop.main(), main);
}

/// The first slot of supervisord that an answer names anywhere.
fn slot_in(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if text.starts_with("celery/supervisord:") => Some(text.clone()),
        Value::Array(values) => values.iter().find_map(slot_in),
        Value::Object(fields) => fields.values().find_map(slot_in),
        _ => None,
    }
}

#[test]
fn a_kill_in_the_middle_of_a_rollout_repeats_nothing_and_the_rollout_goes_on() {
    let mut shop = Shop::start(&["autorestart=true"]);
    let python = shop.python();
    shop.app.send(&python, "long");
    shop.app.wait_for_journal("start long", 20);
    let old = shop.main();
    shop.app.flip();
    shop.up.run(["broadcast", "--app", "shop", "--detach", &shop.app.code.display().to_string()]).expect(0);
    eventually("the worker drains", 30, || shop.supervisord.log("shop"), |log| log.contains("Warm shutdown"));
    shop.up.process.signal(Signal::KILL);
    shop.up.process.wait(10);
    drop(shop.up);
    shop.up = Up::start(&shop.place);
    shop.app.open_door("long");
    let result = shop.broadcast(&[]);
    assert_eq!(result["outcome"], "converged", "{result:#}");
    assert_eq!(result["revision"], 1, "{result:#}");
    assert!(!is_running(old));
    // Two starts in all: the first, and one restart.
    assert_eq!(shop.supervisord.log("shop").matches("ready.").count(), 2);
    assert_eq!(shop.app.journal("start long").len(), 1);
    assert_eq!(shop.app.journal("end long").len(), 1);
    assert_all_fresh(&shop.place);
}

#[test]
fn a_paused_rollout_restarts_nothing_until_it_is_resumed_and_an_aborted_one_never() {
    let shop = Shop::start(&["autorestart=true"]);
    let old = shop.main();
    let coming = App::new(&shop.place, "coming");
    coming.flip();
    shop.up.run(["broadcast", "--app", "shop", "--detach", &coming.code.display().to_string()]).expect(0);
    shop.up.run(["pause", "shop"]).expect(0);
    shop.app.flip();
    eventually(
        "the source is seen",
        20,
        || inspect(&shop.app.code),
        |seen| verdicts(seen).iter().all(|(_, verdict)| verdict == "stale"),
    );
    assert_eq!(shop.main(), old);
    shop.up.run(["resume", "shop"]).expect(0);
    eventually("the unit is restarted", 40, || is_running(old), |running| !running);
    let again = App::new(&shop.place, "again");
    shop.up.run(["broadcast", "--app", "shop", "--detach", &again.code.display().to_string()]).expect(0);
    shop.up.run(["abort", "shop"]).expect(0);
    let status = shop.up.run(["status", "shop", "--output", "json"]);
    assert!(status.stdout.contains("abort"), "{status:?}");
}

#[test]
fn why_tells_what_is_known_about_one_worker() {
    let shop = Shop::start(&["autorestart=true"]);
    let coming = App::new(&shop.place, "coming");
    coming.flip();
    shop.up.run(["broadcast", "--app", "shop", "--detach", &coming.code.display().to_string()]).expect(0);
    wait_for_waiting(&shop.up);
    let main = shop.main();
    let said = shop.up.run(["why", &format!("pid:{main}")]);
    assert!(said.stdout.contains("CrmType") && said.stdout.contains("waiting for source"), "{said:?}");
    let inspected = inspect(&shop.app.code);
    assert!(array(&inspected, "workers").iter().any(|worker| pid_of(worker) == main));
}
