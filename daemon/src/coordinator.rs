//! The driver of the coordinator's mind: store, bus and control API on one side, the machine on the other.
//!
//! It decides nothing. What the machine wants stored is on disk before anything that rests on it leaves;
//! where the disk refuses, the driver ends rather than go on without it.

mod answers;
mod doubt;
mod dry;
mod journal;
mod people;
mod records;
mod why;
mod wire;

use crate::api;
use crate::bus::ends::{CoordinatorEnd, FromCoordinator, Link};
use crate::bus::envelope::{Channel, Seal};
use crate::cli::Selector;
use crate::clock::{Clock, wall_ms};
use crate::control::{Answer, Command, Desk};
use crate::store::{Change, Store};
use anyhow::Context as _;
use doubt::Doubts;
use journal::Journal;
use tokio_util::sync::CancellationToken;
use unstale_protocol::coordinator::{
    Action, Broadcast, Coordinator, CoordinatorPolicy, DrainRecord, Record, Refused, Terms,
};
use unstale_protocol::fingerprint::Fingerprint;
use unstale_protocol::ids::{AppName, HostName, Pid, SlotId, Version};
use unstale_protocol::manifest::{MANIFEST_MAX_BYTES, Manifest};

/// Longest `-m`, key or value of `--meta`, in bytes, and most of the latter.
const NOTE_MAX_BYTES: usize = 4096;
const NOTES_MAX: usize = 64;
/// What a drain takes in the desired state's envelope at most, beside the names of host and slot, in bytes.
const DRAIN_BYTES: usize = 160;
/// Most hosts that a refusal names.
const UNKNOWN_NAMED: usize = 8;

/// The coordinator of one process.
#[derive(Debug)]
pub(crate) struct Driver {
    machine: Coordinator,
    store: Store,
    journal: Journal,
    bus: CoordinatorEnd,
    seal: Seal,
    /// Where a network's bus is, without a password.
    bus_url: Option<String>,
    /// How it is connected, where that was told.
    link: Option<Link>,
    desk: Desk,
    clock: Clock,
    /// How many hosts a broadcast waits for that names no number.
    expect_hosts: Option<u32>,
    evidence: Box<dyn LocalEvidence>,
}

/// What this host's own agent saw, where coordinator and agent are one process.
pub(crate) trait LocalEvidence: Send + std::fmt::Debug {
    /// Returns what was seen of a slot, one line each; none for another host.
    fn lines(&self, host: &HostName, slot: &SlotId) -> Vec<String>;

    /// Returns the slot of a process, whichever of its unit it is.
    fn slot_of(&self, pid: Pid) -> Option<(HostName, SlotId)>;
}

/// The coordinator has no agent beside it.
#[derive(Debug)]
pub(crate) struct NoEvidence;

impl LocalEvidence for NoEvidence {
    fn lines(&self, _host: &HostName, _slot: &SlotId) -> Vec<String> {
        Vec::new()
    }

    fn slot_of(&self, _pid: Pid) -> Option<(HostName, SlotId)> {
        None
    }
}

impl Driver {
    /// Reads the store and begins a new reign.
    ///
    /// # Errors
    /// Where the store cannot be read, or holds what this version does not understand.
    pub(crate) fn new(
        policy: CoordinatorPolicy,
        store: Store,
        (bus, seal): (CoordinatorEnd, Seal),
        desk: Desk,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let records = records::load(&store).context("cannot read the coordinator's state")?;
        let journal = Journal::load(&store).context("cannot read the coordinator's record")?;
        desk.newest_event.send_replace(journal.newest());
        let driver = Self {
            machine: Coordinator::new(policy, records, clock.now()),
            store,
            journal,
            bus,
            seal,
            bus_url: None,
            link: None,
            desk,
            clock,
            expect_hosts: None,
            evidence: Box::new(NoEvidence),
        };
        driver.lay_manifests_out()?;
        Ok(driver)
    }

    /// Adds what this host's own agent sees.
    #[must_use]
    pub(crate) fn with_evidence(mut self, evidence: Box<dyn LocalEvidence>) -> Self {
        self.evidence = evidence;
        self
    }

    /// Names the bus in answers.
    #[must_use]
    pub(crate) fn with_bus_url(mut self, url: Option<String>) -> Self {
        self.bus_url = url;
        self
    }

    /// Sets how many hosts a broadcast waits for that names no number.
    #[must_use]
    pub(crate) fn with_expected_hosts(mut self, hosts: Option<u32>) -> Self {
        self.expect_hosts = hosts;
        self
    }

