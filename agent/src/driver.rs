//! The driver of the host's machine: does its actions, feeds the world back in. One loop.
//!
//! It alone reads the clock. Eyes and hands work in tasks of its own set; what they answer comes back as an input.
//! It speaks to a bus only through two channels. Called by `up`, and by whatever else runs an agent.

mod act;
mod looks;
mod verify;

pub use crate::survey::Allow;

use crate::child::Program;
use crate::eyes::Eyes;
use crate::purge::Purger;
use crate::restart::Hands;
use crate::supervisor::Reach;
use crate::survey::{Rules, Survey, Surveyor};
use crate::watch::{Watch, WatchOptions};
use act::Acts;
use looks::Looks;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use unstale_protocol::fingerprint::Fingerprint;
use unstale_protocol::host::{Action, Host, HostPolicy, PurgeResult, Record, Scan};
use unstale_protocol::ids::{AppName, HostName, Incarnation, SlotId};
use unstale_protocol::manifest::Manifest;
use unstale_protocol::message::{Desired, Permit, Upward};
use unstale_protocol::restart::{Cleared, Intent, Verified};
use unstale_protocol::time::Moment;

/// What one agent needs to know at its start.
#[derive(Debug)]
pub struct Config {
    /// The host's name.
    pub host: HostName,
    /// This life of the agent; its counter was raised on disk before.
    pub incarnation: Incarnation,
    /// Feeds the jitter of timers.
    pub seed: u64,
    /// What the disk remembers.
    pub records: Vec<Record>,
    /// How long things may take.
    pub policy: HostPolicy,
    /// What configuration says about workers.
    pub rules: Rules,
    /// Where supervisors are reached.
    pub reach: Reach,
    /// How the reader is started.
    pub reader: Program,
    /// How the parser is started.
    pub parser: Program,
    /// How files are purged.
    pub purger: Purger,
    /// Decide everything, do nothing.
    pub dry_run: bool,
    /// Pause between two looks at the list of processes.
    pub scan_interval: Duration,
    /// Pause between two looks at everything.
    pub look_interval: Duration,
}

/// What comes from the bus.
#[derive(Clone, Debug)]
pub enum Incoming {
    /// It is connected (again).
    Connected,
    /// The newest desired state.
    Desired(Box<Desired>),
    /// A permit for this host.
    Permit(Box<Permit>),
    /// A manifest that was asked for.
    Manifest(Fingerprint, Arc<Manifest>),
    /// The machine is shutting down.
    Leaving,
}

/// What goes to the bus.
#[derive(Clone, Debug)]
pub enum Outgoing {
    /// A report or a request.
    Upward(Box<Upward>),
    /// A manifest is needed.
    WantManifest(Fingerprint),
}

/// Where the machine's records are kept.
pub trait Disk: Send {
    /// Writes the records in one transaction and returns once they are on disk.
    ///
    /// # Errors
    /// Whatever the disk says; the agent stops then, since it must not act on what it cannot remember.
    fn commit(&mut self, records: &[Record]) -> io::Result<()>;
}

/// Why the agent stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its records cannot be written.
    #[error("the agent's records cannot be written: {0}")]
    Disk(#[from] io::Error),
}

/// What a task of the driver answers.
#[derive(Debug)]
pub(crate) enum Input {
    Surveyed(Moment, Result<Arc<Survey>, String>),
    Preflighted(Box<Intent>, Result<(Cleared, Box<act::Act>), String>),
    Stopped(SlotId, Result<(), String>),
    Ended(SlotId),
    Started(SlotId, Result<(), String>),
    Held(SlotId, Result<(), String>),
    NewLife(SlotId, String),
    Verified(SlotId, Verified, Option<(Moment, Arc<Survey>)>),
    Purged(AppName, PurgeResult),
}

