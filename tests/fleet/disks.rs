//! A coordinator that takes over with a disk of its own: it fetches the manifests that it lacks, so that a host which was
//! down through all of it goes on, too.

use crate::harness::app::Place;
use crate::harness::bus::Bus;
use crate::harness::hosts::{Fleet, wait_for_lead};
use crate::harness::process::Running;
use crate::harness::unstale::{Up, array};
use crate::harness::wait::eventually;
use rustix::process::Signal;
use serde_json::Value;

const HOSTS: [&str; 2] = ["web-1", "web-2"];

/// A fleet whose first host has converged, and whose second one has not heard what is announced.
fn announced(on: fn(&Place) -> Bus) -> (Fleet, Running) {
    let place = Place::new();
    let bus = on(&place);
    let mut fleet = Fleet::start_on(place, bus, &HOSTS);
    fleet.end_agent(1);
    fleet.flip();
    let broadcast = fleet.begin_broadcast();
    let has_converged = |status: &Value| {
        let first = array(status, "hosts").iter().find(|host| host["host"] == HOSTS[0]);
        first.is_some_and(|host| host["apps"]["shop"]["converged"] == true)
    };
    eventually("the first host converges", 120, || fleet.status(), has_converged);
    (fleet, broadcast)
}

/// Kills the coordinator, and lets one lead that has never seen this fleet, until it has the manifest.
fn taken_over(fleet: &mut Fleet, place: &Place) -> Up {
    fleet.coordinator.process.signal(Signal::KILL);
    fleet.coordinator.process.wait(10);
    let mut second = fleet.second_coordinator(place);
    wait_for_lead(&mut second);
    eventually("it has fetched the manifest", 60, || second.process.log(), |log| log.contains("manifest fetched"));
    second
}

fn converges(fleet: &Fleet, second: &Up) {
    let said = || (second.run(["status", "--output", "json"]).json(), second.process.log());
    eventually("the fleet converges", 180, said, |(status, _)| status["apps"][0]["outcome"] == "converged");
    fleet.assert_each_was_restarted_once_and_one_at_a_time();
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_coordinator_with_another_disk_takes_a_manifest_from_redis_and_keeps_it() {
    let (mut fleet, _broadcast) = announced(Bus::on_redis);
    // Nobody else has it.
    fleet.end_agent(0);
    let place = Place::new();
    let second = taken_over(&mut fleet, &place);
    let key = fleet.bus.redis(&["KEYS", "unstale:{default}:manifest:*"]).trim().to_owned();
    assert_eq!(fleet.bus.redis(&["DEL", &key]).trim(), "1", "{key}");
    eventually("it is written again", 15, || fleet.bus.redis(&["EXISTS", &key]), |there| there.trim() == "1");
    fleet.kill_agent(0);
    fleet.kill_agent(1);
    converges(&fleet, &second);
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_coordinator_with_another_disk_takes_a_manifest_from_a_host_over_rabbitmq() {
    let (mut fleet, _broadcast) = announced(Bus::on_rabbitmq);
    let place = Place::new();
    let second = taken_over(&mut fleet, &place);
    fleet.kill_agent(1);
    converges(&fleet, &second);
}
