//! `unstale demo`: the whole story on this machine with a real worker.

use crate::cli::{DemoArgs, Surroundings};
use crate::report::Exit;

#[expect(clippy::unused_async, reason = "plays once the rest is there")]
pub(super) async fn run(_args: DemoArgs, _surroundings: Surroundings) -> anyhow::Result<Exit> {
    anyhow::bail!("not built yet")
}
