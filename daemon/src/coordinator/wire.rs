//! The driver's words on the bus: envelopes out, envelopes in, and what is there instead of ours.

use super::{Driver, records};
use crate::api::StatusBus;
use crate::bus::ends::{FromCoordinator, Link, ToCoordinator};
use crate::bus::envelope::{Channel, Encoded, Opened, Rejected};
use crate::store::Change;
use anyhow::Context as _;
use unstale_protocol::coordinator::Lease;
use unstale_protocol::fingerprint::Fingerprint;
use unstale_protocol::ids::{Epoch, Generation, Version};
use unstale_protocol::message::{Desired, Report, Upward};
use unstale_protocol::piece::Fetch;
use unstale_protocol::time::Moment;

/// Messages of the bus that are heard before what follows from them is done.
const HEARD_AT_ONCE: usize = 256;
/// Bytes of reports after which no more are taken for that, whatever their number.
const HEARD_BYTES: usize = 1 << 20;
/// No epoch, generation or revision gets there by counting. One near the greatest number that there is would be the last:
/// what follows it would be no higher, and coordinator and agents keep it on their disks. Redis' Lua, which compares
/// epochs, counts exactly up to 2^53 only.
const NUMBER_MAX: u64 = 1 << 52;

impl Driver {
    pub(super) fn publish(&mut self, desired: &Desired) -> anyhow::Result<()> {
        let payload = serde_json::to_string(desired).context("cannot encode the desired state")?;
        let envelope = self.seal.close(Channel::Desired, &payload).context("cannot encode the desired state")?;
        self.bus.desired.send_replace(Some(envelope));
        Ok(())
    }

    /// Lays all manifests of the store out for agents to fetch.
    pub(super) fn lay_manifests_out(&self) -> anyhow::Result<()> {
        for (digest, bytes) in records::manifests(&self.store).context("cannot read the manifests")? {
            self.lay_manifest_out(digest, &bytes)?;
        }
        Ok(())
    }

    pub(super) fn lay_manifest_out(&self, digest: Fingerprint, bytes: &[u8]) -> anyhow::Result<()> {
        let payload = std::str::from_utf8(bytes).context("a manifest is not text")?;
        let envelope = self.seal.close(Channel::Manifest, payload).context("cannot encode a manifest")?;
        self.bus.manifests.put(digest, envelope);
        Ok(())
    }

    /// Writes a manifest to disk and lays it out.
    pub(super) fn keep_manifest(&self, digest: Fingerprint, bytes: &[u8]) -> anyhow::Result<()> {
        let change = |value| Change { table: records::MANIFESTS.to_owned(), key: digest.to_string(), value };
        self.store.commit(&[change(Some(bytes.to_vec()))]).context("cannot write the manifest")?;
        self.lay_manifest_out(digest, bytes)
    }

    /// Asks one host for a piece of a manifest.
    pub(super) fn fetch(&self, fetch: Fetch) -> anyhow::Result<()> {
        let what = "cannot encode a question for a manifest";
        let payload = serde_json::to_string(&fetch).context(what)?;
        let envelope = self.seal.close(Channel::Permit, &payload).context(what)?;
        tracing::debug!(host = %fetch.host, manifest = %fetch.manifest, from = fetch.from, "manifest asked for");
        self.bus.send(FromCoordinator::Permit(fetch.host, envelope));
        Ok(())
    }

    /// Follows changes of the files of keys; everything that is retained on the bus is signed with the newest.
    pub(super) fn refresh_keys(&mut self) -> anyhow::Result<()> {
        let before = self.seal.key();
        self.seal.refresh();
        if self.seal.key() != before {
            self.lay_manifests_out()?;
            self.publish(&self.machine.desired())?;
        }
        Ok(())
    }

    /// Hears a message and what has come meanwhile: thousands of reports at once do not wait for as many fsyncs, and
    /// their signatures are looked at together.
    pub(super) fn hear_with_waiting(&mut self, first: ToCoordinator) {
        let mut bytes = size(&first);
        let mut messages = vec![first];
        while messages.len() < HEARD_AT_ONCE && bytes < HEARD_BYTES {
            let Some(message) = self.bus.waiting() else { break };
            bytes += size(&message);
            messages.push(message);
        }
        let mut opened = self.seal.open_all(Channel::Report, messages.iter().filter_map(report)).into_iter();
        for message in messages {
            match message {
                // What is rejected was counted where it is.
                ToCoordinator::Report(_) => {
                    if let Some(Ok(opened)) = opened.next() {
                        self.take(&opened);
                    }
                }
                ToCoordinator::Tip(found) => self.look_at_tip(found.as_ref()),
                ToCoordinator::Manifest(digest, envelope) => self.take_manifest(digest, &envelope),
                ToCoordinator::Lease(Some(lease)) => {
                    self.machine.handle_lease(Lease { until: lease.until, epoch: lease.epoch }, self.clock.now());
                }
                ToCoordinator::Lease(None) => self.machine.handle_lease_lost(self.clock.now()),
                ToCoordinator::Link(link) => self.take_link(link),
            }
        }
    }

