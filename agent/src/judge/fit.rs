//! Whether a manifest fits a process: its modules are loaded, under one root, with a class in common.

use super::view::CodeView;
use crate::reading::Reading;
use std::collections::{BTreeMap, BTreeSet};
use unstale_protocol::manifest::Manifest;

/// How a manifest and a process fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    /// They have nothing to do with each other.
    No,
    /// They fit in more than one way.
    Ambiguous(String),
    /// They fit under one root.
    Yes(Placed),
}

/// Where a manifest's modules lie in a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The app's root, as the files were imported from it.
    pub root: String,
    /// Keys in `sys.modules` by the manifest's relative path: every loaded copy.
    pub keys: BTreeMap<String, Vec<String>>,
}

/// Says whether `manifest` fits the process: at least one of its modules is loaded, all loaded ones lie under one
/// root at their relative paths, and a class name is shared.
pub fn fit(manifest: &Manifest, reading: &Reading, code: &CodeView) -> Fit {
    let names = module_names(manifest);
    let mut roots: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for (key, module) in &code.modules {
        let Some(file) = &module.imported_from else { continue };
        for path in names.keys() {
            if let Some(root) = file.strip_suffix(*path).and_then(|rest| rest.strip_suffix('/')) {
                let keys = roots.entry(root.to_owned()).or_default();
                keys.entry((*path).to_owned()).or_default().push(key.clone());
            }
        }
    }
    let mut fitting: Vec<Placed> = roots
        .into_iter()
        .map(|(root, keys)| Placed { root, keys })
        .filter(|placed| shares_a_class(manifest, reading, placed) && all_lie_there(&names, code, placed))
        .collect();
    match fitting.len() {
        0 => Fit::No,
        1 => fitting.pop().map_or(Fit::No, Fit::Yes),
        _ => {
            let roots: Vec<_> = fitting.iter().map(|placed| placed.root.as_str()).collect();
            Fit::Ambiguous(format!("its modules are loaded from several roots: {}", roots.join(", ")))
        }
    }
}

/// Relative paths of all modules, each with its dotted name.
fn module_names(manifest: &Manifest) -> BTreeMap<&str, &str> {
    let mut names = BTreeMap::new();
    for entry in &manifest.entries {
        names.insert(entry.path.as_str(), entry.module.as_str());
        for binding in &entry.bindings {
            names.insert(binding.path.as_str(), binding.column.module.as_str());
        }
    }
    names
}

fn shares_a_class(manifest: &Manifest, reading: &Reading, placed: &Placed) -> bool {
    let is_here = |path: &str, key: Option<&String>| {
        placed.keys.get(path).is_some_and(|keys| key.is_some_and(|key| keys.contains(key)))
    };
    manifest.entries.iter().any(|entry| {
        let is_loaded = reading
            .enums
            .iter()
            .any(|loaded| loaded.name.qualname == entry.qualname && is_here(&entry.path, loaded.module_key.as_ref()));
        let is_mapped = entry.bindings.iter().any(|binding| {
            reading.mapped.iter().any(|mapped| {
                mapped.name.qualname == binding.column.class && is_here(&binding.path, Some(&mapped.name.module))
            })
        });
        is_loaded || is_mapped
    })
}

/// A module that is loaded under a manifest's dotted name must be that manifest's file.
fn all_lie_there(names: &BTreeMap<&str, &str>, code: &CodeView, placed: &Placed) -> bool {
    let here: BTreeSet<&String> = placed.keys.values().flatten().collect();
    names.values().all(|name| {
        let key = (*name).to_owned();
        code.modules.get(&key).is_none_or(|module| module.imported_from.is_none() || here.contains(&key))
    })
}
