//! The machine for one action on one unit: a restart, a drain by hand, or giving a drained unit back.
//!
//! It decides the order of steps and when to give up; hands do them. It never repeats a stop, never kills
//! before a stated deadline with force, and calls nothing cured that was not read again.

use crate::ids::{ProcessIdentity, SlotId, Version};
use crate::message::{DoneResult, Nonce, Phase, Purpose};
use crate::time::Moment;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// From the end of the old root until the new one must be seen.
    pub start_timeout: Duration,
    /// How long the new root must stay up before it is believed.
    pub survival_window: Duration,
    /// How long the new memory may take to become readable.
    pub verify_timeout: Duration,
    /// Pause between two looks at memory that cannot be judged yet.
    pub verify_interval: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            start_timeout: Duration::from_mins(1),
            survival_window: Duration::from_secs(10),
            verify_timeout: Duration::from_secs(30),
            verify_interval: Duration::from_secs(1),
        }
    }
}

/// What is done to the unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Stop it, bring it back, verify it.
    Restart,
    /// Stop it and keep it down.
    Drain {
        /// How long work in hand may take, in milliseconds; `None`: for ever.
        deadline_ms: Option<u64>,
        /// Kill at the deadline.
        force: bool,
    },
    /// Bring a drained unit back.
    Undrain,
}

/// What is on disk before anything is done, so that a killed agent can go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The slot.
    pub slot: SlotId,
    /// The root that was judged.
    pub identity: ProcessIdentity,
    /// The desired state it rests on.
    pub version: Version,
    /// The permit's nonce.
    pub nonce: Nonce,
    /// What for.
    pub purpose: Purpose,
    /// What is done.
    pub task: Task,
    /// How far it has come.
    pub phase: IntentPhase,
    /// Who does it and how, as the hands wrote it down; opaque here.
    pub means: String,
}

/// How far an action had come when it was written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntentPhase {
    /// About to stop it; whether the signal went out is not known.
    Stopping,
    /// The stop went out.
    Stopped,
    /// It has ended; about to bring it back.
    Starting,
    /// It has ended; about to keep it down.
    HoldingDown,
}

/// What the hands are to do next. Each is asked for once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look for who brings it back and for traps; check the source. Answer: [`Restart::handle_preflight`].
    Preflight,
    /// Write the intent to disk before doing the actions that follow.
    Persist(Intent),
    /// Send the one stop. Answer: [`Restart::handle_stopped`].
    Stop,
    /// Wait until everything that was told to stop has ended. Answer: [`Restart::handle_ended`]. Asked for
    /// again by a new agent that goes on with what a killed one had begun.
    AwaitEnd,
    /// Kill what is left. Only after a stated deadline with force.
    Kill,
    /// See that it comes back: ask the supervisor where it does not by itself. Answer: [`Restart::handle_started`].
    Start,
    /// See that nothing brings it back. Answer: [`Restart::handle_held`], or [`Restart::handle_new_life`].
    HoldDown,
    /// Read all its processes again. Answer: [`Restart::handle_verified`].
    Verify,
    /// It is over: forget the intent.
    Finish(Finished),
}

/// How an action ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// What came of it.
    pub result: DoneResult,
    /// What that rests on.
    pub because: String,
    /// Whether the slot is down now, and by us.
    pub down: bool,
}

/// What the pre-flight found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleared {
    /// Who does it and how; opaque here, kept in the intent.
    pub means: String,
    /// False for a reload, where the root stays and only its children are replaced.
    pub ends_root: bool,
}

/// What is seen of the slot from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// A unit is up, with this root.
    Up(ProcessIdentity),
    /// Nothing is up, or not yet.
    Down,
    /// The supervisor has given up bringing it back.
    GaveUp(String),
}

