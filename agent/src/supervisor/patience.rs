//! How long supervisors are waited for. They may belong to anybody, and one that answers late, byte by byte or never
//! must not keep the agent from looking at the rest of the host: each user's have so much time and no more.

use super::CALL_TIMEOUT;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a whole conversation with a supervisor may take in which it is only asked.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(3);
/// Below this nothing is asked any more.
const LEAST: Duration = Duration::from_millis(100);
/// What the supervisors of one user may take at once, and how slowly they regain it: a tenth of the time.
const OWN: Purse = Purse { size: Duration::from_secs(6), share: 10 };
/// The same for those of all users but root together: who has subordinate uids is many.
const COMMON: Purse = Purse { size: Duration::from_secs(20), share: 4 };

/// So much time, of which one part in `share` of what passes comes back.
#[derive(Clone, Copy, Debug)]
struct Purse {
    size: Duration,
    share: u32,
}

/// What was taken out of a purse.
#[derive(Clone, Copy, Debug)]
struct Spent {
    time: Duration,
    counted_at: Instant,
}

/// Nothing was answered in time, or there was no time left to ask. What it would have said is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Late(pub(crate) String);

/// What the supervisors of each user have had of our time. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Patience(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    own: BTreeMap<u32, Spent>,
    common: Option<Spent>,
}

/// It says nothing of where supervisors are.
impl PartialEq for Patience {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Patience {}

impl Purse {
    fn left(self, spent: Option<&Spent>, now: Instant) -> Duration {
        self.size.saturating_sub(self.still_spent(spent, now))
    }

    fn still_spent(self, spent: Option<&Spent>, now: Instant) -> Duration {
        spent.map_or(Duration::ZERO, |spent| {
            spent.time.saturating_sub(now.saturating_duration_since(spent.counted_at) / self.share)
        })
    }

    fn take(self, spent: Option<&Spent>, time: Duration, now: Instant) -> Spent {
        Spent { time: self.still_spent(spent, now).saturating_add(time).min(self.size), counted_at: now }
    }
}

impl State {
    /// Returns how long a supervisor of `uid` may take now; `None` where it is not asked.
    fn grant(&self, uid: u32, now: Instant) -> Option<Duration> {
        let own = OWN.left(self.own.get(&uid), now);
        let left = if uid == 0 { own } else { own.min(COMMON.left(self.common.as_ref(), now)) };
        (left >= LEAST).then(|| left.min(QUESTION_TIMEOUT))
    }

    fn spend(&mut self, uid: u32, time: Duration, now: Instant) {
        self.own.retain(|_, spent| !OWN.still_spent(Some(spent), now).is_zero());
        let own = OWN.take(self.own.get(&uid), time, now);
        self.own.insert(uid, own);
        if uid != 0 {
            self.common = Some(COMMON.take(self.common.as_ref(), time, now));
        }
    }
}

impl Patience {
    /// Asks a supervisor that belongs to `uid`; `None` is the system's own, which takes nobody's time.
    ///
    /// # Errors
    /// [`Late`].
    pub(crate) async fn ask<T>(&self, uid: Option<u32>, question: impl Future<Output = T>) -> Result<T, Late> {
        let begun = now();
        let granted = match uid {
            // It may be busy reading all units anew, and nobody but root can hold it up.
            None => Some(CALL_TIMEOUT),
            Some(uid) => self.state(|state| state.grant(uid, begun)),
        };
        let Some(granted) = granted else {
            return Err(Late("it was not asked: supervisors of its user took too long just now".to_owned()));
        };
        let answer = tokio::time::timeout(granted, question).await;
        if let Some(uid) = uid {
            let ended = now();
            self.state(|state| state.spend(uid, ended.saturating_duration_since(begun), ended));
        }
        answer.map_err(|_| Late(format!("no answer within {:.1} s", granted.as_secs_f32())))
    }

    fn state<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[expect(clippy::disallowed_methods, reason = "what somebody takes of our time is measured where he takes it")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn who_is_slow_has_no_more_than_his_time_and_regains_it_slowly() {
        let (start, mut state) = (now(), State::default());
        assert_eq!(state.grant(1500, start), Some(QUESTION_TIMEOUT));
        state.spend(1500, 4 * S, start);
        assert_eq!(state.grant(1500, start), Some(2 * S));
        state.spend(1500, 2 * S, start);
        assert_eq!(state.grant(1500, start), None);
        assert_eq!(state.grant(1501, start), Some(QUESTION_TIMEOUT), "another user's time is his own");
        assert_eq!(state.grant(1500, start + 20 * S), Some(2 * S));
        state.spend(1500, 100 * S, start + 20 * S);
        assert_eq!(state.grant(1500, start + 50 * S), Some(3 * S), "no debt is kept");
    }

    #[test]
    fn many_users_together_do_not_take_all_time_and_roots_own_stays() {
        let (start, mut state) = (now(), State::default());
        for uid in 100_000..101_000 {
            if let Some(granted) = state.grant(uid, start) {
                state.spend(uid, granted, start);
            }
        }
        assert_eq!(state.grant(1500, start), None);
        assert_eq!(state.grant(0, start), Some(QUESTION_TIMEOUT));
        assert!(state.grant(1500, start + 4 * S).is_some());
        state.spend(1500, S, start + 200 * S);
        assert_eq!(state.own.len(), 1, "what was regained is forgotten");
    }
}
