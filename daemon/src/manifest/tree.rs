//! The Python files below some directories, with the names they would be imported by.

use anyhow::{Context as _, bail};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Longest file that is read; longer ones are data.
const FILE_MAX_BYTES: u64 = 4 << 20;
/// Most files, and most bytes of them together.
const FILES_MAX: usize = 50_000;
const TREE_MAX_BYTES: u64 = 512 << 20;
/// Deepest directory below a path.
const DEPTH_MAX: usize = 40;

/// One Python file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SourceFile {
    /// Relative to the directory that imports start from: `app/enums.py`.
    pub(super) path: String,
    /// Dotted: `app.enums`.
    pub(super) module: String,
    /// Whether it is an `__init__.py`.
    pub(super) is_package: bool,
    /// As it was found, for people.
    pub(super) shown: String,
    pub(super) bytes: Vec<u8>,
}

/// Reads all Python files below `roots`, which are canonical. Symbolic links below them are not followed; hidden
/// directories, virtual environments and installed packages are left out.
///
/// # Errors
/// Where a root cannot be read, or there is more than is allowed.
pub(super) fn collect(roots: &[PathBuf]) -> anyhow::Result<Vec<SourceFile>> {
    let mut found: BTreeMap<PathBuf, &Path> = BTreeMap::new();
    for root in roots {
        if root.is_dir() {
            walk(root, root, 0, &mut found)?;
        } else if is_python(root) {
            found.insert(root.clone(), root.parent().unwrap_or(root));
        } else {
            bail!("`{}` is neither a directory nor a Python file", root.display());
        }
    }
    let mut files = Vec::new();
    let mut total = 0u64;
    for (file, root) in &found {
        let Some(bytes) = read(file)? else { continue };
        total += bytes.len() as u64;
        if total > TREE_MAX_BYTES {
            bail!(
                "there are more than {} MiB of Python files; name the directories of the app alone",
                TREE_MAX_BYTES >> 20
            );
        }
        let base = import_base(file, root);
        let Some(path) = file.strip_prefix(&base).ok().and_then(Path::to_str) else { continue };
        files.push(SourceFile {
            path: path.to_owned(),
            module: dotted(path),
            is_package: file.file_name().is_some_and(|name| name == "__init__.py"),
            shown: file.display().to_string(),
            bytes,
        });
    }
    tell_apart(&mut files, &found);
    Ok(files)
}

fn walk<'a>(
    root: &'a Path,
    directory: &Path,
    depth: usize,
    found: &mut BTreeMap<PathBuf, &'a Path>,
) -> anyhow::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        // A directory below that may not be read is none that this user's workers import from.
        Err(_) if depth > 0 => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", directory.display())),
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read `{}`", directory.display()))?;
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth < DEPTH_MAX && is_source_directory(&path) {
            walk(root, &path, depth + 1, found)?;
        } else if kind.is_file() && is_python(&path) {
            found.insert(path, root);
            if found.len() > FILES_MAX {
                bail!("there are more than {FILES_MAX} Python files; name the directories of the app alone");
            }
        }
    }
    Ok(())
}

fn is_python(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "py")
}

fn is_source_directory(path: &Path) -> bool {
    const LEFT_OUT: [&str; 5] = ["__pycache__", "site-packages", "dist-packages", "node_modules", "__pypackages__"];
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    !name.starts_with('.') && !LEFT_OUT.contains(&name) && !path.join("pyvenv.cfg").exists()
}

/// Reads a file; `None` for one that is gone, too long or not regular by now.
fn read(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", path.display())),
    };
    let metadata = file.metadata().with_context(|| format!("cannot read `{}`", path.display()))?;
    if !metadata.is_file() || metadata.len() > FILE_MAX_BYTES {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX_BYTES).read_to_end(&mut bytes).with_context(|| format!("cannot read `{}`", path.display()))?;
    Ok(Some(bytes))
}

