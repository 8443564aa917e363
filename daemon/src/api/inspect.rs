//! `unstale.inspect/1`.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value as Json;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use unstale_protocol::verdict::Verdict;

/// The whole answer of `inspect`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Inspect {
    /// `unstale.inspect/1`.
    pub(crate) schema: String,
    /// This host.
    pub(crate) host: String,
    /// When it was taken, in milliseconds since the Unix epoch.
    pub(crate) taken_at_ms: u64,
    /// Counts.
    pub(crate) summary: InspectSummary,
    /// Workers with enums of their own, those that cannot be read, and those that were asked for.
    pub(crate) workers: Vec<InspectWorker>,
}

/// Counts of `inspect`: workers by verdict, then what is not listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InspectSummary {
    /// Workers listed.
    pub(crate) workers: u32,
    /// Of these, fresh ones.
    pub(crate) fresh: u32,
    /// Stale ones.
    pub(crate) stale: u32,
    /// Unknown ones.
    pub(crate) unknown: u32,
    /// Python processes without an enum of an app: counted, not listed.
    #[serde(default)]
    pub(crate) without_enums: u32,
    /// Python processes of other users that may not be read.
    #[serde(default)]
    pub(crate) unreadable: u32,
    /// Enums that cannot be judged by nature.
    #[serde(default)]
    pub(crate) untracked: u32,
    /// Plain Python processes with a terminal.
    #[serde(default)]
    pub(crate) bystanders: u32,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct InspectWorker {
    pub(crate) pid: u32,
    pub(crate) started_at_ms: u64,
    pub(crate) parent_pid: u32,
    pub(crate) user: String,
    pub(crate) kind: String,
    /// `main` or `child`.
    pub(crate) role: String,
    pub(crate) unit: String,
    pub(crate) slot: String,
    /// The app that it belongs to, where a configuration or a claim says so.
    pub(crate) app: Option<String>,
    /// Its whole version, where it was read.
    pub(crate) python: Option<String>,
    pub(crate) supervisor: Option<InspectSupervisor>,
    /// Masked: no credential in it.
    pub(crate) command: Vec<String>,
    pub(crate) verdict: Verdict,
    pub(crate) because: String,
    pub(crate) cure: Option<String>,
    /// How many of its enums cannot be judged by nature.
    pub(crate) untracked: u32,
    /// A plain Python process with a terminal: never restarted.
    #[serde(default)]
    pub(crate) bystander: bool,
    pub(crate) enums: Arc<InspectEnums>,
}

/// Who brings a unit back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InspectSupervisor {
    pub(crate) kind: String,
    pub(crate) name: String,
}

/// The enums of workers that hold alike: forked children are many, so their JSON is made once.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "Vec<InspectEnum>")]
pub(crate) struct InspectEnums {
    enums: Vec<InspectEnum>,
    json: OnceLock<Box<RawValue>>,
}

impl InspectEnums {
    /// How deep they stand in the answer, as `workers[].enums` in its indented form.
    const INDENT: &str = "\n      ";
}

impl From<Vec<InspectEnum>> for InspectEnums {
    fn from(enums: Vec<InspectEnum>) -> Self {
        Self { enums, json: OnceLock::new() }
    }
}

impl FromIterator<InspectEnum> for InspectEnums {
    fn from_iter<I: IntoIterator<Item = InspectEnum>>(enums: I) -> Self {
        Vec::from_iter(enums).into()
    }
}

impl Deref for InspectEnums {
    type Target = [InspectEnum];

    fn deref(&self) -> &Self::Target {
        &self.enums
    }
}

impl PartialEq for InspectEnums {
    fn eq(&self, other: &Self) -> bool {
        self.enums == other.enums
    }
}

impl Serialize for InspectEnums {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Some(json) = self.json.get() {
            return json.serialize(serializer);
        }
        let text = serde_json::to_string_pretty(&self.enums).map_err(serde::ser::Error::custom)?;
        // A line never ends within a string of JSON.
        let json = RawValue::from_string(text.replace('\n', Self::INDENT)).map_err(serde::ser::Error::custom)?;
        self.json.get_or_init(|| json).serialize(serializer)
    }
}

/// One enum, or a binding without one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct InspectEnum {
    #[serde(rename = "enum")]
    pub(crate) name: String,
    /// `fresh`, `stale`, `unknown` or `untracked`.
    pub(crate) verdict: Verdict,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) because: Option<String>,
    /// By name: `memory`, `bytecode`, `source`, `database`.
    pub(crate) layers: BTreeMap<String, InspectLayer>,
    #[serde(default)]
    pub(crate) bindings: Vec<InspectBinding>,
}

/// What one layer says of an enum.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct InspectLayer {
    pub(crate) fingerprint: Option<String>,
    /// Canonical members with their values, `{"repr": …}` and `{"unresolved": …}` included.
    pub(crate) members: Vec<(String, Json)>,
    /// Second names with the name that the member bears.
    #[serde(default)]
    pub(crate) aliases: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
    /// Of the database: the type that a binding of the enum names, with its schema.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) type_name: Option<String>,
    /// Of the database: the labels of that type, in its order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) labels: Option<Vec<String>>,
    /// Of bytecode: proven to be used although it differs from its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stale: Option<bool>,
}

/// One column's way to the database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct InspectBinding {
    /// `app.models:Conn.crm_type`.
    pub(crate) column: String,
    #[serde(rename = "type")]
    pub(crate) type_name: Option<String>,
    /// Labels that the process would send.
    pub(crate) memory: Option<Vec<String>>,
    /// Labels that its source says; `null` for one that cannot be computed.
    pub(crate) source: Option<Vec<Option<String>>>,
    /// Labels of the type in the database, where that was read; absent where it has no such type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) database: Option<Vec<String>>,
    pub(crate) verdict: Verdict,
}
