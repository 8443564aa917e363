//! Seeing one host: its processes, what they hold, what they would load at their next start.
//!
//! The eyes own the reader, the parser and all caches. They look when told to and decide nothing: what they saw
//! is judged in [`crate::judge`]. Called by `inspect` once, by the agent's driver again and again.

mod claims;
mod code;
mod directory;
mod preflight;
mod sight;
mod summaries;
mod supervisors;
mod views;

pub use claims::{AppRules, Claim, Claims, Directory, KnownManifest};
pub(crate) use claims::{Seen, lies_below};
pub use preflight::Preflight;

use crate::child::{self, Program};
use crate::discover::{self, Discovery};
use crate::judge::{CodeView, obstacle};
use crate::parser::Parser;
use crate::process::{Process, Unit};
use crate::reader::Reader;
use crate::reading::{Outcome, Reading};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use summaries::Summaries;
use supervisors::Supervisors;
use unstale_protocol::host::Numbering;
use unstale_protocol::ids::ProcessIdentity;
use unstale_protocol::manifest::Manifest;

/// How many looks in a row a process without `enum` is taken to be starting; full looks go on reading it.
const STARTING_LOOKS: u32 = 60;
/// How many looks in a row a process may cost the reader its deadline, and with it all that it remembers; full looks
/// go on reading it.
const TIMEOUT_LOOKS: u32 = 3;

/// What a look should cover.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LookOptions {
    /// Also the standard library and installed packages.
    pub all: bool,
    /// Directories whose modules count as the app's wherever they lie; with `only_roots` nothing else does.
    pub roots: Vec<String>,
    /// The root that configuration names for an app, by which the next start is known.
    pub next_root: Option<String>,
}

/// What was seen of one process.
#[derive(Clone, Debug)]
pub struct Sight {
    /// Its memory.
    pub reading: Reading,
    /// Its code at the next start.
    pub code: Arc<CodeView>,
}

impl Sight {
    /// Returns why it is not known what the process holds, where that is so.
    pub(crate) fn obstacle(&self) -> Option<String> {
        obstacle(&self.reading).or_else(|| self.code.problem.clone())
    }

    /// Tells whether another process was seen to hold the same and to load the same at its next start.
    pub(crate) fn holds_the_same(&self, other: &Self) -> bool {
        let Reading { identity: _, outcome, interpreter, modules, enums, mapped, cost: _ } = &self.reading;
        let other_reading = &other.reading;
        Arc::ptr_eq(&self.code, &other.code)
            && *outcome == other_reading.outcome
            && *interpreter == other_reading.interpreter
            && *modules == other_reading.modules
            && *enums == other_reading.enums
            && *mapped == other_reading.mapped
    }
}

/// The eyes of one host.
#[derive(Debug)]
pub struct Eyes {
    reader: Reader,
    parser: Parser,
    discovery: Discovery,
    summaries: Summaries,
    sights: BTreeMap<ProcessIdentity, Arc<Sight>>,
    /// How many looks in a row were in vain, of those processes that are not waited for without end.
    in_vain: BTreeMap<ProcessIdentity, u32>,
    supervisors: Supervisors,
    /// The parser is started before it is needed.
    is_in_a_hurry: bool,
}

impl Eyes {
    /// Opens the eyes. `reader` and `parser` say how the two helper processes are started.
    pub fn new(reader: Program, parser: Program) -> Self {
        Self {
            reader: Reader::new(reader),
            parser: Parser::new(parser),
            discovery: Discovery::new(),
            summaries: Summaries::default(),
            sights: BTreeMap::new(),
            in_vain: BTreeMap::new(),
            supervisors: Supervisors::default(),
            is_in_a_hurry: false,
        }
    }

    /// Begins with the numbers of equal units that earlier eyes had given, if they are of this boot.
    pub fn recall(&mut self, kept: &Numbering, boot_id: &str) {
        self.discovery.recall(kept, boot_id);
    }

    /// For a look that is the only one: starts the reader, so that it gets ready while processes are listed, and the
    /// parser as soon as the reader has something to do.
    pub fn prepare(&mut self) {
        self.reader.prepare();
        self.is_in_a_hurry = true;
    }

    /// Lets the next list of processes rest on nothing that was known of them.
    pub fn recheck(&mut self) {
        self.discovery.recheck();
    }

    /// Lists processes and the units they form.
    ///
    /// # Errors
    /// [`child::Error`] where the reader had no answer.
    pub async fn units(&mut self) -> Result<Arc<discover::Scan>, child::Error> {
        self.parser.reap();
        let scan = self.discovery.scan(&mut self.reader).await?;
        if scan.unnamed.is_empty() {
            return Ok(scan);
        }
        // Where supervisord does not answer the unit keeps the name that its environment gave it.
        let names = self.supervisors.names(&scan.unnamed).await;
        let is_named = !names.is_empty();
        for (started, name) in names {
            self.discovery.name_program(started, name);
        }
        if is_named { self.discovery.scan(&mut self.reader).await } else { Ok(scan) }
    }

