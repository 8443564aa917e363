//! `unstale why`: everything known about one worker, unit or host.

mod local;

use crate::cli::{Output, Surroundings, WhyArgs};
use crate::client::{Client, ClientError, encoded};
use crate::config::Config;
use crate::render;
use crate::report::{self, Exit};

pub(super) async fn run(args: WhyArgs, surroundings: Surroundings) -> anyhow::Result<Exit> {
    let why = match Client::find(&args.coordinator, &surroundings).await {
        Ok(client) => client.get(&format!("/v1/why?target={}", encoded(&args.target.to_string()))).await?,
        Err(ClientError::NobodyListens { .. }) if args.local => {
            local::look(&args.target, &Config::read(args.config.config.as_deref())?).await?
        }
        Err(error) => return Err(error.into()),
    };
    match args.output.output {
        Output::Json => report::answer_json(&why),
        Output::Text => report::answer(&render::why::text(&why)),
    }
    // Nothing known, or nothing but that.
    let is_unknown = why.findings.iter().all(|finding| finding.verdict == "unknown");
    Ok(if is_unknown { Exit::Unknown } else { Exit::Clean })
}
