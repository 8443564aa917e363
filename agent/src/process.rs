//! Python processes and the units they form: the answer of `discover`, plain data.

use serde::{Deserialize, Serialize};
use std::fmt;
use unstale_protocol::ids::{Pid, ProcessIdentity, SlotId, UnitId};

/// What a worker is, by its command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `celery worker`.
    Celery,
    /// `celery beat`, on its own or embedded.
    Beat,
    /// `celery flower`.
    Flower,
    /// gunicorn, whatever its worker class.
    Gunicorn,
    /// uvicorn.
    Uvicorn,
    /// uWSGI.
    Uwsgi,
    /// hypercorn.
    Hypercorn,
    /// granian.
    Granian,
    /// daphne.
    Daphne,
    /// waitress.
    Waitress,
    /// RQ worker or pool.
    Rq,
    /// Dramatiq.
    Dramatiq,
    /// Huey.
    Huey,
    /// arq.
    Arq,
    /// taskiq.
    Taskiq,
    /// Any other Python process.
    Python,
}

impl Kind {
    /// Returns the name as JSON and slots have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Celery => "celery",
            Self::Beat => "beat",
            Self::Flower => "flower",
            Self::Gunicorn => "gunicorn",
            Self::Uvicorn => "uvicorn",
            Self::Uwsgi => "uwsgi",
            Self::Hypercorn => "hypercorn",
            Self::Granian => "granian",
            Self::Daphne => "daphne",
            Self::Waitress => "waitress",
            Self::Rq => "rq",
            Self::Dramatiq => "dramatiq",
            Self::Huey => "huey",
            Self::Arq => "arq",
            Self::Taskiq => "taskiq",
            Self::Python => "python",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A process's place in its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The root that is signalled.
    Main,
    /// One of its descendants.
    Child,
}

/// Who brings a unit back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Supervisor {
    /// A systemd service, from the cgroup path.
    Systemd {
        /// The unit: `shop@1.service`.
        name: String,
        /// The uid whose user manager runs it; `None` for the system manager.
        user: Option<u32>,
    },
    /// A program of supervisord.
    Supervisord {
        /// `GROUP:PROGRAM`.
        name: String,
        /// The supervisord process.
        pid: Pid,
        /// Its configuration file, absolute, as it sees it.
        config: String,
    },
    /// Recognised, but not driven by this version: runit, s6, circus, a container's init.
    Other {
        /// What it is: `runit`.
        name: String,
    },
    /// Nobody.
    None,
}

impl Supervisor {
    /// Tells whether it takes an order to stop a unit and to keep it down.
    pub fn can_stop(&self) -> bool {
        match self {
            Self::Systemd { .. } | Self::Supervisord { .. } => true,
            Self::Other { .. } | Self::None => false,
        }
    }

    /// Tells whether it has a name for each unit, by which equal ones are told apart; else they are numbered.
    pub fn names_units(&self) -> bool {
        match self {
            Self::Systemd { .. } | Self::Supervisord { .. } => true,
            Self::Other { .. } | Self::None => false,
        }
    }
}

/// One Python process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Who it is.
    pub identity: ProcessIdentity,
    /// Its parent.
    pub parent: Pid,
    /// Real user id.
    pub uid: u32,
    /// Its user's name, or the number as text.
    pub user: String,
    /// When it started, in milliseconds since the Unix epoch, for people.
    pub started_at_ms: u64,
    /// Its command line: from `/proc/PID/cmdline`; titles that blank it leave what they wrote.
    pub command: Vec<String>,
    /// What it is.
    pub kind: Kind,
    /// Whether the command line was overwritten by a title (`setproctitle`), which blanks the environment too.
    pub titled: bool,
    /// Controlling terminal: field 7 of `/proc/PID/stat` is not 0.
    pub has_terminal: bool,
    /// Its cgroup path: the `0::` line, or the `name=systemd` one on a pure version 1 hierarchy.
    pub cgroup: String,
    /// Inode of its mount namespace; 0 where it cannot be read.
    pub mount_namespace: u64,
    /// Signals with a handler: `SigCgt` of `/proc/PID/status`, bit 0 is signal 1.
    pub caught_signals: u64,
    /// Working directory, as the target sees it; `None` where it cannot be read.
    pub cwd: Option<String>,
    /// The environment variables that matter here (`PWD`, `UNSTALE_APP`, `REMAP_SIGTERM`, `PYTHONPATH`,
    /// `PYTHONPYCACHEPREFIX`, `SUPERVISOR_*`, …), never the others.
    pub environment: Vec<(String, String)>,
    /// Why details are missing, where the kernel refused them.
    pub denied: Option<String>,
}

impl Process {
    /// Returns an environment variable, if it is one of those that are kept and it could be read.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What is restarted as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// One life of it: `celery:4711`.
    pub id: UnitId,
    /// The place it lives in.
    pub slot: SlotId,
    /// Systemd unit without `@instance`, supervisord GROUP, or the kind where there is neither.
    pub service: String,
    /// What it is.
    pub kind: Kind,
    /// Who brings it back.
    pub supervisor: Supervisor,
    /// Its processes, root first.
    pub processes: Vec<Process>,
}

impl Unit {
    /// Returns the root: the process that is signalled.
    pub fn root(&self) -> Option<&Process> {
        self.processes.first()
    }

    /// Tells whether the unit is a plain `python` process on a terminal: listed, never restarted.
    pub fn is_bystander(&self) -> bool {
        self.kind == Kind::Python && self.root().is_some_and(|root| root.has_terminal)
    }
}
