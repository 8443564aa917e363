//! `sys.modules`: what is loaded, and what of it is the app's.
//!
//! First-party is what is neither standard library nor installed. Whole packages are judged by their
//! top-level name, so that the cost does not grow with 1,800 modules.

use super::Error;
use super::heap::{Entry, Heap, TYPE_AND_LENGTH};
use super::source::{ByAddress, Noting};
use super::value::small;
use crate::reading::{LoadedModule, ReadOptions};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Most modules of one interpreter.
const MAX_MODULES: u64 = 100_000;
/// `__file__` and `__spec__` stand among the first names of a module.
const EARLY: u64 = 16;
/// All of a dict.
pub(crate) const ALL: u64 = u64::MAX;

/// Top-level modules of the standard library that no app can shadow and still start. Others are judged by
/// their file; this list only saves time.
const STANDARD: &[&str] = &[
    "__future__",
    "_abc",
    "_asyncio",
    "_bisect",
    "_codecs",
    "_collections",
    "_collections_abc",
    "_csv",
    "_ctypes",
    "_datetime",
    "_frozen_importlib",
    "_frozen_importlib_external",
    "_functools",
    "_hashlib",
    "_heapq",
    "_imp",
    "_io",
    "_json",
    "_operator",
    "_pickle",
    "_posixsubprocess",
    "_queue",
    "_random",
    "_signal",
    "_sitebuiltins",
    "_socket",
    "_sre",
    "_ssl",
    "_stat",
    "_string",
    "_struct",
    "_thread",
    "_tokenize",
    "_tracemalloc",
    "_typing",
    "_uuid",
    "_warnings",
    "_weakref",
    "_weakrefset",
    "abc",
    "argparse",
    "ast",
    "asyncio",
    "base64",
    "bisect",
    "builtins",
    "codecs",
    "collections",
    "concurrent",
    "contextlib",
    "contextvars",
    "copy",
    "copyreg",
    "ctypes",
    "dataclasses",
    "datetime",
    "decimal",
    "dis",
    "email",
    "encodings",
    "enum",
    "errno",
    "fcntl",
    "fnmatch",
    "functools",
    "genericpath",
    "hashlib",
    "heapq",
    "hmac",
    "http",
    "importlib",
    "inspect",
    "io",
    "itertools",
    "json",
    "keyword",
    "linecache",
    "logging",
    "marshal",
    "math",
    "multiprocessing",
    "opcode",
    "operator",
    "os",
    "pathlib",
    "pickle",
    "posix",
    "posixpath",
    "re",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "sre_compile",
    "sre_constants",
    "sre_parse",
    "ssl",
    "stat",
    "string",
    "struct",
    "subprocess",
    "sys",
    "tempfile",
    "textwrap",
    "threading",
    "time",
    "token",
    "tokenize",
    "traceback",
    "typing",
    "unittest",
    "urllib",
    "uuid",
    "warnings",
    "weakref",
    "xml",
    "zipimport",
    "zlib",
];

/// Where a module comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The app's own.
    FirstParty,
    /// Standard library or installed, with a file.
    Foreign,
    /// Built in, frozen, or made at run time: no file.
    NoFile,
}

/// A key of `sys.modules` and what is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) name: Arc<str>,
    pub(crate) origin: Origin,
    pub(crate) file: Option<String>,
}

/// A module that is looked at.
#[derive(Clone, Debug)]
pub(crate) struct Module {
    pub(crate) entry: Entry,
    pub(crate) known: Known,
    /// Its file was read.
    is_placed: bool,
}

/// The modules of one interpreter.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    /// In the order of `sys.modules`.
    pub(crate) list: Vec<Module>,
    by_key: ByAddress<u64, usize>,
    by_name: ByAddress<Arc<str>, usize>,
    /// Modules whose names the answer rests on.
    used: RefCell<BTreeSet<usize>>,
    /// The answer rests on a name's not being there: on all names.
    has_missed: Cell<bool>,
    /// `types.ModuleType`.
    pub(crate) module_type: u64,
}

/// What decides about first-party.
#[derive(Debug)]
pub(crate) struct Rules<'a> {
    pub(crate) options: &'a ReadOptions,
    standard: Vec<String>,
}

impl<'a> Rules<'a> {
    /// `base_prefix` is `sys.base_prefix`; `os_file` is `os.__file__`.
    pub(crate) fn new(options: &'a ReadOptions, version: &str, base_prefix: &str, os_file: Option<&str>) -> Self {
        let mut standard = Vec::new();
        if !base_prefix.is_empty() {
            for lib in ["lib", "lib64"] {
                standard.push(format!("{base_prefix}/{lib}/python{version}/"));
                standard.push(format!("{base_prefix}/{lib}/python{}.zip/", version.replace('.', "")));
            }
        }
        if let Some((directory, _)) = os_file.and_then(|file| file.rsplit_once('/')) {
            standard.push(format!("{directory}/"));
        }
        Self { options, standard }
    }

