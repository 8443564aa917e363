//! The in-process transport of `unstale up`: one coordinator, one agent, the messages of a network bus.
//!
//! Desired: the newest message is kept and never expires. Reports and permits: a queue each; when one is
//! full its oldest message is lost, as on a stream of bounded length. Closing either end closes the other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};
use unstale_protocol::fingerprint::Fingerprint;

/// Messages kept for an agent that reports faster than the coordinator reads.
const REPORTS_MAX: usize = 64;
/// Messages kept for an agent that is busy; older permits have expired by then.
const PERMITS_MAX: usize = 64;
/// Longest message: a manifest is at most 1 MiB, a report far less.
pub(crate) const MESSAGE_MAX_BYTES: usize = 2 << 20;

/// An encoded message.
pub(crate) type Encoded = Arc<[u8]>;

/// The coordinator's end.
#[derive(Debug)]
pub(crate) struct CoordinatorEnd {
    /// Publishes the desired state; a later one replaces an earlier one that nobody has seen.
    pub(crate) desired: watch::Sender<Option<Encoded>>,
    /// Receives what agents report.
    pub(crate) reports: Receiver,
    /// Sends permits to the one agent there is.
    pub(crate) permits: Sender,
    /// Where manifests are laid out by digest.
    pub(crate) manifests: Shelf,
}

/// The agent's end.
#[derive(Debug)]
pub(crate) struct AgentEnd {
    /// Watches the desired state; the newest one is there at once.
    pub(crate) desired: watch::Receiver<Option<Encoded>>,
    /// Sends reports.
    pub(crate) reports: Sender,
    /// Receives permits.
    pub(crate) permits: Receiver,
    /// Where manifests are fetched by digest.
    pub(crate) manifests: Shelf,
}

/// Makes a bus and returns its two ends.
pub(crate) fn join() -> (CoordinatorEnd, AgentEnd) {
    let (desired, watched) = watch::channel(None);
    let (report, reports) = queue(REPORTS_MAX);
    let (permit, permits) = queue(PERMITS_MAX);
    let manifests = Shelf::default();
    (
        CoordinatorEnd { desired, reports, permits: permit, manifests: manifests.clone() },
        AgentEnd { desired: watched, reports: report, permits, manifests },
    )
}

/// Manifests by digest: what a key of its own is on a network bus. Its owner takes away what nobody wants.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shelf(Arc<Mutex<BTreeMap<Fingerprint, Encoded>>>);

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Fingerprint, Encoded>> {
        // Every change is one call: a panic elsewhere cannot leave it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lays a manifest out.
    pub(crate) fn put(&self, digest: Fingerprint, bytes: Encoded) {
        self.lock().insert(digest, bytes);
    }

    /// Fetches a manifest; `None` where it is not there yet, or no longer.
    pub(crate) fn fetch(&self, digest: &Fingerprint) -> Option<Encoded> {
        self.lock().get(digest).cloned()
    }

    /// Takes away all that `is_wanted` does not choose, and returns which those were.
    pub(crate) fn retain(&self, is_wanted: impl Fn(&Fingerprint) -> bool) -> Vec<Fingerprint> {
        let mut manifests = self.lock();
        let gone: Vec<Fingerprint> = manifests.keys().filter(|digest| !is_wanted(digest)).copied().collect();
        manifests.retain(|digest, _| is_wanted(digest));
        gone
    }
}

#[derive(Debug)]
struct Queue {
    messages: Mutex<State>,
    arrived: Notify,
    bound: usize,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Encoded>,
    lost: u64,
    sender_is_gone: bool,
    receiver_is_gone: bool,
}

