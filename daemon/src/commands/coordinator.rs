//! `unstale coordinator`: the coordinator of a fleet, over a network bus.

use super::roles::{self, CoordinatorPart, Parts, Wire, coordinator_policy};
use crate::bus::ends;
use crate::cli::{CoordinatorRoleArgs, Surroundings};
use crate::clock::Clock;
use crate::config::Config;
use crate::coordinator::NoEvidence;
use crate::http::Listener;
use crate::keys::Role;
use crate::report::Exit;
use crate::shutdown;
use crate::store::{self, StateDir};
use anyhow::Context as _;
use std::io::Read as _;
use tokio_util::task::TaskTracker;
use unstale_protocol::coordinator::{CoordinatorPolicy, Leadership};
use unstale_protocol::fingerprint::Salt;

pub(super) async fn run(args: CoordinatorRoleArgs, surroundings: Surroundings) -> anyhow::Result<Exit> {
    let config = Config::read(args.config.config.as_deref())?;
    let wire = Wire::find(&args.bus, &config)?;
    let seal = wire.seal(&args.bus, &config, &surroundings, Role::Coordinator)?;
    let state_path = store::choose_dir(args.state.state_dir.as_deref(), &config, &surroundings)?;
    let socket = roles::socket(args.socket.socket.as_ref(), &config, &surroundings)?;
    let state = StateDir::take(&state_path)?;
    let listener = Listener::bind(&socket)?;
    let tasks = TaskTracker::new();
    let shutdown = shutdown::listen(&tasks).context("cannot listen to signals")?;
    let clock = Clock::start();
    let (end, side) = ends::coordinator();
    tracing::info!(bus = wire.url, fleet = %wire.fleet, socket = %socket.display(), state_dir = %state.path().display(), "up");
    let mut parts = Parts::new(tasks, shutdown);
    parts.add_coordinator(CoordinatorPart {
        policy: CoordinatorPolicy {
            leadership: Leadership::Leased,
            reports: wire.reports(),
            life: salt().context("cannot read random numbers")?,
            host: roles::name(&config).ok(),
            ..coordinator_policy(&config)
        },
        state: &state,
        listener,
        wire: (end, seal),
        clock,
        evidence: Box::new(NoEvidence),
        expect_hosts: args.expect_hosts,
        bus_url: Some(wire.url.clone()),
    })?;
    parts.add_endless(wire.carry_coordinator(side, clock));
    let result = parts.keep().await;
    drop(state);
    tracing::info!("down");
    result.map(|()| Exit::Clean)
}

/// Draws what tells this life from all others.
fn salt() -> std::io::Result<Salt> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Salt(bytes))
}
