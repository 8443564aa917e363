//! The transport against a real server, with the permissions that are shipped.

#[path = "../../../../tests/harness/rabbitmq.rs"]
mod rabbitmq;

use super::agent::{HELLO, REPORT};
use super::session::publish;
use super::{Access, Names};
use crate::bus::address::BusUrl;
use crate::bus::contract::{self, Bus, hears, hears_desired, host, is_told};
use crate::bus::ends::{self, AgentEnd, CoordinatorEnd, Link, ToAgent, ToCoordinator};
use crate::bus::envelope::FleetName;
use crate::bus::proxy::{Fault, Proxy};
use crate::clock::Clock;
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use rabbitmq::RabbitMq;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::task::JoinSet;
use unstale_protocol::fingerprint::Fingerprint;

fn access(text: &str) -> Access {
    let Ok(BusUrl::Amqp(url)) = text.parse() else { panic!("{text}") };
    Access { url, authority: None, identity: None, fail_fast: false }
}

fn names() -> Names {
    Names::new(&FleetName::default())
}

fn start_coordinator(set: &mut JoinSet<anyhow::Result<()>>, server: &RabbitMq) -> CoordinatorEnd {
    let (end, side) = ends::coordinator();
    set.spawn(super::coordinator(side, access(&server.for_coordinator()), names(), Clock::start()));
    end
}

fn start_agent(set: &mut JoinSet<anyhow::Result<()>>, access: Access, number: usize) -> AgentEnd {
    let (end, side) = ends::agent();
    set.spawn(super::agent(side, access, names(), host(number)));
    end
}

/// All that was taken was acknowledged: what is not comes again to whoever leads next.
async fn has_no_reports_left(server: &RabbitMq) {
    let mut left = String::new();
    for _ in 0..60 {
        left = server.control(&["list_queues", "name", "messages"]);
        if left.contains("unstale.default.reports\t0") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("{left}");
}

#[tokio::test]
async fn over_a_slow_way_rabbitmq_still_carries_permits_and_keeps_the_lead() {
    let dir = tempfile::tempdir().unwrap();
    let server = RabbitMq::start(dir.path());
    let proxy = Proxy::start(server.port);
    proxy.set(Fault::Late(Duration::from_millis(500)));
    let access = |url: String| {
        let (front, _) = url.rsplit_once(':').unwrap();
        access(&format!("{front}:{}", proxy.port()))
    };
    let mut set = JoinSet::new();
    let (clock, (mut coordinator, side)) = (Clock::start(), ends::coordinator());
    set.spawn(super::coordinator(side, access(server.for_coordinator()), names(), clock));
    let mut agents = [(host(1), start_agent(&mut set, access(server.for_agents()), 1))];
    contract::holds_over_a_slow_way(&mut coordinator, &mut agents, clock).await;
}

#[tokio::test]
async fn rabbitmq_keeps_the_contract_under_the_shipped_permissions_and_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = RabbitMq::start(dir.path());
    let mut set = JoinSet::new();
    let mut coordinator = start_coordinator(&mut set, &server);
    let held = |message| match message {
        ToCoordinator::Lease(Some(lease)) => Some(lease),
        _ => None,
    };
    let lease = is_told(&mut coordinator, "that it leads", held).await;
    assert_eq!(lease.epoch, None);
    let agents = [1, 2].map(|number| (host(number), start_agent(&mut set, access(&server.for_agents()), number)));
    let bus = tokio::select! {
        bus = contract::holds(Bus { coordinator, agents: agents.into() }) => bus,
        ended = set.join_next() => panic!("{ended:?}"),
    };
    let Bus { mut coordinator, mut agents } = bus;
    has_no_reports_left(&server).await;
    server.kill_and_restart();
    coordinator.desired.send_replace(Some((*b"after the kill").into()));
    for (_, agent) in &mut agents {
        hears_desired(&mut coordinator, agent, "after the kill").await;
    }
    // Everything deleted, without a disconnection.
    for queue in ["desired", "reports"] {
        server.control(&["delete_queue", &format!("unstale.default.{queue}")]);
    }
    let mut late = start_agent(&mut set, access(&server.for_agents()), 3);
    hears_desired(&mut coordinator, &mut late, "after the kill").await;

    // Short of memory: whoever leads goes on leading, and what it says is heard when that is over.
    server.control(&["set_vm_memory_high_watermark", "0.00001"]);
    coordinator.desired.send_replace(Some((*b"during an alarm").into()));
    let renewed = async {
        for _ in 0..4 {
            is_told(&mut coordinator, "that it still leads", |message| match message {
                ToCoordinator::Lease(lease) => Some(lease.expect("the lease")),
                _ => None,
            })
            .await;
        }
    };
    renewed.await;
    server.control(&["set_vm_memory_high_watermark", "0.8"]);
    hears_desired(&mut coordinator, &mut late, "during an alarm").await;

    // A second coordinator stands by while the first one lives, and leads once it is gone.
    let mut others = JoinSet::new();
    let mut second = start_coordinator(&mut others, &server);
    is_told(&mut second, "what is on the bus", |message| match message {
        ToCoordinator::Tip(Some(found)) => Some(found),
        ToCoordinator::Lease(Some(_)) => panic!("two leaders"),
        _ => None,
    })
    .await;
    set.abort_all();
    is_told(&mut second, "that it leads", held).await;
}

/// The coordinator's connections, as the broker calls them.
fn connections(server: &RabbitMq) -> BTreeSet<String> {
    let listed = server.control(&["list_connections", "user", "pid"]);
    listed.lines().filter_map(|line| line.strip_prefix("unstale-coordinator\t")).map(str::to_owned).collect()
}