    /// Tells whether what a module of this origin holds is asked for.
    pub(crate) fn wants(&self, origin: Origin) -> bool {
        match origin {
            Origin::FirstParty => true,
            Origin::Foreign => self.options.all,
            Origin::NoFile => false,
        }
    }

    fn names_package(&self, name: &str) -> bool {
        self.options.app_packages.iter().any(|package| is_below(name, package, '.'))
    }

    /// Tells whether a submodule may be the app's although its top-level package is not.
    fn divides(&self, top: &str, directory: Option<&str>) -> bool {
        let packages = self.options.app_packages.iter().any(|package| is_below(package, top, '.'));
        packages
            || directory.is_some_and(|directory| {
                self.options.app_roots.iter().any(|root| is_below(root.trim_end_matches('/'), directory, '/'))
            })
    }

    pub(crate) fn origin(&self, name: &str, file: Option<&str>) -> Origin {
        let Some(file) = file else { return Origin::NoFile };
        let rooted = self.options.app_roots.iter().any(|root| is_below(file, root.trim_end_matches('/'), '/'));
        if rooted || self.names_package(name) {
            return Origin::FirstParty;
        }
        let installed = file.split('/').any(|part| part == "site-packages" || part == "dist-packages");
        if installed || self.standard.iter().any(|directory| file.starts_with(directory.as_str())) {
            return Origin::Foreign;
        }
        Origin::FirstParty
    }
}

/// Tells whether `name` is `parent` or lies below it.
fn is_below(name: &str, parent: &str, separator: char) -> bool {
    name.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with(separator))
}

