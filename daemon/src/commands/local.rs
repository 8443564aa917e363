//! `--local`: this host's own hands, where no coordinator listens.
//!
//! The command is coordinator and agent itself for as long as it runs: the same machines, the same steps written to
//! the same state directory, over the same control API on a socket in that directory. Only drains are granted. What a
//! kill interrupts is taken up by the next `--local`, or by `unstale up`.

use super::roles::name;
use super::up::{House, Work};
use crate::api::Status;
use crate::cli::{CoordinatorAddress, CoordinatorArgs, LocalArgs, Surroundings};
use crate::client::{Client, ClientError};
use crate::clock::Clock;
use crate::config::Config;
use crate::http::Listener;
use crate::store::{self, StateDir};
use anyhow::Context as _;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unstale_protocol::time::Moment;

/// The socket in the state directory.
const SOCKET: &str = "local.sock";
/// How long the first look at this host may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Who carries out what is asked.
#[derive(Debug)]
pub(super) enum Reach {
    /// A coordinator that runs.
    Coordinator(Client),
    /// This process.
    Own(Box<Own>),
}

/// What this process needs for being both.
#[derive(Debug)]
pub(super) struct Own {
    config: Config,
    state: StateDir,
}

/// Finds the coordinator; with `--local` and where nobody listens, takes the state directory instead.
///
/// # Errors
/// Where neither can be had: above all a state directory that somebody else holds.
pub(super) async fn reach(
    args: &CoordinatorArgs,
    local: &LocalArgs,
    surroundings: &Surroundings,
) -> anyhow::Result<Reach> {
    match Client::find(args, surroundings).await {
        Ok(client) => return Ok(Reach::Coordinator(client)),
        Err(ClientError::NobodyListens { .. }) if local.local => {}
        Err(error) => return Err(error.into()),
    }
    let config = Config::read(local.config.config.as_deref())?;
    let path = store::choose_dir(local.state.state_dir.as_deref(), &config, surroundings)?;
    let state = StateDir::take(&path).context("this host's own hands are not free")?;
    Ok(Reach::Own(Box::new(Own { config, state })))
}

impl Own {
    /// Does `work` with this process as the coordinator, once it has seen this host.
    ///
    /// # Errors
    /// What `work` says, or why this process could not go on.
    pub(super) async fn with<T>(self, work: impl AsyncFnOnce(Client) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let socket = self.state.path().join(SOCKET);
        let listener = Listener::bind(&socket)?;
        let name = name(&self.config)?;
        let house =
            House { config: self.config, roots: Vec::new(), name, state: self.state, listener, work: Work::Drains };
        let shutdown = CancellationToken::new();
        let keep = house.keep(TaskTracker::new(), shutdown.clone());
        let asked = async {
            let place = CoordinatorArgs { coordinator: Some(CoordinatorAddress(socket)) };
            let client = Client::find(&place, &Surroundings::default()).await?;
            wait_for_look(&client).await?;
            work(client).await
        };
        tokio::pin!(keep);
        tokio::select! {
            kept = &mut keep => {
                kept?;
                anyhow::bail!("this host's own hands ended before it was done");
            }
            asked = asked => {
                shutdown.cancel();
                keep.await?;
                asked
            }
        }
    }
}

/// Waits until this host has been looked at once.
async fn wait_for_look(client: &Client) -> anyhow::Result<()> {
    let clock = Clock::start();
    while clock.now().since(Moment::default()) < LOOK_TIMEOUT {
        let status: Status = client.get("/v1/status").await?;
        let has_looked = |host: &crate::api::StatusHost| host.scanned;
        if status.hosts.iter().any(has_looked) {
            return Ok(());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    anyhow::bail!("this host could not be looked at within {} s", LOOK_TIMEOUT.as_secs())
}
