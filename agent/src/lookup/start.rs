//! The working directory of the next start.

use super::search::Tree;
use super::{Query, absolute, normal};
use serde::{Deserialize, Serialize};

/// The working directory of the next start, and how it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The directory, absolute, as the target sees it; `None` where nothing tells.
    pub directory: Option<String>,
    /// How it is known.
    pub from: StartFrom,
}

/// How the working directory of the next start is known; the first that holds decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartFrom {
    /// Configuration names the app's root.
    Configuration,
    /// The supervisor says where it starts the unit.
    Supervisor,
    /// `PWD` of the environment is the working directory by another name.
    PwdSameDirectory,
    /// `PWD` of the environment passes through a symbolic link that has moved on, and has the app's files.
    PwdThroughLink,
    /// Nothing better is known than where the process is now.
    WorkingDirectory,
}

/// Tells the working directory of the next start; `cwd_id` is device and inode of the present one.
pub(super) fn directory(tree: &dyn Tree, query: &Query, cwd_id: Option<(u64, u64)>) -> Start {
    let known = |path: &Option<String>| path.clone().filter(|path| path.starts_with('/')).map(|path| normal(&path));
    if let Some(root) = known(&query.root) {
        return Start { directory: Some(root), from: StartFrom::Configuration };
    }
    if let Some(supervised) = known(&query.supervisor_directory) {
        return Start { directory: Some(supervised), from: StartFrom::Supervisor };
    }
    if let Some(pwd) = known(&query.pwd)
        && let Some((id, resolved)) = tree.resolve(&pwd)
    {
        if Some(id) == cwd_id {
            return Start { directory: Some(pwd), from: StartFrom::PwdSameDirectory };
        }
        if resolved != pwd && has_loaded_file(tree, query, &pwd) {
            return Start { directory: Some(pwd), from: StartFrom::PwdThroughLink };
        }
    }
    Start { directory: known(&query.cwd), from: StartFrom::WorkingDirectory }
}

/// Tells whether a loaded module's file below the working directory exists below `pwd` as well.
fn has_loaded_file(tree: &dyn Tree, query: &Query, pwd: &str) -> bool {
    let Some(cwd) = query.cwd.as_deref() else { return false };
    let below = |file: &String| {
        let relative = absolute(Some(cwd), file).strip_prefix(cwd)?.strip_prefix('/')?.to_owned();
        Some(format!("{pwd}/{relative}"))
    };
    query.modules.iter().filter_map(|module| module.file.as_ref()).filter_map(below).any(|path| tree.is_file(&path))
}

impl Start {
    /// Returns what an entry of `sys.path` will be at the next start.
    pub(super) fn next_entry(&self, query: &Query, entry: &str) -> String {
        if !entry.starts_with('/') {
            return absolute(self.directory.as_deref().or(query.cwd.as_deref()), entry);
        }
        self.moved_entry(query, &normal(entry))
    }

    /// Returns the absolute entry `entry`, replaced where it was the working directory or a relative entry of
    /// `PYTHONPATH` below it.
    pub(super) fn moved_entry(&self, query: &Query, entry: &str) -> String {
        let (Some(cwd), Some(next)) = (query.cwd.as_deref(), self.directory.as_deref()) else {
            return entry.to_owned();
        };
        if entry == cwd {
            return next.to_owned();
        }
        let relative =
            query.python_path.as_deref().unwrap_or_default().split(':').filter(|part| !part.starts_with('/'));
        for part in relative {
            if absolute(Some(cwd), part) == entry {
                return absolute(Some(next), part);
            }
        }
        entry.to_owned()
    }

    /// Returns the file `file`, moved along where it lies directly in the working directory.
    pub(super) fn moved(&self, query: &Query, file: &str) -> String {
        match file.rsplit_once('/') {
            Some((directory, leaf)) if !directory.is_empty() => {
                absolute(Some(&self.moved_entry(query, directory)), leaf)
            }
            _ => file.to_owned(),
        }
    }
}
