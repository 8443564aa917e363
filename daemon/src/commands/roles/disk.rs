//! The agent's records in its store: one table per kind, the whole record as JSON.

use crate::store::{Change, Store};
use anyhow::Context as _;
use std::io::{self, Read as _};
use unstale_agent::driver::Disk;
use unstale_protocol::fingerprint::Salt;
use unstale_protocol::host::Record;
use unstale_protocol::ids::Incarnation;

/// Tables that records are read back from.
const TABLES: [&str; 5] = ["desired", "slots", "intents", "decided", "numbering"];
const LIFE: &str = "life";
const COUNTER: &str = "counter";

/// The agent's store, in one life of the agent.
#[derive(Debug)]
pub(in crate::commands) struct AgentDisk {
    store: Store,
    incarnation: Incarnation,
    seed: u64,
}

impl AgentDisk {
    /// Begins a new life: raises the counter on disk before anything else is done.
    ///
    /// # Errors
    /// Where the store or the kernel's random numbers cannot be used.
    pub(in crate::commands) fn open(store: Store) -> anyhow::Result<Self> {
        let life = store.load(LIFE).context("cannot read the agent's state")?;
        let last: u64 = match life.get(COUNTER) {
            Some(value) => serde_json::from_slice(value).map_err(|error| store.corrupt(&format!("{LIFE}: {error}")))?,
            None => 0,
        };
        let counter = last.saturating_add(1);
        let value = Some(serde_json::to_vec(&counter)?);
        store
            .commit(&[Change { table: LIFE.to_owned(), key: COUNTER.to_owned(), value }])
            .context("cannot write the agent's state")?;
        let mut random = [0; 24];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut random))
            .context("cannot read random numbers")?;
        let (salt, seed) = random.split_at(16);
        let incarnation = Incarnation { counter, random: Salt(salt.try_into()?) };
        Ok(Self { store, incarnation, seed: u64::from_be_bytes(seed.try_into()?) })
    }

    /// Returns this life of the agent.
    pub(in crate::commands) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Returns a random number for the jitter of timers.
    pub(in crate::commands) fn seed(&self) -> u64 {
        self.seed
    }

    /// Reads all records back.
    ///
    /// # Errors
    /// Where the store cannot be read, or a record makes no sense.
    pub(in crate::commands) fn records(&self) -> anyhow::Result<Vec<Record>> {
        let mut records = Vec::new();
        for table in TABLES {
            for (key, value) in self.store.load(table)? {
                let record = serde_json::from_slice(&value)
                    .map_err(|error| self.store.corrupt(&format!("{table} {key}: {error}")))?;
                records.push(record);
            }
        }
        Ok(records)
    }
}

impl Disk for AgentDisk {
    fn commit(&mut self, records: &[Record]) -> io::Result<()> {
        let changes = records.iter().map(change).collect::<Result<Vec<_>, _>>()?;
        self.store.commit(&changes).map_err(io::Error::other)
    }
}

fn change(record: &Record) -> Result<Change, serde_json::Error> {
    let (table, key, is_kept) = match record {
        Record::Desired(_) => ("desired", "desired".to_owned(), true),
        Record::Intent { intent, .. } => ("intents", intent.slot.to_string(), true),
        Record::IntentOver(slot) => ("intents", slot.to_string(), false),
        Record::Decided(_) => ("decided", "decided".to_owned(), true),
        Record::Numbering(_) => ("numbering", "numbering".to_owned(), true),
        Record::Slot(slot, kept) => ("slots", slot.to_string(), kept.is_some()),
    };
    let value = if is_kept { Some(serde_json::to_vec(record)?) } else { None };
    Ok(Change { table: table.to_owned(), key, value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{StateDir, Which};
    use std::collections::BTreeMap;
    use unstale_protocol::host::{Numbering, SlotRecord};
    use unstale_protocol::ids::{Pid, ProcessIdentity, SlotId};
    use unstale_protocol::message::Desired;

    #[test]
    fn every_life_has_a_number_of_its_own_and_remembers_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::take(&directory.path().join("s")).unwrap();
        let mut first = AgentDisk::open(state.open(Which::Agent).unwrap()).unwrap();
        let desired = Record::Desired(Desired::default());
        let slot = SlotId::new("celery/none/x/0/0").unwrap();
        let kept = Record::Slot(slot.clone(), Some(SlotRecord::default()));
        let identity = ProcessIdentity { pid: Pid(7), start_ticks: 1, pid_namespace: 0 };
        let given = BTreeMap::from([(slot.clone(), identity)]);
        let numbering = Record::Numbering(Numbering { boot_id: "boot".to_owned(), given });
        first.commit(&[desired.clone(), kept.clone(), numbering.clone()]).unwrap();
        let (counter, random) = (first.incarnation().counter, first.incarnation().random);
        drop(first);
        let mut second = AgentDisk::open(state.open(Which::Agent).unwrap()).unwrap();
        assert_eq!(second.incarnation().counter, counter + 1);
        assert_ne!(second.incarnation().random, random);
        assert_eq!(second.records().unwrap(), [desired.clone(), kept, numbering.clone()]);
        second.commit(&[Record::Slot(slot, None)]).unwrap();
        assert_eq!(second.records().unwrap(), [desired, numbering]);
    }
}
