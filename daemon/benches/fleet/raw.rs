//! What the brokers can do at best, with nothing kept for who is away: `PUBLISH` to subscribers, a fanout exchange to
//! exclusive queues; and writing with confirmations.

use super::brokers::{Broker, Kind};
use super::fanout::{Arrivals, PAYLOAD_BYTES, round_of};
use crate::bus::envelope::Encoded;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use redis::aio::MultiplexedConnection;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// The exchange and the queue. No role may use them, so whoever may do everything does.
const EXCHANGE: &str = "raw";
const QUEUE: &str = "written";
/// Writes that wait for their confirmation at once.
const IN_FLIGHT: usize = 50;

/// The stream that bare readers block on.
const STREAM: &str = "raw.stream";

/// A publisher to everybody, and everybody.
pub(crate) enum Crowd {
    Redis(MultiplexedConnection),
    /// The readers of a stream.
    Stream(MultiplexedConnection),
    RabbitMq(Box<Route>),
}

/// Where a RabbitMQ is published to.
pub(crate) struct Route {
    channel: Channel,
    /// Open as long as its channel is used.
    _connection: Connection,
    exchange: String,
    key: String,
}

impl Route {
    /// Opens a channel that confirms.
    async fn open(url: &str, exchange: &str, key: &str) -> Box<Self> {
        let connection = amqp(url).await;
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Box::new(Self { channel, _connection: connection, exchange: exchange.to_owned(), key: key.to_owned() })
    }

    async fn publish(&self, payload: &[u8]) {
        let options = BasicPublishOptions::default();
        let (exchange, key) = (self.exchange.as_str().into(), self.key.as_str().into());
        let published = self.channel.basic_publish(exchange, key, options, payload, BasicProperties::default());
        assert!(published.await.unwrap().await.unwrap().is_ack());
    }
}

async fn admin(broker: &Broker) -> MultiplexedConnection {
    let client = redis::Client::open(broker.admin().0).unwrap();
    let options = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    client.get_multiplexed_async_connection_with_config(&options).await.unwrap()
}

async fn amqp(url: &str) -> Connection {
    let url = format!("{url}?heartbeat=60&frame_max=8192");
    let runtime = lapin::runtime::default_runtime().unwrap();
    Connection::connect_with_runtime(&url, ConnectionProperties::default(), runtime).await.unwrap()
}

impl Crowd {
    /// Connects so many listeners as tasks of `set`.
    pub(crate) async fn gather(
        broker: &Broker,
        listeners: usize,
        arrivals: &Arc<Arrivals>,
        set: &mut JoinSet<()>,
    ) -> Self {
        match broker.kind() {
            Kind::Redis => {
                let publisher = admin(broker).await;
                let port = broker.admin().1;
                for _ in 0..listeners {
                    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    socket.write_all(b"AUTH admin admin\r\nSUBSCRIBE raw\r\n").await.unwrap();
                    let mut hello = [0; 64];
                    // "+OK", then three lines about the subscription.
                    let mut read = 0;
                    while !hello[..read].ends_with(b":1\r\n") {
                        read += socket.read(&mut hello[read..]).await.unwrap();
                    }
                    set.spawn(listen(socket, Arc::clone(arrivals)));
                }
                Self::Redis(publisher)
            }
            Kind::RabbitMq => {
                let route = Route::open(&broker.admin().0, EXCHANGE, "").await;
                let options = ExchangeDeclareOptions { auto_delete: true, ..ExchangeDeclareOptions::default() };
                let none = FieldTable::default;
                route.channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Fanout, options, none()).await.unwrap();
                for number in 0..listeners {
                    let listener = amqp(&broker.admin().0).await;
                    let own = listener.create_channel().await.unwrap();
                    let queue = format!("{EXCHANGE}.{number}");
                    let queue = queue.as_str();
                    own.queue_declare(queue.into(), QueueDeclareOptions::exclusive(), none()).await.unwrap();
                    let bind = QueueBindOptions::default();
                    own.queue_bind(queue.into(), EXCHANGE.into(), "".into(), bind, none()).await.unwrap();
                    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
                    let mut consumer = own.basic_consume(queue.into(), "".into(), options, none()).await.unwrap();
                    let arrivals = Arc::clone(arrivals);
                    set.spawn(async move {
                        let _open = (listener, own);
                        while let Some(Ok(delivery)) = consumer.next().await {
                            arrivals.arrived(round_of(&delivery.data).is_some().into());
                        }
                    });
                }
                Self::RabbitMq(route)
            }
        }
    }

    /// Connects so many readers that block on one stream and do nothing else: what a Redis does at least where nobody
    /// may miss anything.
    pub(crate) async fn gather_readers(
        broker: &Broker,
        readers: usize,
        arrivals: &Arc<Arrivals>,
        set: &mut JoinSet<()>,
    ) -> Self {
        let publisher = admin(broker).await;
        for _ in 0..readers {
            let mut socket = TcpStream::connect(("127.0.0.1", broker.admin().1)).await.unwrap();
            socket.write_all(b"AUTH admin admin\r\n").await.unwrap();
            let mut hello = [0; 5];
            socket.read_exact(&mut hello).await.unwrap();
            set.spawn(read_stream(socket, Arc::clone(arrivals)));
        }
        Self::Stream(publisher)
    }

    pub(crate) async fn publish(&mut self, payload: &[u8]) {
        match self {
            Self::Stream(publisher) => {
                let mut command = redis::cmd("XADD");
                command.arg(STREAM).arg("MAXLEN").arg("~").arg(16);
                command.arg(format!("{}-0", round_of(payload).unwrap())).arg("e").arg(payload);
                command.query_async::<String>(publisher).await.unwrap();
            }
            Self::Redis(publisher) => {
                redis::cmd("PUBLISH").arg("raw").arg(payload).query_async::<i64>(publisher).await.unwrap();
            }
            Self::RabbitMq(route) => route.publish(payload).await,
        }
    }
}

