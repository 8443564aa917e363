//! The coordinator on RabbitMQ: a connection that publishes, one that reads and holds the lock, and one for answers.
//!
//! A broker that is short of memory stops who publishes, and goes on for who reads; for some answers it closes the
//! connection. The lock has no number: a stale leader is stopped by its own clock and by the agents' nonces.
//!
//! Where the broker refuses streams, nothing is retained: what is desired goes to whoever says hello, and to everybody
//! who has said anything whenever it changes.

use super::agent::{DESIRED, HELLO, MANIFEST, PERMIT, STREAM};
use super::answered::Answered;
use super::answers::Answers;
use super::names::Names;
use super::route::node_of;
use super::session::{
    Access, LOCKED, NOT_FOUND, REFUSALS, Taken, answered, answered_unless, arguments, limited_channel, next_of,
    publish, text,
};
use crate::bus::ends::{CoordinatorSide, FromCoordinator, Lease, ToCoordinator, deliver};
use crate::bus::envelope::Encoded;
use crate::bus::queue;
use crate::bus::sessions::{Ended, Sessions};
use crate::clock::Clock;
use futures_util::FutureExt as _;
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, Consumer, ExchangeKind};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use unstale_protocol::fingerprint::Fingerprint;
use unstale_protocol::ids::HostName;
use unstale_protocol::time::Moment;

/// The name of its connections.
const NAME: &str = "unstale-coordinator";
/// Reports that are on their way at once, and that are taken before anything else has its turn again: while these are
/// dealt with, the broker sends the others.
const PREFETCH: u16 = 200;
const REPORTS_AT_ONCE: usize = 100;
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
/// Hosts that are told what is desired before anything else has its turn again.
const SAID_AT_ONCE: usize = 50;

/// Where an answer goes, its payload, and what it is.
type Answer = (String, Encoded, BasicProperties);

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
    let mut answers = Answers::begin(access, NAME, clock);
    let writing = access.connect(NAME).await?;
    let writer = answered("open a channel", writing.create_channel()).await?;
    answered("confirm a channel", writer.confirm_select(ConfirmSelectOptions::default())).await?;
    declare(&writer, names).await?;
    let mut reading = access.connect(NAME).await?;
    let has_stream = declare_stream(&reading, names).await?;
    if !has_stream && !reading.status().connected() {
        reading = access.connect(NAME).await?;
    }
    let stream = names.desired();
    let mut desired = None;
    if has_stream {
        let last = arguments(&[("x-stream-offset", text("last"))]);
        desired = Some(read(&reading, &stream, last).await?);
    } else if sessions.is_first() {
        tracing::warn!(
            bus = %access.url,
            "this broker has no streams for this user (RabbitMQ 3.10 or later has, and `deploy/rabbitmq-permissions` what \
             is needed): agents hear what is desired from this coordinator alone, while it is up"
        );
    }
    answers.opened().await?;
    let mut post = Post {
        reading,
        writing,
        writer,
        answers,
        looks: None,
        names,
        clock,
        has_stream,
        tip: None,
        unsaid: BTreeSet::new(),
        routes: BTreeMap::new(),
        answered: Answered::default(),
        reports: None,
        taken: Taken::of(&names.reports(), PREFETCH),
        shown: Taken::of(&stream, PREFETCH),
        until: None,
    };
    // What is there is told before a lease is.
    while has_stream && let Ok(found) = tokio::time::timeout(SHOWS_WITHIN, next_of(&mut desired, &stream)).await {
        post.see(found?).await?;
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
        let can_say = !post.unsaid.is_empty() && post.can_answer()?;
        tokio::select! {
            _ = due.tick() => {
                post.taken.acknowledge().await?;
                post.shown.acknowledge().await?;
                // Again and again: what was answered to it may have come before the lease.
                post.tell(&side.desired, &side.incoming)?;
                post.renew(&side.incoming).await?;
                // Counted from here: over a slow way it takes longer than the pause, and permits wait.
                due.reset();
            }
            found = next_of(&mut desired, &stream) => {
                post.see(found?).await?;
                post.tell(&side.desired, &side.incoming)?;
            }
            report = post.report() => post.take_waiting(report?, side).await?,
            changed = side.desired.changed() => {
                changed?;
                let ours = side.desired.borrow_and_update().clone();
                if let Some(ours) = ours {
                    post.publish_desired(&ours, &stream).await?;
                }
            }
            () = std::future::ready(()), if can_say => post.say_desired(&side.desired).await?,
            message = side.outgoing.receive() => match message.ok_or(queue::Closed)? {
                FromCoordinator::Permit(host, permit) => post.answer(&host, &permit).await?,
                FromCoordinator::Forget(host) => drop(post.routes.remove(&host)),
                // The broker keeps none.
                FromCoordinator::LookUp(_) => {}
            },
        }
    }
}

/// Begins to read a queue, on a channel of its own: what is acknowledged together must come from nowhere else.
async fn read(connection: &Connection, queue: &str, arguments: FieldTable) -> Result<Consumer, Ended> {
    let channel = limited_channel(connection, PREFETCH).await?;
    let consume = channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), arguments);
    answered(&format!("read {queue}"), consume).await
}