/// What reading the new processes said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// No process of the unit holds anything but what is wanted.
    Fresh,
    /// It came back with something else.
    Stale(String),
    /// Memory equals the source, and the source is no longer what was wanted.
    SourceMovedOn(String),
    /// It cannot be said yet.
    Unknown(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Preflight,
    /// The stop was asked for and not yet answered.
    Stopping,
    /// Finishes its work; `kill_at` only with force.
    Draining {
        late_at: Option<Moment>,
    },
    Starting {
        deadline: Moment,
    },
    Surviving {
        root: ProcessIdentity,
        until: Moment,
    },
    Verifying {
        root: ProcessIdentity,
        again_at: Option<Moment>,
        deadline: Moment,
    },
    HoldingDown,
    Over,
}

/// One action on one unit, from permit to proof.
#[derive(Debug)]
pub struct Restart {
    policy: RestartPolicy,
    intent: Intent,
    ends_root: bool,
    /// Taken up from the disk: the machine may have booted since, and start times count from the boot.
    recovered: bool,
    state: State,
    late: bool,
    note: String,
    began_at: Moment,
    actions: VecDeque<Action>,
}

impl Restart {
    /// Begins an action. `intent.phase` and `intent.means` are filled in on the way.
    pub fn new(intent: Intent, policy: RestartPolicy, now: Moment) -> Self {
        let mut machine = Self {
            policy,
            intent,
            ends_root: true,
            recovered: false,
            state: State::Preflight,
            late: false,
            note: String::new(),
            began_at: now,
            actions: VecDeque::new(),
        };
        machine.actions.push_back(Action::Preflight);
        machine
    }

    /// Goes on with what a killed agent had begun. A stop is never repeated: where it is not known whether
    /// the signal went out, the unit's end is waited for.
    pub fn recover(intent: Intent, ends_root: bool, policy: RestartPolicy, now: Moment) -> Self {
        let phase = intent.phase;
        let mut machine = Self::new(intent, policy, now);
        machine.actions.clear();
        machine.ends_root = ends_root;
        machine.recovered = true;
        match phase {
            IntentPhase::Stopping => {
                machine.note =
                    "the agent was killed while it stopped this unit; whether the signal went out is not known, \
                     so none is sent again: restart it by hand if it does not end"
                        .into();
                machine.drain_from(now);
            }
            IntentPhase::Stopped => machine.drain_from(now),
            IntentPhase::Starting => machine.start(now),
            IntentPhase::HoldingDown => machine.hold_down(),
        }
        machine
    }

    /// Takes the pre-flight's answer.
    pub fn handle_preflight(&mut self, answer: Result<Cleared, String>, now: Moment) {
        if self.state != State::Preflight {
            return;
        }
        match answer {
            Err(why) => self.finish(DoneResult::Refused, why, false),
            Ok(cleared) => {
                self.intent.means = cleared.means;
                self.ends_root = cleared.ends_root;
                if self.intent.task == Task::Undrain {
                    self.start(now);
                } else {
                    self.persist(IntentPhase::Stopping);
                    self.actions.push_back(Action::Stop);
                    self.state = State::Stopping;
                }
            }
        }
    }

    /// Takes the answer of the stop: sent, or refused before anything happened.
    pub fn handle_stopped(&mut self, answer: Result<(), String>, now: Moment) {
        if self.state != State::Stopping {
            return;
        }
        if let Err(why) = answer {
            self.finish(DoneResult::Refused, why, false);
        } else {
            self.persist(IntentPhase::Stopped);
            self.drain_from(now);
        }
    }

    /// Takes the news that every process that was told to stop has ended.
    pub fn handle_ended(&mut self, now: Moment) {
        if !matches!(self.state, State::Stopping | State::Draining { .. }) {
            return;
        }
        match self.intent.task {
            Task::Drain { .. } => self.hold_down(),
            Task::Restart | Task::Undrain => self.start(now),
        }
    }

    /// Takes the answer of the start. Success proves nothing yet.
    pub fn handle_started(&mut self, answer: Result<(), String>, _now: Moment) {
        if let (State::Starting { .. }, Err(why)) = (&self.state, answer) {
            self.finish(DoneResult::Failed, format!("it could not be started again: {why}"), true);
        }
    }

