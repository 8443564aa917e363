//! The code that a process would load at its next start: found, fetched, parsed and evaluated.

use super::summaries::{State, Summaries, Summarised};
use super::views::{Basis, Round};
use crate::bytecode::header;
use crate::files::FileFacts;
use crate::judge::{BytecodeState, CodeView, Fit, ModuleView, fit};
use crate::lookup::{Located, Query};
use crate::parser::{self, Item, Parser};
use crate::process::Process;
use crate::purge::StaleFile;
use crate::python::link::{Evaluated, ModuleKind, Project};
use crate::reader::{Reader, Turn};
use crate::reading::{Interpreter, LoadedModule, Reading};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use unstale_protocol::ids::{ProcessIdentity, PythonVersion};
use unstale_protocol::manifest::Manifest;

/// How often modules that would help are looked up.
const ROUNDS_MAX: usize = 8;
/// Most modules that are joined to judge one process.
const MODULES_MAX: usize = 5_000;

/// What is needed to see code.
pub(super) struct Code<'a> {
    pub(super) reader: &'a Reader,
    pub(super) parser: &'a mut Parser,
    pub(super) summaries: &'a mut Summaries,
    pub(super) process: &'a Process,
    pub(super) unit_root: &'a Process,
    pub(super) next_root: Option<&'a str>,
    /// The directory that the unit's supervisor starts it in.
    pub(super) supervisor_directory: Option<String>,
}

/// One module on its way to a [`ModuleView`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The name under which other modules import it.
    name: String,
    imported_from: Option<String>,
    next: Option<String>,
    resolved: Option<String>,
    problem: Option<String>,
    in_image: bool,
    facts: Option<FileFacts>,
    source: Option<Arc<crate::python::ir::Summary>>,
    pyc: Option<Pyc>,
}

/// Bytecode that CPython would use.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pyc {
    path: String,
    facts: FileFacts,
    what: Summarised,
}

