//! The in-process transport of `unstale up`: one coordinator, one agent, the messages of a network bus.
//!
//! The newest desired state is kept and never expires. There is no lease: nobody else can lead.

use super::ends::{AgentSide, CoordinatorSide, FromAgent, FromCoordinator, Link, ToAgent, ToCoordinator, deliver};
use super::queue::Closed;

/// Carries messages between the two sides until either end is gone.
pub(crate) async fn run(coordinator: CoordinatorSide, agent: AgentSide) {
    // Either end that is gone takes the other with it.
    carry(coordinator, agent).await.unwrap_or_default();
}

async fn carry(mut coordinator: CoordinatorSide, mut agent: AgentSide) -> Result<(), Closed> {
    coordinator.link.send_replace(Link::Up(1));
    agent.link.send_replace(Link::Up(1));
    // What was published before is newest, too.
    coordinator.desired.mark_changed();
    loop {
        tokio::select! {
            changed = coordinator.desired.changed() => {
                changed.map_err(|_| Closed)?;
                let desired = coordinator.desired.borrow_and_update().clone();
                if let Some(desired) = desired {
                    agent.incoming.send(ToAgent::Desired(desired))?;
                }
            }
            message = coordinator.outgoing.receive() => match message.ok_or(Closed)? {
                FromCoordinator::Permit(_, permit) => agent.incoming.send(ToAgent::Permit(permit))?,
                // Nothing is kept for a host, and no manifest but the coordinator's own.
                FromCoordinator::Forget(_) | FromCoordinator::LookUp(_) => {}
            },
            message = agent.outgoing.receive() => match message.ok_or(Closed)? {
                FromAgent::Report(report) => deliver(&coordinator.incoming, ToCoordinator::Report(report))?,
                FromAgent::WantManifest(digest) => {
                    let manifest = coordinator.manifests.borrow().get(&digest).cloned();
                    if let Some(manifest) = manifest {
                        agent.incoming.send(ToAgent::Manifest(digest, manifest))?;
                    }
                }
            },
        }
    }
}
