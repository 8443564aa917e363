//! A TCP proxy between a broker and those who talk to it, which makes the way between them bad at any moment.
//!
//! It knows no protocol. One thread carries all connections, and ends with its owner. It stands alone, so that the
//! transports' own tests can use it, too.

use rustix::net::sockopt::set_socket_linger;
use std::collections::VecDeque;
use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Connections at once; further ones are refused.
const CONNECTIONS_MAX: usize = 256;
/// Pieces of one direction that wait at once, and how long a piece is, in bytes.
const PIECES_MAX: usize = 64;
const PIECE_BYTES: usize = 16 * 1024;

/// What is wrong with the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    Healthy,
    /// Everything arrives so much later, in either direction.
    Late(Duration),
    /// Nothing arrives; it waits and arrives once this is over, as after a short partition.
    Held,
    /// What goes this way is taken and never arrives, and nobody is told of anything: not even that the other one has
    /// gone. A connection that has lost something stays like that whatever comes later: it is half open.
    Swallowed(Towards),
    /// One byte of every so manyth piece is another one, in either direction.
    Corrupted(u32),
    /// New connections are refused; those that stand are not touched.
    Refused,
}

/// Where something goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Towards {
    /// From the broker.
    Clients,
    /// To the broker.
    Broker,
    /// Both.
    Both,
}

impl Fault {
    fn swallows(self, towards: Towards) -> bool {
        matches!(self, Self::Swallowed(which) if which == Towards::Both || which == towards)
    }
}

#[derive(Clone, Copy, Debug)]
struct Orders {
    fault: Fault,
    /// How often all connections were cut.
    cuts: u32,
}

/// The proxy.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    orders: Option<watch::Sender<Orders>>,
    thread: Option<JoinHandle<()>>,
    seen: Arc<Seen>,
}

/// What it has seen so far.
#[derive(Debug, Default)]
struct Seen {
    connections: AtomicU32,
    refused: AtomicU32,
    /// Pieces that might have been changed, and those that were.
    pieces: AtomicU32,
    corrupted: AtomicU32,
}

impl Proxy {
    /// Starts a healthy one before a broker on this machine.
    pub(crate) fn start(broker_port: u16) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a listener");
        let port = listener.local_addr().expect("its address").port();
        let broker = SocketAddr::from((Ipv4Addr::LOCALHOST, broker_port));
        let (orders, given) = watch::channel(Orders { fault: Fault::Healthy, cuts: 0 });
        let seen = Arc::new(Seen::default());
        let count = Arc::clone(&seen);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listener");
                serve(listener, broker, given, count).await;
            });
        });
        Self { port, orders: Some(orders), thread: Some(thread), seen }
    }

    /// Where it listens, on this machine.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Makes the way bad, or good again, from now on.
    pub(crate) fn set(&self, fault: Fault) {
        self.order(|orders| orders.fault = fault);
    }

    /// Resets every connection that stands.
    pub(crate) fn cut(&self) {
        self.order(|orders| orders.cuts += 1);
    }

    /// How many connections were accepted so far.
    pub(crate) fn connections(&self) -> u32 {
        self.seen.connections.load(Ordering::Relaxed)
    }

    /// How many were refused so far.
    pub(crate) fn refused(&self) -> u32 {
        self.seen.refused.load(Ordering::Relaxed)
    }

    /// How many pieces were changed so far.
    pub(crate) fn corrupted(&self) -> u32 {
        self.seen.corrupted.load(Ordering::Relaxed)
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        self.orders.as_ref().expect("a running proxy").send_modify(change);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // That nobody gives orders any more ends the thread.
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn serve(listener: TcpListener, broker: SocketAddr, mut orders: watch::Receiver<Orders>, seen: Arc<Seen>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                if connections.len() >= CONNECTIONS_MAX || orders.borrow().fault == Fault::Refused {
                    reset(&client);
                    seen.refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                seen.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(carry(client, broker, orders.clone(), Arc::clone(&seen)));
            }
            Some(_) = connections.join_next() => {}
            changed = orders.changed() => if changed.is_err() {
                return;
            }
        }
    }
}