impl Code<'_> {
    /// Returns the code of the process's next start, as far as its enums, its columns and `manifests` need it.
    pub(super) async fn view(&mut self, reading: &Reading, manifests: &[Arc<Manifest>]) -> Arc<CodeView> {
        let Some(interpreter) = &reading.interpreter else { return problem("its interpreter was not found") };
        let holding: BTreeSet<&String> = reading
            .enums
            .iter()
            .filter_map(|loaded| loaded.module_key.as_ref())
            .chain(reading.mapped.iter().map(|mapped| &mapped.name.module))
            .collect();
        let query = self.query(interpreter, reading.modules.clone());
        let key = self.key(&query, &holding, interpreter);
        if let Some(view) = self.summaries.views.shared(&key) {
            return view;
        }
        let identity = self.process.identity;
        let mut turn = self.reader.turn().await;
        let lookup = match turn.find(identity, query).await {
            Ok(lookup) => lookup,
            Err(error) => return problem(format!("its files cannot be looked at: {error}")),
        };
        let mut loaded: BTreeMap<String, Found> = BTreeMap::new();
        for (finding, module) in lookup.findings.into_iter().zip(&reading.modules) {
            let (next, problem) = place(&finding.next);
            let found = Found {
                name: module.spec_name.clone().unwrap_or_else(|| module.name.clone()),
                imported_from: finding.imported_from,
                next,
                problem,
                in_image: finding.in_image,
                ..Found::default()
            };
            loaded.insert(module.name.clone(), found);
        }
        let interesting = loaded
            .iter_mut()
            .filter(|(key, found)| holding.contains(key) || is_named(found, manifests))
            .map(|(_, found)| found);
        self.fill(Some(turn), interesting.collect(), interpreter).await;
        let mut unloaded = Self::unloaded(reading, &loaded, manifests);
        self.fill(None, unloaded.values_mut().collect(), interpreter).await;
        if let Some((view, before)) = self.summaries.views.earlier(&key)
            && before.loaded == loaded
            && before.unloaded == unloaded
            && self.finds_again(interpreter, &before.helpers).await
        {
            self.summaries.views.keep(key, Arc::clone(&view), before);
            return view;
        }
        let helpers = self.helpers(interpreter, loaded.values().chain(unloaded.values())).await;
        let basis = Basis { loaded, unloaded, helpers };
        let view = Arc::new(evaluate(interpreter, &basis));
        self.summaries.views.keep(key, Arc::clone(&view), Arc::new(basis));
        view
    }

    fn query(&self, interpreter: &Interpreter, modules: Vec<LoadedModule>) -> Query {
        let variable =
            |name: &str| self.unit_root.variable(name).or_else(|| self.process.variable(name)).map(ToOwned::to_owned);
        Query {
            modules,
            path: interpreter.path.clone(),
            argv0: interpreter.argv.first().cloned(),
            python: interpreter.version,
            cwd: self.process.cwd.clone(),
            pwd: variable("PWD"),
            python_path: variable("PYTHONPATH"),
            root: self.next_root.map(ToOwned::to_owned),
            supervisor_directory: self.supervisor_directory.clone(),
        }
    }

    /// Processes that would load the same files share one view within a look.
    fn key(&self, query: &Query, holding: &BTreeSet<&String>, interpreter: &Interpreter) -> String {
        let place = (self.process.mount_namespace, interpreter.optimize, &interpreter.pycache_prefix);
        serde_json::to_string(&(query, holding, place)).unwrap_or_default()
    }

    /// The modules that a manifest names and that are not loaded: their files at the next start.
    fn unloaded(
        reading: &Reading,
        loaded: &BTreeMap<String, Found>,
        manifests: &[Arc<Manifest>],
    ) -> BTreeMap<String, Found> {
        let mut view = CodeView::default();
        for (key, found) in loaded {
            let module = ModuleView { imported_from: found.imported_from.clone(), ..ModuleView::default() };
            view.modules.insert(key.clone(), Arc::new(module));
        }
        let mut unloaded = BTreeMap::new();
        for manifest in manifests {
            let Fit::Yes(placed) = fit(manifest, reading, &view) else { continue };
            let root = placed.keys.iter().find_map(|(path, keys)| {
                let next = keys.iter().find_map(|key| loaded.get(key)?.next.as_ref())?;
                next.strip_suffix(path.as_str())?.strip_suffix('/').map(ToOwned::to_owned)
            });
            let Some(root) = root else { continue };
            let in_image = loaded.values().any(|found| found.in_image);
            for (path, module) in named(manifest) {
                if placed.keys.contains_key(path) {
                    continue;
                }
                let next = Some(format!("{root}/{path}"));
                let found = Found { name: module.to_owned(), next, in_image, ..Found::default() };
                unloaded.insert(path.to_owned(), found);
            }
        }
        unloaded
    }

    /// Fetches and parses source and bytecode of what was found. Goes on with `turn` where there is one.
    async fn fill(&mut self, turn: Option<Turn<'_>>, mut found: Vec<&mut Found>, interpreter: &Interpreter) {
        found.retain(|module| module.next.is_some() && module.problem.is_none());
        let prefix = interpreter.pycache_prefix.as_deref();
        let cache = |source: &str| header::cache_path(source, interpreter.version, interpreter.optimize, prefix);
        let sources = found.iter().filter_map(|module| Some((module.next.clone()?, None)));
        let caches = found.iter().filter_map(|module| Some((cache(module.next.as_ref()?), Some(interpreter.version))));
        let wanted: Vec<Wanted> = sources.chain(caches).collect();
        let turn = match turn {
            Some(turn) => turn,
            None if wanted.is_empty() => return,
            None => self.reader.turn().await,
        };
        let files = files(turn, self.parser, self.summaries, self.process.identity, &wanted).await;
        for module in found {
            let Some(path) = module.next.clone() else { continue };
            match files.get(&path) {
                Some(Ok(file)) => {
                    module.resolved = Some(file.facts.path_resolved.clone());
                    module.facts = Some(file.facts.clone());
                    match &file.what {
                        Ok(summary) => module.source = Some(Arc::clone(summary)),
                        Err(why) => module.problem = Some(format!("{path}: {why}")),
                    }
                }
                Some(Err(why)) => {
                    module.problem = Some(format!("{path}: {why}"));
                    module.next = None;
                }
                None => module.problem = Some(format!("{path} could not be read")),
            }
            let (Some(facts), cache) = (module.facts.clone(), cache(&path)) else { continue };
            let Some(Ok(file)) = files.get(&cache) else { continue };
            if self.is_accepted(&file.header, &facts, module.next.as_deref(), interpreter).await {
                module.pyc = Some(Pyc { path: cache, facts: file.facts.clone(), what: file.what.clone() });
            }
        }
    }

    /// Tells whether this interpreter would take the bytecode for that source without looking at its text.
    async fn is_accepted(
        &mut self,
        bytes: &[u8],
        source: &FileFacts,
        path: Option<&str>,
        interpreter: &Interpreter,
    ) -> bool {
        let Ok(found) = header::read(bytes, interpreter.version) else { return false };
        let stat = header::SourceStat { size: source.size, mtime_s: source.mtime_s, mtime_ns: source.mtime_ns };
        let text = match (found.validity, path) {
            (header::Validity::CheckedHash(_), Some(path)) => {
                match self.reader.turn().await.fetch(self.process.identity, &[path.to_owned()]).await {
                    Ok(fetched) => fetched.into_iter().next().and_then(Result::ok).map(|file| file.bytes),
                    Err(_) => None,
                }
            }
            _ => None,
        };
        found.accepts(&stat, text.as_deref().unwrap_or_default()) != header::Acceptance::Ignored
    }

    /// Modules that others import names from, found as the next start would find them.
    async fn helpers<'f>(&mut self, interpreter: &Interpreter, known: impl Iterator<Item = &'f Found>) -> Vec<Round> {
        let mut project = Project::new(interpreter.version);
        let mut names = BTreeSet::new();
        for found in known.filter(|found| found.facts.is_some()) {
            insert(&mut project, found);
            names.insert(found.name.clone());
        }
        let interest = names.clone();
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let missing: BTreeSet<String> = interest
                .iter()
                .flat_map(|name| project.definitions(name).missing)
                .filter(|name| !names.contains(name))
                .take(MODULES_MAX)
                .collect();
            if missing.is_empty() {
                break;
            }
            names.extend(missing.iter().cloned());
            let found = self.find_missing(interpreter, &missing).await;
            let is_over = found.is_none();
            found.iter().flatten().for_each(|module| insert(&mut project, module));
            rounds.push(Round { missing, found });
            if is_over {
                break;
            }
        }
        rounds
    }

    /// Looks one round of missing modules up; `None` where the reader has no answer.
    async fn find_missing(&mut self, interpreter: &Interpreter, missing: &BTreeSet<String>) -> Option<Vec<Found>> {
        let query = self.query(interpreter, missing.iter().map(LoadedModule::unloaded).collect());
        let lookup = self.reader.turn().await.find(self.process.identity, query).await.ok()?;
        let mut found: Vec<Found> = lookup
            .findings
            .into_iter()
            .map(|finding| {
                let (next, problem) = place(&finding.next);
                Found { name: finding.module, next, problem, in_image: finding.in_image, ..Found::default() }
            })
            .filter(|found| found.next.as_deref().is_some_and(is_first_party))
            .collect();
        self.fill(None, found.iter_mut().collect(), interpreter).await;
        Some(found)
    }

    /// Tells whether these rounds would find today what they found.
    async fn finds_again(&mut self, interpreter: &Interpreter, rounds: &[Round]) -> bool {
        for round in rounds {
            if round.found.is_none() || self.find_missing(interpreter, &round.missing).await != round.found {
                return false;
            }
        }
        true
    }
}

