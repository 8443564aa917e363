//! What the reader found in one live process: the answer of `memory`, plain data.
//!
//! Made in the reader process from foreign memory, sent over a pipe, judged in the agent. Everything
//! in it is untrusted text of bounded size.

use serde::{Deserialize, Serialize};
use unstale_protocol::binding::ColumnName;
use unstale_protocol::enumdef::EnumDef;
use unstale_protocol::ids::{EnumName, ProcessIdentity, PythonVersion};

/// What was read of one process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Whose memory it is; checked before and after the read.
    pub identity: ProcessIdentity,
    /// How far the read came. Only [`Outcome::Complete`] can ever lead to *fresh*.
    pub outcome: Outcome,
    /// The interpreter, once it was found.
    pub interpreter: Option<Interpreter>,
    /// First-party modules in `sys.modules`; with `all`, every module that has a file.
    pub modules: Vec<LoadedModule>,
    /// Enum classes of those modules, in the order (module, qualname).
    pub enums: Vec<LoadedEnum>,
    /// Mapped classes of those modules with their columns.
    pub mapped: Vec<MappedClass>,
    /// What it cost.
    pub cost: Cost,
}

/// How far a read came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "why")]
pub enum Outcome {
    /// Everything was read and held still.
    Complete,
    /// The interpreter, `sys.modules` or `enum` is not there yet.
    Starting(String),
    /// `enum` is not imported: so far it holds none. It may be starting, or never need one.
    NoEnum,
    /// Classes went on changing through every retry.
    Changing(String),
    /// Not a CPython, or one whose layout is not known.
    Unsupported(String),
    /// The kernel refused; the text names the missing right and how to get it.
    Denied(String),
    /// The process ended, or is another one now.
    Gone,
    /// A bound was reached; the text names which.
    Limit(String),
    /// Memory did not make sense.
    Damaged(String),
    /// The reader was killed at its deadline.
    Timeout,
}

/// The interpreter of a process, from its own memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interpreter {
    /// Its minor version.
    pub version: PythonVersion,
    /// The whole version: `3.11.7`.
    pub release: String,
    /// `sys.argv`.
    pub argv: Vec<String>,
    /// `sys.orig_argv` (3.10 and later), else empty.
    pub orig_argv: Vec<String>,
    /// `sys.executable`.
    pub executable: String,
    /// `sys.prefix`.
    pub prefix: String,
    /// `sys.base_prefix`.
    pub base_prefix: String,
    /// `sys.path`, in order; entries that are not text are left out.
    pub path: Vec<String>,
    /// `sys.pycache_prefix`, where set (3.8 and later).
    pub pycache_prefix: Option<String>,
    /// `sys.dont_write_bytecode`.
    pub dont_write_bytecode: bool,
    /// `sys.flags.optimize`: 0, 1 or 2 (and whatever `-OOO` gave).
    pub optimize: u8,
    /// `sqlalchemy.__version__`, where loaded.
    pub sqlalchemy: Option<String>,
    /// `celery.__version__`, where loaded.
    pub celery: Option<String>,
}

/// A module in `sys.modules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedModule {
    /// Its key in `sys.modules`.
    pub name: String,
    /// `__file__`, as the process knows it (possibly relative to the directory it started in).
    pub file: Option<String>,
    /// `__spec__.name` where it differs from the key: `python -m app` calls `app.__main__` `__main__`.
    pub spec_name: Option<String>,
    /// `__spec__._initializing`: the import has not finished.
    pub initializing: bool,
}

impl LoadedModule {
    /// Names a module that is not loaded, to look it up all the same.
    pub fn unloaded(name: impl Into<String>) -> Self {
        Self { name: name.into(), file: None, spec_name: None, initializing: false }
    }
}

/// An enum class in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadedEnum {
    /// `__module__` and `__qualname__`.
    pub name: EnumName,
    /// Key in `sys.modules` of the module that defines it; `None` where no loaded module of that name exists.
    pub module_key: Option<String>,
    /// Names of the direct bases.
    pub bases: Vec<String>,
    /// Its members.
    pub definition: EnumDef,
    /// Where the class hangs in the process.
    pub standing: Standing,
    /// Address of the class object, to tell twins apart and to match [`MappedColumn::enum_address`].
    pub address: u64,
}

/// Where an enum class hangs in its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// `sys.modules[module].<qualname>` is this very class.
    Bound,
    /// Its module has another class under that name: an old generation that somebody still holds.
    Twin,
    /// Made inside a function (`<locals>` in its qualname), or under a name its module does not have.
    Unreachable,
}

/// A mapped class of SQLAlchemy: one with a `__table__` or `__mapper__` of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedClass {
    /// `__module__` and `__qualname__`.
    pub name: EnumName,
    /// Columns of its table whose type is an `Enum`.
    pub bindings: Vec<MappedColumn>,
    /// Names of its other columns.
    pub plain_columns: Vec<String>,
}

/// One `Enum` column in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedColumn {
    /// The column.
    pub column: ColumnName,
    /// `name` of the type.
    pub type_name: Option<String>,
    /// `schema` of the type.
    pub schema: Option<String>,
    /// `native_enum` of the type.
    pub native: bool,
    /// The class that the type was made from.
    pub enum_name: Option<EnumName>,
    /// Address of that class.
    pub enum_address: Option<u64>,
    /// `enums` of the type: the labels that it sends, aliases included where SQLAlchemy keeps them.
    pub labels: Vec<String>,
}

/// What a read cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// System calls that read memory.
    pub calls: u32,
    /// Bytes copied.
    pub bytes: u64,
    /// Reads thrown away because memory had moved.
    pub retries: u32,
}

impl Cost {
    /// Adds what some calls copied.
    pub(crate) fn add(&mut self, calls: u32, bytes: u64) {
        self.calls = self.calls.saturating_add(calls);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// What a read should cover.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadOptions {
    /// Also the standard library and installed packages.
    pub all: bool,
    /// Top-level packages that count as the app's although they are installed: those that hold the
    /// worker's entry point or its `-A` target.
    pub app_packages: Vec<String>,
    /// Directories whose modules count as the app's wherever they lie (`--root`, a manifest's path).
    pub app_roots: Vec<String>,
    /// Also list first-party modules without any enum: needed for the pre-flight and for `--root`.
    pub list_modules: bool,
    /// Read through `/proc/PID/mem` instead of `process_vm_readv`: no copy-on-write in forked children.
    pub through_mem: bool,
}
