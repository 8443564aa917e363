//! Looking before acting: who brings a unit back, by which means it takes new code, and what would go wrong.

use super::way::{Act, Exit, Way};
use super::{
    Hands, Means, Plan, Refusal, StartLimit, StopSignal, Trap, UnitConfig, UnitFacts, celery, gunicorn, hand, other,
    proc,
};
use crate::display::escape;
use crate::process::{Kind, Process, Supervisor, Unit};
use crate::supervisor::supervisord::{Program, State};
use crate::supervisor::systemd::{KillMode, Restart, Service};
use crate::supervisor::{self, AutoRestart, BringsBack, Look, SlotState};
use std::collections::BTreeSet;
use std::time::Duration;
use unstale_protocol::ids::Pid;

/// How far apart the looks are that must all show an idle worker.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How many of them.
const LOOKS: usize = 3;
/// Most of a command line that is told.
const SHOWN_MAX_CHARS: usize = 200;

impl Hands {
    /// Decides how `unit` would be restarted. Nothing is touched.
    ///
    /// # Errors
    /// [`Refusal`] with what would change it.
    pub async fn plan(&self, unit: &Unit, facts: &UnitFacts, config: &[UnitConfig]) -> Result<Plan, Refusal> {
        let plan = self.plan_any(unit, facts, config).await?;
        if plan.ends_root() {
            check_alone(&plan, unit)?;
        }
        match &plan.back {
            BringsBack::Never { why } if plan.ends_root() => Err(Refusal::NothingBringsBack { why: why.clone() }),
            _ => Ok(plan),
        }
    }

    /// Decides how `unit` would be drained. Unlike [`Hands::plan`] it accepts a unit that nothing would bring back:
    /// [`Plan::can_be_given_back`] tells, and the one who asks must insist.
    ///
    /// # Errors
    /// [`Refusal`] with what would change it.
    pub async fn plan_drain(&self, unit: &Unit, facts: &UnitFacts, config: &[UnitConfig]) -> Result<Plan, Refusal> {
        let plan = self.plan_any(unit, facts, config).await?;
        check_alone(&plan, unit)?;
        match (plan.drain, unit.root()) {
            (Some(signal), Some(root)) => check_caught(root, signal)?,
            (None, _) if !unit.supervisor.can_stop() => return Err(Refusal::NothingEndsIt),
            _ => {}
        }
        Ok(plan)
    }

    async fn plan_any(&self, unit: &Unit, facts: &UnitFacts, config: &[UnitConfig]) -> Result<Plan, Refusal> {
        let root = unit.root().ok_or_else(|| Refusal::Hidden { why: "the unit has no processes".to_owned() })?;
        if unit.is_bystander() {
            return Err(Refusal::Bystander);
        }
        if let Some(why) = &root.denied {
            return Err(Refusal::Hidden { why: format!("process {}: {why}", root.identity.pid) });
        }
        let mut way = way(unit, facts).await?;
        let (Act::Reload(signal) | Act::End(signal)) = way.act;
        check_caught(root, signal)?;
        if facts.titled {
            way.notes.push(Trap::TitleHides);
        }
        let mut plan = Plan {
            slot: unit.slot.clone(),
            kind: unit.kind,
            supervisor: unit.supervisor.clone(),
            root: root.identity,
            main: None,
            invocation: String::new(),
            restarts: 0,
            means: match way.act {
                Act::Reload(_) => Means::Hup,
                Act::End(signal) => Means::TermThenStart { signal },
            },
            drain: way.drain,
            back: BringsBack::WhenAsked,
            start: None,
            start_limit: None,
            notes: std::mem::take(&mut way.notes),
        };
        let looked = supervisor::look(&self.reach, &unit.supervisor).await;
        match looked.map_err(|error| Refusal::Supervisor { why: error.to_string() })? {
            Look::Systemd(service) => under_systemd(&mut plan, &service, &way, unit)?,
            Look::Supervisord(program) => under_supervisord(&mut plan, &program, &way, unit)?,
            Look::Nobody { why } => alone(&mut plan, why, &way, unit, config),
        }
        Ok(plan)
    }
}

