//! What the Python workers of this host hold, and whether it is what their source says: the answer of
//! `inspect`. No configuration, no coordinator; it changes nothing.

use crate::child;
use crate::eyes::{Eyes, LookOptions, Sight, lies_below, may_lie_below};
use crate::judge::{WorkerJudged, against_source};
use crate::process::{Process, Role, Unit};
use crate::reading::{Cost, Outcome};
use std::collections::BTreeSet;
use std::sync::Arc;
use unstale_protocol::ids::Pid;

/// What to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InspectOptions {
    /// Only these processes; what cannot be read of them is unknown.
    pub pids: Vec<Pid>,
    /// Only workers whose code lies below these directories; what cannot be read is unknown.
    pub roots: Vec<String>,
    /// Also enums of the standard library and of installed packages.
    pub all: bool,
    /// Our own user id: processes of others that cannot be read are counted, not listed.
    pub uid: u32,
}

/// The answer.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// Workers with enums of an app, and those that were asked for or are ours and cannot be read.
    pub workers: Vec<InspectedWorker>,
    /// Python processes without an enum of an app.
    pub without_enums: u32,
    /// Python processes of other users that may not be read.
    pub unreadable: u32,
    /// Asked-for pids that are no Python process, or no process at all.
    pub missing: Vec<Pid>,
}

/// One process, judged against its own next-start source.
#[derive(Clone, Debug)]
pub struct InspectedWorker {
    /// The process.
    pub process: Process,
    /// Its place in its unit.
    pub role: Role,
    /// The unit; shared by all its processes.
    pub unit: Arc<Unit>,
    /// Its whole Python version, where it was read.
    pub python: Option<String>,
    /// The judgement; processes that hold the same share one.
    pub judged: Arc<WorkerJudged>,
    /// What reading it cost.
    pub cost: Cost,
}

/// Looks once at this host.
///
/// # Errors
/// [`child::Error`] where the reader had no answer at all.
pub async fn inspect(eyes: &mut Eyes, options: &InspectOptions) -> Result<Inspection, child::Error> {
    eyes.prepare();
    let listed = eyes.units().await?;
    let wanted: BTreeSet<Pid> = options.pids.iter().copied().collect();
    let is_wanted = |process: &Process| wanted.is_empty() || wanted.contains(&process.identity.pid);
    let mut units = Vec::new();
    for unit in &listed.units {
        if unit.processes.iter().any(is_wanted) {
            units.push(unit.clone());
        }
    }
    let look = LookOptions { all: options.all, roots: options.roots.clone(), next_root: None };
    eyes.look_at(&units, &look, &is_wanted).await;
    let mut inspection = Inspection::default();
    let mut judge = Judge::default();
    let mut found = BTreeSet::new();
    for unit in units {
        let unit = Arc::new(unit);
        for process in unit.processes.iter().filter(|process| is_wanted(process)) {
            found.insert(process.identity.pid);
            let Some(sight) = eyes.seen(&process.identity).cloned() else { continue };
            add(&mut inspection, &mut judge, &unit, process, &sight, options);
        }
    }
    inspection.missing = wanted.difference(&found).copied().collect();
    Ok(inspection)
}

/// Judges each thing once: forked children mostly hold what their siblings hold.
#[derive(Default)]
struct Judge(Option<(Arc<Sight>, Arc<WorkerJudged>)>);

impl Judge {
    fn judge(&mut self, sight: &Arc<Sight>) -> Arc<WorkerJudged> {
        if let Some((last, judged)) = &self.0
            && last.holds_the_same(sight)
        {
            return Arc::clone(judged);
        }
        let judged = Arc::new(against_source(&sight.reading, &sight.code));
        self.0 = Some((Arc::clone(sight), Arc::clone(&judged)));
        judged
    }
}

fn add(
    inspection: &mut Inspection,
    judge: &mut Judge,
    unit: &Arc<Unit>,
    process: &Process,
    sight: &Arc<Sight>,
    options: &InspectOptions,
) {
    let is_asked_for = !options.pids.is_empty();
    match &sight.reading.outcome {
        Outcome::Complete if !options.roots.is_empty() && !lies_below(&sight.code, &options.roots) => return,
        // Where its code lies is not known: its directory and its command line tell whether it can be meant.
        outcome
            if *outcome != Outcome::Complete
                && !options.roots.is_empty()
                && !is_asked_for
                && !may_lie_below(process, &options.roots) =>
        {
            return;
        }
        Outcome::NoEnum if !is_asked_for => {
            inspection.without_enums += 1;
            return;
        }
        // What ended meanwhile holds nothing.
        Outcome::Gone if !is_asked_for => return,
        Outcome::Denied(_) if process.uid != options.uid && !is_asked_for && options.roots.is_empty() => {
            inspection.unreadable += 1;
            return;
        }
        _ => {}
    }
    let judged = match (&sight.reading.outcome, &sight.code.problem) {
        (Outcome::Complete, Some(why)) => Arc::new(WorkerJudged::unknown(why.clone())),
        _ => judge.judge(sight),
    };
    if judged.enums.is_empty() && judged.verdict.is_none() && !is_asked_for {
        inspection.without_enums += 1;
        return;
    }
    let is_root = unit.root().is_some_and(|root| root.identity == process.identity);
    inspection.workers.push(InspectedWorker {
        process: process.clone(),
        role: if is_root { Role::Main } else { Role::Child },
        unit: Arc::clone(unit),
        python: sight.reading.interpreter.as_ref().map(|interpreter| interpreter.release.clone()),
        judged,
        cost: sight.reading.cost,
    });
}
