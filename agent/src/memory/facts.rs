//! What an interpreter says about itself: `sys.argv`, `sys.path`, flags.

use super::Error;
use super::heap::{Entry, Heap, TYPE_AND_LENGTH};
use super::modules::{ALL, Modules};
use super::value::small;
use crate::reading::Interpreter;

/// Most entries of `sys.argv` and `sys.path`.
const MAX_LIST: u64 = 4_096;
/// Place of `optimize` in `sys.flags`: `Python/sysmodule.c`, `flags_fields`.
const OPTIMIZE: usize = 3;

/// What is read of `sys`; all of it is there in every version.
const NAMES: [&str; 9] = [
    "version",
    "executable",
    "prefix",
    "base_prefix",
    "pycache_prefix",
    "dont_write_bytecode",
    "flags",
    "argv",
    "path",
];

/// Reads the facts of one interpreter from `sys.__dict__`.
pub(crate) fn read(heap: &mut Heap<'_>, sysdict: u64, modules: &Modules) -> Result<Interpreter, Error> {
    // Programs put streams and hooks of their own there, forked children each for themselves.
    let found = heap.find_only(sysdict, NAMES)?;
    let more = if heap.layout.version.minor >= 10 { heap.find_only(sysdict, ["orig_argv"])? } else { [None] };
    let entries: Vec<Entry> = found.into_iter().chain(more).flatten().collect();
    fetch(heap, &entries)?;
    let version =
        text(heap, &entries, "version")?.ok_or_else(|| Error::Starting("sys.version is not there yet".to_owned()))?;
    let release = version.split_whitespace().next().unwrap_or_default().to_owned();
    let optimize = match heap.find(&entries, "flags")? {
        Some(entry) => match heap.tuple(entry.value, 64)?.get(OPTIMIZE) {
            Some(object) => small(heap, *object)?.and_then(|level| u8::try_from(level).ok()).unwrap_or(0),
            None => 0,
        },
        None => 0,
    };
    let dont_write_bytecode = match heap.find(&entries, "dont_write_bytecode")? {
        Some(entry) => small(heap, entry.value)?.is_some_and(|flag| flag != 0),
        None => false,
    };
    Ok(Interpreter {
        version: heap.layout.version,
        release,
        argv: texts(heap, &entries, "argv")?,
        orig_argv: texts(heap, &entries, "orig_argv")?,
        executable: text(heap, &entries, "executable")?.unwrap_or_default(),
        prefix: text(heap, &entries, "prefix")?.unwrap_or_default(),
        base_prefix: text(heap, &entries, "base_prefix")?.unwrap_or_default(),
        path: texts(heap, &entries, "path")?,
        pycache_prefix: text(heap, &entries, "pycache_prefix")?,
        dont_write_bytecode,
        optimize,
        sqlalchemy: module_text(heap, modules, "sqlalchemy", "__version__")?,
        celery: module_text(heap, modules, "celery", "__version__")?,
    })
}

/// Fetches what will be looked at, level by level.
fn fetch(heap: &mut Heap<'_>, entries: &[Entry]) -> Result<(), Error> {
    for entry in entries {
        heap.space.guard(entry.slot, 16);
        heap.space.want_in_page(entry.value, 96);
    }
    let mut lists = Vec::new();
    for name in ["argv", "orig_argv", "path"] {
        if let Some(entry) = heap.find(entries, name)? {
            heap.space.guard(entry.value + heap.layout.ob_type(), TYPE_AND_LENGTH);
            lists.push(entry.value);
        }
    }
    heap.space.fetch()?;
    for list in &lists {
        if let Ok(items) = heap.space.pointer(list + heap.layout.header + 8) {
            heap.space.want_in_page(items, 256);
        }
    }
    heap.space.fetch()?;
    let mut texts = Vec::new();
    for list in lists {
        if heap.type_of(list)?.is_builtin("list") {
            texts.extend(heap.list(list, MAX_LIST)?);
        }
    }
    heap.fetch_texts(texts)
}

/// Reads a text that a module holds under a name.
pub(crate) fn module_text(
    heap: &mut Heap<'_>,
    modules: &Modules,
    module: &str,
    name: &'static str,
) -> Result<Option<String>, Error> {
    let Some(dict) = modules.dict_of(heap, module)? else { return Ok(None) };
    heap.fetch_dicts(&[dict], ALL)?;
    let entries = heap.entries(dict, ALL)?;
    text(heap, &entries, name)
}

fn text(heap: &mut Heap<'_>, entries: &[Entry], name: &'static str) -> Result<Option<String>, Error> {
    match heap.find(entries, name)? {
        Some(entry) => Ok(heap.key_text(entry.value)?.map(|text| text.to_string())),
        None => Ok(None),
    }
}

fn texts(heap: &mut Heap<'_>, entries: &[Entry], name: &'static str) -> Result<Vec<String>, Error> {
    let Some(entry) = heap.find(entries, name)? else { return Ok(Vec::new()) };
    // Programs put other things there; what is no list has no entries.
    if !heap.type_of(entry.value)?.is_builtin("list") {
        return Ok(Vec::new());
    }
    let items = heap.list(entry.value, MAX_LIST)?;
    heap.fetch_texts(items.iter().copied())?;
    let mut found = Vec::with_capacity(items.len());
    for item in items {
        found.extend(heap.key_text(item)?.map(|text| text.to_string()));
    }
    Ok(found)
}
