//! `unstale inspect`: what the Python workers on this host hold, and whether it is what their source says.

use crate::cli::InspectArgs;
use crate::report::Exit;

#[expect(clippy::unused_async, reason = "reads the workers once the agent can")]
pub(super) async fn run(_args: InspectArgs) -> anyhow::Result<Exit> {
    anyhow::bail!("not built yet")
}
