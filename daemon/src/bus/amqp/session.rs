//! Connections to RabbitMQ: where, as whom, with which time limits; and what is said when one cannot be had.

use crate::bus::address::AmqpUrl;
use crate::bus::sessions::{self, Ended};
use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicPublishOptions, BasicQosOptions};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, ErrorKind};
use std::time::Duration;
use unstale_agent::display::escape;

/// How long connecting may take, and with it the whole login.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the broker may take for one answer: while it is out of memory it takes for ever.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// It is not there: AMQP 0-9-1, "Reply codes".
pub(super) const NOT_FOUND: u16 = 404;
/// It is somebody else's alone.
pub(super) const LOCKED: u16 = 405;
/// Something in the broker broke.
pub(super) const INTERNAL_ERROR: u16 = 541;
/// It may not or cannot be had: access refused, precondition failed, command invalid, not allowed, not implemented,
/// internal error, which is what a node without a feature says.
pub(super) const REFUSALS: [u16; 6] = [403, 406, 503, 530, 540, INTERNAL_ERROR];
/// A silent network is noticed here after twice this. The broker counts whole turns and notices between two and three
/// times it: a leader that fell silent has lost its lock after 24 s, so that another one leads within 30 s.
const HEARTBEAT_SECONDS: u16 = 8;
/// The longest frame, in bytes: the client keeps buffers of 32 of them.
const FRAME_MAX: u32 = 8192;

/// How the broker is reached.
pub(crate) type Access = sessions::Access<AmqpUrl>;

/// Waits for the broker's answer, whatever it is, to what `what` names.
async fn answer<T>(what: &str, asked: impl Future<Output = lapin::Result<T>>) -> Result<lapin::Result<T>, Ended> {
    let in_time = tokio::time::timeout(ANSWER_TIMEOUT, asked).await;
    in_time.map_err(|_| Ended::Failed(format!("no answer to {what} in time: the broker may be out of memory or disk")))
}

/// Waits for the broker to do what `what` names.
pub(super) async fn answered<T>(what: &str, asked: impl Future<Output = lapin::Result<T>>) -> Result<T, Ended> {
    answer(what, asked).await?.map_err(|error| Ended::Failed(words(what, &error)))
}

/// The same where the broker may say no with one of these codes: then nothing, and the channel is closed.
pub(super) async fn answered_unless<T>(
    codes: &[u16],
    what: &str,
    asked: impl Future<Output = lapin::Result<T>>,
) -> Result<Option<T>, Ended> {
    match answer(what, asked).await? {
        Ok(done) => Ok(Some(done)),
        Err(error) if says(&error, codes) => Ok(None),
        Err(error) => Err(Ended::Failed(words(what, &error))),
    }
}

/// Tells whether that is the broker's word, with one of these codes.
fn says(error: &lapin::Error, codes: &[u16]) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(said) if codes.contains(&said.get_id()))
}

/// Says what went wrong, and what to do where that is known.
fn words(what: &str, error: &lapin::Error) -> String {
    let said = escape::terminal(&error.to_string()).into_owned();
    if said.contains("ACCESS_REFUSED") || said.contains("ACCESS-REFUSED") {
        return format!("this user may not {what} ({said}): `deploy/rabbitmq-permissions` has what is needed");
    }
    if said.contains("NOT_FOUND") || said.contains("NOT-FOUND") {
        return format!("{what}: it is not there, no coordinator has been on this bus yet");
    }
    format!("{what}: {said}")
}

impl Access {
    /// Connects and logs in.
    pub(super) async fn connect(&self, name: &str) -> Result<Connection, Ended> {
        let AmqpUrl { tls, host, port, login, vhost } = &self.url;
        let uri = AMQPUri {
            scheme: if *tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: login.username.clone().unwrap_or_else(|| "guest".to_owned()),
                    password: login.password.clone().map_or_else(|| "guest".to_owned(), |password| password.0),
                },
                host: host.clone(),
                port: *port,
            },
            vhost: vhost.clone(),
            query: AMQPQueryString {
                frame_max: Some(FRAME_MAX),
                heartbeat: Some(HEARTBEAT_SECONDS),
                connection_timeout: u64::try_from(CONNECT_TIMEOUT.as_millis()).ok(),
                ..AMQPQueryString::default()
            },
        };
        let authority = self.authority.clone().map(String::from_utf8).transpose();
        let tls = OwnedTLSConfig {
            identity: self.identity.clone().map(|(pem, key)| OwnedIdentity::PKCS8 { pem, key }),
            cert_chain: authority.map_err(|_| Ended::Failed("`ca_file` is not PEM".to_owned()))?,
        };
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let place = format!("{host}:{port}");
        let runtime = lapin::runtime::default_runtime().map_err(|error| Ended::Failed(words(&place, &error)))?;
        let connecting = Connection::connect_uri_with_config(uri, properties, tls, runtime);
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => {
                let said = words(&place, &error);
                let is_login = said.contains("ACCESS_REFUSED") || said.contains("Login was refused");
                Err(Ended::Failed(if is_login { format!("{place} refuses user or password") } else { said }))
            }
            Err(_) => Err(Ended::Failed(format!("{place} does not answer"))),
        }
    }
}

