//! What a fleet talks over: which broker, and what lies between it and those who talk to it.

use crate::harness::app::Place;
use crate::harness::broker::Broker;
use crate::harness::namespaces::Namespaces;
use crate::harness::process::{signal_pid, tree};
use crate::harness::proxy::Proxy;
use crate::harness::rabbitmq::RabbitMq;
use crate::harness::sentinel::Watched;
use rustix::process::Signal;
use std::process::Command;

/// The bus of one fleet.
#[derive(Debug)]
pub(crate) enum Bus {
    /// Redis.
    Redis(Broker),
    /// RabbitMQ.
    RabbitMq(RabbitMq),
    /// Two of Redis, and a Sentinel.
    Watched(Box<Watched>),
    /// One of the above, reached through a proxy each by the coordinator and by all agents.
    Proxied(Box<Bus>, Proxies),
    /// One of the above with the coordinator in a network namespace, and the hosts in another one.
    Apart(Box<Bus>, Namespaces),
}

/// The proxies of a bus.
#[derive(Debug)]
pub(crate) struct Proxies {
    /// The coordinator's.
    pub(crate) coordinator: Proxy,
    /// The agents'.
    pub(crate) agents: Proxy,
}

impl Bus {
    /// Starts a Redis.
    pub(crate) fn on_redis(place: &Place) -> Self {
        Self::Redis(Broker::start(place))
    }

    /// Starts a Redis that keeps everything on disk.
    pub(crate) fn on_kept_redis(place: &Place) -> Self {
        Self::Redis(Broker::start_kept(place))
    }

    /// Starts a RabbitMQ.
    pub(crate) fn on_rabbitmq(place: &Place) -> Self {
        Self::RabbitMq(RabbitMq::start(&place.join("rabbitmq")))
    }

    /// The same bus behind proxies.
    pub(crate) fn behind_proxies(self) -> Self {
        let port = match &self {
            Self::Redis(broker) => broker.port,
            Self::RabbitMq(broker) => broker.port,
            other => panic!("no proxy for {other:?}"),
        };
        let proxies = Proxies { coordinator: Proxy::start(port), agents: Proxy::start(port) };
        Self::Proxied(Box::new(self), proxies)
    }

    /// The coordinator's URL.
    pub(crate) fn for_coordinator(&self) -> String {
        match self {
            Self::Redis(broker) => broker.for_coordinator(),
            Self::RabbitMq(broker) => broker.for_coordinator(),
            Self::Watched(brokers) => brokers.for_coordinator(),
            Self::Proxied(bus, proxies) => through(&bus.for_coordinator(), &proxies.coordinator),
            Self::Apart(bus, _) => bus.for_coordinator(),
        }
    }

    /// The agents' URL.
    pub(crate) fn for_agents(&self) -> String {
        match self {
            Self::Redis(broker) => broker.for_agents(),
            Self::RabbitMq(broker) => broker.for_agents(),
            Self::Watched(brokers) => brokers.for_agents(),
            Self::Proxied(bus, proxies) => through(&bus.for_agents(), &proxies.agents),
            Self::Apart(bus, _) => bus.for_agents(),
        }
    }

    /// The command as it runs where the broker does.
    pub(crate) fn beside_the_broker(&self, command: Command) -> Command {
        match self {
            Self::Apart(_, net) => net.brokers.enter(&command),
            _ => command,
        }
    }

    /// The command as it runs where the hosts are.
    pub(crate) fn among_the_hosts(&self, command: Command) -> Command {
        match self {
            Self::Apart(_, net) => net.hosts.enter(&command),
            _ => command,
        }
    }

    /// The proxies.
    pub(crate) fn proxies(&self) -> &Proxies {
        match self {
            Self::Proxied(_, proxies) => proxies,
            other => panic!("no proxies before {other:?}"),
        }
    }

    /// The network namespaces.
    pub(crate) fn namespaces(&self) -> &Namespaces {
        match self {
            Self::Apart(_, net) => net,
            other => panic!("no namespaces around {other:?}"),
        }
    }

    /// The two of Redis.
    pub(crate) fn watched(&mut self) -> &mut Watched {
        match self {
            Self::Watched(brokers) => brokers,
            other => panic!("no Sentinel watches {other:?}"),
        }
    }

    /// Kills the broker and starts it again.
    pub(crate) fn kill_and_restart(&mut self) {
        match self {
            Self::Redis(broker) => broker.kill_and_restart(),
            Self::RabbitMq(broker) => broker.kill_and_restart(),
            Self::Proxied(bus, _) | Self::Apart(bus, _) => bus.kill_and_restart(),
            Self::Watched(_) => panic!("which of them?"),
        }
    }

    /// Kills a RabbitMQ, and makes it one that has never been used, but for its users.
    pub(crate) fn kill_and_reset(&mut self) {
        match self {
            Self::RabbitMq(broker) => {
                broker.kill_and_restart();
                for step in ["stop_app", "reset", "start_app"] {
                    broker.control(&[step]);
                }
                broker.admit("default", "unstale-coordinator", "unstale-agent");
            }
            other => panic!("no RabbitMQ: {other:?}"),
        }
    }

    /// Runs a command of Redis.
    pub(crate) fn redis(&self, words: &[&str]) -> String {
        match self {
            Self::Redis(broker) => broker.admin(words),
            Self::Proxied(bus, _) | Self::Apart(bus, _) => bus.redis(words),
            other => panic!("no Redis: {other:?}"),
        }
    }

    /// Adds an envelope to a stream of Redis, as one who may.
    pub(crate) fn add(&self, stream: &str, envelope: &str) {
        match self {
            Self::Redis(broker) => broker.add(stream, envelope),
            other => panic!("no Redis: {other:?}"),
        }
    }

    /// Runs a command of RabbitMQ.
    pub(crate) fn rabbitmq(&self, words: &[&str]) -> String {
        match self {
            Self::RabbitMq(broker) => broker.control(words),
            Self::Proxied(bus, _) | Self::Apart(bus, _) => bus.rabbitmq(words),
            other => panic!("no RabbitMQ: {other:?}"),
        }
    }

    /// Sends a signal to every process of the broker.
    pub(crate) fn signal(&self, signal: Signal) {
        let roots = match self {
            Self::Redis(broker) => vec![broker.pid()],
            Self::RabbitMq(broker) => vec![broker.server.id(), broker.names.id()],
            Self::Proxied(bus, _) | Self::Apart(bus, _) => return bus.signal(signal),
            Self::Watched(_) => panic!("which of them?"),
        };
        for pid in roots.into_iter().flat_map(tree) {
            signal_pid(pid, signal);
        }
    }
}

/// The same URL with the proxy's port.
fn through(url: &str, proxy: &Proxy) -> String {
    let (front, _) = url.rsplit_once(':').expect("a port");
    format!("{front}:{}", proxy.port())
}
