//! Several hosts over a real Redis, under the shipped rules of access and with real keys.

use crate::harness::hosts::{Fleet, outcome};
use crate::harness::unstale::array;

/// A rollout over two hosts that `meanwhile` disturbs once the first worker drains.
fn rolls_out(meanwhile: impl FnOnce(&mut Fleet)) -> Fleet {
    let mut fleet = Fleet::start(&["web-1", "web-2"]);
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
    let mut fleet = rolls_out(|_| {});
    let status = fleet.status();
    assert_eq!(status["bus"]["rejected"], serde_json::json!({}), "{status:#}");
    assert!(status["bus"]["url"].as_str().is_some_and(|url| url.contains("[redacted]")), "{status:#}");
    drop(fleet.hosts.pop());
    fleet.coordinator.run(["forget", "host:web-2", "--output", "json"]).expect(0);
    fleet.wait_for("only one host is known", |status| array(status, "hosts").len() == 1);
    assert_eq!(fleet.broker.admin(&["EXISTS", "unstale:{default}:permit:web-2"]).trim(), "0");
    fleet.coordinator.run(["forget", "host:web-2"]).expect(2);
}

#[test]
fn a_broker_that_is_killed_and_has_lost_everything_changes_nothing_of_a_rollout() {
    rolls_out(|fleet| {
        fleet.broker.kill_and_restart();
        fleet.wait_for("the coordinator leads again", |status| status["bus"]["leads"] == true);
        // And once more without a disconnection.
        fleet.broker.admin(&["FLUSHALL"]);
    });
}

#[test]
fn a_coordinator_and_agents_that_are_killed_go_on_where_they_were() {
    rolls_out(|fleet| {
        fleet.kill_agent(0);
        fleet.kill_coordinator();
        fleet.kill_agent(1);
    });
}
