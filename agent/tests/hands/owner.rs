//! The purging child: it has the rights of the tree's owner, a deadline, and is not believed blindly.

use crate::support::Scratch;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::time::Duration;
use unstale_agent::purge::{Mode, Outcome, Purger, Refused, StaleFile};

/// A child that answers what the shell command `script` prints.
fn purger(script: &str) -> Purger {
    let arguments = vec!["-c".to_owned(), script.to_owned()];
    Purger { program: PathBuf::from("/bin/sh"), arguments, deadline: Duration::from_secs(5) }
}

const WHO: &str = r#"read -r request; printf '{"outcomes":[{"outcome":"refused","why":{"reason":"kernel","detail":"%s"}}]}' "$(/usr/bin/id -u):$(/usr/bin/id -g)""#;

fn stale(scratch: &Scratch, owner: u32) -> (StaleFile, PathBuf) {
    let path = scratch.write("app/__pycache__/enums.pyc", "old");
    chown(path.parent().unwrap(), Some(owner), Some(owner)).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    (StaleFile::new(path, &metadata), scratch.path.join("app"))
}

#[tokio::test]
async fn the_child_has_the_rights_of_the_directorys_owner() {
    for owner in [0, 1500] {
        let scratch = Scratch::new();
        let (file, root) = stale(&scratch, owner);
        let outcomes = purger(WHO).purge(&[file], &[root], Mode::Remove).await;
        let expected = Outcome::Refused { why: Refused::Kernel(format!("{owner}:{owner}")) };
        assert_eq!(outcomes, [expected], "this test needs root");
    }
}

#[tokio::test]
async fn a_child_that_hangs_dies_or_talks_nonsense_costs_its_answer_only() {
    let scratch = Scratch::new();
    let (file, root) = stale(&scratch, 0);
    for script in ["exec sleep 600", "exit 3", "read -r x; echo nonsense", "read -r x; echo '{\"outcomes\":[]}'"] {
        let mut purger = purger(script);
        purger.deadline = Duration::from_secs(1);
        let outcomes = purger.purge(std::slice::from_ref(&file), std::slice::from_ref(&root), Mode::Remove).await;
        assert!(matches!(outcomes[..], [Outcome::Refused { why: Refused::NoAnswer(_) }]), "{script}: {outcomes:?}");
    }
    assert!(file.path.exists());
}
