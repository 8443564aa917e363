//! Which Python processes are there, and which of them form a unit?
//!
//! [`Discovery`] keeps the list between two looks, so that a look costs at most one `stat` per process and details are
//! asked from the reader only for those that are new or have changed. Command lines name and group processes;
//! whether they are fresh is decided by their memory alone. Called by the agent's loop every two seconds, and
//! by `inspect` once.

mod command;
mod slot;
mod supervisor;
mod units;

pub use command::app_packages;
pub(crate) use command::{Nature, recognise, serves_its_parent};
pub(crate) use slot::numbering;
pub(crate) use supervisor::own as own_supervisor;
pub use units::Unnamed;

use crate::child;
use crate::process::{Process, Unit};
use crate::procfs::{self, Facts, Interpreter, Stat};
use crate::reader::Reader;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, ThreadKind};
use units::{Ancestor, Family, Known};
use unstale_protocol::host::Numbering;
use unstale_protocol::ids::{Pid, ProcessIdentity};

/// A process younger than this may still execute what it really is, in seconds.
const YOUNG_S: u64 = 60;
/// An older one is looked at again every so many looks.
const RECHECK_LOOKS: u64 = 8;
/// And with all details in every so many of those looks in which everything is looked at again: one question to the
/// reader about many costs less than many questions.
const DETAILS_ROUNDS: u64 = 8;
/// A worker beside which no process came or went can only have ended unnoticed by its parent, or have executed something
/// else: that is looked for every so many looks.
const CALM_LOOKS: u64 = 4;

/// The answer of one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// All units, in the order of their slots.
    pub units: Vec<Unit>,
    /// Supervisors written in Python: not workers.
    pub supervisors: usize,
    /// Python processes whose details the kernel refused: they stand in `units`, but cannot be read.
    pub denied: usize,
    /// All processes of the host, kernel threads apart.
    pub processes: usize,
    /// Programs of a supervisord whose names only that supervisord knows.
    pub unnamed: Vec<Unnamed>,
}

/// What one process was at the last look when it was no Python.
#[derive(Clone, Debug)]
struct Stranger {
    start_s: u64,
    /// Its start in ticks and its name, once its details are known.
    seen: Option<(u64, String)>,
}

/// The list of processes between two looks.
#[derive(Debug, Default)]
pub struct Discovery {
    system: System,
    /// All numbers of processes at the last look.
    listed: BTreeSet<Pid>,
    python: BTreeMap<Pid, Known>,
    strangers: BTreeMap<Pid, Stranger>,
    /// Processes that ended, or whose number has a new owner, by their own `stat`: what `system` says of them is old.
    outdated: BTreeSet<Pid>,
    numbers: slot::Numbers,
    programs: BTreeMap<ProcessIdentity, String>,
    users: BTreeMap<u32, String>,
    looks: u64,
    /// The next look asks about every process there is.
    is_thorough: bool,
    /// The last answer, as long as it is the same.
    last: Option<Arc<Scan>>,
}

impl Discovery {
    /// Returns a discovery that has seen nothing yet.
    pub fn new() -> Self {
        Self { is_thorough: true, ..Self::default() }
    }

    /// Begins with the numbers of equal units that an earlier life of the agent had given, if they are of this boot.
    pub fn recall(&mut self, kept: &Numbering, boot_id: &str) {
        self.numbers = slot::Numbers::recalled(kept, boot_id);
    }

    /// Lets the next look take nothing for known that the kernel can be asked about.
    pub fn recheck(&mut self) {
        self.is_thorough = true;
    }

    /// Remembers the name `GROUP:PROGRAM` of the process that a supervisord started, as it says itself.
    ///
    /// Forgotten when that process has ended.
    pub fn name_program(&mut self, started: ProcessIdentity, name: impl Into<String>) {
        self.programs.insert(started, name.into());
        self.last = None;
    }

    /// Looks at all processes. The answer is the very same one as long as nothing of it changes.
    ///
    /// # Errors
    /// [`child::Error`] where the reader had no answer; what was known stays known.
    pub async fn scan(&mut self, reader: &mut Reader) -> Result<Arc<Scan>, child::Error> {
        let before: Vec<(ProcessIdentity, Pid)> = self.relations().collect();
        // What stands between a worker and its supervisor is looked at again with everything else.
        let is_whole = self.is_thorough || self.looks.is_multiple_of(RECHECK_LOOKS);
        let asked = self.list();
        let is_same = !is_whole && asked.is_empty() && before.into_iter().eq(self.relations());
        if let Some(last) = self.last.as_mut().filter(|_| is_same) {
            let processes = self.python.len() + self.strangers.len();
            if last.processes != processes {
                Arc::make_mut(last).processes = processes;
            }
            return Ok(Arc::clone(last));
        }
        self.last = None;
        let facts = reader.turn().await.facts(&asked).await?;
        self.learn(&asked, facts);
        let scan = Arc::new(self.assemble());
        self.last = Some(Arc::clone(&scan));
        Ok(scan)
    }