    /// Names the slot instead of a process, which may be a child that no report names.
    fn resolved(&self, selector: Selector) -> Vec<Selector> {
        let slot = match selector {
            Selector::Pid(pid) => self.evidence.slot_of(pid).map(|(_, slot)| Selector::Slot(slot)),
            _ => None,
        };
        [selector].into_iter().chain(slot).collect()
    }

    /// Runs until `shutdown` is cancelled or the agent is gone.
    ///
    /// # Cancel safety
    /// Not cancel safe: an action that was taken from the machine may not have been done. Cancel `shutdown`
    /// instead.
    ///
    /// # Errors
    /// Where the store refuses to write.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        self.act()?;
        self.desk.is_ready.send_replace(true);
        let mut keys_due = self.seal.keys_due();
        loop {
            tokio::select! {
                message = self.bus.next() => match message {
                    Some(message) => self.hear_with_waiting(message),
                    None => return Ok(()),
                },
                command = self.desk.commands.recv() => match command {
                    Some(command) => self.answer(command)?,
                    None => return Ok(()),
                },
                () = self.clock.until(self.machine.poll_timeout()) => self.machine.handle_timeout(self.clock.now()),
                () = keys_due.tick() => self.refresh_keys()?,
                () = shutdown.cancelled() => return Ok(()),
            }
            self.act()?;
        }
    }

    /// Does what the machine wants, in its order.
    fn act(&mut self) -> anyhow::Result<()> {
        self.machine.handle_held(self.bus.manifests.digests(), self.clock.now());
        self.act_on_all()?;
        let least = self.machine.least_epoch();
        self.bus.least_epoch.send_if_modified(|known| std::mem::replace(known, least) != least);
        Ok(())
    }

    /// What is to be stored is stored together up to the first action that rests on it.
    fn act_on_all(&mut self) -> anyhow::Result<()> {
        let mut unstored = Vec::new();
        while let Some(action) = self.machine.poll_action() {
            if !matches!(action, Action::Store(_)) {
                self.keep(&std::mem::take(&mut unstored))?;
            }
            match action {
                Action::Store(records) => unstored.extend(records),
                Action::Publish(desired) => {
                    tracing::info!(epoch = %desired.epoch, generation = %desired.generation, "desired state published");
                    self.publish(&desired)?;
                }
                Action::Grant(permit) => {
                    tracing::info!(host = %permit.host, slot = %permit.slot, "permit granted");
                    let payload = serde_json::to_string(&permit).context("cannot encode a permit")?;
                    let envelope = self.seal.close(Channel::Permit, &payload).context("cannot encode a permit")?;
                    // An agent that is gone takes no permit; its next life frees it.
                    self.bus.send(FromCoordinator::Permit(permit.host, envelope));
                }
                Action::LookUp(digest) => self.bus.send(FromCoordinator::LookUp(digest)),
                Action::Fetch(fetch) => self.fetch(fetch)?,
                Action::Keep(digest, text) => {
                    tracing::info!(%digest, bytes = text.len(), "manifest fetched");
                    self.keep_manifest(digest, text.as_bytes())?;
                }
            }
        }
        self.keep(&unstored)
    }

    fn keep(&mut self, batch: &[Record]) -> anyhow::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut changes = Vec::new();
        for record in batch {
            match record {
                Record::Event(event) => {
                    let app = event.app.as_ref().map(AppName::as_str);
                    let host = event.host.as_ref().map(HostName::as_str);
                    let slot = event.slot.as_ref().map(SlotId::as_str);
                    let because = Some(event.because.as_str()).filter(|because| !because.is_empty());
                    tracing::info!(what = event.what, app, host, slot, because, "rollout event");
                    self.journal.add(event, wall_ms(), &mut changes)?;
                }
                record => changes.push(records::change(record)?),
            }
        }
        self.store.commit(&changes).context("cannot write the coordinator's state")?;
        self.desk.newest_event.send_replace(self.journal.newest());
        Ok(())
    }

    /// Answers one command; what it changed is on disk before the answer leaves.
    fn answer(&mut self, command: Command) -> anyhow::Result<()> {
        match command {
            Command::Broadcast(request, caller, answer) => {
                let by = people::name(&caller);
                let result = self.broadcast(*request, by)?;
                reply(answer, result);
            }
            Command::Probe(request, answer) => {
                let result = self.probe(*request)?;
                reply(answer, result);
            }
            Command::ProbeStatus(id, answer) => reply(answer, self.probe_status(&id)),
            Command::ProbeOver(id, answer) => {
                let result = self.probe_over(&id)?;
                reply(answer, result);
            }
            Command::Pause(target, request, caller, answer) => {
                let by = people::record(&caller, request.message.as_deref());
                let result = self.machine.handle_pause(&target.app, target.revision, &by, self.clock.now());
                self.act()?;
                reply(
                    answer,
                    result
                        .map_err(|refused| refusal(&refused))
                        .and_then(|revision| self.rollout(&target.app, Some(revision))),
                );
            }
            Command::Resume(target, request, caller, answer) => {
                let by = people::record(&caller, request.message.as_deref());
                let now = self.clock.now();
                let stated = request.hosts.map_or(Ok(()), |hosts| self.machine.handle_stated_hosts(hosts, now));
                let result = stated.and_then(|()| {
                    self.machine.handle_resume(&target.app, target.revision, request.max_unavailable, &by, now)
                });
                self.act()?;
                reply(
                    answer,
                    result
                        .map_err(|refused| refusal(&refused))
                        .and_then(|revision| self.rollout(&target.app, Some(revision))),
                );
            }
            Command::Abort(target, request, caller, answer) => {
                let by = people::record(&caller, request.message.as_deref());
                let result = self.machine.handle_abort(&target.app, target.revision, &by, self.clock.now());
                self.act()?;
                reply(
                    answer,
                    result
                        .map_err(|refused| refusal(&refused))
                        .and_then(|revision| self.rollout(&target.app, Some(revision))),
                );
            }
            Command::Drain(request, caller, answer) => {
                let result = self.drain(&request, &people::name(&caller));
                self.act()?;
                reply(answer, result);
            }
            Command::Undrain(id, caller, answer) => {
                let before = self.machine.drains().into_iter().find(|drain| drain.id == id);
                let result = self.machine.handle_undrain(&id, self.clock.now());
                if result.is_ok() {
                    tracing::info!(drain = %id, by = people::name(&caller), "drain taken back");
                }
                self.act()?;
                let returned = before.as_ref().map(answers::returning).into_iter().collect();
                reply(answer, result.map_err(|refused| refusal(&refused)).map(|()| answers::drains(returned)));
            }
            Command::Forget(host, caller, answer) => {
                let result = self.forget(&host, &people::name(&caller))?;
                reply(answer, result);
            }
            Command::Status(answer) => reply(answer, Ok(self.status())),
            Command::Why(target, answer) => {
                let all = self.resolved(target.clone());
                let now = self.clock.now();
                let why = why::why(&self.machine, &self.journal, self.evidence.as_ref(), &target, &all, now);
                reply(answer, Ok(why));
            }
            Command::Rollout(target, answer) => reply(answer, self.rollout(&target.app, target.revision)),
            Command::Events(version, after, answer) => {
                let result = self.rollout(&version.app, Some(version.revision)).map(|rollout| api::Events {
                    events: self.journal.of(&version, after, crate::control::EVENTS_PER_PAGE),
                    is_end: rollout.outcome.is_end(),
                });
                reply(answer, result);
            }
        }
        Ok(())
    }

    fn forget(&mut self, host: &HostName, by: &str) -> anyhow::Result<Result<api::Status, api::Refusal>> {
        let result = self.machine.handle_forget(host, self.clock.now());
        self.act()?;
        if result.is_ok() {
            tracing::info!(%host, by, "host forgotten");
            self.bus.send(FromCoordinator::Forget(host.clone()));
        }
        Ok(result.map_err(|refused| refusal(&refused)).map(|()| self.status()))
    }

    fn broadcast(
        &mut self,
        request: api::BroadcastRequest,
        asked_by: String,
    ) -> anyhow::Result<Result<api::BroadcastAccepted, api::Refusal>> {
        if let Err(refusal) = check_notes(&request) {
            return Ok(Err(refusal));
        }
        let fingerprint = request.manifest.fingerprint();
        let bytes = match encoded(&request.manifest)? {
            Ok(bytes) => bytes,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let digest = Fingerprint::of_bytes(&bytes);
        self.keep_manifest(digest, &bytes)?;
        let app = request.app.clone();
        let before = self.current(&app);
        let broadcast = Broadcast {
            app: app.clone(),
            manifest: digest,
            fingerprint,
            terms: self.terms(&request),
            asked_by,
            message: request.message,
            meta: request.meta,
            at_ms: wall_ms(),
        };
        let after = self.journal.newest();
        let accepted = self.machine.handle_broadcast(&broadcast, self.clock.now());
        self.act()?;
        // Also where it was refused: a hook that asks one who stands by must not fill the disk.
        self.forget_manifests()?;
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(refused) => return Ok(Err(refusal(&refused))),
        };
        Ok(self.rollout(&app, Some(accepted.revision)).map(|baseline| {
            let standing = match (accepted.is_same, baseline.outcome) {
                (true, api::Outcome::Halted) => api::Standing::Halted,
                (true, _) => api::Standing::Attached,
                (false, _) => api::Standing::New,
            };
            let mut notes = Vec::new();
            if let (true, Some(revision)) = (accepted.is_same, before) {
                notes.push(format!("source equals {app}@{revision}: was this run before the new files arrived?"));
            }
            api::BroadcastAccepted { standing, after, notes, baseline }
        }))
    }

    fn terms(&self, request: &api::BroadcastRequest) -> Terms {
        Terms {
            canary: request.canary,
            max_unavailable: request.max_unavailable,
            strict: request.strict,
            allow_empty: request.allow_empty,
            ignore_silent: request.ignore_silent,
            expect_hosts: request.expect_hosts.or(self.expect_hosts),
        }
    }

    fn current(&self, app: &AppName) -> Option<unstale_protocol::ids::Revision> {
        self.machine.apps().find(|(name, _)| *name == app).map(|(_, revision)| revision)
    }

    /// Removes manifests that no current revision has: agents keep those that they still need.
    fn forget_manifests(&mut self) -> anyhow::Result<()> {
        let desired = self.machine.desired();
        let of_probes = desired.probes.iter().map(|probe| probe.manifest);
        let wanted: Vec<Fingerprint> = desired.apps.values().map(|app| app.manifest).chain(of_probes).collect();
        let gone = self.bus.manifests.retain(|digest| wanted.contains(digest));
        let changes: Vec<Change> = gone
            .iter()
            .map(|digest| Change { table: records::MANIFESTS.to_owned(), key: digest.to_string(), value: None })
            .collect();
        if !changes.is_empty() {
            self.store.commit(&changes).context("cannot remove manifests")?;
        }
        Ok(())
    }

    fn drain(&mut self, request: &api::DrainRequest, by: &str) -> Result<api::Drains, api::Refusal> {
        let chosen = {
            let selectors: Vec<Selector> =
                request.selectors.iter().cloned().flat_map(|selector| self.resolved(selector)).collect();
            answers::choose(&self.machine, &selectors)
        };
        if chosen.is_empty() {
            return Err(self.no_unit(&request.selectors));
        }
        let more: usize =
            chosen.iter().map(|(host, slot)| host.as_str().len() + slot.as_str().len() + DRAIN_BYTES).sum();
        let published = self.bus.desired.borrow().as_ref().map_or(0, |envelope| envelope.len());
        if published + more > Channel::Desired.max_bytes() {
            let said = format!("{} units at once: the desired state would be longer than agents take", chosen.len());
            return Err(api::Refusal::new(413, "too-many-drains", said).help(
                "drain fewer at a time, by `host:NAME` or `pool:NAME`, and `unstale undrain` what is no longer needed",
            ));
        }
        let unseen = answers::unseen(&self.machine, &request.selectors, self.clock.now());
        if request.dry_run {
            let drains = answers::drains(chosen.iter().map(answers::would_drain).collect());
            return Ok(api::Drains { unseen, ..drains });
        }
        let records = chosen
            .into_iter()
            .map(|(host, slot)| DrainRecord {
                host,
                slot,
                deadline_ms: request.deadline_ms,
                force: request.force,
                asked_by: by.to_owned(),
                at_ms: wall_ms(),
                since: Version::default(),
            })
            .collect();
        let ids = self.machine.handle_drain(records, self.clock.now()).map_err(|refused| refusal(&refused))?;
        let asked = self.machine.drains().into_iter().filter(|drain| ids.contains(&drain.id));
        Ok(api::Drains { unseen, ..answers::drains(asked.map(|drain| answers::drain(&drain)).collect()) })
    }

    /// Says that nothing was found, and which hosts may have what was looked for although nobody knows of it.
    fn no_unit(&self, selectors: &[Selector]) -> api::Refusal {
        let are_hosts = selectors.iter().all(|one| matches!(one, Selector::Host(_)));
        let is_meant = |host: &HostName| !are_hosts || answers::names(selectors, host.as_str());
        let doubted =
            Doubts::new(&self.machine, self.clock.now()).of_fleet(&answers::looked_for(&self.machine, selectors));
        let doubted = doubted.into_iter().filter(|(host, _)| is_meant(host));
        let mut unknown: Vec<String> = doubted.map(|(host, because)| format!("{host}: {because}")).collect();
        if unknown.is_empty() && self.machine.reports().next().is_some() {
            return api::Refusal::new(404, "no-such-unit", "no unit matches")
                .help("`unstale status` lists hosts and units");
        }
        let more = unknown.split_off(unknown.len().min(UNKNOWN_NAMED)).len();
        if more > 0 {
            unknown.push(format!("and {more} more"));
        }
        let because = if unknown.is_empty() { "no host has reported".to_owned() } else { unknown.join("; ") };
        api::Refusal::new(404, "no-such-unit", format!("no unit matches yet: {because}"))
            .help("try again in a moment; `unstale status` lists hosts and units")
    }

    fn status(&self) -> api::Status {
        let now = self.clock.now();
        let mut status = answers::status(&self.machine, now);
        let missing = self.machine.lacking().next();
        if let (None, true, Some((app, revision, _))) = (&status.blocked, self.machine.leads(now), missing) {
            // It was announced by another coordinator, with a disk of its own.
            status.blocked = Some(format!(
                "the manifest of {app}@{revision} is not here yet, and agents that have not fetched it judge nothing: hosts \
                 that have it are asked for it; where none has, broadcast {app} again"
            ));
        }
        api::Status { bus: self.bus_status(now), ..status }
    }

    fn rollout(
        &self,
        app: &AppName,
        revision: Option<unstale_protocol::ids::Revision>,
    ) -> Result<api::Rollout, api::Refusal> {
        let revision = revision.or_else(|| self.current(app));
        let status = revision.and_then(|revision| self.machine.status(app, revision, self.clock.now()));
        let missing = || {
            let name = revision.map_or_else(|| app.to_string(), |revision| format!("{app}@{revision}"));
            api::Refusal::new(404, "no-such-rollout", format!("there is no rollout of {name}"))
                .help("`unstale status` lists them")
        };
        status.map(|status| answers::rollout(&status, wall_ms())).ok_or_else(missing)
    }
}

