//! The harness itself: each piece that the other layers stand on works on its own.

use crate::harness::app::{App, Place};
use crate::harness::postgres::Postgres;
use crate::harness::process::{children, is_running, tree};
use crate::harness::python::{newest, run, venv};
use crate::harness::systemd::{Instance, Systemd};
use crate::harness::wait::eventually;
use crate::harness::workers::{
    Program, Redis, Supervisord, ask, celery_command, gunicorn_command, start_alone, wait_for_children, wait_for_web,
};
use std::fs;
use std::path::Path;

#[test]
fn a_flip_leaves_bytecode_that_the_interpreter_still_believes() {
    let place = Place::new();
    let app = App::new(&place, "shop");
    let python = newest();
    app.compile(&python.path);
    assert!(app.bytecode("enums", python.minor()).exists());
    app.flip();
    let mut command = app.command(&python.path);
    command.args(["-c", "from shop.enums import CrmType; print(CrmType.HUBSPOT.value)"]);
    assert_eq!(run(command), "HUBSPOT\n");
}

#[test]
fn a_celery_worker_under_supervisord_runs_a_task_and_leaves_nothing_behind() {
    let place = Place::new();
    let venv = venv(&newest(), "worker");
    let app = App::new(&place, "shop");
    let command = celery_command(&venv, 2);
    let supervisord = Supervisord::start(&place, &venv, &[Program::new("shop", &app, command)]);
    let main = supervisord.wait_for_pid("shop");
    supervisord.wait_until_ready("shop", 1);
    assert_eq!(wait_for_children(main, 2).len(), 2);
    app.send(&venv.join("bin/python"), "one");
    app.wait_for_journal("start one", 20);
    assert!(app.journal("end one").is_empty());
    app.open_door("one");
    assert!(app.wait_for_journal("end one", 20).ends_with("HUBSPOT"));
    let all = tree(supervisord.pid());
    assert!(all.len() >= 4, "{all:?}");
    drop(supervisord);
    eventually("everything ends", 5, || all.iter().copied().filter(|pid| is_running(*pid)).count(), |left| *left == 0);
}

#[test]
fn a_celery_worker_takes_tasks_from_redis() {
    let place = Place::new();
    let venv = venv(&newest(), "worker");
    let redis = Redis::start(&place);
    let mut app = App::new(&place, "shop");
    app.broker = redis.url();
    let worker = start_alone(&place, &app, "worker", &celery_command(&venv, 1));
    worker.wait_for_log("ready.", 30);
    app.send(&venv.join("bin/python"), "one");
    app.open_door("one");
    app.wait_for_journal("end one", 20);
}

#[test]
fn gunicorn_answers_with_the_value_it_holds() {
    let place = Place::new();
    let venv = venv(&newest(), "worker");
    let app = App::new(&place, "shop");
    let socket = place.join("web.sock");
    let master = start_alone(&place, &app, "web", &gunicorn_command(&venv, &socket, &[]));
    let (pid, value) = wait_for_web(&socket);
    assert_eq!(value, "HUBSPOT");
    assert!(children(master.pid()).contains(&pid));
    drop(master);
    assert!(ask(&socket).is_err());
}

#[test]
fn postgresql_takes_statements() {
    let place = Place::new();
    let postgres = Postgres::start(&place);
    postgres.sql("CREATE TYPE crm_type AS ENUM ('HUBSPOT', 'SALESFORCE')");
    assert_eq!(postgres.sql("SELECT enum_range(NULL::crm_type)"), "{HUBSPOT,SALESFORCE}\n");
}

#[test]
fn systemd_runs_a_worker_as_pid_1_and_as_a_users_instance() {
    for (instance, cgroup) in [
        (Instance::System, "/system.slice/shop.service"),
        (Instance::User, "/user.slice/user-0.slice/user@0.service/app.slice/shop.service"),
    ] {
        let place = Place::new();
        let systemd = Systemd::start(&place, instance);
        let app = App::new(&place, "shop");
        let command = [newest().path.display().to_string(), "-m".to_owned(), "shop.plain".to_owned()];
        let pid = systemd.service("shop.service", &app, &command, &["Restart=always"]);
        app.wait_for_journal("plain", 20);
        let mut command = systemd.command(Path::new("cat"));
        command.arg(format!("/proc/{pid}/cgroup"));
        let seen = run(command);
        assert!(seen.lines().any(|line| line.starts_with("0::") && line.ends_with(cgroup)), "{instance:?}: {seen}");
        let made = fs::read_to_string(place.join("cgroup")).expect("its cgroup");
        drop(systemd);
        assert!(!Path::new(made.trim_end()).exists());
    }
}
