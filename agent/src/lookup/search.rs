//! The search of one module in a list of directories.

use super::{Located, PARTS_MAX};
use crate::files::{Entry, Root};
use std::collections::BTreeMap;
use std::rc::Rc;
use unstale_protocol::ids::PythonVersion;

/// Most directories whose names are remembered during one lookup.
const LISTINGS_MAX: usize = 4096;
/// Most places that an answer names.
const SEARCHED_MAX: usize = 8;

/// The files that a search can see.
pub(crate) trait Tree {
    /// Lists a directory; `None` where there is none or it cannot be read.
    fn list(&self, directory: &str) -> Option<BTreeMap<String, Entry>>;
    /// Tells what is at a path, after symbolic links.
    fn entry(&self, path: &str) -> Option<Entry>;
    /// Returns device and inode of what is at a path, and the path after symbolic links.
    fn resolve(&self, path: &str) -> Option<((u64, u64), String)>;
    /// Tells whether a path lies in a layer of a container image.
    fn is_image(&self, path: &str) -> bool;

    /// Tells whether there is a regular file at a path.
    fn is_file(&self, path: &str) -> bool {
        self.entry(path) == Some(Entry::File)
    }
}

/// The files of one process, as the reader sees them.
pub(crate) struct LiveTree {
    /// Its root directory.
    pub(crate) root: Root,
    /// Whether it lives in another mount namespace than we do.
    pub(crate) apart: bool,
}

impl Tree for LiveTree {
    fn list(&self, directory: &str) -> Option<BTreeMap<String, Entry>> {
        self.root.list(directory).ok()
    }

    fn entry(&self, path: &str) -> Option<Entry> {
        self.root.entry(path)
    }

    fn resolve(&self, path: &str) -> Option<((u64, u64), String)> {
        let facts = self.root.facts(path).ok()?;
        Some(((facts.dev, facts.ino), facts.path_resolved))
    }

    fn is_image(&self, path: &str) -> bool {
        self.apart && self.root.is_overlay(path)
    }
}

/// What one directory has under one name.
enum Found {
    /// A package; where its parts lie, and what its import loads.
    Package(String, Located),
    Module(Located),
    /// A directory that could be a portion of a namespace package.
    Portion(String),
    Zip(String),
    Nothing,
}

/// A search with what it has learnt of directories and parents.
pub(super) struct Search<'a> {
    tree: &'a dyn Tree,
    python: PythonVersion,
    listings: BTreeMap<String, Option<Rc<BTreeMap<String, Entry>>>>,
    images: BTreeMap<String, bool>,
}

impl<'a> Search<'a> {
    pub(super) fn new(tree: &'a dyn Tree, python: PythonVersion) -> Self {
        Self { tree, python, listings: BTreeMap::new(), images: BTreeMap::new() }
    }

    /// Finds the dotted `name` as an import would with `entries` as `sys.path`.
    pub(super) fn module(&mut self, name: &str, entries: &[String]) -> Located {
        let parts: Vec<&str> = name.split('.').collect();
        if parts.len() > PARTS_MAX || parts.iter().any(|part| part.is_empty() || part.contains('/')) {
            return Located::Unsupported { why: "the name is no dotted module name".to_owned() };
        }
        let mut places = entries.to_vec();
        let mut located = absent(&places);
        for (index, part) in parts.iter().enumerate() {
            let (next, answer) = self.part(part, &places);
            located = answer;
            let is_last = index + 1 == parts.len();
            if next.is_empty() && !is_last {
                // A parent that is gone, or is no package any more.
                return match located {
                    Located::Unsupported { .. } => located,
                    _ => absent(&places),
                };
            }
            places = next;
        }
        located
    }

    /// Tells what is loaded when exactly this file is asked for again.
    pub(super) fn file(&mut self, path: &str) -> Located {
        if !self.tree.is_file(path) {
            return Located::Absent { searched: vec![path.to_owned()] };
        }
        let path = path.to_owned();
        match suffix(&path) {
            Some("pyc") => Located::Bytecode { path },
            Some("so") => Located::Extension { path },
            _ => Located::Source { path },
        }
    }

