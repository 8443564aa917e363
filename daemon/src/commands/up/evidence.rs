//! What this host's own agent saw last, for `why` and for selectors that name a child.

use crate::coordinator::LocalEvidence;
use std::sync::Arc;
use tokio::sync::watch;
use unstale_agent::display::escape;
use unstale_agent::judge::EnumJudged;
use unstale_agent::survey::Survey;
use unstale_protocol::ids::{HostName, Pid, SlotId};
use unstale_protocol::verdict::Verdict;

/// Lines of evidence per slot; the rest are counted.
const LINES_MAX: usize = 40;

/// The newest survey of this host.
#[derive(Debug)]
pub(super) struct Evidence {
    host: HostName,
    seen: watch::Receiver<Arc<Survey>>,
}

impl Evidence {
    /// Makes evidence of what `seen` shows of `host`.
    pub(super) fn new(host: HostName, seen: watch::Receiver<Arc<Survey>>) -> Self {
        Self { host, seen }
    }
}

impl LocalEvidence for Evidence {
    fn lines(&self, host: &HostName, slot: &SlotId) -> Vec<String> {
        if *host != self.host {
            return Vec::new();
        }
        let survey = Arc::clone(&self.seen.borrow());
        let mut lines = Vec::new();
        for unit in survey.units.iter().filter(|unit| unit.slot == *slot) {
            for process in &unit.processes {
                lines.push(format!("process {}: {}", process.identity.pid, escape::command(&process.command)));
                for (app, judged) in survey.judged.get(&process.identity).into_iter().flatten() {
                    let verdict = judged.verdict.map_or("untracked", Verdict::as_str);
                    lines
                        .push(format!("process {}, {app}: {verdict} because {}", process.identity.pid, judged.because));
                    let telling =
                        judged.enums.iter().filter(|entry| matches!(entry.verdict, Verdict::Stale | Verdict::Unknown));
                    lines.extend(telling.flat_map(differences));
                }
            }
        }
        if let Some(more @ 1..) = lines.len().checked_sub(LINES_MAX) {
            lines.truncate(LINES_MAX);
            lines.push(format!("and {more} lines more"));
        }
        lines
    }

    fn slot_of(&self, pid: Pid) -> Option<(HostName, SlotId)> {
        let survey = self.seen.borrow();
        let unit = survey.units.iter().find(|unit| unit.processes.iter().any(|process| process.identity.pid == pid))?;
        Some((self.host.clone(), unit.slot.clone()))
    }
}

/// Members that differ between memory and source, one line each.
pub(crate) fn differences(entry: &EnumJudged) -> Vec<String> {
    let mut lines = vec![format!("  {}: {}", entry.name, entry.because)];
    if let (Some(memory), Some(source)) = (&entry.memory, &entry.source) {
        for member in &memory.definition.members {
            let wanted = source.definition.value(&member.name);
            if wanted.is_none_or(|wanted| *wanted != member.value) {
                let wanted = wanted.map_or_else(|| "gone".to_owned(), unstale_protocol::value::Value::repr);
                lines.push(format!("    {} = {} in memory, {wanted} in source", member.name, member.value.repr()));
            }
        }
        for member in &source.definition.members {
            if memory.definition.value(&member.name).is_none() {
                lines.push(format!("    {} is missing in memory, {} in source", member.name, member.value.repr()));
            }
        }
    }
    for binding in entry.bindings.iter().filter(|binding| binding.verdict == Verdict::Stale) {
        lines.push(format!("    {}: {}", binding.column, binding.because));
    }
    lines
}