/// The directory that imports of `file` start from: above its topmost package, or where it is in none, `root`, or
/// the `src` in it.
fn import_base(file: &Path, root: &Path) -> PathBuf {
    let mut directory = file.parent().unwrap_or(root);
    if !directory.join("__init__.py").exists() {
        let source = root.join("src");
        return if file.starts_with(&source) { source } else { root.to_owned() };
    }
    while let Some(parent) = directory.parent() {
        if !parent.join("__init__.py").exists() {
            return parent.to_owned();
        }
        directory = parent;
    }
    root.to_owned()
}

fn dotted(path: &str) -> String {
    let stem = path.strip_suffix(".py").unwrap_or(path);
    let stem = stem.strip_suffix("/__init__").unwrap_or(stem);
    stem.replace('/', ".")
}

/// Two files that would be imported by one name are named by their place below the root instead.
fn tell_apart(files: &mut [SourceFile], found: &BTreeMap<PathBuf, &Path>) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for file in files.iter() {
        *counts.entry(file.module.clone()).or_default() += 1;
    }
    for file in files.iter_mut().filter(|file| counts.get(&file.module).is_some_and(|count| *count > 1)) {
        let whole = Path::new(&file.shown);
        let below = found.get(whole).and_then(|root| whole.strip_prefix(root).ok()).and_then(Path::to_str);
        if let Some(below) = below {
            file.path = below.to_owned();
            file.module = dotted(below);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            let path = directory.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        directory
    }

    fn names(files: &[&str], below: &str) -> Vec<(String, String)> {
        let directory = tree(files);
        let root = directory.path().join(below).canonicalize().unwrap();
        collect(&[root]).unwrap().into_iter().map(|file| (file.path, file.module)).collect()
    }

    #[test]
    fn modules_are_named_as_they_would_be_imported() {
        let check = |files: &[&str], below: &str, want: &[(&str, &str)]| {
            let want: Vec<_> = want.iter().map(|(path, module)| ((*path).to_owned(), (*module).to_owned())).collect();
            assert_eq!(names(files, below), want, "{files:?}");
        };
        check(&["app/__init__.py", "app/enums.py"], ".", &[("app/__init__.py", "app"), ("app/enums.py", "app.enums")]);
        check(
            &["app/__init__.py", "app/enums.py"],
            "app",
            &[("app/__init__.py", "app"), ("app/enums.py", "app.enums")],
        );
        check(&["src/app/__init__.py"], ".", &[("app/__init__.py", "app")]);
        check(&["src/app/enums.py"], ".", &[("app/enums.py", "app.enums")]);
        check(&["backend/app/__init__.py"], ".", &[("app/__init__.py", "app")]);
        check(&["app/enums.py", "tasks.py"], ".", &[("app/enums.py", "app.enums"), ("tasks.py", "tasks")]);
        check(
            &["one/app/__init__.py", "two/app/__init__.py"],
            ".",
            &[("one/app/__init__.py", "one.app"), ("two/app/__init__.py", "two.app")],
        );
    }

    #[test]
    fn what_is_not_the_apps_source_is_left_out() {
        let files = [
            "a.py",
            ".git/b.py",
            "venv/pyvenv.cfg",
            "venv/lib/c.py",
            "node_modules/d.py",
            "x/site-packages/e.py",
            "__pycache__/f.py",
            "g.pyc",
            "h.txt",
        ];
        assert_eq!(names(&files, "."), [("a.py".to_owned(), "a".to_owned())]);
    }

    #[test]
    fn links_below_a_root_are_not_followed() {
        let directory = tree(&["app/a.py"]);
        std::os::unix::fs::symlink("/etc", directory.path().join("app/etc")).unwrap();
        std::os::unix::fs::symlink("a.py", directory.path().join("app/b.py")).unwrap();
        assert_eq!(collect(&[directory.path().join("app").canonicalize().unwrap()]).unwrap().len(), 1);
    }

    #[test]
    fn a_path_that_is_no_source_is_an_error() {
        let directory = tree(&["x.txt"]);
        assert!(collect(&[directory.path().join("x.txt")]).is_err());
    }
}