/// Opens a channel on which the broker sends so many messages before it waits for an acknowledgement.
pub(super) async fn limited_channel(connection: &Connection, prefetch: u16) -> Result<Channel, Ended> {
    let channel = answered("open a channel", connection.create_channel()).await?;
    answered("limit a channel", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    Ok(channel)
}

/// Waits for the next message, and for ever never returns one that is none.
pub(super) async fn next(consumer: &mut Consumer, what: &str) -> Result<Delivery, Ended> {
    match consumer.next().await {
        Some(Ok(delivery)) => Ok(delivery),
        Some(Err(error)) => Err(Ended::Failed(words(what, &error))),
        None => Err(Ended::Failed(format!("the broker has ended what was read from {what}"))),
    }
}

/// The same for what may not be read at all: then for ever.
pub(super) async fn next_of(consumer: &mut Option<Consumer>, what: &str) -> Result<Delivery, Ended> {
    match consumer {
        Some(consumer) => next(consumer, what).await,
        None => std::future::pending().await,
    }
}

/// Waits for something to be sent; where the broker takes nothing for now, it is as good as lost. A dead connection is
/// noticed by its heartbeat.
async fn sent<T>(what: &str, asked: impl Future<Output = lapin::Result<T>>) -> lapin::Result<Option<T>> {
    if let Ok(answer) = tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        return answer.map(Some);
    }
    tracing::warn!(what, "the broker takes nothing: it may be out of memory or disk");
    Ok(None)
}

/// What was taken of one queue and is not acknowledged yet. One word acknowledges all of it: a frame for each message
/// would cost the broker about as much as sending it, and a quorum queue a write to its log besides.
#[derive(Debug)]
pub(super) struct Taken {
    queue: String,
    /// So many are acknowledged without being asked: the broker sends on while the others are on their way.
    most: u16,
    count: u16,
    newest: Option<Delivery>,
}

impl Taken {
    /// Nothing yet. The queue is the only one on its channel, made by [`limited_channel`], whose messages wait for it.
    pub(super) fn of(queue: &str, prefetch: u16) -> Self {
        Self { queue: queue.to_owned(), most: (prefetch / 2).max(1), count: 0, newest: None }
    }

    /// Adds what was taken now.
    pub(super) async fn add(&mut self, delivery: Delivery) -> Result<(), Ended> {
        self.newest = Some(delivery);
        self.count += 1;
        if self.count >= self.most { self.acknowledge().await } else { Ok(()) }
    }

    /// Acknowledges all of it.
    pub(super) async fn acknowledge(&mut self) -> Result<(), Ended> {
        self.count = 0;
        let Some(newest) = self.newest.take() else { return Ok(()) };
        let acknowledged = sent(&self.queue, newest.acker.ack(BasicAckOptions { multiple: true })).await;
        acknowledged.map(drop).map_err(|error| Ended::Failed(words(&self.queue, &error)))
    }
}

/// Publishes a message. Waits for a confirmation only where the channel asks for them; none where the broker takes
/// nothing for now.
pub(super) async fn publish(
    channel: &Channel,
    place: (&str, &str),
    options: BasicPublishOptions,
    payload: &[u8],
    properties: BasicProperties,
) -> Result<Option<Confirmation>, Ended> {
    publish_unless(&[], channel, place, options, payload, properties).await.map(Option::flatten)
}

/// The same where the broker may say no with one of these codes: then nothing, and the channel is closed.
pub(super) async fn publish_unless(
    codes: &[u16],
    channel: &Channel,
    (exchange, key): (&str, &str),
    options: BasicPublishOptions,
    payload: &[u8],
    properties: BasicProperties,
) -> Result<Option<Option<Confirmation>>, Ended> {
    let what = format!("publish to {exchange}{key}");
    let published = async {
        let published = channel.basic_publish(exchange.into(), key.into(), options, payload, properties);
        match sent(&what, published).await? {
            Some(confirmation) => sent(&what, confirmation).await,
            None => Ok(None),
        }
    };
    match published.await {
        Ok(confirmed) => Ok(Some(confirmed)),
        Err(error) if says(&error, codes) => Ok(None),
        Err(error) => Err(Ended::Failed(words(&what, &error))),
    }
}

/// Arguments of a declaration.
pub(super) fn arguments(pairs: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert((*name).into(), value.clone());
    }
    table
}

/// A text as a value.
pub(super) fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}
