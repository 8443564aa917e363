//! A process against a manifest: what is wanted after a broadcast.

use super::binding::{self, Wanted};
use super::enums::{
    BindingJudged, EnumJudged, LayerView, WorkerJudged, bytecode, conclude, finding, worse_bytecode, worse_memory,
};
use super::fit::Placed;
use super::own::{Columns, bytecode_layer, is_importing, obstacle, stale_files, standing};
use super::view::{CodeView, ModuleView};
use crate::reading::{LoadedEnum, Reading};
use std::collections::BTreeSet;
use unstale_protocol::enumdef::Outline;
use unstale_protocol::ids::PythonVersion;
use unstale_protocol::manifest::{Entry, Manifest, ManifestBinding};
use unstale_protocol::verdict::{Bytecode, Memory, Source, Verdict};

/// Judges every entry of a manifest that fits the process, and names what else the app has loaded.
pub fn against_manifest(reading: &Reading, code: &CodeView, manifest: &Manifest, placed: &Placed) -> WorkerJudged {
    if let Some(why) = obstacle(reading) {
        return WorkerJudged::unknown(why);
    }
    let Some(interpreter) = &reading.interpreter else {
        return WorkerJudged::unknown("its interpreter was not found");
    };
    let judge = Judge { reading, code, placed, python: interpreter.version, columns: Columns::of(reading) };
    let mut enums = Vec::new();
    let mut files_right = true;
    let mut judged_addresses = BTreeSet::new();
    for entry in &manifest.entries {
        let (judged, right) = judge.entry(entry, &mut judged_addresses);
        files_right &= right;
        enums.push(judged);
    }
    enums.extend(judge.others(&judged_addresses));
    let views = placed.keys.values().flatten().filter_map(|key| code.modules.get(key)).chain(code.unloaded.values());
    WorkerJudged::of(enums, stale_files(views.map(AsRef::as_ref)), files_right)
}

struct Judge<'a> {
    reading: &'a Reading,
    code: &'a CodeView,
    placed: &'a Placed,
    python: PythonVersion,
    columns: Columns<'a>,
}

