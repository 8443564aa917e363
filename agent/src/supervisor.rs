//! Who brings a unit back: asking supervisors what they would do, and telling them to start and stop.
//!
//! Every function does one thing and answers once; what follows from the answer is decided elsewhere.
//! It never signals a process and never reads one's memory. Called by [`crate::restart`].

mod config;
mod http;
pub(crate) mod none;
mod patience;
mod rights;
pub(crate) mod supervisord;
pub(crate) mod systemd;
mod xmlrpc;

pub(crate) use config::AutoRestart;
pub(crate) use patience::Late;
pub use patience::Patience;
pub use supervisord::program_of;

use crate::process::Supervisor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use unstale_protocol::ids::Pid;

/// How long one call to a supervisor may take, and a whole conversation in which it is told something. How long one
/// may take in which it is only asked: [`Patience`].
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the supervisors of this host are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// D-Bus address of the system manager's bus; `None` for the standard one.
    pub system_bus: Option<String>,
    /// Directory that holds users' runtime directories by uid: `/run/user`. A user's service manager
    /// is spoken to over its own socket there, `UID/systemd/private`, which takes root and its owner.
    pub user_runtime: PathBuf,
    /// How long they are waited for.
    pub patience: Patience,
}

impl Default for Reach {
    fn default() -> Self {
        Self { system_bus: None, user_runtime: PathBuf::from("/run/user"), patience: Patience::default() }
    }
}

/// Whether a unit comes back once its root has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "back")]
pub enum BringsBack {
    /// Its supervisor starts it again without being asked.
    ByItself,
    /// Its supervisor, or a configured command, starts it when asked.
    WhenAsked,
    /// Nobody would.
    Never {
        /// Why not, and what would change that.
        why: String,
    },
}

/// What a supervisor says of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum SlotState {
    /// It runs.
    Up {
        /// The process that the supervisor watches: the unit's root, or a wrapper above it.
        main_pid: Pid,
    },
    /// It is on its way up.
    Starting,
    /// It is on its way down.
    Stopping,
    /// It does not run, and nobody is about to start it.
    Stopped,
    /// It starts and dies again and again; its supervisor still tries.
    Crashing {
        /// What was seen.
        why: String,
    },
    /// Its supervisor has stopped trying.
    GaveUp {
        /// What it says.
        why: String,
    },
    /// Its supervisor no longer knows it, or it has none.
    Gone,
    /// Its supervisor does not answer.
    Unreachable {
        /// What went wrong.
        why: String,
    },
}

/// Why a supervisor could not be asked or told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It does not answer at all.
    #[error("{who} cannot be reached: {why}")]
    Unreachable {
        /// Which supervisor.
        who: String,
        /// What went wrong.
        why: String,
    },
    /// It answered with a refusal.
    #[error("{who} refused {what}: {why}")]
    Refused {
        /// Which supervisor.
        who: String,
        /// What was asked.
        what: String,
        /// Its words.
        why: String,
    },
    /// It does not know the unit.
    #[error("{who} has no {name}")]
    NoSuch {
        /// Which supervisor.
        who: String,
        /// What it was asked for.
        name: String,
    },
    /// Its answer makes no sense.
    #[error("{who} gave an answer that makes no sense: {why}")]
    Malformed {
        /// Which supervisor.
        who: String,
        /// What is wrong with it.
        why: String,
    },
    /// Somebody else stopped the unit meanwhile: an operator's stop is never undone.
    #[error("{name} was stopped by somebody else meanwhile; start it by hand if that was not meant")]
    StoppedByOther {
        /// The unit.
        name: String,
    },
    /// The supervisor has not noticed yet that the old process ended.
    #[error("{name} still counts as running ({why})")]
    StillUp {
        /// The unit.
        name: String,
        /// What is seen.
        why: String,
    },
}

/// What a supervisor was asked to do has this answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// It took the order.
    Asked,
    /// There was nothing to do: it was so already.
    Already,
}

/// What one look at a supervisor found.
#[derive(Clone, Debug)]
pub(crate) enum Look {
    /// A systemd service.
    Systemd(Box<systemd::Service>),
    /// A program of supervisord.
    Supervisord(Box<supervisord::Program>),
    /// Nobody, or somebody that this version does not drive.
    Nobody {
        /// Who there is.
        why: String,
    },
}

/// Tells whether this machine is being shut down or rebooted, by the word of its service manager; not where it gives none
/// within `timeout`.
pub async fn is_machine_stopping(reach: &Reach, timeout: Duration) -> bool {
    systemd::is_machine_stopping(reach, timeout).await
}

/// Asks `supervisor` what it knows.
///
/// # Errors
/// [`Error`] where it does not answer, or does not know the unit.
pub(crate) async fn look(reach: &Reach, supervisor: &Supervisor) -> Result<Look, Error> {
    let looked = reach.patience.ask(owner(supervisor), ask(reach, supervisor)).await;
    looked.unwrap_or_else(|Late(why)| Err(Error::Unreachable { who: who(supervisor), why }))
}

/// Returns whose a supervisor is; `None` for the system's own.
fn owner(supervisor: &Supervisor) -> Option<u32> {
    match supervisor {
        Supervisor::Systemd { user, .. } => *user,
        Supervisor::Supervisord { pid, .. } => owner_of(*pid),
        Supervisor::Other { .. } | Supervisor::None => None,
    }
}

