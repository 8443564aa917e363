//! An agent on RabbitMQ: one connection, one channel; the stream of desired states, and answers addressed to it.

use super::names::Names;
use super::session::{Access, acknowledge, answered, arguments, next, publish, text};
use crate::bus::ends::{AgentSide, FromAgent, ToAgent};
use crate::bus::envelope::{Channel as Kind, Encoded};
use crate::bus::queue;
use crate::bus::sessions::{Ended, Sessions};
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, BasicQosOptions};
use lapin::types::FieldTable;
use std::convert::Infallible;
use unstale_protocol::ids::HostName;

/// The name of its connection.
const NAME: &str = "unstale-agent";
/// Messages of the stream that are on their way at once.
const PREFETCH: u16 = 10;
/// Where direct answers come from: RabbitMQ documentation, "Direct Reply-to".
pub(super) const REPLY_TO: &str = "amq.rabbitmq.reply-to";
/// What a message is, beside its envelope.
pub(super) const REPORT: &str = "report";
pub(super) const PERMIT: &str = "permit";
pub(super) const MANIFEST: &str = "manifest";

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
    let channel = answered("open a channel", connection.create_channel()).await?;
    answered("limit a channel", channel.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
    let stream = names.desired();
    // From the last chunk, never from where one was: after a loss that lies beyond the end, and waits for ever.
    let last = arguments(&[("x-stream-offset", text("last"))]);
    let consume = channel.basic_consume(stream.as_str().into(), "".into(), BasicConsumeOptions::default(), last);
    let mut desired = answered(&format!("read {stream}"), consume).await?;
    let unacknowledged = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consume = channel.basic_consume(REPLY_TO.into(), "".into(), unacknowledged, FieldTable::default());
    let mut answers = answered("read answers", consume).await?;
    // What was to be said before is old; the agent says everything again once it is connected.
    side.outgoing.clear();
    sessions.begin(&side.link);
    let exchange = names.exchange();
    loop {
        tokio::select! {
            delivery = next(&mut desired, &stream) => {
                let delivery = delivery?;
                acknowledge(&delivery, &stream).await?;
                let envelope: Encoded = delivery.data.into();
                side.incoming.send(ToAgent::Desired(Kind::Desired.shortened(envelope)))?;
            }
            delivery = next(&mut answers, REPLY_TO) => {
                if let Some(message) = answer(delivery?) {
                    side.incoming.send(message)?;
                }
            }
            message = side.outgoing.receive() => {
                let properties = BasicProperties::default()
                    .with_reply_to(REPLY_TO.into())
                    .with_app_id(host.as_str().into());
                let (properties, payload) = match message.ok_or(queue::Closed)? {
                    FromAgent::Report(envelope) => (properties.with_type(REPORT.into()), envelope),
                    FromAgent::WantManifest(digest) => {
                        let digest = digest.to_string();
                        let properties = properties.with_type(MANIFEST.into());
                        (properties.with_correlation_id(digest.as_str().into()), (*b"").into())
                    }
                };
                let to = (exchange.as_str(), "");
                publish(&channel, to, BasicPublishOptions::default(), &payload, properties).await?;
            }
        }
    }
}

/// Returns what an answer is; nothing where it makes no sense.
fn answer(delivery: Delivery) -> Option<ToAgent> {
    let envelope: Encoded = delivery.data.into();
    match delivery.properties.kind().as_ref()?.as_str() {
        PERMIT => Some(ToAgent::Permit(Kind::Permit.shortened(envelope))),
        MANIFEST => {
            let digest = delivery.properties.correlation_id().as_ref()?.as_str().parse().ok()?;
            Some(ToAgent::Manifest(digest, Kind::Manifest.shortened(envelope)))
        }
        _ => None,
    }
}
