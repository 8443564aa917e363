//! From session to session: how brokers are reached, what every transport does between sessions, and what it says.

use super::backoff::{Backoff, random};
use super::ends::Link;
use super::queue;
use tokio::sync::watch;

/// How a broker is reached.
#[derive(Clone, Debug)]
pub(crate) struct Access<Url> {
    pub(crate) url: Url,
    /// Certificates, where files name them: authority, then certificate and key of this client. PEM.
    pub(crate) authority: Option<Vec<u8>>,
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
    /// End with an error where the first connection cannot be had, instead of waiting.
    pub(crate) fail_fast: bool,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// The end behind the side is gone: so does the transport.
    #[error("nobody listens any more")]
    Closed(#[from] queue::Closed),
    /// The broker, or the way to it.
    #[error("{0}")]
    Failed(String),
}

impl From<watch::error::RecvError> for Ended {
    fn from(_: watch::error::RecvError) -> Self {
        Self::Closed(queue::Closed)
    }
}

/// The sessions of one transport.
#[derive(Debug)]
pub(super) struct Sessions {
    /// Where, without a password.
    bus: String,
    fail_fast: bool,
    backoff: Backoff,
    number: u64,
    said: String,
}

impl Sessions {
    /// Makes the sessions of a bus.
    pub(super) fn of(access: &Access<impl ToString>) -> Self {
        let Access { url, fail_fast, .. } = access;
        Self {
            bus: url.to_string(),
            fail_fast: *fail_fast,
            backoff: Backoff::default(),
            number: 0,
            said: String::new(),
        }
    }

    /// Tells whether none was had yet.
    pub(super) fn is_first(&self) -> bool {
        self.number == 0
    }

    /// A session was had.
    pub(super) fn begin(&mut self, link: &watch::Sender<Link>) {
        self.backoff.succeeded();
        self.number = self.number.saturating_add(1);
        self.said.clear();
        link.send_replace(Link::Up(self.number));
    }

    /// A session ended or could not be had: says so once, waits, and tells whether there is to be another one.
    ///
    /// # Errors
    /// Where the first one could not be had and that is to be an error.
    pub(super) async fn go_on(&mut self, ended: Ended, link: &watch::Sender<Link>) -> anyhow::Result<bool> {
        let Ended::Failed(why) = ended else { return Ok(false) };
        let bus = &self.bus;
        if self.fail_fast && self.number == 0 {
            anyhow::bail!("the bus {bus} cannot be used: {why}");
        }
        if self.said != why {
            let words = if self.number == 0 { "waiting for the bus" } else { "the bus is lost, trying again" };
            tracing::warn!(%bus, because = why, "{words}");
            self.said.clone_from(&why);
        }
        link.send_replace(Link::Down(why));
        tokio::time::sleep(self.backoff.failed(random())).await;
        Ok(true)
    }
}
