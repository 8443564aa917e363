//! The two ends that a bus has, and the sides that a transport works on.
//!
//! The coordinator's driver and the agent's pump hold an *end*; a transport holds the *side* behind it and carries
//! bytes between that side and its broker, or the other side. What has a state (desired, manifests, link) is
//! kept and may be told again at any time; what is said once (reports, permits, leases) may be lost. A transport that has lost
//! its broker says so on its side and goes on trying.

use super::envelope::{Channel, Encoded};
use super::queue::{Closed, Receiver, Sender, queue};
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::watch;
use unstale_protocol::fingerprint::Fingerprint;
use unstale_protocol::ids::{Epoch, HostName};
use unstale_protocol::time::Moment;

/// Messages that wait for the coordinator's driver; a transport that can leave them at its broker does.
const TO_COORDINATOR_MAX: usize = 256;
/// Permits and other words that wait for the coordinator's transport.
const FROM_COORDINATOR_MAX: usize = 1024;
/// Messages that wait for an agent that is busy; older permits have expired by then.
const TO_AGENT_MAX: usize = 64;
/// Messages that wait for an agent's transport.
const FROM_AGENT_MAX: usize = 64;

/// Whether a transport reaches its broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// Not yet, or no longer, and why.
    Down(String),
    /// In the session of this number, from 1.
    Up(u64),
}

/// Leadership, as the broker grants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// The fencing number of what is written under it, where the broker gives one.
    pub(crate) epoch: Option<Epoch>,
    /// It ends then, on the coordinator's own clock, counted from before it was asked for.
    pub(crate) until: Moment,
}

/// What the coordinator's driver hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToCoordinator {
    /// The link has changed.
    Link(Link),
    /// The lease was granted or renewed, or is lost.
    Lease(Option<Lease>),
    /// An envelope with a report or a request.
    Report(Encoded),
    /// What the bus retains as desired, where it is not what this coordinator published last. `None` where there is
    /// nothing. What was there before a lease is told before that lease.
    Tip(Option<Encoded>),
    /// An envelope with the manifest of this digest, as the bus says: one that was to be looked up.
    Manifest(Fingerprint, Encoded),
}

/// What the coordinator's transport is told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FromCoordinator {
    /// An envelope with a permit, or a question, for this host.
    Permit(HostName, Encoded),
    /// The manifest of this digest is not here: if the bus itself keeps manifests, this one is to be told.
    LookUp(Fingerprint),
    /// The host will not come back: what the bus holds for it is to be removed.
    Forget(HostName),
}

/// What an agent hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToAgent {
    /// The link has changed.
    Link(Link),
    /// An envelope with a desired state.
    Desired(Encoded),
    /// An envelope with a permit or a question.
    Permit(Encoded),
    /// An envelope with the manifest of this digest, as the bus says.
    Manifest(Fingerprint, Encoded),
}

/// What an agent's transport is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FromAgent {
    /// An envelope with a report or a request.
    Report(Encoded),
    /// The manifest of this digest is needed. One that is not there yet is asked for again.
    WantManifest(Fingerprint),
}

/// The coordinator's end.
#[derive(Debug)]
pub(crate) struct CoordinatorEnd {
    /// Publishes the desired state; a later one replaces an earlier one that nobody has seen. Whatever is sent here,
    /// also the same again, is written to the bus.
    pub(crate) desired: watch::Sender<Option<Encoded>>,
    /// The least number that does for a lease: above every reign that is known here.
    pub(crate) least_epoch: watch::Sender<Epoch>,
    /// Manifests by digest: what agents can fetch. Who owns it takes away what nobody wants.
    pub(crate) manifests: Shelf,
    outgoing: Sender<FromCoordinator>,
    incoming: Receiver<ToCoordinator>,
    link: watch::Receiver<Link>,
}

/// The transport's side of it.
#[derive(Debug)]
pub(crate) struct CoordinatorSide {
    pub(crate) desired: watch::Receiver<Option<Encoded>>,
    pub(crate) least_epoch: watch::Receiver<Epoch>,
    pub(crate) manifests: watch::Receiver<BTreeMap<Fingerprint, Encoded>>,
    pub(crate) outgoing: Receiver<FromCoordinator>,
    pub(crate) incoming: Sender<ToCoordinator>,
    pub(crate) link: watch::Sender<Link>,
}

/// The agent's end.
#[derive(Debug)]
pub(crate) struct AgentEnd {
    outgoing: Sender<FromAgent>,
    incoming: Receiver<ToAgent>,
    link: watch::Receiver<Link>,
}

/// The transport's side of it.
#[derive(Debug)]
pub(crate) struct AgentSide {
    pub(crate) outgoing: Receiver<FromAgent>,
    pub(crate) incoming: Sender<ToAgent>,
    pub(crate) link: watch::Sender<Link>,
}

fn not_yet() -> Link {
    Link::Down("not connected yet".to_owned())
}

