//! Finds interpreters and fixtures, and asks interpreters what they make of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use unstale_agent::bytecode::header::{self, Acceptance, SourceStat, cache_path};
use unstale_agent::python::DefinedEnum;
use unstale_agent::python::link::ModuleKind;
use unstale_protocol::enumdef::EnumDef;
use unstale_protocol::ids::PythonVersion;
use unstale_protocol::value::Value;

/// A CPython.
pub(crate) struct Interpreter {
    pub(crate) path: PathBuf,
    pub(crate) version: PythonVersion,
}

/// A module of a fixture.
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) kind: ModuleKind,
    pub(crate) bytes: Vec<u8>,
}

/// Bases and definition by `module:qualname`.
pub(crate) type Enums = BTreeMap<String, (Vec<String>, EnumDef)>;

/// Returns the directory of the fixtures.
pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/python")
}

/// Returns one interpreter for each minor version from 3.8 to 3.13 that is found.
pub(crate) fn interpreters() -> Vec<Interpreter> {
    let mut candidates = vec![PathBuf::from("python3")];
    #[expect(clippy::disallowed_methods, reason = "tests look for interpreters in the home directory")]
    let home = std::env::var("HOME").unwrap_or_default();
    if let Ok(versions) = std::fs::read_dir(Path::new(&home).join(".pyenv/versions")) {
        let mut paths: Vec<_> = versions.flatten().map(|entry| entry.path().join("bin/python3")).collect();
        paths.sort();
        candidates.extend(paths);
    }
    let mut found = BTreeMap::new();
    for path in candidates {
        let script = "import sys; print(sys.implementation.name, *sys.version_info[:2], sys.executable)";
        let Ok(output) = Command::new(&path).args(["-I", "-c", script]).output() else {
            continue;
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut words = text.trim().splitn(4, ' ');
        let (Some("cpython"), Some("3"), Some(minor), Some(executable)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let Ok(minor) = minor.parse() else { continue };
        if (8..=13).contains(&minor) {
            let path = PathBuf::from(executable);
            found.entry(minor).or_insert(Interpreter { path, version: PythonVersion::three(minor) });
        }
    }
    found.into_values().collect()
}

/// Returns the modules below a directory, packages included.
pub(crate) fn modules_below(root: &Path) -> Vec<Module> {
    let mut modules = Vec::new();
    let mut directories = vec![(root.to_path_buf(), String::new())];
    while let Some((directory, package)) = directories.pop() {
        let mut entries: Vec<_> = std::fs::read_dir(&directory).expect("fixtures").flatten().collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            let dotted = |name: &str| {
                if package.is_empty() { name.to_owned() } else { format!("{package}.{name}") }
            };
            if path.is_dir() {
                if path.join("__init__.py").exists() {
                    directories.push((path, dotted(&name)));
                }
            } else if let Some(stem) = name.strip_suffix(".py") {
                let (name, kind) = match stem {
                    "__init__" => (package.clone(), ModuleKind::Package),
                    stem => (dotted(stem), ModuleKind::Module),
                };
                let bytes = std::fs::read(&path).expect("fixture");
                modules.push(Module { name, kind, bytes });
            }
        }
    }
    modules
}

impl Interpreter {
    /// Compiles modules and returns their `.pyc` files.
    pub(crate) fn compile(&self, modules: &[Module]) -> Vec<(String, ModuleKind, Vec<u8>)> {
        let directory = tempfile::tempdir().expect("a directory");
        let mut command = Command::new(&self.path);
        command.args(["-E", "-s", "-c"]);
        command.arg(
            "import py_compile, sys, warnings\nwarnings.simplefilter('ignore')\nfor name in sys.argv[1:]:\n    py_compile.compile(name, name + 'c', doraise=True)",
        );
        for module in modules {
            let path = directory.path().join(format!("{}.py", module.name));
            std::fs::write(&path, &module.bytes).expect("a file");
            command.arg(path);
        }
        let output = command.output().expect("the interpreter runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let read = |module: &Module| {
            let pyc = std::fs::read(directory.path().join(format!("{}.pyc", module.name))).expect("a pyc");
            (module.name.clone(), module.kind, pyc)
        };
        modules.iter().map(read).collect()
    }

    /// Returns the enums of `modules` as the interpreter has them after importing them.
    pub(crate) fn enums(&self, modules: &[&str]) -> Enums {
        let output = Command::new(&self.path)
            .args(["-E", "-s", "-B"])
            .arg(fixtures().join("dump_enums.py"))
            .arg(fixtures())
            .args(modules)
            .output()
            .expect("the interpreter runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answer: BTreeMap<String, Dumped> = serde_json::from_slice(&output.stdout).expect("an answer");
        answer.into_iter().map(|(name, dumped)| (name, (dumped.bases, dumped.definition))).collect()
    }
}

#[derive(serde::Deserialize)]
struct Dumped {
    bases: Vec<String>,
    definition: EnumDef,
}

impl Interpreter {
    /// Returns installed sources with the bytecode that this interpreter would use for them: of the
    /// standard library without its tests, and of what else is installed.
    pub(crate) fn installed(&self) -> Vec<(String, Vec<u8>, Vec<u8>)> {
        let script = "import sys, sysconfig; print(sysconfig.get_paths()['stdlib'])";
        let output = Command::new(&self.path).args(["-I", "-c", script]).output().expect("the interpreter runs");
        let root = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let mut found = Vec::new();
        let mut directories = vec![root];
        while let Some(directory) = directories.pop() {
            let Ok(entries) = std::fs::read_dir(&directory) else { continue };
            for entry in entries.flatten() {
                let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
                if path.is_dir() {
                    if !matches!(name.as_str(), "__pycache__" | "lib2to3" | "idlelib") {
                        directories.push(path);
                    }
                } else if path.extension().is_some_and(|extension| extension == "py") {
                    found.extend(self.pair(&path));
                }
            }
        }
        found.sort();
        found
    }

    fn pair(&self, path: &Path) -> Option<(String, Vec<u8>, Vec<u8>)> {
        use std::os::unix::fs::MetadataExt as _;
        let text = path.to_str()?.to_owned();
        let pyc = std::fs::read(cache_path(&text, self.version, 0, None)).ok()?;
        let source = std::fs::read(path).ok()?;
        let data = std::fs::metadata(path).ok()?;
        let stat =
            SourceStat { size: data.size(), mtime_s: data.mtime(), mtime_ns: u32::try_from(data.mtime_nsec()).ok()? };
        let header = header::read(&pyc, self.version).ok()?;
        (header.accepts(&stat, &source) == Acceptance::Used).then_some((text, source, pyc))
    }
}

/// Returns the text once for each member whose value stands alone on its line, with the case of that value flipped.
pub(crate) fn flips(text: &str, enums: &BTreeMap<String, DefinedEnum>) -> Vec<String> {
    let mut flipped = Vec::new();
    for defined in enums.values().filter(|defined| defined.members_known) {
        for (name, value) in &defined.written {
            let Value::Str(value) = value else { continue };
            let other: String = value
                .chars()
                .map(|letter| {
                    if letter.is_ascii_lowercase() { letter.to_ascii_uppercase() } else { letter.to_ascii_lowercase() }
                })
                .collect();
            for quote in ['"', '\''] {
                let line = format!("    {name} = {quote}{value}{quote}");
                // A line that could stand in another class too says nothing.
                if other != *value && text.matches(&line).count() == 1 {
                    flipped.push(text.replace(&line, &format!("    {name} = {quote}{other}{quote}")));
                }
            }
        }
    }
    flipped
}

/// A small random generator (xorshift64*), so that a failure can be run again.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Returns a number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).expect("31 bits") % limit.max(1)
    }
}

