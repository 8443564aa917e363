//! The steps of a restart and of a drain. Each does one thing, can be asked again, and never decides what comes next.

use super::{Hands, Hold, HoldError, Means, Plan, StopSignal, proc};
use crate::discover::{Nature, recognise};
use crate::process::{Kind, Supervisor};
use crate::procfs;
use crate::supervisor::{self, BringsBack, Error, Look, SlotState, Told, supervisord, systemd};
use std::time::Duration;
use unstale_protocol::ids::{Pid, ProcessIdentity};
use unstale_protocol::time::Moment;

/// How often, and how far apart, a supervisor is asked whether it has noticed that a process ended.
const NOTICES: usize = 50;
const NOTICE_INTERVAL: Duration = Duration::from_millis(100);
/// How often it is asked whether a unit that it was told to stop is down, while it does not say that it is at it.
const STOPS: usize = 300;
/// How old a new life is at least that may have taken work. Where a supervisor is faster than the stop that follows a
/// drain, what it has brought back is a moment old and still starting.
const AT_WORK: Duration = Duration::from_secs(3);
/// How far apart it is asked whether a stop is over that takes long.
const LONG_STOP_INTERVAL: Duration = Duration::from_secs(1);

/// Why a step could not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The process is not the one that was planned for, or cannot be held.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// The supervisor.
    #[error(transparent)]
    Supervisor(#[from] Error),
    /// One more start would come close to systemd's limit, behind which the unit stays down.
    #[error(
        "{allowed} starts of it fall into its start limit already; systemd would leave it down after more. \
         It is tried again in {} s", wait.as_secs().max(1)
    )]
    StartLimit {
        /// Starts of ours per interval.
        allowed: u32,
        /// When there is room again.
        wait: Duration,
    },
    /// The configured command failed.
    #[error(transparent)]
    Command(#[from] super::CommandError),
    /// The unit was drained and something brings it back.
    #[error("it does not stay down: {0}")]
    ComesBack(String),
    /// The unit was drained and has been brought back since: that life was not told to end.
    #[error("it was brought back before it could be held down, and is left alone: {0}")]
    NewLife(String),
    /// There is nobody who could do it.
    #[error("nobody can do that: {0}")]
    Nobody(String),
}

impl Hands {
    /// Begins the restart: one signal to the root, or one order to its supervisor. Returns once it went out; the end
    /// is seen in the hold.
    ///
    /// # Errors
    /// [`StepError`] where nothing went out.
    pub async fn stop(&self, plan: &Plan, hold: &Hold, now: Moment) -> Result<(), StepError> {
        check_hold(plan, hold)?;
        if plan.ends_root() {
            self.admit(plan, now)?;
        }
        match &plan.means {
            Means::Hup => hold.signal_root(StopSignal::Hup)?,
            Means::TermThenBack { signal } | Means::TermThenStart { signal } | Means::StartCommand { signal, .. } => {
                hold.signal_root(*signal)?;
            }
            Means::SupervisorRestart => {
                let Supervisor::Systemd { name, user } = &plan.supervisor else {
                    return Err(StepError::Nobody(supervisor::none::why(&plan.supervisor)));
                };
                systemd::Instance::connect(&self.reach, *user).await?.restart(name).await?;
            }
        }
        Ok(())
    }

    /// Begins a drain: the signal that lets the root finish and end. Where none does, nothing is sent: its
    /// supervisor's stop follows in [`Hands::hold_down`].
    ///
    /// # Errors
    /// [`StepError`] where the root is not the one that was planned for.
    pub fn drain(&self, plan: &Plan, hold: &Hold) -> Result<(), StepError> {
        check_hold(plan, hold)?;
        if let Some(signal) = plan.drain {
            hold.signal_root(signal)?;
        }
        Ok(())
    }

