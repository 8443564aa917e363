//! Stopping a unit without losing its work, and bringing it back: the steps, not their order.
//!
//! The order is decided in `unstale_protocol::restart`. Every function here does one step, says what came of it and
//! can be asked again. [`Hands::plan`] looks before anything is done; what it found is a [`Plan`], which is written
//! to disk. Called by the agent's driver.

mod celery;
mod config;
mod facts;
pub(crate) mod glob;
mod gunicorn;
mod hand;
mod hold;
mod other;
mod plan;
mod proc;
mod refusal;
mod steps;
mod trap;
mod way;

pub use config::{CommandError, StartCommand, UnitConfig, check_trusted};
pub use facts::{Pool, UnitFacts};
pub use hand::{InHand, in_hand};
pub use hold::{Hold, HoldError};
pub use refusal::Refusal;
pub use steps::StepError;
pub use trap::Trap;

use crate::process::{Kind, Supervisor};
use crate::supervisor::{BringsBack, Reach};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use unstale_protocol::ids::{ProcessIdentity, SlotId};
use unstale_protocol::time::Moment;

/// A signal that asks for an orderly end or a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum StopSignal {
    /// `SIGTERM`.
    Term,
    /// `SIGINT`.
    Int,
    /// `SIGHUP`.
    Hup,
}

impl StopSignal {
    /// Returns its number, signal(7).
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Hup => 1,
            Self::Int => 2,
            Self::Term => 15,
        }
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Term => "TERM",
            Self::Int => "INT",
            Self::Hup => "HUP",
        })
    }
}

/// How a unit is made to take new code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "means")]
pub enum Means {
    /// The signal goes to the root; its supervisor starts it again by itself.
    TermThenBack {
        /// The signal.
        signal: StopSignal,
    },
    /// The signal goes to the root; its supervisor is asked to start it once it has ended.
    TermThenStart {
        /// The signal.
        signal: StopSignal,
    },
    /// Its supervisor stops and starts it as one order.
    SupervisorRestart,
    /// `HUP` goes to the root, which replaces its children or executes itself.
    Hup,
    /// The signal goes to the root; a configured command starts it once it has ended.
    StartCommand {
        /// The signal.
        signal: StopSignal,
        /// The command.
        command: StartCommand,
    },
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TermThenBack { signal } => write!(f, "{signal} to the main process, brought back by its supervisor"),
            Self::TermThenStart { signal } => write!(f, "{signal} to the main process, then started by its supervisor"),
            Self::SupervisorRestart => f.write_str("restarted by its supervisor"),
            Self::Hup => f.write_str("HUP to the main process, which stays"),
            Self::StartCommand { signal, command } => {
                write!(f, "{signal} to the main process, then `{}`", command.argv.join(" "))
            }
        }
    }
}

/// systemd's limit on starts: more than `burst` in the interval and the unit stays down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartLimit {
    /// `StartLimitBurst=`.
    pub burst: u32,
    /// `StartLimitIntervalSec=`, in milliseconds.
    pub interval_ms: u64,
}

impl StartLimit {
    /// Returns how many starts of ours may fall into the interval: three, and always one below the limit.
    pub(crate) fn allowed(self) -> u32 {
        self.burst.saturating_sub(1).clamp(1, 3)
    }
}

/// What will be done to one unit, and by whom. Stored with the intent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The place that the unit lives in.
    pub slot: SlotId,
    /// What it is.
    pub kind: Kind,
    /// Who brings it back.
    pub supervisor: Supervisor,
    /// The process that is signalled, and nobody else.
    pub root: ProcessIdentity,
    /// The process that the supervisor watches, at the time of planning.
    pub main: Option<ProcessIdentity>,
    /// Which start of it this is, in the supervisor's own words.
    pub invocation: String,
    /// Automatic restarts that the supervisor had counted.
    pub restarts: u32,
    /// How it takes new code.
    pub means: Means,
    /// What lets it finish and end; `None` where only its supervisor's stop does.
    pub drain: Option<StopSignal>,
    /// Whether it comes back once it has ended.
    pub back: BringsBack,
    /// What the configuration starts it with where no supervisor does, also where it usually reloads itself.
    #[serde(default)]
    pub start: Option<StartCommand>,
    /// The supervisor's limit on starts.
    pub start_limit: Option<StartLimit>,
    /// What is worth a word.
    pub notes: Vec<Trap>,
}

impl Plan {
    /// Tells whether the root itself ends; false for a reload in place.
    pub fn ends_root(&self) -> bool {
        self.means != Means::Hup
    }

    /// Returns the command that starts it, where no supervisor does.
    pub(crate) fn start_command(&self) -> Option<&StartCommand> {
        match &self.means {
            Means::StartCommand { command, .. } => Some(command),
            _ => self.start.as_ref(),
        }
    }

    /// Tells whether a drained unit could be given back.
    pub fn can_be_given_back(&self) -> bool {
        !matches!(self.back, BringsBack::Never { .. })
    }

    /// Tells whether the plan needs leave to tell a supervisor something.
    pub fn needs_supervisor(&self) -> bool {
        !matches!(self.means, Means::Hup | Means::StartCommand { .. })
    }
}

/// How long after its start a process may still be installing its handlers.
const SETTLING: std::time::Duration = std::time::Duration::from_secs(15);

impl Refusal {
    /// Tells whether this may be over in a moment: the process has just started and has not installed its handlers.
    pub(crate) fn may_pass(&self, root: &ProcessIdentity) -> bool {
        matches!(self, Self::NotCaught { .. }) && proc::age(root).is_some_and(|age| age < SETTLING)
    }
}

/// This host's hands: where supervisors are reached, and how often each slot was started.
#[derive(Debug, Default)]
pub struct Hands {
    reach: Reach,
    starts: Mutex<BTreeMap<SlotId, Vec<Moment>>>,
}

impl Hands {
    /// Makes hands that reach supervisors at `reach`.
    pub fn new(reach: Reach) -> Self {
        Self { reach, starts: Mutex::default() }
    }
}