/// Makes the coordinator's end and the side behind it.
pub(crate) fn coordinator() -> (CoordinatorEnd, CoordinatorSide) {
    let (desired, desired_seen) = watch::channel(None);
    let (least_epoch, epoch_seen) = watch::channel(Epoch::default());
    let (shelf, manifests) = watch::channel(BTreeMap::new());
    let (outgoing, outgoing_taken) = queue(FROM_COORDINATOR_MAX);
    let (incoming, incoming_taken) = queue(TO_COORDINATOR_MAX);
    let (link, link_seen) = watch::channel(not_yet());
    (
        CoordinatorEnd {
            desired,
            least_epoch,
            manifests: Shelf(shelf),
            outgoing,
            incoming: incoming_taken,
            link: link_seen,
        },
        CoordinatorSide {
            desired: desired_seen,
            least_epoch: epoch_seen,
            manifests,
            outgoing: outgoing_taken,
            incoming,
            link,
        },
    )
}

/// Makes an agent's end and the side behind it.
pub(crate) fn agent() -> (AgentEnd, AgentSide) {
    let (outgoing, outgoing_taken) = queue(FROM_AGENT_MAX);
    let (incoming, incoming_taken) = queue(TO_AGENT_MAX);
    let (link, link_seen) = watch::channel(not_yet());
    (
        AgentEnd { outgoing, incoming: incoming_taken, link: link_seen },
        AgentSide { outgoing: outgoing_taken, incoming, link },
    )
}

impl CoordinatorEnd {
    /// Tells the transport something once.
    pub(crate) fn send(&self, message: FromCoordinator) {
        // A transport that is gone ends the process; until then nothing rests on what it is told.
        self.outgoing.send(message).unwrap_or_default();
    }

    /// Publishes again what was published last.
    #[cfg(test)]
    pub(crate) fn publish_again(&self) {
        self.desired.send_modify(|_| {});
    }

    /// Returns what comes next; `None` once the transport is gone.
    ///
    /// # Cancel safety
    /// Safe: a message is taken only by a call that returns it.
    pub(crate) async fn next(&mut self) -> Option<ToCoordinator> {
        tokio::select! {
            biased;
            Ok(()) = self.link.changed() => Some(ToCoordinator::Link(self.link.borrow_and_update().clone())),
            message = self.incoming.receive() => message,
        }
    }

    /// Returns what comes next where it is here already, the link apart.
    pub(crate) fn waiting(&mut self) -> Option<ToCoordinator> {
        self.incoming.take()
    }
}

/// Hands a message to the coordinator. Of an envelope that is longer than any of its kind only so much is kept that
/// this shows.
///
/// # Errors
/// [`Closed`] where the coordinator is gone.
pub(crate) fn deliver(incoming: &Sender<ToCoordinator>, message: ToCoordinator) -> Result<(), Closed> {
    incoming.send(match message {
        ToCoordinator::Report(bytes) => ToCoordinator::Report(Channel::Report.shortened(bytes)),
        ToCoordinator::Tip(Some(bytes)) => ToCoordinator::Tip(Some(Channel::Desired.shortened(bytes))),
        ToCoordinator::Manifest(digest, bytes) => ToCoordinator::Manifest(digest, Channel::Manifest.shortened(bytes)),
        other => other,
    })
}

impl AgentEnd {
    /// Tells the transport something once.
    ///
    /// # Errors
    /// [`Closed`] where it is gone.
    pub(crate) fn send(&self, message: FromAgent) -> Result<(), Closed> {
        self.outgoing.send(message)
    }

    /// Returns what comes next; `None` once the transport is gone.
    ///
    /// # Cancel safety
    /// Safe: a message is taken only by a call that returns it.
    pub(crate) async fn next(&mut self) -> Option<ToAgent> {
        tokio::select! {
            biased;
            Ok(()) = self.link.changed() => Some(ToAgent::Link(self.link.borrow_and_update().clone())),
            message = self.incoming.receive() => message,
        }
    }
}

/// Manifests by digest: what a key of its own is on a network bus. Who owns it takes away what nobody wants.
#[derive(Debug)]
pub(crate) struct Shelf(watch::Sender<BTreeMap<Fingerprint, Encoded>>);

impl Shelf {
    /// Lays a manifest out.
    pub(crate) fn put(&self, digest: Fingerprint, envelope: Encoded) {
        self.0.send_modify(|manifests| {
            manifests.insert(digest, envelope);
        });
    }

    /// Returns which manifests lie there.
    pub(crate) fn digests(&self) -> BTreeSet<Fingerprint> {
        self.0.borrow().keys().copied().collect()
    }

    /// Takes away all that `is_wanted` does not choose, and returns which those were.
    pub(crate) fn retain(&self, is_wanted: impl Fn(&Fingerprint) -> bool) -> Vec<Fingerprint> {
        let gone: Vec<Fingerprint> = self.0.borrow().keys().filter(|digest| !is_wanted(digest)).copied().collect();
        if !gone.is_empty() {
            self.0.send_modify(|manifests| manifests.retain(|digest, _| is_wanted(digest)));
        }
        gone
    }
}
