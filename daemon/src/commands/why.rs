//! `unstale why`: everything known about one worker, unit or host.

use crate::api::Why;
use crate::cli::{Output, Surroundings, WhyArgs};
use crate::client::{Client, encoded};
use crate::render;
use crate::report::{self, Exit};

pub(super) async fn run(args: WhyArgs, surroundings: Surroundings) -> anyhow::Result<Exit> {
    let client = Client::find(&args.coordinator, &surroundings).await?;
    let why: Why = client.get(&format!("/v1/why?target={}", encoded(&args.target.to_string()))).await?;
    match args.output.output {
        Output::Json => report::answer_json(&why),
        Output::Text => report::answer(&render::why::text(&why)),
    }
    Ok(if why.findings.is_empty() { Exit::Unknown } else { Exit::Clean })
}
