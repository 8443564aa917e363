//! `unstale up`: coordinator and agent in one process on one host, over the embedded bus.

use super::roles::{self, AgentPart, CoordinatorPart, Evidence, Parts, coordinator_policy};
use crate::bus::envelope::{FleetName, Seal};
use crate::bus::{embedded, ends};
use crate::cli::{Surroundings, UpArgs};
use crate::clock::Clock;
use crate::config::Config;
use crate::http::Listener;
use crate::report::Exit;
use crate::shutdown;
use crate::store::{self, StateDir};
use anyhow::Context as _;
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unstale_protocol::coordinator::CoordinatorPolicy;
use unstale_protocol::ids::HostName;

pub(super) async fn run(args: UpArgs, surroundings: Surroundings) -> anyhow::Result<Exit> {
    let config = Config::read(args.config.config.as_deref())?;
    let state_path = store::choose_dir(args.state.state_dir.as_deref(), &config, &surroundings)?;
    let socket = roles::socket(args.socket.socket.as_ref(), &config, &surroundings)?;
    let name = roles::name(&config)?;
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

impl House {
    /// Keeps both running until `shutdown`, or until a part fails.
    ///
    /// # Errors
    /// What the part that failed first said.
    pub(super) async fn keep(self, tasks: TaskTracker, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { config, roots, name, state, listener, work } = self;
        // Nothing leaves the process: nobody signs.
        let fleet = FleetName::new("embedded")?;
        let (coordinator_end, coordinator_side) = ends::coordinator();
        let (agent_end, agent_side) = ends::agent();
        let mut agent = AgentPart::open(&config, &roots, name.clone(), &state, (agent_end, Seal::bare(fleet.clone())))?;
        agent.config.rules.allow.purge &= work == Work::All;
        let usual = coordinator_policy(&config);
        let policy = CoordinatorPolicy {
            // Nobody else can lead while the directory's lock is held, and old permits died with the agent's last life.
            takeover_wait: Duration::ZERO,
            drains_only: work == Work::Drains,
            expected_hosts: usual.expected_hosts.iter().chain([&name]).cloned().collect(),
            ..usual
        };
        let mut parts = Parts::new(tasks, shutdown);
        parts.add_coordinator(CoordinatorPart {
            policy,
            state: &state,
            listener,
            wire: (coordinator_end, Seal::bare(fleet)),
            clock: Clock::start(),
            evidence: Box::new(Evidence::new(name, agent.sights())),
            expect_hosts: None,
            bus_url: None,
        })?;
        parts.add_endless(async move {
            embedded::run(coordinator_side, agent_side).await;
            Ok(())
        });
        parts.add_agent(agent);
        let result = parts.keep().await;
        drop(state);
        result
    }
}
