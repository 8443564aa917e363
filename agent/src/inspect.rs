//! What the Python workers of this host hold, and whether it is what their source says: the answer of
//! `inspect`. No configuration, no coordinator; it changes nothing.

use crate::child;
use crate::eyes::{Eyes, LookOptions, Sight, lies_below};
use crate::judge::{WorkerJudged, against_source};
use crate::process::{Process, Role, Unit};
use crate::reading::{Cost, Outcome};
use std::collections::BTreeSet;
use std::path::Path;
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
    /// The judgement.
    pub judged: WorkerJudged,
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
    for unit in listed.units {
        if unit.processes.iter().any(is_wanted) {
            units.push(unit);
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
struct Judge(Option<(Arc<Sight>, WorkerJudged)>);

impl Judge {
    fn judge(&mut self, sight: &Arc<Sight>) -> WorkerJudged {
        if let Some((last, judged)) = &self.0
            && last.holds_the_same(sight)
        {
            return judged.clone();
        }
        let judged = against_source(&sight.reading, &sight.code);
        self.0 = Some((Arc::clone(sight), judged.clone()));
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
        (Outcome::Complete, Some(why)) => WorkerJudged::unknown(why.clone()),
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

/// Tells whether a process that was not read could have code below one of the roots: its directory or an argument
/// lies there, or its directory cannot be seen.
fn may_lie_below(process: &Process, roots: &[String]) -> bool {
    let is_below = |path: &str| roots.iter().any(|root| Path::new(path).starts_with(root));
    process.cwd.as_deref().is_none_or(is_below) || process.command.iter().any(|argument| is_below(argument))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Kind;
    use unstale_protocol::ids::ProcessIdentity;

    #[test]
    fn what_cannot_be_read_is_left_out_only_where_it_plainly_runs_elsewhere() {
        let check = |cwd: Option<&str>, command: &[&str], expected: bool| {
            let process = Process {
                identity: ProcessIdentity { pid: Pid(7), start_ticks: 1, pid_namespace: 0 },
                parent: Pid(1),
                uid: 0,
                user: "root".to_owned(),
                started_at_ms: 0,
                command: command.iter().map(|&word| word.to_owned()).collect(),
                kind: Kind::Python,
                titled: false,
                has_terminal: false,
                cgroup: String::new(),
                mount_namespace: 0,
                caught_signals: 0,
                cwd: cwd.map(str::to_owned),
                environment: Vec::new(),
                denied: None,
            };
            assert_eq!(may_lie_below(&process, &["/srv/shop".to_owned()]), expected, "{cwd:?} {command:?}");
        };
        check(Some("/srv/shop/app"), &["python"], true);
        check(Some("/srv/shop"), &["python"], true);
        check(Some("/"), &["/srv/shop/venv/bin/python", "-m", "app"], true);
        check(None, &["python"], true);
        check(Some("/srv/shopping"), &["python", "-m", "shop"], false);
        check(Some("/srv/other"), &["python"], false);
    }
}
