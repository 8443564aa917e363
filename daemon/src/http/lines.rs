//! A rollout's events as JSON lines, one per event as it happens, until the rollout ends.
//!
//! An empty line every 15 s tells both sides that the other still lives. A reader that is slow holds up
//! nobody: its lines wait in a short queue, and the next page is asked for when it has room.

use crate::api::{Events, Refusal};
use crate::control::{Asker, Command};
use hyper::body::{Body, Bytes, Frame};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unstale_protocol::ids::SchemaVersion;

/// Pages that wait for a slow reader.
const PAGES_MAX: usize = 4;
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// The body of the answer.
#[derive(Debug)]
pub(super) struct Lines(mpsc::Receiver<Bytes>);

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Starts to follow `version` after the event numbered `after`.
///
/// # Errors
/// What the coordinator refuses, such as an unknown rollout.
pub(super) async fn follow(
    asker: &Asker,
    version: SchemaVersion,
    after: u64,
    tasks: &TaskTracker,
    shutdown: CancellationToken,
) -> Result<Lines, Refusal> {
    let asker = asker.clone();
    let mut newest = asker.newest_event.clone();
    let mut after = after;
    let mut page = ask(&asker, &version, after).await?;
    let (sender, receiver) = mpsc::channel(PAGES_MAX);
    let work = async move {
        loop {
            newest.borrow_and_update();
            let is_end = page.is_end && page.events.is_empty();
            let text = encode(&page);
            after = page.events.last().map_or(after, |event| event.number);
            if !text.is_empty() && sender.send(text).await.is_err() || is_end {
                return;
            }
            if page.events.is_empty() {
                let changed = tokio::time::timeout(SIGN_OF_LIFE, newest.changed()).await;
                match changed {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return,
                    Err(_) if sender.send(Bytes::from_static(b"\n")).await.is_err() => return,
                    Err(_) => {}
                }
            }
            match ask(&asker, &version, after).await {
                Ok(next) => page = next,
                Err(_) => return,
            }
        }
    };
    tasks.spawn(async move {
        tokio::select! {
            () = work => {}
            () = shutdown.cancelled() => {}
        }
    });
    Ok(Lines(receiver))
}

async fn ask(asker: &Asker, version: &SchemaVersion, after: u64) -> Result<Events, Refusal> {
    asker.ask(|answer| Command::Events(version.clone(), after, answer)).await
}

fn encode(page: &Events) -> Bytes {
    let mut text = String::new();
    for event in &page.events {
        // An event is plain data: it always has a JSON form.
        text.push_str(&serde_json::to_string(event).unwrap_or_default());
        text.push('\n');
    }
    text.into()
}
