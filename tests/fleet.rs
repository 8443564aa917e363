//! The whole: coordinator, agent and real workers as processes; what a deploy hook would see.

mod ask;
mod cure;
mod demo;
mod disks;
mod drains;
mod faults;
mod fleets;
mod forgotten;
mod hand;
mod hold;
mod hosts;
mod local;
mod network;
mod noise;
mod paused;
mod phases;
mod pools;
mod shipped;
mod silent;
mod ten;
mod wrong;

use crate::harness::app::{App, Place};
use crate::harness::process::Running;
use crate::harness::python::{newest, venv};
use crate::harness::unstale::{QUICK, Up, inspect, text, verdicts};
use crate::harness::wait::eventually;
use crate::harness::workers::{Program, Redis, Supervisord, celery_command, start_alone, wait_for_children};
use serde_json::Value;
use std::path::PathBuf;

/// One app, its Celery worker under supervisord, and `unstale up` beside it.
struct Shop {
    up: Up,
    supervisord: Supervisord,
    app: App,
    venv: PathBuf,
    place: Place,
}

impl Shop {
    /// Starts all of it, with fresh bytecode, and waits until the worker takes tasks.
    fn start(options: &[&'static str]) -> Self {
        Self::start_with(options, QUICK)
    }

    /// The same with another configuration of `unstale up`.
    fn start_with(options: &[&'static str], configuration: &str) -> Self {
        let place = Place::new();
        let venv = venv(&newest(), "worker");
        let app = App::new(&place, "shop");
        app.compile(&newest().path);
        let mut program = Program::new("shop", &app, celery_command(&venv, 2));
        for option in options {
            program = program.with(option);
        }
        let supervisord = Supervisord::start(&place, &venv, &[program]);
        supervisord.wait_until_ready("shop", 1);
        wait_for_children(supervisord.wait_for_pid("shop"), 2);
        let up = Up::start_with(&place, configuration);
        Self { up, supervisord, app, venv, place }
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

/// A Celery worker on Redis that nothing would bring back.
struct Unkept {
    worker: Running,
    app: App,
    _redis: Redis,
    place: Place,
}

impl Unkept {
    /// Starts it, and waits until it takes tasks.
    fn start() -> Self {
        let place = Place::new();
        let redis = Redis::start(&place);
        let app = App { broker: redis.url(), ..App::new(&place, "shop") };
        let worker = start_alone(&place, &app, "worker", &celery_command(&venv(&newest(), "worker"), 1));
        worker.wait_for_log("ready.", 30);
        Self { worker, app, _redis: redis, place }
    }
}

/// Two apps whose modules have the same names, a Celery worker of each under one supervisord.
struct Neighbours {
    supervisord: Supervisord,
    one: App,
    two: App,
    place: Place,
}

impl Neighbours {
    /// Starts both, and waits until they take tasks.
    fn start() -> Self {
        let place = Place::new();
        let venv = venv(&newest(), "worker");
        let (one, two) = (App::new(&place, "one"), App::new(&place, "two"));
        let programs = [("one", &one), ("two", &two)]
            .map(|(name, app)| Program::new(name, app, celery_command(&venv, 1)).with("autorestart=true"));
        let supervisord = Supervisord::start(&place, &venv, &programs);
        supervisord.wait_until_ready("one", 1);
        supervisord.wait_until_ready("two", 1);
        Self { supervisord, one, two, place }
    }
}

/// Asserts that every process of the place is fresh and that there is at least one.
#[track_caller]
fn assert_all_fresh(place: &Place) {
    let answer = inspect(&place.path());
    let seen = verdicts(&answer);
    assert!(!seen.is_empty() && seen.iter().all(|(_, verdict)| verdict == "fresh"), "{answer:#}");
}

/// Waits until one unit of the app waits for its source.
fn wait_for_waiting(up: &Up) {
    eventually(
        "one unit waits for its source",
        40,
        || up.run(["status", "--output", "json"]).json(),
        |status| status["hosts"][0]["apps"]["shop"]["units"]["waiting"] == 1,
    );
}
