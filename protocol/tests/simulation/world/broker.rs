//! The broker of the simulated world: retains the newest write, gives the lease, and forgets, goes back or goes away. It
//! can also split: then each half takes writes and gives the lease, and one of them is thrown away when it heals.

use super::brain::{LEASE_MS, LeaseAnswer};
use super::{Design, Happening, Message, Tier, World};
use rand::Rng as _;
use std::collections::VecDeque;
use std::rc::Rc;
use unstale_protocol::ids::Epoch;
use unstale_protocol::message::{Desired, Permit};
use unstale_protocol::time::Moment;

/// How many earlier states a replica may be at.
const PAST_MAX: usize = 24;

/// What a coordinator sends to the broker.
#[derive(Clone, Debug)]
pub(super) enum Write {
    Lease { least: Epoch, asked_at: Moment },
    Desired(Epoch, Rc<Desired>),
    Permit(Epoch, usize, Rc<Permit>),
}

/// What it holds.
#[derive(Clone, Debug, Default)]
struct State {
    retained: Option<Rc<Desired>>,
    holder: Option<(usize, u64)>,
    epoch: Epoch,
    until: u64,
}

/// Whom a message is from or for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Party {
    Host(usize),
    Brain(usize),
}

/// What the other half holds, and who is connected to it.
#[derive(Debug)]
struct Half {
    state: State,
    hosts: Vec<bool>,
    brains: Vec<bool>,
}

#[derive(Debug, Default)]
pub(super) struct Broker {
    state: State,
    other: Option<Half>,
    past: VecDeque<State>,
    down_until: u64,
    /// Two may have led at the same time since.
    pub(super) was_split: bool,
}

impl Broker {
    pub(super) fn is_down(&self, now: u64) -> bool {
        now < self.down_until
    }

    pub(super) fn is_split(&self) -> bool {
        self.other.is_some()
    }

    pub(super) fn wipe(&mut self) {
        self.state = State::default();
        if let Some(half) = &mut self.other {
            half.state = State::default();
        }
    }

    /// Tells whether a party is connected to the other half.
    fn is_apart(&self, party: Party) -> bool {
        self.other.as_ref().is_some_and(|half| match party {
            Party::Host(index) => half.hosts[index],
            Party::Brain(index) => half.brains[index],
        })
    }

    /// Tells whether what one of them says can reach the other one.
    pub(super) fn joins(&self, one: Party, other: Party) -> bool {
        self.is_apart(one) == self.is_apart(other)
    }

    fn state(&mut self, party: Party) -> &mut State {
        let is_apart = self.is_apart(party);
        match &mut self.other {
            Some(half) if is_apart => &mut half.state,
            _ => &mut self.state,
        }
    }

    /// What a party finds when it connects.
    pub(super) fn retained(&mut self, party: Party) -> Option<Rc<Desired>> {
        self.state(party).retained.clone()
    }

    fn remember(&mut self) {
        self.past.push_back(self.state.clone());
        if self.past.len() > PAST_MAX {
            self.past.pop_front();
        }
    }

    fn holds(&mut self, who: (usize, u64), epoch: Epoch) -> bool {
        let state = self.state(Party::Brain(who.0));
        state.holder == Some(who) && state.epoch == epoch
    }

    /// Tells whether a coordinator holds the lease, as the broker has it.
    pub(super) fn leases_to(&mut self, who: (usize, u64)) -> bool {
        self.state(Party::Brain(who.0)).holder == Some(who)
    }

    /// Returns the number of the lease, where it is the caller's.
    fn lease(&mut self, who: (usize, u64), least: Epoch, now: u64) -> Option<Epoch> {
        let state = self.state(Party::Brain(who.0));
        if state.holder.is_some_and(|holder| holder != who) && now < state.until {
            return None;
        }
        if state.holder != Some(who) || now >= state.until {
            state.epoch = state.epoch.next();
        }
        state.epoch = state.epoch.max(least);
        state.holder = Some(who);
        state.until = now + LEASE_MS;
        Some(state.epoch)
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
                let retained = self.broker.retained(Party::Brain(index));
                let answer = LeaseAnswer { epoch, asked_at: *asked_at, retained };
                self.send(&Message::Leased(index, life, answer));
            }
            Write::Desired(epoch, _) | Write::Permit(epoch, ..) if is_fenced && !self.broker.holds(who, *epoch) => {}
            Write::Desired(_, desired) => {
                if self.design != Design::EventOnly {
                    self.broker.state(Party::Brain(index)).retained = Some(Rc::clone(desired));
                }
                for host in 0..self.hosts.len() {
                    if self.broker.joins(Party::Host(host), Party::Brain(index)) {
                        self.send(&Message::Desired(host, Rc::clone(desired)));
                    }
                }
            }
            Write::Permit(_, host, _) if !self.broker.joins(Party::Host(*host), Party::Brain(index)) => {}
            Write::Permit(_, host, permit) => {
                let mut delay = 0;
                if self.is_faulty() && self.rng.random_ratio(2, 100) {
                    delay = self.rng.random_range(10_000..40_000);
                }
                self.at(delay, Happening::Deliver(Message::Permit(*host, Rc::clone(permit))));
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
            self.connect_all();
        }
    }

    /// A new connection begins with what is retained.
    fn connect_all(&mut self) {
        for host in 0..self.hosts.len() {
            if let Some(desired) = self.broker.retained(Party::Host(host)) {
                self.send(&Message::Desired(host, desired));
            }
        }
    }

    /// The broker falls into two halves that know nothing of each other: everybody stays connected to one of them.
    pub(super) fn split(&mut self) {
        if self.broker.other.is_some() {
            return;
        }
        let hosts = self.hosts.iter().map(|_| self.rng.random()).collect();
        let brains = self.brains.iter().map(|_| self.rng.random()).collect();
        self.broker.other = Some(Half { state: self.broker.state.clone(), hosts, brains });
        self.broker.was_split = true;
        let pause = self.rng.random_range(5_000..180_000);
        self.at(pause, Happening::Heal);
    }

    /// One half wins, whichever it is; what the other one took is gone.
    pub(super) fn heal(&mut self) {
        if let Some(half) = self.broker.other.take()
            && self.rng.random()
        {
            self.broker.state = half.state;
        }
        self.connect_all();
    }
}
