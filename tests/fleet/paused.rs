//! Two coordinators, and the one that leads stands still in the middle of a rollout.

use crate::harness::app::Place;
use crate::harness::hosts::{Fleet, wait_for_lead};
use crate::harness::python::{newest, venv};
use crate::harness::restarts::{Mark, most_down_at_once};
use crate::harness::unstale::Up;
use crate::harness::wait::{eventually, eventually_some, now};
use rustix::process::Signal;
use serde_json::Value;
use std::time::Duration;

const HOSTS: [&str; 2] = ["web-1", "web-2"];
const TASK: &str = "task";
/// How soon another one leads, and how soon it grants for the first time.
const LEADS_WITHIN: Duration = Duration::from_secs(30);
const GRANTS_WITHIN: Duration = Duration::from_mins(1);

fn status(up: &Up) -> Value {
    up.run(["status", "--output", "json"]).json()
}

/// How many permits a coordinator has granted in its life.
fn grants(up: &Up) -> usize {
    up.process.log().matches("permit granted").count()
}

fn goes_on_under_another_one(fleet: &Fleet) {
    let place = Place::new();
    let mut second = fleet.second_coordinator(&place);
    eventually(
        "the second one is connected",
        30,
        || second.run(["status", "--output", "json"]),
        |answer| answer.code == 0 && answer.json()["bus"]["connected"] == true,
    );
    let python = venv(&newest(), "worker").join("bin/python");
    for host in &fleet.hosts {
        host.app.send(&python, TASK);
        host.app.wait_for_journal(&format!("start {TASK}"), 20);
    }
    let mark = Mark::set(&fleet.hosts);
    fleet.flip();
    let _broadcast = fleet.begin_broadcast();
    fleet.wait_for_first_drain();

    let first = &fleet.coordinator;
    let granted = grants(first);
    assert_eq!((granted, grants(&second)), (1, 0));
    first.process.signal(Signal::STOP);
    let stopped_at = now();
    for host in &fleet.hosts {
        host.app.open_door(TASK);
    }
    wait_for_lead(&mut second);
    let took = now() - stopped_at;
    assert!(took <= LEADS_WITHIN, "another one leads after {took:?}");
    eventually("it grants", 60, || second.process.log(), |log| log.contains("permit granted"));
    let took = now() - stopped_at;
    assert!(took <= GRANTS_WITHIN, "it grants after {took:?}");

    first.process.signal(Signal::CONT);
    let old =
        eventually("the old one knows that it does not lead", 30, || status(first), |old| old["bus"]["leads"] == false);
    eventually_some("it is connected again", 60, || {
        let seen = status(first);
        if seen["bus"]["connected"] == true { Ok(()) } else { Err(seen) }
    });
    assert!(first.run(["status"]).expect(0).stdout.contains("stands by, "), "{old:#}");
    first.run(["pause", "shop"]).expect(2);
    eventually("the fleet converges", 120, || status(&second), |seen| seen["apps"][0]["outcome"] == "converged");
    assert_eq!(grants(first), granted, "{}", first.process.log());
    assert_eq!(status(first)["bus"]["leads"], false);
    let restarts = mark.restarts_since(&fleet.hosts);
    assert_eq!((restarts.len(), most_down_at_once(&restarts)), (HOSTS.len(), 1), "{restarts:#?}");
    fleet.assert_each_was_restarted_once_and_one_at_a_time();
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_coordinator_on_redis_that_was_paused_and_woken_grants_nothing_while_another_one_leads() {
    goes_on_under_another_one(&Fleet::start(&HOSTS));
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_coordinator_on_rabbitmq_that_was_paused_and_woken_grants_nothing_while_another_one_leads() {
    goes_on_under_another_one(&Fleet::start_on_rabbitmq(&HOSTS));
}
