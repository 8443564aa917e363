//! Actions under way: what the hands need between two steps.

use super::verify::verify;
use super::{Config, Input};
use crate::eyes::Preflight;
use crate::process::Unit;
use crate::purge::{Mode as PurgeMode, Outcome, Purger};
use crate::restart::{Hands, Hold, Plan, Refusal, StartCommand, StepError, UnitConfig};
use crate::survey::{Allow, Asked, Survey, Surveyor};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use unstale_protocol::host::{Host, PurgeResult, Record, SlotRecord};
use unstale_protocol::ids::{AppName, ProcessIdentity, SlotId};
use unstale_protocol::message::{Done, DoneResult, Nonce, Purpose};
use unstale_protocol::restart::{Action as Step, Cleared, Intent, Task};
use unstale_protocol::time::Moment;
use unstale_protocol::verdict::{Cure, Verdict};

/// How often a process that has just started is looked at until it is ready.
const READY_INTERVAL: Duration = Duration::from_millis(500);
/// How often a unit is looked at again of which a process could not be read; a permit is held meanwhile.
const UNREAD_TRIES: u32 = 20;
/// How long a configured pre-flight command may take; a permit is held meanwhile.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);

/// What is written down as the means of an action.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Means {
    pub(super) plan: Plan,
    /// The whole tree at the time of stopping.
    tree: Vec<ProcessIdentity>,
}

impl Means {
    pub(super) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

/// One action between two steps.
#[derive(Debug)]
pub(crate) struct Act {
    plan: Plan,
    hold: Arc<Hold>,
    task: Task,
}

/// All actions under way on this host.
#[derive(Debug)]
pub(super) struct Acts {
    hands: Arc<Hands>,
    surveyor: Arc<Mutex<Surveyor>>,
    purger: Purger,
    allow: Allow,
    dry_run: bool,
    /// Each with the nonce of the action that it was made for.
    under_way: BTreeMap<SlotId, (Nonce, Arc<Act>)>,
}

impl Acts {
    /// Takes up what a killed agent had begun.
    pub(super) fn recover(config: &Config, hands: Arc<Hands>, surveyor: Arc<Mutex<Surveyor>>) -> Self {
        let mut under_way = BTreeMap::new();
        for record in &config.records {
            if let Record::Intent { intent, .. } = record
                && let Some(act) = again(intent)
            {
                under_way.insert(intent.slot.clone(), (intent.nonce, Arc::new(act)));
            }
        }
        let (purger, allow, dry_run) = (config.purger.clone(), config.rules.allow, config.dry_run);
        Self { hands, surveyor, purger, allow, dry_run, under_way }
    }

    /// Removes files that are proven stale.
    pub(super) fn purge(&self, tasks: &mut JoinSet<Input>, app: AppName, files: &BTreeSet<String>) {
        let mode = if self.dry_run || !self.allow.purge { PurgeMode::DryRun } else { PurgeMode::Remove };
        let (surveyor, purger, files) = (Arc::clone(&self.surveyor), self.purger.clone(), files.clone());
        tasks.spawn(async move {
            let (stale, roots) = surveyor.lock().await.purgeable(&app, &files);
            let roots: Vec<PathBuf> = roots.into_iter().map(PathBuf::from).collect();
            let mut result = PurgeResult::default();
            for (file, outcome) in stale.iter().zip(purger.purge(&stale, &roots, mode).await) {
                let path = file.path.to_string_lossy().into_owned();
                match outcome {
                    Outcome::Purged => {
                        tracing::info!(%app, file = %path, "removed stale bytecode");
                        result.removed.insert(path);
                    }
                    Outcome::Gone => {
                        // Removed by somebody else, which the next look will tell; or the worker has another root.
                        result.refused.insert(path, "it is not there as this agent sees files".into());
                    }
                    Outcome::WouldPurge => {
                        result.refused.insert(path, "purging is not allowed here".into());
                    }
                    Outcome::Refused { why } => {
                        tracing::warn!(%app, file = %path, error = %why, "stale bytecode could not be removed");
                        result.refused.insert(path, why.to_string());
                    }
                }
            }
            Input::Purged(app, result)
        });
    }

