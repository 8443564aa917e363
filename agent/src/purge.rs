//! Removing exactly the files that are proven stale, below roots that were accepted, and nothing else.
//!
//! What is stale is decided elsewhere; here every file is compared once more with what was proven, on descriptors that
//! no symbolic link can lead astray, by a child of the same binary that has the rights of the directory's owner and no
//! more. A removed cache file costs one compilation; importing goes on meanwhile.

mod child;

pub use child::{Answer, Request, serve};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Most bytes of an answer that are read.
const ANSWER_MAX_BYTES: u64 = 64 << 20;
/// Most files of one request; more are split.
const FILES_MAX: usize = 10_000;

/// A file that is proven stale, as it was when that was proven.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StaleFile {
    /// Where it lies.
    pub path: PathBuf,
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// `st_size`, in bytes.
    pub size: u64,
    /// `st_ctime`, in nanoseconds since the Unix epoch.
    pub ctime_ns: i128,
}

impl StaleFile {
    /// Describes the file behind `metadata`; from the descriptor that was read, never from the path again.
    pub fn new(path: PathBuf, metadata: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let ctime_ns = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
        Self { path, dev: metadata.dev(), ino: metadata.ino(), size: metadata.len(), ctime_ns }
    }
}

/// What came of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// It is removed.
    Purged,
    /// It would be removed; nothing was done.
    WouldPurge,
    /// It is gone already.
    Gone,
    /// It was left alone.
    Refused {
        /// Why, and what would change that.
        why: Refused,
    },
}

/// Why a file was left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason", content = "detail")]
pub enum Refused {
    /// It lies below none of the roots.
    OutsideRoots,
    /// Anybody may write to the root.
    RootIsOpen,
    /// The root cannot be opened.
    Root(String),
    /// A symbolic link, a mount point or `..` stands on the way from the root.
    Link,
    /// It is not the file that was proven stale any more.
    Changed,
    /// It is no regular file.
    NotAFile,
    /// The file system is mounted read-only.
    ReadOnly,
    /// The file or its directory is immutable.
    Immutable,
    /// The directory's owner may not remove it.
    Denied,
    /// The child did not answer for it.
    NoAnswer(String),
    /// Anything else that the kernel said.
    Kernel(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutsideRoots => {
                write!(f, "it lies below none of the accepted roots; name its root in `[apps.NAME] roots`")
            }
            Self::RootIsOpen => write!(f, "anybody may write to its root; `chmod o-w` the root first"),
            Self::Root(why) => write!(f, "its root cannot be opened: {why}"),
            Self::Link => {
                write!(f, "a symbolic link or another file system stands between root and file; name the real root")
            }
            Self::Changed => write!(f, "it is not the file any more that was proven stale; it is looked at again"),
            Self::NotAFile => write!(f, "it is no regular file"),
            Self::ReadOnly => write!(f, "its file system is mounted read-only; deploy an image without it, or remount"),
            Self::Immutable => write!(f, "it or its directory is immutable or append-only; `chattr -i -a` it"),
            Self::Denied => write!(
                f,
                "the owner of its directory may not remove it; remove it by hand, or `chmod u+wx` the directory"
            ),
            Self::NoAnswer(why) => write!(f, "the purging child gave no answer: {why}"),
            Self::Kernel(why) => write!(f, "the kernel refused: {why}"),
        }
    }
}

/// What is done with files that stand every test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Remove them.
    Remove,
    /// Only say so.
    DryRun,
}

/// The child that purges: this same binary with a hidden command that calls [`serve`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purger {
    /// The binary.
    pub program: PathBuf,
    /// Its arguments: `__purge`.
    pub arguments: Vec<String>,
    /// When it is killed; what it has not answered for is refused.
    pub deadline: Duration,
}

impl Purger {
    /// Removes `files` below `roots`, each by the rights of the owner of its directory where we are root. Answers for
    /// every file, in the order of `files`. Asked again it does no harm: what is gone is gone.
    pub async fn purge(&self, files: &[StaleFile], roots: &[PathBuf], mode: Mode) -> Vec<Outcome> {
        let mut outcomes: Vec<Option<Outcome>> = files.iter().map(|_| None).collect();
        // One child per owner: root's own rights would reach further than the tree's.
        let mut owners: BTreeMap<(u32, u32), Vec<usize>> = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            match child::owner(file, roots) {
                Ok(owner) => owners.entry(owner).or_default().push(index),
                Err(outcome) => set(&mut outcomes, index, outcome),
            }
        }
        for (owner, indices) in owners {
            for indices in indices.chunks(FILES_MAX) {
                let request = Request {
                    files: indices.iter().filter_map(|index| files.get(*index)).cloned().collect(),
                    roots: roots.to_vec(),
                    mode,
                };
                let answer = self.ask(owner, &request).await;
                for (place, index) in indices.iter().enumerate() {
                    let outcome = match &answer {
                        Ok(answer) => {
                            answer.outcomes.get(place).cloned().unwrap_or_else(|| no_answer("it is too short"))
                        }
                        Err(why) => no_answer(why),
                    };
                    set(&mut outcomes, *index, outcome);
                }
            }
        }
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| no_answer("it was not asked"))).collect()
    }

    async fn ask(&self, owner: (u32, u32), request: &Request) -> Result<Answer, String> {
        let request = serde_json::to_vec(request).map_err(|error| error.to_string())?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear().current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        if nix::unistd::geteuid().is_root() {
            command.uid(owner.0).gid(owner.1);
        }
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", self.program.display()))?;
        let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("it has no pipes".to_owned());
        };
        let exchange = async {
            let write = async {
                // A child that ends early closes the pipe; its answer says the rest.
                let written = input.write_all(&request).await;
                drop(input);
                written
            };
            let mut bytes = Vec::new();
            let mut output = output.take(ANSWER_MAX_BYTES);
            let (written, read) = tokio::join!(write, output.read_to_end(&mut bytes));
            read.map_err(|error| error.to_string())?;
            let status = child.wait().await.map_err(|error| error.to_string())?;
            if !status.success() {
                return Err(format!("it ended with {status}"));
            }
            written.map_err(|error| error.to_string())?;
            serde_json::from_slice(&bytes).map_err(|error| error.to_string())
        };
        match tokio::time::timeout(self.deadline, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("it took longer than {} s and was killed", self.deadline.as_secs())),
        }
    }
}

fn set(outcomes: &mut [Option<Outcome>], index: usize, outcome: Outcome) {
    if let Some(place) = outcomes.get_mut(index) {
        *place = Some(outcome);
    }
}

fn no_answer(why: &str) -> Outcome {
    Outcome::Refused { why: Refused::NoAnswer(why.to_owned()) }
}

/// Returns the innermost root that holds `path`, and the way from there.
fn below<'a>(path: &'a Path, roots: &'a [PathBuf]) -> Option<(&'a Path, &'a Path)> {
    let holding = roots.iter().filter_map(|root| Some((root.as_path(), path.strip_prefix(root).ok()?)));
    holding.filter(|(_, rest)| rest.file_name().is_some()).min_by_key(|(_, rest)| rest.components().count())
}
