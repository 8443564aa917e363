//! Between a bus and the agent's driver: envelopes on one side, messages on the other.
//!
//! What makes no sense, is not signed by whom it should be, or is for somebody else is skipped and counted.

use super::manifests::Kept;
use crate::bus::ends::{AgentEnd, FromAgent, Link, ToAgent};
use crate::bus::envelope::{Channel, Encoded, Rejected, Seal};
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use unstale_agent::driver::{Incoming, Outgoing};
use unstale_protocol::fingerprint::Fingerprint;
use unstale_protocol::ids::HostName;
use unstale_protocol::manifest::Manifest;
use unstale_protocol::message::{Downward, Report, Upward};
use unstale_protocol::piece::{Fetch, Piece};

/// Least pause between two pieces of manifests: of questions that come faster, the last one is answered. A host's stream
/// keeps some of before, and whoever records one can say it again.
const PIECE_PAUSE: Duration = Duration::from_millis(50);

/// Carries messages until `shutdown` is cancelled or either side is gone.
///
/// # Errors
/// None: a bus never fails, it only loses messages.
pub(super) async fn run(
    (mut bus, seal): (AgentEnd, Seal),
    (host, kept): (HostName, Kept),
    incoming: mpsc::Sender<Incoming>,
    mut outgoing: mpsc::Receiver<Outgoing>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut post = Post { seal, host, kept, asked: None };
    let mut keys_due = post.seal.keys_due();
    let mut piece_due = interval(PIECE_PAUSE);
    piece_due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            message = bus.next() => match message {
                Some(message) => post.open(message),
                None => return Ok(()),
            },
            message = outgoing.recv() => {
                let Some(message) = message else { return Ok(()) };
                let kept = post.kept(&message);
                if kept.is_none()
                    && let Some(message) = post.close(&message)
                    && bus.send(message).is_err()
                {
                    return Ok(());
                }
                kept
            }
            _ = piece_due.tick(), if post.asked.is_some() => {
                if let Some(piece) = post.piece()
                    && bus.send(piece).is_err()
                {
                    return Ok(());
                }
                None
            }
            () = keys_due.tick() => {
                post.seal.refresh();
                None
            }
            () = shutdown.cancelled() => return Ok(()),
        };
        let Some(message) = message else { continue };
        tokio::select! {
            sent = incoming.send(message) => if sent.is_err() { return Ok(()) },
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

/// What opens and closes the envelopes of one host.
struct Post {
    seal: Seal,
    host: HostName,
    kept: Kept,
    /// The piece of a manifest that its coordinator lacks.
    asked: Option<Fetch>,
}

impl Post {
    fn open(&mut self, message: ToAgent) -> Option<Incoming> {
        match message {
            ToAgent::Link(Link::Up(session)) => {
                tracing::info!(session, "connected to the bus");
                Some(Incoming::Connected)
            }
            // The transport has said why.
            ToAgent::Link(Link::Down(_)) => None,
            ToAgent::Desired(envelope) => {
                self.read(Channel::Desired, &envelope).map(|desired| Incoming::Desired(Box::new(desired)))
            }
            ToAgent::Permit(envelope) => {
                // What is rejected is counted where it is.
                let opened = self.seal.open(Channel::Permit, &envelope).ok()?;
                let message = self.understood(Channel::Permit, Downward::from_json(&opened.payload))?;
                self.take(message)
            }
            ToAgent::Manifest(digest, envelope) => {
                let manifest = self.read_manifest(digest, &envelope)?;
                Some(Incoming::Manifest(digest, Arc::new(manifest)))
            }
        }
    }

    /// Takes what is said to one host alone.
    fn take(&mut self, message: Downward) -> Option<Incoming> {
        let host = match &message {
            Downward::Permit(permit) => &permit.host,
            Downward::Fetch(fetch) => &fetch.host,
            Downward::Unknown => return None,
        };
        if *host != self.host {
            self.seal.reject(Channel::Permit, Rejected::OtherHost);
            return None;
        }
        match message {
            Downward::Permit(permit) => return Some(Incoming::Permit(Box::new(permit))),
            Downward::Fetch(fetch) => self.asked = Some(fetch),
            Downward::Unknown => {}
        }
        None
    }

    /// Answers the question for a piece, where what it is of is kept.
    fn piece(&mut self) -> Option<FromAgent> {
        let fetch = self.asked.take()?;
        let piece = Piece::cut(&fetch, &self.kept.read(fetch.manifest)?)?;
        if fetch.from == 0 {
            tracing::info!(manifest = %fetch.manifest, "manifest sent to the coordinator, which lacks it");
        }
        let payload = serde_json::to_string(&Upward::Piece(piece)).ok()?;
        self.seal.close(Channel::Report, &payload).ok().map(FromAgent::Report)
    }

    fn read_manifest(&mut self, digest: Fingerprint, envelope: &Encoded) -> Option<Manifest> {
        let opened = self.seal.open(Channel::Manifest, envelope).ok()?;
        if Fingerprint::of_bytes(opened.payload.as_bytes()) != digest {
            self.seal.reject(Channel::Manifest, Rejected::Digest);
            return None;
        }
        let manifest = self.understood(Channel::Manifest, serde_json::from_str(&opened.payload))?;
        self.kept.write(digest, &opened.payload);
        Some(manifest)
    }

    /// Answers a question from what is kept: a digest says all that a signature would.
    fn kept(&self, message: &Outgoing) -> Option<Incoming> {
        let Outgoing::WantManifest(digest) = message else { return None };
        let manifest = serde_json::from_str(&self.kept.read(*digest)?).ok()?;
        Some(Incoming::Manifest(*digest, Arc::new(manifest)))
    }

    fn read<T: DeserializeOwned>(&mut self, channel: Channel, envelope: &Encoded) -> Option<T> {
        // What is rejected is counted where it is.
        let opened = self.seal.open(channel, envelope).ok()?;
        self.understood(channel, serde_json::from_str(&opened.payload))
    }

    fn understood<T>(&mut self, channel: Channel, message: Result<T, serde_json::Error>) -> Option<T> {
        match message {
            Ok(message) => Some(message),
            Err(error) => {
                tracing::debug!(%error, "message makes no sense");
                self.seal.reject(channel, Rejected::Payload);
                None
            }
        }
    }

    fn close(&self, message: &Outgoing) -> Option<FromAgent> {
        match message {
            Outgoing::Upward(message) => {
                let counted = match message.as_ref() {
                    Upward::Report(report) => {
                        Cow::Owned(Upward::Report(Report { rejected: self.seal.rejected(), ..report.clone() }))
                    }
                    other => Cow::Borrowed(other),
                };
                let payload = serde_json::to_string(&counted).ok()?;
                self.seal.close(Channel::Report, &payload).ok().map(FromAgent::Report)
            }
            Outgoing::WantManifest(digest) => Some(FromAgent::WantManifest(*digest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::envelope::FleetName;
    use serde_json::json;

    fn post() -> Post {
        below(std::path::Path::new("/proc/nonexistent"))
    }

    fn below(state: &std::path::Path) -> Post {
        let seal = Seal::bare(FleetName::new("default").unwrap());
        Post { seal, host: HostName::new("web-1").unwrap(), kept: Kept::below(state), asked: None }
    }

    #[test]
    fn a_manifest_that_was_taken_is_there_for_the_next_life() {
        let state = tempfile::tempdir().unwrap();
        let mut first = below(state.path());
        let text = serde_json::to_string(&Manifest::default()).unwrap();
        let digest = Fingerprint::of_bytes(text.as_bytes());
        assert!(first.kept(&Outgoing::WantManifest(digest)).is_none());
        let envelope = first.seal.close(Channel::Manifest, &text).unwrap();
        assert!(first.open(ToAgent::Manifest(digest, envelope)).is_some());
        let next = below(state.path());
        assert!(matches!(next.kept(&Outgoing::WantManifest(digest)), Some(Incoming::Manifest(of, _)) if of == digest));
        assert!(next.kept(&Outgoing::WantManifest(Fingerprint::of_bytes(b"other"))).is_none());
    }

    fn fetch(host: &str, manifest: Fingerprint) -> String {
        serde_json::to_string(&Fetch { host: HostName::new(host).unwrap(), manifest, from: 0 }).unwrap()
    }

    #[test]
    fn a_coordinator_that_asks_is_told_what_is_kept() {
        let state = tempfile::tempdir().unwrap();
        let mut post = below(state.path());
        let digest = Fingerprint::of_bytes(b"{}");
        post.kept.write(digest, "{}");
        let mut ask = |payload: &str| {
            let envelope = post.seal.close(Channel::Permit, payload).unwrap();
            assert!(post.open(ToAgent::Permit(envelope)).is_none());
            post.piece()
        };
        let Some(FromAgent::Report(envelope)) = ask(&fetch("web-1", digest)) else { panic!("no answer") };
        assert_eq!(ask(&fetch("web-2", digest)), None, "somebody else was asked");
        assert_eq!(ask(&fetch("web-1", Fingerprint::of_bytes(b"x"))), None, "it is not here");
        let opened = post.seal.open(Channel::Report, &envelope).unwrap();
        let Ok(Upward::Piece(piece)) = Upward::from_json(&opened.payload) else { panic!("no piece") };
        assert_eq!((piece.host.as_str(), piece.manifest, piece.text.as_str()), ("web-1", digest, "{}"));
        assert_eq!(post.seal.rejected()["other_host"], 1);
    }

    #[test]
    fn the_longest_piece_fits_into_a_report() {
        let state = tempfile::tempdir().unwrap();
        let mut post = below(state.path());
        let text = "\"".repeat(unstale_protocol::manifest::MANIFEST_MAX_BYTES);
        let digest = Fingerprint::of_bytes(text.as_bytes());
        post.kept.write(digest, &text);
        let envelope = post.seal.close(Channel::Permit, &fetch("web-1", digest)).unwrap();
        post.open(ToAgent::Permit(envelope));
        let Some(FromAgent::Report(envelope)) = post.piece() else { panic!("no answer") };
        assert!(post.seal.open(Channel::Report, &envelope).is_ok(), "{} bytes", envelope.len());
    }

    fn permit(host: &str) -> String {
        let salt = "00".repeat(16);
        json!({
            "host": host, "slot": "celery/none/x/0/1", "identity": {"pid": 7, "start_ticks": 1, "pid_namespace": 0},
            "nonce": {"incarnation": {"counter": 1, "random": salt}, "at": 5},
            "version": {"epoch": 1, "generation": 1}, "purpose": {"drain": "drain-1"},
        })
        .to_string()
    }

    #[test]
    fn a_permit_for_another_host_is_not_taken() {
        let mut post = post();
        let close = |payload: &str| post.seal.close(Channel::Permit, payload).unwrap();
        let (ours, others, noise) = (close(&permit("web-1")), close(&permit("web-2")), close("{}"));
        assert!(matches!(post.open(ToAgent::Permit(ours)), Some(Incoming::Permit(_))));
        assert!(post.open(ToAgent::Permit(others)).is_none());
        assert!(post.open(ToAgent::Permit(noise)).is_none());
        let rejected = post.seal.rejected();
        assert_eq!((rejected["other_host"], rejected["payload"]), (1, 1));
    }

    #[test]
    fn a_report_says_which_messages_changed_nothing_here() {
        let mut post = post();
        for _ in 0..2 {
            assert!(post.open(ToAgent::Permit(b"{".as_slice().into())).is_none());
        }
        let salt = "00".repeat(16);
        let report = json!({
            "kind": "report", "host": "web-1", "incarnation": {"counter": 1, "random": salt}, "sequence": 1, "clock": 5,
            "accepted": {"epoch": 1, "generation": 1}, "apps": {}, "pools": {}, "slots": [],
        });
        let report = Box::new(Upward::from_json(&report.to_string()).unwrap());
        let Some(FromAgent::Report(envelope)) = post.close(&Outgoing::Upward(report)) else { panic!("no report") };
        let opened = post.seal.open(Channel::Report, &envelope).unwrap();
        let Ok(Upward::Report(report)) = Upward::from_json(&opened.payload) else { panic!("no report") };
        assert_eq!(report.rejected["not_an_envelope"], 2);
    }

    #[test]
    fn a_manifest_under_another_digest_is_not_taken() {
        let mut post = post();
        let text = serde_json::to_string(&Manifest::default()).unwrap();
        let envelope = post.seal.close(Channel::Manifest, &text).unwrap();
        let digest = Fingerprint::of_bytes(text.as_bytes());
        assert!(matches!(post.open(ToAgent::Manifest(digest, Arc::clone(&envelope))), Some(Incoming::Manifest(..))));
        assert!(post.open(ToAgent::Manifest(Fingerprint::of_bytes(b"x"), envelope)).is_none());
        assert_eq!(post.seal.rejected()["digest"], 1);
    }
}