/// A file with what its content came to.
pub(super) struct File {
    pub(super) facts: FileFacts,
    pub(super) what: Summarised,
    header: Vec<u8>,
}

/// A file that is wanted: source, or bytecode of a version.
pub(super) type Wanted = (String, Option<PythonVersion>);

/// Returns content of files, parsed: from memory where a file has not changed. While the parser works, others may
/// ask the reader.
pub(super) async fn files(
    mut turn: Turn<'_>,
    parser: &mut Parser,
    summaries: &mut Summaries,
    identity: ProcessIdentity,
    wanted: &[Wanted],
) -> BTreeMap<String, Result<File, String>> {
    let mut files = BTreeMap::new();
    if wanted.is_empty() {
        return files;
    }
    let paths: Vec<String> = wanted.iter().map(|(path, _)| path.clone()).collect();
    let Ok(stats) = turn.stat(identity, &paths).await else { return files };
    let mut changed = Vec::new();
    let mut changed_paths = Vec::new();
    for ((path, python), facts) in wanted.iter().zip(stats) {
        match facts {
            Err(error) => {
                files.insert(path.clone(), Err(error.to_string()));
            }
            Ok(facts) => {
                if let Some((what, header)) = summaries.find(&State::of(&facts, *python)) {
                    files.insert(path.clone(), Ok(File { facts, what, header }));
                } else {
                    changed.push((path.clone(), *python));
                    changed_paths.push(path.clone());
                }
            }
        }
    }
    let Ok(fetched) = turn.fetch(identity, &changed_paths).await else { return files };
    drop(turn);
    let mut items = Vec::new();
    let mut fetched_files = Vec::new();
    for ((path, python), file) in changed.into_iter().zip(fetched) {
        match file {
            Err(error) => {
                files.insert(path, Err(error.to_string()));
            }
            Ok(file) => {
                let header = file.bytes.iter().take(header::HEADER_BYTES).copied().collect();
                items.push(match python {
                    None => Item::Source(file.bytes),
                    Some(python) => Item::Bytecode { pyc: file.bytes, python },
                });
                fetched_files.push((path, State::of(&file.facts, python), file.facts, header));
            }
        }
    }
    let parsed = parser.summarize(items).await;
    for ((path, state, facts, header), what) in fetched_files.into_iter().zip(parsed) {
        let what = what.map(Arc::new);
        summaries.keep(state, what.clone(), Vec::clone(&header));
        files.insert(path, Ok(File { facts, what, header }));
    }
    files
}

