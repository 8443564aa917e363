//! The coordinator on RabbitMQ: a connection that publishes, and one that reads and holds the lock.
//!
//! Two, because a broker that is short of memory stops who publishes, and goes on for who reads. The lock has no number:
//! a stale leader is stopped by its own clock and by the agents' nonces.

use super::agent::{MANIFEST, PERMIT};
use super::names::Names;
use super::session::{ANSWER_TIMEOUT, Access, acknowledge, answered, arguments, next, publish, text};
use crate::bus::ends::{CoordinatorSide, FromCoordinator, Lease, ToCoordinator, deliver};
use crate::bus::envelope::Encoded;
use crate::bus::queue;
use crate::bus::sessions::{Ended, Sessions};
use crate::clock::Clock;
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, Consumer, ExchangeKind};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use unstale_protocol::fingerprint::Fingerprint;
use unstale_protocol::ids::HostName;
use unstale_protocol::time::Moment;

/// The name of its connections.
const NAME: &str = "unstale-coordinator";
/// Reports that are on their way at once.
const PREFETCH: u16 = 200;
/// Reports that the queue keeps; the oldest are dropped.
const REPORTS_MAX: i64 = 100_000;
/// What the stream keeps, about, and in how large pieces it is forgotten, in bytes.
const DESIRED_MAX_BYTES: i64 = 4_000_000;
const SEGMENT_BYTES: i64 = 2_000_000;
/// How long a lease lasts, and how often the lock is looked at.
const LEASE: Duration = Duration::from_secs(10);
const RENEWAL: Duration = Duration::from_secs(3);
/// How long a stream that has something takes to show it, at most.
const SHOWS_WITHIN: Duration = Duration::from_secs(2);
/// Addresses for answers that are remembered.
const ROUTES_MAX: usize = 50_000;
/// Longest host name or address for answers in a message, in bytes.
const ROUTE_MAX_BYTES: usize = 255;

/// Carries the coordinator's messages until the end behind `side` is gone.
///
/// # Errors
/// Where the first connection cannot be had and [`Access::fail_fast`] is set.
pub(crate) async fn run(mut side: CoordinatorSide, access: Access, names: Names, clock: Clock) -> anyhow::Result<()> {
    let mut sessions = Sessions::of(&access);
    loop {
        let Err(ended) = session(&mut side, &access, &names, clock, &mut sessions).await;
        // The lock went with the session.
        if deliver(&side.incoming, ToCoordinator::Lease(None)).is_err() {
            return Ok(());
        }
        if !sessions.go_on(ended, &side.link).await? {
            return Ok(());
        }
    }
}

async fn session(
    side: &mut CoordinatorSide,
    access: &Access,
    names: &Names,
    clock: Clock,
    sessions: &mut Sessions,
) -> Result<Infallible, Ended> {
    let writing = access.connect(NAME).await?;
    let writer = answered("open a channel", writing.create_channel()).await?;
    answered("confirm a channel", writer.confirm_select(ConfirmSelectOptions::default())).await?;
    declare(&writer, names).await?;
    let reading = access.connect(NAME).await?;
    let reader = answered("open a channel", reading.create_channel()).await?;
    answered("limit a channel", reader.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
    let stream = names.desired();
    let last = arguments(&[("x-stream-offset", text("last"))]);
    let consume = reader.basic_consume(stream.as_str().into(), "".into(), BasicConsumeOptions::default(), last);
    let mut desired = answered(&format!("read {stream}"), consume).await?;
    let mut post = Post {
        reading,
        _writing: writing,
        writer,
        reader,
        looks: None,
        names,
        clock,
        tip: None,
        routes: BTreeMap::new(),
        reports: None,
        until: None,
    };
    // What is there is told before a lease is.
    while let Ok(found) = tokio::time::timeout(SHOWS_WITHIN, next(&mut desired, &stream)).await {
        post.see(found?, &stream).await?;
        if post.tell(&side.desired, &side.incoming)? {
            break;
        }
    }
    post.tell(&side.desired, &side.incoming)?;
    side.outgoing.clear();
    sessions.begin(&side.link);
    let mut due = interval(RENEWAL);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = due.tick() => {
                // Again and again: what was answered to it may have come before the lease.
                post.tell(&side.desired, &side.incoming)?;
                post.renew(&side.incoming).await?;
                // Counted from here: over a slow way it takes longer than the pause, and permits wait.
                due.reset();
            }
            found = next(&mut desired, &stream) => {
                post.see(found?, &stream).await?;
                post.tell(&side.desired, &side.incoming)?;
            }
            report = post.report() => post.take(report?, side).await?,
            changed = side.desired.changed() => {
                changed?;
                let ours = side.desired.borrow_and_update().clone();
                if let Some(ours) = ours {
                    post.publish_desired(&ours, &stream).await?;
                }
            }
            message = side.outgoing.receive() => match message.ok_or(queue::Closed)? {
                FromCoordinator::Permit(host, permit) => post.answer(&host, &permit).await?,
                FromCoordinator::Forget(host) => drop(post.routes.remove(&host)),
            },
        }
    }
}

