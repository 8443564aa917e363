//! The broker of the simulated world: retains the newest write, gives the lease, and forgets, goes back or goes away.

use super::brain::{LEASE_MS, LeaseAnswer};
use super::{Design, Happening, Message, Tier, World};
use rand::Rng as _;
use std::collections::VecDeque;
use unstale_protocol::ids::Epoch;
use unstale_protocol::time::Moment;

/// How many earlier states a replica may be at.
const PAST_MAX: usize = 24;

/// What a coordinator sends to the broker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Write {
    Lease { least: Epoch, asked_at: Moment },
    Desired(Epoch, Vec<u8>),
    Permit(Epoch, usize, Vec<u8>),
}

/// What it holds.
#[derive(Clone, Debug, Default)]
struct State {
    retained: Option<Vec<u8>>,
    holder: Option<(usize, u64)>,
    epoch: Epoch,
    until: u64,
}

#[derive(Debug, Default)]
pub(super) struct Broker {
    state: State,
    past: VecDeque<State>,
    down_until: u64,
}

impl Broker {
    pub(super) fn is_down(&self, now: u64) -> bool {
        now < self.down_until
    }

    pub(super) fn wipe(&mut self) {
        self.state = State::default();
    }

    /// What agents find when they connect.
    pub(super) fn retained(&self) -> Option<Vec<u8>> {
        self.state.retained.clone()
    }

    fn remember(&mut self) {
        self.past.push_back(self.state.clone());
        if self.past.len() > PAST_MAX {
            self.past.pop_front();
        }
    }

    fn holds(&self, who: (usize, u64), epoch: Epoch) -> bool {
        self.state.holder == Some(who) && self.state.epoch == epoch
    }

    /// Returns the number of the lease, where it is the caller's.
    fn lease(&mut self, who: (usize, u64), least: Epoch, now: u64) -> Option<Epoch> {
        if self.state.holder.is_some_and(|holder| holder != who) && now < self.state.until {
            return None;
        }
        if self.state.holder != Some(who) || now >= self.state.until {
            self.state.epoch = self.state.epoch.next();
        }
        self.state.epoch = self.state.epoch.max(least);
        self.state.holder = Some(who);
        self.state.until = now + LEASE_MS;
        Some(self.state.epoch)
    }
}

impl World {
    /// A write arrives at the broker.
    pub(super) fn written(&mut self, index: usize, life: u64, write: &Write) {
        let who = (index, life);
        let is_fenced = self.faults.tier == Tier::Redis && self.design == Design::Whole;
        match write {
            Write::Lease { least, asked_at } => {
                self.broker.remember();
                let epoch = self.broker.lease(who, *least, self.now);
                let answer = LeaseAnswer { epoch, asked_at: *asked_at, retained: self.broker.retained() };
                self.send(&Message::Leased(index, life, answer));
            }
            Write::Desired(epoch, _) | Write::Permit(epoch, ..) if is_fenced && !self.broker.holds(who, *epoch) => {}
            Write::Desired(_, bytes) => {
                if self.design != Design::EventOnly {
                    self.broker.state.retained = Some(bytes.clone());
                }
                for host in 0..self.hosts.len() {
                    self.send(&Message::Desired(host, bytes.clone()));
                }
            }
            Write::Permit(_, host, bytes) => {
                let mut delay = 0;
                if self.is_faulty() && self.rng.random_ratio(2, 100) {
                    delay = self.rng.random_range(10_000..40_000);
                }
                self.at(delay, Happening::Deliver(Message::Permit(*host, bytes.clone())));
            }
        }
    }

    /// A fault of the broker: it is emptied, goes back to what a replica had, or is away for a while.
    pub(super) fn break_broker(&mut self) {
        match self.rng.random_range(0..4) {
            0 => self.broker.wipe(),
            1 => self.broker.state.retained = None,
            2 => {
                let age = self.rng.random_range(0..self.broker.past.len().max(1));
                if let Some(state) = self.broker.past.get(age).cloned() {
                    self.broker.state = state;
                }
            }
            _ => {
                self.broker.down_until = self.now + self.rng.random_range(1_000..120_000);
            }
        }
        if self.rng.random_ratio(1, 2) {
            // A new connection begins with what is retained.
            for host in 0..self.hosts.len() {
                if let Some(bytes) = self.broker.retained() {
                    self.send(&Message::Desired(host, bytes));
                }
            }
        }
    }
}
