//! The contract of a transport, as tests: the same ones for each.

use super::ends::{self, AgentEnd, CoordinatorEnd, FromAgent, FromCoordinator, Link, ToAgent, ToCoordinator};
use super::envelope::Encoded;
use crate::clock::Clock;
use std::collections::BTreeSet;
use std::time::Duration;
use unstale_protocol::fingerprint::Fingerprint;
use unstale_protocol::ids::HostName;

/// How long anything may take, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often what may be lost is said again.
const AGAIN: Duration = Duration::from_millis(500);

/// Reports that an agent says at once, which its queue has room for, and how often it does.
const BURST: usize = 60;
const BURSTS: usize = 20;

/// Desired states that are said without a word from the agents.
const NEWER: usize = 60;

/// A transport under test, with two agents where it carries more than one.
pub(super) struct Bus {
    pub(super) coordinator: CoordinatorEnd,
    pub(super) agents: Vec<(HostName, AgentEnd)>,
}

pub(super) fn host(number: usize) -> HostName {
    HostName::new(format!("web-{number}")).unwrap()
}

fn bytes(text: &str) -> Encoded {
    text.as_bytes().into()
}

/// Returns the first message that `choose` takes.
pub(super) async fn hears<T>(agent: &mut AgentEnd, what: &str, choose: impl Fn(ToAgent) -> Option<T>) -> T {
    let wait = async {
        loop {
            let message = agent.next().await.expect("a transport");
            if let Some(chosen) = choose(message) {
                return chosen;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("the agent did not hear {what}"))
}

/// The same for the coordinator.
pub(super) async fn is_told<T>(
    coordinator: &mut CoordinatorEnd,
    what: &str,
    mut choose: impl FnMut(ToCoordinator) -> Option<T>,
) -> T {
    let wait = async {
        loop {
            let message = coordinator.next().await.expect("a transport");
            if let Some(chosen) = choose(message) {
                return chosen;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("the coordinator was not told {what}"))
}

/// Waits until the agent hears this desired state, while the coordinator goes on listening.
pub(super) async fn hears_desired(coordinator: &mut CoordinatorEnd, agent: &mut AgentEnd, text: &str) {
    let heard = hears(agent, text, |message| match message {
        ToAgent::Desired(desired) if *desired == *text.as_bytes() => Some(()),
        _ => None,
    });
    tokio::select! {
        () = heard => {}
        () = listen(coordinator) => unreachable!("listening has no end"),
    }
}

/// Goes on listening, and writes again what the bus does not hold, as the driver does.
pub(super) async fn listen(coordinator: &mut CoordinatorEnd) {
    while let Some(message) = coordinator.next().await {
        if matches!(message, ToCoordinator::Tip(_)) {
            coordinator.publish_again();
        }
    }
    std::future::pending::<()>().await;
}

pub(super) async fn is_up(agent: &mut AgentEnd) {
    hears(agent, "that it is connected", |message| matches!(message, ToAgent::Link(Link::Up(_))).then_some(())).await;
}

/// Holds a transport to the contract.
pub(super) async fn holds(mut bus: Bus) -> Bus {
    let Bus { coordinator, agents } = &mut bus;
    coordinator.desired.send_replace(Some(bytes("old")));
    coordinator.desired.send_replace(Some(bytes("desired one")));
    for (_, agent) in agents.iter_mut() {
        is_up(agent).await;
        hears_desired(coordinator, agent, "desired one").await;
    }
    // The newest one, as often as it is said; also more than a broker sends to who says nothing.
    for text in (0..NEWER).map(|number| format!("newer {number}")).chain(["desired two".to_owned()]) {
        coordinator.desired.send_replace(Some(bytes(&text)));
        for (_, agent) in agents.iter_mut() {
            hears_desired(coordinator, agent, &text).await;
        }
    }
    reports_arrive(coordinator, agents).await;
    many_reports_arrive(coordinator, &mut agents[0]).await;
    permits_reach_their_host_alone(coordinator, agents).await;
    manifests_are_fetched_by_digest(coordinator, agents).await;
    bus
}

/// Holds a transport to what is said once, where every answer takes a second; and the lease to its being renewed in time.
pub(super) async fn holds_over_a_slow_way(
    coordinator: &mut CoordinatorEnd,
    agents: &mut [(HostName, AgentEnd)],
    clock: Clock,
) {
    leads_without_a_gap(coordinator, clock).await;
    for (_, agent) in agents.iter_mut() {
        is_up(agent).await;
    }
    reports_arrive(coordinator, agents).await;
    permits_reach_their_host_alone(coordinator, agents).await;
}

/// While nothing fails the lease is renewed before it ends.
async fn leads_without_a_gap(coordinator: &mut CoordinatorEnd, clock: Clock) {
    let mut until = None;
    for _ in 0..3 {
        let lease = is_told(coordinator, "that it leads", |message| match message {
            ToCoordinator::Lease(lease) => Some(lease.expect("a lease")),
            _ => None,
        });
        let lease = lease.await;
        // What was told first may have waited for us.
        assert!(until.is_none_or(|until| clock.now() < until), "the lease ended before it was renewed");
        until = Some(lease.until).filter(|until| clock.now() < *until);
    }
}

async fn reports_arrive(coordinator: &mut CoordinatorEnd, agents: &mut [(HostName, AgentEnd)]) {
    for (name, agent) in agents {
        let text = format!("report of {name}");
        // It may be lost; then it is said again.
        let told = is_told(coordinator, &text, |message| match message {
            ToCoordinator::Report(report) if *report == *text.as_bytes() => Some(()),
            _ => None,
        });
        let say = async {
            loop {
                agent.send(FromAgent::Report(bytes(&text))).unwrap();
                tokio::time::sleep(AGAIN).await;
            }
        };
        tokio::select! {
            () = told => {}
            () = say => {}
        }
    }
}

/// Reports that come faster than one after another, and more than a broker sends before it waits.
async fn many_reports_arrive(coordinator: &mut CoordinatorEnd, (name, agent): &mut (HostName, AgentEnd)) {
    for burst in 0..BURSTS {
        let words: BTreeSet<String> = (0..BURST).map(|number| format!("{burst}.{number} of {name}")).collect();
        for said in &words {
            agent.send(FromAgent::Report(bytes(said))).unwrap();
        }
        let mut missing = words;
        is_told(coordinator, "every report of a burst", |message| {
            if let ToCoordinator::Report(report) = message {
                missing.remove(&String::from_utf8_lossy(&report).into_owned());
            }
            missing.is_empty().then_some(())
        })
        .await;
    }
}

async fn permits_reach_their_host_alone(coordinator: &mut CoordinatorEnd, agents: &mut [(HostName, AgentEnd)]) {
    let names: Vec<HostName> = agents.iter().map(|(name, _)| name.clone()).collect();
    for (name, agent) in agents.iter_mut() {
        let wanted = format!("permit for {name}");
        let heard = hears(agent, &wanted, |message| match message {
            ToAgent::Permit(permit) if *permit == *wanted.as_bytes() => Some(()),
            ToAgent::Permit(permit) => panic!("{name} got {}", String::from_utf8_lossy(&permit)),
            _ => None,
        });
        let say = async {
            loop {
                for name in &names {
                    coordinator.send(FromCoordinator::Permit(name.clone(), bytes(&format!("permit for {name}"))));
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        tokio::select! {
            () = heard => {}
            () = say => {}
        }
    }
}

async fn manifests_are_fetched_by_digest(coordinator: &mut CoordinatorEnd, agents: &mut [(HostName, AgentEnd)]) {
    let (first, second) = (Fingerprint::of_bytes(b"1"), Fingerprint::of_bytes(b"2"));
    coordinator.manifests.put(first, bytes("manifest one"));
    coordinator.manifests.put(second, bytes("manifest two"));
    for (_, agent) in agents.iter_mut() {
        fetches(coordinator, agent, first, "manifest one").await;
        fetches(coordinator, agent, second, "manifest two").await;
    }
    assert_eq!(coordinator.manifests.retain(|digest| *digest == second), [first]);
    for (_, agent) in agents.iter_mut() {
        fetches(coordinator, agent, second, "manifest two").await;
    }
}

/// Asks for a manifest until it comes.
pub(super) async fn fetches(coordinator: &mut CoordinatorEnd, agent: &mut AgentEnd, digest: Fingerprint, text: &str) {
    let ask = async {
        loop {
            agent.send(FromAgent::WantManifest(digest)).unwrap();
            let heard = hears(agent, text, |message| match message {
                ToAgent::Manifest(of, manifest) if of == digest => Some(manifest),
                _ => None,
            });
            if let Ok(manifest) = tokio::time::timeout(AGAIN, heard).await {
                assert_eq!(*manifest, *text.as_bytes());
                return;
            }
        }
    };
    tokio::select! {
        asked = tokio::time::timeout(PATIENCE, ask) => asked.unwrap_or_else(|_| panic!("{text} was not fetched")),
        () = listen(coordinator) => {}
    }
}

#[tokio::test]
async fn the_embedded_bus_keeps_the_contract() {
    let (coordinator, coordinator_side) = ends::coordinator();
    let (agent, agent_side) = ends::agent();
    let bus = Bus { coordinator, agents: vec![(host(1), agent)] };
    tokio::select! {
        _ = holds(bus) => {}
        () = super::embedded::run(coordinator_side, agent_side) => panic!("the bus ended"),
    }
}

#[tokio::test]
async fn an_end_that_is_gone_ends_the_embedded_bus() {
    let (coordinator, coordinator_side) = ends::coordinator();
    let (agent, agent_side) = ends::agent();
    drop(agent);
    tokio::time::timeout(PATIENCE, super::embedded::run(coordinator_side, agent_side)).await.unwrap();
    drop(coordinator);
}