/// Makes exchange, queue and stream, or finds them as they should be. The type is always named: a virtual host may have
/// another default.
async fn declare(channel: &Channel, names: &Names) -> Result<(), Ended> {
    let (exchange, reports, desired) = (names.exchange(), names.reports(), names.desired());
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared =
        channel.exchange_declare(exchange.as_str().into(), ExchangeKind::Direct, durable, FieldTable::default());
    answered(&format!("declare {exchange}"), declared).await?;
    let of_reports =
        arguments(&[("x-queue-type", text("quorum")), ("x-max-length", AMQPValue::LongLongInt(REPORTS_MAX))]);
    let declared = channel.queue_declare(reports.as_str().into(), QueueDeclareOptions::durable(), of_reports);
    answered(&format!("declare {reports}"), declared).await?;
    let bound = channel.queue_bind(
        reports.as_str().into(),
        exchange.as_str().into(),
        "".into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    answered(&format!("bind {reports}"), bound).await?;
    let of_desired = arguments(&[
        ("x-queue-type", text("stream")),
        ("x-max-length-bytes", AMQPValue::LongLongInt(DESIRED_MAX_BYTES)),
        ("x-stream-max-segment-size-bytes", AMQPValue::LongLongInt(SEGMENT_BYTES)),
    ]);
    let declared = channel.queue_declare(desired.as_str().into(), QueueDeclareOptions::durable(), of_desired);
    answered(&format!("declare {desired}"), declared).await.map(|_| ())
}

/// What one session publishes with, and what it remembers.
struct Post<'a> {
    /// Holds the lock.
    reading: Connection,
    /// Open as long as its channel is used.
    _writing: Connection,
    writer: Channel,
    reader: Channel,
    /// Where the lock is asked for; a refusal closes it.
    looks: Option<Channel>,
    names: &'a Names,
    clock: Clock,
    /// What the stream showed last.
    tip: Option<Encoded>,
    /// Where each host's answers go, as its last message said.
    routes: BTreeMap<HostName, String>,
    /// Reports are read by the leader alone: whoever reads them takes them from others.
    reports: Option<Consumer>,
    /// When the lease ends; none without the lock.
    until: Option<Moment>,
}