/// Counts the messages of a subscription: each ends with its payload, which has no line end within.
async fn listen(mut socket: TcpStream, arrivals: Arc<Arrivals>) {
    let mut buffer = [0; 4096];
    // A message is `*3`, then three lengths and three texts: seven lines.
    let mut lines = 0;
    while let Ok(read) = socket.read(&mut buffer).await
        && read > 0
    {
        lines += buffer[..read].split(|byte| *byte == b'\n').skip(1).count();
        arrivals.arrived(lines / 7);
        lines %= 7;
    }
}

/// Counts the entries of a stream, whose ids are the rounds. An answer ends with its payload, as long as it has to be.
async fn read_stream(mut socket: TcpStream, arrivals: Arc<Arrivals>) {
    let mut buffer = [0; 4096];
    for last in 0.. {
        let command = format!("XREAD BLOCK 0 STREAMS {STREAM} {last}-0\r\n");
        if socket.write_all(command.as_bytes()).await.is_err() {
            return;
        }
        let mut read = 0;
        while read < PAYLOAD_BYTES || !buffer[..read].ends_with(b"\r\n") {
            match socket.read(&mut buffer[read..]).await {
                Ok(0) | Err(_) => return,
                Ok(more) => read += more,
            }
        }
        arrivals.arrived(1);
    }
}

/// Writes messages, each one confirmed, some of them at a time.
pub(crate) enum Writer {
    Redis(MultiplexedConnection, &'static str),
    RabbitMq(Box<Route>),
}

impl Writer {
    /// A writer to where reports go.
    pub(crate) async fn of_reports(broker: &Broker) -> Self {
        match broker.kind() {
            Kind::Redis => Self::Redis(admin(broker).await, "unstale:{default}:reports"),
            Kind::RabbitMq => Self::RabbitMq(Route::open(&broker.for_agents(), "unstale.default.rx", "").await),
        }
    }

    /// A writer to a place of the same kind that nobody reads.
    pub(crate) async fn to_nobody(broker: &Broker) -> Self {
        match broker.kind() {
            Kind::Redis => Self::Redis(admin(broker).await, "raw"),
            Kind::RabbitMq => {
                let route = Route::open(&broker.admin().0, "", QUEUE).await;
                let mut arguments = FieldTable::default();
                arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
                arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(100_000));
                let declared = route.channel.queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), arguments);
                declared.await.unwrap();
                Self::RabbitMq(route)
            }
        }
    }

    async fn write(&self, payload: &[u8]) {
        match self {
            Self::Redis(connection, stream) => {
                let mut command = redis::cmd("XADD");
                command
                    .arg(stream)
                    .arg("MAXLEN")
                    .arg("~")
                    .arg(100_000)
                    .arg("*")
                    .arg("h")
                    .arg("web")
                    .arg("e")
                    .arg(payload);
                command.query_async::<String>(&mut connection.clone()).await.unwrap();
            }
            Self::RabbitMq(route) => route.publish(payload).await,
        }
    }

    pub(crate) async fn write_all(&self, payloads: &[Encoded]) {
        let mut under_way = FuturesUnordered::new();
        for payload in payloads {
            if under_way.len() >= IN_FLIGHT {
                under_way.next().await;
            }
            under_way.push(self.write(payload));
        }
        while under_way.next().await.is_some() {}
    }
}
