//! Purging: exactly the proven files, whatever the owner of the tree tries meanwhile.

use crate::support::Scratch;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::io::Cursor;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use unstale_agent::purge::{Answer, Mode, Outcome, Refused, Request, StaleFile, serve};

fn stale(path: &Path) -> StaleFile {
    StaleFile::new(path.to_owned(), &std::fs::symlink_metadata(path).unwrap())
}

fn purge(file: &StaleFile, root: &Path, mode: Mode) -> Outcome {
    let request = Request { files: vec![file.clone()], roots: vec![root.to_owned()], mode };
    let mut output = Vec::new();
    serve(Cursor::new(serde_json::to_vec(&request).unwrap()), &mut output).unwrap();
    let answer: Answer = serde_json::from_slice(&output).unwrap();
    answer.outcomes.into_iter().next().unwrap()
}

fn refused(why: Refused) -> Outcome {
    Outcome::Refused { why }
}

struct Tree {
    scratch: Scratch,
    root: PathBuf,
    file: PathBuf,
}

fn tree() -> Tree {
    let scratch = Scratch::new();
    let file = scratch.write("app/__pycache__/enums.pyc", "old");
    let root = scratch.path.join("app");
    Tree { scratch, root, file }
}

#[test]
fn a_proven_file_is_removed_once_and_nothing_beside_it() {
    let tree = tree();
    let beside = tree.scratch.write("app/__pycache__/other.pyc", "fresh");
    let file = stale(&tree.file);
    assert_eq!(purge(&file, &tree.root, Mode::DryRun), Outcome::WouldPurge);
    assert!(tree.file.exists());
    assert_eq!(purge(&file, &tree.root, Mode::Remove), Outcome::Purged);
    assert_eq!(purge(&file, &tree.root, Mode::Remove), Outcome::Gone);
    assert!(!tree.file.exists() && beside.exists());
}

#[test]
fn a_file_that_was_written_again_stays() {
    let tree = tree();
    let file = stale(&tree.file);
    std::fs::write(&tree.file, "new").unwrap();
    assert_eq!(purge(&file, &tree.root, Mode::Remove), refused(Refused::Changed));
    let renamed = tree.scratch.write("app/__pycache__/next", "old");
    std::fs::rename(renamed, &tree.file).unwrap();
    assert_eq!(purge(&file, &tree.root, Mode::Remove), refused(Refused::Changed));
    assert!(tree.file.exists());
}

#[test]
fn a_symlinked_leaf_or_directory_is_refused() {
    let tree = tree();
    let victim = tree.scratch.write("victim/enums.pyc", "keep");
    let leaf = tree.root.join("__pycache__/link.pyc");
    symlink(&victim, &leaf).unwrap();
    let mut file = stale(&victim);
    file.path = leaf;
    assert_eq!(purge(&file, &tree.root, Mode::Remove), refused(Refused::NotAFile));
    symlink(tree.scratch.path.join("victim"), tree.root.join("cache")).unwrap();
    file.path = tree.root.join("cache/enums.pyc");
    assert_eq!(purge(&file, &tree.root, Mode::Remove), refused(Refused::Link));
    file.path = tree.root.join("../victim/enums.pyc");
    assert_eq!(purge(&file, &tree.root, Mode::Remove), refused(Refused::Link));
    file.path = victim.clone();
    assert_eq!(purge(&file, &tree.root, Mode::Remove), refused(Refused::OutsideRoots));
    assert!(victim.exists());
}

#[test]
fn of_a_hard_link_only_the_name_goes() {
    let tree = tree();
    let other = tree.scratch.path.join("kept.pyc");
    std::fs::hard_link(&tree.file, &other).unwrap();
    assert_eq!(purge(&stale(&tree.file), &tree.root, Mode::Remove), Outcome::Purged);
    assert_eq!(std::fs::read_to_string(other).unwrap(), "old");
}

#[test]
fn a_root_that_anybody_may_write_to_is_refused() {
    let tree = tree();
    std::fs::set_permissions(&tree.root, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(purge(&stale(&tree.file), &tree.root, Mode::Remove), refused(Refused::RootIsOpen));
    std::fs::set_permissions(&tree.root, std::fs::Permissions::from_mode(0o1777)).unwrap();
    assert_eq!(purge(&stale(&tree.file), &tree.root, Mode::Remove), Outcome::Purged);
}

#[test]
fn an_immutable_file_is_reported_with_its_remedy() {
    let tree = tree();
    let chattr = |flag: &str| std::process::Command::new("chattr").arg(flag).arg(&tree.file).status().unwrap();
    assert!(chattr("+i").success(), "chattr +i does not work on {}", tree.file.display());
    let outcome = purge(&stale(&tree.file), &tree.root, Mode::Remove);
    assert!(chattr("-i").success());
    assert_eq!(outcome, refused(Refused::Immutable));
    assert!(Refused::Immutable.to_string().contains("chattr -i"));
}

#[test]
fn a_directory_swapped_for_a_link_never_leads_outside() {
    let tree = tree();
    let victim = tree.scratch.write("victim/enums.pyc", "keep");
    let real = tree.root.join("__pycache__");
    let link = tree.root.join("link");
    symlink(tree.scratch.path.join("victim"), &link).unwrap();
    std::fs::remove_file(&tree.file).unwrap();
    let over = AtomicBool::new(false);
    let (mut purged, mut refusals) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                renameat_with(CWD, &real, CWD, &link, RenameFlags::EXCHANGE).unwrap();
            }
        });
        for _ in 0..4000 {
            // The same inode under both names: what was proven stale and what must stay cannot be told apart by identity.
            for name in ["__pycache__", "link"] {
                drop(std::fs::hard_link(&victim, tree.root.join(name).join("enums.pyc")));
            }
            let mut file = stale(&victim);
            file.path = real.join("enums.pyc");
            match purge(&file, &tree.root, Mode::Remove) {
                Outcome::Purged => purged += 1,
                _ => refusals += 1,
            }
            if !victim.exists() {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(victim.exists(), "the victim was removed after {purged} purges");
    assert!(purged > 0 && refusals > 0, "the race was not run: {purged} purged, {refusals} refused");
}