async fn way(unit: &Unit, facts: &UnitFacts) -> Result<Way, Refusal> {
    match unit.kind {
        Kind::Celery => {
            let mut seen = hand::in_hand(unit, facts);
            for _ in 1..LOOKS {
                if !seen.is_idle() {
                    break;
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
                seen = hand::in_hand(unit, facts);
            }
            celery::way(facts, &seen)
        }
        Kind::Gunicorn => Ok(gunicorn::way(facts)),
        _ => other::way(unit, facts),
    }
}

/// Without a handler a signal kills, or does nothing at all. What counts is what the process catches now: when it was
/// first seen it may not have been ready.
fn check_caught(root: &Process, signal: StopSignal) -> Result<(), Refusal> {
    let caught = proc::caught(&root.identity).unwrap_or(root.caught_signals);
    if caught >> (signal.number() - 1) & 1 == 1 {
        return Ok(());
    }
    let effect = "be killed by it, or ignore it".to_owned();
    Err(Refusal::NotCaught { pid: root.identity.pid, signal, effect })
}

/// Where the process that a supervisor watches stands, seen from a unit's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    IsRoot,
    Above,
    Elsewhere,
}

fn stands(main: u32, root: Pid) -> Stands {
    if main == root.0 {
        return Stands::IsRoot;
    }
    let above = main != 0 && proc::chain(root).contains(&Pid(main));
    if above { Stands::Above } else { Stands::Elsewhere }
}

/// Programs that start others, each in a session of its own, and do not end with them: by the name that the kernel keeps.
const STARTERS: [&str; 10] =
    ["anacron", "atd", "cron", "crond", "dropbear", "fcron", "login", "sshd", "sshd-session", "systemd"];

/// A process above the root is a wrapper only where it is there for this unit alone: it ends with it, and its supervisor's
/// stop ends nothing else. Of a cron, of an sshd or of a shell with several workers neither is true.
fn check_alone(plan: &Plan, unit: &Unit) -> Result<(), Refusal> {
    let Some(main) = plan.main.filter(|main| main.pid != plan.root.pid) else { return Ok(()) };
    let (supervisor, name) = match &plan.supervisor {
        Supervisor::Systemd { name, .. } => ("systemd", name),
        Supervisor::Supervisord { name, .. } => ("supervisord", name),
        Supervisor::Other { .. } | Supervisor::None => return Ok(()),
    };
    let comm = |pid: Pid| proc::stat(pid).map(|stat| stat.comm).unwrap_or_default();
    let refused =
        |watched: String| Err(Refusal::NotTheMain { supervisor: supervisor.to_owned(), watched, root: plan.root.pid });
    let own = comm(main.pid);
    if STARTERS.contains(&own.as_str()) {
        return refused(format!("process {} of {name} ({own}, which does not end with what it has started)", main.pid));
    }
    let mut around: BTreeSet<Pid> = proc::descendants(main.pid).iter().map(|process| process.pid).collect();
    if supervisor == "systemd" {
        around.extend(proc::of_service(main.pid, name));
    }
    let ours = unit.processes.iter().map(|process| process.identity.pid);
    let below = proc::descendants(plan.root.pid);
    for pid in proc::chain(plan.root.pid).into_iter().chain(ours).chain(below.iter().map(|process| process.pid)) {
        around.remove(&pid);
    }
    // Of those that have ended meanwhile, and of the session that systemd opens with `PAMName=`, nothing is lost.
    let is_other = |pid: &Pid| proc::stat(*pid).is_some_and(|stat| !stat.is_dead() && stat.comm != "(sd-pam)");
    match around.into_iter().find(is_other) {
        Some(other) => {
            let other = format!("process {other} ({})", escape::terminal(&comm(other)));
            refused(format!("process {} of {name}, which is there for {other}, too", main.pid))
        }
        None => Ok(()),
    }
}

fn alone(plan: &mut Plan, why: String, way: &Way, unit: &Unit, config: &[UnitConfig]) {
    let command = config.iter().filter(|entry| entry.fits(unit)).find_map(UnitConfig::start_command);
    match (command, way.act) {
        (Some(command), Act::End(signal)) => plan.means = Means::StartCommand { signal, command },
        // For a drain that is taken back.
        (Some(command), Act::Reload(_)) => plan.start = Some(command),
        (None, act) => {
            plan.back = BringsBack::Never { why: why + &unfit(unit, config) };
            if matches!(act, Act::Reload(_)) {
                plan.notes.push(Trap::NobodyIfItEnds);
            }
        }
    }
}

