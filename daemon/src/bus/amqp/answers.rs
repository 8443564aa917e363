//! The coordinator's way for answers: a connection of its own, and nothing else goes over it.
//!
//! Who asks names the address. For one that names a node which is not there the broker closes the whole connection of
//! whoever publishes to it (RabbitMQ 3.10.8: 541, `case_clause` in `rabbit_channel:deliver_reply`; where only the asking
//! connection is gone it says nothing). So what leads and what is desired go other ways, and this one is opened again in
//! the background. Until then answers are lost: who asked asks again.

use super::route::node_of;
use super::session::{Access, INTERNAL_ERROR, answered, publish_unless};
use crate::bus::sessions::Ended;
use crate::clock::Clock;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Connection};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinSet;
use unstale_protocol::time::Moment;

/// How long after one was closed the next connection is opened: that often, at most, an address costs one.
const PAUSE: Duration = Duration::from_secs(1);
/// How long nobody at a node that is gone is answered; thousands may have asked from there.
const GONE_FOR: Duration = Duration::from_secs(30);
/// Nodes that are gone, at most; more are no cluster's but somebody's noise.
const GONE_MAX: usize = 64;

/// The way for answers.
pub(super) struct Answers {
    access: Access,
    name: &'static str,
    clock: Clock,
    line: Option<Line>,
    /// Opens the next one.
    opening: JoinSet<Result<Line, Ended>>,
    /// Nodes that nothing is said to, by number, and until when.
    gone: BTreeMap<u32, Moment>,
}

/// A connection is closed with what holds it.
struct Line {
    connection: Connection,
    channel: Channel,
}

impl Answers {
    /// Begins to open the first connection, under this name.
    pub(super) fn begin(access: &Access, name: &'static str, clock: Clock) -> Self {
        let (gone, opening) = (BTreeMap::new(), JoinSet::new());
        let mut this = Self { access: access.clone(), name, clock, line: None, opening, gone };
        this.open_after(Duration::ZERO);
        this
    }

    /// Waits until it is open.
    pub(super) async fn opened(&mut self) -> Result<(), Ended> {
        match self.opening.join_next().await {
            Some(opened) => self.take(opened),
            None => Ok(()),
        }
    }

    /// Tells whether something can be said now.
    ///
    /// # Errors
    /// Where it was to be opened again and cannot be had.
    pub(super) fn is_ready(&mut self) -> Result<bool, Ended> {
        if let Some(opened) = self.opening.try_join_next() {
            self.take(opened)?;
        }
        if self.line.as_ref().is_some_and(|line| !line.connection.status().connected()) {
            self.close();
        }
        Ok(self.line.as_ref().is_some_and(|line| !line.connection.status().blocked()))
    }

    /// Says something to one host; tells whether the broker has taken it, or never would.
    pub(super) async fn send(
        &mut self,
        route: &str,
        payload: &[u8],
        properties: BasicProperties,
    ) -> Result<bool, Ended> {
        let Some(node) = node_of(route) else { return Ok(true) };
        let now = self.clock.now();
        if self.gone.get(&node).is_some_and(|until| now < *until) {
            return Ok(true);
        }
        if !self.is_ready()? {
            return Ok(false);
        }
        let Some(line) = &self.line else { return Ok(false) };
        let options = BasicPublishOptions::default();
        let published = publish_unless(&[INTERNAL_ERROR], &line.channel, ("", route), options, payload, properties);
        if let Some(confirmed) = published.await? {
            return Ok(confirmed.is_some());
        }
        self.close();
        self.forget(node);
        Ok(true)
    }

    fn take(&mut self, opened: Result<Result<Line, Ended>, tokio::task::JoinError>) -> Result<(), Ended> {
        let opened = opened.map_err(|error| Ended::Failed(format!("the way for answers: {error}")))?;
        self.line = Some(opened?);
        Ok(())
    }

    fn close(&mut self) {
        self.line = None;
        self.open_after(PAUSE);
    }

    fn open_after(&mut self, pause: Duration) {
        let (access, name) = (self.access.clone(), self.name);
        self.opening.spawn(async move {
            tokio::time::sleep(pause).await;
            let connection = access.connect(name).await?;
            let channel = answered("open a channel", connection.create_channel()).await?;
            answered("confirm a channel", channel.confirm_select(ConfirmSelectOptions::default())).await?;
            Ok(Line { connection, channel })
        });
    }

    /// Says nothing to this node for some time. It may come back, under the same number.
    fn forget(&mut self, node: u32) {
        if self.gone.len() >= GONE_MAX
            && let Some(soonest) = self.gone.iter().min_by_key(|(_, until)| **until).map(|(node, _)| *node)
        {
            self.gone.remove(&soonest);
        }
        if self.gone.insert(node, self.clock.now().after(GONE_FOR)).is_none() {
            tracing::warn!(node, "the broker knows no node of this number: who asked from there is not answered");
        }
    }
}
