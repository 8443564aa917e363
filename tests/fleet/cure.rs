//! Cures: each kind under each supervisor is purged, drained, brought back and read again.

use crate::harness::app::{App, Place};
use crate::harness::postgres::Postgres;
use crate::harness::process::{Running, is_running};
use crate::harness::python::{newest, venv};
use crate::harness::systemd::{Instance, Systemd};
use crate::harness::unstale::{QUICK, Up, answer, array, inspect, verdicts};
use crate::harness::wait::eventually;
use crate::harness::workers::{Program, Supervisord, celery_command, gunicorn_command, start_alone, wait_for_web};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;

use super::{Neighbours, Shop, assert_all_fresh, wait_for_waiting};

#[test]
fn a_flipped_enum_is_purged_restarted_and_proven_while_a_task_in_flight_finishes_once() {
    // No configuration at all: what a first user has.
    let shop = Shop::start_with(&["autorestart=true"], "");
    let python = shop.python();
    shop.app.send(&python, "long");
    shop.app.wait_for_journal("start long", 20);
    let old = shop.main();
    shop.app.flip();

    let waiting = Running::start(
        shop.up.command(["broadcast", "--output", "json", "--app", "shop", "--timeout", "180s"]).arg(&shop.app.code),
        &shop.place.join("broadcast.log"),
    );
    // The worker drains: it takes nothing new, and goes on with what it has.
    eventually("the worker drains", 30, || shop.supervisord.log("shop"), |log| log.contains("Warm shutdown"));
    assert!(is_running(old));
    assert!(shop.app.journal("end long").is_empty());
    shop.app.open_door("long");
    let mut waiting = waiting;
    assert_eq!(waiting.wait(200), 0, "{}", waiting.log());

    assert_eq!(shop.app.journal("start long").len(), 1);
    assert_eq!(shop.app.journal("end long").len(), 1);
    assert!(shop.app.journal("end long")[0].ends_with("HUBSPOT"));
    shop.app.open_door("later");
    shop.app.send(&python, "later");
    assert!(shop.app.wait_for_journal("end later", 20).ends_with("hubspot"));
    assert_eq!(shop.app.journal("start later").len(), 1);
    assert!(!is_running(old));
    assert_ne!(shop.main(), old);
    assert_all_fresh(&shop.place);

    let result: Value = serde_json::Deserializer::from_str(&json_lines(&waiting.log()))
        .into_iter::<Value>()
        .filter_map(Result::ok)
        .last()
        .expect("the summary");
    assert_eq!(result["outcome"], "converged", "{result:#}");
    assert_eq!(result["revision"], 1);
    assert_eq!(result["units"]["restarted"], 1);
    assert_eq!(result["purged_files"], 1);
    let unit = &array(&result, "units_detail")[0];
    assert_eq!(unit["action"], "restarted", "{result:#}");
}

/// What of a mixed log begins with the first JSON object.
fn json_lines(log: &str) -> String {
    let mut lines = log.lines().skip_while(|line| !line.starts_with('{')).collect::<Vec<_>>().join("\n");
    lines.push('\n');
    lines
}

#[test]
fn a_second_broadcast_of_the_same_source_restarts_nothing() {
    let shop = Shop::start(&["autorestart=true"]);
    shop.app.flip();
    let first = shop.broadcast(&[]);
    assert_eq!(first["outcome"], "converged", "{first:#}");
    let main = shop.main();
    let second = shop.broadcast(&[]);
    assert_eq!(second["outcome"], "converged", "{second:#}");
    assert_eq!(second["revision"], first["revision"]);
    assert_eq!(second["units"]["restarted"], 0, "{second:#}");
    assert_eq!(second["purged_files"], 0, "{second:#}");
    // A touched but unchanged file is no evidence either.
    shop.app.touch("enums.py");
    shop.app.touch("models.py");
    let third = shop.broadcast(&[]);
    assert_eq!(third["outcome"], "converged", "{third:#}");
    assert_eq!(third["units"]["restarted"], 0, "{third:#}");
    assert_eq!(shop.main(), main);
}

#[test]
fn a_program_that_its_supervisor_does_not_bring_back_by_itself_is_started_again() {
    // supervisord's default: exit code 0 is expected, so the program would stay EXITED.
    let shop = Shop::start(&[]);
    let old = shop.main();
    shop.app.flip();
    let result = shop.broadcast(&[]);
    assert_eq!(result["outcome"], "converged", "{result:#}");
    assert_ne!(shop.main(), old);
    assert_all_fresh(&shop.place);
}

#[test]
fn a_worker_without_supervisor_is_brought_back_by_the_configured_start_command() {
    let place = Place::new();
    let venv = venv(&newest(), "worker");
    let app = App::new(&place, "shop");
    let command = celery_command(&venv, 1);
    let worker = start_alone(&place, &app, "worker", &command);
    worker.wait_for_log("ready.", 30);
    let script = place.join("start-worker");
    let log = place.join("again.log");
    app.script(&script, &format!("setsid {} >{} 2>&1 </dev/null &", command.join(" "), log.display()));
    let configuration =
        format!("{QUICK}[[units]]\nslot = \"celery/none/*\"\nstart = [{script:?}]\ndirectory = {:?}\n", app.code);
    let up = Up::start_with(&place, &configuration);
    app.flip();
    let said = up.broadcast("shop", &app.code, &[]).expect(0);
    assert_eq!(said.json()["units"]["restarted"], 1, "{said:?}");
    assert!(!is_running(worker.pid()));
    assert_all_fresh(&place);
}

