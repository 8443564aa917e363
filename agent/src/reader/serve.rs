//! The reader's own side: one request after the other, answered from `/proc`, memory and files.

use super::{Answer, Request, WireFile};
use crate::child;
use crate::discover;
use crate::files::{self, FileFacts, Root};
use crate::lookup::{self, LiveTree, Lookup, Query};
use crate::memory;
use crate::procfs::{self, Facts};
use crate::reading::ReadOptions;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use unstale_protocol::ids::{Pid, ProcessIdentity};

/// How long a reader without a request lives.
const IDLE: Duration = Duration::from_mins(5);
/// Bytes of files in one answer; in JSON they take twice that.
const FETCH_MAX_BYTES: usize = 8 << 20;

/// Serves as the reader until its standard input ends; the process must be good for nothing else.
///
/// Gives up every right that reading does not need first, and ends with an error where it cannot.
pub fn serve() -> ExitCode {
    let cache = match begin() {
        Ok(cache) => cache,
        Err(error) => return child::complain("reader", &*error),
    };
    let mut server = Server { boot_at_ms: procfs::boot_at_ms(), cache, said: BTreeMap::new() };
    match child::serve(IDLE, |request| server.answer(request)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => child::complain("reader", &error),
    }
}

/// Gives up rights: capabilities first, since each thread has its own, and the right to start threads last.
fn begin() -> Result<memory::Cache, Box<dyn std::error::Error>> {
    crate::sandbox::prepare_reader()?;
    let cache = memory::Cache::with_mate()?;
    crate::sandbox::enter_reader()?;
    Ok(cache)
}

struct Server {
    boot_at_ms: u64,
    cache: memory::Cache,
    /// What each of those processes was last said to hold whose reading is still held.
    said: BTreeMap<ProcessIdentity, Arc<memory::Answer>>,
}

impl Server {
    /// Reads a process; what was said before of another one, or of itself, is not said again.
    fn read(&mut self, identity: ProcessIdentity, options: &ReadOptions, held: &[ProcessIdentity]) -> Answer {
        let look = memory::look(identity, options, &mut self.cache);
        self.said.retain(|said, _| held.contains(said));
        let Some(answer) = &look.answer else {
            self.said.remove(&identity);
            return Answer::Read(Box::new(look.reading()));
        };
        if let Some((of, _)) = self.said.iter().find(|(_, said)| Arc::ptr_eq(said, answer)) {
            return Answer::Alike { identity, of: *of, cost: look.cost };
        }
        self.said.insert(identity, Arc::clone(answer));
        Answer::Read(Box::new(look.reading()))
    }

    fn answer(&mut self, request: Request) -> Answer {
        match request {
            Request::Facts(pids) => {
                Answer::Facts(pids.into_iter().filter_map(|pid| facts(pid, self.boot_at_ms)).collect())
            }
            Request::Read(identity, options, held) => self.read(identity, &options, &held),
            Request::Find(identity, query) => Answer::Find(find(identity, &query)),
            Request::Fetch(identity, paths) => Answer::Fetch(fetch(identity, &paths)),
            Request::Stat(identity, paths) => Answer::Stat(stat(identity, &paths)),
        }
    }
}

fn facts(pid: Pid, boot_at_ms: u64) -> Option<Facts> {
    let mut facts = procfs::facts(pid, boot_at_ms).ok()?;
    facts.supervisord_config = default_configuration(&facts);
    Some(facts)
}

/// Finds the configuration of a supervisord that was started without `-c`.
fn default_configuration(facts: &Facts) -> Option<String> {
    let candidates = discover::supervisord_candidates(&facts.command, facts.cwd.as_deref())?;
    let root = Root::of(facts.identity).ok()?;
    candidates.into_iter().find(|path| root.entry(path) == Some(files::Entry::File))
}

fn find(identity: ProcessIdentity, query: &Query) -> Result<Lookup, files::Error> {
    let root = Root::of(identity)?;
    let own = procfs::namespace(Pid(std::process::id()), "ns/mnt");
    let apart = procfs::namespace(identity.pid, "ns/mnt") != own;
    // The link leads into the target's own tree, so a chroot or container does not matter.
    let cwd_id = files::link_facts(&format!("/proc/{}/cwd", identity.pid));
    Ok(lookup::find(&LiveTree { root, apart }, query, cwd_id))
}

fn fetch(identity: ProcessIdentity, paths: &[String]) -> Vec<Result<WireFile, files::Error>> {
    let root = match Root::of(identity) {
        Ok(root) => root,
        Err(error) => return paths.iter().map(|_| Err(error.clone())).collect(),
    };
    let mut total = 0_usize;
    let mut files = Vec::new();
    for path in paths {
        let file = root.fetch(path).map(|fetched| WireFile { facts: fetched.facts, bytes: fetched.bytes });
        total = total.saturating_add(file.as_ref().map_or(0, |file| file.bytes.len()));
        if total > FETCH_MAX_BYTES && !files.is_empty() {
            break;
        }
        files.push(file);
    }
    files
}

fn stat(identity: ProcessIdentity, paths: &[String]) -> Vec<Result<FileFacts, files::Error>> {
    match Root::of(identity) {
        Ok(root) => paths.iter().map(|path| root.facts(path)).collect(),
        Err(error) => paths.iter().map(|_| Err(error.clone())).collect(),
    }
}
