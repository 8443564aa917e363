//! A private directory, and an app in it whose source a test edits.

use crate::harness::process::{all, command as plain_command, kill_tree};
use crate::harness::python::tests_dir;
use crate::harness::wait::eventually;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// A directory of one test; removed with it.
#[derive(Debug)]
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    /// Makes an empty one. Other users may pass through it: servers run as one of them.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("unstale-").tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("its mode");
        Self { dir }
    }

    /// Its path, without symbolic links.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().canonicalize().expect("the directory")
    }

    /// A path below it.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// A directory below it, made.
    pub(crate) fn folder(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(&path).expect("a directory");
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Whatever was started on its behalf by somebody else, such as a configured start command.
        let path = self.path();
        for pid in all() {
            if fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&path)) {
                kill_tree(pid);
            }
        }
    }
}

/// A copy of the app in `tests/fixtures/shop`: `code/` holds the package `shop`, `data/` what its tasks leave behind.
#[derive(Clone, Debug)]
pub(crate) struct App {
    /// The directory that holds the package: what a deploy would replace.
    pub(crate) code: PathBuf,
    /// Journal, queue and doors.
    pub(crate) data: PathBuf,
    /// The broker's URL.
    pub(crate) broker: String,
    /// The database's URL as SQLAlchemy takes it; empty where no task asks for it.
    pub(crate) database: String,
}

impl App {
    /// Copies the app into `place/name`.
    pub(crate) fn new(place: &Place, name: &str) -> Self {
        let code = place.join(name).join("code");
        let data = place.folder(Path::new(name).join("data"));
        for folder in ["queue", "control"] {
            fs::create_dir_all(data.join(folder)).expect("a directory");
        }
        copy(&tests_dir().join("fixtures/shop"), &code);
        Self { code, data, broker: "filesystem://".to_owned(), database: String::new() }
    }

    /// The same app with its code in another directory: a release, or the link that points to it.
    pub(crate) fn at(&self, code: PathBuf) -> Self {
        Self { code, ..self.clone() }
    }

    /// What its processes need in their environment.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("SHOP_DATA", self.data.display().to_string()),
            ("SHOP_BROKER", self.broker.clone()),
            ("SHOP_DATABASE", self.database.clone()),
            ("C_FORCE_ROOT", "1".to_owned()),
            ("PYTHONUNBUFFERED", "1".to_owned()),
        ]
    }

    /// Writes a program that sets that environment and goes on with a line of the shell.
    pub(crate) fn script(&self, path: &Path, line: &str) {
        let environment: Vec<String> =
            self.environment().iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
        fs::write(path, format!("#!/bin/sh\n{}{line}\n", environment.concat())).expect("a script");
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("its mode");
    }

    /// A command that runs in the directory of the code with that environment.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = plain_command(program);
        command.current_dir(&self.code).env("PWD", &self.code).envs(self.environment());
        command
    }

    /// The path of a source file.
    pub(crate) fn source(&self, name: &str) -> PathBuf {
        self.code.join("shop").join(name)
    }

    /// Replaces text in a source file, keeping its modification time to the nanosecond.
    pub(crate) fn edit_keeping_time(&self, name: &str, from: &str, to: &str) {
        let path = self.source(name);
        let modified = fs::metadata(&path).and_then(|data| data.modified()).expect("a source file");
        replace(&path, from, to);
        set_modified(&path, modified);
    }

    /// Replaces text in a source file; its modification time moves on by ten seconds.
    pub(crate) fn edit(&self, name: &str, from: &str, to: &str) {
        let path = self.source(name);
        let modified = fs::metadata(&path).and_then(|data| data.modified()).expect("a source file");
        replace(&path, from, to);
        set_modified(&path, modified + Duration::from_secs(10));
    }

    /// Gives a source file a newer modification time and changes nothing else.
    pub(crate) fn touch(&self, name: &str) {
        let path = self.source(name);
        let modified = fs::metadata(&path).and_then(|data| data.modified()).expect("a source file");
        set_modified(&path, modified + Duration::from_secs(10));
    }

    /// The case-only edit: `HUBSPOT = "HUBSPOT"` becomes `"hubspot"`, size and time kept, so that
    /// CPython goes on trusting the bytecode of the old source.
    pub(crate) fn flip(&self) {
        self.edit_keeping_time("enums.py", r#"HUBSPOT = "HUBSPOT""#, r#"HUBSPOT = "hubspot""#);
    }

    /// The usual repair: the column sends values instead of names; no enum class changes.
    pub(crate) fn send_values(&self) {
        self.edit(
            "models.py",
            r#"Enum(CrmType, name="crm_type")"#,
            r#"Enum(CrmType, name="crm_type", values_callable=lambda e: [m.value for m in e])"#,
        );
    }

    /// Imports the app once, so that every module has its bytecode.
    pub(crate) fn compile(&self, python: &Path) {
        let mut command = self.command(python);
        command.args(["-c", "import shop.enums, shop.journal"]);
        crate::harness::python::run(command);
    }

    /// The bytecode file that `python` (minor version `minor`) uses for a module of the package.
    pub(crate) fn bytecode(&self, module: &str, minor: u32) -> PathBuf {
        self.code.join(format!("shop/__pycache__/{module}.cpython-3{minor}.pyc"))
    }

    /// Enqueues a task that waits at a door of this name.
    pub(crate) fn send(&self, python: &Path, name: &str) {
        self.send_task(python, "hold", name);
    }

    /// Enqueues a task of the app.
    pub(crate) fn send_task(&self, python: &Path, task: &str, name: &str) {
        let mut command = self.command(python);
        command.args(["-m", "shop.send", task, name]);
        crate::harness::python::run(command);
    }

    /// Opens the door that the task of this name waits at.
    pub(crate) fn open_door(&self, name: &str) {
        File::create(self.data.join(format!("open-{name}"))).expect("a door");
    }

    /// The journal's lines that begin with these words.
    pub(crate) fn journal(&self, words: &str) -> Vec<String> {
        fs::read_to_string(self.data.join("journal"))
            .unwrap_or_default()
            .lines()
            .filter(|line| line.starts_with(words))
            .map(str::to_owned)
            .collect()
    }

    /// Waits for a first line in the journal that begins with these words.
    pub(crate) fn wait_for_journal(&self, words: &str, seconds: u64) -> String {
        let lines =
            eventually(&format!("{words:?} in the journal"), seconds, || self.journal(words), |seen| !seen.is_empty());
        lines.into_iter().next().expect("not empty")
    }
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).expect("a source file");
    assert!(text.contains(from), "{} does not contain {from:?}", path.display());
    fs::write(path, text.replacen(from, to, 1)).expect("a source file");
}

fn set_modified(path: &Path, time: SystemTime) {
    File::options().write(true).open(path).and_then(|file| file.set_modified(time)).expect("its time");
}

/// Copies a directory of regular files and directories.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("its type").is_dir() {
            if entry.file_name() != "__pycache__" {
                copy(&entry.path(), &to.join(entry.file_name()));
            }
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
        }
    }
}
