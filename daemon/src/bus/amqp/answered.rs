//! Requests for manifests that were answered a moment ago: the same ones again, which waited in the queue meanwhile, are not.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;
use unstale_protocol::fingerprint::Fingerprint;
use unstale_protocol::ids::HostName;
use unstale_protocol::time::Moment;

/// How long an answer stands for the same request. An agent that comes back under another address does not wait for it.
const STANDS: Duration = Duration::from_secs(5);
/// Answers that are remembered; the oldest go first.
const ANSWERS_MAX: usize = 20_000;

/// What was answered lately.
#[derive(Debug, Default)]
pub(super) struct Answered {
    known: BTreeSet<(HostName, Fingerprint)>,
    /// In the order in which it was answered.
    order: VecDeque<(Moment, HostName, Fingerprint)>,
}

impl Answered {
    /// Tells whether a request is to be answered, and takes note that it is. Whoever has a new address cannot have got what
    /// was sent to the old one.
    pub(super) fn is_due(
        &mut self,
        host: &HostName,
        (digest, is_new_address): (Fingerprint, bool),
        now: Moment,
    ) -> bool {
        while let Some((at, ..)) = self.order.front()
            && (now.since(*at) >= STANDS || self.order.len() >= ANSWERS_MAX)
            && let Some((_, host, digest)) = self.order.pop_front()
        {
            self.known.remove(&(host, digest));
        }
        let is_known = self.known.contains(&(host.clone(), digest));
        if !is_known {
            self.known.insert((host.clone(), digest));
            self.order.push_back((now, host.clone(), digest));
        }
        !is_known || is_new_address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: usize) -> HostName {
        HostName::new(format!("web-{number}")).unwrap()
    }

    #[test]
    fn the_same_request_is_answered_once_in_a_while_and_others_are_not_held_up() {
        let mut answered = Answered::default();
        let mut is_due =
            |number, byte, now| answered.is_due(&host(number), (Fingerprint([byte; 32]), false), Moment(now));
        assert!(is_due(1, 1, 0));
        assert!(!is_due(1, 1, 1_000));
        assert!(is_due(1, 2, 1_000) && is_due(2, 1, 1_000));
        assert!(is_due(1, 1, 5_000));
        assert!(!is_due(1, 1, 5_001));
        assert!(answered.is_due(&host(1), (Fingerprint([1; 32]), true), Moment(5_002)), "it has another address now");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut answered = Answered::default();
        let digest = (Fingerprint([1; 32]), false);
        for number in 0..ANSWERS_MAX + 100 {
            assert!(answered.is_due(&host(number), digest, Moment(0)));
        }
        assert!(answered.known.len() <= ANSWERS_MAX && answered.order.len() == answered.known.len());
        assert!(answered.is_due(&host(1), digest, Moment(10_000)));
        assert_eq!((answered.known.len(), answered.order.len()), (1, 1));
    }
}
