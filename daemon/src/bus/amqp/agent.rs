//! An agent on RabbitMQ: one connection, one channel; the stream of desired states, and answers addressed to it.
//!
//! Where there is no stream, the agent says hello to the coordinator, and what is desired comes as the answer, then and
//! whenever it changes.

use super::names::Names;
use super::session::{
    Access, NOT_FOUND, Taken, answered, answered_unless, arguments, limited_channel, next, next_of, publish, text,
};
use crate::bus::ends::{AgentSide, FromAgent, ToAgent};
use crate::bus::envelope::{Channel as Kind, Encoded};
use crate::bus::queue;
use crate::bus::sessions::{Ended, Sessions};
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, ExchangeKind};
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use unstale_protocol::ids::HostName;

/// The name of its connection.
const NAME: &str = "unstale-agent";
/// Messages of the stream that are on their way at once.
const PREFETCH: u16 = 20;
/// Where direct answers come from: RabbitMQ documentation, "Direct Reply-to".
pub(super) const REPLY_TO: &str = "amq.rabbitmq.reply-to";
/// What a message is, beside its envelope.
pub(super) const REPORT: &str = "report";
pub(super) const PERMIT: &str = "permit";
pub(super) const MANIFEST: &str = "manifest";
pub(super) const HELLO: &str = "hello";
pub(super) const DESIRED: &str = "desired";
/// The answer to a hello where there is a stream by now.
pub(super) const STREAM: &str = "stream";
/// How long an answer to a hello is waited for before it is said again.
const HELLO_INTERVAL: Duration = Duration::from_secs(15);
/// How long the broker keeps a request, in milliseconds: by then it was said again, and its address may lead nowhere.
const REQUEST_LASTS_MS: &str = "20000";

/// Carries the messages of one host until the end behind `side` is gone.
///
/// # Errors
/// Where the first connection cannot be had and [`Access::fail_fast`] is set.
pub(crate) async fn run(mut side: AgentSide, access: Access, names: Names, host: HostName) -> anyhow::Result<()> {
    let mut sessions = Sessions::of(&access);
    loop {
        let Err(ended) = session(&mut side, &access, &names, &host, &mut sessions).await;
        if !sessions.go_on(ended, &side.link).await? {
            return Ok(());
        }
    }
}

async fn session(
    side: &mut AgentSide,
    access: &Access,
    names: &Names,
    host: &HostName,
    sessions: &mut Sessions,
) -> Result<Infallible, Ended> {
    let connection = access.connect(NAME).await?;
    let mut channel = limited_channel(&connection, PREFETCH).await?;
    let (stream, exchange) = (names.desired(), names.exchange());
    // From the last chunk, never from where one was: after a loss that lies beyond the end, and waits for ever.
    let last = arguments(&[("x-stream-offset", text("last"))]);
    let consume = channel.basic_consume(stream.as_str().into(), "".into(), BasicConsumeOptions::default(), last);
    let mut desired = answered_unless(&[NOT_FOUND], &format!("read {stream}"), consume).await?;
    if desired.is_none() {
        // The refusal has closed the channel.
        channel = limited_channel(&connection, PREFETCH).await?;
        let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let looked =
            channel.exchange_declare(exchange.as_str().into(), ExchangeKind::Direct, passive, FieldTable::default());
        answered(&format!("say hello to {exchange}"), looked).await?;
    }
    let unacknowledged = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consume = channel.basic_consume(REPLY_TO.into(), "".into(), unacknowledged, FieldTable::default());
    let mut answers = answered("read answers", consume).await?;
    // What was to be said before is old; the agent says everything again once it is connected.
    side.outgoing.clear();
    sessions.begin(&side.link);
    let mut is_answered = desired.is_some();
    let mut taken = Taken::of(&stream, PREFETCH);
    let mut hello = interval(HELLO_INTERVAL);
    hello.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            delivery = next_of(&mut desired, &stream) => {
                let mut delivery = delivery?;
                let envelope: Encoded = std::mem::take(&mut delivery.data).into();
                taken.add(delivery).await?;
                side.incoming.send(ToAgent::Desired(Kind::Desired.shortened(envelope)))?;
            }
            delivery = next(&mut answers, REPLY_TO) => {
                let message = answer(delivery?)?;
                is_answered |= matches!(message, Some(ToAgent::Desired(_)));
                if let Some(message) = message {
                    side.incoming.send(message)?;
                }
            }
            _ = hello.tick(), if !is_answered => {
                say(&channel, &exchange, request(host, HELLO), b"").await?;
            }
            message = side.outgoing.receive() => {
                // On its way with what is said anyway: a report every minute, long before the broker gives up waiting.
                taken.acknowledge().await?;
                let (properties, payload) = match message.ok_or(queue::Closed)? {
                    FromAgent::Report(envelope) => (properties(host).with_type(REPORT.into()), envelope),
                    FromAgent::WantManifest(digest) => {
                        let digest = digest.to_string();
                        let properties = request(host, MANIFEST);
                        (properties.with_correlation_id(digest.as_str().into()), (*b"").into())
                    }
                };
                say(&channel, &exchange, properties, &payload).await?;
            }
        }
    }
}

/// What every message bears: where answers go, and whose it is.
fn properties(host: &HostName) -> BasicProperties {
    BasicProperties::default().with_reply_to(REPLY_TO.into()).with_app_id(host.as_str().into())
}

/// The same for what is answered and asked again until it is. A report is kept: it says how things stand.
fn request(host: &HostName, kind: &str) -> BasicProperties {
    properties(host).with_type(kind.into()).with_expiration(REQUEST_LASTS_MS.into())
}

async fn say(channel: &Channel, exchange: &str, properties: BasicProperties, payload: &[u8]) -> Result<(), Ended> {
    publish(channel, (exchange, ""), BasicPublishOptions::default(), payload, properties).await.map(drop)
}

/// Returns what an answer is; nothing where it makes no sense.
///
/// # Errors
/// Where it says that there is a stream by now: a new session reads it.
fn answer(delivery: Delivery) -> Result<Option<ToAgent>, Ended> {
    let envelope: Encoded = delivery.data.into();
    let kind = delivery.properties.kind().as_ref().map(lapin::types::ShortString::as_str);
    Ok(match kind {
        Some(PERMIT) => Some(ToAgent::Permit(Kind::Permit.shortened(envelope))),
        Some(DESIRED) => Some(ToAgent::Desired(Kind::Desired.shortened(envelope))),
        Some(MANIFEST) => {
            let digest = delivery.properties.correlation_id().as_ref().and_then(|digest| digest.as_str().parse().ok());
            digest.map(|digest| ToAgent::Manifest(digest, Kind::Manifest.shortened(envelope)))
        }
        Some(STREAM) => return Err(Ended::Failed("what is desired is in a stream by now".to_owned())),
        _ => None,
    })
}