#[test]
fn an_insert_that_an_old_binding_breaks_works_once_the_rollout_has_converged() {
    let place = Place::new();
    let venv = venv(&newest(), "worker");
    let python = venv.join("bin/python");
    let postgres = Postgres::start(&place);
    postgres.sql("CREATE TYPE crm_type AS ENUM ('hubspot', 'salesforce')");
    postgres.sql("CREATE TABLE connection (id serial PRIMARY KEY, crm_type crm_type)");
    let mut app = App::new(&place, "shop");
    app.database = postgres.sqlalchemy_url();
    app.edit("enums.py", "= \"HUBSPOT\"", "= \"hubspot\"");
    app.edit("enums.py", "SALESFORCE = \"SALESFORCE\"", "SALESFORCE = \"salesforce\"");
    app.edit("enums.py", "SFDC = \"SALESFORCE\"", "SFDC = \"salesforce\"");
    let programs = [Program::new("shop", &app, celery_command(&venv, 1)).with("autorestart=true")];
    let supervisord = Supervisord::start(&place, &venv, &programs);
    supervisord.wait_until_ready("shop", 1);
    app.send_task(&python, "insert", "before");
    let refused = app.wait_for_journal("refused before", 20);
    assert!(refused.contains("invalid input value for enum crm_type: \"HUBSPOT\""), "{refused}");

    let up = Up::start(&place);
    app.send_values();
    let said = up.broadcast("shop", &app.code, &["--database", &postgres.url()]).expect(0);
    assert_eq!(said.json()["units"]["restarted"], 1, "{said:?}");
    app.send_task(&python, "insert", "after");
    app.wait_for_journal("inserted after", 20);
    assert_eq!(postgres.sql("SELECT crm_type FROM connection"), "hubspot\n");
}

#[test]
fn gunicorn_without_preload_is_reloaded_in_place_and_with_preload_restarted_by_its_supervisor() {
    let place = Place::new();
    let venv = venv(&newest(), "worker");
    let (reloads, preloads) = (App::new(&place, "reloads"), App::new(&place, "preloads"));
    let sockets = [place.join("reloads.sock"), place.join("preloads.sock")];
    let programs = [
        Program::new("reloads", &reloads, gunicorn_command(&venv, &sockets[0], &[])),
        Program::new("preloads", &preloads, gunicorn_command(&venv, &sockets[1], &["--preload"])),
    ];
    let supervisord = Supervisord::start(&place, &venv, &programs);
    for socket in &sockets {
        assert_eq!(wait_for_web(socket).1, "HUBSPOT");
    }
    let masters = [supervisord.wait_for_pid("reloads"), supervisord.wait_for_pid("preloads")];
    let up = Up::start(&place);
    for (app, name) in [(&reloads, "reloads"), (&preloads, "preloads")] {
        app.flip();
        let result = up.broadcast(name, &app.code, &[]).json();
        assert_eq!(result["outcome"], "converged", "{name}: {result:#}");
        assert_eq!(result["units"]["restarted"], 1, "{name}: {result:#}");
    }
    for socket in &sockets {
        assert_eq!(wait_for_web(socket).1, "hubspot");
    }
    assert_eq!(supervisord.wait_for_pid("reloads"), masters[0], "HUP keeps the master");
    assert_ne!(supervisord.wait_for_pid("preloads"), masters[1], "a preloaded master holds the class itself");
    assert_all_fresh(&place);
}

#[test]
fn one_broadcast_touches_only_its_own_app_although_the_modules_have_the_same_names() {
    let Neighbours { supervisord, one, two, place } = &Neighbours::start();
    let (first, second) = (supervisord.wait_for_pid("one"), supervisord.wait_for_pid("two"));
    let up = Up::start(place);
    one.flip();
    two.flip();
    let result = up.broadcast("one", &one.code, &[]).json();
    assert_eq!(result["outcome"], "converged", "{result:#}");
    assert_eq!(array(&result, "units_detail").len(), 1, "{result:#}");
    assert_ne!(supervisord.wait_for_pid("one"), first);
    assert_eq!(supervisord.wait_for_pid("two"), second);
    let mut seen: Vec<String> = verdicts(&inspect(&two.code)).into_iter().map(|(_, verdict)| verdict).collect();
    seen.dedup();
    assert_eq!(seen, ["stale"]);
}

