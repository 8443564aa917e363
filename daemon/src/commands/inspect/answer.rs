//! What the eyes saw, as `unstale.inspect/1` says it.

use crate::api::{
    Inspect, InspectBinding, InspectEnum, InspectEnums, InspectLayer, InspectSummary, InspectSupervisor, InspectWorker,
};
use crate::database::{self, DatabaseEnum};
use std::collections::BTreeMap;
use std::sync::Arc;
use unstale_agent::display::mask;
use unstale_agent::inspect::{InspectedWorker, Inspection};
use unstale_agent::judge::{BindingJudged, EnumJudged, LayerView, WorkerJudged};
use unstale_agent::process::{Role, Supervisor};
use unstale_protocol::verdict::{Cure, Verdict};

/// Which layers are shown.
#[derive(Clone, Copy, Debug)]
pub(super) enum Layers<'a> {
    /// All of what is not fresh; memory and source of what is.
    OfFindings,
    /// All of everything, and the database where it was read.
    All(Option<&'a [DatabaseEnum]>),
}

/// Returns the whole answer.
pub(super) fn answer(inspection: &Inspection, layers: Layers<'_>, host: &str, taken_at_ms: u64) -> Inspect {
    let mut summary = InspectSummary {
        without_enums: inspection.without_enums,
        unreadable: inspection.unreadable,
        ..InspectSummary::default()
    };
    let mut untracked: BTreeMap<&str, u32> = BTreeMap::new();
    let mut workers = Vec::new();
    // Forked children mostly hold what their siblings hold.
    let mut last: Option<(&Arc<WorkerJudged>, Arc<InspectEnums>)> = None;
    for inspected in &inspection.workers {
        let most = untracked.entry(inspected.unit.id.as_str()).or_default();
        *most = (*most).max(inspected.judged.untracked);
        let enums = match &last {
            Some((judged, enums)) if Arc::ptr_eq(judged, &inspected.judged) => Arc::clone(enums),
            _ => Arc::new(inspected.judged.enums.iter().map(|judged| entry(judged, layers)).collect()),
        };
        last = Some((&inspected.judged, Arc::clone(&enums)));
        let worker = worker(inspected, enums);
        count(&mut summary, &worker);
        workers.push(worker);
    }
    // Children repeat what their parent holds.
    summary.untracked = untracked.values().sum();
    Inspect { schema: "unstale.inspect/1".to_owned(), host: host.to_owned(), taken_at_ms, summary, workers }
}

fn count(summary: &mut InspectSummary, worker: &InspectWorker) {
    summary.workers += 1;
    match worker.verdict {
        Verdict::Fresh => summary.fresh += 1,
        Verdict::Stale => summary.stale += 1,
        Verdict::Unknown | Verdict::Untracked => summary.unknown += 1,
    }
    summary.bystanders += u32::from(worker.bystander);
}

fn worker(inspected: &InspectedWorker, enums: Arc<InspectEnums>) -> InspectWorker {
    let InspectedWorker { process, role, unit, python, judged, cost: _ } = inspected;
    let (verdict, because) = match judged.verdict {
        Some(verdict) => (verdict, judged.because.clone()),
        None if judged.enums.is_empty() => (Verdict::Unknown, "it holds no enum of an app".to_owned()),
        // Enums were found and none could be judged: that proves nothing.
        None => (Verdict::Unknown, "none of its enums can be judged".to_owned()),
    };
    InspectWorker {
        pid: process.identity.pid.0,
        started_at_ms: process.started_at_ms,
        parent_pid: process.parent.0,
        user: process.user.clone(),
        kind: unit.kind.to_string(),
        role: if *role == Role::Main { "main" } else { "child" }.to_owned(),
        unit: unit.id.to_string(),
        slot: unit.slot.to_string(),
        app: process.variable("UNSTALE_APP").map(ToOwned::to_owned),
        python: python.clone(),
        supervisor: supervisor(&unit.supervisor),
        command: mask::command(&process.command),
        verdict,
        because,
        cure: cure(inspected),
        untracked: judged.untracked,
        bystander: unit.is_bystander(),
        enums,
    }
}