    /// Which Python processes there are, and whose children they are.
    fn relations(&self) -> impl Iterator<Item = (ProcessIdentity, Pid)> {
        self.python.values().map(|known| (known.facts.identity, known.facts.parent))
    }

    /// Brings the list of processes up to date: who came, who went, and whose own `stat` said otherwise at the last look.
    /// A kernel thread is asked about in a thorough look only: there are many, and they never turn into anything else.
    /// Returns whether nobody came or went.
    fn refresh(&mut self) -> bool {
        let kind = ProcessRefreshKind::nothing().without_tasks();
        let now = procfs::pids().unwrap_or_default();
        let is_calm = now == self.listed;
        self.listed.clone_from(&now);
        let is_thorough = std::mem::take(&mut self.is_thorough);
        if now.is_empty() || is_thorough {
            self.system.refresh_processes_specifics(ProcessesToUpdate::All, true, kind);
            return false;
        }
        let known = self.system.processes();
        let came = now.iter().map(|pid| sysinfo::Pid::from_u32(pid.0)).filter(|pid| !known.contains_key(pid));
        let went = known.keys().copied().filter(|pid| !now.contains(&Pid(pid.as_u32())));
        let outdated = std::mem::take(&mut self.outdated).into_iter().map(|pid| sysinfo::Pid::from_u32(pid.0));
        let some: Vec<sysinfo::Pid> = came.chain(went).chain(outdated).collect();
        if !some.is_empty() {
            self.system.refresh_processes_specifics(ProcessesToUpdate::Some(&some), true, kind);
        }
        is_calm
    }

    /// Lists all processes, drops what has ended, and returns those whose details are needed.
    fn list(&mut self) -> Vec<Pid> {
        let is_calm = self.refresh();
        let look = self.looks;
        self.looks = self.looks.wrapping_add(1);
        let mut asked = Vec::new();
        let mut alive = BTreeMap::new();
        for (pid, process) in self.system.processes() {
            if is_kernel(process)
                || matches!(process.status(), sysinfo::ProcessStatus::Zombie | sysinfo::ProcessStatus::Dead)
            {
                continue;
            }
            let pid = Pid(pid.as_u32());
            alive.insert(pid, (process.start_time(), process.run_time()));
        }
        self.python.retain(|pid, _| alive.contains_key(pid));
        self.strangers.retain(|pid, stranger| alive.get(pid).is_some_and(|(start_s, _)| *start_s == stranger.start_s));
        for (pid, (start_s, age_s)) in alive {
            let turn = look.wrapping_add(u64::from(pid.0));
            let is_young = age_s < YOUNG_S;
            let is_turn = is_young || turn.is_multiple_of(RECHECK_LOOKS);
            if self.python.contains_key(&pid) {
                if is_due(is_calm, is_young, turn) && self.is_changed(pid, is_turn) {
                    asked.push(pid);
                }
            } else if let Some(stranger) = self.strangers.get(&pid) {
                let stat = if is_turn { procfs::stat(pid).ok() } else { None };
                if stat.as_ref().is_some_and(|stat| stranger.is_over(stat)) {
                    self.strangers.remove(&pid);
                    self.outdated.insert(pid);
                } else if needs_details(look, pid) || stat.is_some_and(|stat| stranger.is_renamed(&stat)) {
                    asked.push(pid);
                }
            } else {
                self.strangers.insert(pid, Stranger { start_s, seen: None });
                asked.push(pid);
            }
        }
        asked
    }

    /// Takes note of a known process's parent, and tells whether its details must be read again.
    fn is_changed(&mut self, pid: Pid, is_turn: bool) -> bool {
        let Some(stat) = procfs::stat(pid).ok().filter(|stat| !stat.is_dead()) else {
            self.python.remove(&pid);
            self.outdated.insert(pid);
            return false;
        };
        let Some(known) = self.python.get_mut(&pid) else { return true };
        if stat.start_ticks != known.facts.identity.start_ticks {
            self.python.remove(&pid);
            self.outdated.insert(pid);
            return true;
        }
        known.facts.parent = stat.parent;
        // A program that executes itself again, or writes a title, keeps pid and start time.
        stat.comm != known.facts.comm
            || (is_turn && procfs::command(pid).is_ok_and(|command| command != known.facts.command))
    }

    /// Takes the details in; those asked for without an answer have ended.
    fn learn(&mut self, asked: &[Pid], facts: Vec<Facts>) {
        let mut answered: BTreeMap<Pid, Facts> = facts.into_iter().map(|facts| (facts.identity.pid, facts)).collect();
        for pid in asked {
            let Some(facts) = answered.remove(pid) else {
                self.python.remove(pid);
                continue;
            };
            if !is_python(&facts) {
                self.python.remove(pid);
                if let Some(stranger) = self.strangers.get_mut(pid) {
                    stranger.seen = Some((facts.identity.start_ticks, facts.comm));
                }
                continue;
            }
            self.strangers.remove(pid);
            let user = self.user(facts.uid);
            let new = Known::new(facts, user);
            let merged = match self.python.remove(pid) {
                Some(old) if old.facts.identity == new.facts.identity => renamed(old, new),
                _ => new,
            };
            self.python.insert(*pid, merged);
        }
    }