/// Makes exchange and queue, or finds them as they should be. The type is always named: a virtual host may have
/// another default.
async fn declare(channel: &Channel, names: &Names) -> Result<(), Ended> {
    let (exchange, reports) = (names.exchange(), names.reports());
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
    answered(&format!("bind {reports}"), bound).await
}

/// Makes the stream, or finds it as it should be; tells whether the broker has such a thing for us. One that is there and
/// is not as it should be is an error: agents would read it.
async fn declare_stream(connection: &Connection, names: &Names) -> Result<bool, Ended> {
    let desired = names.desired();
    let what = format!("declare {desired}");
    let channel = answered("open a channel", connection.create_channel()).await?;
    let of_desired = arguments(&[
        ("x-queue-type", text("stream")),
        ("x-max-length-bytes", AMQPValue::LongLongInt(DESIRED_MAX_BYTES)),
        ("x-stream-max-segment-size-bytes", AMQPValue::LongLongInt(SEGMENT_BYTES)),
    ]);
    let declared = channel.queue_declare(desired.as_str().into(), QueueDeclareOptions::durable(), of_desired);
    if answered_unless(&REFUSALS, &what, declared).await?.is_some() {
        answered("close a channel", channel.close(200, "".into())).await?;
        return Ok(true);
    }
    if !connection.status().connected() {
        return Ok(false);
    }
    let channel = answered("open a channel", connection.create_channel()).await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let found = channel.queue_declare(desired.as_str().into(), passive, FieldTable::default());
    match answered_unless(&[NOT_FOUND], &what, found).await? {
        None => Ok(false),
        Some(_) => {
            Err(Ended::Failed(format!("{desired} is there and is not what it should be, or may not be declared")))
        }
    }
}

/// What one session publishes with, and what it remembers.
struct Post<'a> {
    /// Holds the lock.
    reading: Connection,
    /// Publishes what is desired; the broker says on it that it takes nothing.
    writing: Connection,
    writer: Channel,
    answers: Answers,
    /// Where the lock is asked for; a refusal closes it.
    looks: Option<Channel>,
    names: &'a Names,
    clock: Clock,
    /// Everybody reads what is desired by themselves.
    has_stream: bool,
    /// Who is still to be told what is desired, where there is no stream.
    unsaid: BTreeSet<HostName>,
    /// What the stream showed last.
    tip: Option<Encoded>,
    shown: Taken,
    /// Where each host's answers go, as its last message said.
    routes: BTreeMap<HostName, String>,
    /// Requests for manifests that were answered lately.
    answered: Answered,
    /// Reports are read by the leader alone: whoever reads them takes them from others.
    reports: Option<Consumer>,
    taken: Taken,
    /// When the lease ends; none without the lock.
    until: Option<Moment>,
}

