//! `unstale pause`, `resume`, `abort`: the operator's hand on a rollout.

use crate::api::{HandRequest, Rollout, Status};
use crate::cli::{AppTarget, HandArgs, Output, ResumeArgs, Surroundings};
use crate::client::{Client, encoded};
use crate::render;
use crate::report::{self, Exit};
use anyhow::bail;

pub(super) async fn pause(args: HandArgs, surroundings: Surroundings) -> anyhow::Result<Exit> {
    let request = HandRequest { message: args.message.clone(), ..HandRequest::default() };
    lay("pause", args, request, &surroundings).await
}

pub(super) async fn resume(args: ResumeArgs, surroundings: Surroundings) -> anyhow::Result<Exit> {
    let request =
        HandRequest { message: args.hand.message.clone(), hosts: args.hosts, max_unavailable: args.max_unavailable };
    lay("resume", args.hand, request, &surroundings).await
}

pub(super) async fn abort(args: HandArgs, surroundings: Surroundings) -> anyhow::Result<Exit> {
    let request = HandRequest { message: args.message.clone(), ..HandRequest::default() };
    lay("abort", args, request, &surroundings).await
}

async fn lay(hand: &str, args: HandArgs, request: HandRequest, surroundings: &Surroundings) -> anyhow::Result<Exit> {
    let client = Client::find(&args.coordinator, surroundings).await?;
    let target = match args.target {
        Some(target) => target,
        None => only_one(&client, hand).await?,
    };
    let rollout: Rollout = client.post(&format!("{}/{hand}", path(&target)), &request).await?;
    match args.output.output {
        Output::Json => report::answer_json(&rollout),
        Output::Text => report::answer(&render::broadcast::text(&rollout)),
    }
    Ok(Exit::Clean)
}

/// Returns the one rollout there is.
pub(super) async fn only_one(client: &Client, hand: &str) -> anyhow::Result<AppTarget> {
    let status: Status = client.get("/v1/status").await?;
    match status.apps.as_slice() {
        [] => bail!("there is no rollout to {hand}"),
        [app] => Ok(AppTarget { app: app.app.clone(), revision: Some(app.revision) }),
        several => {
            let names: Vec<String> = several.iter().map(|app| format!("{}@{}", app.app, app.revision)).collect();
            bail!("there are several rollouts: name one of {}", names.join(", "))
        }
    }
}

/// The route of a rollout.
pub(super) fn path(target: &AppTarget) -> String {
    let revision = target.revision.map_or("latest".to_owned(), |revision| revision.to_string());
    format!("/v1/rollouts/{}/{revision}", encoded(target.app.as_str()))
}