    fn user(&mut self, uid: u32) -> String {
        let name = || {
            let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
            user.map_or_else(|| uid.to_string(), |user| user.name)
        };
        self.users.entry(uid).or_insert_with(name).clone()
    }

    fn assemble(&mut self) -> Scan {
        let alive = &self.system;
        self.programs.retain(|identity, _| alive.process(sysinfo::Pid::from_u32(identity.pid.0)).is_some());
        let others = |pid: Pid| {
            let stat = procfs::stat(pid).ok()?;
            Some(Ancestor { parent: stat.parent, comm: stat.comm })
        };
        let family = Family { python: &self.python, others: &others, programs: &self.programs };
        let assembled = family.assemble(&mut self.numbers);
        let denied = |process: &&Process| process.denied.is_some();
        Scan {
            denied: assembled.units.iter().flat_map(|unit| &unit.processes).filter(denied).count(),
            units: assembled.units,
            supervisors: assembled.keepers,
            processes: self.python.len() + self.strangers.len(),
            unnamed: assembled.unnamed,
        }
    }
}

impl Stranger {
    /// Tells whether the process has ended, or its number has a new owner.
    fn is_over(&self, stat: &Stat) -> bool {
        stat.is_dead() || self.seen.as_ref().is_some_and(|(start_ticks, _)| *start_ticks != stat.start_ticks)
    }

    /// Tells whether the process has another name than when its details were read: it may have executed something else.
    fn is_renamed(&self, stat: &Stat) -> bool {
        self.seen.as_ref().is_none_or(|(_, comm)| *comm != stat.comm)
    }
}

/// Tells whether a look asks about a worker that is known: always where processes came or went or it is young, else in
/// its turn, which is the look's number and its own together, so that not all of them fall on the same look.
fn is_due(is_calm: bool, is_young: bool, turn: u64) -> bool {
    !is_calm || is_young || turn.is_multiple_of(CALM_LOOKS)
}

/// Tells whether a look asks for all details of a process that was no Python.
fn needs_details(look: u64, pid: Pid) -> bool {
    let round = look / RECHECK_LOOKS;
    look.is_multiple_of(RECHECK_LOOKS) && round.wrapping_add(u64::from(pid.0)).is_multiple_of(DETAILS_ROUNDS)
}

fn is_kernel(process: &sysinfo::Process) -> bool {
    process.thread_kind() == Some(ThreadKind::Kernel)
}

fn is_python(facts: &Facts) -> bool {
    match facts.python {
        Interpreter::Yes => true,
        Interpreter::No => false,
        // Somebody else's: its command line is all there is, and a title hides the interpreter.
        Interpreter::Unreadable => !matches!(recognise(&facts.command), Nature::Worker(crate::process::Kind::Python)),
    }
}

/// Merges what a process says now with what it said before it wrote a title over its command line and environment.
fn renamed(old: Known, mut new: Known) -> Known {
    let is_same_program = new.facts.stack_start == old.facts.stack_start;
    if is_same_program && command::is_title(&new.facts.command) {
        new.first_command = old.first_command;
        // A title that says nothing does not make it another kind.
        if new.nature == Nature::Worker(crate::process::Kind::Python) {
            new.nature = old.nature;
        }
    }
    if is_same_program && new.facts.environment.is_empty() {
        new.facts.environment = old.facts.environment;
    }
    new
}

/// Returns where a supervisord without `-c` looks for its configuration; `None` for anything else.
pub(crate) fn supervisord_candidates(command: &[String], cwd: Option<&str>) -> Option<Vec<String>> {
    command::supervisord_places(command, cwd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nobody_comes_or_goes_each_worker_is_asked_about_every_fourth_look() {
        for pid in 1..100_u64 {
            for first in [0, 1, 7, 1_000_003, u64::MAX - 50] {
                let asked = |look: u64| is_due(true, false, first.wrapping_add(look).wrapping_add(pid));
                let turns: Vec<u64> = (0..40).filter(|look| asked(*look)).collect();
                assert_eq!(turns.len(), 10, "{pid} from look {first}: {turns:?}");
                assert!(turns.windows(2).all(|pair| pair[1] - pair[0] == 4), "{pid} from look {first}: {turns:?}");
            }
        }
    }

    #[test]
    fn details_are_asked_for_every_64th_look_together_with_all_else() {
        for pid in (1..100).map(Pid) {
            let looks: Vec<u64> = (0..640).filter(|look| needs_details(*look, pid)).collect();
            assert_eq!(looks.len(), 10, "{pid}: {looks:?}");
            assert!(looks.windows(2).all(|pair| pair[1] - pair[0] == 64), "{pid}: {looks:?}");
            assert!(looks.iter().all(|look| look % RECHECK_LOOKS == 0), "{pid}: {looks:?}");
        }
    }

    #[test]
    fn a_young_worker_and_one_beside_which_somebody_came_or_went_are_asked_about_in_each_look() {
        assert!((0..8).all(|turn| is_due(false, false, turn) && is_due(true, true, turn)));
    }
}
