//! From processes to units: who belongs together, who brings it back, which slot it lives in.
//!
//! Pure: everything is told by [`Known`] processes and [`Ancestor`]s.

use super::command::{Nature, recognise};
use super::slot::{self, Numbers, Place};
use super::supervisor;
use crate::process::{Kind, Process, Unit};
use crate::procfs::Facts;
use std::collections::BTreeMap;
use unstale_protocol::ids::{Pid, ProcessIdentity, SlotId, UnitId};

/// How far a chain of parents is followed.
const CHAIN_MAX: usize = 64;

/// A Python process as discovery knows it.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// What `/proc` says now.
    pub(crate) facts: Facts,
    /// Its command line before a title was written over it, where that was seen.
    pub(crate) first_command: Vec<String>,
    /// Its user's name.
    pub(crate) user: String,
    /// What it is for.
    pub(crate) nature: Nature,
}

impl Known {
    /// Returns what is known of a process seen for the first time.
    pub(crate) fn new(facts: Facts, user: String) -> Self {
        let nature = recognise(&facts.command);
        Self { first_command: facts.command.clone(), nature, facts, user }
    }
}

/// A process that is no Python, as far as it matters: a shell, an init, a supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ancestor {
    /// Its parent.
    pub(crate) parent: Pid,
    /// Its name as the kernel keeps it.
    pub(crate) comm: String,
}

/// A program of a supervisord whose name `/proc` does not tell: only that supervisord knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unnamed {
    /// The supervisord.
    pub supervisord: Pid,
    /// Its configuration file.
    pub config: String,
    /// The process that it started: the one that it lists.
    pub started: ProcessIdentity,
}

/// All processes of one look, for the questions that units raise.
pub(crate) struct Family<'a> {
    pub(crate) python: &'a BTreeMap<Pid, Known>,
    pub(crate) others: &'a dyn Fn(Pid) -> Option<Ancestor>,
    /// Names of supervisord's programs by the process that it started.
    pub(crate) programs: &'a BTreeMap<ProcessIdentity, String>,
}

/// The units of one look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Assembled {
    pub(crate) units: Vec<Unit>,
    pub(crate) unnamed: Vec<Unnamed>,
    pub(crate) keepers: usize,
}

impl Family<'_> {
    /// Puts all workers into units, in the order of their slots.
    pub(crate) fn assemble(&self, numbers: &mut Numbers) -> Assembled {
        let mut assembled = Assembled::default();
        let mut members: BTreeMap<Pid, Vec<&Known>> = BTreeMap::new();
        for known in self.python.values() {
            if matches!(known.nature, Nature::Keeper(_)) {
                assembled.keepers += 1;
            } else {
                members.entry(self.root_of(known).facts.identity.pid).or_default().push(known);
            }
        }
        let mut places = BTreeMap::new();
        for root in members.keys().filter_map(|pid| self.python.get(pid)) {
            let (supervisor, unnamed) = supervisor::of(self, root);
            assembled.unnamed.extend(unnamed);
            places.insert(root.facts.identity.pid, Place::new(kind_of(root), supervisor, root));
        }
        let slots = numbers.number(places.values());
        for (pid, mut processes) in members {
            let (Some(place), Some(root)) = (places.remove(&pid), self.python.get(&pid)) else { continue };
            processes.sort_by_key(|known| {
                let identity = known.facts.identity;
                (identity != root.facts.identity, identity.start_ticks, identity.pid)
            });
            let slot = slots.get(&place.root).cloned().unwrap_or_else(|| place.base.clone());
            assembled.units.extend(unit(place, slot, &processes));
        }
        assembled.units.sort_by(|one, other| (&one.slot, &one.id).cmp(&(&other.slot, &other.id)));
        assembled
    }

    /// Returns the highest process of the family that `known` belongs to.
    fn root_of<'b>(&'b self, known: &'b Known) -> &'b Known {
        let mut root = known;
        for _ in 0..CHAIN_MAX {
            match self.python.get(&root.facts.parent) {
                Some(parent) if is_family(root, parent) => root = parent,
                _ => break,
            }
        }
        root
    }

    /// Returns the chain of parents of `known`, nearest first, up to the first process of its namespace.
    pub(crate) fn ancestors<'b>(&'b self, known: &'b Known) -> impl Iterator<Item = Link<'b>> {
        let mut next = known.facts.parent;
        std::iter::from_fn(move || {
            let pid = next;
            if pid.0 == 0 {
                return None;
            }
            let link = match self.python.get(&pid) {
                Some(python) => Link::Python(python),
                None => Link::Other(pid, (self.others)(pid)?),
            };
            next = match &link {
                Link::Python(python) => python.facts.parent,
                Link::Other(_, other) => other.parent,
            };
            Some(link)
        })
        .take(CHAIN_MAX)
    }
}