impl Post<'_> {
    fn leads(&self) -> bool {
        self.until.is_some_and(|until| self.clock.now() < until)
    }

    /// Waits for the next report; for ever while another one leads.
    async fn report(&mut self) -> Result<Delivery, Ended> {
        next_of(&mut self.reports, "reports").await
    }

    /// Takes note of what is retained as desired.
    async fn see(&mut self, mut found: Delivery) -> Result<(), Ended> {
        self.tip = Some(std::mem::take(&mut found.data).into());
        self.shown.add(found).await
    }

    /// Tells the driver what is retained as desired where that is not ours; tells whether it is.
    fn tell(
        &self,
        ours: &watch::Receiver<Option<Encoded>>,
        incoming: &queue::Sender<ToCoordinator>,
    ) -> Result<bool, Ended> {
        let is_ours =
            if self.has_stream { self.tip.is_some() && *ours.borrow() == self.tip } else { ours.borrow().is_some() };
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
        if answered_unless(&[LOCKED], &format!("hold {leader}"), locked).await?.is_none() {
            // Reports are no longer this one's to take: what it has not acknowledged goes to who leads.
            return if self.until.is_some() {
                Err(Ended::Failed("another coordinator took the lock".to_owned()))
            } else {
                Ok(())
            };
        }
        if self.until.is_none() {
            tracing::info!("this coordinator leads");
        }
        let until = asked_at.after(LEASE);
        self.until = Some(until);
        deliver(incoming, ToCoordinator::Lease(Some(Lease { epoch: None, until })))?;
        let (exchange, reports, desired) = (self.names.exchange(), self.names.reports(), self.names.desired());
        if self.reports.is_none() {
            self.reports = Some(read(&self.reading, &reports, FieldTable::default()).await?);
        }
        // All at once, so that a slow way is gone only once.
        let is_there = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let queues = [Some(reports.as_str()), self.has_stream.then_some(desired.as_str())].into_iter().flatten();
        let queues = queues
            .map(|queue| channel.queue_declare(queue.into(), is_there, FieldTable::default()))
            .collect::<Vec<_>>();
        let found = futures_util::future::try_join(
            futures_util::future::try_join_all(queues),
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

    /// Takes a report and those that are here already: what follows from them is stored together. One that is answered is
    /// the last: over a slow way an answer takes long enough. What is not acknowledged when this coordinator ends comes
    /// again to the next one, which knows what it has heard by incarnation and sequence. A request does not: its answer may
    /// be what costs a connection.
    async fn take_waiting(&mut self, first: Delivery, side: &CoordinatorSide) -> Result<(), Ended> {
        let (mut next, mut room) = (Some(first), REPORTS_AT_ONCE);
        while let Some(report) = next.take() {
            let answer = self.take(&report, side).await?;
            self.taken.add(report).await?;
            room -= 1;
            if let Some((route, payload, properties)) = answer {
                self.send(&route, &payload, properties).await?;
            } else if room > 0 {
                next = self.report().now_or_never().transpose()?;
            }
        }
        Ok(())
    }

    /// Takes a report or a request; returns the answer to the latter.
    async fn take(&mut self, delivery: &Delivery, side: &CoordinatorSide) -> Result<Option<Answer>, Ended> {
        let text = |value: &Option<lapin::types::ShortString>| {
            value.as_ref().map(|value| value.as_str().to_owned()).filter(|value| value.len() <= ROUTE_MAX_BYTES)
        };
        let properties = &delivery.properties;
        let host = text(properties.app_id()).and_then(|name| HostName::new(name).ok());
        let route = text(properties.reply_to()).filter(|route| node_of(route).is_some());
        let kind = text(properties.kind());
        let wanted = kind.as_ref().filter(|kind| *kind == MANIFEST).and(text(properties.correlation_id()));
        let mut is_new = false;
        if let (Some(host), Some(route)) = (host.clone(), &route)
            && (self.routes.len() < ROUTES_MAX || self.routes.contains_key(&host))
        {
            is_new = self.routes.insert(host.clone(), route.clone()).as_ref() != Some(route);
            if !self.has_stream && (is_new || kind.as_deref() == Some(HELLO)) {
                self.unsaid.insert(host);
            }
        }
        if kind.as_deref() == Some(HELLO) {
            let properties = BasicProperties::default().with_type(STREAM.into());
            return Ok(route.filter(|_| self.has_stream).map(|route| (route, (*b"").into(), properties)));
        }
        if let Some(wanted) = wanted {
            let digest = wanted.parse::<Fingerprint>().ok();
            let manifest = digest.and_then(|digest| side.manifests.borrow().get(&digest).cloned());
            if let (Some(host), Some(digest), Some(_)) = (&host, digest, &manifest)
                && !self.answered.is_due(host, (digest, is_new), self.clock.now())
            {
                return Ok(None);
            }
            let properties = BasicProperties::default().with_type(MANIFEST.into());
            let properties = properties.with_correlation_id(wanted.as_str().into());
            return Ok(route.zip(manifest).map(|(route, manifest)| (route, manifest, properties)));
        }
        side.incoming.room().await?;
        deliver(&side.incoming, ToCoordinator::Report(delivery.data.as_slice().into()))?;
        Ok(None)
    }

    async fn publish_desired(&mut self, ours: &[u8], stream: &str) -> Result<(), Ended> {
        if !self.leads() {
            return Ok(());
        }
        if !self.has_stream {
            self.unsaid = self.routes.keys().cloned().collect();
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

    /// Tells some of those who are still to be told what is desired. Who cannot be told now is told later.
    async fn say_desired(&mut self, ours: &watch::Receiver<Option<Encoded>>) -> Result<(), Ended> {
        let ours = ours.borrow().clone().filter(|_| self.leads());
        for _ in 0..SAID_AT_ONCE {
            let Some(host) = self.unsaid.pop_first() else { break };
            if let (Some(ours), Some(route)) = (&ours, self.routes.get(&host).cloned())
                && !self.send(&route, ours, BasicProperties::default().with_type(DESIRED.into())).await?
            {
                self.unsaid.insert(host);
                break;
            }
        }
        Ok(())
    }

    async fn answer(&mut self, host: &HostName, permit: &[u8]) -> Result<(), Ended> {
        // Without an address the agent asks again.
        let Some(route) = self.routes.get(host).filter(|_| self.leads()).cloned() else { return Ok(()) };
        self.send(&route, permit, BasicProperties::default().with_type(PERMIT.into())).await.map(drop)
    }

    /// Tells whether answers can be said now. Waiting for a broker that takes nothing would cost the lead.
    fn can_answer(&mut self) -> Result<bool, Ended> {
        Ok(self.answers.is_ready()? && !self.writing.status().blocked())
    }

    /// Says something to one host, where that can be done now; who asked asks again. All that was taken is acknowledged
    /// before: an address may cost the connection for answers, and a message that bore it would come again and cost the
    /// next one, too.
    async fn send(&mut self, route: &str, payload: &[u8], properties: BasicProperties) -> Result<bool, Ended> {
        if !self.can_answer()? {
            return Ok(false);
        }
        self.taken.acknowledge().await?;
        self.answers.send(route, payload, properties).await
    }
}
