//! The whole: coordinator, agent and real workers as processes; what a deploy hook would see.

use crate::harness::app::{App, Place};
use crate::harness::postgres::Postgres;
use crate::harness::process::{Running, children, is_running, stat};
use crate::harness::python::{newest, venv};
use crate::harness::systemd::{Instance, Systemd};
use crate::harness::unstale::{Up, answer, array, inspect, pid_of, text, verdicts};
use crate::harness::wait::eventually;
use crate::harness::workers::{
    Program, Redis, Supervisord, celery_command, gunicorn_command, start_alone, wait_for_children, wait_for_web,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

/// One app, its Celery worker under supervisord, and `unstale up` beside it.
struct Shop {
    place: Place,
    venv: PathBuf,
    app: App,
    supervisord: Supervisord,
    up: Up,
}

impl Shop {
    /// Starts all of it, with fresh bytecode, and waits until the worker takes tasks.
    fn start(options: &[&'static str]) -> Self {
        let place = Place::new();
        let venv = venv(&newest(), "worker");
        let app = App::new(&place, "shop");
        app.compile(&newest().path);
        let mut program = Program::new("shop", &app, celery_command(&venv, 2));
        for option in options {
            program = program.with(option);
        }
        let supervisord = Supervisord::start(&place, &venv, &[program]);
        supervisord.wait_for_log("shop", "ready.", 1);
        wait_for_children(supervisord.wait_for_pid("shop"), 2);
        let up = Up::start(&place);
        Self { place, venv, app, supervisord, up }
    }

    fn python(&self) -> PathBuf {
        self.venv.join("bin/python")
    }

    fn main(&self) -> u32 {
        self.supervisord.wait_for_pid("shop")
    }

    fn broadcast(&self, more: &[&str]) -> Value {
        let answer = self.up.broadcast("shop", &self.app.code, more);
        let json = answer.json();
        assert_eq!(text(&json, "schema"), "unstale.broadcast/1", "{answer:?}");
        json
    }
}

/// Asserts that every process of the place is fresh and that there is at least one.
#[track_caller]
fn assert_all_fresh(place: &Place) {
    let answer = inspect(&place.path());
    let seen = verdicts(&answer);
    assert!(!seen.is_empty() && seen.iter().all(|(_, verdict)| verdict == "fresh"), "{answer:#}");
}

#[test]
fn a_flipped_enum_is_purged_restarted_and_proven_while_a_task_in_flight_finishes_once() {
    let shop = Shop::start(&["autorestart=true"]);
    let python = shop.python();
    shop.app.send(&python, "long");
    shop.app.wait_for_journal("start long", 20);
    let old = shop.main();
    shop.app.flip();

    let waiting = Running::start(
        shop.up.command(["broadcast", "--output", "json", "--app", "shop", "--timeout", "60s"]).arg(&shop.app.code),
        &shop.place.join("broadcast.log"),
    );
    // The worker drains: it takes nothing new, and goes on with what it has.
    eventually("the worker drains", 30, || shop.supervisord.log("shop"), |log| log.contains("Warm shutdown"));
    shop.app.send(&python, "later");
    assert!(is_running(old));
    assert!(shop.app.journal("end long").is_empty());
    shop.app.open_door("long");
    shop.app.open_door("later");
    shop.app.wait_for_journal("end later", 60);
    let mut waiting = waiting;
    assert_eq!(waiting.wait(60), 0, "{}", waiting.log());

    assert_eq!(shop.app.journal("start long").len(), 1);
    assert_eq!(shop.app.journal("end long").len(), 1);
    assert!(shop.app.journal("end long")[0].ends_with("HUBSPOT"));
    assert!(shop.app.journal("end later")[0].ends_with("hubspot"));
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
fn a_worker_that_nothing_would_bring_back_is_left_alone_and_the_rollout_says_so() {
    let place = Place::new();
    let venv = venv(&newest(), "worker");
    let app = App::new(&place, "shop");
    let redis = Redis::start(&place);
    let app = App { broker: redis.url(), ..app };
    let worker = start_alone(&place, &app, "worker", &celery_command(&venv, 1));
    worker.wait_for_log("ready.", 30);
    let up = Up::start(&place);
    app.flip();
    let said = up.broadcast("shop", &app.code, &[]).expect(1);
    let result = said.json();
    assert_eq!(result["outcome"], "failed", "{result:#}");
    assert!(result.to_string().contains("cannot restart"), "{result:#}");
    assert!(is_running(worker.pid()));
    assert!(!worker.log().contains("shutdown"), "{}", worker.log());
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
    let place = Place::new();
    let venv = venv(&newest(), "worker");
    let (one, two) = (App::new(&place, "one"), App::new(&place, "two"));
    let supervisord = Supervisord::start(
        &place,
        &venv,
        &[Program::new("one", &one, celery_command(&venv, 1)), Program::new("two", &two, celery_command(&venv, 1))],
    );
    supervisord.wait_for_log("one", "ready.", 1);
    supervisord.wait_for_log("two", "ready.", 1);
    let (first, second) = (supervisord.wait_for_pid("one"), supervisord.wait_for_pid("two"));
    let up = Up::start(&place);
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
fn code_that_fails_at_import_halts_the_rollout_and_leaves_the_next_unit_running() {
    let place = Place::new();
    let venv = venv(&newest(), "worker");
    let app = App::new(&place, "shop");
    let command = celery_command(&venv, 1);
    let supervisord = Supervisord::start(
        &place,
        &venv,
        // One group per program, one pool by configuration: the budget of two units is one.
        &[Program::new("first", &app, command.clone()), Program::new("second", &app, command)],
    );
    let old: Vec<u32> = ["first", "second"].iter().map(|name| supervisord.wait_for_pid(name)).collect();
    for name in ["first", "second"] {
        supervisord.wait_for_log(name, "ready.", 1);
    }
    let config = place.join("unstale.toml");
    fs::write(&config, "[pools.shop]\nslots = [\"celery/supervisord:*\"]\n").expect("a configuration");
    let up = Up::start(&place);
    app.flip();
    app.edit(
        "tasks.py",
        "from shop.queue import app\n",
        "from shop.queue import app\n\nraise RuntimeError('new code')\n",
    );
    let said = up.broadcast("shop", &app.code, &["--canary", "1"]).expect(4);
    let result = said.json();
    assert_eq!(result["outcome"], "halted", "{result:#}");
    assert_eq!(result["units"]["failed"], 1, "{result:#}");
    let left: Vec<bool> = old.iter().map(|pid| is_running(*pid)).collect();
    assert_eq!(left.iter().filter(|running| **running).count(), 1, "{left:?}");
}

#[test]
fn a_syntax_error_in_any_loaded_module_restarts_nothing_and_is_named() {
    let shop = Shop::start(&["autorestart=true"]);
    let old = shop.main();
    shop.app.flip();
    shop.app.edit("journal.py", "def note(", "def note((");
    let said = shop.up.broadcast("shop", &shop.app.code, &["--timeout", "20s"]);
    assert_ne!(said.code, 0, "{said:?}");
    assert!(format!("{}{}", said.stdout, said.stderr).contains("journal.py"), "{said:?}");
    assert_eq!(shop.main(), old);
}

#[test]
fn a_worker_that_dies_again_and_again_after_its_restart_is_noticed() {
    let shop = Shop::start(&["autorestart=true", "startretries=100"]);
    shop.app.flip();
    // Imports well, is up for a moment, and ends: `done` for a supervisor, not for us.
    shop.app.edit(
        "tasks.py",
        "from shop.queue import app\n",
        "from shop.queue import app\n\nimport threading\n\nthreading.Timer(3, os._exit, [1]).start()\n",
    );
    let said = shop.up.broadcast("shop", &shop.app.code, &[]).expect(4);
    let result = said.json();
    assert_eq!(result["outcome"], "halted", "{result:#}");
    assert_eq!(result["units"]["failed"], 1, "{result:#}");
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
    supervisord.wait_for_log("shop", "ready.", 1);
    let main = supervisord.wait_for_pid("shop");
    let up = Up::start(&place);

    // Announced before the host has the new files: the worker waits for its source, and nothing is stopped.
    let said = up.broadcast("shop", &new.code, &["--timeout", "3s"]).expect(3);
    assert_eq!(said.json()["outcome"], "timeout", "{said:?}");
    assert_eq!(said.json()["units"]["waiting"], 1, "{said:?}");
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
    let said = shop.up.broadcast("shop", &coming.code, &["--timeout", "3s"]).expect(3);
    assert_eq!(said.json()["outcome"], "timeout", "{said:?}");
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
fn a_drained_unit_stays_out_of_work_across_a_kill_until_it_is_given_back() {
    let mut shop = Shop::start(&["autorestart=true"]);
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
fn labels_that_the_database_lacks_are_refused_and_force_goes_on() {
    let shop = Shop::start(&["autorestart=true"]);
    let postgres = Postgres::start(&shop.place);
    postgres.sql("CREATE TYPE crm_type AS ENUM ('hubspot', 'salesforce')");
    shop.app.flip();
    shop.app.send_values();
    let url = postgres.url();
    let said = shop.up.broadcast("shop", &shop.app.code, &["--database", &url]).expect(1);
    assert_eq!(said.json()["outcome"], "refused", "{said:?}");
    assert!(format!("{}{}", said.stdout, said.stderr).contains("SALESFORCE"), "{said:?}");
    let said = shop.up.broadcast("shop", &shop.app.code, &["--database", &url, "--force"]).expect(0);
    assert_eq!(said.json()["outcome"], "converged", "{said:?}");
    postgres.sql("ALTER TYPE crm_type ADD VALUE 'SALESFORCE'");
    let said = shop.up.broadcast("shop", &shop.app.code, &["--database", &url]).expect(0);
    assert_eq!(said.json()["units"]["restarted"], 0, "{said:?}");
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
        command.args(["broadcast", "--output", "json", "--app", "shop", "--timeout", "60s"]);
        command.arg("--coordinator").arg(format!("unix:{}", socket.display())).arg(&app.code);
        let mut waiting = Running::start(&mut command, &place.join("broadcast.log"));
        eventually("the worker drains", 30, || systemd.log("shop.service"), |log| log.contains("Warm shutdown"));
        app.open_door("long");
        assert_eq!(waiting.wait(90), 0, "{instance:?} {restart}: {}", waiting.log());
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

#[test]
fn an_app_that_claims_a_name_it_may_not_is_listed_and_has_no_effect() {
    assert!(rustix::process::geteuid().is_root(), "this test runs a worker as another user: run tests/run");
    let place = Place::new();
    let app = App::new(&place, "shop");
    let stranger = App::new(&place, "stranger");
    app.compile(&newest().path);
    let copied = place.join("stranger/data");
    let command = vec![
        "/usr/bin/setpriv".to_owned(),
        "--reuid=nobody".to_owned(),
        "--regid=nogroup".to_owned(),
        "--clear-groups".to_owned(),
        "--".to_owned(),
        "/usr/bin/env".to_owned(),
        "UNSTALE_APP=shop".to_owned(),
        "/usr/bin/python3".to_owned(),
        "-m".to_owned(),
        "shop.plain".to_owned(),
    ];
    std::os::unix::fs::chown(&copied, Some(65534), Some(65534)).expect("its owner");
    let worker = start_alone(&place, &stranger, "stranger", &command);
    stranger.wait_for_journal("plain", 20);
    let up = Up::start(&place);
    app.flip();
    let said = up.broadcast("shop", &app.code, &[]).expect(3);
    assert_eq!(said.json()["outcome"], "incomplete", "no worker of the app: {said:?}");
    assert!(is_running(worker.pid()));
    let why = up.run(["why", &format!("pid:{}", worker.pid())]);
    assert!(why.stdout.contains("claims shop"), "{why:?}");
}

#[test]
fn a_dry_run_decides_everything_and_does_nothing() {
    let shop = Shop::start(&["autorestart=true"]);
    let main = shop.main();
    let start = stat(main);
    shop.app.flip();
    let said = shop.up.broadcast("shop", &shop.app.code, &["--dry-run"]);
    assert!(format!("{}{}", said.stdout, said.stderr).contains("celery"), "{said:?}");
    assert_eq!((shop.main(), stat(main)), (main, start));
    assert!(shop.app.bytecode("enums", newest().minor()).exists());
    assert_eq!(children(main).len(), 2);
}

#[test]
fn why_tells_what_is_known_about_one_worker() {
    let shop = Shop::start(&["autorestart=true"]);
    shop.app.flip();
    let main = shop.main();
    let said = shop.up.run(["why", &format!("pid:{main}")]);
    assert!(said.stdout.contains("CrmType") && said.stdout.contains("hubspot"), "{said:?}");
    let inspected = inspect(&shop.app.code);
    assert!(array(&inspected, "workers").iter().any(|worker| pid_of(worker) == main));
}
