//! The properties of a service that a restart depends on, as org.freedesktop.systemd1(5) names them.

use crate::supervisor::SlotState;
use std::collections::HashMap;
use unstale_protocol::ids::Pid;
use zvariant::OwnedValue;

/// `KillMode=` of systemd.kill(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KillMode {
    /// Every process gets the stop signal: running tasks of child processes are lost.
    ControlGroup,
    /// The main process gets the stop signal, what is left afterwards is killed.
    Mixed,
    /// The main process only.
    Process,
    /// Nobody: a stop leaves the old processes running.
    None,
}

/// `Restart=` of systemd.service(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restart {
    /// Never.
    No,
    /// After exit 0 and the four stop signals.
    OnSuccess,
    /// After any other exit.
    OnFailure,
    /// After signals and time-outs.
    OnAbnormal,
    /// After the watchdog.
    OnWatchdog,
    /// After signals that dump core.
    OnAbort,
    /// After everything.
    Always,
}

impl Restart {
    /// Returns the word of the unit file.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnSuccess => "on-success",
            Self::OnFailure => "on-failure",
            Self::OnAbnormal => "on-abnormal",
            Self::OnWatchdog => "on-watchdog",
            Self::OnAbort => "on-abort",
            Self::Always => "always",
        }
    }
}

/// One service as systemd has it now.
#[expect(clippy::struct_excessive_bools, reason = "each is a property of systemd's own")]
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// `shop@1.service`.
    pub(crate) name: String,
    /// `active`, `reloading`, `inactive`, `failed`, `activating`, `deactivating`.
    pub(crate) active: String,
    /// The finer state: `running`, `auto-restart`, `dead`, …
    pub(crate) sub: String,
    /// `success`, `exit-code`, `start-limit-hit`, …
    pub(crate) result: String,
    /// `start`, `stop`, `restart`, …, where a job is queued or running.
    pub(crate) has_job: bool,
    /// Who it is when asked.
    pub(crate) main_pid: u32,
    /// `Restart=`.
    pub(crate) restart: Restart,
    /// Exit statuses after which it is not restarted.
    pub(crate) prevents: Vec<i32>,
    /// Signals after which it is not restarted.
    pub(crate) prevents_signals: Vec<i32>,
    /// `KillMode=`.
    pub(crate) kill_mode: KillMode,
    /// `TimeoutStopUSec`; `u64::MAX` is none.
    pub(crate) stop_timeout_us: u64,
    /// The file was edited, the manager still has the old one.
    pub(crate) need_reload: bool,
    /// `StartLimitBurst=`; 0 is no limit.
    pub(crate) start_limit_burst: u32,
    /// `StartLimitIntervalUSec`; 0 is no limit.
    pub(crate) start_limit_interval_us: u64,
    /// Automatic restarts since somebody started it by hand.
    pub(crate) restarts: u32,
    /// New at each start.
    pub(crate) invocation: String,
    /// Units that end with it and are not brought back with it.
    pub(crate) bound_by: Vec<String>,
    /// Units that are restarted with it.
    pub(crate) dependents: Vec<String>,
    /// Made by `systemd-run`: stopped means gone.
    pub(crate) transient: bool,
    /// `RefuseManualStart=`.
    pub(crate) refuse_start: bool,
    /// `RefuseManualStop=`.
    pub(crate) refuse_stop: bool,
    /// `Environment=`, as `NAME=value`.
    pub(crate) environment: Vec<String>,
    /// `WorkingDirectory=`: empty where none is set, with a leading `!` where it may be missing, `~` for the home.
    pub(crate) directory: String,
    /// When it last left the active state, in µs of the monotonic clock; 0 is never.
    pub(crate) left_active_us: u64,
    /// When the main process last ended, on the same clock.
    pub(crate) main_ended_us: u64,
}

impl Service {
    /// Tells how the slot stands.
    pub(crate) fn state(&self) -> SlotState {
        match (self.active.as_str(), self.sub.as_str()) {
            ("active" | "reloading" | "refreshing", _) => match self.main_pid {
                // A service without a main process is up as long as anything of it runs.
                0 => SlotState::Starting,
                pid => SlotState::Up { main_pid: Pid(pid) },
            },
            ("activating", _) => SlotState::Starting,
            ("deactivating", _) => SlotState::Stopping,
            ("failed", _) => SlotState::GaveUp {
                why: format!("{} is failed ({}); `journalctl -u {}` says more", self.name, self.result, self.name),
            },
            _ if self.has_job => SlotState::Starting,
            _ => SlotState::Stopped,
        }
    }

