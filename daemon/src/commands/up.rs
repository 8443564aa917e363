//! `unstale up`: coordinator and agent in one process on one host.

use crate::cli::{Surroundings, UpArgs};
use crate::report::Exit;

#[expect(clippy::unused_async, reason = "runs the drivers once they are there")]
pub(super) async fn run(_args: UpArgs, _surroundings: Surroundings) -> anyhow::Result<Exit> {
    anyhow::bail!("not built yet")
}
