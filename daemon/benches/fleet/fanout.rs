//! One desired state to everybody: broker CPU per event, time to the last endpoint, and a broker killed in between.

use super::brokers::{Broker, Kind};
use super::processes::{clock, cpu, pause};
use super::raw::Crowd;
use crate::bus::address::BusUrl;
use crate::bus::ends::{self, AgentEnd, CoordinatorEnd, Link, ToAgent, ToCoordinator};
use crate::bus::envelope::{Encoded, FleetName};
use crate::bus::{amqp, redis};
use crate::clock::Clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use unstale_protocol::ids::HostName;

/// How often the same is done, and how many agents connect at once.
const ROUNDS: u32 = 60;
const AT_ONCE: usize = 50;
/// As long as a signed desired state of one app.
pub(crate) const PAYLOAD_BYTES: usize = 900;
/// The event that is said while the broker is down, and how long it may take to reach everybody.
const NEWEST: u32 = 1_001;
const PATIENCE: Duration = Duration::from_mins(3);
/// What an event may cost a broker, against its own lossy fan-out.
const MOST: f64 = 1.8;

/// Counts who has heard.
#[derive(Debug)]
pub(crate) struct Arrivals {
    count: Semaphore,
    /// Events before this one do not count.
    from: AtomicU32,
}

impl Arrivals {
    fn new() -> Arc<Self> {
        Arc::new(Self { count: Semaphore::new(0), from: AtomicU32::new(0) })
    }

    pub(crate) fn arrived(&self, count: usize) {
        self.count.add_permits(count);
    }

    async fn wait(&self, count: usize) {
        self.count.acquire_many(u32::try_from(count).unwrap()).await.unwrap().forget();
    }
}

fn payload(round: u32) -> Encoded {
    format!("{round:08}{:x<1$}", "", PAYLOAD_BYTES - 8).into_bytes().into()
}

/// Returns which event it was.
pub(crate) fn round_of(payload: &[u8]) -> Option<u32> {
    std::str::from_utf8(payload.get(..8)?).ok()?.parse().ok()
}

#[derive(Debug)]
struct Figures {
    /// Broker CPU per event, and the median time to the last endpoint; both in milliseconds.
    cpu: f64,
    last: f64,
}

/// Publishes again and again, waits for everybody, and takes the broker's CPU time for all of it.
async fn rounds(pid: u32, listeners: usize, arrivals: &Arrivals, mut publish: impl AsyncFnMut(u32)) -> Figures {
    // The first one wakes whatever sleeps.
    publish(1).await;
    arrivals.wait(listeners).await;
    pause(1_000).await;
    let (began, before) = (clock(), cpu(pid));
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let published = clock();
        publish(round + 2).await;
        arrivals.wait(listeners).await;
        times.push(published.elapsed().as_secs_f64() * 1e3);
        // What follows, acknowledgements and the next read, belongs to it.
        pause(200).await;
    }
    let (spent, span) = (cpu(pid) - before, began.elapsed());
    // What the same connections cost while nothing is published.
    let before = cpu(pid);
    tokio::time::sleep(span).await;
    let idle = cpu(pid) - before;
    times.sort_by(f64::total_cmp);
    Figures { cpu: (spent - idle) / f64::from(ROUNDS) * 1e3, last: times[times.len() / 2] }
}

/// The product's coordinator end and agents, as tasks of `set`.
struct Fleet {
    desired: watch::Sender<Option<Encoded>>,
    arrivals: Arc<Arrivals>,
}

fn url(text: &str) -> BusUrl {
    text.parse().unwrap()
}

fn start_coordinator(broker: &Broker, set: &mut JoinSet<()>) -> CoordinatorEnd {
    let (end, side) = ends::coordinator();
    let fleet = FleetName::default();
    match url(&broker.for_coordinator()) {
        BusUrl::Redis(url) => {
            let access = redis::Access { url, authority: None, identity: None, fail_fast: false };
            let run = redis::coordinator(side, access, redis::Names::new(&fleet), Clock::start());
            set.spawn(async { run.await.unwrap() });
        }
        BusUrl::Amqp(url) => {
            let access = amqp::Access { url, authority: None, identity: None, fail_fast: false };
            let run = amqp::coordinator(side, access, amqp::Names::new(&fleet), Clock::start());
            set.spawn(async { run.await.unwrap() });
        }
        BusUrl::Embedded => unreachable!("no broker"),
    }
    end
}

fn start_agent(broker: &Broker, number: usize, set: &mut JoinSet<()>) -> AgentEnd {
    let (end, side) = ends::agent();
    let fleet = FleetName::default();
    let host = HostName::new(format!("web-{number}")).unwrap();
    match url(&broker.for_agents()) {
        BusUrl::Redis(url) => {
            let access = redis::Access { url, authority: None, identity: None, fail_fast: false };
            let run = redis::agent(side, access, redis::Names::new(&fleet), host);
            set.spawn(async { run.await.unwrap() });
        }
        BusUrl::Amqp(url) => {
            let access = amqp::Access { url, authority: None, identity: None, fail_fast: false };
            let run = amqp::agent(side, access, amqp::Names::new(&fleet), host);
            set.spawn(async { run.await.unwrap() });
        }
        BusUrl::Embedded => unreachable!("no broker"),
    }
    end
}