/// Says these as an agent that wants to be answered there, then something that nobody answers, and waits until that has
/// come to a coordinator that has lost nothing.
async fn ask_in_vain(server: &RabbitMq, coordinator: &mut CoordinatorEnd, routes: &[&str], afterwards: &str) {
    let connection = access(&server.for_agents()).connect("test").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let exchange = names().exchange();
    let hellos = routes.iter().map(|route| (HELLO, *route, ""));
    for (kind, route, payload) in hellos.chain([(REPORT, NONE, afterwards)]) {
        let properties = BasicProperties::default().with_type(kind.into()).with_reply_to(route.into());
        let properties = properties.with_app_id("web-9".into());
        let options = BasicPublishOptions::default();
        publish(&channel, (&exchange, ""), options, payload.as_bytes(), properties).await.unwrap();
    }
    // What comes again is taken before it.
    is_told(coordinator, afterwards, |message| match message {
        ToCoordinator::Report(report) if *report == *afterwards.as_bytes() => Some(()),
        ToCoordinator::Link(Link::Down(_)) | ToCoordinator::Lease(None) => panic!("{message:?}"),
        _ => None,
    })
    .await;
}

/// Nothing that the broker gave.
const NONE: &str = "amq.rabbitmq.reply-to.x.y";
/// What nodes gave that are not there.
const GONE: &str = "amq.rabbitmq.reply-to.g1h3DHJlcGx5QDEyMzQ1NgAAD5sAAAAAY+tojg==.AAECAwQFBgcICQoLDA0ODw==";

#[tokio::test]
async fn a_request_from_a_node_that_is_gone_is_taken_once_and_costs_neither_session_nor_lead() {
    let dir = tempfile::tempdir().unwrap();
    let server = RabbitMq::start(dir.path());
    let mut set = JoinSet::new();
    let mut coordinator = start_coordinator(&mut set, &server);
    is_told(&mut coordinator, "that it leads", |message| {
        matches!(message, ToCoordinator::Lease(Some(_))).then_some(())
    })
    .await;
    let before = connections(&server);
    assert_eq!(before.len(), 3, "{before:?}");
    ask_in_vain(&server, &mut coordinator, &[NONE, GONE, GONE, GONE], "afterwards").await;
    // Others are answered, over another connection; what leads and what is desired kept theirs.
    let digest = Fingerprint::of_bytes(b"1");
    coordinator.manifests.put(digest, (*b"manifest").into());
    let mut agent = start_agent(&mut set, access(&server.for_agents()), 1);
    contract::fetches(&mut coordinator, &mut agent, digest, "manifest").await;
    let after = connections(&server);
    assert_eq!((after.len(), before.intersection(&after).count()), (3, 2), "{before:?} {after:?}");
    // That node is known to be gone by now.
    ask_in_vain(&server, &mut coordinator, &[GONE; 20], "once more").await;
    contract::fetches(&mut coordinator, &mut agent, digest, "manifest").await;
    assert_eq!(connections(&server), after);
    has_no_reports_left(&server).await;
}

#[tokio::test]
async fn where_streams_are_refused_the_answer_to_a_hello_carries_what_is_desired() {
    const OWN: &str = "^(unstale\\.default\\.(rx|reports|desired|leader)|amq\\.default)$";
    const WITHOUT_STREAM: &str = "^unstale\\.default\\.(rx|reports|leader)$";
    let dir = tempfile::tempdir().unwrap();
    let mut server = RabbitMq::start(dir.path());
    server.control(&["set_permissions", "unstale-coordinator", WITHOUT_STREAM, OWN, OWN]);
    let mut set = JoinSet::new();
    let coordinator = start_coordinator(&mut set, &server);
    let agents = [1, 2].map(|number| (host(number), start_agent(&mut set, access(&server.for_agents()), number)));
    let bus = tokio::select! {
        bus = contract::holds(Bus { coordinator, agents: agents.into() }) => bus,
        ended = set.join_next() => panic!("{ended:?}"),
    };
    assert!(!server.control(&["list_queues", "name"]).contains("unstale.default.desired"));
    let Bus { mut coordinator, mut agents } = bus;
    // One that comes when everything was said already.
    let mut late = start_agent(&mut set, access(&server.for_agents()), 3);
    hears_desired(&mut coordinator, &mut late, "desired two").await;
    agents.push((host(3), late));
    server.kill_and_restart();
    coordinator.desired.send_replace(Some((*b"after the kill").into()));
    for (_, agent) in &mut agents {
        hears_desired(&mut coordinator, agent, "after the kill").await;
    }
    // Once they may be declared, everybody goes over to them.
    server.control(&["set_permissions", "unstale-coordinator", OWN, OWN, OWN]);
    server.kill_and_restart();
    coordinator.desired.send_replace(Some((*b"in a stream").into()));
    for (_, agent) in &mut agents {
        hears_desired(&mut coordinator, agent, "in a stream").await;
    }
    assert!(server.control(&["list_queues", "name"]).contains("unstale.default.desired"));
}

#[tokio::test]
async fn tls_to_a_listener_without_it_says_nothing_of_the_password() {
    use tokio::io::AsyncReadExt as _;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut set = JoinSet::new();
    let mut agent = start_agent(&mut set, access(&format!("amqps://u:s3cret@127.0.0.1:{port}")), 1);
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut bytes = [0; 4096];
    let read = socket.read(&mut bytes).await.unwrap();
    // A TLS handshake, record type 22, and nothing of AMQP.
    assert_eq!(bytes[0], 22);
    assert!(!bytes[..read].windows(6).any(|window| window == b"s3cret"));
    drop(socket);
    drop(listener);
    hears(&mut agent, "that it failed", |message| match message {
        ToAgent::Link(Link::Down(why)) if !why.contains("yet") => Some(why),
        _ => None,
    })
    .await;
}