    /// Begins one step; its answer comes back as an input.
    pub(super) fn step(
        &mut self,
        tasks: &mut JoinSet<Input>,
        host: &Host,
        slot: SlotId,
        step: Step,
        asked: Asked,
        now: Moment,
    ) {
        tracing::info!(%slot, step = words(&step), "step");
        if step == Step::Preflight {
            let Some(intent) = host.intent(&slot).cloned() else { return };
            tasks.spawn(preflight(
                Arc::clone(&self.hands),
                Arc::clone(&self.surveyor),
                intent,
                asked,
                self.allow,
                self.dry_run,
            ));
            return;
        }
        if step == Step::Verify {
            let surveyor = Arc::clone(&self.surveyor);
            let apps = match host.intent(&slot).map(|intent| &intent.purpose) {
                Some(Purpose::Restart(apps)) => apps.keys().cloned().collect(),
                Some(Purpose::Drain(_)) | None => BTreeSet::new(),
            };
            tasks.spawn(async move { verify(&surveyor, slot, &apps, &asked).await });
            return;
        }
        let Some(act) = host.intent(&slot).and_then(|intent| self.act_for(intent)) else {
            tasks.spawn(async move { no_means(slot, &step) });
            return;
        };
        let hands = Arc::clone(&self.hands);
        // A supervisor starts nothing twice. A command does, and the agent may have been killed after it was run.
        let looks_first = step == Step::Start && act.plan.start_command().is_some();
        let surveyor = looks_first.then(|| Arc::clone(&self.surveyor));
        tasks.spawn(async move {
            if let Some(surveyor) = surveyor
                && is_up_again(&surveyor, &act.plan, &asked).await
            {
                return Input::Started(slot, Ok(()));
            }
            do_step(&hands, &act, slot, step, now).await
        });
    }

    /// Returns what was begun for this very action, or takes it up anew. The end of a drain and the beginning of its
    /// undrain can be one moment, and a drain's act would not give the unit back.
    fn act_for(&mut self, intent: &Intent) -> Option<Arc<Act>> {
        if let Some((nonce, act)) = self.under_way.get(&intent.slot)
            && *nonce == intent.nonce
            && act.task == intent.task
        {
            return Some(Arc::clone(act));
        }
        let act = Arc::new(again(intent)?);
        self.under_way.insert(intent.slot.clone(), (intent.nonce, Arc::clone(&act)));
        Some(act)
    }

    /// Feeds the answer of a step to the machine.
    pub(super) fn feed(&mut self, host: &mut Host, input: Input, now: Moment) {
        match input {
            Input::Preflighted(asked, answer) => self.preflighted(host, &asked, answer, now),
            Input::Stopped(slot, answer) => host.handle_stopped(&slot, answer, now),
            Input::Ended(slot) => host.handle_ended(&slot, now),
            Input::Started(slot, answer) => host.handle_started(&slot, answer, now),
            Input::Held(slot, answer) => host.handle_held(&slot, answer, now),
            Input::NewLife(slot, why) => {
                tracing::warn!(%slot, because = %why, "not held down");
                host.handle_new_life(&slot, why, now);
            }
            Input::Purged(app, result) => host.handle_purged(&app, &result, now),
            Input::Verified(slot, verified, _) => host.handle_verified(&slot, verified, now),
            Input::Surveyed(..) => {}
        }
        self.under_way.retain(|slot, _| host.intent(slot).is_some());
    }

    /// Takes what came of a pre-flight, unless another action has begun on its slot meanwhile.
    fn preflighted(
        &mut self,
        host: &mut Host,
        asked: &Intent,
        answer: Result<(Cleared, Box<Act>), String>,
        now: Moment,
    ) {
        let slot = &asked.slot;
        if host.intent(slot) != Some(asked) {
            tracing::info!(%slot, "what was checked was called back meanwhile");
            return;
        }
        let answer = answer.map(|(cleared, act)| {
            self.under_way.insert(slot.clone(), (asked.nonce, Arc::new(*act)));
            cleared
        });
        host.handle_preflight(asked, answer, now);
    }
}

/// Logs the actions that `records` end, one line each.
pub(super) fn log_ends(records: &[Record]) {
    let is_over =
        |slot: &SlotId| records.iter().any(|record| matches!(record, Record::IntentOver(over) if over == slot));
    for record in records {
        let Record::Slot(slot, Some(SlotRecord { done: Some(done), .. })) = record else { continue };
        if !is_over(slot) {
            continue;
        }
        let Done { because, elapsed_ms, .. } = done;
        match done.result {
            DoneResult::Restarted => tracing::info!(%slot, because, elapsed_ms, "restarted"),
            DoneResult::Drained => tracing::info!(%slot, because, elapsed_ms, "drained"),
            DoneResult::Undrained => tracing::info!(%slot, because, elapsed_ms, "given back"),
            DoneResult::Cancelled => tracing::info!(%slot, because, elapsed_ms, "called back"),
            DoneResult::Refused => tracing::warn!(%slot, because, elapsed_ms, "not begun"),
            DoneResult::Failed => tracing::warn!(%slot, because, elapsed_ms, "failed"),
            DoneResult::Unproven => tracing::warn!(%slot, because, elapsed_ms, "back, but not proven"),
        }
    }
}

/// What a step does, for the log.
fn words(step: &Step) -> &'static str {
    match step {
        Step::Preflight => "checking before anything is touched",
        Step::Persist(_) => "writing down what is done",
        Step::Stop => "telling it to stop",
        Step::AwaitEnd => "waiting for its end",
        Step::Kill => "killing what is left",
        Step::Start => "seeing that it comes back",
        Step::HoldDown => "seeing that it stays down",
        Step::Verify => "reading it again",
        Step::Finish(_) => "done",
    }
}

