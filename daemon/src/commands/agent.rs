//! `unstale agent`: the agent of this host, over a network bus.

use super::roles::{self, AgentPart, Parts, Wire};
use crate::bus::ends;
use crate::cli::{AgentArgs, Surroundings};
use crate::config::Config;
use crate::keys::Role;
use crate::report::Exit;
use crate::shutdown;
use crate::store::{self, StateDir};
use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(super) async fn run(args: AgentArgs, surroundings: Surroundings) -> anyhow::Result<Exit> {
    let config = Config::read(args.config.config.as_deref())?;
    let wire = Wire::find(&args.bus, &config)?;
    let host = match args.host {
        Some(host) => host,
        None => roles::name(&config)?,
    };
    let seal = wire.seal(&args.bus, &config, &surroundings, Role::Agent(host.clone()))?;
    let state_path = store::choose_dir(args.state.state_dir.as_deref(), &config, &surroundings)?;
    let state = StateDir::take(&state_path)?;
    let tasks = TaskTracker::new();
    let asked = shutdown::listen(&tasks).context("cannot listen to signals")?;
    let (end, side) = ends::agent();
    tracing::info!(%host, bus = wire.url, fleet = %wire.fleet, state_dir = %state.path().display(), "up");
    let agent = AgentPart::open(&config, &args.roots.roots, host.clone(), &state, (end, seal))?;
    // The bus is still needed when the process is asked to stop.
    let mut parts = Parts::new(tasks, CancellationToken::new());
    parts.add_endless(wire.carry_agent(side, host));
    parts.add_leaving_agent(agent, asked);
    let result = parts.keep().await;
    drop(state);
    tracing::info!("down");
    result.map(|()| Exit::Clean)
}
