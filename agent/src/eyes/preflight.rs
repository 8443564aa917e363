//! The static pre-flight: would the unit's code be imported at its next start? Nothing of it is run.

use super::code::{Wanted, files};
use super::{Eyes, LookOptions};
use crate::lookup::{Located, Query};
use crate::preflight::{ImportNeed, imports_needed, provides};
use crate::process::Unit;
use crate::python::ir::Summary;
use crate::python::link::ModuleKind;
use crate::reading::{Interpreter, LoadedModule, Outcome, ReadOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use unstale_protocol::ids::ProcessIdentity;

/// What the pre-flight says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Preflight {
    /// Every first-party module parses, and its first-party imports lead to files.
    Clear,
    /// The unit would not start, or it cannot be said; the text names module and line.
    Refused(String),
    /// It cannot be said now, because a process did not hold still or the look took too long: another look may tell.
    Unclear,
}

/// One first-party module at the next start.
struct Module {
    path: String,
    kind: ModuleKind,
    summary: Arc<Summary>,
}

impl Eyes {
    /// Checks every first-party module that the unit has loaded.
    pub async fn preflight(&mut self, unit: &Unit, options: &LookOptions) -> Preflight {
        let Some(root) = unit.root() else { return Preflight::Refused("it has ended".into()) };
        let mut modules: BTreeMap<String, LoadedModule> = BTreeMap::new();
        let mut first: Option<(ProcessIdentity, Interpreter)> = None;
        for process in &unit.processes {
            let asked = Self::read_options(unit, process, options, &[]);
            let asked = ReadOptions { list_modules: true, ..asked };
            let reading = self.reader.turn().await.read(process.identity, &asked).await;
            match (&reading.outcome, reading.interpreter) {
                (Outcome::Complete, Some(interpreter)) => {
                    first.get_or_insert((process.identity, interpreter));
                    modules.extend(reading.modules.into_iter().map(|module| (module.name.clone(), module)));
                }
                // A child that ended meanwhile took nothing with it that its root would not load again.
                (Outcome::Gone, _) if process.identity != root.identity => {}
                (Outcome::Starting(_) | Outcome::Changing(_) | Outcome::Damaged(_) | Outcome::Timeout, _) => {
                    return Preflight::Unclear;
                }
                _ => return Preflight::Refused(format!("process {} cannot be read", process.identity.pid)),
            }
        }
        let Some((identity, interpreter)) = first else { return Preflight::Refused("it has ended".into()) };
        let Ok(supervisor_directory) = self.supervisors.directory(&unit.supervisor).await else {
            return Preflight::Unclear;
        };
        let query = |modules: Vec<LoadedModule>| Query {
            modules,
            path: interpreter.path.clone(),
            argv0: interpreter.argv.first().cloned(),
            python: interpreter.version,
            cwd: root.cwd.clone(),
            pwd: root.variable("PWD").map(ToOwned::to_owned),
            python_path: root.variable("PYTHONPATH").map(ToOwned::to_owned),
            root: options.next_root.clone(),
            supervisor_directory: supervisor_directory.clone(),
        };
        match self.check(identity, modules, &query).await {
            Ok(()) => Preflight::Clear,
            Err(why) => Preflight::Refused(why),
        }
    }

    async fn check(
        &mut self,
        identity: ProcessIdentity,
        modules: BTreeMap<String, LoadedModule>,
        query: &(dyn Fn(Vec<LoadedModule>) -> Query + Sync),
    ) -> Result<(), String> {
        let loaded: Vec<LoadedModule> = modules.into_values().collect();
        let lookup =
            self.reader.turn().await.find(identity, query(loaded.clone())).await.map_err(|error| error.to_string())?;
        let mut paths = BTreeMap::new();
        for (finding, module) in lookup.findings.into_iter().zip(&loaded) {
            match finding.next {
                Located::Source { path } => {
                    paths.insert(module.spec_name.clone().unwrap_or_else(|| module.name.clone()), path);
                }
                // A module that is gone may simply no longer be imported: who imports it says so below.
                Located::Absent { .. }
                | Located::Bytecode { .. }
                | Located::Extension { .. }
                | Located::Namespace { .. }
                | Located::Unsupported { .. } => {}
            }
        }
        let wanted: Vec<Wanted> = paths.values().map(|path| (path.clone(), None)).collect();
        let turn = self.reader.turn().await;
        let mut found = files(turn, &mut self.parser, &mut self.summaries, identity, &wanted).await;
        let mut parsed: BTreeMap<String, Module> = BTreeMap::new();
        for (name, path) in paths {
            match found.remove(&path) {
                Some(Ok(file)) => match file.what {
                    Ok(summary) => {
                        let is_package = path.ends_with("/__init__.py");
                        let kind = if is_package { ModuleKind::Package } else { ModuleKind::Module };
                        parsed.insert(name, Module { path, kind, summary });
                    }
                    Err(why) => return Err(format!("{name}: {path}: {why}")),
                },
                Some(Err(why)) => return Err(format!("{name}: {path}: {why}")),
                // Two names of one file: it was checked under the other.
                None => {}
            }
        }
        self.check_imports(identity, &parsed, query).await
    }

    /// First-party imports must lead to a file, or to a name that the imported module may define.
    async fn check_imports(
        &mut self,
        identity: ProcessIdentity,
        modules: &BTreeMap<String, Module>,
        query: &(dyn Fn(Vec<LoadedModule>) -> Query + Sync),
    ) -> Result<(), String> {
        let tops: BTreeSet<&str> = modules.keys().map(|name| top(name)).collect();
        let mut wanted: BTreeMap<String, (&Module, ImportNeed)> = BTreeMap::new();
        for (name, module) in modules {
            for need in imports_needed(&module.summary, name, module.kind) {
                if !need.module.starts_with('.') && !tops.contains(top(&need.module)) {
                    continue;
                }
                for file in files_needed(&need, modules) {
                    wanted.entry(file).or_insert_with(|| (module, need.clone()));
                }
            }
        }
        let asked: Vec<LoadedModule> = wanted.keys().map(LoadedModule::unloaded).collect();
        if asked.is_empty() {
            return Ok(());
        }
        let lookup = self.reader.turn().await.find(identity, query(asked)).await.map_err(|error| error.to_string())?;
        for finding in lookup.findings {
            if let (Located::Absent { .. }, Some((module, need))) = (&finding.next, wanted.get(&finding.module)) {
                return Err(format!(
                    "{}:{} imports {}, which leads to no file",
                    module.path, need.line, finding.module
                ));
            }
        }
        Ok(())
    }
}

/// Returns the modules whose files an import needs, those that are known to be there left out.
fn files_needed(need: &ImportNeed, modules: &BTreeMap<String, Module>) -> Vec<String> {
    let Some(known) = modules.get(&need.module) else { return vec![need.module.clone()] };
    let submodule = |name: &String| format!("{}.{name}", need.module);
    need.names
        .iter()
        .filter(|name| !provides(&known.summary, name))
        .map(submodule)
        .filter(|name| !modules.contains_key(name))
        .collect()
}

fn top(module: &str) -> &str {
    module.split('.').next().unwrap_or(module)
}
