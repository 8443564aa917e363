//! `unstale forget host:NAME`: a host that will not come back uses no budget and is not expected.

use crate::api::Status;
use crate::cli::{ForgetArgs, Output, Selector, Surroundings};
use crate::client::{Client, encoded};
use crate::render::{self, status::Scope};
use crate::report::{self, Exit};
use anyhow::bail;

pub(super) async fn run(args: ForgetArgs, surroundings: Surroundings) -> anyhow::Result<Exit> {
    let Selector::Host(host) = &args.target else { bail!("only hosts are forgotten: `unstale forget host:NAME`") };
    let client = Client::find(&args.coordinator, &surroundings).await?;
    let nothing = serde_json::Map::new();
    let status: Status = client.post(&format!("/v1/hosts/{}/forget", encoded(host.as_str())), &nothing).await?;
    match args.output.output {
        Output::Json => report::answer_json(&status),
        Output::Text => report::answer(&render::status::text(&status, Scope::Fleet)),
    }
    Ok(Exit::Clean)
}