fn top_of(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

impl Modules {
    /// Reads `sys.modules` and the names of its modules.
    pub(crate) fn read(heap: &mut Heap<'_>, dict: u64) -> Result<Self, Error> {
        heap.fetch_dicts(&[dict], ALL)?;
        // A reload takes the module out for a moment, and an import adds one: what is listed must be all.
        heap.guard_dict(dict)?;
        let entries = heap.entries(dict, ALL)?;
        if entries.len() as u64 > MAX_MODULES {
            return Err(Error::Limit("modules of one interpreter (100,000)"));
        }
        let Some(first) = entries.first() else {
            return Err(Error::Starting("sys.modules is empty".to_owned()));
        };
        super::locate::learn_str(heap, first)?;
        heap.fetch_texts(entries.iter().map(|entry| entry.key))?;
        let mut modules = Self::default();
        for entry in entries.iter().copied() {
            // Which names matter is known in the end.
            heap.space.note(Noting::Nothing);
            let name = heap.key_text(entry.key);
            heap.space.note(Noting::Changing);
            let Some(name) = name? else { continue };
            let known = Known { name, origin: Origin::NoFile, file: None };
            let index = modules.list.len();
            modules.by_key.insert(entry.key, index);
            modules.by_name.insert(Arc::clone(&known.name), index);
            modules.list.push(Module { entry, known, is_placed: false });
        }
        for needed in ["sys", "builtins"] {
            if !modules.by_name.contains_key(needed) {
                return Err(Error::Starting(format!("sys.modules has no {needed:?} yet")));
            }
        }
        let sys = modules.named("sys").map_or(0, |module| module.entry.value);
        let kind = heap.type_of(sys)?;
        if !kind.is_builtin("module") {
            return Err(Error::Implausible("type of sys"));
        }
        modules.module_type = kind.address;
        Ok(modules)
    }

    /// Finds a module by its name.
    fn place_of(&self, name: &str) -> Option<usize> {
        let found = self.by_name.get(name).copied();
        self.used.borrow_mut().extend(found);
        if found.is_none() {
            self.has_missed.set(true);
        }
        found
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Module> {
        self.place_of(name).and_then(|index| self.list.get(index))
    }

    /// Finds the module whose key is this very text object, else one of the same content.
    pub(crate) fn of_text(&self, heap: &mut Heap<'_>, text: u64) -> Result<Option<usize>, Error> {
        if let Some(index) = self.by_key.get(&text) {
            self.used.borrow_mut().insert(*index);
            return Ok(Some(*index));
        }
        let Some(name) = heap.key_text(text)? else { return Ok(None) };
        Ok(self.place_of(&name))
    }

    /// Notes the names that the answer rests on: they last as long as the table holds them.
    pub(crate) fn note_names(&self, heap: &mut Heap<'_>, rules: &Rules<'_>) -> Result<(), Error> {
        let is_every = self.has_missed.get() || rules.options.list_modules || rules.options.all;
        let used = self.used.borrow();
        heap.space.note(Noting::Lasting);
        let mut noted = (0..).zip(&self.list).filter(|(index, _)| is_every || used.contains(index));
        let noted = noted.try_for_each(|(_, module)| heap.look_at_text(module.entry.key));
        heap.space.note(Noting::Changing);
        noted
    }

    pub(crate) fn dict_of(&self, heap: &mut Heap<'_>, name: &str) -> Result<Option<u64>, Error> {
        match self.named(name) {
            Some(module) => heap.module_dict(module.entry.value, self.module_type),
            None => Ok(None),
        }
    }

    /// Finds out where these modules come from, if that is not known yet: top-level ones first. Parts of a package
    /// that is foreign as a whole stay unread.
    pub(crate) fn place(&mut self, heap: &mut Heap<'_>, rules: &Rules<'_>, indexes: &[usize]) -> Result<(), Error> {
        let mut tops: Vec<usize> = indexes.iter().filter_map(|index| self.top(*index)).collect();
        tops.sort_unstable();
        tops.dedup();
        let is_placed = |modules: &Self, index: usize| modules.list.get(index).is_none_or(|module| module.is_placed);
        tops.retain(|index| !is_placed(self, *index));
        self.read_files(heap, rules, &tops)?;
        let parts = indexes.iter().copied().filter(|index| {
            let Some(module) = self.list.get(*index) else { return false };
            !module.is_placed && self.is_divided(rules, &module.known.name)
        });
        let parts: Vec<usize> = parts.collect();
        self.read_files(heap, rules, &parts)
    }

    /// Places every module.
    pub(crate) fn place_all(&mut self, heap: &mut Heap<'_>, rules: &Rules<'_>) -> Result<(), Error> {
        let every: Vec<usize> = (0..self.list.len()).collect();
        if rules.options.all { self.read_files(heap, rules, &every) } else { self.place(heap, rules, &every) }
    }

    fn top(&self, index: usize) -> Option<usize> {
        self.above(&self.list.get(index)?.known.name)
    }

    /// Returns the top-level module above a name, or of that name, unless the standard library's list has it.
    pub(crate) fn above(&self, name: &str) -> Option<usize> {
        let top = top_of(name);
        if STANDARD.binary_search(&top).is_ok() { None } else { self.place_of(top) }
    }

    /// Tells whether parts of the package above a module have origins of their own.
    fn is_divided(&self, rules: &Rules<'_>, name: &str) -> bool {
        let top = top_of(name);
        if STANDARD.binary_search(&top).is_ok() {
            return false;
        }
        let Some(module) = self.named(top) else { return true };
        let directory = module.known.file.as_deref().and_then(|file| file.rsplit_once('/')).map(|(path, _)| path);
        module.known.origin != Origin::Foreign || rules.divides(top, directory)
    }

    /// Reads `__file__` of modules, and judges them by it.
    fn read_files(&mut self, heap: &mut Heap<'_>, rules: &Rules<'_>, indexes: &[usize]) -> Result<(), Error> {
        for index in indexes {
            if let Some(module) = self.list.get_mut(*index) {
                module.is_placed = true;
            }
        }
        let dicts = self.dicts(heap, indexes, EARLY)?;
        let mut files = Vec::new();
        for (index, dict) in dicts {
            let early = heap.entries(dict, EARLY)?;
            let mut entry = heap.find(&early, "__file__")?;
            if entry.is_none() && early.len() as u64 >= EARLY {
                let rest = heap.entries(dict, ALL)?;
                entry = heap.find(&rest, "__file__")?;
            }
            // A reload sets the file anew: what is passed over must be what it was taken for.
            heap.guard_table(dict)?;
            if let Some(entry) = entry {
                heap.space.guard(entry.slot, 16);
                heap.space.guard(entry.value + heap.layout.ob_type(), TYPE_AND_LENGTH);
                files.push((index, entry.value));
            }
        }
        heap.fetch_texts(files.iter().map(|(_, text)| *text))?;
        for (index, text) in files {
            let file = heap.key_text(text)?.map(|text| text.to_string());
            if let Some(module) = self.list.get_mut(index) {
                module.known.origin = rules.origin(&module.known.name, file.as_deref());
                module.known.file = file;
            }
        }
        Ok(())
    }

    /// Returns the dicts of modules, with their first `most` entries fetched.
    pub(crate) fn dicts(&self, heap: &mut Heap<'_>, indexes: &[usize], most: u64) -> Result<Vec<(usize, u64)>, Error> {
        let modules: Vec<(usize, u64)> = indexes
            .iter()
            .filter_map(|index| self.list.get(*index).map(|module| (*index, module.entry.value)))
            .collect();
        for (_, module) in &modules {
            heap.space.want(*module, heap.layout.header + 8);
        }
        heap.space.fetch()?;
        for (_, module) in &modules {
            if let Ok(kind) = heap.type_address(*module) {
                heap.want_type(kind);
            }
        }
        heap.space.fetch()?;
        let mut dicts = Vec::new();
        for (index, module) in modules {
            if let Some(dict) = heap.module_dict(module, self.module_type)? {
                dicts.push((index, dict));
            }
        }
        let addresses: Vec<u64> = dicts.iter().map(|(_, dict)| *dict).collect();
        heap.fetch_dicts(&addresses, most)?;
        Ok(dicts)
    }

    /// Tells where a name that no module bears would belong: like its top-level package, which must be placed, else
    /// to the app.
    pub(crate) fn origin_of_name(&self, name: &str) -> Origin {
        let top = top_of(name);
        match self.named(top) {
            _ if STANDARD.binary_search(&top).is_ok() => Origin::Foreign,
            Some(module) => module.known.origin,
            None => Origin::FirstParty,
        }
    }

    /// Describes modules: file, name of the spec, whether the import has finished.
    pub(crate) fn describe(&self, heap: &mut Heap<'_>, indexes: &[usize]) -> Result<Vec<LoadedModule>, Error> {
        let mut specs: ByAddress<usize, u64> = ByAddress::default();
        let mut objects = Vec::new();
        for (index, dict) in self.dicts(heap, indexes, EARLY)? {
            let entries = heap.entries(dict, EARLY)?;
            if let Some(entry) = heap.find(&entries, "__spec__")? {
                specs.insert(index, entry.value);
                heap.space.want(entry.value, heap.layout.header);
                objects.push(entry.value);
            }
        }
        heap.space.fetch()?;
        let mut typed = Vec::new();
        for object in objects {
            typed.push((object, heap.type_of(object)?));
        }
        heap.fetch_attributes(&typed)?;
        let mut described = Vec::with_capacity(indexes.len());
        for index in indexes {
            let Some(module) = self.list.get(*index) else { continue };
            let name = module.known.name.to_string();
            let (mut spec_name, mut initializing) = (None, false);
            if let Some(spec) = specs.get(index) {
                let attributes = heap.attributes(*spec)?;
                if let Some(entry) = heap.find(&attributes, "name")? {
                    spec_name = heap.key_text(entry.value)?.map(|text| text.to_string()).filter(|text| *text != name);
                }
                if let Some(entry) = heap.find(&attributes, "_initializing")? {
                    initializing = small(heap, entry.value)? == Some(1);
                }
            }
            described.push(LoadedModule { name, file: module.known.file.clone(), spec_name, initializing });
        }
        Ok(described)
    }

    /// Demands that a module stays what its key in `sys.modules` leads to.
    pub(crate) fn guard(&self, heap: &mut Heap<'_>, index: usize) {
        if let Some(module) = self.list.get(index) {
            heap.space.guard(module.entry.slot, 16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_standard_modules_can_be_searched() {
        assert!(STANDARD.is_sorted());
    }

    #[test]
    fn installed_and_standard_files_are_not_first_party() {
        let options = ReadOptions {
            app_packages: vec!["shop".to_owned(), "corp.billing".to_owned()],
            app_roots: vec!["/venv/lib/python3.11/site-packages/crm/".to_owned()],
            ..ReadOptions::default()
        };
        let rules = Rules::new(&options, "3.11", "/opt/python", Some("/elsewhere/os.py"));
        let check = |name: &str, file: Option<&str>, want: Origin| assert_eq!(rules.origin(name, file), want, "{name}");
        check("app", Some("/srv/app/__init__.py"), Origin::FirstParty);
        check("app", Some("app.py"), Origin::FirstParty);
        check("requests", Some("/venv/lib/python3.11/site-packages/requests/__init__.py"), Origin::Foreign);
        check("apt", Some("/usr/lib/python3/dist-packages/apt/__init__.py"), Origin::Foreign);
        check("queue", Some("/opt/python/lib/python3.11/queue.py"), Origin::Foreign);
        check("queue", Some("/srv/app/queue.py"), Origin::FirstParty);
        check("calendar", Some("/elsewhere/calendar.py"), Origin::Foreign);
        check("frozen", None, Origin::NoFile);
        check("shop.models", Some("/venv/lib/python3.11/site-packages/shop/models.py"), Origin::FirstParty);
        check("shopping", Some("/venv/lib/python3.11/site-packages/shopping.py"), Origin::Foreign);
        check("corp.billing.x", Some("/venv/lib/python3.11/site-packages/corp/billing/x.py"), Origin::FirstParty);
        check("corp.other", Some("/venv/lib/python3.11/site-packages/corp/other.py"), Origin::Foreign);
        check("crm.enums", Some("/venv/lib/python3.11/site-packages/crm/enums.py"), Origin::FirstParty);
    }
}
