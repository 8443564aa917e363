//! What this host's own agent saw last, for `why` and for selectors that name a child.

use crate::coordinator::LocalEvidence;
use std::sync::Arc;
use tokio::sync::watch;
use unstale_agent::display::escape;
use unstale_agent::judge::EnumJudged;
use unstale_agent::process::Process;
use unstale_agent::survey::Survey;
use unstale_protocol::ids::{HostName, Pid, SlotId};
use unstale_protocol::verdict::Verdict;

/// Lines of evidence per slot; the rest are counted.
const LINES_MAX: usize = 40;
/// Processes named in one line; the rest are counted.
const PIDS_SHOWN: usize = 10;

/// The newest survey of this host.
#[derive(Debug)]
pub(in crate::commands) struct Evidence {
    host: HostName,
    seen: watch::Receiver<Arc<Survey>>,
}

impl Evidence {
    /// Makes evidence of what `seen` shows of `host`.
    pub(in crate::commands) fn new(host: HostName, seen: watch::Receiver<Arc<Survey>>) -> Self {
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
            let processes: Vec<Told> = unit.processes.iter().map(|process| of_process(&survey, process)).collect();
            lines.extend(told(&processes));
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

/// One process: its pid, its command line, and what is to be said of it.
pub(crate) type Told = (Pid, String, Vec<String>);

fn of_process(survey: &Survey, process: &Process) -> Told {
    let mut lines = Vec::new();
    for (app, judged) in survey.judged.get(&process.identity).into_iter().flatten() {
        let verdict = judged.verdict.map_or("untracked", Verdict::as_str);
        lines.push(format!("{app}: {verdict} because {}", judged.because));
        let telling = judged.enums.iter().filter(|entry| matches!(entry.verdict, Verdict::Stale | Verdict::Unknown));
        lines.extend(telling.flat_map(differences));
    }
    (process.identity.pid, escape::command(&process.command), lines)
}

/// Returns lines about the processes of a unit. Forked children repeat their parent: what several share is said once.
pub(crate) fn told(processes: &[Told]) -> Vec<String> {
    let mut lines = Vec::new();
    for (pids, command) in groups(processes, |(_, command, _)| command) {
        lines.push(format!("{}: {command}", names(&pids)));
    }
    for (pids, said) in groups(processes, |(_, _, said)| said) {
        if let Some((first, rest)) = said.split_first() {
            lines.push(format!("{}, {first}", names(&pids)));
            lines.extend(rest.iter().cloned());
        }
    }
    lines
}

fn groups<T: PartialEq>(processes: &[Told], of: impl Fn(&Told) -> &T) -> Vec<(Vec<Pid>, &T)> {
    let mut groups: Vec<(Vec<Pid>, &T)> = Vec::new();
    for told in processes {
        match groups.iter_mut().find(|(_, value)| *value == of(told)) {
            Some((pids, _)) => pids.push(told.0),
            None => groups.push((vec![told.0], of(told))),
        }
    }
    groups
}

fn names(pids: &[Pid]) -> String {
    let shown: Vec<String> = pids.iter().take(PIDS_SHOWN).map(ToString::to_string).collect();
    let more = pids.len().saturating_sub(PIDS_SHOWN);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} {}{rest}", if pids.len() == 1 { "process" } else { "processes" }, shown.join(", "))
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
        let column = binding.column.to_string();
        let because = binding.because.strip_prefix(&column).unwrap_or(&binding.because);
        lines.push(format!("    {column}: {}", because.trim_start()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_forked_children_repeat_is_said_once() {
        let told_of = |pid: u32, said: &[&str]| {
            (Pid(pid), "celery worker".to_owned(), said.iter().map(|&line| line.to_owned()).collect())
        };
        let stale = ["shop: stale because x", "  CrmType: differs"];
        let lines = told(&[told_of(7, &stale), told_of(8, &stale), told_of(9, &["shop: fresh because y"])]);
        assert_eq!(
            lines,
            [
                "processes 7, 8, 9: celery worker",
                "processes 7, 8, shop: stale because x",
                "  CrmType: differs",
                "process 9, shop: fresh because y",
            ]
        );
    }
}