/// Returns whose a process is. One that has ended is nobody's, and is not waited for.
fn owner_of(pid: Pid) -> Option<u32> {
    crate::procfs::status(pid).ok().map(|status| status.uid)
}

fn who(supervisor: &Supervisor) -> String {
    match supervisor {
        Supervisor::Systemd { user: None, .. } => "systemd".to_owned(),
        Supervisor::Systemd { user: Some(uid), .. } => format!("the systemd manager of uid {uid}"),
        Supervisor::Supervisord { pid, config, .. } => format!("supervisord (pid {pid}, {config})"),
        Supervisor::Other { .. } | Supervisor::None => "a supervisor".to_owned(),
    }
}

async fn ask(reach: &Reach, supervisor: &Supervisor) -> Result<Look, Error> {
    match supervisor {
        Supervisor::Systemd { name, user } => {
            let mut manager = systemd::Instance::connect(reach, *user).await?;
            Ok(Look::Systemd(Box::new(manager.look(name).await?)))
        }
        Supervisor::Supervisord { name, pid, config } => {
            let server = supervisord::Server::find(*pid, config).await?;
            Ok(Look::Supervisord(Box::new(server.look(name).await?)))
        }
        Supervisor::Other { .. } | Supervisor::None => Ok(Look::Nobody { why: none::why(supervisor) }),
    }
}

/// Names the directory that `supervisor` starts the slot in: what its configuration says, links and all, where the
/// process only knows where they led. `None` where it says none, or cannot be asked.
///
/// # Errors
/// [`Late`]: what it would say is not known.
pub(crate) async fn directory(reach: &Reach, supervisor: &Supervisor) -> Result<Option<String>, Late> {
    reach.patience.ask(owner(supervisor), configured_directory(reach, supervisor)).await
}

async fn configured_directory(reach: &Reach, supervisor: &Supervisor) -> Option<String> {
    let directory = match supervisor {
        Supervisor::Systemd { .. } => match ask(reach, supervisor).await.ok()? {
            Look::Systemd(service) => service.directory.trim_start_matches('!').to_owned(),
            _ => return None,
        },
        Supervisor::Supervisord { name, pid, config } => {
            let (group, program) = name.split_once(':')?;
            config::load(*pid, config).await.ok()?.directory(group, program)?
        }
        Supervisor::Other { .. } | Supervisor::None => return None,
    };
    directory.starts_with('/').then_some(directory)
}

/// Returns the names of all programs of a supervisord by the process that it has started for each.
///
/// # Errors
/// [`Late`], or why it cannot be asked.
pub(crate) async fn programs(
    reach: &Reach,
    supervisord: Pid,
    config: &str,
) -> Result<Result<BTreeMap<Pid, String>, Error>, Late> {
    let names = async { supervisord::Server::find(supervisord, config).await?.names().await };
    reach.patience.ask(owner_of(supervisord), names).await
}

/// Asks `supervisor` how the slot stands now.
pub async fn state(reach: &Reach, supervisor: &Supervisor) -> SlotState {
    let looked = look(reach, supervisor).await;
    match looked {
        Ok(Look::Systemd(service)) => service.state(),
        Ok(Look::Supervisord(program)) => program.state(),
        Ok(Look::Nobody { .. }) => SlotState::Gone,
        Err(Error::NoSuch { .. }) => SlotState::Gone,
        Err(error) => SlotState::Unreachable { why: error.to_string() },
    }
}

/// Asks `supervisor` to stop the slot, and to leave it so. Returns once the order is taken.
///
/// # Errors
/// [`Error`] where it does not answer, refuses or does not know the unit.
pub(crate) async fn stop(reach: &Reach, supervisor: &Supervisor) -> Result<Told, Error> {
    let order = async {
        match supervisor {
            Supervisor::Systemd { name, user } => systemd::Instance::connect(reach, *user).await?.stop(name).await,
            Supervisor::Supervisord { name, pid, config } => {
                supervisord::Server::find(*pid, config).await?.stop(name).await
            }
            Supervisor::Other { .. } | Supervisor::None => Err(none::refuse(supervisor)),
        }
    };
    told(supervisor, order).await
}

/// Asks `supervisor` to start the slot. Returns once the order is taken; that proves nothing.
///
/// # Errors
/// [`Error`] where it does not answer, refuses or does not know the unit.
pub(crate) async fn start(reach: &Reach, supervisor: &Supervisor) -> Result<Told, Error> {
    let order = async {
        match supervisor {
            Supervisor::Systemd { name, user } => systemd::Instance::connect(reach, *user).await?.start(name).await,
            Supervisor::Supervisord { name, pid, config } => {
                supervisord::Server::find(*pid, config).await?.start(name).await
            }
            Supervisor::Other { .. } | Supervisor::None => Err(none::refuse(supervisor)),
        }
    };
    told(supervisor, order).await
}

/// Gives an order the time of one call, all of it together.
async fn told(supervisor: &Supervisor, order: impl Future<Output = Result<Told, Error>>) -> Result<Told, Error> {
    tokio::time::timeout(CALL_TIMEOUT, order).await.unwrap_or_else(|_| {
        let why = format!("no answer within {} s", CALL_TIMEOUT.as_secs());
        Err(Error::Unreachable { who: who(supervisor), why })
    })
}
