//! From session to session: how brokers are reached, what every transport does between sessions, and what it says.

use super::backoff::{Backoff, random};
use super::ends::Link;
use super::queue;
use crate::clock::Clock;
use std::time::Duration;
use tokio::sync::watch;
use unstale_protocol::time::Moment;

/// How long a session lasts, at least, that was as it should be: pauses after it begin anew. What a broker refuses comes
/// up within seconds, for an agent says everything as soon as it is connected.
const SETTLED: Duration = Duration::from_secs(30);

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
    clock: Clock,
    backoff: Backoff,
    /// Where the pauses go on after a session: only those count that ended at once, not what it took to have this one.
    after_session: Backoff,
    begun: Option<Moment>,
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
            clock: Clock::start(),
            backoff: Backoff::default(),
            after_session: Backoff::default(),
            begun: None,
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
        self.begun = Some(self.clock.now());
        self.number = self.number.saturating_add(1);
        link.send_replace(Link::Up(self.number));
    }

    /// The session stands, and the broker takes nothing for now, for this reason, or takes what is written: says so once.
    /// Meanwhile it brings nothing either: nobody else is let write.
    pub(super) fn refused(&self, why: Option<&str>, link: &watch::Sender<Link>) {
        let now = why.map_or(Link::Up(self.number), |why| Link::Down(why.to_owned()));
        if *link.borrow() == now {
            return;
        }
        let bus = &self.bus;
        match &now {
            Link::Down(because) => tracing::warn!(%bus, because, "the bus can only be read, trying again to write"),
            Link::Up(_) => tracing::info!(%bus, "the bus can be written to again"),
        }
        link.send_replace(now);
    }

    /// A session ended or could not be had: says so once, waits, and tells whether there is to be another one.
    ///
    /// # Errors
    /// Where the first one could not be had and that is to be an error.
    pub(super) async fn go_on(&mut self, ended: Ended, link: &watch::Sender<Link>) -> anyhow::Result<bool> {
        let Ended::Failed(why) = ended else { return Ok(false) };
        let begun = self.begun.take();
        if let Some(begun) = begun {
            self.backoff = self.after_session;
            if self.clock.now().since(begun) >= SETTLED {
                self.backoff.succeeded();
                self.said.clear();
            }
        }
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
        let pause = self.backoff.failed(random());
        if begun.is_some() {
            self.after_session = self.backoff;
        }
        tokio::time::sleep(pause).await;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::ZERO;

    struct Bus {
        sessions: Sessions,
        link: watch::Sender<Link>,
    }

    impl Bus {
        fn new() -> Self {
            let access = Access { url: "redis://127.0.0.1", authority: None, identity: None, fail_fast: false };
            Self { sessions: Sessions::of(&access), link: watch::channel(Link::Up(0)).0 }
        }

        async fn fails(&mut self) -> Duration {
            let clock = Clock::start();
            assert!(self.sessions.go_on(Ended::Failed("why".to_owned()), &self.link).await.unwrap());
            clock.now().since(Moment(0))
        }

        /// Has a session that ends after `lasts`; returns the pause after it.
        async fn has_session(&mut self, lasts: Duration) -> Duration {
            self.sessions.begin(&self.link);
            tokio::time::sleep(lasts).await;
            self.fails().await
        }

        /// The same so often; returns all pauses together.
        async fn has_sessions(&mut self, lasts: Duration, count: usize) -> Duration {
            let mut pauses = Duration::ZERO;
            for _ in 0..count {
                pauses += self.has_session(lasts).await;
            }
            pauses
        }
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_that_end_at_once_come_less_and_less_often() {
        let mut bus = Bus::new();
        // Pauses of up to 30 s each, in the end: together hardly ever less than a minute.
        let pauses = bus.has_sessions(AT_ONCE, 40).await;
        assert!(pauses > Duration::from_mins(1), "{pauses:?}");
        // One that lasted is followed by the next one soon.
        let pause = bus.has_session(SETTLED).await;
        assert!(pause <= Duration::from_millis(260), "{pause:?}");
        let pauses = bus.has_sessions(SETTLED, 40).await;
        assert!(pauses <= Duration::from_secs(11), "{pauses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_it_took_to_have_a_session_does_not_delay_the_one_after_it() {
        let mut bus = Bus::new();
        for _ in 0..20 {
            bus.fails().await;
        }
        let pause = bus.has_session(AT_ONCE).await;
        assert!(pause <= Duration::from_millis(260), "{pause:?}");
    }
}
