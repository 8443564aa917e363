//! The reader: the one helper process that looks at other processes and opens their files.
//!
//! [`Reader`] is the agent's end, [`serve()`] the helper's. The helper keeps the capabilities that reading
//! needs and loses everything else (`sandbox`); a foreign memory or file system that blocks it costs one
//! deadline, since the helper is killed and replaced. It decides nothing: facts and bytes go back to the agent.

mod serve;

pub use serve::serve;

use crate::child::{self, Child, Program};
use crate::files::{self, Fetched, FileFacts};
use crate::lookup::{Lookup, Query};
use crate::procfs::{self, Facts};
use crate::reading::{Cost, Outcome, ReadOptions, Reading};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};
use unstale_protocol::ids::{Pid, ProcessIdentity};

/// Deadline of the first read of a process: the layout of its interpreter is found then.
const FIRST_READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Deadline of every later read.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Deadline of everything that reads `/proc` only.
const FACTS_TIMEOUT: Duration = Duration::from_secs(5);
/// Deadline of everything that opens a target's files: they may lie on a slow network.
const FILES_TIMEOUT: Duration = Duration::from_secs(10);
/// How many processes one request for facts names.
const FACTS_MAX: usize = 256;
/// How many paths one request for facts of files names.
const STAT_MAX: usize = 2048;
/// How many whole readings are held to save saying them again.
const HELD_MAX: usize = 8;
/// How many identities are remembered as read before.
const REMEMBERED_MAX: usize = 8192;

/// What the reader is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Facts of these processes.
    Facts(Vec<Pid>),
    /// The memory of one process, and the processes of which the last whole reading is still held.
    Read(ProcessIdentity, ReadOptions, Vec<ProcessIdentity>),
    /// Where its modules would come from.
    Find(ProcessIdentity, Query),
    /// Some of its files, with content.
    Fetch(ProcessIdentity, Vec<String>),
    /// Some of its files or directories, without content.
    Stat(ProcessIdentity, Vec<String>),
}

/// What it answers, one variant per request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Facts(Vec<Facts>),
    Read(Box<Reading>),
    /// The process holds what another one was last said to hold.
    Alike {
        identity: ProcessIdentity,
        of: ProcessIdentity,
        cost: Cost,
    },
    Find(Result<Lookup, files::Error>),
    /// As many of the asked as fit into one answer, at least one.
    Fetch(Vec<Result<WireFile, files::Error>>),
    Stat(Vec<Result<FileFacts, files::Error>>),
}

/// A file on its way to the agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireFile {
    pub(crate) facts: FileFacts,
    #[serde(with = "child::hex")]
    pub(crate) bytes: Vec<u8>,
}

/// Why the reader has no answer about files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The helper failed.
    #[error(transparent)]
    Child(#[from] child::Error),
    /// The process or its root directory cannot be looked at.
    #[error(transparent)]
    Files(#[from] files::Error),
}

/// The agent's end of the reader. Those who ask at the same time are answered one after another.
#[derive(Debug)]
pub struct Reader(Mutex<Asked>);

#[derive(Debug)]
struct Asked {
    child: Child,
    read_before: BTreeSet<ProcessIdentity>,
    /// Whole readings, the newest last: forked children mostly hold what their siblings hold.
    held: Vec<Arc<Reading>>,
}

impl Reader {
    /// Returns a reader that `program` starts when it is first asked.
    pub fn new(program: Program) -> Self {
        let child = Child::new("reader", program);
        Self(Mutex::new(Asked { child, read_before: BTreeSet::new(), held: Vec::new() }))
    }

    /// Returns the helper behind it: its pid, how often it was started.
    pub fn child(&mut self) -> &Child {
        &self.0.get_mut().child
    }

    /// Starts the helper before it is first asked.
    pub fn prepare(&mut self) {
        self.0.get_mut().child.prepare();
    }

    /// Waits until nobody else asks; until the turn is given up nobody else will.
    pub async fn turn(&self) -> Turn<'_> {
        Turn(self.0.lock().await)
    }
}

/// The right to ask the reader. A deadline begins when it is asked.
#[derive(Debug)]
pub struct Turn<'a>(MutexGuard<'a, Asked>);

