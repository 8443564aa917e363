//! What the control API asks of the coordinator, and the channel that carries it.
//!
//! `http` sends commands, the coordinator's driver answers each once. The channel is bounded: when it is
//! full the caller is told to try again, nothing waits.

use crate::api;
use crate::cli::{AppTarget, Selector};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use unstale_protocol::ids::{DrainId, HostName, SchemaVersion};

/// Commands that may wait for the coordinator.
const COMMANDS_MAX: usize = 64;

/// Who asked, as the kernel says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Caller {
    /// User id of the process at the other end of the socket.
    pub(crate) uid: u32,
    /// Its pid, where the kernel told.
    pub(crate) pid: Option<i32>,
}

/// The coordinator's answer to one command.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, api::Refusal>>;

/// One request to the coordinator.
#[derive(Debug)]
pub(crate) enum Command {
    /// Announce a schema version.
    Broadcast(Box<api::BroadcastRequest>, Caller, Answer<api::BroadcastAccepted>),
    /// Begin a dry run.
    Probe(Box<api::BroadcastRequest>, Answer<api::DryRun>),
    /// How far a dry run has been answered; asking keeps it going.
    ProbeStatus(String, Answer<api::DryRun>),
    /// End a dry run.
    ProbeOver(String, Answer<api::DryRun>),
    /// Ask for no further restarts.
    Pause(AppTarget, api::HandRequest, Caller, Answer<api::Rollout>),
    /// Go on.
    Resume(AppTarget, api::HandRequest, Caller, Answer<api::Rollout>),
    /// End a rollout.
    Abort(AppTarget, api::HandRequest, Caller, Answer<api::Rollout>),
    /// Take units out of work.
    Drain(api::DrainRequest, Caller, Answer<api::Drains>),
    /// Give one drain back.
    Undrain(DrainId, Caller, Answer<api::Drains>),
    /// Forget a host that will not come back.
    Forget(HostName, Caller, Answer<api::Status>),
    /// Where the fleet stands.
    Status(Answer<api::Status>),
    /// Everything known about a target.
    Why(Selector, Answer<api::Why>),
    /// One rollout, counted over its whole life.
    Rollout(AppTarget, Answer<api::Rollout>),
    /// What happened in a rollout after an event, at most [`EVENTS_PER_PAGE`].
    Events(SchemaVersion, u64, Answer<api::Events>),
}

/// Events in one answer.
pub(crate) const EVENTS_PER_PAGE: usize = 256;

/// The side that asks.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    commands: mpsc::Sender<Command>,
    /// Number of the newest event; changes wake those that follow.
    pub(crate) newest_event: watch::Receiver<u64>,
    /// Whether the coordinator has read its disk and works.
    pub(crate) is_ready: watch::Receiver<bool>,
}

/// The coordinator's side.
#[derive(Debug)]
pub(crate) struct Desk {
    /// What is asked.
    pub(crate) commands: mpsc::Receiver<Command>,
    /// To be raised with every event.
    pub(crate) newest_event: watch::Sender<u64>,
    /// To be set once the coordinator works.
    pub(crate) is_ready: watch::Sender<bool>,
}

/// Makes the channel.
pub(crate) fn channel() -> (Asker, Desk) {
    let (sender, commands) = mpsc::channel(COMMANDS_MAX);
    let (newest, newest_event) = watch::channel(0);
    let (ready, is_ready) = watch::channel(false);
    (Asker { commands: sender, newest_event, is_ready }, Desk { commands, newest_event: newest, is_ready: ready })
}

impl Asker {
    /// Asks one thing and waits for the answer.
    ///
    /// # Errors
    /// What the coordinator refuses, or that it is busy or gone.
    pub(crate) async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, api::Refusal> {
        let (answer, answered) = oneshot::channel();
        match self.commands.try_send(command(answer)) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                return Err(api::Refusal::new(503, "busy", "the coordinator has too much to do").help("try again"));
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(gone()),
        }
        answered.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn gone() -> api::Refusal {
    api::Refusal::new(503, "shutting-down", "the coordinator is shutting down")
        .help("start `unstale up`, or `unstale coordinator`, again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_channel_says_so_at_once() {
        let (asker, _desk) = channel();
        let waiting: Vec<_> = (0..COMMANDS_MAX)
            .map(|_| {
                let (answer, answered) = oneshot::channel();
                asker.commands.try_send(Command::Status(answer)).unwrap();
                answered
            })
            .collect();
        assert_eq!(asker.ask(Command::Status).await.unwrap_err().code, "busy");
        drop(waiting);
    }

    #[tokio::test]
    async fn an_unanswered_command_is_an_error() {
        let (asker, desk) = channel();
        drop(desk);
        assert_eq!(asker.ask(Command::Status).await.unwrap_err().code, "shutting-down");
    }
}
