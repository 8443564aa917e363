//! Celery workers of one process: their task is in the very process that is told to end.

use crate::harness::app::{App, Place};
use crate::harness::process::{Running, is_running};
use crate::harness::python::{Interpreter, interpreters, newest, venv};
use crate::harness::unstale::{QUICK, Up, array, inspect, verdicts};
use crate::harness::wait::eventually;
use crate::harness::workers::{Program, Redis, Supervisord, celery_command};
use std::path::Path;

use super::assert_all_fresh;

/// One such worker under supervisord with a task in hand, and `unstale up` beside it.
struct Busy {
    up: Up,
    supervisord: Supervisord,
    app: App,
    _redis: Redis,
    place: Place,
    main: u32,
}

impl Busy {
    fn start(python: &Interpreter, venv: &Path, pool: &str) -> Self {
        let place = Place::new();
        // Between two tasks a worker waits for a server's word; over files it looks, and is never seen to be idle.
        let redis = Redis::start(&place);
        let app = App { broker: redis.url(), ..App::new(&place, "shop") };
        app.compile(&venv.join("bin/python"));
        let mut command = celery_command(venv, 1);
        command.push(format!("--pool={pool}"));
        let program = Program::new("shop", &app, command).with("autorestart=true").with("stopwaitsecs=60");
        let supervisord = Supervisord::start(&place, venv, &[program]);
        supervisord.wait_until_ready("shop", 1);
        let main = supervisord.wait_for_pid("shop");
        let up = Up::start_with(&place, QUICK);
        app.send(&venv.join("bin/python"), "long");
        app.wait_for_journal("start long", 20);
        let seen = inspect(&app.code);
        assert_eq!(array(&seen, "workers").len(), 1, "{pool} on {}: {seen:#}", python.release);
        Self { up, supervisord, app, _redis: redis, place, main }
    }

    fn broadcast(&self) -> Running {
        let mut command = self.up.command(["broadcast", "--app", "shop", "--timeout", "180s"]);
        Running::start(command.arg(&self.app.code), &self.place.join("broadcast.log"))
    }

    /// Expects that the task ended once, and that a fresh worker has come.
    fn is_cured(&self) {
        assert_eq!(self.app.journal("start long").len(), 1);
        assert_eq!(self.app.journal("end long").len(), 1);
        assert!(!is_running(self.main));
        assert_ne!(self.supervisord.wait_for_pid("shop"), self.main);
        assert_all_fresh(&self.place);
    }
}

#[test]
fn a_task_in_the_only_process_of_its_worker_ends_once() {
    for pool in ["solo", "threads"] {
        let python = newest();
        let busy = Busy::start(&python, &venv(&python, "worker"), pool);
        busy.app.flip();
        let mut waiting = busy.broadcast();
        eventually("it drains", 30, || busy.supervisord.log("shop"), |log| log.contains("Warm shutdown"));
        assert!(busy.app.journal("end long").is_empty(), "{pool}");
        busy.app.open_door("long");
        assert_eq!(waiting.wait(200), 0, "{}", waiting.log());
        busy.is_cured();
    }
}

#[test]
fn a_solo_worker_that_would_abort_its_task_is_told_to_end_once_it_is_idle() {
    // Celery 5.2 runs on no newer Python.
    let Some(python) = interpreters().into_iter().rfind(|python| python.minor() <= 11) else {
        println!("no CPython up to 3.11 here: Celery 5.2 cannot be run");
        return;
    };
    let busy = Busy::start(&python, &venv(&python, "celery52"), "solo");
    busy.app.flip();
    let mut refused = busy.broadcast();
    assert_eq!(refused.wait(200), 1, "{}", refused.log());
    let why = "a solo worker of Celery 5.2.7 aborts the task in hand on TERM, and this one is busy";
    assert!(refused.log().contains(why), "{}", refused.log());
    assert!(!busy.supervisord.log("shop").contains("shutdown"));
    assert!(is_running(busy.main));
    busy.app.open_door("long");
    // Nobody has to ask again.
    eventually(
        "it is replaced",
        90,
        || verdicts(&inspect(&busy.app.code)),
        |seen| seen.iter().any(|(pid, verdict)| *pid != busy.main && verdict == "fresh"),
    );
    busy.is_cured();
}
