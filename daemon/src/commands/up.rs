//! `unstale up`: coordinator and agent in one process on one host, over the embedded bus.

mod disk;
mod evidence;
mod pump;

pub(super) use evidence::{differences, told};

use super::parts;
use crate::bus::embedded;
use crate::cli::{Surroundings, UpArgs};
use crate::config::{Act, Config};
use crate::control;
use crate::coordinator::Driver;
use crate::http::{self, Listener, SocketError};
use crate::report::Exit;
use crate::store::{self, StateDir, Which};
use crate::{client, host, shutdown};
use anyhow::Context as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unstale_agent::driver::{self, Allow};
use unstale_agent::eyes::AppRules;
use unstale_agent::supervisor::Reach;
use unstale_agent::survey::{Rules, Survey};
use unstale_protocol::coordinator::CoordinatorPolicy;
use unstale_protocol::host::HostPolicy;
use unstale_protocol::ids::HostName;
use unstale_protocol::restart::RestartPolicy;

/// Messages between the bus and the agent's driver; what does not fit is said again.
const MESSAGES_MAX: usize = 64;
/// How long open connections may take to end.
const GRACE: Duration = Duration::from_secs(2);

pub(super) async fn run(args: UpArgs, surroundings: Surroundings) -> anyhow::Result<Exit> {
    let config = Config::read(args.config.config.as_deref())?;
    let state_path = store::choose_dir(args.state.state_dir.as_deref(), &config, &surroundings)?;
    let socket = socket(&args, &config, &surroundings)?;
    let name = name(&config)?;
    let state = StateDir::take(&state_path)?;
    let listener = Listener::bind(&socket)?;
    let tasks = TaskTracker::new();
    let shutdown = shutdown::listen(&tasks).context("cannot listen to signals")?;

    let house = House { config, roots: args.roots.roots, name, state, listener, work: Work::All };
    tracing::info!(host = %house.name, socket = %socket.display(), state_dir = %house.state.path().display(), "up");
    let result = house.keep(tasks, shutdown).await;
    tracing::info!("down");
    result.map(|()| Exit::Clean)
}

/// What a coordinator and an agent in one process are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Everything.
    All,
    /// Drain and give back: no rollout goes on, nothing is purged.
    Drains,
}

/// A coordinator and an agent in one process.
#[derive(Debug)]
pub(super) struct House {
    pub(super) config: Config,
    /// Look only at workers whose code lies below these; empty for what the configuration says.
    pub(super) roots: Vec<PathBuf>,
    pub(super) name: HostName,
    pub(super) state: StateDir,
    pub(super) listener: Listener,
    pub(super) work: Work,
}

/// Returns this host's name on the bus.
///
/// # Errors
/// Where the machine's own cannot stand there and none is configured.
pub(super) fn name(config: &Config) -> anyhow::Result<HostName> {
    config
        .agent
        .host
        .clone()
        .or_else(host::bus_name)
        .context("this machine's name cannot stand on the bus: name the host with `[agent] host = \"NAME\"`")
}

impl House {
    /// Keeps both running until `shutdown`, or until a part fails.
    ///
    /// # Errors
    /// What the part that failed first said.
    pub(super) async fn keep(self, tasks: TaskTracker, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { config, roots, name, state, listener, work } = self;
        let coordinator_store = state.open(Which::Coordinator)?;
        let agent_disk = disk::AgentDisk::open(state.open(Which::Agent)?)?;
        let (coordinator_end, agent_end) = embedded::join();
        let (asker, desk) = control::channel();
        let (seen, sights) = watch::channel(Arc::new(Survey::default()));
        let policy = CoordinatorPolicy { drains_only: work == Work::Drains, ..coordinator_policy(&config, &name) };
        let coordinator =
            Driver::new(policy, config.coordinator.max_unavailable, coordinator_store, coordinator_end, desk)?
                .with_evidence(evidence::Evidence::new(name.clone(), sights));
        let (incoming, agent_incoming) = mpsc::channel(MESSAGES_MAX);
        let (agent_outgoing, outgoing) = mpsc::channel(MESSAGES_MAX);
        let mut agent = agent_config(&config, &roots, name, &agent_disk)?;
        agent.rules.allow.purge &= work == Work::All;

        let mut parts: JoinSet<anyhow::Result<()>> = JoinSet::new();
        parts.spawn(coordinator.run(shutdown.clone()));
        parts.spawn(pump::run(agent_end, incoming, outgoing, shutdown.clone()));
        parts.spawn(driven(agent, agent_disk, agent_incoming, agent_outgoing, seen, shutdown.clone()));
        let (server_tasks, server_shutdown) = (tasks.clone(), shutdown.clone());
        parts.spawn(async move {
            http::serve(listener, asker, server_tasks, server_shutdown).await.context("the control API ended")
        });
        let result = first_end(&mut parts, &shutdown).await;
        tasks.close();
        // A client that keeps its connection open must not keep the process.
        if tokio::time::timeout(GRACE, tasks.wait()).await.is_err() {
            tracing::debug!("connections were closed");
        }
        drop(state);
        result
    }
}

