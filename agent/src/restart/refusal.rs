//! Why a unit is left alone: each with what would change that.

use crate::restart::StopSignal;
use serde::{Deserialize, Serialize};
use unstale_protocol::ids::Pid;

/// A reason not to act. Nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "refusal")]
pub enum Refusal {
    /// Nobody would start it again.
    #[error(
        "cannot restart: nothing would bring it back ({why}); run it under systemd or supervisord, or add a \
         `[[units]]` start command to the agent's configuration (with `user`, where it is not the agent's own user's)"
    )]
    NothingBringsBack {
        /// Who was looked for.
        why: String,
    },
    /// A drain would end nothing.
    #[error(
        "cannot drain: no signal makes it finish its work and end, and no supervisor is there to stop it; run it under \
         systemd or supervisord, or stop it by hand"
    )]
    NothingEndsIt,
    /// Its supervisor cannot be asked.
    #[error("cannot restart: {why}")]
    Supervisor {
        /// What went wrong, and what to do.
        why: String,
    },
    /// Somebody is stopping or starting it right now.
    #[error("left alone: {what}; an operator's order is never undone. It is looked at again once that is over")]
    InOtherHands {
        /// What is under way.
        what: String,
    },
    /// `REMAP_SIGTERM` makes the orderly signal a disorderly one.
    #[error(
        "cannot restart: REMAP_SIGTERM={value} is set ({place}), so TERM would lose running tasks; take it out of the \
         environment, or restart it by hand when it is idle"
    )]
    RemapSigterm {
        /// Its value.
        value: String,
        /// Where it was found.
        place: String,
    },
    /// A solo worker of Celery 5.2 aborts its task on `TERM`.
    #[error(
        "cannot restart now: a solo worker of Celery {version} aborts the task in hand on TERM, and this one {state}; \
         it is tried again when it is idle"
    )]
    BusySolo {
        /// Its version.
        version: String,
        /// `is busy`, or why that cannot be seen.
        state: String,
    },
    /// The signal would kill it, or do nothing.
    #[error(
        "cannot restart: process {pid} does not catch {signal}, so it would {effect}; let it handle {signal}, or \
         restart it by hand"
    )]
    NotCaught {
        /// The root.
        pid: Pid,
        /// What would be sent.
        signal: StopSignal,
        /// `be killed`, or `ignore it`.
        effect: String,
    },
    /// Units bound to it would end with it and stay down.
    #[error(
        "cannot restart: {} end with it and are not brought back (BindsTo=); systemd's own restart would bring them back, \
         but loses running tasks: set KillMode=mixed and TimeoutStopSec=infinity",
        units.join(", ")
    )]
    BoundUnits {
        /// Their names.
        units: Vec<String>,
    },
    /// The unit's root is not what the supervisor watches.
    #[error(
        "cannot restart: {supervisor} watches {watched}, not process {root} or one above it that is there for it alone, \
         so it would not bring it back; give each worker a service of its own"
    )]
    NotTheMain {
        /// Who.
        supervisor: String,
        /// What it watches.
        watched: String,
        /// The root.
        root: Pid,
    },
    /// systemd's stop would leave the old processes running.
    #[error("cannot restart: KillMode=none of {unit} leaves the old processes running; set KillMode=mixed")]
    StopLeavesAll {
        /// The unit.
        unit: String,
    },
    /// A service made by `systemd-run` is gone once it has stopped.
    #[error("cannot restart: {unit} is transient and would be gone once it has stopped; write a unit file for it")]
    Transient {
        /// The unit.
        unit: String,
    },
    /// The unit file forbids it.
    #[error("cannot restart: {unit} has {setting}")]
    Forbidden {
        /// The unit.
        unit: String,
        /// The setting.
        setting: String,
    },
    /// The unit has no processes, or details that a decision needs are hidden.
    #[error("cannot restart: {why}; run the agent as root, or let it have CAP_SYS_PTRACE")]
    Hidden {
        /// What cannot be seen.
        why: String,
    },
    /// A plain process on a terminal.
    #[error("left alone: it is a plain process on a terminal, and whoever sits there decides")]
    Bystander,
    /// What runs the jobs imports them anew each time.
    #[error(
        "left alone: each job is a new process that imports the code anew; what holds the old class ends with its job"
    )]
    EndsByItself,
}
