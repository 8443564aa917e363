//! From session to session: what every transport does between them, and what it says.

use super::backoff::{Backoff, random};
use super::ends::Link;
use tokio::sync::watch;

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
    /// Makes the sessions of a bus. With `fail_fast` the first one that cannot be had is an error.
    pub(super) fn new(bus: String, fail_fast: bool) -> Self {
        Self { bus, fail_fast, backoff: Backoff::default(), number: 0, said: String::new() }
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

    /// A session ended or could not be had: says so once, and waits.
    ///
    /// # Errors
    /// Where the first one could not be had and that is to be an error.
    pub(super) async fn wait(&mut self, why: String, link: &watch::Sender<Link>) -> anyhow::Result<()> {
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
        Ok(())
    }
}
