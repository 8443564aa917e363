//! A rollout goes on through whatever lies between a broker and those who talk to it.

use crate::harness::app::Place;
use crate::harness::bus::Bus;
use crate::harness::hosts::Fleet;
use crate::harness::proxy::{Fault, Proxy, Towards};
use crate::harness::rollout::Rollout;
use crate::harness::wait::eventually;
use rustix::process::Signal;
use std::time::Duration;

/// How often connections are cut.
const CUTS: u32 = 5;
/// How many pieces of what is said are changed.
const CHANGED: u32 = 6;

fn begin(on: fn(&Place) -> Bus) -> Rollout {
    let place = Place::new();
    let bus = on(&place).behind_proxies();
    Rollout::begin(Fleet::start_on(place, bus, &["web-1", "web-2"]))
}

/// Cuts all connections again and again, each time as soon as somebody has come back.
fn cut_again_and_again(proxy: &Proxy) {
    for _ in 0..CUTS {
        let before = proxy.connections();
        proxy.cut();
        eventually("somebody comes back", 40, || proxy.connections(), |now| *now > before);
    }
}

fn goes_on_through_cuts_delays_and_noise(on: fn(&Place) -> Bus) {
    let rollout = begin(on);
    let proxies = rollout.fleet.bus.proxies();
    cut_again_and_again(&proxies.agents);
    rollout.finish_first();
    cut_again_and_again(&proxies.coordinator);
    // What was said meanwhile arrives when all of it is old.
    let before = rollout.losses();
    proxies.coordinator.set(Fault::Held);
    rollout.wait_until_the_coordinator_has_lost_the_bus(before);
    for proxy in [&proxies.agents, &proxies.coordinator] {
        proxy.set(Fault::Late(Duration::from_millis(500)));
    }
    rollout.wait_for_second();
    let both = [&proxies.agents, &proxies.coordinator];
    for proxy in both {
        proxy.set(Fault::Corrupted(4));
        // There is something to say again.
        proxy.cut();
    }
    for proxy in both {
        eventually("something was changed", 60, || proxy.corrupted(), |changed| *changed >= CHANGED);
    }
    rollout.finish_second();
    for proxy in both {
        proxy.set(Fault::Refused);
        proxy.cut();
    }
    for proxy in both {
        eventually("somebody was refused", 40, || proxy.refused(), |refused| *refused > 0);
        proxy.set(Fault::Healthy);
    }
    rollout.converges();
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_rollout_over_redis_goes_on_through_cuts_delays_and_noise() {
    goes_on_through_cuts_delays_and_noise(Bus::on_redis);
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_rollout_over_rabbitmq_goes_on_through_cuts_delays_and_noise() {
    goes_on_through_cuts_delays_and_noise(Bus::on_rabbitmq);
}

fn goes_on_after_silence(on: fn(&Place) -> Bus) {
    let mut rollout = begin(on);
    let before = rollout.losses();
    rollout.fleet.bus.proxies().agents.set(Fault::Swallowed(Towards::Both));
    rollout.finish_first();
    // Half open: the broker is another one by now, and nobody has told them.
    rollout.fleet.bus.kill_and_restart();
    rollout.wait_until_the_agents_have_lost_the_bus(before);
    // Nobody knows how the first one fared.
    rollout.assert_the_second_works_on();
    let proxies = rollout.fleet.bus.proxies();
    proxies.agents.set(Fault::Healthy);
    rollout.wait_for_second();
    // What the coordinator says arrives, and it hears nothing.
    let before = rollout.losses();
    proxies.coordinator.set(Fault::Swallowed(Towards::Clients));
    rollout.wait_until_the_coordinator_has_lost_the_bus(before);
    rollout.finish_second();
    // It hears everything, and nothing that it says arrives.
    let before = rollout.losses();
    proxies.coordinator.set(Fault::Healthy);
    rollout.fleet.wait_for("the coordinator is back", |status| status["bus"]["connected"] == true);
    proxies.coordinator.set(Fault::Swallowed(Towards::Broker));
    rollout.wait_until_the_coordinator_has_lost_the_bus(before);
    proxies.coordinator.set(Fault::Healthy);
    rollout.converges();
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_rollout_over_redis_goes_on_after_a_silence_that_nobody_was_told_of() {
    goes_on_after_silence(Bus::on_redis);
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_rollout_over_rabbitmq_goes_on_after_a_silence_that_nobody_was_told_of() {
    goes_on_after_silence(Bus::on_rabbitmq);
}

fn goes_on_after_a_standstill(on: fn(&Place) -> Bus) {
    let place = Place::new();
    let bus = on(&place);
    let rollout = Rollout::begin(Fleet::start_on(place, bus, &["web-1", "web-2"]));
    let before = rollout.losses();
    rollout.fleet.bus.signal(Signal::STOP);
    rollout.finish_first();
    rollout.wait_until_the_agents_have_lost_the_bus(before);
    rollout.wait_until_the_coordinator_has_lost_the_bus(before);
    rollout.assert_the_second_works_on();
    rollout.fleet.bus.signal(Signal::CONT);
    rollout.finish_second();
    rollout.converges();
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_rollout_goes_on_after_redis_stood_still() {
    goes_on_after_a_standstill(Bus::on_redis);
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_rollout_goes_on_after_rabbitmq_stood_still() {
    goes_on_after_a_standstill(Bus::on_rabbitmq);
}