/// Takes hold again of a tree that a killed agent had been told to stop. What is gone has ended.
fn again(intent: &Intent) -> Option<Act> {
    let means = Means::parse(&intent.means)?;
    let hold = Hold::again(&means.tree).ok()?;
    Some(Act { plan: means.plan, hold: Arc::new(hold), task: intent.task.clone() })
}

fn no_means(slot: SlotId, step: &Step) -> Input {
    let why = || Err("what had been planned cannot be read back".to_owned());
    match step {
        Step::HoldDown => Input::Held(slot, why()),
        Step::AwaitEnd => Input::Ended(slot),
        _ => Input::Started(slot, why()),
    }
}

async fn preflight(
    hands: Arc<Hands>,
    surveyor: Arc<Mutex<Surveyor>>,
    intent: Intent,
    asked: Asked,
    allow: Allow,
    dry_run: bool,
) -> Input {
    let mut unread = 0;
    let mut passed = None;
    let no = |intent: Intent, why: String| Input::Preflighted(Box::new(intent), Err(why));
    loop {
        match clear(&hands, &surveyor, &intent, &asked, allow, dry_run, passed.as_ref()).await {
            Ok((cleared, act)) => {
                return Input::Preflighted(Box::new(intent), Ok((cleared, Box::new(act))));
            }
            Err(Unclear::NotTried(command)) => {
                // The surveyor is free meanwhile: other units are looked at and acted on.
                if let Err(error) = command.run(COMMAND_DEADLINE).await {
                    return no(intent, format!("it would not start again: its pre-flight {error}"));
                }
                tracing::info!(slot = %intent.slot, "the pre-flight command has succeeded");
                passed = Some(command);
                continue;
            }
            Err(Unclear::NotReady) => {}
            Err(Unclear::NotRead) if unread < UNREAD_TRIES => unread += 1,
            Err(Unclear::NotRead) => {
                let why = "a process of it could not be read again, so whether it would start again is not known";
                return no(intent, why.to_owned());
            }
            Err(Unclear::No(why)) => return no(intent, why),
        }
        // Nothing is held meanwhile, and everything is looked at again.
        tokio::time::sleep(READY_INTERVAL).await;
    }
}

/// Why nothing is begun.
enum Unclear {
    /// The process has just started; it will be ready in a moment, or is old enough to be refused.
    NotReady,
    /// A process did not hold still, or looking at it took too long; the next look may tell.
    NotRead,
    /// This command of the administrator must succeed first. It may take long: the next look is the one that counts.
    NotTried(StartCommand),
    /// For this reason.
    No(String),
}

impl From<String> for Unclear {
    fn from(why: String) -> Self {
        Self::No(why)
    }
}

impl From<&str> for Unclear {
    fn from(why: &str) -> Self {
        Self::No(why.to_owned())
    }
}

/// Looks at everything once more at the moment of action, plans, and takes hold of the tree.
async fn clear(
    hands: &Hands,
    surveyor: &Mutex<Surveyor>,
    intent: &Intent,
    asked: &Asked,
    allow: Allow,
    dry_run: bool,
    passed: Option<&StartCommand>,
) -> Result<(Cleared, Act), Unclear> {
    if dry_run {
        return Err("a dry run: nothing is done".into());
    }
    let mut surveyor = surveyor.lock().await;
    let survey = surveyor.survey(asked).await.map_err(|error| error.to_string())?;
    let unit = find(&survey, intent).ok_or("the unit is no longer the one that was judged")?;
    let facts = surveyor.facts(unit, survey.judged.get(&intent.identity));
    let config = surveyor.rules().units.clone();
    let refused = |refusal: Refusal| {
        if refusal.may_pass(&intent.identity) { Unclear::NotReady } else { Unclear::No(refusal.to_string()) }
    };
    let plan = match (&intent.task, &intent.purpose) {
        (Task::Drain { force, .. }, _) => {
            let plan = hands.plan_drain(unit, &facts, &config).await.map_err(refused)?;
            if !plan.can_be_given_back() && !force {
                return Err(
                    "it cannot be given back: nothing would start it again; --force drains it all the same".into()
                );
            }
            plan
        }
        (_, Purpose::Restart(apps)) => {
            still_stale(&survey, intent, apps.keys())?;
            let plan = hands.plan(unit, &facts, &config).await.map_err(refused)?;
            match surveyor.preflight(unit, apps.keys().next()).await {
                Preflight::Clear => {}
                Preflight::Refused(why) => return Err(format!("it would not start again: {why}").into()),
                Preflight::Unclear => return Err(Unclear::NotRead),
            }
            plan
        }
        (_, Purpose::Drain(_)) => return Err("an action without a purpose".into()),
    };
    if let Some(why) = allow.refusal(&plan) {
        return Err(why.into());
    }
    if let Some(command) = untried(intent, unit, &config, passed) {
        return Err(Unclear::NotTried(command));
    }
    for note in &plan.notes {
        tracing::info!(slot = %intent.slot, %note, "worth knowing");
    }
    let hold = Hold::take(unit).map_err(|error| error.to_string())?;
    let means = Means { plan: plan.clone(), tree: hold.identities() };
    let text = serde_json::to_string(&means).map_err(|error| error.to_string())?;
    let cleared = Cleared { means: text, ends_root: plan.ends_root() };
    Ok((cleared, Act { plan, hold: Arc::new(hold), task: intent.task.clone() }))
}