    /// Looks at all processes of `units` and forgets all others. With `again` false, a process that was seen before
    /// keeps what was seen.
    pub async fn look(&mut self, units: &[Unit], options: &LookOptions, manifests: &[Arc<Manifest>], again: bool) {
        if again {
            self.supervisors.forget_directories();
        }
        let mut seen = BTreeMap::new();
        let mut due = Vec::new();
        for (unit, process) in processes(units) {
            let known = self.sights.get(&process.identity);
            match known.filter(|sight| !again && !self.is_due(&process.identity, sight)) {
                Some(sight) => {
                    seen.insert(process.identity, Arc::clone(sight));
                }
                None => due.push((unit, process)),
            }
        }
        seen.extend(self.sights_of(&due, options, manifests).await);
        for (identity, sight) in &seen {
            self.count(*identity, sight);
        }
        self.sights = seen;
        self.in_vain.retain(|identity, _| self.sights.contains_key(identity));
        self.summaries.end_look(again);
    }

    /// Looks once at those processes of `units` that are wanted.
    pub async fn look_at(&mut self, units: &[Unit], options: &LookOptions, is_wanted: &dyn Fn(&Process) -> bool) {
        let wanted: Vec<(&Unit, &Process)> = processes(units).filter(|(_, process)| is_wanted(process)).collect();
        let sights = self.sights_of(&wanted, options, &[]).await;
        self.sights.extend(sights);
        self.summaries.end_look(true);
    }

    /// Tells whether everything that was seen needs no second look.
    pub fn has_settled(&self) -> bool {
        self.sights.iter().all(|(identity, sight)| !self.is_due(identity, sight))
    }

    /// Tells whether a process must be looked at again.
    fn is_due(&self, identity: &ProcessIdentity, sight: &Sight) -> bool {
        let looks = self.in_vain.get(identity).copied().unwrap_or_default();
        !is_settled(sight) && patience(&sight.reading.outcome).is_none_or(|most| looks < most)
    }

    fn count(&mut self, identity: ProcessIdentity, sight: &Sight) {
        if patience(&sight.reading.outcome).is_some() {
            let looks = self.in_vain.entry(identity).or_default();
            *looks = looks.saturating_add(1);
        } else {
            self.in_vain.remove(&identity);
        }
    }

    /// Returns what was last seen of a process.
    pub fn seen(&self, identity: &ProcessIdentity) -> Option<&Arc<Sight>> {
        self.sights.get(identity)
    }
}

/// Returns each process with its unit.
fn processes(units: &[Unit]) -> impl Iterator<Item = (&Unit, &Process)> {
    units.iter().flat_map(|unit| unit.processes.iter().map(move |process| (unit, process)))
}

/// Returns how many looks in a row may end like this before only full looks go on; `None` where it soon changes.
fn patience(outcome: &Outcome) -> Option<u32> {
    match outcome {
        Outcome::NoEnum => Some(STARTING_LOOKS),
        Outcome::Timeout => Some(TIMEOUT_LOOKS),
        _ => None,
    }
}

/// What was seen too early, or not at all, is looked at again.
fn is_settled(sight: &Sight) -> bool {
    match &sight.reading.outcome {
        Outcome::Complete => !sight.reading.modules.iter().any(|module| module.initializing),
        Outcome::Denied(_) | Outcome::Unsupported(_) => true,
        Outcome::Starting(_)
        | Outcome::NoEnum
        | Outcome::Changing(_)
        | Outcome::Gone
        | Outcome::Limit(_)
        | Outcome::Damaged(_)
        | Outcome::Timeout => false,
    }
}

/// Tells whether a process could have code below one of the roots, before it is read: its directory or an argument
/// lies there, or its directory cannot be seen.
pub(crate) fn may_lie_below(process: &Process, roots: &[String]) -> bool {
    let is_below = |path: &str| roots.iter().any(|root| Path::new(path).starts_with(root));
    process.cwd.as_deref().is_none_or(is_below) || process.command.iter().any(|argument| is_below(argument))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Kind;
    use unstale_protocol::ids::Pid;

    #[test]
    fn what_a_process_holds_is_known_only_where_all_of_it_was_read() {
        let check = |outcome: Outcome, problem: Option<&str>, is_known: bool| {
            let reading = Reading {
                identity: ProcessIdentity { pid: Pid(7), start_ticks: 1, pid_namespace: 0 },
                outcome,
                interpreter: None,
                modules: Vec::new(),
                enums: Vec::new(),
                mapped: Vec::new(),
                cost: crate::reading::Cost::default(),
            };
            let code = Arc::new(CodeView { problem: problem.map(str::to_owned), ..CodeView::default() });
            let sight = Sight { reading, code };
            assert_eq!(sight.obstacle().is_none(), is_known, "{sight:?}");
        };
        check(Outcome::Complete, None, true);
        check(Outcome::Complete, Some("its root cannot be opened"), false);
        check(Outcome::Timeout, None, false);
        check(Outcome::Changing("a class".to_owned()), None, false);
        check(Outcome::Damaged("a type".to_owned()), None, false);
    }

    #[test]
    fn a_process_that_plainly_runs_elsewhere_is_told_by_its_directory_and_arguments() {
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
