//! `--local`: this host's own hands, without a coordinator.

use crate::harness::app::{App, Place};
use crate::harness::process::{Running, is_running};
use crate::harness::python::{newest, venv};
use crate::harness::unstale::{Answer, QUICK, Up, answer, program, text};
use crate::harness::wait::eventually;
use crate::harness::workers::{Program, Supervisord, celery_command, wait_for_children};
use rustix::process::Signal;
use std::fs;
use std::process::Command;

use super::Unkept;

/// An app under supervisord, and no `unstale up`.
struct Alone {
    supervisord: Supervisord,
    app: App,
    place: Place,
}

impl Alone {
    fn start() -> Self {
        let place = Place::new();
        let venv = venv(&newest(), "worker");
        let app = App::new(&place, "shop");
        app.compile(&newest().path);
        let program = Program::new("shop", &app, celery_command(&venv, 1)).with("autorestart=true");
        let supervisord = Supervisord::start(&place, &venv, &[program]);
        supervisord.wait_until_ready("shop", 1);
        wait_for_children(supervisord.wait_for_pid("shop"), 1);
        Self { supervisord, app, place }
    }
}

/// A command with `--local`, whose state and configuration lie in the place.
fn local(place: &Place, arguments: &[&str]) -> Command {
    let config = place.join("local.toml");
    fs::write(&config, format!("{QUICK}roots = [{:?}]\n", place.path())).expect("a configuration file");
    let mut command = program();
    command.args(arguments).arg("--local").arg("--config").arg(&config);
    if !arguments.contains(&"why") {
        command.arg("--state-dir").arg(place.join("state"));
    }
    command.env("UNSTALE_COORDINATOR", format!("unix:{}", place.join("nobody.sock").display()));
    command
}

fn run(place: &Place, arguments: &[&str]) -> Answer {
    answer(local(place, arguments))
}

#[test]
fn without_a_coordinator_a_unit_is_drained_explained_and_given_back_by_this_hosts_own_hands() {
    let alone = Alone::start();
    let main = alone.supervisord.wait_for_pid("shop");
    let unit = format!("celery:{main}");
    // A stale worker beside it would be no reason to restart anything.
    alone.app.flip();
    let why = run(&alone.place, &["why", &unit, "--output", "json"]).expect(0).json();
    let finding = &why["findings"][0];
    assert_eq!((text(finding, "verdict"), text(finding, "unit")), ("stale".to_owned(), unit.clone()), "{why:#}");
    assert!(finding["evidence"].to_string().contains("TERM to the main process"), "{why:#}");
    assert!(finding["evidence"].to_string().contains("CrmType"), "{why:#}");
    let slot = text(finding, "slot");

    let drained = run(&alone.place, &["drain", &unit, "--output", "json"]).expect(0).json();
    assert_eq!(text(&drained["drains"][0], "standing"), "drained", "{drained:#}");
    assert!(!is_running(main));
    assert!(alone.supervisord.control(&["status", "shop"]).contains("STOPPED"));
    assert!(alone.app.bytecode("enums", newest().minor()).exists(), "a drain removes nothing");

    // A coordinator that is started later knows of it, holds the directory, and is asked instead.
    let up = Up::start(&alone.place);
    let status = up.run(["status", "--output", "json"]).json();
    assert_eq!(text(&status["drains"][0], "slot"), slot, "{status:#}");
    let refused = run(&alone.place, &["undrain", &format!("slot:{slot}")]).expect(2);
    assert!(refused.stderr.contains("in use by process"), "{refused:?}");
    drop(up);

    let back = run(&alone.place, &["undrain", &format!("slot:{slot}"), "--output", "json"]).expect(0).json();
    assert_eq!(text(&back["drains"][0], "standing"), "returned", "{back:#}");
    assert!(is_running(alone.supervisord.wait_for_pid("shop")));
    let again = run(&alone.place, &["undrain", &format!("slot:{slot}")]).expect(2);
    assert!(again.stderr.contains("no drained unit matches"), "{again:?}");
}

#[test]
fn a_local_drain_that_is_killed_is_finished_by_the_next_and_the_task_in_hand_ends_once() {
    let alone = Alone::start();
    let venv = venv(&newest(), "worker");
    let main = alone.supervisord.wait_for_pid("shop");
    alone.app.send(&venv.join("bin/python"), "long");
    alone.app.wait_for_journal("start long", 20);
    let unit = format!("celery:{main}");
    let mut draining = Running::start(&mut local(&alone.place, &["drain", &unit]), &alone.place.join("drain.log"));
    eventually("the worker drains", 30, || alone.supervisord.log("shop"), |log| log.contains("Warm shutdown"));
    draining.signal(Signal::KILL);
    draining.wait(10);
    let mut again = Running::start(&mut local(&alone.place, &["drain", &unit]), &alone.place.join("again.log"));
    alone.app.open_door("long");
    assert_eq!(again.wait(60), 0, "{}", again.log());
    assert!(alone.supervisord.control(&["status", "shop"]).contains("STOPPED"));
    assert_eq!(alone.app.journal("start long").len(), 1);
    assert_eq!(alone.app.journal("end long").len(), 1);
}

#[test]
fn with_a_coordinator_local_goes_through_it() {
    let alone = Alone::start();
    let main = alone.supervisord.wait_for_pid("shop");
    let up = Up::start(&alone.place);
    let unit = format!("celery:{main}");
    eventually(
        "the host was looked at",
        20,
        || up.run(["status", "--output", "json"]).json(),
        |status| status["hosts"][0]["scanned"] == true,
    );
    let mut command = local(&alone.place, &["drain", &unit]);
    command.env("UNSTALE_COORDINATOR", format!("unix:{}", up.socket.display()));
    answer(command).expect(0);
    let status = up.run(["status", "--output", "json"]).json();
    assert_eq!(text(&status["drains"][0], "standing"), "drained", "{status:#}");
    assert!(!is_running(main));
}

#[test]
fn a_local_drain_refuses_what_it_could_not_give_back() {
    let Unkept { worker, place, .. } = &Unkept::start();
    let said = run(place, &["drain", &format!("celery:{}", worker.pid())]).expect(1);
    assert!(said.stdout.contains("cannot be given back"), "{said:?}");
    assert!(is_running(worker.pid()));
    let said = run(place, &["undrain", "app:shop", "host:x", &format!("celery:{}", worker.pid())]).expect(2);
    assert!(said.stderr.contains("no drained unit matches"), "nothing of it stays asked for: {said:?}");
    let said = run(place, &["drain", "unit:celery:1"]).expect(2);
    assert!(said.stderr.contains("no unit matches"), "{said:?}");
}
