//! The static pre-flight: would the unit's code be imported at its next start? Nothing of it is run.

use super::code::files;
use super::{Eyes, LookOptions};
use crate::lookup::{Located, Query};
use crate::process::Unit;
use crate::reading::{Interpreter, LoadedModule, Outcome};
use std::collections::BTreeMap;
use unstale_protocol::ids::ProcessIdentity;

/// What the pre-flight says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Preflight {
    /// Every first-party module parses, and its first-party imports lead to files.
    Clear,
    /// The unit would not start, or it cannot be said; the text names module and line.
    Refused(String),
}

impl Eyes {
    /// Checks every first-party module that the unit has loaded.
    pub async fn preflight(&mut self, unit: &Unit, options: &LookOptions) -> Preflight {
        let Some(root) = unit.root() else { return Preflight::Refused("it has ended".into()) };
        let mut modules: BTreeMap<String, LoadedModule> = BTreeMap::new();
        let mut first: Option<(ProcessIdentity, Interpreter)> = None;
        let wide = LookOptions { list_modules: true, ..options.clone() };
        for process in &unit.processes {
            let asked = Self::read_options(unit, process, &wide, &[]);
            let reading = self.reader.read(process.identity, &asked).await;
            match (&reading.outcome, reading.interpreter) {
                (Outcome::Complete, Some(interpreter)) => {
                    first.get_or_insert((process.identity, interpreter));
                    modules.extend(reading.modules.into_iter().map(|module| (module.name.clone(), module)));
                }
                // A child that ended meanwhile took nothing with it that its root would not load again.
                (Outcome::Gone, _) if process.identity != root.identity => {}
                _ => return Preflight::Refused(format!("process {} cannot be read", process.identity.pid)),
            }
        }
        let Some((identity, interpreter)) = first else { return Preflight::Refused("it has ended".into()) };
        let query = |modules: Vec<LoadedModule>| Query {
            modules,
            path: interpreter.path.clone(),
            argv0: interpreter.argv.first().cloned(),
            python: interpreter.version,
            cwd: root.cwd.clone(),
            pwd: variable(root, "PWD"),
            python_path: variable(root, "PYTHONPATH"),
            root: options.next_root.clone(),
            supervisor_directory: None,
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
        let lookup = self.reader.find(identity, query(loaded.clone())).await.map_err(|error| error.to_string())?;
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
        let wanted: Vec<String> = paths.values().cloned().collect();
        let mut found = files(&mut self.reader, &mut self.parser, &mut self.summaries, identity, &wanted, None).await;
        for (name, path) in paths {
            match found.remove(&path) {
                Some(Ok(file)) => {
                    if let Err(why) = file.what {
                        return Err(format!("{name}: {path}: {why}"));
                    }
                }
                Some(Err(why)) => return Err(format!("{name}: {path}: {why}")),
                // Two names of one file: it was checked under the other.
                None => {}
            }
        }
        Ok(())
    }
}

fn variable(process: &crate::process::Process, name: &str) -> Option<String> {
    process.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
}
