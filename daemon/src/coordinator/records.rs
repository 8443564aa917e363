//! How the coordinator's records lie in its store: one table per kind, the whole record as JSON.

use crate::store::{Change, Store, StoreError};
use unstale_protocol::coordinator::Record;
use unstale_protocol::fingerprint::Fingerprint;

/// Manifests by digest, their bytes as they travel.
pub(super) const MANIFESTS: &str = "manifests";

/// Tables that records are read back from. The order is the one they are remembered in.
const TABLES: [&str; 5] = ["reign", "rollouts", "drains", "permits", "hosts"];

/// Returns the change that keeps `record`. Events have a table of their own.
///
/// # Errors
/// Where it has no JSON form, which no record lacks.
pub(super) fn change(record: &Record) -> Result<Change, serde_json::Error> {
    let (table, key, is_kept) = match record {
        Record::Reign { .. } => ("reign", "reign".to_owned(), true),
        Record::Rollout(app, rollout) => ("rollouts", format!("{app}@{:020}", rollout.revision.0), true),
        Record::Drain(id, drain) => ("drains", id.to_string(), drain.is_some()),
        Record::Permit(host, slot, permit) => ("permits", format!("{host} {slot}"), permit.is_some()),
        Record::Host(host, record) => ("hosts", host.to_string(), record.is_some()),
        Record::Event(_) => ("events", String::new(), false),
    };
    let value = if is_kept { Some(serde_json::to_vec(record)?) } else { None };
    Ok(Change { table: table.to_owned(), key, value })
}

/// Reads all records back.
///
/// # Errors
/// Where the store cannot be read, or a record makes no sense.
pub(super) fn load(store: &Store) -> anyhow::Result<Vec<Record>> {
    let mut records = Vec::new();
    for table in TABLES {
        for (key, value) in store.load(table)? {
            let record =
                serde_json::from_slice(&value).map_err(|error| store.corrupt(&format!("{table} {key}: {error}")))?;
            records.push(record);
        }
    }
    Ok(records)
}

/// Reads the manifests back; one whose bytes do not match its name is left out, and asked for again by its next
/// broadcast.
///
/// # Errors
/// Where the store cannot be read.
pub(super) fn manifests(store: &Store) -> Result<Vec<(Fingerprint, Vec<u8>)>, StoreError> {
    let rows = store.load(MANIFESTS)?.into_iter();
    Ok(rows
        .filter_map(|(key, bytes)| {
            let digest: Fingerprint = key.parse().ok()?;
            (Fingerprint::of_bytes(&bytes) == digest).then_some((digest, bytes))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{StateDir, Which};
    use unstale_protocol::fingerprint::Salt;
    use unstale_protocol::ids::{DrainId, Epoch, Generation, HostName};

    #[test]
    fn records_come_back_as_they_were_kept() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::take(&directory.path().join("s")).unwrap();
        let store = state.open(Which::Coordinator).unwrap();
        let reign = Record::Reign {
            epoch: Epoch(3),
            generation: Generation(9),
            lost_hosts: false,
            all_hosts: Some(true),
            author: Salt::default(),
            partial: false,
            adopted: None,
            asserted: None,
        };
        let host =
            Record::Host(HostName::new("web-3").unwrap(), Some(unstale_protocol::coordinator::HostRecord::default()));
        let no_drain = Record::Drain(DrainId::new("drain-1").unwrap(), None);
        let changes: Vec<_> = [&reign, &host, &no_drain].map(|record| change(record).unwrap()).to_vec();
        store.commit(&changes).unwrap();
        assert_eq!(load(&store).unwrap(), [reign, host]);
    }

    #[test]
    fn a_record_that_makes_no_sense_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::take(&directory.path().join("s")).unwrap();
        let store = state.open(Which::Coordinator).unwrap();
        let value = Some(b"{\"song\":1}".to_vec());
        store.commit(&[Change { table: "hosts".into(), key: "x".into(), value }]).unwrap();
        let error = load(&store).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(StoreError::Corrupt { .. })), "{error}");
    }

    #[test]
    fn a_manifest_whose_bytes_changed_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::take(&directory.path().join("s")).unwrap();
        let store = state.open(Which::Coordinator).unwrap();
        let put = |bytes: &[u8], key: String| Change { table: MANIFESTS.into(), key, value: Some(bytes.to_vec()) };
        let good = Fingerprint::of_bytes(b"{}");
        store.commit(&[put(b"{}", good.to_string()), put(b"[]", Fingerprint::of_bytes(b"x").to_string())]).unwrap();
        assert_eq!(manifests(&store).unwrap(), [(good, b"{}".to_vec())]);
    }
}
