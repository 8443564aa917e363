//! What `up`, `coordinator`, `agent` and `--local` are made of: parts that run side by side until the first one ends.

mod agent;
mod bus;
mod disk;
mod evidence;
mod leave;
mod manifests;
mod pump;

pub(super) use agent::AgentPart;
pub(super) use bus::Wire;
pub(super) use evidence::{Evidence, differences, told};

use crate::bus::ends::CoordinatorEnd;
use crate::bus::envelope::Seal;
use crate::cli::Surroundings;
use crate::client;
use crate::clock::Clock;
use crate::config::Config;
use crate::control;
use crate::coordinator::{Driver, LocalEvidence};
use crate::host;
use crate::http::{self, Listener, SocketError};
use crate::store::{StateDir, Which};
use anyhow::Context as _;
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unstale_agent::supervisor;
use unstale_protocol::coordinator::CoordinatorPolicy;
use unstale_protocol::ids::HostName;

/// Messages between the bus and the agent's driver; what does not fit is said again.
const MESSAGES_MAX: usize = 64;
/// How long open connections may take to end.
const GRACE: Duration = Duration::from_secs(2);

/// Parts of one process that end together.
#[derive(Debug)]
pub(super) struct Parts {
    set: JoinSet<anyhow::Result<()>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Parts {
    /// Makes an empty set; all of it ends with `shutdown`.
    pub(super) fn new(tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        Self { set: JoinSet::new(), tasks, shutdown }
    }

    /// Adds a part that goes on until it is dropped: a transport.
    pub(super) fn add_endless(&mut self, part: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        self.set.spawn(async move {
            tokio::select! {
                ended = part => ended,
                () = shutdown.cancelled() => Ok(()),
            }
        });
    }

    /// Adds the coordinator and its control API.
    ///
    /// # Errors
    /// Where its store cannot be read.
    pub(super) fn add_coordinator(&mut self, part: CoordinatorPart<'_>) -> anyhow::Result<()> {
        let CoordinatorPart { policy, state, listener, wire, clock, evidence, expect_hosts, bus_url } = part;
        let (asker, desk) = control::channel();
        let store = state.open(Which::Coordinator)?;
        let driver = Driver::new(policy, store, wire, desk, clock)?;
        let driver = driver.with_evidence(evidence).with_expected_hosts(expect_hosts).with_bus_url(bus_url);
        self.set.spawn(driver.run(self.shutdown.clone()));
        let (tasks, shutdown) = (self.tasks.clone(), self.shutdown.clone());
        self.set
            .spawn(async move { http::serve(listener, asker, tasks, shutdown).await.context("the control API ended") });
        Ok(())
    }

    /// Adds the agent of this host.
    pub(super) fn add_agent(&mut self, agent: AgentPart) {
        drop(agent.start(&mut self.set, &self.shutdown));
    }

    /// Adds the agent of this host to a fleet. All parts end once `asked` is cancelled; where the machine goes down then,
    /// the fleet is told before.
    pub(super) fn add_leaving_agent(&mut self, agent: AgentPart, asked: CancellationToken) {
        let reach = agent.config.reach.clone();
        let told = agent.start(&mut self.set, &self.shutdown);
        let shutdown = self.shutdown.clone();
        self.set.spawn(async move {
            let stops = async { supervisor::is_machine_stopping(&reach, leave::ASKING).await };
            leave::until_asked(asked, stops, told, shutdown).await;
            Ok(())
        });
    }

    /// Runs all parts until the first one ends, and returns what it said.
    ///
    /// # Errors
    /// What the part that failed first said.
    pub(super) async fn keep(mut self) -> anyhow::Result<()> {
        let result = first_end(&mut self.set, &self.shutdown).await;
        self.tasks.close();
        // A client that keeps its connection open must not keep the process.
        if tokio::time::timeout(GRACE, self.tasks.wait()).await.is_err() {
            tracing::debug!("connections were closed");
        }
        result
    }
}

/// What a coordinator needs.
#[derive(Debug)]
pub(super) struct CoordinatorPart<'a> {
    pub(super) policy: CoordinatorPolicy,
    pub(super) state: &'a StateDir,
    pub(super) listener: Listener,
    pub(super) wire: (CoordinatorEnd, Seal),
    pub(super) clock: Clock,
    pub(super) evidence: Box<dyn LocalEvidence>,
    /// How many hosts a broadcast waits for that names no number.
    pub(super) expect_hosts: Option<u32>,
    /// Where a network's bus is, without a password.
    pub(super) bus_url: Option<String>,
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

/// Returns where the control API is to listen.
///
/// # Errors
/// Where no place is stated and none can be derived.
pub(super) fn socket(
    stated: Option<&PathBuf>,
    config: &Config,
    surroundings: &Surroundings,
) -> Result<PathBuf, SocketError> {
    let configured = Some(&config.http.socket).filter(|path| !path.as_os_str().is_empty());
    let stated = stated.or(configured).cloned();
    stated.or_else(|| client::own_place(surroundings)).ok_or(SocketError::NoPath)
}

/// Returns what the configuration says of coordinators.
pub(super) fn coordinator_policy(config: &Config) -> CoordinatorPolicy {
    let pools = config.pools.iter().filter_map(|(name, pool)| Some((name.clone(), pool.max_unavailable?)));
    let usual = CoordinatorPolicy::default();
    CoordinatorPolicy {
        expected_hosts: config.coordinator.expected_hosts.iter().cloned().collect(),
        pools: pools.collect(),
        max_unavailable: config.coordinator.max_unavailable.unwrap_or(usual.max_unavailable),
        ..usual
    }
}