/// Runs the agent until `shutdown`. The latest survey is published in `seen` for `why` and `inspect`.
///
/// # Errors
/// [`Error::Disk`] where records cannot be written.
#[expect(clippy::too_many_lines, reason = "one loop, every wake-up of the agent in one place")]
pub async fn run(
    config: Config,
    mut disk: Box<dyn Disk>,
    mut incoming: mpsc::Receiver<Incoming>,
    outgoing: mpsc::Sender<Outgoing>,
    seen: watch::Sender<Arc<Survey>>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let clock = Clock::start();
    let hands = Arc::new(Hands::new(config.reach.clone()));
    let mut eyes = Eyes::new(config.reader.clone(), config.parser.clone());
    let rules = Arc::new(config.rules.clone());
    let mut decided = config.records.iter().filter_map(|record| match record {
        Record::Decided(decided) => Some(decided.clone()),
        _ => None,
    });
    let decided = decided.next_back().unwrap_or_default();
    for record in &config.records {
        if let Record::Numbering(kept) = record {
            eyes.recall(kept, &config.rules.boot_id);
        }
    }
    let surveyor = Arc::new(Mutex::new(Surveyor::new(eyes, Arc::clone(&hands), rules, decided)));
    let mut acts = Acts::recover(&config, Arc::clone(&hands), Arc::clone(&surveyor));
    let mut looks = Looks::new(config.scan_interval, config.look_interval, config.seed);
    let mut watcher = Watch::new(WatchOptions::default()).ok();
    if watcher.is_none() {
        let interval_s = config.look_interval.as_secs();
        tracing::warn!(interval_s, "files cannot be watched, they are only looked at from time to time");
    }
    let mut manifests: BTreeMap<Fingerprint, Arc<Manifest>> = BTreeMap::new();
    let mut host = Host::new(
        config.host.clone(),
        config.incarnation,
        config.policy,
        config.records.clone(),
        config.seed,
        clock.now(),
    );
    let mut tasks: JoinSet<Input> = JoinSet::new();
    host.handle_connected(clock.now());
    loop {
        while let Some(action) = host.poll_action() {
            match action {
                Action::Store(records) => {
                    disk.commit(&records)?;
                    act::log_ends(&records);
                }
                Action::Report(report) => send(&outgoing, Upward::Report(report)),
                Action::Ask(ask) => send(&outgoing, Upward::Ask(ask)),
                Action::Look => looks.ask_full(),
                Action::Purge { app, files } => acts.purge(&mut tasks, app, &files),
                Action::Step { slot, step } => {
                    let asked = looks::asked(&host, &manifests, true, clock.now());
                    acts.step(&mut tasks, &host, slot, step, asked, clock.now());
                }
            }
        }
        looks::forget_manifests(&host, &mut manifests);
        for digest in looks.manifests_to_ask(looks::wanted_manifests(&host, &manifests), clock.now()) {
            // A full channel loses the request; it is repeated.
            outgoing.try_send(Outgoing::WantManifest(digest)).unwrap_or_default();
        }
        if let Some(full) = looks.due(clock.now()) {
            let asked = looks::asked(&host, &manifests, full, clock.now());
            let surveyor = Arc::clone(&surveyor);
            tasks.spawn(async move {
                let answer = surveyor.lock().await.survey(&asked).await;
                Input::Surveyed(asked.begun_at, answer.map_err(|error| error.to_string()))
            });
        }
        let timeout = [host.poll_timeout(), Some(looks.next_due())].into_iter().flatten().min();
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            message = incoming.recv() => match message {
                None => return Ok(()),
                Some(Incoming::Connected) => {
                    looks.ask_manifests_anew();
                    host.handle_connected(clock.now());
                }
                Some(Incoming::Desired(desired)) => host.handle_desired(&desired, clock.now()),
                Some(Incoming::Permit(permit)) => host.handle_permit(&permit, clock.now()),
                Some(Incoming::Manifest(digest, manifest)) => {
                    manifests.insert(digest, manifest);
                    looks.ask_full();
                }
                Some(Incoming::Leaving) => host.handle_leaving(clock.now()),
            },
            Some(finished) = tasks.join_next() => match finished {
                Ok(Input::Surveyed(begun_at, answer)) => {
                    looks.done();
                    match answer {
                        Ok(survey) => {
                            take_survey(&mut host, &seen, watcher.as_mut(), (begun_at, survey), clock.now()).await;
                        }
                        Err(error) => tracing::warn!(%error, "could not look at this host"),
                    }
                }
                Ok(Input::Verified(slot, verified, survey)) => {
                    if let Some(survey) = survey {
                        take_survey(&mut host, &seen, watcher.as_mut(), survey, clock.now()).await;
                    }
                    host.handle_verified(&slot, verified, clock.now());
                }
                Ok(input) => acts.feed(&mut host, input, clock.now()),
                Err(error) => {
                    looks.done();
                    tracing::error!(%error, "a task of the agent failed");
                }
            },
            dirty = changed(watcher.as_mut()) => {
                tracing::debug!(?dirty, "files changed");
                looks.ask_full();
            }
            () = clock.until(timeout) => host.handle_timeout(clock.now()),
        }
    }
}

async fn take_survey(
    host: &mut Host,
    seen: &watch::Sender<Arc<Survey>>,
    watcher: Option<&mut Watch>,
    (begun_at, survey): (Moment, Arc<Survey>),
    now: Moment,
) {
    if let Some(watcher) = watcher {
        let roots = survey.watch_roots.iter().map(std::path::PathBuf::from).collect();
        watcher.set_roots(roots).await;
    }
    // What is unchanged was seen again: the list of processes behind it is of this look.
    let scan = Scan { begun_at, full: survey.scan.full && survey.scan.begun_at == begun_at, ..survey.scan.clone() };
    for (app, view) in &scan.apps {
        let (files_right, stale_files, full) = (view.files_right, view.stale_files.len(), scan.full);
        tracing::debug!(%app, full, files_right, stale_files, units = scan.units.len(), "looked");
    }
    host.handle_scan(&scan, now);
    seen.send_replace(survey);
}

/// Waits for a change of files; for ever where they cannot be watched.
async fn changed(watcher: Option<&mut Watch>) -> crate::watch::Dirty {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

/// A full channel loses the message: reports are repeated, and so are requests.
fn send(outgoing: &mpsc::Sender<Outgoing>, message: Upward) {
    if outgoing.try_send(Outgoing::Upward(Box::new(message))).is_err() {
        tracing::debug!("the bus is not taking messages");
    }
}

/// The one clock of the agent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(tokio::time::Instant);

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the driver is the one place that reads the clock")]
    fn start() -> Self {
        Self(tokio::time::Instant::now())
    }

    #[expect(clippy::disallowed_methods, reason = "the driver is the one place that reads the clock")]
    fn now(self) -> Moment {
        let elapsed = tokio::time::Instant::now().saturating_duration_since(self.0);
        Moment(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }

    async fn until(self, moment: Option<Moment>) {
        match moment {
            Some(moment) => tokio::time::sleep_until(self.0 + Duration::from_millis(moment.0)).await,
            None => std::future::pending().await,
        }
    }
}