impl<'a> Judge<'a> {
    /// Returns the module at the relative path: a loaded copy, else the file of the next start.
    fn module(&self, path: &str) -> Option<&'a ModuleView> {
        let loaded = self.placed.keys.get(path).into_iter().flatten().find_map(|key| self.code.modules.get(key));
        loaded.or_else(|| self.code.unloaded.get(path)).map(AsRef::as_ref)
    }

    fn is_at(&self, path: &str, key: Option<&String>) -> bool {
        self.placed.keys.get(path).is_some_and(|keys| key.is_some_and(|key| keys.contains(key)))
    }

    /// Every loaded copy of the class: whatever `sys.modules` calls its module.
    fn copies(&self, entry: &Entry) -> impl Iterator<Item = &'a LoadedEnum> {
        self.reading.enums.iter().filter(move |loaded| {
            loaded.name.qualname == entry.qualname
                && self.is_at(&entry.path, loaded.module_key.as_ref())
                && self.columns.is_of_interest(loaded)
        })
    }

    fn entry(&self, entry: &Entry, seen: &mut BTreeSet<u64>) -> (EnumJudged, bool) {
        let module = self.module(&entry.path);
        let variant = entry.variant(self.python);
        let outline = variant.map(|variant| &variant.outline);
        let mut memory = Memory::NotLoaded;
        let mut undecided = 0;
        let mut shown = None;
        for loaded in self.copies(entry) {
            seen.insert(loaded.address);
            let found = match (standing(self.reading, loaded), variant) {
                (Some(found), _) => found,
                (None, None) => Memory::Equal,
                (None, Some(variant)) if !variant.members_known => {
                    Memory::Untracked("its members cannot be computed from its source".into())
                }
                (None, Some(variant)) => {
                    let comparison = variant.outline.compare(&loaded.definition.outline());
                    undecided = u32::try_from(comparison.undecided.len()).unwrap_or(u32::MAX);
                    finding(&comparison, "what is wanted")
                }
            };
            memory = worse_memory(memory, found);
            shown = Some(loaded);
        }
        let mut source = Self::source(module, entry, outline);
        let mut code_bytes = bytecode(module);
        let mut bindings = Vec::new();
        for wanted in &entry.bindings {
            let (found, judged) = self.column(wanted, outline);
            if !matches!(found, Memory::Untracked(_)) {
                memory = worse_memory(memory, found);
            }
            bindings.extend(judged);
            let of_binding = self.module(&wanted.path);
            source = worse_source(source, binding_source(of_binding, wanted, outline));
            code_bytes = worse_bytecode(code_bytes, bytecode(of_binding));
        }
        if memory == Memory::NotLoaded && self.is_absent(entry) {
            // Neither loaded nor on this host: nothing old can come of it.
            source = Source::Right;
        }
        let right = source == Source::Right && code_bytes == Bytecode::Right;
        let judgement = conclude(memory, source, code_bytes);
        let defined = module.and_then(|module| module.defined(&entry.qualname));
        let judged = EnumJudged {
            name: entry.name(),
            verdict: judgement.verdict,
            cure: judgement.cure,
            because: judgement.because,
            memory: shown.map(|loaded| LayerView { definition: loaded.definition.clone(), path: None, stale: false }),
            bytecode: module.and_then(|module| bytecode_layer(module, &entry.qualname)),
            source: defined.map(|defined| LayerView {
                definition: defined.definition.clone(),
                path: module.and_then(|module| module.next.clone()),
                stale: false,
            }),
            bindings,
            undecided,
        };
        (judged, right)
    }

    /// Tells whether none of the entry's files is loaded or on this host.
    fn is_absent(&self, entry: &Entry) -> bool {
        let paths = entry.bindings.iter().map(|binding| &binding.path).chain([&entry.path]);
        paths.into_iter().all(|path| {
            let is_loaded = self.placed.keys.contains_key(path);
            !is_loaded && self.module(path).is_none_or(|module| module.next.is_none())
        })
    }

    /// Compares the definition that the next-start source has with the wanted one.
    fn source(module: Option<&ModuleView>, entry: &Entry, outline: Option<&Outline>) -> Source {
        let wrong = |why: String| match module {
            Some(module) if module.in_image => Source::Immutable(why),
            _ => Source::NotRight(why),
        };
        let Some(wanted) = outline else { return Source::Right };
        let Some(found) = module else { return wrong(format!("{} is not on this host", entry.path)) };
        if let Some(why) = &found.problem {
            return wrong(why.clone());
        }
        match found.defined(&entry.qualname) {
            None => wrong(format!("{} does not define {}", entry.path, entry.qualname)),
            Some(defined) if wanted.compare(&defined.definition.outline()).is_different() => {
                wrong(format!("{} defines {} otherwise", entry.path, entry.qualname))
            }
            Some(_) => Source::Right,
        }
    }

    /// Judges one wanted column in memory.
    fn column(&self, wanted: &ManifestBinding, outline: Option<&Outline>) -> (Memory, Vec<BindingJudged>) {
        let module = self.module(&wanted.path);
        let labels = match wanted.labels(outline) {
            Some(labels) => Wanted::Labels(labels),
            None => Wanted::Unresolved("its declaration cannot be computed".into()),
        };
        let mut memory = Memory::NotLoaded;
        let mut judged = Vec::new();
        for mapped in &self.reading.mapped {
            if mapped.name.qualname != wanted.column.class || !self.is_at(&wanted.path, Some(&mapped.name.module)) {
                continue;
            }
            if is_importing(self.reading, Some(&mapped.name.module)) {
                memory = worse_memory(memory, Memory::Unknown("starting: its module is still being imported".into()));
                continue;
            }
            if mapped.plain_columns.contains(&wanted.column.column) {
                let why = format!("{} is no Enum in memory yet", wanted.column);
                memory = worse_memory(memory, Memory::Different(why));
            }
            for column in mapped.bindings.iter().filter(|column| column.column.column == wanted.column.column) {
                let in_memory = binding::labels(self.reading, column);
                let source = module.and_then(|module| module.binding(&column.column.class, &column.column.column));
                let found = binding::explain(
                    binding::compare(&labels, &in_memory),
                    column,
                    &in_memory,
                    source.map(|binding| binding.labels.as_slice()),
                );
                judged.push(binding::judged(column, in_memory, module, &found));
                memory = worse_memory(memory, found);
            }
        }
        (memory, judged)
    }

    /// What the app has loaded besides: outside verdicts, but counted.
    fn others(&self, seen: &BTreeSet<u64>) -> Vec<EnumJudged> {
        let keys: BTreeSet<&String> = self.placed.keys.values().flatten().collect();
        self.reading
            .enums
            .iter()
            .filter(|loaded| !seen.contains(&loaded.address) && self.columns.is_of_interest(loaded))
            .filter(|loaded| loaded.module_key.as_ref().is_some_and(|key| keys.contains(key)))
            .map(|loaded| {
                let importing = is_importing(self.reading, loaded.module_key.as_ref());
                let (verdict, because) = if importing {
                    (Verdict::Unknown, "starting: its module is still being imported")
                } else {
                    (Verdict::Untracked, "what is wanted does not name it")
                };
                EnumJudged {
                    name: loaded.name.clone(),
                    verdict,
                    cure: unstale_protocol::verdict::Cure::None,
                    because: because.into(),
                    memory: Some(LayerView { definition: loaded.definition.clone(), path: None, stale: false }),
                    bytecode: None,
                    source: None,
                    bindings: Vec::new(),
                    undecided: 0,
                }
            })
            .collect()
    }
}

fn worse_source(a: Source, b: Source) -> Source {
    match (&a, &b) {
        (Source::Immutable(_), _) => a,
        (_, Source::Immutable(_)) => b,
        (Source::NotRight(_), _) => a,
        _ => b,
    }
}

/// Compares what the next-start source sends on one column with what is wanted.
fn binding_source(module: Option<&ModuleView>, wanted: &ManifestBinding, outline: Option<&Outline>) -> Source {
    let wrong = |why: String| match module {
        Some(module) if module.in_image => Source::Immutable(why),
        _ => Source::NotRight(why),
    };
    let Some(found) = module else { return wrong(format!("{} is not on this host", wanted.path)) };
    if let Some(why) = &found.problem {
        return wrong(why.clone());
    }
    let Some(binding) = found.binding(&wanted.column.class, &wanted.column.column) else {
        return wrong(format!("{} does not bind {}", wanted.path, wanted.column));
    };
    let labels = wanted.labels(outline);
    let same = match (labels, binding::of_binding(binding)) {
        (Some(wanted), Wanted::Labels(found)) => {
            wanted.len() == found.len() && wanted.iter().zip(&found).all(|(a, b)| a.is_none() || b.is_none() || a == b)
        }
        // Where one side cannot be computed nothing is proven to differ.
        _ => true,
    };
    if same { Source::Right } else { wrong(format!("{} sends other labels on {}", wanted.path, wanted.column)) }
}
