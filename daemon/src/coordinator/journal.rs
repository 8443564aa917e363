//! The record: what happened, numbered, in memory and on disk, up to a bound.

use crate::api;
use crate::store::{Change, Store};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use unstale_protocol::coordinator::Event;
use unstale_protocol::ids::SchemaVersion;

/// Events that are kept; older ones are forgotten.
const EVENTS_MAX: usize = 2_000;
const TABLE: &str = "events";

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    at_ms: u64,
    event: Event,
}

/// What happened, oldest first.
#[derive(Debug, Default)]
pub(super) struct Journal {
    entries: BTreeMap<u64, Entry>,
    newest: u64,
}

impl Journal {
    /// Reads the record back.
    ///
    /// # Errors
    /// Where the store cannot be read, or an entry makes no sense.
    pub(super) fn load(store: &Store) -> anyhow::Result<Self> {
        let mut journal = Self::default();
        for (key, value) in store.load(TABLE)? {
            let wrong = |why: String| store.corrupt(&format!("{TABLE} {key}: {why}"));
            let number: u64 = key.parse().map_err(|_| wrong("not a number".to_owned()))?;
            let entry = serde_json::from_slice(&value).map_err(|error| wrong(error.to_string()))?;
            journal.entries.insert(number, entry);
            journal.newest = journal.newest.max(number);
        }
        Ok(journal)
    }

    /// Adds an event, and the changes that keep it.
    ///
    /// # Errors
    /// Where it has no JSON form, which no event lacks.
    pub(super) fn add(
        &mut self,
        event: &Event,
        at_ms: u64,
        changes: &mut Vec<Change>,
    ) -> Result<(), serde_json::Error> {
        self.newest += 1;
        let entry = Entry { at_ms, event: event.clone() };
        let value = Some(serde_json::to_vec(&entry)?);
        changes.push(Change { table: TABLE.to_owned(), key: key(self.newest), value });
        self.entries.insert(self.newest, entry);
        while self.entries.len() > EVENTS_MAX {
            let Some((oldest, _)) = self.entries.pop_first() else { break };
            changes.push(Change { table: TABLE.to_owned(), key: key(oldest), value: None });
        }
        Ok(())
    }

    /// Returns the newest event's number; 0 before the first.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Returns the first events of a rollout after the one numbered `after`.
    pub(super) fn of(&self, version: &SchemaVersion, after: u64, most: usize) -> Vec<api::Event> {
        let later = self.entries.range(after.saturating_add(1)..);
        let mine = later.filter(|(_, entry)| entry.event.is_of(&version.app, version.revision));
        mine.take(most).map(|(number, entry)| shown(*number, entry)).collect()
    }

    /// Returns the last events that `is_wanted` chooses, oldest first.
    pub(super) fn last(&self, most: usize, is_wanted: impl Fn(&Event) -> bool) -> Vec<api::Event> {
        let mut events: Vec<_> = self
            .entries
            .iter()
            .rev()
            .filter(|(_, entry)| is_wanted(&entry.event))
            .take(most)
            .map(|(number, entry)| shown(*number, entry))
            .collect();
        events.reverse();
        events
    }
}

fn key(number: u64) -> String {
    format!("{number:020}")
}

fn shown(number: u64, entry: &Entry) -> api::Event {
    let event = &entry.event;
    let text = match (event.what.as_str(), event.because.as_str()) {
        (what, "") => what.to_owned(),
        // What people do is said with who did it.
        (what @ ("announced" | "announced again" | "paused" | "resumed" | "aborted"), by) => format!("{what} by {by}"),
        (what, because) => format!("{what}: {because}"),
    };
    api::Event {
        number,
        at_ms: entry.at_ms,
        host: event.host.as_ref().map(ToString::to_string),
        slot: event.slot.as_ref().map(ToString::to_string),
        what: event.what.replace([' ', ','], "_"),
        text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use unstale_protocol::ids::{AppName, Revision};

    fn event(app: &str, revision: u64) -> Event {
        let app = AppName::new(app).unwrap();
        Event {
            app: Some(app),
            revision: Some(Revision(revision)),
            host: None,
            slot: None,
            what: "announced".into(),
            because: "by me".into(),
        }
    }

    fn shop(revision: u64) -> SchemaVersion {
        SchemaVersion { app: AppName::new("shop").unwrap(), revision: Revision(revision) }
    }

    #[test]
    fn a_rollout_sees_its_own_events_from_where_it_left() {
        let mut journal = Journal::default();
        for (app, revision) in [("shop", 1), ("other", 1), ("shop", 2), ("shop", 1)] {
            journal.add(&event(app, revision), 5, &mut Vec::new()).unwrap();
        }
        let numbers =
            |after, most| journal.of(&shop(1), after, most).iter().map(|event| event.number).collect::<Vec<_>>();
        assert_eq!(numbers(0, 10), [1, 4]);
        assert_eq!(numbers(1, 10), [4]);
        assert_eq!(numbers(0, 1), [1]);
        assert_eq!(numbers(u64::MAX, 1), [0u64; 0]);
    }

    #[test]
    fn the_oldest_events_are_forgotten_in_memory_and_on_disk() {
        let mut journal = Journal::default();
        let mut changes = Vec::new();
        for _ in 0..=EVENTS_MAX {
            journal.add(&event("shop", 1), 5, &mut changes).unwrap();
        }
        assert_eq!(journal.entries.len(), EVENTS_MAX);
        assert_eq!(
            changes.iter().filter(|change| change.value.is_none()).map(|change| change.key.clone()).collect::<Vec<_>>(),
            [key(1)]
        );
        assert_eq!(journal.newest(), EVENTS_MAX as u64 + 1);
    }
}
