//! What was noticed before acting: things that would have gone wrong, or still deserve a word.
//!
//! A trap is a remark of a plan that goes ahead; what stops a plan is a [`super::Refusal`].

use serde::{Deserialize, Serialize};
use std::fmt;

/// One remark, with its cause and its remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "trap")]
pub enum Trap {
    /// The unit file was edited and not reloaded.
    NeedsDaemonReload {
        /// The unit.
        unit: String,
    },
    /// systemd's own stop would signal every process, which loses running tasks.
    StopLosesTasks {
        /// The unit.
        unit: String,
        /// Its `KillMode=`.
        kill_mode: String,
    },
    /// systemd's own stop would kill what is not done within its time-out.
    StopTimesOut {
        /// The unit.
        unit: String,
        /// `TimeoutStopSec=`, in seconds.
        seconds: u64,
    },
    /// The supervisor's own stop signals the whole group.
    StopsGroup {
        /// The program.
        program: String,
    },
    /// The exit after our signal is one after which the supervisor does not bring it back by itself.
    ExitStaysDown {
        /// The setting: `Restart=on-failure`, `autorestart=unexpected`.
        setting: String,
    },
    /// systemd refuses to start a unit that was started too often.
    StartLimit {
        /// Starts of ours that are allowed per interval.
        allowed: u32,
        /// The interval, in seconds.
        seconds: u64,
    },
    /// Other units are restarted with it.
    Dependents {
        /// Their names.
        units: Vec<String>,
    },
    /// The command line and the environment were overwritten by a title.
    TitleHides,
    /// `REMAP_SIGTERM` would make the stop lose running tasks, and whether it is set cannot be seen.
    RemapHidden,
    /// Something stands between the supervisor and the unit.
    Wrapper {
        /// The process that the supervisor watches.
        pid: u32,
    },
    /// `HUP` would end a worker that was started with `-m`.
    HupEndsModule,
    /// `HUP` would replace the workers, and none of them would import anything again.
    HupImportsNothing,
    /// A reload ends the whole server where the new code cannot be imported.
    ReloadEndsOnBadCode,
    /// Nothing would bring it back if the reload ended it.
    NobodyIfItEnds,
    /// New connections are refused while it restarts.
    RefusesMeanwhile,
    /// The stop cuts requests that are being answered.
    CutsRequests,
    /// The stop cancels jobs, and they run again from their start.
    RepeatsJobs,
    /// It works off what it has prefetched before it ends, with the old code.
    PrefetchFirst,
    /// The supervisor's configuration could not be read whole.
    ConfigurationHidden {
        /// What could not be read.
        why: String,
    },
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeedsDaemonReload { unit } => write!(
                f,
                "the file of {unit} was edited since systemd read it, so the old command is run again; \
                 `systemctl daemon-reload` takes the new one"
            ),
            Self::StopLosesTasks { unit, kill_mode } => write!(
                f,
                "KillMode={kill_mode} of {unit} loses running tasks in a stop or restart by systemd, so only its main \
                 process is signalled; KillMode=mixed with TimeoutStopSec=infinity makes systemd's own stop safe"
            ),
            Self::StopTimesOut { unit, seconds } => write!(
                f,
                "systemd kills what {unit} has not finished {seconds} s after a stop; a larger TimeoutStopSec= gives it time"
            ),
            Self::StopsGroup { program } => write!(
                f,
                "stopasgroup or killasgroup of {program} signals its children too, which loses running tasks, so only its \
                 main process is signalled; leave both out of its section"
            ),
            Self::ExitStaysDown { setting } => write!(
                f,
                "{setting} does not bring it back after an orderly exit, so its supervisor is asked to start it"
            ),
            Self::StartLimit { allowed, seconds } => write!(
                f,
                "systemd stops starting it after too many starts, so at most {allowed} of ours fall into {seconds} s; \
                 StartLimitBurst= sets the limit"
            ),
            Self::Dependents { units } => write!(f, "systemd restarts with it: {}", units.join(", ")),
            Self::TitleHides => write!(
                f,
                "its title has overwritten command line and environment; it is started again by its supervisor only, \
                 never from what is seen"
            ),
            Self::RemapHidden => write!(
                f,
                "its environment cannot be seen; with REMAP_SIGTERM set, the stop would lose running tasks: \
                 make sure that it is not set"
            ),
            Self::Wrapper { pid } => write!(
                f,
                "its supervisor watches process {pid}, a wrapper above it; it comes back once that one has ended too. \
                 `exec` in front of the command does without"
            ),
            Self::HupEndsModule => {
                write!(f, "it was started with `-m`, so HUP would end it instead of restarting it; TERM is sent")
            }
            Self::HupImportsNothing => write!(
                f,
                "its master holds the old class (preloaded), so HUP would replace its workers and cure nothing; \
                 the master itself is restarted"
            ),
            Self::ReloadEndsOnBadCode => write!(
                f,
                "if the new code fails while it is imported, the reload ends the whole server; only imports that can be \
                 followed without running them were checked"
            ),
            Self::NobodyIfItEnds => write!(
                f,
                "it has no supervisor: if the reload ends it, nothing brings it back; a `[[units]]` start command would"
            ),
            Self::RefusesMeanwhile => {
                write!(
                    f,
                    "new connections are refused until it is back; a socket unit or a proxy that retries bridges that"
                )
            }
            Self::CutsRequests => write!(f, "it cuts requests that it is answering when it is stopped"),
            Self::RepeatsJobs => write!(
                f,
                "it cancels running jobs when it is stopped and runs them again from their start; \
                 `job_completion_wait` lets them finish"
            ),
            Self::PrefetchFirst => {
                write!(f, "it works off every task that it has prefetched before it ends, with the old code")
            }
            Self::ConfigurationHidden { why } => write!(f, "its supervisor's configuration is not known whole: {why}"),
        }
    }
}
