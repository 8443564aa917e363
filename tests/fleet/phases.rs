//! The same harm in every phase of a rollout: announced, draining, stopped, back and watched.

use crate::harness::app::Place;
use crate::harness::bus::Bus;
use crate::harness::hosts::{Fleet, Host, outcome};
use crate::harness::python::{newest, venv};
use crate::harness::restarts::{Mark, most_down_at_once};
use crate::harness::wait::{eventually, eventually_some};
use std::fs::File;

const HOSTS: [&str; 2] = ["web-1", "web-2"];
const TASK: &str = "task";

/// The worker that was told to stop.
fn draining(fleet: &Fleet) -> &Host {
    eventually_some("one worker drains", 120, || {
        let drains = |host: &&Host| !host.app.journal("stopping ").is_empty();
        fleet.hosts.iter().find(drains).ok_or_else(|| fleet.coordinator.process.log())
    })
}

/// Waits until a worker is back; its agent still has to prove it.
fn wait_until_back(host: &Host) {
    eventually("it is back", 60, || host.app.journal("ready "), |ready| ready.len() == 2);
}

/// Rolls out to two hosts, and does harm in every phase of the first one's restart. Tasks that are in hand, and starts
/// that wait at a door, keep each phase for as long as that takes.
fn goes_on_through(mut fleet: Fleet, mut harm: impl FnMut(&mut Fleet)) {
    let python = venv(&newest(), "worker").join("bin/python");
    for host in &fleet.hosts {
        host.app.send(&python, TASK);
        host.app.wait_for_journal(&format!("start {TASK}"), 20);
        File::create(host.app.data.join("closed-start")).expect("a closed door");
    }
    let mark = Mark::set(&fleet.hosts);
    fleet.flip();
    let mut broadcast = fleet.begin_broadcast();
    broadcast.wait_for_log("announced shop@1", 30);
    harm(&mut fleet);

    let first = draining(&fleet).name.clone();
    harm(&mut fleet);
    let index = fleet.hosts.iter().position(|host| host.name == first).expect("it is one of them");
    assert!(fleet.hosts[1 - index].app.journal("stopping ").is_empty(), "one at a time");

    fleet.hosts[index].app.open_door(TASK);
    fleet.hosts[index].app.wait_for_journal("starting ", 60);
    harm(&mut fleet);
    assert!(fleet.hosts[1 - index].app.journal("stopping ").is_empty(), "one at a time");

    fleet.hosts[index].app.open_door("start");
    wait_until_back(&fleet.hosts[index]);
    harm(&mut fleet);

    for door in [TASK, "start"] {
        fleet.hosts[1 - index].app.open_door(door);
    }
    let code = broadcast.wait(225);
    let log = fleet.coordinator.process.log();
    assert_eq!((code, outcome(&broadcast).as_str()), (0, "converged"), "{}\n{log}", broadcast.log());
    let restarts = mark.restarts_since(&fleet.hosts);
    assert_eq!((restarts.len(), most_down_at_once(&restarts)), (HOSTS.len(), 1), "{restarts:#?}");
    for host in &fleet.hosts {
        for words in ["start", "end"] {
            assert_eq!(host.app.journal(&format!("{words} {TASK}")).len(), 1, "each task runs once, and whole");
        }
    }
    fleet.assert_each_was_restarted_once_and_one_at_a_time();
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_redis_that_loses_everything_in_every_phase_changes_nothing_of_a_rollout() {
    goes_on_through(Fleet::start(&HOSTS), |fleet| fleet.bus.kill_and_restart());
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_redis_that_keeps_everything_and_is_killed_in_every_phase_changes_nothing_of_a_rollout() {
    let place = Place::new();
    let bus = Bus::on_kept_redis(&place);
    goes_on_through(Fleet::start_on(place, bus, &HOSTS), |fleet| fleet.bus.kill_and_restart());
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_rabbitmq_that_loses_everything_in_every_phase_changes_nothing_of_a_rollout() {
    goes_on_through(Fleet::start_on_rabbitmq(&HOSTS), |fleet| fleet.bus.kill_and_reset());
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_rabbitmq_that_is_killed_in_every_phase_changes_nothing_of_a_rollout() {
    goes_on_through(Fleet::start_on_rabbitmq(&HOSTS), |fleet| fleet.bus.kill_and_restart());
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_coordinator_that_is_killed_in_every_phase_changes_nothing_of_a_rollout() {
    goes_on_through(Fleet::start(&HOSTS), Fleet::kill_coordinator);
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn agents_that_are_killed_in_every_phase_change_nothing_of_a_rollout() {
    goes_on_through(Fleet::start(&HOSTS), |fleet| {
        for index in 0..HOSTS.len() {
            fleet.kill_agent(index);
        }
    });
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn coordinator_and_agents_that_are_killed_in_every_phase_go_on_over_rabbitmq() {
    goes_on_through(Fleet::start_on_rabbitmq(&HOSTS), |fleet| {
        fleet.kill_agent(0);
        fleet.kill_coordinator();
        fleet.kill_agent(1);
    });
}
