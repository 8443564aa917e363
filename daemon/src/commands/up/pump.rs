//! Between the embedded bus and the agent's driver: bytes on one side, messages on the other.
//!
//! What makes no sense is skipped and counted in the log, as on a network bus.

use crate::bus::embedded::{AgentEnd, Encoded};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use unstale_agent::driver::{Incoming, Outgoing};
use unstale_protocol::manifest::Manifest;

/// Carries messages until `shutdown` is cancelled or either side is gone.
///
/// # Errors
/// None: a bus never fails, it only loses messages.
pub(super) async fn run(
    mut bus: AgentEnd,
    incoming: mpsc::Sender<Incoming>,
    mut outgoing: mpsc::Receiver<Outgoing>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let carry = async {
        if incoming.send(Incoming::Connected).await.is_err() {
            return;
        }
        // What was published before is newest, too.
        bus.desired.mark_changed();
        loop {
            let message = tokio::select! {
                changed = bus.desired.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let bytes = bus.desired.borrow_and_update().clone();
                    bytes.and_then(|bytes| decode(&bytes)).map(|desired| Incoming::Desired(Box::new(desired)))
                }
                permit = bus.permits.receive() => match permit {
                    Some(bytes) => decode(&bytes).map(|permit| Incoming::Permit(Box::new(permit))),
                    None => return,
                },
                message = outgoing.recv() => match message {
                    Some(Outgoing::Upward(message)) => {
                        if let Ok(bytes) = serde_json::to_vec(&message)
                            && bus.reports.send(&bytes).is_err()
                        {
                            return;
                        }
                        None
                    }
                    // One that is not there yet is asked for again.
                    Some(Outgoing::WantManifest(digest)) => bus
                        .manifests
                        .fetch(&digest)
                        .and_then(|bytes| decode::<Manifest>(&bytes))
                        .map(|manifest| Incoming::Manifest(digest, Arc::new(manifest))),
                    None => return,
                },
            };
            if let Some(message) = message
                && incoming.send(message).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = carry => {}
        () = shutdown.cancelled() => {}
    }
    Ok(())
}

fn decode<T: DeserializeOwned>(bytes: &Encoded) -> Option<T> {
    match serde_json::from_slice(bytes) {
        Ok(message) => Some(message),
        Err(error) => {
            tracing::warn!(%error, "message that makes no sense skipped");
            None
        }
    }
}
