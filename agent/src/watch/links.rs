//! Where a path leads, and which directories to watch so that a change of the way is noticed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// Most links that are followed, as the kernel does.
const LINKS_MAX: usize = 40;

/// What is watched for one root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Watched {
    /// Where the root really is; `None` where it leads nowhere.
    pub(super) target: Option<PathBuf>,
    /// Directories that hold a link on the way, or in which the way ends.
    pub(super) parents: BTreeSet<PathBuf>,
    /// Those links, and the first name that is missing: when one of them changes, the way may.
    turns: BTreeSet<PathBuf>,
}

impl Watched {
    /// Tells whether an event at `path` may have changed where the root leads.
    pub(super) fn is_turned_by(&self, path: &Path) -> bool {
        self.turns.contains(path) || self.target.as_deref() == Some(path)
    }

    /// Tells whether `path` lies below the root.
    pub(super) fn holds(&self, path: &Path) -> bool {
        self.target.as_ref().is_some_and(|target| path.starts_with(target))
    }
}

/// Follows `root` link by link.
pub(super) fn watched(root: &Path) -> Watched {
    let mut watched = Watched::default();
    let mut at = PathBuf::from("/");
    // What is left of the way, next name last.
    let mut left: Vec<OsString> = names(root);
    let mut links = 0;
    while let Some(name) = left.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let Ok(metadata) = std::fs::symlink_metadata(&next) else {
            // It may come: its nearest directory tells.
            watched.parents.insert(at);
            watched.turns.insert(next);
            return watched;
        };
        if !metadata.is_symlink() {
            at = next;
            continue;
        }
        watched.parents.insert(at.clone());
        watched.turns.insert(next.clone());
        links += 1;
        let target = std::fs::read_link(&next);
        let (Ok(target), true) = (target, links <= LINKS_MAX) else { return watched };
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        left.extend(names(&target));
    }
    if let Some(parent) = at.parent() {
        // A directory that is moved away and replaced tells nothing itself.
        watched.parents.insert(parent.to_owned());
    }
    watched.turns.insert(at.clone());
    watched.target = Some(at);
    watched
}

fn names(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    });
    let mut names: Vec<OsString> = names.collect();
    names.reverse();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_link_on_the_way_has_its_parent_watched() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("releases/6/src")).unwrap();
        std::fs::create_dir(base.join("srv")).unwrap();
        symlink("../releases", base.join("srv/all")).unwrap();
        symlink(base.join("srv/all/6"), base.join("current")).unwrap();
        let watched = watched(&base.join("current/src"));
        assert_eq!(watched.target, Some(base.join("releases/6/src")));
        for parent in ["", "srv", "releases/6"] {
            let parent = if parent.is_empty() { base.clone() } else { base.join(parent) };
            assert!(watched.parents.contains(&parent), "{}", parent.display());
        }
        assert!(watched.is_turned_by(&base.join("current")) && watched.is_turned_by(&base.join("srv/all")));
        assert!(watched.holds(&base.join("releases/6/src/a.py")) && !watched.holds(&base.join("releases/7/src/a.py")));
    }

    #[test]
    fn what_leads_nowhere_is_watched_where_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        symlink("loop", base.join("loop")).unwrap();
        let missing = watched(&base.join("none/src"));
        assert_eq!((missing.target.clone(), missing.parents.contains(&base)), (None, true));
        assert!(missing.is_turned_by(&base.join("none")));
        assert_eq!(watched(&base.join("loop/x")).target, None);
    }
}
