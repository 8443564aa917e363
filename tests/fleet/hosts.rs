//! Several hosts over a real Redis, under the shipped rules of access and with real keys.

use crate::harness::app::Place;
use crate::harness::hosts::{Fleet, outcome, wait_for_lead};
use crate::harness::unstale::array;
use crate::harness::wait::eventually;
use rustix::process::Signal;

const HOSTS: [&str; 2] = ["web-1", "web-2"];

/// A rollout over two hosts that `meanwhile` disturbs once the first worker drains.
fn rolls_out(mut fleet: Fleet, meanwhile: impl FnOnce(&mut Fleet)) -> Fleet {
    fleet.flip();
    let mut broadcast = fleet.begin_broadcast();
    fleet.wait_for_first_drain();
    meanwhile(&mut fleet);
    let code = broadcast.wait(300);
    assert_eq!(
        (code, outcome(&broadcast).as_str()),
        (0, "converged"),
        "{}\n{}",
        broadcast.log(),
        fleet.coordinator.process.log()
    );
    fleet.assert_each_was_restarted_once_and_one_at_a_time();
    fleet
}

#[test]
fn a_fleet_converges_one_host_at_a_time_and_a_host_that_left_is_forgotten() {
    let mut fleet = rolls_out(Fleet::start(&HOSTS), |_| {});
    let status = fleet.status();
    assert_eq!(status["bus"]["rejected"], serde_json::json!({}), "{status:#}");
    assert!(status["bus"]["url"].as_str().is_some_and(|url| url.contains("[redacted]")), "{status:#}");
    drop(fleet.hosts.pop());
    fleet.coordinator.run(["forget", "host:web-2", "--output", "json"]).expect(0);
    fleet.wait_for("only one host is known", |status| array(status, "hosts").len() == 1);
    assert_eq!(fleet.bus.redis(&["EXISTS", "unstale:{default}:permit:web-2"]).trim(), "0");
    fleet.coordinator.run(["forget", "host:web-2"]).expect(2);
}

#[test]
fn a_broker_that_is_killed_and_has_lost_everything_changes_nothing_of_a_rollout() {
    rolls_out(Fleet::start(&HOSTS), |fleet| {
        fleet.bus.kill_and_restart();
        fleet.wait_for("the coordinator leads again", |status| status["bus"]["leads"] == true);
        // And once more without a disconnection.
        fleet.bus.redis(&["FLUSHALL"]);
    });
}

#[test]
fn a_coordinator_and_agents_that_are_killed_go_on_where_they_were() {
    rolls_out(Fleet::start(&HOSTS), |fleet| {
        fleet.kill_agent(0);
        fleet.kill_coordinator();
        fleet.kill_agent(1);
    });
}

#[test]
fn a_fleet_converges_over_rabbitmq_though_the_broker_is_killed() {
    rolls_out(Fleet::start_on_rabbitmq(&HOSTS), |fleet| fleet.bus.kill_and_restart());
}

#[test]
fn a_second_coordinator_stands_by_and_finishes_what_the_first_one_began() {
    let fleet = Fleet::start(&HOSTS);
    let place = Place::new();
    let mut second = fleet.second_coordinator(&place);
    let status = |up: &crate::harness::unstale::Up| up.run(["status", "--output", "json"]);
    eventually(
        "the second one is connected",
        30,
        || status(&second),
        |answer| answer.code == 0 && answer.json()["bus"]["connected"] == true,
    );
    assert_eq!(status(&second).json()["bus"]["leads"], false);
    second.run(["pause", "shop"]).expect(2);
    fleet.flip();
    let _broadcast = fleet.begin_broadcast();
    fleet.wait_for_first_drain();
    fleet.coordinator.process.signal(Signal::KILL);
    wait_for_lead(&mut second);
    eventually(
        "the fleet converges",
        120,
        || status(&second).json(),
        |status| status["apps"][0]["outcome"] == "converged",
    );
    fleet.assert_each_was_restarted_once_and_one_at_a_time();
}

/// The streams of a Redis that carry envelopes.
const STREAMS: [&str; 4] = [
    "unstale:{default}:desired",
    "unstale:{default}:reports",
    "unstale:{default}:permit:web-1",
    "unstale:{default}:permit:web-2",
];

/// Everything that lies in a stream, the oldest first.
fn envelopes(fleet: &Fleet, stream: &str) -> Vec<String> {
    let said = fleet.bus.redis(&["XRANGE", stream, "-", "+"]);
    said.lines().filter(|line| line.starts_with('{')).map(str::to_owned).collect()
}

#[test]
fn what_was_truly_said_once_changes_nothing_when_it_is_said_again() {
    let mut kept = Vec::new();
    let mut fleet = rolls_out(Fleet::start(&HOSTS), |fleet| {
        kept.extend(STREAMS.map(|stream| (stream, envelopes(fleet, stream))));
    });
    let of = |stream: usize| kept[stream].1.len();
    assert!(of(0) > 0 && of(1) > 1 && of(2) + of(3) > 0, "desired, reports and a permit were kept: {kept:?}");
    let seen = |status: &serde_json::Value| (status["generation"].clone(), status["apps"].clone());
    let (before, last) = (seen(&fleet.status()), envelopes(&fleet, STREAMS[0]).pop());
    for (stream, envelopes) in &kept {
        for envelope in envelopes {
            fleet.bus.add(stream, envelope);
        }
    }
    // The leader sees an older word lie on top, and says its own again.
    let top = || envelopes(&fleet, STREAMS[0]).pop();
    eventually("the last word is on top again", 60, top, |top| *top == last);
    for index in 0..HOSTS.len() {
        fleet.kill_agent(index);
    }
    let is_right = |host: &serde_json::Value| {
        host["reported_ms_ago"].as_u64() < Some(10_000) && host["apps"]["shop"]["converged"] == true
    };
    fleet.wait_for("both hosts report again", |status| array(status, "hosts").iter().all(is_right));
    assert_eq!(seen(&fleet.status()), before, "{:#}", fleet.status());
    fleet.assert_each_was_restarted_once_and_one_at_a_time();
}