/// Counts each event once, whatever is repeated and whatever comes after a new connection.
async fn listen(mut end: AgentEnd, arrivals: Arc<Arrivals>, connected: Arc<Arrivals>) {
    let (mut seen, mut is_connected) = (0, false);
    while let Some(message) = end.next().await {
        match message {
            ToAgent::Link(Link::Up(_)) if !is_connected => {
                is_connected = true;
                connected.arrived(1);
            }
            ToAgent::Desired(desired) => {
                let round = round_of(&desired).unwrap_or(0);
                arrivals.arrived((round > seen && round >= arrivals.from.load(Ordering::Relaxed)).into());
                seen = seen.max(round);
            }
            _ => {}
        }
    }
}

impl Fleet {
    async fn gather(broker: &Broker, agents: usize, set: &mut JoinSet<()>) -> Self {
        let mut coordinator = start_coordinator(broker, set);
        while !matches!(coordinator.next().await.unwrap(), ToCoordinator::Lease(Some(_))) {}
        let desired = coordinator.desired.clone();
        let again = desired.clone();
        set.spawn(async move {
            // As the driver does: what the bus does not hold is written again.
            while let Some(message) = coordinator.next().await {
                if matches!(message, ToCoordinator::Tip(_)) {
                    again.send_modify(|_| {});
                }
            }
        });
        let (arrivals, connected) = (Arrivals::new(), Arrivals::new());
        for first in (0..agents).step_by(AT_ONCE) {
            let batch = first..agents.min(first + AT_ONCE);
            for number in batch.clone() {
                let agent = start_agent(broker, number, set);
                set.spawn(listen(agent, Arc::clone(&arrivals), Arc::clone(&connected)));
            }
            connected.wait(batch.len()).await;
        }
        Self { desired, arrivals }
    }

    fn publish(&self, round: u32) {
        self.desired.send_replace(Some(payload(round)));
    }
}

fn milliseconds(value: f64) -> String {
    format!("{value:.1} ms")
}

/// Measures the broker's own fan-out, then the product's.
pub(crate) async fn measure(broker: &mut Broker, agents: usize) {
    let arrivals = Arrivals::new();
    let mut set = JoinSet::new();
    let mut crowd = Crowd::gather(broker, agents, &arrivals, &mut set).await;
    let raw = rounds(broker.pid(), agents, &arrivals, async |round| crowd.publish(&payload(round)).await).await;
    drop(crowd);
    set.shutdown().await;
    pause(2_000).await;

    if broker.kind() == Kind::Redis {
        let arrivals = Arrivals::new();
        let mut crowd = Crowd::gather_readers(broker, agents, &arrivals, &mut set).await;
        let bare = rounds(broker.pid(), agents, &arrivals, async |round| crowd.publish(&payload(round)).await).await;
        drop(crowd);
        set.shutdown().await;
        pause(2_000).await;
        let what = format!("bare XREAD by {agents}: broker CPU per event");
        crate::line(&what, &milliseconds(bare.cpu), &milliseconds(raw.cpu), bare.cpu / raw.cpu, "-", true);
    }

    let fleet = Fleet::gather(broker, agents, &mut set).await;
    let ours = rounds(broker.pid(), agents, &fleet.arrivals, async |round| fleet.publish(round)).await;
    let ratio = ours.cpu / raw.cpu;
    let what = format!("fan-out to {agents}: broker CPU per event");
    crate::line(&what, &milliseconds(ours.cpu), &milliseconds(raw.cpu), ratio, "at most 1.8", ratio <= MOST);
    let what = format!("fan-out to {agents}: time to the last");
    crate::line(&what, &milliseconds(ours.last), &milliseconds(raw.last), ours.last / raw.last, "-", true);

    // Killed while one is on its way, and while the next is said.
    fleet.arrivals.from.store(NEWEST, Ordering::Relaxed);
    fleet.publish(NEWEST - 1);
    let killed = clock();
    let said = async {
        pause(500).await;
        fleet.publish(NEWEST);
    };
    tokio::join!(broker.kill_and_restart(), said);
    let is_whole = tokio::time::timeout(PATIENCE, fleet.arrivals.wait(agents)).await.is_ok();
    let took = format!("{:.1} s", killed.elapsed().as_secs_f64());
    let what = format!("broker killed: all {agents} hold the newest after");
    crate::line(&what, &took, "-", 0.0, "nothing lost", is_whole);
    set.shutdown().await;
    let settle = if broker.kind() == Kind::RabbitMq { 3_000 } else { 500 };
    pause(settle).await;
}
