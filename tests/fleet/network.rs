//! A rollout over a network that loses packets, breaks and heals.

use crate::harness::app::Place;
use crate::harness::broker::Broker;
use crate::harness::bus::Bus;
use crate::harness::hosts::Fleet;
use crate::harness::namespaces::{Cable, Namespaces};
use crate::harness::rabbitmq::RabbitMq;
use crate::harness::rollout::Rollout;

/// How many of a hundred packets are lost.
const LOSS: u32 = 10;

fn goes_on_through_loss_and_partition(on: fn(&Place, &Namespaces) -> Bus) {
    let place = Place::new();
    let namespaces = Namespaces::start(&place);
    let bus = Bus::Apart(Box::new(on(&place, &namespaces)), namespaces);
    bus.namespaces().set(Cable::Loses(LOSS));
    let rollout = Rollout::begin(Fleet::start_on(place, bus, &["web-1", "web-2"]));
    let net = rollout.fleet.bus.namespaces();
    assert!(net.lost().iter().all(|lost| *lost > 0), "{:?}", net.lost());
    let before = rollout.losses();
    net.set(Cable::Broken);
    rollout.finish_first();
    rollout.wait_until_the_agents_have_lost_the_bus(before);
    rollout.assert_the_second_works_on();
    net.set(Cable::Loses(LOSS));
    rollout.finish_second();
    net.set(Cable::Whole);
    rollout.converges();
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_rollout_over_redis_goes_on_through_lost_packets_and_a_partition() {
    goes_on_through_loss_and_partition(|place, net| Bus::Redis(Broker::start_in(place, &net.brokers)));
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn a_rollout_over_rabbitmq_goes_on_through_lost_packets_and_a_partition() {
    goes_on_through_loss_and_partition(|place, net| {
        Bus::RabbitMq(RabbitMq::start_at(&place.join("rabbitmq"), net.brokers.address, net.brokers.prefix()))
    });
}