    /// Waits for what [`Hands::stop`] asked for: that all have ended, or all but the root where it stays. No limit;
    /// safe to cancel and to ask again.
    pub async fn ended(&self, plan: &Plan, hold: &Hold) {
        if plan.ends_root() { hold.ended().await } else { hold.children_ended().await }
    }

    /// Brings the unit back, where it does not come by itself. Asked again, or of a unit that is up, it does nothing.
    /// A unit that somebody else has stopped meanwhile stays stopped.
    ///
    /// # Errors
    /// [`StepError`] where it could not be asked for. Success proves nothing: the new processes do.
    pub async fn start(&self, plan: &Plan, now: Moment) -> Result<Told, StepError> {
        if let Some(command) = plan.start_command() {
            if proc::is_alive(&plan.root) {
                return Err(still_up(plan, "its old process has not ended"));
            }
            command.start().await?;
            return Ok(Told::Asked);
        }
        match self.settled(plan).await? {
            Settled::Up => Ok(Told::Already),
            Settled::Down => {
                self.record(plan, now);
                Ok(supervisor::start(&self.reach, &plan.supervisor).await?)
            }
        }
    }

    /// Asks what a supervisor says of a slot of which no plan is known.
    pub async fn state_of(&self, supervisor: &Supervisor) -> SlotState {
        supervisor::state(&self.reach, supervisor).await
    }

    /// Asks how the slot stands. [`SlotState::Crashing`] also where it was brought back more often than once since
    /// the plan was made.
    pub async fn state(&self, plan: &Plan) -> SlotState {
        let looked = supervisor::look(&self.reach, &plan.supervisor).await;
        let service = match looked {
            Ok(Look::Systemd(service)) => service,
            Ok(Look::Supervisord(program)) => return program.state(),
            Ok(Look::Nobody { .. }) | Err(Error::NoSuch { .. }) => return SlotState::Gone,
            Err(error) => return SlotState::Unreachable { why: error.to_string() },
        };
        // A start by hand sets the counter back; the one restart that brought it back is not a crash.
        let since = service.restarts.checked_sub(plan.restarts).unwrap_or(service.restarts);
        let expected = u32::from(plan.back == BringsBack::ByItself);
        match service.state() {
            SlotState::Up { .. } | SlotState::Starting if since > expected && service.invocation != plan.invocation => {
                let count = since - expected;
                SlotState::Crashing { why: format!("systemd has restarted {} {count} times since", service.name) }
            }
            state => state,
        }
    }

    /// Kills what is left of the unit. Only for a deadline that was stated with force: work in hand is lost.
    /// Returns how many processes that were.
    ///
    /// # Errors
    /// [`StepError::Hold`] where the kernel refuses.
    pub fn kill(&self, plan: &Plan, hold: &Hold) -> Result<usize, StepError> {
        check_hold(plan, hold)?;
        Ok(hold.kill()?)
    }

    /// Sees to it that nothing brings a drained unit back: its supervisor's stop. Call it the moment
    /// [`Hold::root_ended`]; where no signal drains it ([`Plan::drain`] is `None`), at once. Waits as long as its
    /// supervisor says that it is being stopped: what is left of it may take the unit's own time to end
    /// (`TimeoutStopSec=`, `stopwaitsecs`), after which its supervisor kills it.
    ///
    /// # Errors
    /// [`StepError::NewLife`] where it was brought back long enough ago to have work in hand, as after a restart of the
    /// agent or of the machine: nothing is stopped. [`StepError::ComesBack`] where it is up again all the same or its
    /// supervisor does not take the order.
    pub async fn hold_down(&self, plan: &Plan) -> Result<Told, StepError> {
        if !plan.supervisor.can_stop() {
            return Ok(Told::Already);
        }
        if let Some(life) = self.new_life(plan).await {
            return Err(StepError::NewLife(life));
        }
        let told = match supervisor::stop(&self.reach, &plan.supervisor).await {
            // What its supervisor no longer knows, nobody brings back.
            Err(Error::NoSuch { .. }) => return Ok(Told::Already),
            told => told?,
        };
        let (mut asked, mut stopping) = (0, 0);
        loop {
            match self.state(plan).await {
                SlotState::Stopped | SlotState::Gone | SlotState::GaveUp { .. } => return Ok(told),
                SlotState::Stopping => stopping += 1,
                seen if asked >= STOPS => return Err(StepError::ComesBack(format!("{seen:?}"))),
                _ => asked += 1,
            }
            let takes_long = stopping > STOPS;
            tokio::time::sleep(if takes_long { LONG_STOP_INTERVAL } else { NOTICE_INTERVAL }).await;
        }
    }