fn problem(why: impl Into<String>) -> Arc<CodeView> {
    Arc::new(CodeView { problem: Some(why.into()), ..CodeView::default() })
}

fn place(next: &Located) -> (Option<String>, Option<String>) {
    match next {
        Located::Source { path } => (Some(path.clone()), None),
        Located::Bytecode { path } => (None, Some(format!("{path} is bytecode without a source"))),
        Located::Extension { path } => (None, Some(format!("{path} is an extension module"))),
        Located::Namespace { .. } => (None, None),
        Located::Absent { searched } => {
            let places = searched.first().map_or_else(|| "sys.path".to_owned(), Clone::clone);
            (None, Some(format!("its source is gone: not found in {places}")))
        }
        Located::Unsupported { why } => (None, Some(why.clone())),
    }
}

/// Helpers of the standard library and of installed packages would cost much and say little: their names are known.
fn is_first_party(path: &str) -> bool {
    !path.split('/').any(|part| {
        part == "site-packages" || part == "dist-packages" || part.strip_prefix("python3.").is_some_and(is_minor)
    })
}

fn is_minor(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_digit())
}

fn named(manifest: &Manifest) -> BTreeMap<&str, &str> {
    let of_entries = manifest.entries.iter().map(|entry| (entry.path.as_str(), entry.module.as_str()));
    let of_bindings = manifest
        .entries
        .iter()
        .flat_map(|entry| entry.bindings.iter().map(|binding| (binding.path.as_str(), binding.column.module.as_str())));
    of_entries.chain(of_bindings).collect()
}

/// A module that a manifest names is looked at although it holds nothing yet: it may still be importing.
fn is_named(found: &Found, manifests: &[Arc<Manifest>]) -> bool {
    let Some(file) = &found.imported_from else { return false };
    manifests.iter().any(|manifest| {
        named(manifest).keys().any(|path| file.strip_suffix(path).is_some_and(|root| root.ends_with('/')))
    })
}

fn kind(found: &Found) -> ModuleKind {
    let is_package = found.next.as_deref().is_some_and(|path| path.ends_with("/__init__.py"));
    if is_package { ModuleKind::Package } else { ModuleKind::Module }
}