impl Queue {
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        // A panic elsewhere cannot leave the queue half changed: every change is one call.
        change(&mut self.messages.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The end of a queue that messages go in by.
#[derive(Debug)]
pub(crate) struct Sender(Arc<Queue>);

/// The end of a queue that messages come out of.
#[derive(Debug)]
pub(crate) struct Receiver(Arc<Queue>);

/// The other end is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other end of the embedded bus is gone")]
pub(crate) struct Closed;

fn queue(bound: usize) -> (Sender, Receiver) {
    let queue = Arc::new(Queue { messages: Mutex::default(), arrived: Notify::new(), bound });
    (Sender(Arc::clone(&queue)), Receiver(queue))
}

impl Sender {
    /// Sends a message; never waits. The oldest waiting message is lost where the queue is full, the
    /// message itself where it is longer than [`MESSAGE_MAX_BYTES`].
    ///
    /// # Errors
    /// [`Closed`] where nobody can receive it any more.
    pub(crate) fn send(&self, message: &[u8]) -> Result<(), Closed> {
        let result = self.0.with(|state| {
            if state.receiver_is_gone {
                return Err(Closed);
            }
            if message.len() > MESSAGE_MAX_BYTES {
                state.lost = state.lost.saturating_add(1);
                return Ok(());
            }
            if state.waiting.len() >= self.0.bound {
                state.waiting.pop_front();
                state.lost = state.lost.saturating_add(1);
            }
            state.waiting.push_back(message.into());
            Ok(())
        });
        self.0.arrived.notify_one();
        result
    }
}

impl Receiver {
    /// Receives the oldest waiting message, or `None` once the sender is gone and nothing waits.
    ///
    /// # Cancel safety
    /// Safe: a message is taken only by a call that returns it.
    pub(crate) async fn receive(&mut self) -> Option<Encoded> {
        loop {
            let arrived = self.0.arrived.notified();
            let (message, is_closed) = self.0.with(|state| (state.waiting.pop_front(), state.sender_is_gone));
            match message {
                Some(message) => return Some(message),
                None if is_closed => return None,
                None => arrived.await,
            }
        }
    }

    /// Returns how many messages were lost since the bus was made.
    #[cfg(test)]
    pub(crate) fn lost(&self) -> u64 {
        self.0.with(|state| state.lost)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.with(|state| state.sender_is_gone = true);
        self.0.arrived.notify_one();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.with(|state| state.receiver_is_gone = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_arrive_in_order_as_they_were_sent() {
        let (mut coordinator, agent) = join();
        agent.reports.send(b"one").unwrap();
        agent.reports.send(b"two").unwrap();
        assert_eq!(coordinator.reports.receive().await.unwrap().as_ref(), b"one");
        assert_eq!(coordinator.reports.receive().await.unwrap().as_ref(), b"two");
    }

    #[tokio::test]
    async fn a_full_queue_loses_its_oldest_message() {
        let (coordinator, mut agent) = join();
        for number in 0..=PERMITS_MAX {
            coordinator.permits.send(number.to_string().as_bytes()).unwrap();
        }
        assert_eq!(agent.permits.receive().await.unwrap().as_ref(), b"1");
        assert_eq!(agent.permits.lost(), 1);
    }

    #[tokio::test]
    async fn a_message_beyond_the_bound_is_lost() {
        let (mut coordinator, agent) = join();
        agent.reports.send(&vec![0; MESSAGE_MAX_BYTES + 1]).unwrap();
        agent.reports.send(b"next").unwrap();
        assert_eq!(coordinator.reports.receive().await.unwrap().as_ref(), b"next");
        assert_eq!(coordinator.reports.lost(), 1);
    }

    #[tokio::test]
    async fn a_late_watcher_sees_the_newest_desired_state() {
        let (coordinator, agent) = join();
        coordinator.desired.send_replace(Some((*b"old").into()));
        coordinator.desired.send_replace(Some((*b"new").into()));
        assert_eq!(agent.desired.borrow().as_deref(), Some(b"new".as_slice()));
    }

    #[tokio::test]
    async fn an_end_that_is_gone_is_noticed() {
        let (mut coordinator, agent) = join();
        drop(agent);
        assert_eq!(coordinator.reports.receive().await, None);
        assert_eq!(coordinator.permits.send(b"x"), Err(Closed));
    }

    #[tokio::test]
    async fn a_receiver_that_waits_is_woken() {
        let (mut coordinator, agent) = join();
        let (received, ()) = tokio::join!(coordinator.reports.receive(), async {
            tokio::task::yield_now().await;
            agent.reports.send(b"late").unwrap();
        });
        assert_eq!(received.unwrap().as_ref(), b"late");
    }
}