#[test]
fn a_link_swapped_under_a_running_worker_is_followed() {
    let place = Place::new();
    let venv = venv(&newest(), "worker");
    let old = App::new(&place, "releases/6");
    let new = App::new(&place, "releases/7");
    new.flip();
    let link = place.join("current");
    symlink(&old.code, &link).expect("a link");
    let app = old.at(link.clone());
    let supervisord = Supervisord::start(&place, &venv, &[Program::new("shop", &app, celery_command(&venv, 1))]);
    supervisord.wait_until_ready("shop", 1);
    let main = supervisord.wait_for_pid("shop");
    let up = Up::start(&place);

    // Announced before the host has the new files: the worker waits for its source, and nothing is stopped.
    up.run(["broadcast", "--app", "shop", "--detach", &new.code.display().to_string()]).expect(0);
    wait_for_waiting(&up);
    assert_eq!(supervisord.wait_for_pid("shop"), main);

    let next = place.join("next");
    symlink(&new.code, &next).expect("a link");
    fs::rename(&next, &link).expect("the swap");
    let result = up.broadcast("shop", &new.code, &[]).json();
    assert_eq!(result["outcome"], "converged", "{result:#}");
    assert_ne!(supervisord.wait_for_pid("shop"), main);
    assert_all_fresh(&place);
}

#[test]
fn source_that_arrives_after_the_broadcast_lets_waiting_units_go_on_by_themselves() {
    let shop = Shop::start(&["autorestart=true"]);
    let main = shop.main();
    // What the deploy machine has, and this host has not yet.
    let coming = App::new(&shop.place, "coming");
    coming.flip();
    shop.up.run(["broadcast", "--app", "shop", "--detach", &coming.code.display().to_string()]).expect(0);
    wait_for_waiting(&shop.up);
    assert_eq!(shop.main(), main);
    shop.app.flip();
    let place = &shop.place;
    eventually(
        "the unit is restarted",
        40,
        || verdicts(&inspect(&shop.app.code)),
        |seen| seen.len() == 3 && seen.iter().all(|(pid, verdict)| *pid != main && verdict == "fresh"),
    );
    assert!(!is_running(main));
    assert_all_fresh(place);
}

#[test]
fn a_stale_worker_that_is_still_starting_is_waited_for_instead_of_refused() {
    let shop = Shop::start(&["autorestart=true"]);
    // It has loaded its enums long before Celery installs its handlers.
    shop.app.edit(
        "tasks.py",
        "from shop.queue import app\n",
        "from shop.queue import app\nfrom shop import enums\nimport time\n\ntime.sleep(8)\n",
    );
    shop.supervisord.control(&["restart", "shop"]);
    let main = shop.main();
    eventually(
        "its enums are loaded",
        20,
        || verdicts(&inspect(&shop.app.code)),
        |seen| seen.iter().any(|(pid, verdict)| *pid == main && verdict == "fresh"),
    );
    shop.app.flip();
    let result = shop.broadcast(&[]);
    assert_eq!(result["outcome"], "converged", "{result:#}");
    assert_ne!(shop.main(), main);
    assert_all_fresh(&shop.place);
}

#[test]
fn systemd_brings_a_drained_celery_worker_back_as_pid_1_and_as_a_users_instance() {
    for (instance, restart) in
        [(Instance::System, "Restart=always"), (Instance::System, "Restart=no"), (Instance::User, "Restart=always")]
    {
        let place = Place::new();
        let venv = venv(&newest(), "worker");
        let app = App::new(&place, "shop");
        app.compile(&newest().path);
        let systemd = Systemd::start(&place, instance);
        let old = systemd.service("shop.service", &app, &celery_command(&venv, 2), &[restart]);
        systemd.wait_for_log("shop.service", "ready.", 1);
        let socket = place.join("up.sock");
        let mut command = systemd.unstale();
        command.arg("up").arg("--state-dir").arg(place.join("state")).arg("--socket").arg(&socket);
        command.arg("--root").arg(place.path());
        let _up = Running::start(&mut command, &place.join("up.log"));
        eventually("the control socket", 20, || socket.exists(), |there| *there);
        app.send(&venv.join("bin/python"), "long");
        app.wait_for_journal("start long", 20);
        app.flip();
        let mut command = systemd.unstale();
        command.args(["broadcast", "--output", "json", "--app", "shop", "--timeout", "180s"]);
        command.arg("--coordinator").arg(format!("unix:{}", socket.display())).arg(&app.code);
        let mut waiting = Running::start(&mut command, &place.join("broadcast.log"));
        eventually("the worker drains", 30, || systemd.log("shop.service"), |log| log.contains("Warm shutdown"));
        app.open_door("long");
        assert_eq!(waiting.wait(200), 0, "{instance:?} {restart}: {}", waiting.log());
        assert_ne!(systemd.main_pid("shop.service"), old);
        assert_eq!(app.journal("start long").len(), 1);
        assert_eq!(app.journal("end long").len(), 1, "{instance:?} {restart}");
        let mut command = systemd.unstale();
        command.args(["inspect", "--output", "json", "--root"]).arg(place.path());
        let seen = answer(command).json();
        assert!(verdicts(&seen).iter().all(|(_, verdict)| verdict == "fresh"), "{seen:#}");
        assert_eq!(array(&seen, "workers")[0]["supervisor"], json!({"kind": "systemd", "name": "shop.service"}));
    }
}