/// A virtual environment with what is required, made once.
pub(crate) fn venv(name: &str, requirements: &[&str]) -> Interpreter {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/venv");
    let output = Command::new(script).args(["python3", name]).args(requirements).output().expect("tests/venv runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()).join("bin/python");
    let script = "import sys; print(sys.version_info[1])";
    let output = Command::new(&path).args(["-I", "-c", script]).output().expect("the interpreter runs");
    let minor = String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number");
    Interpreter { path, version: PythonVersion::three(minor) }
}

/// One column as SQLAlchemy has it.
#[derive(Debug, PartialEq, serde::Deserialize)]
pub(crate) struct RealBinding {
    #[serde(rename = "enum")]
    pub(crate) enum_name: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) schema: Option<String>,
    pub(crate) native: bool,
    pub(crate) labels: Vec<String>,
}

impl Interpreter {
    /// Returns the columns of the mapped classes in `modules`; `None` for those of no `Enum` type.
    pub(crate) fn bindings(&self, modules: &[&str]) -> BTreeMap<String, Option<RealBinding>> {
        let output = Command::new(&self.path)
            .args(["-E", "-s", "-B", "-W", "ignore"])
            .arg(fixtures().join("dump_bindings.py"))
            .arg(fixtures())
            .args(modules)
            .output()
            .expect("the interpreter runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("an answer")
    }
}