    /// Tells whether somebody is stopping it right now: that stop is never undone.
    pub(crate) fn is_being_stopped(&self) -> bool {
        self.active == "deactivating"
    }

    /// Tells whether the last stop was ordered rather than caused by the main process's end.
    ///
    /// A main process that ends takes the unit out of *active* afterwards; a stop job does it before
    /// the process has ended. Of a unit that nothing refers to systemd forgets both times once it is down; then this is
    /// false.
    pub(crate) fn was_stopped_by_order(&self) -> bool {
        let down = matches!(self.active.as_str(), "inactive" | "failed" | "deactivating");
        down && self.left_active_us != 0 && self.left_active_us < self.main_ended_us
    }

    /// Tells whether systemd's own stop lets the main process finish, however long it takes, and
    /// signals nothing but it.
    pub(crate) fn stop_is_gentle(&self) -> bool {
        self.kill_mode == KillMode::Mixed && self.stop_timeout_us == u64::MAX
    }
}

/// The answer of one `GetAll`.
#[derive(Debug)]
pub(crate) struct Properties(HashMap<String, OwnedValue>);

impl Properties {
    pub(crate) fn new(map: HashMap<String, OwnedValue>) -> Self {
        Self(map)
    }

    fn value<T: TryFrom<OwnedValue>>(&self, name: &str) -> Option<T> {
        self.0.get(name)?.try_clone().ok()?.try_into().ok()
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.value(name).unwrap_or_default()
    }

    fn texts(&self, name: &str) -> Vec<String> {
        self.value(name).unwrap_or_default()
    }

    fn flag(&self, name: &str) -> bool {
        self.value(name).unwrap_or_default()
    }

    fn number(&self, name: &str) -> u64 {
        self.value(name).unwrap_or_default()
    }

    fn small(&self, name: &str) -> u32 {
        self.value(name).unwrap_or_default()
    }
}

/// Gathers a service from its two interfaces. A property that an older systemd lacks has its neutral value.
pub(crate) fn service(name: &str, unit: &Properties, own: &Properties) -> Service {
    let job: Option<(u32, zvariant::OwnedObjectPath)> = unit.value("Job");
    let prevents: Option<(Vec<i32>, Vec<i32>)> = own.value("RestartPreventExitStatus");
    let (prevents, prevents_signals) = prevents.unwrap_or_default();
    let mut dependents = unit.texts("RequiredBy");
    dependents.extend(unit.texts("ConsistsOf"));
    dependents.retain(|dependent| !dependent.ends_with(".target"));
    dependents.sort();
    dependents.dedup();
    let invocation: Vec<u8> = unit.value("InvocationID").unwrap_or_default();
    Service {
        name: name.to_owned(),
        active: unit.text("ActiveState"),
        sub: unit.text("SubState"),
        result: own.text("Result"),
        has_job: job.is_some_and(|(id, _)| id != 0),
        main_pid: own.small("MainPID"),
        restart: match own.text("Restart").as_str() {
            "always" => Restart::Always,
            "on-success" => Restart::OnSuccess,
            "on-failure" => Restart::OnFailure,
            "on-abnormal" => Restart::OnAbnormal,
            "on-watchdog" => Restart::OnWatchdog,
            "on-abort" => Restart::OnAbort,
            _ => Restart::No,
        },
        prevents,
        prevents_signals,
        kill_mode: match own.text("KillMode").as_str() {
            "mixed" => KillMode::Mixed,
            "process" => KillMode::Process,
            "none" => KillMode::None,
            _ => KillMode::ControlGroup,
        },
        stop_timeout_us: own.number("TimeoutStopUSec"),
        need_reload: unit.flag("NeedDaemonReload"),
        start_limit_burst: unit.small("StartLimitBurst"),
        start_limit_interval_us: unit.number("StartLimitIntervalUSec"),
        restarts: own.small("NRestarts"),
        invocation: invocation.iter().take(16).map(u8::to_string).collect::<Vec<_>>().join("."),
        bound_by: unit.texts("BoundBy"),
        dependents,
        transient: unit.flag("Transient"),
        refuse_start: unit.flag("RefuseManualStart"),
        refuse_stop: unit.flag("RefuseManualStop"),
        environment: own.texts("Environment"),
        directory: own.text("WorkingDirectory").clone(),
        left_active_us: unit.number("ActiveExitTimestampMonotonic"),
        main_ended_us: own.number("ExecMainExitTimestampMonotonic"),
    }
}