/// Says what `unit` looks like to `[[units]]`, where somebody wrote start commands and none of them is for it.
fn unfit(unit: &Unit, config: &[UnitConfig]) -> String {
    let Some(root) = unit.root().filter(|_| config.iter().any(|entry| !entry.start.is_empty())) else {
        return String::new();
    };
    let command: String = escape::command(&root.command).chars().take(SHOWN_MAX_CHARS).collect();
    let (slot, user) = (&unit.slot, escape::terminal(&root.user));
    format!(", and no start command of `[[units]]` fits slot `{slot}`, user `{user}`, command `{command}`")
}

fn under_systemd(plan: &mut Plan, service: &Service, way: &Way, unit: &Unit) -> Result<(), Refusal> {
    let name = &service.name;
    if service.is_being_stopped() {
        return Err(Refusal::InOtherHands { what: format!("{name} is being stopped") });
    }
    if service.has_job {
        return Err(Refusal::InOtherHands { what: format!("a job of systemd for {name} is under way") });
    }
    let stands = stands(service.main_pid, plan.root.pid);
    if service.state() != (SlotState::Up { main_pid: Pid(service.main_pid) }) || stands == Stands::Elsewhere {
        let watched = match service.main_pid {
            0 => format!("{name}, which is {} and has no main process", service.active),
            pid => format!("process {pid} of {name}"),
        };
        return Err(Refusal::NotTheMain { supervisor: "systemd".to_owned(), watched, root: plan.root.pid });
    }
    if let Some(entry) = service.environment.iter().find_map(|entry| entry.strip_prefix("REMAP_SIGTERM="))
        && unit.kind == Kind::Celery
        && !entry.is_empty()
    {
        let place = format!("Environment= of {name}");
        return Err(Refusal::RemapSigterm { value: entry.to_owned(), place });
    }
    plan.main = proc::identify(Pid(service.main_pid));
    plan.invocation.clone_from(&service.invocation);
    plan.restarts = service.restarts;
    if service.start_limit_burst > 0 && service.start_limit_interval_us > 0 {
        let interval_ms = service.start_limit_interval_us / 1000;
        plan.start_limit = Some(StartLimit { burst: service.start_limit_burst, interval_ms });
    }
    note_systemd(plan, service, way, stands);
    plan.back = systemd_brings_back(service, way.exit, stands);
    if plan.means == Means::Hup {
        return Ok(());
    }
    end_under_systemd(plan, service, way)
}

/// Chooses how a service that must end is restarted.
fn end_under_systemd(plan: &mut Plan, service: &Service, way: &Way) -> Result<(), Refusal> {
    let name = service.name.clone();
    let Act::End(signal) = way.act else { return Ok(()) };
    let lost = plan.back != BringsBack::ByItself && service.transient;
    // These two come back only where systemd stops and starts as one order, which signals more than the root.
    if lost || !service.bound_by.is_empty() {
        if way.has_tasks && !service.stop_is_gentle() {
            let bound = service.bound_by.clone();
            return Err(if lost { Refusal::Transient { unit: name } } else { Refusal::BoundUnits { units: bound } });
        }
        if service.kill_mode == KillMode::None {
            return Err(Refusal::StopLeavesAll { unit: name });
        }
        if service.refuse_stop || service.refuse_start {
            return Err(Refusal::Forbidden { unit: name, setting: "RefuseManualStop=yes".to_owned() });
        }
        if service.stop_timeout_us != u64::MAX {
            let seconds = service.stop_timeout_us / 1_000_000;
            plan.notes.push(Trap::StopTimesOut { unit: name, seconds });
        }
        plan.means = Means::SupervisorRestart;
        plan.back = BringsBack::ByItself;
        return Ok(());
    }
    if plan.back == BringsBack::ByItself {
        plan.means = Means::TermThenBack { signal };
    } else {
        plan.notes.push(Trap::ExitStaysDown { setting: format!("Restart={}", service.restart.as_str()) });
    }
    Ok(())
}

