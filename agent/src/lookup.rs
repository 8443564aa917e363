//! Where a worker's modules would come from at its next start.
//!
//! A process has its working directory open for ever: a worker started through a `current` link sits in
//! `releases/6` long after the link moved on. What a restart would import is found by looking each module up
//! again through the entry of `sys.path` that it came from, with the working directory replaced by the
//! directory of the next start. Nothing is imported or run. Called by the reader, over [`Tree`].
//!
//! The order of search is that of `importlib._bootstrap_external.FileFinder.find_spec` (CPython 3.8 to 3.14):
//! a package with `__init__`, then a module file, each as extension, source, bytecode; a directory without
//! `__init__` is a portion of a namespace package and loses against anything else.

mod search;
mod start;

pub(crate) use search::{LiveTree, Tree};
pub use start::{Start, StartFrom};

use crate::reading::LoadedModule;
use search::Search;
use serde::{Deserialize, Serialize};
use unstale_protocol::ids::PythonVersion;

/// Most modules that are looked up at once.
pub const MODULES_MAX: usize = 20_000;
/// Most entries of `sys.path` that are searched.
const ENTRIES_MAX: usize = 256;
/// Most parts of a dotted name.
const PARTS_MAX: usize = 32;

/// What is to be looked up, and what is known of the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// The modules, as they are loaded.
    pub modules: Vec<LoadedModule>,
    /// `sys.path`.
    pub path: Vec<String>,
    /// `sys.argv[0]`: a relative script is found in the directory of the next start.
    pub argv0: Option<String>,
    /// The interpreter's version: it is part of the names of extensions.
    pub python: PythonVersion,
    /// Working directory, as the target sees it.
    pub cwd: Option<String>,
    /// `PWD` of its environment.
    pub pwd: Option<String>,
    /// `PYTHONPATH` of its environment: relative entries of it lie below the directory of the next start.
    pub python_path: Option<String>,
    /// The app's root that configuration names.
    pub root: Option<String>,
    /// The directory in which the supervisor starts the unit.
    pub supervisor_directory: Option<String>,
}

/// Both answers for all modules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    /// What the working directory will be.
    pub start: Start,
    /// One answer per module, in the order asked.
    pub findings: Vec<Finding>,
}

/// Both answers for one module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its key in `sys.modules`.
    pub module: String,
    /// The file that it was imported from, absolute; `None` where it has none.
    pub imported_from: Option<String>,
    /// What the next start would import.
    pub next: Located,
    /// Whether the file lies in a layer of a container image: only a deploy changes it.
    pub in_image: bool,
}

/// What an import would find.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Located {
    /// A source file.
    Source {
        /// Absolute path, as the target sees it.
        path: String,
    },
    /// Bytecode without a source beside it.
    Bytecode {
        /// Absolute path, as the target sees it.
        path: String,
    },
    /// An extension module.
    Extension {
        /// Absolute path, as the target sees it.
        path: String,
    },
    /// A namespace package.
    Namespace {
        /// Its portions.
        directories: Vec<String>,
    },
    /// Nothing.
    Absent {
        /// Where it was looked for, at most 8 places.
        searched: Vec<String>,
    },
    /// Something that is not looked into.
    Unsupported {
        /// What and where.
        why: String,
    },
}

impl Located {
    /// Returns the file that would be loaded, if it is one file.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Source { path } | Self::Bytecode { path } | Self::Extension { path } => Some(path),
            Self::Namespace { .. } | Self::Absent { .. } | Self::Unsupported { .. } => None,
        }
    }
}

/// Looks all modules of `query` up in `tree`; `cwd_id` is device and inode of the process's working directory.
pub(crate) fn find(tree: &dyn Tree, query: &Query, cwd_id: Option<(u64, u64)>) -> Lookup {
    let start = start::directory(tree, query, cwd_id);
    let entries: Vec<String> =
        query.path.iter().take(ENTRIES_MAX).map(|entry| start.next_entry(query, entry)).collect();
    let mut search = Search::new(tree, query.python);
    let findings =
        query.modules.iter().take(MODULES_MAX).map(|module| finding(&mut search, query, &start, &entries, module));
    let findings = findings.collect();
    Lookup { start, findings }
}

fn finding(
    search: &mut Search<'_>,
    query: &Query,
    start: &Start,
    entries: &[String],
    module: &LoadedModule,
) -> Finding {
    let file = module.file.as_deref().map(|file| absolute(query.cwd.as_deref(), file));
    let name = module.spec_name.as_deref().unwrap_or(&module.name);
    let next = match &file {
        Some(file) if name == "__main__" => script(search, query, start, file),
        Some(file) => match base(file, name) {
            Some(base) => through_entry(search, query, start, entries, name, &base),
            // The key says nothing about the file (an alias, an importer of its own): the same file again.
            None => search.file(&start.moved(query, file)),
        },
        None => search.module(name, entries),
    };
    let in_image = next.path().is_some_and(|path| search.is_image(path));
    Finding { module: module.name.clone(), imported_from: file, next, in_image }
}

fn through_entry(
    search: &mut Search<'_>,
    query: &Query,
    start: &Start,
    entries: &[String],
    name: &str,
    base: &str,
) -> Located {
    let came_from = query
        .path
        .iter()
        .zip(entries)
        .find(|(entry, _)| absolute(query.cwd.as_deref(), entry) == base)
        .map(|(_, next)| next.clone());
    let own = came_from.unwrap_or_else(|| start.moved_entry(query, base));
    let mut order = vec![own.clone()];
    order.extend(entries.iter().filter(|entry| **entry != own).cloned());
    search.module(name, &order)
}

/// A script has no entry of `sys.path`: it is named by the command line, relative or not.
fn script(search: &mut Search<'_>, query: &Query, start: &Start, file: &str) -> Located {
    let relative = query.argv0.as_deref().filter(|argv0| !argv0.is_empty() && !argv0.starts_with('/'));
    let next = match relative {
        Some(argv0) if file.ends_with(&normal(&format!("/{argv0}"))) => {
            absolute(start.directory.as_deref().or(query.cwd.as_deref()), argv0)
        }
        _ => file.to_owned(),
    };
    search.file(&next)
}

/// Returns the directory in which `name` was searched when it was found as `file`: `/srv` for `a.b` in
/// `/srv/a/b.py` or `/srv/a/b/__init__.py`.
fn base(file: &str, name: &str) -> Option<String> {
    let (directory, leaf) = file.rsplit_once('/')?;
    let stem = leaf.split('.').next()?;
    let mut parts: Vec<&str> = name.split('.').collect();
    if parts.len() > PARTS_MAX {
        return None;
    }
    if stem != "__init__" {
        (parts.pop()? == stem).then_some(())?;
    }
    let mut rest = directory;
    for part in parts.iter().rev() {
        let (before, last) = rest.rsplit_once('/')?;
        (last == *part).then_some(())?;
        rest = before;
    }
    Some(if rest.is_empty() { "/".to_owned() } else { rest.to_owned() })
}

/// Returns `path` as an absolute path without `.`, empty parts and a final slash; `..` stays, since it may
/// follow a symbolic link.
pub(crate) fn absolute(directory: Option<&str>, path: &str) -> String {
    if path.starts_with('/') {
        return normal(path);
    }
    match directory {
        Some(directory) => normal(&format!("{directory}/{path}")),
        None => path.to_owned(),
    }
}

fn normal(path: &str) -> String {
    let mut clean = String::with_capacity(path.len());
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        clean.push('/');
        clean.push_str(part);
    }
    if clean.is_empty() { "/".to_owned() } else { clean }
}

#[cfg(test)]
mod tests;
