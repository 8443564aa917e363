//! Summaries of files, kept by what the file is: parsed once, however many processes load it.

use super::views::Views;
use crate::files::FileFacts;
use crate::parser;
use crate::python::ir::Summary;
use std::collections::BTreeMap;
use std::sync::Arc;
use unstale_protocol::ids::PythonVersion;

/// How many full looks an unused summary is kept for.
const KEPT_LOOKS: u64 = 3;

/// What a file's content came to.
pub(super) type Summarised = Result<Arc<Summary>, parser::Error>;

/// One file at one state. A change of content changes one of these, or is made by somebody who sets clocks back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct State {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, u32),
    ctime_ns: i64,
    /// For bytecode, the interpreter that decodes it.
    python: Option<PythonVersion>,
}

impl State {
    pub(super) fn of(facts: &FileFacts, python: Option<PythonVersion>) -> Self {
        Self {
            dev: facts.dev,
            ino: facts.ino,
            size: facts.size,
            mtime: (facts.mtime_s, facts.mtime_ns),
            ctime_ns: facts.ctime_ns,
            python,
        }
    }
}

#[derive(Debug)]
struct Kept {
    what: Summarised,
    /// For bytecode: whether CPython would accept it is told from header and source each time.
    header: Vec<u8>,
    used_at: u64,
}

/// All summaries.
#[derive(Debug, Default)]
pub(super) struct Summaries {
    kept: BTreeMap<State, Kept>,
    /// What was made from them.
    pub(super) views: Views,
    /// How many full looks there were.
    look: u64,
}

impl Summaries {
    pub(super) fn find(&mut self, state: &State) -> Option<(Summarised, Vec<u8>)> {
        let look = self.look;
        let kept = self.kept.get_mut(state)?;
        kept.used_at = look;
        Some((kept.what.clone(), kept.header.clone()))
    }

    pub(super) fn keep(&mut self, state: State, what: Summarised, header: Vec<u8>) {
        self.kept.insert(state, Kept { what, header, used_at: self.look });
    }

    /// Ends a look. A full one forgets what the last few did not use: any other sees only what is new.
    pub(super) fn end_look(&mut self, full: bool) {
        self.views.end_look(full);
        if full {
            self.look = self.look.saturating_add(1);
            let look = self.look;
            self.kept.retain(|_, kept| look.saturating_sub(kept.used_at) <= KEPT_LOOKS);
        }
    }
}