/// Returns the bytes by whose digest a manifest travels, or why it may not.
fn encoded(manifest: &Manifest) -> anyhow::Result<Result<Vec<u8>, api::Refusal>> {
    let bytes = serde_json::to_vec(manifest).context("cannot encode the manifest")?;
    if bytes.len() > MANIFEST_MAX_BYTES {
        let message = format!("the manifest has {} bytes, at most {MANIFEST_MAX_BYTES} are allowed", bytes.len());
        return Ok(Err(api::Refusal::new(413, "manifest-too-large", message).help("broadcast fewer directories")));
    }
    Ok(Ok(bytes))
}

fn reply<T>(answer: Answer<T>, result: Result<T, api::Refusal>) {
    // Whoever asked may have gone away; what was done stays done.
    drop(answer.send(result));
}

fn refusal(refused: &Refused) -> api::Refusal {
    let (status, code, help) = match refused {
        Refused::NoRollout(_) => (404, "no-such-rollout", "`unstale status` lists them"),
        Refused::NotCurrent(..) => (409, "not-current", "name the current revision, or only the app"),
        Refused::Aborted(..) => (409, "aborted", "`unstale broadcast` begins a new revision"),
        Refused::NoDrain(_) => (404, "no-such-drain", "`unstale status` lists them"),
        Refused::NotLeader(_) => (503, "not-leader", "ask the coordinator that leads; `unstale status` there says so"),
        Refused::TooManyProbes => (429, "too-many-dry-runs", "try again when they are over"),
        Refused::Configured(_) => {
            (409, "configured-host", "if it will not come back, take it out there and start the coordinator again")
        }
        Refused::NoHost(_) => (404, "no-such-host", "`unstale status` lists them"),
    };
    api::Refusal::new(status, code, refused.to_string()).help(help)
}

fn check_notes(request: &api::BroadcastRequest) -> Result<(), api::Refusal> {
    let texts = request.message.iter().chain(request.meta.keys()).chain(request.meta.values());
    if request.meta.len() > NOTES_MAX || texts.into_iter().any(|text| text.len() > NOTE_MAX_BYTES) {
        let message =
            format!("a message or note is longer than {NOTE_MAX_BYTES} bytes, or there are more than {NOTES_MAX}");
        return Err(api::Refusal::new(400, "note-too-long", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