/// Waits for all parts; the first that ends ends the others, and its error is the answer.
async fn first_end(parts: &mut JoinSet<anyhow::Result<()>>, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let mut result = Ok(());
    let mut ended_by_us = false;
    loop {
        let next = if ended_by_us {
            tokio::time::timeout(GRACE, parts.join_next()).await.unwrap_or(None)
        } else {
            parts.join_next().await
        };
        let Some(ended) = next else { return result };
        let ended = ended.context("a part of unstale failed").and_then(|ended| ended);
        if let (Err(error), Ok(())) = (ended, &result) {
            result = Err(error);
        }
        ended_by_us = true;
        shutdown.cancel();
    }
}

fn socket(args: &UpArgs, config: &Config, surroundings: &Surroundings) -> Result<PathBuf, SocketError> {
    let configured = Some(&config.http.socket).filter(|path| !path.as_os_str().is_empty());
    let stated = args.socket.as_ref().or(configured).cloned();
    stated.or_else(|| client::own_place(surroundings)).ok_or(SocketError::NoPath)
}

fn coordinator_policy(config: &Config, name: &HostName) -> CoordinatorPolicy {
    let pools = config.pools.iter().filter_map(|(name, pool)| Some((name.clone(), pool.max_unavailable?)));
    let expected = config.coordinator.expected_hosts.iter().chain([name]);
    CoordinatorPolicy {
        // Nobody else can lead while the directory's lock is held, and old permits died with the agent's last life.
        takeover_wait: Duration::ZERO,
        expected_hosts: expected.cloned().collect(),
        pools: pools.collect(),
        ..CoordinatorPolicy::default()
    }
}

fn agent_config(
    config: &Config,
    roots: &[PathBuf],
    host: HostName,
    disk: &disk::AgentDisk,
) -> anyhow::Result<driver::Config> {
    let text = |path: &PathBuf| -> anyhow::Result<String> {
        path.to_str().map(ToOwned::to_owned).with_context(|| format!("`{}` is not UTF-8", path.display()))
    };
    let roots = if roots.is_empty() { &config.agent.roots } else { roots };
    let roots = roots
        .iter()
        .map(|root| text(&root.canonicalize().with_context(|| format!("cannot read --root `{}`", root.display()))?))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut apps = std::collections::BTreeMap::new();
    for (name, app) in &config.apps {
        let rules = AppRules {
            roots: app.roots.iter().map(text).collect::<anyhow::Result<_>>()?,
            users: app.users.clone(),
            ignore: app.ignore.clone(),
        };
        apps.insert(name.clone(), rules);
    }
    let allows = |act: Act| config.agent.allow.contains(&act);
    Ok(driver::Config {
        host,
        incarnation: disk.incarnation(),
        seed: disk.seed(),
        records: disk.records()?,
        policy: HostPolicy {
            restart: RestartPolicy {
                start_timeout: config.agent.start_timeout.duration(),
                survival_window: config.agent.survival_window.duration(),
                ..RestartPolicy::default()
            },
            ..HostPolicy::default()
        },
        rules: Rules {
            apps,
            pools: config.pools.iter().map(|(name, pool)| (name.clone(), pool.slots.clone())).collect(),
            units: config.units.clone(),
            roots,
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .map(|text| text.trim().to_owned())
                .unwrap_or_default(),
            allow: Allow {
                purge: allows(Act::Purge),
                supervisor: allows(Act::Supervisor),
                signal: allows(Act::Signal),
            },
        },
        reach: Reach::default(),
        reader: parts::reader(),
        parser: parts::parser(),
        purger: parts::purger(),
        dry_run: false,
        scan_interval: config.agent.scan_interval.duration(),
        look_interval: config.agent.read_interval.duration(),
    })
}

async fn driven(
    config: driver::Config,
    disk: disk::AgentDisk,
    incoming: mpsc::Receiver<driver::Incoming>,
    outgoing: mpsc::Sender<driver::Outgoing>,
    seen: watch::Sender<Arc<Survey>>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    driver::run(config, Box::new(disk), incoming, outgoing, seen, shutdown).await.context("the agent ended")
}