    /// Takes the answer of holding it down.
    pub fn handle_held(&mut self, answer: Result<(), String>, _now: Moment) {
        if self.state != State::HoldingDown {
            return;
        }
        match answer {
            Ok(()) => self.finish(DoneResult::Drained, "every process of the unit has ended".into(), true),
            Err(why) => self.finish(DoneResult::Failed, format!("it ended, but may come back: {why}"), true),
        }
    }

    /// Takes the news that what is to be held down has a new life, which nobody told to end and which may have work in
    /// hand: it is left alone. Where it is still to be drained, it is asked for like any other.
    pub fn handle_new_life(&mut self, why: String, _now: Moment) {
        if self.state == State::HoldingDown {
            self.finish(DoneResult::Unproven, why, false);
        }
    }

    /// Takes what is seen of the slot.
    pub fn handle_sight(&mut self, sight: &Sight, now: Moment) {
        match (&self.state, sight) {
            (State::Starting { .. }, Sight::Up(root)) if self.is_new(root) || !self.ends_root => {
                self.survive(*root, now);
            }
            (State::Starting { .. }, Sight::GaveUp(why)) => {
                self.finish(DoneResult::Failed, format!("it did not come back: {why}"), true);
            }
            (State::Surviving { root, .. } | State::Verifying { root, .. }, seen) => {
                let why = match seen {
                    Sight::Up(other) if other == root => return,
                    Sight::Up(_) => "it came back, died and was started again within the survival window",
                    Sight::Down => "it came back and died within the survival window",
                    Sight::GaveUp(_) => "it came back and died, and its supervisor has given up",
                };
                let down = !matches!(seen, Sight::Up(_));
                self.finish(DoneResult::Failed, why.into(), down);
            }
            _ => {}
        }
    }

    /// Takes the verdict on the new processes.
    pub fn handle_verified(&mut self, verified: Verified, now: Moment) {
        let State::Verifying { root, deadline, .. } = self.state else { return };
        match verified {
            Verified::Fresh if self.intent.task == Task::Undrain => {
                self.finish(DoneResult::Undrained, "it is back and fresh".into(), false);
            }
            Verified::Fresh => {
                self.finish(DoneResult::Restarted, "its new processes were read and are fresh".into(), false);
            }
            Verified::Stale(why) if self.intent.task == Task::Undrain => {
                self.finish(DoneResult::Undrained, format!("it is back, and stale: {why}"), false);
            }
            Verified::Stale(why) => self.finish(DoneResult::Failed, format!("it came back stale: {why}"), false),
            Verified::SourceMovedOn(why) => {
                self.finish(self.unproven(), format!("its source has moved on meanwhile: {why}"), false);
            }
            Verified::Unknown(why) if now >= deadline => {
                self.finish(self.unproven(), format!("it is back and cannot be judged: {why}"), false);
            }
            Verified::Unknown(_) => {
                let again_at = Some(now.after(self.policy.verify_interval));
                self.state = State::Verifying { root, again_at, deadline };
            }
        }
    }

