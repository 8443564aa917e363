//! Slots: the places that units live in, named so that a restart does not change the name.

use super::command;
use super::units::Known;
use crate::process::{Kind, Supervisor, Unit};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use unstale_protocol::host::Numbering;
use unstale_protocol::ids::{ID_MAX_BYTES, ProcessIdentity, SlotId};

/// Digits of a digest in a slot.
const DIGEST_BYTES: usize = 4;
/// Longest name of a supervisor's own in a slot, in bytes; what is longer is cut and told apart by a digest.
const NAME_MAX_BYTES: usize = 160;
/// Most numbers that are handed on to be remembered.
const REMEMBERED_MAX: usize = 1000;

/// Where one unit lives, before equal ones are numbered.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) kind: Kind,
    pub(crate) supervisor: Supervisor,
    pub(crate) root: ProcessIdentity,
    pub(crate) base: SlotId,
    /// Whether the name has a number even when there is one such unit only.
    is_numbered: bool,
}

impl Place {
    /// Returns the place of the unit whose root is `root`.
    pub(crate) fn new(kind: Kind, supervisor: Supervisor, root: &Known) -> Self {
        let is_numbered = !supervisor.names_units();
        let text = match &supervisor {
            Supervisor::Systemd { name, user: None } => format!("{kind}/systemd/{}", bounded(name)),
            Supervisor::Systemd { name, user: Some(uid) } => format!("{kind}/systemd/user@{uid}/{}", bounded(name)),
            Supervisor::Supervisord { name, config, .. } => {
                format!("{kind}/supervisord:{}/{}", digest(&[config]), bounded(name))
            }
            Supervisor::Other { name } => unsupervised(kind, name, root),
            Supervisor::None => unsupervised(kind, "none", root),
        };
        // Every part is bounded, so this cannot fail; were it to, the kind is a name still.
        let base = SlotId::new(text).or_else(|_| SlotId::new(kind.as_str()));
        let base = base.unwrap_or_else(|error| unreachable_slot(&error));
        Self { kind, supervisor, root: root.facts.identity, base, is_numbered }
    }
}

#[expect(clippy::panic, reason = "the name of a kind is neither empty nor long")]
fn unreachable_slot(error: &unstale_protocol::ids::NameError) -> SlotId {
    panic!("no slot can be named: {error}")
}

fn unsupervised(kind: Kind, how: &str, root: &Known) -> String {
    let command = match command::label(kind, &root.facts.command) {
        Some(label) => digest(&[&label]),
        None => digest(&root.first_command.iter().map(String::as_str).collect::<Vec<_>>()),
    };
    format!("{kind}/{}/{command}/{}", bounded(how), root.facts.uid)
}

/// Numbers given to equal places. A number stays with its unit as long as it lives.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    given: BTreeMap<SlotId, BTreeMap<u32, ProcessIdentity>>,
}

impl Numbers {
    /// Returns the numbers that an earlier life of the agent had given. Those of processes that have ended since are
    /// free again from the first look on; those of another boot, or where it is not known, are of no process here.
    pub(crate) fn recalled(kept: &Numbering, boot_id: &str) -> Self {
        let mut numbers = Self::default();
        if boot_id.is_empty() || kept.boot_id != boot_id {
            return numbers;
        }
        for (slot, root) in &kept.given {
            let Some((base, number)) = slot.as_str().rsplit_once('/') else { continue };
            if let (Ok(base), Ok(number)) = (SlotId::new(base), number.parse()) {
                numbers.given.entry(base).or_default().insert(number, *root);
            }
        }
        numbers
    }

    /// Returns the slot of every place, by its root.
    ///
    /// Units without a supervisor are numbered from 1 by start time, and a new one takes the lowest number that
    /// is free. Where a supervisor's name is used twice, the youngest unit has the plain name: the other one is
    /// a life that is about to end, or a process that the supervisor does not know.
    pub(crate) fn number<'a>(&mut self, places: impl Iterator<Item = &'a Place>) -> BTreeMap<ProcessIdentity, SlotId> {
        let mut by_base: BTreeMap<&SlotId, Vec<&Place>> = BTreeMap::new();
        for place in places {
            by_base.entry(&place.base).or_default().push(place);
        }
        self.given.retain(|base, _| by_base.contains_key(base));
        let mut slots = BTreeMap::new();
        for (base, mut equal) in by_base {
            equal.sort_by_key(|place| (place.root.start_ticks, place.root.pid));
            if equal.iter().all(|place| place.is_numbered) {
                let given = self.given.entry(base.clone()).or_default();
                given.retain(|_, identity| equal.iter().any(|place| place.root == *identity));
                for place in &equal {
                    slots.insert(place.root, numbered(base, number_of(given, place.root)));
                }
            } else {
                for (index, place) in (1..).zip(equal.iter().rev()) {
                    let slot = if index == 1 { base.clone() } else { numbered(base, index) };
                    slots.insert(place.root, slot);
                }
            }
        }
        slots
    }
}

/// Returns which process has which number, to be remembered across restarts of the agent: those that are `named` to
/// others first.
pub(crate) fn numbering(units: &[Unit], named: &BTreeSet<&SlotId>, boot_id: &str) -> Numbering {
    let mut numbered: Vec<&Unit> = units.iter().filter(|unit| !unit.supervisor.names_units()).collect();
    numbered.sort_by_key(|unit| !named.contains(&unit.slot));
    let given = numbered.into_iter().take(REMEMBERED_MAX);
    let given = given.filter_map(|unit| Some((unit.slot.clone(), unit.root()?.identity))).collect();
    Numbering { boot_id: boot_id.to_owned(), given }
}

fn number_of(given: &mut BTreeMap<u32, ProcessIdentity>, root: ProcessIdentity) -> u32 {
    if let Some((number, _)) = given.iter().find(|(_, identity)| **identity == root) {
        return *number;
    }
    let free = (1..u32::MAX).find(|number| !given.contains_key(number)).unwrap_or(u32::MAX);
    given.insert(free, root);
    free
}

fn numbered(base: &SlotId, number: u32) -> SlotId {
    SlotId::new(format!("{base}/{number}")).unwrap_or_else(|_| base.clone())
}

/// Returns the service name: the systemd unit without `@instance`, the GROUP of a supervisord's program, or the kind.
pub(super) fn service(kind: Kind, supervisor: &Supervisor) -> String {
    match supervisor {
        Supervisor::Systemd { name, .. } => match (name.split_once('@'), name.rsplit_once('.')) {
            (Some((template, _)), Some((_, suffix))) => format!("{template}.{suffix}"),
            _ => name.clone(),
        },
        Supervisor::Supervisord { name, .. } => name.split(':').next().unwrap_or(name).to_owned(),
        Supervisor::Other { .. } | Supervisor::None => kind.as_str().to_owned(),
    }
}

/// Returns 8 hexadecimal digits of the SHA-256 of `words`, each followed by a zero byte where there are several.
fn digest(words: &[&str]) -> String {
    let digest = Sha256::digest(words.join("\0"));
    digest.iter().take(DIGEST_BYTES).fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        if write!(text, "{byte:02x}").is_err() {
            text.push('?');
        }
        text
    })
}

fn bounded(name: &str) -> String {
    const { assert!(NAME_MAX_BYTES + 64 < ID_MAX_BYTES) };
    if name.len() <= NAME_MAX_BYTES {
        return name.to_owned();
    }
    let end = (0..=NAME_MAX_BYTES - 10).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    format!("{}~{}", name.get(..end).unwrap_or_default(), digest(&[name]))
}