impl Turn<'_> {
    /// Returns the facts of those of `pids` that are processes; the others have ended.
    ///
    /// # Errors
    /// [`child::Error`] where the reader had no answer.
    pub async fn facts(&mut self, pids: &[Pid]) -> Result<Vec<Facts>, child::Error> {
        let mut all = Vec::with_capacity(pids.len());
        for some in pids.chunks(FACTS_MAX) {
            match self.0.child.ask(&Request::Facts(some.to_vec()), FACTS_TIMEOUT).await? {
                Answer::Facts(facts) => all.extend(facts),
                other => return Err(mismatch(&other)),
            }
        }
        Ok(all)
    }

    /// Reads what one process has loaded; every failure is an outcome of the reading.
    pub async fn read(&mut self, identity: ProcessIdentity, options: &ReadOptions) -> Reading {
        self.0.read(identity, options).await
    }

    /// Looks up where the modules of one process came from and would come from at its next start.
    ///
    /// # Errors
    /// [`Error`] where the reader had no answer, the process has ended or cannot be looked at, or there are more
    /// than [`crate::lookup::MODULES_MAX`] modules.
    pub async fn find(&mut self, identity: ProcessIdentity, query: Query) -> Result<Lookup, Error> {
        let modules = query.modules.len();
        match self.0.child.ask(&Request::Find(identity, query), FILES_TIMEOUT).await? {
            Answer::Find(Err(error)) => Err(error.into()),
            Answer::Find(Ok(found)) if found.findings.len() == modules => Ok(found),
            other => Err(mismatch(&other).into()),
        }
    }

    /// Reads files of one process, each at most [`files::FILE_MAX_BYTES`] long; answers in the order asked.
    ///
    /// # Errors
    /// [`child::Error`] where the reader had no answer.
    pub async fn fetch(
        &mut self,
        identity: ProcessIdentity,
        paths: &[String],
    ) -> Result<Vec<Result<Fetched, files::Error>>, child::Error> {
        let mut all = Vec::with_capacity(paths.len());
        while let Some(rest) = paths.get(all.len()..).filter(|rest| !rest.is_empty()) {
            match self.0.child.ask(&Request::Fetch(identity, rest.to_vec()), FILES_TIMEOUT).await? {
                Answer::Fetch(some) if !some.is_empty() && some.len() <= rest.len() => all.extend(
                    some.into_iter().map(|file| file.map(|WireFile { facts, bytes }| Fetched { facts, bytes })),
                ),
                other => return Err(mismatch(&other)),
            }
        }
        Ok(all)
    }

    /// Returns the facts of files or directories of one process, in the order asked.
    ///
    /// # Errors
    /// [`child::Error`] where the reader had no answer.
    pub async fn stat(
        &mut self,
        identity: ProcessIdentity,
        paths: &[String],
    ) -> Result<Vec<Result<FileFacts, files::Error>>, child::Error> {
        let mut all = Vec::with_capacity(paths.len());
        for some in paths.chunks(STAT_MAX) {
            match self.0.child.ask(&Request::Stat(identity, some.to_vec()), FILES_TIMEOUT).await? {
                Answer::Stat(facts) if facts.len() == some.len() => all.extend(facts),
                other => return Err(mismatch(&other)),
            }
        }
        Ok(all)
    }
}

impl Asked {
    async fn read(&mut self, identity: ProcessIdentity, options: &ReadOptions) -> Reading {
        let deadline = if self.read_before.contains(&identity) { READ_TIMEOUT } else { FIRST_READ_TIMEOUT };
        let held = self.held.iter().map(|reading| reading.identity).collect();
        match self.child.ask(&Request::Read(identity, options.clone(), held), deadline).await {
            Ok(Answer::Read(reading)) if reading.identity == identity => {
                self.remember(identity);
                self.hold(&reading);
                *reading
            }
            Ok(Answer::Alike { identity: read, of, cost }) if read == identity => {
                self.remember(identity);
                match self.held.iter().find(|held| held.identity == of) {
                    Some(held) => Reading { identity, cost, ..Reading::clone(held) },
                    None => {
                        unread(identity, Outcome::Damaged(format!("likened to {}, of which nothing is held", of.pid)))
                    }
                }
            }
            Ok(other) => unread(identity, Outcome::Damaged(mismatch(&other).to_string())),
            Err(child::Error::Timeout { .. }) => {
                // The next helper has nothing remembered about any process.
                self.read_before.clear();
                unread(identity, Outcome::Timeout)
            }
            Err(error) => {
                self.read_before.clear();
                unread(identity, Outcome::Damaged(error.to_string()))
            }
        }
    }

    fn remember(&mut self, identity: ProcessIdentity) {
        if self.read_before.len() >= REMEMBERED_MAX {
            self.read_before.clear();
        }
        self.read_before.insert(identity);
    }

    fn hold(&mut self, reading: &Reading) {
        self.held.retain(|held| held.identity != reading.identity);
        if reading.outcome == Outcome::Complete {
            if self.held.len() >= HELD_MAX {
                self.held.remove(0);
            }
            self.held.push(Arc::new(reading.clone()));
        }
    }
}

/// Returns the identity of the process that `pid` is now.
///
/// # Errors
/// [`procfs::Error::Gone`] where there is none.
pub fn identify(pid: Pid) -> Result<ProcessIdentity, procfs::Error> {
    procfs::identity(pid)
}

fn mismatch(answer: &Answer) -> child::Error {
    let kind = match answer {
        Answer::Facts(_) => "facts",
        Answer::Read(_) | Answer::Alike { .. } => "a reading",
        Answer::Find(_) => "a lookup",
        Answer::Fetch(_) => "files",
        Answer::Stat(_) => "facts of files",
    };
    child::Error::Malformed { part: "reader", why: format!("{kind} that do not fit the question") }
}

fn unread(identity: ProcessIdentity, outcome: Outcome) -> Reading {
    Reading {
        identity,
        outcome,
        interpreter: None,
        modules: Vec::new(),
        enums: Vec::new(),
        mapped: Vec::new(),
        cost: Cost::default(),
    }
}
