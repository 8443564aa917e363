//! `unstale broadcast`: the deploy hook.

use crate::cli::{BroadcastArgs, LogArgs, Surroundings};
use crate::report::Exit;

#[expect(clippy::unused_async, reason = "builds the manifest once the agent can")]
pub(super) async fn run(_args: BroadcastArgs, _log: LogArgs, _surroundings: Surroundings) -> anyhow::Result<Exit> {
    anyhow::bail!("not built yet")
}
