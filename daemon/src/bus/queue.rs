//! A bounded queue that never makes its sender wait: when it is full, its oldest message is lost, as on a stream of
//! bounded length.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

#[derive(Debug)]
struct Queue<T> {
    state: Mutex<State<T>>,
    arrived: Notify,
    taken: Notify,
    bound: usize,
}

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<T>,
    sender_is_gone: bool,
    receiver_is_gone: bool,
}

impl<T> Queue<T> {
    fn with<R>(&self, change: impl FnOnce(&mut State<T>) -> R) -> R {
        // A panic elsewhere cannot leave the queue half changed: every change is one call.
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The end of a queue that messages go in by.
#[derive(Debug)]
pub(crate) struct Sender<T>(Arc<Queue<T>>);

/// The end of a queue that messages come out of.
#[derive(Debug)]
pub(crate) struct Receiver<T>(Arc<Queue<T>>);

/// The other end is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other end of the queue is gone")]
pub(crate) struct Closed;

/// Makes a queue that holds up to `bound` messages.
pub(super) fn queue<T>(bound: usize) -> (Sender<T>, Receiver<T>) {
    let state = State { waiting: VecDeque::new(), sender_is_gone: false, receiver_is_gone: false };
    let queue = Arc::new(Queue { state: Mutex::new(state), arrived: Notify::new(), taken: Notify::new(), bound });
    (Sender(Arc::clone(&queue)), Receiver(queue))
}

impl<T> Sender<T> {
    /// Sends a message; never waits. The oldest waiting message is lost where the queue is full.
    ///
    /// # Errors
    /// [`Closed`] where nobody can receive it any more.
    pub(crate) fn send(&self, message: T) -> Result<(), Closed> {
        let result = self.0.with(|state| {
            if state.receiver_is_gone {
                return Err(Closed);
            }
            if state.waiting.len() >= self.0.bound {
                state.waiting.pop_front();
            }
            state.waiting.push_back(message);
            Ok(())
        });
        self.0.arrived.notify_one();
        result
    }

    /// Waits until the queue has room: for a sender that can leave messages where they are.
    ///
    /// # Errors
    /// [`Closed`] where nobody can receive any more.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn room(&self) -> Result<(), Closed> {
        loop {
            let taken = self.0.taken.notified();
            match self.0.with(|state| (state.receiver_is_gone, state.waiting.len() < self.0.bound)) {
                (true, _) => return Err(Closed),
                (false, true) => return Ok(()),
                (false, false) => taken.await,
            }
        }
    }
}

impl<T> Receiver<T> {
    /// Receives the oldest waiting message, or `None` once the sender is gone and nothing waits.
    ///
    /// # Cancel safety
    /// Safe: a message is taken only by a call that returns it.
    pub(crate) async fn receive(&mut self) -> Option<T> {
        loop {
            let arrived = self.0.arrived.notified();
            let (message, is_closed) = self.0.with(|state| (state.waiting.pop_front(), state.sender_is_gone));
            match message {
                Some(message) => {
                    self.0.taken.notify_one();
                    return Some(message);
                }
                None if is_closed => return None,
                None => arrived.await,
            }
        }
    }

    /// Receives the oldest waiting message, where there is one.
    pub(crate) fn take(&mut self) -> Option<T> {
        let message = self.0.with(|state| state.waiting.pop_front());
        if message.is_some() {
            self.0.taken.notify_one();
        }
        message
    }

    /// Throws away what waits.
    pub(crate) fn clear(&mut self) {
        self.0.with(|state| state.waiting.clear());
        self.0.taken.notify_one();
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.with(|state| state.sender_is_gone = true);
        self.0.arrived.notify_one();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.with(|state| state.receiver_is_gone = true);
        self.0.taken.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_arrive_in_order_as_they_were_sent() {
        let (sender, mut receiver) = queue(4);
        sender.send(1).unwrap();
        sender.send(2).unwrap();
        assert_eq!((receiver.receive().await, receiver.receive().await), (Some(1), Some(2)));
    }

    #[tokio::test]
    async fn a_full_queue_loses_its_oldest_message() {
        let (sender, mut receiver) = queue(2);
        for number in 0..3 {
            sender.send(number).unwrap();
        }
        assert_eq!(receiver.receive().await, Some(1));
    }

    #[tokio::test]
    async fn an_end_that_is_gone_is_noticed() {
        let (sender, receiver) = queue(1);
        drop(receiver);
        assert_eq!(sender.send(1), Err(Closed));
        assert_eq!(sender.room().await, Err(Closed));
        let (sender, mut receiver) = queue(1);
        sender.send(1).unwrap();
        drop(sender);
        assert_eq!((receiver.receive().await, receiver.receive().await), (Some(1), None));
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let (sender, mut receiver) = queue(1);
        let (heard, ()) = tokio::join!(receiver.receive(), async {
            tokio::task::yield_now().await;
            sender.send("late").unwrap();
        });
        assert_eq!(heard, Some("late"));
        sender.send("full").unwrap();
        let (room, ()) = tokio::join!(sender.room(), async {
            tokio::task::yield_now().await;
            receiver.clear();
        });
        assert_eq!(room, Ok(()));
    }
}