    /// Gives a drained unit back: its supervisor's start, or the configured command.
    ///
    /// # Errors
    /// [`StepError`] where nobody takes the order.
    pub async fn release(&self, plan: &Plan, now: Moment) -> Result<Told, StepError> {
        if let Some(command) = plan.start_command() {
            command.start().await?;
            return Ok(Told::Asked);
        }
        if let BringsBack::Never { why } = &plan.back {
            return Err(StepError::Nobody(why.clone()));
        }
        if let SlotState::Up { .. } | SlotState::Starting = self.state(plan).await {
            return Ok(Told::Already);
        }
        self.admit(plan, now)?;
        Ok(supervisor::start(&self.reach, &plan.supervisor).await?)
    }

    /// Names the process that is up in the slot in place of the one that was planned for, and may have work in hand.
    async fn new_life(&self, plan: &Plan) -> Option<String> {
        let old = plan.main?;
        // What does not answer, or is on its way up or down, has nothing at work that would be lost.
        let main = match supervisor::state(&self.reach, &plan.supervisor).await {
            SlotState::Up { main_pid } => proc::identify(main_pid)?,
            _ => return None,
        };
        let is_at_work = |life: &ProcessIdentity| proc::age(life).is_some_and(|age| age >= AT_WORK);
        if (main.pid, main.start_ticks) != (old.pid, old.start_ticks) {
            return is_at_work(&main).then(|| format!("process {} is up", main.pid));
        }
        if main.pid == plan.root.pid {
            return None;
        }
        // A wrapper has stayed, and may have started another worker. What has outlived the old one is not its child.
        let is_worker = |pid| procfs::command(pid).is_ok_and(|words| recognise(&words) == Nature::Worker(plan.kind));
        proc::descendants(main.pid)
            .into_iter()
            .filter(|life| life.start_ticks > plan.root.start_ticks && is_at_work(life))
            // Any other program below a wrapper would pass for a plain worker.
            .find(|life| plan.kind != Kind::Python && is_worker(life.pid))
            .map(|life| format!("process {} is up", life.pid))
    }

    /// Waits, within a bound, until the supervisor has noticed that the old process ended, and tells what it then
    /// makes of it. Asked too early it says *already started*, and nobody would ever start it.
    async fn settled(&self, plan: &Plan) -> Result<Settled, StepError> {
        let mut why = String::new();
        for _ in 0..NOTICES {
            let verdict = match supervisor::look(&self.reach, &plan.supervisor).await? {
                Look::Systemd(service) => settled_systemd(plan, &service)?,
                Look::Supervisord(program) => settled_supervisord(plan, &program)?,
                Look::Nobody { why } => return Err(StepError::Nobody(why)),
            };
            match verdict {
                Ok(settled) => return Ok(settled),
                Err(reason) => why = reason,
            }
            tokio::time::sleep(NOTICE_INTERVAL).await;
        }
        Err(still_up(plan, &why))
    }