impl Post<'_> {
    fn leads(&self) -> bool {
        self.until.is_some_and(|until| self.clock.now() < until)
    }

    /// Waits for the next report; for ever while another one leads.
    async fn report(&mut self) -> Result<Delivery, Ended> {
        match &mut self.reports {
            Some(reports) => next(reports, "reports").await,
            None => std::future::pending().await,
        }
    }

    /// Takes note of what is retained as desired.
    async fn see(&mut self, found: Delivery, stream: &str) -> Result<(), Ended> {
        acknowledge(&found, stream).await?;
        self.tip = Some(found.data.into());
        Ok(())
    }

    /// Tells the driver what is retained as desired where that is not ours; tells whether it is.
    fn tell(
        &self,
        ours: &watch::Receiver<Option<Encoded>>,
        incoming: &queue::Sender<ToCoordinator>,
    ) -> Result<bool, Ended> {
        let is_ours = self.tip.is_some() && *ours.borrow() == self.tip;
        if !is_ours {
            deliver(incoming, ToCoordinator::Tip(self.tip.clone()))?;
        }
        Ok(is_ours)
    }

    /// Takes the lock, or makes sure that it is still held; and that what everybody uses is still there.
    async fn renew(&mut self, incoming: &queue::Sender<ToCoordinator>) -> Result<(), Ended> {
        let channel = match self.looks.take() {
            Some(channel) => channel,
            None => answered("open a channel", self.reading.create_channel()).await?,
        };
        // The lease counts from here: nothing that takes time comes before it is told.
        let asked_at = self.clock.now();
        let leader = self.names.leader();
        let options = QueueDeclareOptions { passive: self.until.is_some(), ..QueueDeclareOptions::exclusive() };
        let locked = channel.queue_declare(leader.as_str().into(), options, FieldTable::default());
        match tokio::time::timeout(ANSWER_TIMEOUT, locked).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.to_string().contains("RESOURCE_LOCKED") => {
                if self.until.take().is_some() {
                    deliver(incoming, ToCoordinator::Lease(None))?;
                }
                return Ok(());
            }
            Ok(Err(error)) => return Err(Ended::Failed(super::session::words(&format!("hold {leader}"), &error))),
            Err(_) => return Err(Ended::Failed(format!("no answer about {leader} in time"))),
        }
        if self.until.is_none() {
            tracing::info!("this coordinator leads");
        }
        let until = asked_at.after(LEASE);
        self.until = Some(until);
        deliver(incoming, ToCoordinator::Lease(Some(Lease { epoch: None, until })))?;
        let (exchange, reports, desired) = (self.names.exchange(), self.names.reports(), self.names.desired());
        if self.reports.is_none() {
            let consume = self.reader.basic_consume(
                reports.as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            );
            self.reports = Some(answered(&format!("read {reports}"), consume).await?);
        }
        // All at once, so that a slow way is gone only once.
        let is_there = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let found = futures_util::future::try_join3(
            channel.queue_declare(desired.as_str().into(), is_there, FieldTable::default()),
            channel.queue_declare(reports.as_str().into(), is_there, FieldTable::default()),
            channel.exchange_declare(
                exchange.as_str().into(),
                ExchangeKind::Direct,
                ExchangeDeclareOptions { passive: true, durable: true, ..ExchangeDeclareOptions::default() },
                FieldTable::default(),
            ),
        );
        answered(&format!("look at {desired}, {reports} and {exchange}"), found).await?;
        self.looks = Some(channel);
        Ok(())
    }

    /// Takes a report, or answers a request for a manifest.
    async fn take(&mut self, delivery: Delivery, side: &CoordinatorSide) -> Result<(), Ended> {
        let text = |value: &Option<lapin::types::ShortString>| {
            value.as_ref().map(|value| value.as_str().to_owned()).filter(|value| value.len() <= ROUTE_MAX_BYTES)
        };
        let properties = &delivery.properties;
        let host = text(properties.app_id()).and_then(|name| HostName::new(name).ok());
        let route = text(properties.reply_to()).filter(|route| route.starts_with(super::agent::REPLY_TO));
        let wanted = text(properties.kind()).filter(|kind| kind == MANIFEST).and(text(properties.correlation_id()));
        if let (Some(host), Some(route)) = (host, &route)
            && (self.routes.len() < ROUTES_MAX || self.routes.contains_key(&host))
        {
            self.routes.insert(host, route.clone());
        }
        if let Some(wanted) = wanted {
            let digest = wanted.parse::<Fingerprint>().ok();
            let manifest = digest.and_then(|digest| side.manifests.borrow().get(&digest).cloned());
            if let (Some(manifest), Some(route)) = (manifest, route) {
                let properties = BasicProperties::default().with_type(MANIFEST.into());
                self.send(&route, &manifest, properties.with_correlation_id(wanted.as_str().into())).await?;
            }
        } else {
            side.incoming.room().await?;
            deliver(&side.incoming, ToCoordinator::Report(delivery.data.as_slice().into()))?;
        }
        acknowledge(&delivery, "reports").await
    }

    async fn publish_desired(&self, ours: &[u8], stream: &str) -> Result<(), Ended> {
        if !self.leads() {
            return Ok(());
        }
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default().with_delivery_mode(2);
        // A confirmation alone does not mean that anything was stored: what had no queue comes back.
        let confirmed = publish(&self.writer, ("", stream), options, ours, properties).await?;
        // Where it takes nothing it is told again, as long as something else lies on top.
        if confirmed.is_some_and(|confirmed| confirmed.is_nack() || confirmed.take_message().is_some()) {
            return Err(Ended::Failed(format!("the broker did not store what was published to {stream}")));
        }
        Ok(())
    }

    async fn answer(&self, host: &HostName, permit: &[u8]) -> Result<(), Ended> {
        // Without an address the agent asks again.
        let Some(route) = self.routes.get(host).filter(|_| self.leads()) else { return Ok(()) };
        self.send(route, permit, BasicProperties::default().with_type(PERMIT.into())).await
    }

    async fn send(&self, route: &str, payload: &[u8], properties: BasicProperties) -> Result<(), Ended> {
        publish(&self.writer, ("", route), BasicPublishOptions::default(), payload, properties).await.map(drop)
    }
}