fn insert(project: &mut Project, found: &Found) {
    if let Some(summary) = &found.source {
        project.insert(found.name.clone(), kind(found), Arc::clone(summary));
    }
}

/// Evaluates source and, where it would be used, bytecode, and says which bytecode is stale.
fn evaluate(interpreter: &Interpreter, basis: &Basis) -> CodeView {
    let helpers: Vec<&Found> = basis.helpers.iter().filter_map(|round| round.found.as_ref()).flatten().collect();
    let all = || basis.loaded.values().chain(basis.unloaded.values()).chain(helpers.iter().copied());
    let mut source = Project::new(interpreter.version);
    for found in all() {
        insert(&mut source, found);
    }
    let mut compiled = source.clone();
    for found in all() {
        if let (Some(Pyc { what: Ok(summary), .. }), Some(_)) = (&found.pyc, &found.source) {
            compiled.insert(found.name.clone(), kind(found), Arc::clone(summary));
        }
    }
    let views = |modules: &BTreeMap<String, Found>| {
        let view = |found| Arc::new(module_view(&source, &compiled, found, &helpers));
        modules.iter().map(|(key, found)| (key.clone(), view(found))).collect()
    };
    CodeView { modules: views(&basis.loaded), unloaded: views(&basis.unloaded), problem: None }
}

fn module_view(source: &Project, compiled: &Project, found: &Found, helpers: &[&Found]) -> ModuleView {
    let evaluated = if found.source.is_some() { source.definitions(&found.name) } else { Evaluated::default() };
    let bytecode = bytecode_state(source, compiled, found, &evaluated, helpers);
    ModuleView {
        imported_from: found.imported_from.clone(),
        next: found.next.clone(),
        next_resolved: found.resolved.clone(),
        problem: found.problem.clone(),
        in_image: found.in_image,
        source: evaluated,
        bytecode,
    }
}

fn bytecode_state(
    source: &Project,
    compiled: &Project,
    found: &Found,
    evaluated: &Evaluated,
    helpers: &[&Found],
) -> BytecodeState {
    let together = if found.source.is_some() { compiled.definitions(&found.name) } else { Evaluated::default() };
    let Some(why) = crate::judge::difference(evaluated, &together) else {
        return match &found.pyc {
            None => BytecodeState::None,
            // The interpreter takes the file for its header and then fails on its body: no source is looked at.
            Some(pyc @ Pyc { what: Err(parser::Error::Broken(why)), .. }) => BytecodeState::Stale {
                file: stale_file(pyc),
                defines: Arc::default(),
                why: format!("an import would fail on it: {why}"),
            },
            Some(Pyc { path, what: Err(why), .. }) => {
                BytecodeState::Unknown { path: path.clone(), why: why.to_string() }
            }
            Some(Pyc { path, what: Ok(_), .. }) => {
                BytecodeState::Right { path: path.clone(), defines: Arc::new(together) }
            }
        };
    };
    // Its own bytecode, or that of a module it takes names from: the one whose replacement alone makes the difference.
    let proven = [found].into_iter().chain(helpers.iter().copied()).find(|candidate| {
        let Some(Pyc { what: Ok(summary), .. }) = &candidate.pyc else { return false };
        let mut alone = source.clone();
        alone.insert(candidate.name.clone(), kind(candidate), Arc::clone(summary));
        crate::judge::difference(evaluated, &alone.definitions(&found.name)).is_some()
    });
    match proven.and_then(|candidate| candidate.pyc.as_ref()) {
        Some(pyc) => BytecodeState::Stale { file: stale_file(pyc), defines: Arc::new(together), why },
        None => BytecodeState::Unknown {
            path: found.pyc.as_ref().map_or_else(String::new, |pyc| pyc.path.clone()),
            why: format!("{why}, through more than one file"),
        },
    }
}

fn stale_file(pyc: &Pyc) -> StaleFile {
    StaleFile {
        path: PathBuf::from(&pyc.facts.path_resolved),
        dev: pyc.facts.dev,
        ino: pyc.facts.ino,
        size: pyc.facts.size,
        ctime_ns: i128::from(pyc.facts.ctime_ns),
    }
}