    /// Makes room for one more start of ours, or says when there will be.
    fn admit(&self, plan: &Plan, now: Moment) -> Result<(), StepError> {
        let Some(limit) = plan.start_limit else { return Ok(()) };
        let interval = Duration::from_millis(limit.interval_ms);
        let mut starts = self.starts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let starts = starts.entry(plan.slot.clone()).or_default();
        starts.retain(|start| now.since(*start) < interval);
        let allowed = limit.allowed();
        let full = u32::try_from(starts.len()).unwrap_or(u32::MAX) >= allowed;
        if let Some(first) = starts.first().filter(|_| full) {
            let wait = interval.saturating_sub(now.since(*first));
            return Err(StepError::StartLimit { allowed, wait });
        }
        starts.push(now);
        Ok(())
    }

    /// Counts a start that cannot be put off: the unit is down.
    fn record(&self, plan: &Plan, now: Moment) {
        let mut starts = self.starts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let starts = starts.entry(plan.slot.clone()).or_default();
        // The stop before it has counted it already, unless an earlier life of the agent did that.
        if starts.is_empty() {
            starts.push(now);
        }
    }
}

/// What a supervisor makes of the slot, once it has noticed the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    Up,
    Down,
}

fn settled_systemd(plan: &Plan, service: &systemd::Service) -> Result<Result<Settled, String>, StepError> {
    let by_other = || StepError::Supervisor(Error::StoppedByOther { name: service.name.clone() });
    Ok(match service.state() {
        SlotState::Up { main_pid } if service.invocation == plan.invocation => {
            Err(format!("systemd still watches process {main_pid}"))
        }
        SlotState::Up { .. } | SlotState::Starting | SlotState::Crashing { .. } => Ok(Settled::Up),
        SlotState::Stopped | SlotState::Stopping | SlotState::GaveUp { .. }
            if service.was_stopped_by_order() && !service.has_job =>
        {
            return Err(by_other());
        }
        // After an end in order it would be on its way up: somebody has stopped it, and systemd has forgotten when.
        SlotState::Stopped if plan.back == BringsBack::ByItself => return Err(by_other()),
        SlotState::Stopping => Err("systemd is stopping what is left of it".to_owned()),
        SlotState::GaveUp { why } if service.result == "start-limit-hit" => {
            let what = format!("to start {}", service.name);
            return Err(StepError::Supervisor(Error::Refused { who: "systemd".to_owned(), what, why }));
        }
        _ => Ok(Settled::Down),
    })
}

fn settled_supervisord(plan: &Plan, program: &supervisord::Program) -> Result<Result<Settled, String>, StepError> {
    use supervisord::State;
    let is_old = plan.main.is_some_and(|main| {
        let now = proc::stat(Pid(program.pid)).map(|stat| stat.start_ticks);
        main.pid.0 == program.pid && now.is_none_or(|start| start == main.start_ticks)
    });
    Ok(match program.state {
        State::Running if is_old => Err(format!("supervisord still watches process {}", program.pid)),
        State::Running | State::Starting | State::Backoff => Ok(Settled::Up),
        // Nothing of ours stops a program before it is started: only an operator leaves it so.
        State::Stopped | State::Stopping => {
            return Err(StepError::Supervisor(Error::StoppedByOther { name: program.name.clone() }));
        }
        State::Fatal => {
            let what = format!("to start {}", program.name);
            let (who, why) = ("supervisord".to_owned(), program.words.clone());
            return Err(StepError::Supervisor(Error::Refused { who, what, why }));
        }
        State::Exited | State::Unknown => Ok(Settled::Down),
    })
}

fn still_up(plan: &Plan, why: &str) -> StepError {
    StepError::Supervisor(Error::StillUp { name: plan.slot.to_string(), why: why.to_owned() })
}

/// A hold on another unit must never be acted on.
fn check_hold(plan: &Plan, hold: &Hold) -> Result<(), StepError> {
    if hold
        .identities()
        .first()
        .is_some_and(|root| root.pid == plan.root.pid && root.start_ticks == plan.root.start_ticks)
    {
        return Ok(());
    }
    Err(StepError::Hold(HoldError::Changed(plan.root.pid)))
}