    /// Calls the action back. Before the stop it is cancelled; after it, it is completed.
    pub fn handle_abort(&mut self, _now: Moment) {
        if self.state == State::Preflight {
            self.finish(DoneResult::Cancelled, "called back before anything was done".into(), false);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Moment) {
        match self.state {
            State::Draining { late_at: Some(at) } if now >= at => {
                self.late = true;
                self.state = State::Draining { late_at: None };
                if matches!(self.intent.task, Task::Drain { force: true, .. }) {
                    self.note = "the deadline has passed; killed as asked for, work in hand may be lost".into();
                    self.actions.push_back(Action::Kill);
                } else {
                    self.note = "the deadline has passed and work is still in hand; nothing is killed".into();
                }
            }
            State::Starting { deadline } if now >= deadline => {
                let limit = self.policy.start_timeout.as_secs();
                let why =
                    "no unit is up in its slot (a unit with another command line, user or supervisor is in another)";
                self.finish(DoneResult::Failed, format!("it did not come back within {limit} s: {why}"), true);
            }
            State::Surviving { root, until } if now >= until => {
                let deadline = now.after(self.policy.verify_timeout);
                self.state = State::Verifying { root, again_at: None, deadline };
                self.actions.push_back(Action::Verify);
            }
            State::Verifying { root, again_at: Some(at), deadline } if now >= at => {
                self.state = State::Verifying { root, again_at: None, deadline };
                self.actions.push_back(Action::Verify);
            }
            _ => {}
        }
    }

    /// Returns the next action, in the order in which they must be done.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns when [`Restart::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Moment> {
        match self.state {
            State::Draining { late_at } => late_at,
            State::Starting { deadline } => Some(deadline),
            State::Surviving { until, .. } => Some(until),
            State::Verifying { again_at, .. } => again_at,
            State::Preflight | State::Stopping | State::HoldingDown | State::Over => None,
        }
    }

    /// Returns where the slot stands.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Preflight => Phase::Preflight,
            State::Stopping | State::Draining { .. } | State::HoldingDown => Phase::Draining,
            State::Starting { .. } => Phase::Starting,
            State::Surviving { .. } => Phase::Surviving,
            State::Verifying { .. } | State::Over => Phase::Verifying,
        }
    }

    /// Returns the intent as it stands.
    pub fn intent(&self) -> &Intent {
        &self.intent
    }

    /// Tells whether the root itself ends; false for a reload.
    pub fn ends_root(&self) -> bool {
        self.ends_root
    }

    /// Returns a remark for people; empty where there is none.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// Tells whether a stated deadline has passed while work was in hand.
    pub fn is_late(&self) -> bool {
        self.late
    }

    /// Returns how long the action has taken so far.
    pub fn elapsed(&self, now: Moment) -> Duration {
        now.since(self.began_at)
    }

    /// Tells whether anything was done to the unit yet.
    pub fn has_touched(&self) -> bool {
        self.state != State::Preflight
    }

    /// Tells whether `root` can be what came after the old root. One that is older was beside it all the time.
    fn is_new(&self, root: &ProcessIdentity) -> bool {
        let old = &self.intent.identity;
        root != old && (self.recovered || root.start_ticks >= old.start_ticks)
    }

    fn drain_from(&mut self, now: Moment) {
        let late_at = match self.intent.task {
            Task::Drain { deadline_ms: Some(limit), .. } => Some(now.after(Duration::from_millis(limit))),
            Task::Drain { .. } | Task::Restart | Task::Undrain => None,
        };
        self.state = State::Draining { late_at };
        self.actions.push_back(Action::AwaitEnd);
    }

    fn start(&mut self, now: Moment) {
        self.persist(IntentPhase::Starting);
        if self.ends_root {
            self.actions.push_back(Action::Start);
        }
        self.state = State::Starting { deadline: now.after(self.policy.start_timeout) };
    }

    fn hold_down(&mut self) {
        self.persist(IntentPhase::HoldingDown);
        self.actions.push_back(Action::HoldDown);
        self.state = State::HoldingDown;
    }

    fn survive(&mut self, root: ProcessIdentity, now: Moment) {
        self.state = State::Surviving { root, until: now.after(self.policy.survival_window) };
    }

    /// A drained unit only has to be back; anything else has to be proven.
    fn unproven(&self) -> DoneResult {
        if self.intent.task == Task::Undrain { DoneResult::Undrained } else { DoneResult::Unproven }
    }

    fn persist(&mut self, phase: IntentPhase) {
        self.intent.phase = phase;
        self.actions.push_back(Action::Persist(self.intent.clone()));
    }

    fn finish(&mut self, result: DoneResult, because: String, down: bool) {
        self.state = State::Over;
        self.actions.push_back(Action::Finish(Finished { result, because, down }));
    }
}