fn note_systemd(plan: &mut Plan, service: &Service, way: &Way, stands: Stands) {
    let unit = service.name.clone();
    if service.need_reload {
        plan.notes.push(Trap::NeedsDaemonReload { unit: unit.clone() });
    }
    if stands == Stands::Above {
        plan.notes.push(Trap::Wrapper { pid: service.main_pid });
    }
    if way.has_tasks {
        let kill_mode = match service.kill_mode {
            KillMode::ControlGroup => Some("control-group"),
            KillMode::None => Some("none"),
            KillMode::Mixed | KillMode::Process => None,
        };
        if let Some(kill_mode) = kill_mode {
            plan.notes.push(Trap::StopLosesTasks { unit, kill_mode: kill_mode.to_owned() });
        } else if service.stop_timeout_us != u64::MAX {
            plan.notes.push(Trap::StopTimesOut { unit, seconds: service.stop_timeout_us / 1_000_000 });
        }
    }
    if let Some(limit) = plan.start_limit
        && limit.burst <= 3
    {
        plan.notes.push(Trap::StartLimit { allowed: limit.allowed(), seconds: limit.interval_ms / 1000 });
    }
    if plan.means != Means::Hup && !service.dependents.is_empty() {
        plan.notes.push(Trap::Dependents { units: service.dependents.clone() });
    }
}

/// The table of systemd.service(5) for an end in order: exit 0, or one of the four signals that count as clean.
fn systemd_brings_back(service: &Service, exit: Exit, stands: Stands) -> BringsBack {
    let prevented = match exit {
        _ if stands == Stands::Above => !service.prevents.is_empty(),
        Exit::Code(code) => service.prevents.contains(&code),
        Exit::Signal(signal) => service.prevents_signals.contains(&signal),
    };
    match service.restart {
        Restart::Always | Restart::OnSuccess if !prevented => BringsBack::ByItself,
        _ if service.refuse_start => BringsBack::Never { why: format!("{} has RefuseManualStart=yes", service.name) },
        _ => BringsBack::WhenAsked,
    }
}

fn under_supervisord(plan: &mut Plan, program: &Program, way: &Way, unit: &Unit) -> Result<(), Refusal> {
    let name = &program.name;
    match program.state {
        State::Running => {}
        State::Stopping => return Err(Refusal::InOtherHands { what: format!("{name} is being stopped") }),
        State::Starting | State::Backoff => {
            return Err(Refusal::InOtherHands { what: format!("{name} is being started ({})", program.words) });
        }
        State::Stopped | State::Exited | State::Fatal | State::Unknown => {
            let watched = format!("{name}, which is {}", program.words);
            return Err(Refusal::NotTheMain { supervisor: "supervisord".to_owned(), watched, root: plan.root.pid });
        }
    }
    let stands = stands(program.pid, plan.root.pid);
    if stands == Stands::Elsewhere {
        let watched = format!("process {} of {name}", program.pid);
        return Err(Refusal::NotTheMain { supervisor: "supervisord".to_owned(), watched, root: plan.root.pid });
    }
    if unit.kind == Kind::Celery && program.environment.contains("REMAP_SIGTERM") {
        let (value, place) = ("…".to_owned(), format!("environment= of {name}"));
        return Err(Refusal::RemapSigterm { value, place });
    }
    plan.main = proc::identify(Pid(program.pid));
    if stands == Stands::Above {
        plan.notes.push(Trap::Wrapper { pid: program.pid });
    }
    if way.has_tasks && program.stops_group {
        plan.notes.push(Trap::StopsGroup { program: name.clone() });
    }
    plan.notes.extend(program.problems.iter().map(|why| Trap::ConfigurationHidden { why: why.clone() }));
    plan.back = supervisord_brings_back(program, way.exit, stands);
    if let (Act::End(signal), BringsBack::ByItself) = (way.act, &plan.back) {
        plan.means = Means::TermThenBack { signal };
    }
    if plan.ends_root() && plan.back == BringsBack::WhenAsked {
        let setting = match program.autorestart {
            Some(AutoRestart::Never) => "autorestart=false",
            _ => "autorestart=unexpected",
        };
        plan.notes.push(Trap::ExitStaysDown { setting: setting.to_owned() });
    }
    Ok(())
}

/// The table of supervisord's `autorestart`; where its setting is not known it is asked, which is never wrong.
fn supervisord_brings_back(program: &Program, exit: Exit, stands: Stands) -> BringsBack {
    let expected = match exit {
        // What a wrapper exits with is its own affair.
        _ if stands == Stands::Above => true,
        Exit::Code(code) => program.exit_codes.contains(&code),
        Exit::Signal(_) => false,
    };
    match program.autorestart {
        Some(AutoRestart::Always) => BringsBack::ByItself,
        Some(AutoRestart::Unexpected) if !expected => BringsBack::ByItself,
        _ => BringsBack::WhenAsked,
    }
}