/// One process of a chain of parents.
pub(crate) enum Link<'a> {
    Python(&'a Known),
    Other(Pid, Ancestor),
}

/// Returns what a process is called when it is the root of its unit.
pub(super) fn kind_of(known: &Known) -> Kind {
    match known.nature {
        Nature::Worker(kind) => kind,
        Nature::Offspring | Nature::Keeper(_) => Kind::Python,
    }
}

/// Tells whether a process belongs to the unit of its parent.
fn is_family(child: &Known, parent: &Known) -> bool {
    let (kind, parent_kind) = match (child.nature, parent.nature) {
        (_, Nature::Keeper(_)) | (Nature::Keeper(_), _) => return false,
        (Nature::Offspring, _) => return true,
        (Nature::Worker(kind), Nature::Worker(parent)) => (kind, parent),
        (Nature::Worker(kind), Nature::Offspring) => (kind, Kind::Python),
    };
    // A plain launcher is no main: the recognised process below it is the highest one.
    if parent_kind == Kind::Python && kind != Kind::Python {
        return false;
    }
    if kind == parent_kind && kind != Kind::Python {
        return true;
    }
    let (ours, theirs) = (child.facts.stack_start, parent.facts.stack_start);
    if ours != 0 && theirs != 0 && ours == theirs {
        return true;
    }
    // A reloader starts itself again with the same command line.
    if child.first_command == parent.first_command || child.facts.command == parent.first_command {
        return true;
    }
    // Where the kernel does not tell, a title under a recognised parent is a fork that renamed itself.
    (ours == 0 || theirs == 0) && parent_kind != Kind::Python && is_titled(child)
}

fn is_titled(known: &Known) -> bool {
    known.facts.blank_environment || super::command::is_title(&known.facts.command)
}

fn unit(place: Place, slot: SlotId, processes: &[&Known]) -> Option<Unit> {
    let id = UnitId::new(format!("{}:{}", place.kind, place.root.pid)).ok()?;
    let kind = place.kind;
    let service = slot::service(kind, &place.supervisor);
    let processes = processes.iter().map(|known| process(known, kind)).collect();
    Some(Unit { id, slot, service, kind, supervisor: place.supervisor, processes })
}

fn process(known: &Known, unit_kind: Kind) -> Process {
    let facts = known.facts.clone();
    let kind = match known.nature {
        // A fork of a recognised main that renamed itself is still of its kind.
        Nature::Worker(Kind::Python) | Nature::Offspring | Nature::Keeper(_) => unit_kind,
        Nature::Worker(kind) => kind,
    };
    Process {
        identity: facts.identity,
        parent: facts.parent,
        uid: facts.uid,
        user: known.user.clone(),
        started_at_ms: facts.started_at_ms,
        titled: is_titled(known),
        command: facts.command,
        kind,
        has_terminal: facts.has_terminal,
        cgroup: facts.cgroup,
        mount_namespace: facts.mount_namespace,
        caught_signals: facts.caught_signals,
        cwd: facts.cwd,
        environment: facts.environment,
        denied: facts.denied,
    }
}

#[cfg(test)]
pub(super) mod tests;
