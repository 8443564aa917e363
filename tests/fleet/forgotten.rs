//! A rollout goes on whatever its broker forgets: keys, queues, and all that a failover takes with it.

use crate::harness::app::Place;
use crate::harness::bus::Bus;
use crate::harness::hosts::Fleet;
use crate::harness::rollout::Rollout;
use crate::harness::sentinel::Watched;
use crate::harness::wait::eventually;

const HOSTS: [&str; 2] = ["web-1", "web-2"];

fn begin(on: fn(&Place) -> Bus) -> Rollout {
    let place = Place::new();
    let bus = on(&place);
    Rollout::begin(Fleet::start_on(place, bus, &HOSTS))
}

fn goes_on_though_all_is_deleted(on: fn(&Place) -> Bus, delete: fn(&Fleet)) {
    let rollout = begin(on);
    delete(&rollout.fleet);
    rollout.finish_first();
    rollout.wait_for_second();
    delete(&rollout.fleet);
    rollout.finish_second();
    rollout.converges();
}

fn keys(fleet: &Fleet) -> Vec<String> {
    fleet.bus.redis(&["KEYS", "unstale:{default}:*"]).lines().map(str::to_owned).collect()
}

/// Deletes every key, one after another, and waits until those are back that somebody relies on at once.
fn delete_every_key(fleet: &Fleet) {
    let all = keys(fleet);
    for kind in ["desired", "lease", "reports", "manifest:", "permit:web-"] {
        assert!(all.iter().any(|key| key.contains(kind)), "no {kind} in {all:?}");
    }
    for key in all {
        assert_eq!(fleet.bus.redis(&["DEL", &key]).trim(), "1", "{key}");
        if ["desired", "lease", "manifest:"].iter().any(|kind| key.contains(kind)) {
            let is_there = || (fleet.bus.redis(&["EXISTS", &key]), fleet.coordinator.process.log());
            eventually(&format!("{key} is back"), 15, is_there, |(there, _)| there.trim() == "1");
        }
    }
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn every_key_of_redis_may_be_deleted_in_the_middle_of_a_rollout() {
    goes_on_though_all_is_deleted(Bus::on_redis, delete_every_key);
}

/// Deletes everything that a fleet has in RabbitMQ, one after another, and waits until it is back.
fn delete_every_queue(fleet: &Fleet) {
    let there = |kind: &str, name: &str| {
        let said = fleet.bus.rabbitmq(&[&format!("list_{kind}s"), "name"]);
        said.lines().any(|line| line.trim() == name)
    };
    for (kind, name) in [
        ("queue", "unstale.default.desired"),
        ("queue", "unstale.default.reports"),
        ("queue", "unstale.default.leader"),
        ("exchange", "unstale.default.rx"),
    ] {
        assert!(there(kind, name), "no {name}");
        // The administrator's own command refuses a queue that is somebody's alone, and knows no exchanges.
        let delete = match kind {
            "queue" => format!(
                "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{name}\">>)), \
                 rabbit_amqqueue:delete(Q, false, false, <<\"test\">>)."
            ),
            _ => format!(
                "rabbit_exchange:delete(rabbit_misc:r(<<\"/\">>, exchange, <<\"{name}\">>), false, <<\"test\">>)."
            ),
        };
        fleet.bus.rabbitmq(&["eval", &delete]);
        let is_there = || (there(kind, name), fleet.coordinator.process.log());
        eventually(&format!("{name} is back"), 30, is_there, |(there, _)| *there);
    }
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn everything_in_rabbitmq_may_be_deleted_in_the_middle_of_a_rollout() {
    goes_on_though_all_is_deleted(Bus::on_rabbitmq, delete_every_queue);
}

fn begin_watched() -> Rollout {
    begin(|place| Bus::Watched(Box::new(Watched::start(place))))
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_rollout_goes_on_after_sentinels_failover() {
    let mut rollout = begin_watched();
    rollout.fleet.bus.watched().kill_the_primary();
    rollout.finish_first();
    rollout.fleet.bus.watched().wait_for_the_failover();
    rollout.finish_second();
    rollout.converges();
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_rollout_goes_on_after_a_failover_to_a_copy_that_is_old() {
    let place = Place::new();
    let bus = Bus::Watched(Box::new(Watched::start(&place)));
    let mut fleet = Fleet::start_on(place, bus, &HOSTS);
    // It has seen nothing of what follows.
    fleet.bus.watched().freeze_the_copy();
    let mut rollout = Rollout::begin(fleet);
    rollout.fleet.bus.watched().kill_the_primary();
    rollout.fleet.bus.watched().wake_the_copy();
    rollout.fleet.bus.watched().wait_for_the_failover();
    rollout.finish_first();
    rollout.finish_second();
    rollout.converges();
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_rollout_goes_on_after_a_failover_to_a_copy_that_is_empty() {
    let mut rollout = begin_watched();
    rollout.finish_first();
    rollout.wait_for_second();
    let brokers = rollout.fleet.bus.watched();
    brokers.kill_the_primary();
    brokers.empty_the_copy();
    brokers.wait_for_the_failover();
    rollout.finish_second();
    rollout.converges();
}
