//! Finding the interpreter: `_PyRuntime`, the version, the interpreters, `sys.modules`.

use super::Error;
use super::elf::Elf;
use super::heap::{Entry, Heap, STR_TYPE};
use super::layout::Layout;
use super::source::{Mapping, Space, plausible};
use super::value::small;
use unstale_protocol::ids::PythonVersion;

/// Most ELF files looked at.
const MAX_FILES: usize = 2_000;
/// Most interpreters of one process.
const MAX_INTERPRETERS: usize = 256;
/// First bytes of `_PyRuntime` from 3.13 on: `Include/internal/pycore_debug_offsets.h`.
const COOKIE: &[u8; 8] = b"xdebugpy";
/// Most bytes searched for the cookie.
const MAX_SEARCH: u64 = 16 << 20;

/// Words of `_Py_DebugOffsets` of 3.13 that must say what the layout says.
const RUNTIME_INTERPRETERS: u64 = 5;
const INTERPRETER_NEXT: u64 = 8;
const INTERPRETER_MODULES: u64 = 11;
const INTERPRETER_SYSDICT: u64 = 12;
const OBJECT_SIZE: u64 = 44;
const OBJECT_TYPE: u64 = 45;

/// Where the runtime of a process lies and what it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runtime {
    pub(crate) address: u64,
    pub(crate) layout: &'static Layout,
}

/// An interpreter of a process.
#[derive(Clone, Debug)]
pub(crate) struct InterpreterAt {
    pub(crate) address: u64,
    /// `sys.modules`.
    pub(crate) modules: u64,
    /// `sys.__dict__`.
    pub(crate) sysdict: u64,
}