/// Returns the configured pre-flight command of a unit that is to be restarted, unless it is the one that has passed.
/// As with the static one, a drain by hand asks for none.
fn untried(intent: &Intent, unit: &Unit, config: &[UnitConfig], passed: Option<&StartCommand>) -> Option<StartCommand> {
    if intent.task != Task::Restart {
        return None;
    }
    let command = config.iter().filter(|entry| entry.fits(unit)).find_map(|entry| entry.preflight_command(unit))?;
    (passed != Some(&command)).then_some(command)
}

fn find<'a>(survey: &'a Survey, intent: &Intent) -> Option<&'a Unit> {
    let unit = survey.units.iter().find(|unit| unit.slot == intent.slot)?;
    (unit.root()?.identity == intent.identity).then_some(unit)
}

/// Only evidence of this very moment restarts a unit.
fn still_stale<'a>(survey: &Survey, intent: &Intent, apps: impl Iterator<Item = &'a AppName>) -> Result<(), String> {
    let view = survey.scan.units.iter().find(|view| view.slot == intent.slot).ok_or("the unit is gone")?;
    for app in apps {
        match view.apps.get(app) {
            Some(judged) if judged.verdict == Verdict::Stale && judged.cure == Cure::Restart => {}
            Some(judged) => {
                return Err(format!("looked at again it is {}: {}", judged.verdict.as_str(), judged.because));
            }
            None => return Err(format!("it no longer belongs to {app}")),
        }
    }
    Ok(())
}

/// Tells whether the slot has a new life already. What cannot be looked at is taken to be down: it was told to end.
async fn is_up_again(surveyor: &Mutex<Surveyor>, plan: &Plan, asked: &Asked) -> bool {
    let survey = surveyor.lock().await.survey(asked).await;
    let is_new = |unit: &Unit| unit.slot == plan.slot && unit.root().is_some_and(|root| root.identity != plan.root);
    survey.is_ok_and(|survey| survey.units.iter().any(is_new))
}

async fn do_step(hands: &Hands, act: &Act, slot: SlotId, step: Step, now: Moment) -> Input {
    let is_drain = matches!(act.task, Task::Drain { .. });
    match step {
        Step::Stop => {
            let answer =
                if is_drain { hands.drain(&act.plan, &act.hold) } else { hands.stop(&act.plan, &act.hold, now).await };
            Input::Stopped(slot, answer.map_err(|error| error.to_string()))
        }
        Step::AwaitEnd => {
            if is_drain && act.plan.drain.is_some() {
                act.hold.root_ended().await;
            } else if !is_drain {
                hands.ended(&act.plan, &act.hold).await;
            }
            Input::Ended(slot)
        }
        Step::Kill => {
            if let Err(error) = hands.kill(&act.plan, &act.hold) {
                tracing::warn!(%slot, %error, "could not kill");
            }
            hands.ended(&act.plan, &act.hold).await;
            Input::Ended(slot)
        }
        Step::Start => {
            let told = match act.task {
                Task::Undrain => hands.release(&act.plan, now).await,
                Task::Restart | Task::Drain { .. } => hands.start(&act.plan, now).await,
            };
            Input::Started(slot, told.map(|_| ()).map_err(|error| error.to_string()))
        }
        Step::HoldDown => match hands.hold_down(&act.plan).await {
            Err(error @ StepError::NewLife(_)) => Input::NewLife(slot, error.to_string()),
            told => Input::Held(slot, told.map(|_| ()).map_err(|error| error.to_string())),
        },
        Step::Preflight | Step::Verify | Step::Persist(_) | Step::Finish(_) => Input::Ended(slot),
    }
}