/// Ends a connection without a farewell once it is dropped.
fn reset(stream: &TcpStream) {
    set_socket_linger(stream, Some(Duration::ZERO)).unwrap_or_default();
}

/// Carries one connection until either end is gone or it is cut.
async fn carry(mut client: TcpStream, broker: SocketAddr, mut orders: watch::Receiver<Orders>, seen: Arc<Seen>) {
    let cuts = orders.borrow_and_update().cuts;
    let connected = tokio::select! {
        connected = reach(broker, orders.clone()) => connected,
        () = is_cut(orders.clone(), cuts) => None,
    };
    let Some(mut broker) = connected else { return reset(&client) };
    client.set_nodelay(true).unwrap_or_default();
    broker.set_nodelay(true).unwrap_or_default();
    let was_cut = {
        let (from_client, to_client) = client.split();
        let (from_broker, to_broker) = broker.split();
        tokio::select! {
            () = pump(from_client, to_broker, Towards::Broker, orders.clone(), &seen) => false,
            () = pump(from_broker, to_client, Towards::Clients, orders.clone(), &seen) => false,
            () = is_cut(orders, cuts) => true,
        }
    };
    if was_cut {
        reset(&client);
        reset(&broker);
    }
}

/// Connects to the broker; never while nothing arrives there, and then whoever asked is told nothing.
async fn reach(broker: SocketAddr, mut orders: watch::Receiver<Orders>) -> Option<TcpStream> {
    loop {
        let fault = orders.borrow_and_update().fault;
        if fault.swallows(Towards::Broker) {
            pending::<()>().await;
        }
        if fault != Fault::Held {
            return TcpStream::connect(broker).await.ok();
        }
        orders.changed().await.ok()?;
    }
}

async fn is_cut(mut orders: watch::Receiver<Orders>, cuts: u32) {
    // A proxy that ends takes everything with it.
    drop(orders.wait_for(|orders| orders.cuts != cuts).await);
}

impl Seen {
    /// Changes one byte of every so manyth piece.
    fn disturb(&self, every: u32, piece: &mut [u8]) {
        let number = self.pieces.fetch_add(1, Ordering::Relaxed);
        if number.is_multiple_of(every) {
            // Any place and any bit, and the same ones for the same pieces.
            let place = usize::try_from(number.wrapping_mul(2_654_435_761)).expect("a number") % piece.len();
            piece[place] ^= 1 << (number / every % 8);
            self.corrupted.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Carries one direction until it ends.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    towards: Towards,
    mut orders: watch::Receiver<Orders>,
    seen: &Seen,
) {
    let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let (mut buffer, mut is_open, mut is_dead) = (vec![0; PIECE_BYTES], true, false);
    loop {
        let fault = orders.borrow_and_update().fault;
        let is_held = fault == Fault::Held;
        if fault.swallows(towards) && (!waiting.is_empty() || !is_open) {
            is_dead = true;
        }
        if is_dead {
            waiting.clear();
        } else if !is_open && waiting.is_empty() && !is_held {
            return;
        }
        let due = waiting.front().map(|(due, _)| *due);
        tokio::select! {
            read = from.read(&mut buffer), if is_open && waiting.len() < PIECES_MAX => match read {
                Ok(0) | Err(_) => is_open = false,
                Ok(length) => {
                    let mut piece = buffer[..length].to_vec();
                    let mut delay = Duration::ZERO;
                    match fault {
                        Fault::Late(late) => delay = late,
                        Fault::Corrupted(every) => seen.disturb(every, &mut piece),
                        _ => {}
                    }
                    waiting.push_back((tokio::time::sleep(delay).deadline(), piece));
                }
            },
            () = pause_until(due), if !is_held => {
                if let Some((_, piece)) = waiting.pop_front()
                    && to.write_all(&piece).await.is_err()
                {
                    is_open = false;
                }
            }
            changed = orders.changed() => if changed.is_err() {
                return;
            }
        }
    }
}

async fn pause_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => pending().await,
    }
}