    /// Tells whether the directory of `path` lies in a layer of a container image.
    pub(super) fn is_image(&mut self, path: &str) -> bool {
        let directory = path.rsplit_once('/').map_or("/", |(directory, _)| directory).to_owned();
        let tree = self.tree;
        *self.images.entry(directory).or_insert_with(|| tree.is_image(path))
    }

    /// Finds one part in `places`: where its own parts lie (empty for a module), and what its import loads.
    fn part(&mut self, part: &str, places: &[String]) -> (Vec<String>, Located) {
        let mut portions = Vec::new();
        let mut zip = None;
        for place in places {
            match self.in_directory(part, place) {
                Found::Package(directory, located) => return (vec![directory], located),
                Found::Module(located) => return (Vec::new(), located),
                Found::Portion(directory) => portions.push(directory),
                Found::Zip(path) => zip = zip.or(Some(path)),
                Found::Nothing => {}
            }
        }
        match zip {
            _ if !portions.is_empty() => (portions.clone(), Located::Namespace { directories: portions }),
            Some(path) => (Vec::new(), Located::Unsupported { why: format!("{path} is a zip archive") }),
            None => (Vec::new(), absent(places)),
        }
    }

    fn in_directory(&mut self, part: &str, place: &str) -> Found {
        let Some(names) = self.list(place) else {
            return if self.tree.is_file(place) { Found::Zip(place.to_owned()) } else { Found::Nothing };
        };
        let directory = super::absolute(Some(place), part);
        let is_directory = self.kind(place, part, &names) == Some(Entry::Directory);
        if is_directory && let Some(located) = self.loadable(&directory, "__init__") {
            return Found::Package(directory, located);
        }
        match self.loadable(place, part) {
            Some(located) => Found::Module(located),
            None if is_directory => Found::Portion(directory),
            None => Found::Nothing,
        }
    }

    /// Returns what an import of `stem` would load from `directory`, the suffixes in the order of `FileFinder`.
    fn loadable(&mut self, directory: &str, stem: &str) -> Option<Located> {
        let names = self.list(directory)?;
        let tag = format!("{stem}.cpython-{}{}", self.python.major, self.python.minor);
        // The platform part of the first suffix is that of the target; a system has no second one.
        let tagged = names
            .range(tag.clone()..)
            .map(|(name, _)| name)
            .take_while(|name| name.starts_with(&tag))
            .find(|name| suffix(name) == Some("so") && !is_longer_version(name, &tag));
        let candidates = [
            tagged.cloned().unwrap_or_default(),
            format!("{stem}.abi3.so"),
            format!("{stem}.so"),
            format!("{stem}.py"),
            format!("{stem}.pyc"),
        ];
        let found = candidates.into_iter().find(|name| self.kind(directory, name, &names) == Some(Entry::File))?;
        let path = super::absolute(Some(directory), &found);
        Some(match suffix(&found) {
            Some("so") => Located::Extension { path },
            Some("pyc") => Located::Bytecode { path },
            _ => Located::Source { path },
        })
    }

    fn kind(&self, directory: &str, name: &str, names: &BTreeMap<String, Entry>) -> Option<Entry> {
        match names.get(name)? {
            Entry::Unknown => self.tree.entry(&super::absolute(Some(directory), name)),
            known => Some(*known),
        }
    }

    fn list(&mut self, directory: &str) -> Option<Rc<BTreeMap<String, Entry>>> {
        if let Some(known) = self.listings.get(directory) {
            return known.clone();
        }
        if self.listings.len() >= LISTINGS_MAX {
            self.listings.clear();
        }
        let listed = self.tree.list(directory).map(Rc::new);
        self.listings.insert(directory.to_owned(), listed.clone());
        listed
    }
}

fn suffix(name: &str) -> Option<&str> {
    name.rsplit_once('.').map(|(_, suffix)| suffix)
}

/// Tells whether `name` goes on with a digit: `cpython-31` is not `cpython-311`, though a letter may mark a debug
/// or free-threaded build.
fn is_longer_version(name: &str, tag: &str) -> bool {
    name.strip_prefix(tag).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn absent(places: &[String]) -> Located {
    Located::Absent { searched: places.iter().take(SEARCHED_MAX).cloned().collect() }
}
