//! The watcher: a swapped `current` link, trees that move in whole, and what no event tells.

use crate::support::Scratch;
use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;
use unstale_agent::watch::{Dirty, Watch, WatchOptions};

const LONG: Duration = Duration::from_mins(10);

async fn watch(root: &Path, fallback: Duration) -> Watch {
    let options = WatchOptions { quiet: Duration::from_millis(100), fallback };
    let mut watch = Watch::new(options).unwrap();
    watch.set_roots(BTreeSet::from([root.to_owned()])).await;
    watch
}

async fn changed(watch: &mut Watch) -> Option<Dirty> {
    tokio::time::timeout(Duration::from_secs(10), watch.changed()).await.ok()
}

async fn is_quiet(watch: &mut Watch) -> bool {
    tokio::time::timeout(Duration::from_millis(700), watch.changed()).await.is_err()
}

#[tokio::test]
async fn a_swapped_current_link_is_seen_and_followed() {
    let scratch = Scratch::new();
    for release in ["6", "7"] {
        scratch.write(&format!("releases/{release}/app/enums.py"), "old");
    }
    symlink("releases/6", scratch.path.join("current")).unwrap();
    let root = scratch.path.join("current/app");
    let mut watch = watch(&root, LONG).await;
    assert!(is_quiet(&mut watch).await);
    symlink("releases/7", scratch.path.join("next")).unwrap();
    std::fs::rename(scratch.path.join("next"), scratch.path.join("current")).unwrap();
    assert_eq!(changed(&mut watch).await.map(|dirty| dirty.roots), Some(BTreeSet::from([root.clone()])));
    scratch.write("releases/7/app/enums.py", "new");
    assert!(changed(&mut watch).await.is_some(), "edits behind the new link are seen");
    scratch.write("releases/6/app/enums.py", "newer");
    assert!(is_quiet(&mut watch).await, "nothing leads to the old release any more");
}

#[tokio::test]
async fn a_tree_that_moves_in_whole_and_one_that_grows_are_seen() {
    let scratch = Scratch::new();
    scratch.write("app/a.py", "");
    scratch.write("outside/deep/b.py", "");
    let mut watch = watch(&scratch.path.join("app"), LONG).await;
    std::fs::rename(scratch.path.join("outside"), scratch.path.join("app/inside")).unwrap();
    assert!(changed(&mut watch).await.is_some());
    scratch.write("app/inside/deep/b.py", "edited");
    assert!(changed(&mut watch).await.is_some(), "its own directories are watched too");
}

#[tokio::test]
async fn many_changes_are_one() {
    let scratch = Scratch::new();
    scratch.write("app/a.py", "");
    let mut watch = watch(&scratch.path.join("app"), LONG).await;
    for number in 0..2000 {
        scratch.write(&format!("app/m{number}.py"), "x");
    }
    assert!(changed(&mut watch).await.is_some());
    assert!(is_quiet(&mut watch).await);
}

#[tokio::test]
async fn logs_and_reads_are_no_changes() {
    let scratch = Scratch::new();
    let source = scratch.write("app/a.py", "");
    scratch.write("app/worker.log", "");
    let mut watch = watch(&scratch.path.join("app"), LONG).await;
    std::fs::read(&source).unwrap();
    scratch.write("app/worker.log", "a line");
    assert!(is_quiet(&mut watch).await);
}

#[tokio::test]
async fn a_root_that_comes_later_is_noticed_when_it_comes() {
    let scratch = Scratch::new();
    let root = scratch.path.join("srv/app");
    let mut watch = watch(&root, LONG).await;
    assert!(watch.problems().contains_key(&root));
    scratch.write("srv/app/a.py", "");
    assert!(changed(&mut watch).await.is_some());
    assert!(watch.problems().is_empty(), "{:?}", watch.problems());
    scratch.write("srv/app/a.py", "edited");
    assert!(changed(&mut watch).await.is_some());
}

#[tokio::test]
async fn without_any_event_the_clock_gives_the_hint() {
    let scratch = Scratch::new();
    let root = scratch.path.join("app");
    scratch.write("app/a.py", "");
    let mut watch = watch(&root, Duration::from_millis(300)).await;
    let dirty = changed(&mut watch).await;
    assert_eq!(dirty, Some(Dirty { roots: BTreeSet::from([root]), guessed: true }));
}
