//! The whole: coordinator, agent and real workers as processes; what a deploy hook would see.

mod ask;
mod cure;
mod hand;
mod hold;
mod local;

use crate::harness::app::{App, Place};
use crate::harness::python::{newest, venv};
use crate::harness::unstale::{QUICK, Up, inspect, text, verdicts};
use crate::harness::wait::eventually;
use crate::harness::workers::{Program, Supervisord, celery_command, wait_for_children};
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
        supervisord.wait_for_log("shop", "ready.", 1);
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