fn supervisor(supervisor: &Supervisor) -> Option<InspectSupervisor> {
    let (kind, name) = match supervisor {
        Supervisor::Systemd { name, .. } => ("systemd", name),
        Supervisor::Supervisord { name, .. } => ("supervisord", name),
        Supervisor::Other { name } => ("other", name),
        Supervisor::None => return None,
    };
    Some(InspectSupervisor { kind: kind.to_owned(), name: name.clone() })
}

fn cure(inspected: &InspectedWorker) -> Option<String> {
    let (unit, judged) = (&inspected.unit, &inspected.judged);
    let files = || {
        let paths: Vec<String> = judged.stale_files.iter().map(|file| file.path.display().to_string()).collect();
        format!("remove {}", paths.join(", "))
    };
    let restart = || {
        if unit.is_bystander() {
            "end it by hand: it runs on a terminal".to_owned()
        } else {
            format!("restart unit {}", unit.id)
        }
    };
    match judged.cure {
        Cure::None => None,
        Cure::Purge => Some(files()),
        Cure::Restart => Some(restart()),
        Cure::PurgeThenRestart => Some(format!("{}, then {}", files(), restart())),
        Cure::WaitForSource => Some("wait for the new source: a restart would load the old one again".to_owned()),
        Cure::Deploy => Some("deploy: the source lies in an immutable image".to_owned()),
    }
}

fn entry(judged: &EnumJudged, shown: Layers<'_>) -> InspectEnum {
    let is_plain = judged.verdict == Verdict::Fresh && matches!(shown, Layers::OfFindings);
    let mut layers = BTreeMap::new();
    let mut add = |name: &str, view: Option<&LayerView>, is_bytecode: bool| {
        if let Some(view) = view {
            layers.insert(name.to_owned(), layer(view, is_bytecode));
        }
    };
    add("memory", judged.memory.as_ref(), false);
    add("source", judged.source.as_ref(), false);
    if !is_plain {
        add("bytecode", judged.bytecode.as_ref(), true);
    }
    let of_database = |binding: &BindingJudged| in_database(binding, shown);
    if let Some(found) = judged.bindings.iter().find_map(of_database) {
        layers.insert("database".to_owned(), database_layer(found));
    }
    let bindings = judged
        .bindings
        .iter()
        .filter(|_| !is_plain)
        .map(|binding| InspectBinding {
            column: binding.column.to_string(),
            type_name: binding.type_name.clone(),
            memory: Some(binding.memory.clone()),
            source: binding.source.clone(),
            database: of_database(binding).map(|found| found.labels.clone()),
            verdict: binding.verdict,
        })
        .collect();
    InspectEnum {
        name: judged.name.to_string(),
        verdict: judged.verdict,
        because: (judged.verdict != Verdict::Fresh).then(|| judged.because.clone()),
        layers,
        bindings,
    }
}

/// Returns the database's type that a column names; a column that is text has none.
fn in_database<'a>(binding: &BindingJudged, shown: Layers<'a>) -> Option<&'a DatabaseEnum> {
    let Layers::All(Some(database)) = shown else { return None };
    let name = binding.type_name.as_deref().filter(|_| binding.native)?;
    database::find(binding.schema.as_deref(), name, database)
}

fn database_layer(found: &DatabaseEnum) -> InspectLayer {
    InspectLayer {
        type_name: Some(format!("{}.{}", found.schema, found.name)),
        labels: Some(found.labels.clone()),
        ..InspectLayer::default()
    }
}

fn layer(view: &LayerView, is_bytecode: bool) -> InspectLayer {
    let definition = &view.definition;
    InspectLayer {
        fingerprint: Some(definition.fingerprint().to_string()),
        members: definition.members.iter().map(|member| (member.name.clone(), member.value.to_json())).collect(),
        aliases: definition.aliases.iter().map(|alias| (alias.name.clone(), alias.canonical.clone())).collect(),
        path: view.path.clone(),
        stale: is_bytecode.then_some(view.stale),
        ..InspectLayer::default()
    }
}