/// Finds the runtime in the mappings of a process.
pub(crate) fn runtime(space: &mut Space<'_>) -> Result<Runtime, Error> {
    let mappings = space.source().mappings()?;
    let mut failure = None;
    for mapping in candidates(&mappings) {
        let found = match search(space, mapping) {
            Ok(found) => found,
            Err(error @ (Error::Unmapped(_) | Error::Implausible(_))) => {
                failure = failure.or(Some(error));
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Some((address, version)) = found {
            return identify(space, address, version);
        }
    }
    if let Some(address) = by_cookie(space, &mappings) {
        return identify(space, address, None);
    }
    Err(Error::Unsupported(what_it_is(&mappings)))
}

/// Files that may hold the runtime: libpython first, then the executable and others named after Python,
/// then every other one.
fn candidates(mappings: &[Mapping]) -> Vec<&Mapping> {
    let mut files: Vec<&Mapping> =
        mappings.iter().filter(|mapping| mapping.offset == 0 && mapping.path.starts_with('/')).collect();
    files.dedup_by(|next, first| next.path == first.path);
    let first = files.first().map(|mapping| mapping.path.clone());
    files.sort_by_key(|mapping| {
        let name = file_name(&mapping.path);
        match () {
            () if name.starts_with("libpython") => 0,
            () if Some(&mapping.path) == first.as_ref() => 1,
            () if name.starts_with("python") => 2,
            () => 3,
        }
    });
    files.truncate(MAX_FILES);
    files
}

fn file_name(path: &str) -> &str {
    path.trim_end_matches(" (deleted)").rsplit('/').next().unwrap_or_default()
}

type Found = Option<(u64, Option<u32>)>;

/// Looks for `_PyRuntime`, and for `Py_Version` (3.11 and later), in one file.
fn search(space: &mut Space<'_>, mapping: &Mapping) -> Result<Found, Error> {
    let Some(elf) = Elf::at(space, mapping)? else { return Ok(None) };
    let Some(address) = elf.symbol(space, "_PyRuntime")? else { return Ok(None) };
    let version = match elf.symbol(space, "Py_Version")? {
        Some(at) => Some(u32::from_le_bytes(space.array(at)?)),
        None => None,
    };
    Ok(Some((address, version)))
}

/// Looks for the cookie in writable parts of files: 3.13 and later without symbols.
fn by_cookie(space: &mut Space<'_>, mappings: &[Mapping]) -> Option<u64> {
    let mut left = MAX_SEARCH;
    for mapping in mappings.iter().filter(|mapping| mapping.writable && mapping.path.starts_with('/')) {
        let len = mapping.end.saturating_sub(mapping.start);
        let Some(rest) = left.checked_sub(len) else { continue };
        left = rest;
        let Ok(bytes) = space.bytes(mapping.start, usize::try_from(len).unwrap_or(0)) else { continue };
        let (words, _) = bytes.as_chunks::<8>();
        if let Some(index) = words.iter().position(|word| word == COOKIE) {
            return Some(mapping.start + index as u64 * 8);
        }
    }
    None
}

/// Finds out which CPython a runtime belongs to.
fn identify(space: &mut Space<'_>, address: u64, version: Option<u32>) -> Result<Runtime, Error> {
    if !plausible(address) {
        return Err(Error::Implausible("address of the runtime"));
    }
    let named = match space.array::<24>(address) {
        Ok(head) if head.starts_with(COOKIE) => {
            let [_, version, free_threaded] = [0, 8, 16].map(|at| head.get(at..at + 4));
            let word =
                |bytes: Option<&[u8]>| bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
            Some((word(version), word(free_threaded) != 0))
        }
        _ => version.map(|version| (version, false)),
    };
    let Some((hexversion, free_threaded)) = named else { return by_trial(space, address) };
    let version = of_hexversion(u64::from(hexversion));
    let layout = Layout::of(version, free_threaded).ok_or_else(|| {
        let kind = if free_threaded { ", free-threaded" } else { "" };
        Error::Unsupported(format!("CPython {version}{kind}: its memory layout is not known (known: 3.8 to 3.13)"))
    })?;
    if version.minor >= 13 && !offsets_agree(space, address, layout)? {
        return Err(Error::Unsupported(format!(
            "CPython {version} with an unknown memory layout: a pre-release or a vendor build"
        )));
    }
    Ok(Runtime { address, layout })
}

fn of_hexversion(hexversion: u64) -> PythonVersion {
    // `PY_VERSION_HEX`, Include/patchlevel.h: major, minor, micro, level and serial.
    let [_, _, minor, major, ..] = hexversion.to_le_bytes();
    PythonVersion { major, minor }
}

fn offsets_agree(space: &mut Space<'_>, at: u64, layout: &Layout) -> Result<bool, Error> {
    let expected = [
        (RUNTIME_INTERPRETERS, layout.runtime_interpreters),
        (INTERPRETER_NEXT, layout.interpreter_next),
        (INTERPRETER_MODULES, layout.interpreter_modules),
        (INTERPRETER_SYSDICT, layout.interpreter_sysdict),
        (OBJECT_SIZE, layout.header),
        (OBJECT_TYPE, layout.ob_type()),
    ];
    for (word, want) in expected {
        if space.word(at + word * 8)? != want {
            return Ok(false);
        }
    }
    Ok(true)
}

/// 3.8 to 3.10 name themselves nowhere outside Python objects: the layout that fits is the one through
/// which `sys.hexversion` names its own version.
fn by_trial(space: &mut Space<'_>, address: u64) -> Result<Runtime, Error> {
    let mut empty = false;
    for layout in Layout::unnamed() {
        match space.word(address + layout.runtime_interpreters) {
            Ok(0) => empty = true,
            Ok(_) => {}
            Err(error @ (Error::Limit(_) | Error::Denied | Error::Gone)) => return Err(error),
            Err(_) => continue,
        }
        let runtime = Runtime { address, layout };
        if hexversion(space, runtime).is_ok_and(|found| of_hexversion(found) == layout.version) {
            return Ok(runtime);
        }
    }
    if empty {
        return Err(Error::Starting("the interpreter is not there yet".to_owned()));
    }
    Err(Error::Unsupported(
        "a CPython whose memory layout is not known (known: 3.8 to 3.13), or one that is just starting".to_owned(),
    ))
}

fn hexversion(space: &mut Space<'_>, runtime: Runtime) -> Result<u64, Error> {
    let layout = runtime.layout;
    let mut interpreter = space.pointer(runtime.address + layout.runtime_interpreters)?;
    for _ in 0..MAX_INTERPRETERS {
        match space.pointer_or_null(interpreter + layout.interpreter_next)? {
            0 => break,
            next => interpreter = next,
        }
    }
    let dict = space.pointer(interpreter + layout.interpreter_sysdict)?;
    super::heap::borrowed(space, layout, |heap| {
        let entries = heap.entries(dict, 4_096)?;
        let first = entries.first().ok_or(Error::Implausible("sys"))?;
        learn_str(heap, first)?;
        let entry = heap.find_text(&entries, "hexversion")?.ok_or(Error::Implausible("sys.hexversion"))?;
        let number = small(heap, entry.value)?.ok_or(Error::Implausible("sys.hexversion"))?;
        u64::try_from(number).map_err(|_| Error::Implausible("sys.hexversion"))
    })
}

/// Learns the address of the type `str` from a key that must be text.
pub(crate) fn learn_str(heap: &mut Heap<'_>, entry: &Entry) -> Result<(), Error> {
    let kind = heap.type_of(entry.key)?;
    if kind.is_builtin("str") && kind.flags & STR_TYPE != 0 {
        heap.str_type = kind.address;
        return Ok(());
    }
    Err(Error::Implausible("type of a key"))
}

/// Lists the interpreters of a process, the main one first.
pub(crate) fn interpreters(heap: &mut Heap<'_>, runtime: Runtime) -> Result<Vec<InterpreterAt>, Error> {
    let layout = runtime.layout;
    let mut found = Vec::new();
    let mut next = heap.space.pointer_or_null(runtime.address + layout.runtime_interpreters)?;
    while next != 0 {
        if found.len() == MAX_INTERPRETERS {
            return Err(Error::Limit("interpreters of one process (256)"));
        }
        for field in [layout.interpreter_next, layout.interpreter_modules, layout.interpreter_sysdict] {
            heap.space.want(next + field, 8);
        }
        let modules = heap.space.pointer_or_null(next + layout.interpreter_modules)?;
        let sysdict = heap.space.pointer_or_null(next + layout.interpreter_sysdict)?;
        found.push(InterpreterAt { address: next, modules, sysdict });
        next = heap.space.pointer_or_null(next + layout.interpreter_next)?;
    }
    found.reverse();
    match found.first() {
        None => Err(Error::Starting("the interpreter is not there yet".to_owned())),
        Some(main) if main.modules == 0 || main.sysdict == 0 => {
            Err(Error::Starting("sys.modules is not there yet".to_owned()))
        }
        Some(_) => Ok(found),
    }
}

/// Names what a process is that holds no CPython runtime.
fn what_it_is(mappings: &[Mapping]) -> String {
    let names = || mappings.iter().map(|mapping| file_name(&mapping.path));
    let any_has = |part: &str| names().any(|name| name.to_ascii_lowercase().contains(part));
    if any_has("pypy") {
        return "PyPy: only CPython 3.8 to 3.13 can be read".to_owned();
    }
    if any_has("graalpy") || any_has("libpythonvm") {
        return "GraalPy: only CPython 3.8 to 3.13 can be read".to_owned();
    }
    match names().find(|name| name.starts_with("libpython") || name.starts_with("python")) {
        Some(name) => {
            format!("no known CPython runtime in {name:?}: older than 3.8, or stripped and static (known: 3.8 to 3.13)")
        }
        None => "no Python interpreter in its memory".to_owned(),
    }
}