    /// Returns what is to be said of a network's bus.
    pub(super) fn bus_status(&self, now: Moment) -> Option<StatusBus> {
        let url = self.bus_url.clone()?;
        let because = match &self.link {
            Some(Link::Up(_)) => None,
            Some(Link::Down(why)) => Some(why.clone()),
            None => Some("not connected yet".to_owned()),
        };
        Some(StatusBus {
            url,
            fleet: self.seal.fleet().to_string(),
            connected: because.is_none(),
            because,
            leads: self.machine.leads(now),
            leader: self.machine.leader(now).map(ToString::to_string),
            signed: Some(self.seal.key().is_some()),
            key: self.seal.key().map(|key| key.to_string()),
            rejected: self.seal.rejected(),
        })
    }

    fn take_link(&mut self, link: Link) {
        match &link {
            Link::Up(session) => {
                tracing::info!(session, "connected to the bus");
                self.machine.handle_connected(self.clock.now());
            }
            // The transport has said why.
            Link::Down(_) => self.machine.handle_disconnected(self.clock.now()),
        }
        self.link = Some(link);
    }

    fn take(&mut self, opened: &Opened) {
        let message = Upward::from_json(&opened.payload);
        let host = match &message {
            Ok(Upward::Report(report)) => &report.host,
            Ok(Upward::Ask(ask)) => &ask.host,
            Ok(Upward::Piece(piece)) => &piece.host,
            Ok(Upward::Unknown) => return tracing::debug!("message of an unknown kind skipped"),
            Err(error) => {
                tracing::debug!(%error, "message makes no sense");
                return self.seal.reject(Channel::Report, Rejected::Payload);
            }
        };
        if self.seal.check_speaker(opened.by.as_ref(), host).is_err() {
            return;
        }
        let now = self.clock.now();
        match message {
            Ok(Upward::Report(report)) if !self.is_countable(&report) => {
                self.seal.reject(Channel::Report, Rejected::Payload);
            }
            Ok(Upward::Report(report)) => self.machine.handle_report(report, now),
            Ok(Upward::Ask(ask)) => self.machine.handle_ask(ask, now),
            Ok(Upward::Piece(piece)) => self.machine.handle_piece(&piece, now),
            Ok(Upward::Unknown) | Err(_) => {}
        }
    }

    /// Takes a manifest from where the bus keeps it. What is rejected is counted, as on agents.
    fn take_manifest(&mut self, digest: Fingerprint, envelope: &Encoded) {
        let Ok(opened) = self.seal.open(Channel::Manifest, envelope) else { return };
        if Fingerprint::of_bytes(opened.payload.as_bytes()) != digest {
            return self.seal.reject(Channel::Manifest, Rejected::Digest);
        }
        self.machine.handle_manifest(opened.payload, self.clock.now());
    }

    /// Tells whether what the report makes the machine go beyond leaves it room. Numbers of our own are believed, however
    /// high they have come to be: agents follow them.
    fn is_countable(&self, report: &Report) -> bool {
        let Version { epoch, generation } = self.machine.version();
        let is_known = |app, revision| self.machine.rollouts(app).any(|rollout| rollout.revision >= revision);
        report.accepted.epoch <= epoch.max(Epoch(NUMBER_MAX))
            && report.accepted.generation <= generation.max(Generation(NUMBER_MAX))
            && report.apps.iter().all(|(app, told)| told.revision.0 <= NUMBER_MAX || is_known(app, told.revision))
    }

    /// Something else than ours is on the bus: nothing, an older state, a later reign's, or somebody's noise.
    fn look_at_tip(&mut self, found: Option<&Encoded>) {
        let desired = found.and_then(|envelope| {
            let opened = self.seal.open(Channel::Desired, envelope).ok()?;
            let desired = serde_json::from_str::<Desired>(&opened.payload);
            desired.inspect_err(|_| self.seal.reject(Channel::Desired, Rejected::Payload)).ok()
        });
        match desired {
            Some(desired) => self.machine.handle_found(Some(&desired), self.clock.now()),
            // Nothing, or noise: as good as nothing.
            None => self.machine.handle_found(None, self.clock.now()),
        }
    }
}

fn report(message: &ToCoordinator) -> Option<&Encoded> {
    match message {
        ToCoordinator::Report(envelope) => Some(envelope),
        ToCoordinator::Tip(_) | ToCoordinator::Manifest(..) | ToCoordinator::Lease(_) | ToCoordinator::Link(_) => None,
    }
}

fn size(message: &ToCoordinator) -> usize {
    report(message).map_or(0, |envelope| envelope.len())
}
