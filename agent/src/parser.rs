//! The parser: the helper process that gets foreign bytes and has no right at all.
//!
//! [`Parser`] is the agent's end, [`serve`] the helper's. Deep nesting can overflow a parser's stack and
//! abort its process; so it happens here, where it costs that one file its verdict and nothing else. The helper
//! cannot open a file, and answers with plain data that the agent judges.

use crate::bytecode;
use crate::child::{self, Child, Program};
use crate::python::ir::Summary;
use crate::source::{self, SyntaxError};
use serde::{Deserialize, Serialize};
use std::process::ExitCode;
use std::time::Duration;
use unstale_protocol::ids::PythonVersion;

/// How long a parser without a request lives.
const IDLE: Duration = Duration::from_secs(30);
/// Stack of the thread that parses, in bytes.
const STACK_BYTES: usize = 256 << 20;
/// Deadline of one request with many files.
const BATCH_TIMEOUT: Duration = Duration::from_secs(20);
/// Deadline of one file that is asked for alone.
const FILE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of files in one request; as text they take twice that.
const BATCH_MAX_BYTES: usize = 6 << 20;
/// Most files in one request.
const BATCH_MAX_ITEMS: usize = 256;
/// How many files of one call may each cost a parser before the rest of its batch is given up.
const FAILURES_MAX: usize = 8;

/// One file to be parsed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Item {
    /// Bytes of a `.py` file, in the encoding that it declares.
    Source(#[serde(with = "child::hex")] Vec<u8>),
    /// Bytes of a `.pyc` file, header included.
    Bytecode {
        /// The bytes.
        #[serde(with = "child::hex")]
        pyc: Vec<u8>,
        /// The interpreter that would load it.
        python: PythonVersion,
    },
}

/// Why a file has no summary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Error {
    /// It is no Python source: an import of it fails.
    #[error("{0}")]
    Syntax(SyntaxError),
    /// Its bytes are not what it declares them to be.
    #[error("{0}")]
    Encoding(String),
    /// It is no bytecode of that version, or beyond the bounds of this reader.
    #[error("{0}")]
    Bytecode(String),
    /// Bytecode with a good header and a body that is cut short or damaged: an import of it fails.
    #[error("{0}")]
    Broken(String),
    /// The parser could not deal with it, which says nothing about what Python does.
    #[error("it cannot be parsed here: {0}")]
    Undecidable(String),
}

type Parsed = Result<Summary, Error>;

/// The agent's end of the parser.
#[derive(Debug)]
pub struct Parser {
    child: Child,
}

impl Parser {
    /// Returns a parser that `program` starts when it is first asked.
    pub fn new(program: Program) -> Self {
        Self { child: Child::new("parser", program) }
    }

    /// Returns the helper behind it: its pid, how often it was started.
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// Starts the helper before it is first asked.
    pub fn prepare(&mut self) {
        self.child.prepare();
    }

    /// Lets go of a helper that has ended because nobody asked it.
    pub fn reap(&mut self) {
        self.child.reap();
    }

    /// Returns what each of `items` says, in the order given.
    ///
    /// A file that kills the parser is undecidable; the others of its batch are asked for again, one by one.
    pub async fn summarize(&mut self, items: Vec<Item>) -> Vec<Parsed> {
        let mut all = Vec::with_capacity(items.len());
        let mut failures = 0;
        for batch in batches(items) {
            let answered: Result<Vec<Parsed>, child::Error> = self.child.ask(&batch, BATCH_TIMEOUT).await;
            match answered {
                Ok(parsed) if parsed.len() == batch.len() => all.extend(parsed),
                Ok(_) => all.extend(batch.iter().map(|_| undecidable("the parser answered for other files"))),
                Err(error) => {
                    tracing::warn!(%error, files = batch.len(), "a batch of files is parsed one by one");
                    for item in batch {
                        all.push(self.alone(item, &mut failures).await);
                    }
                }
            }
        }
        all
    }

    async fn alone(&mut self, item: Item, failures: &mut usize) -> Parsed {
        if *failures >= FAILURES_MAX {
            return undecidable("too many files before it ended the parser");
        }
        let answered: Result<Vec<Parsed>, child::Error> = self.child.ask(&[item], FILE_TIMEOUT).await;
        match answered {
            Ok(mut parsed) => parsed.pop().unwrap_or_else(|| undecidable("the parser had no answer")),
            Err(error) => {
                *failures += 1;
                undecidable(&error.to_string())
            }
        }
    }
}

fn undecidable(why: &str) -> Parsed {
    Err(Error::Undecidable(why.to_owned()))
}

fn batches(items: Vec<Item>) -> Vec<Vec<Item>> {
    let mut batches: Vec<Vec<Item>> = Vec::new();
    let mut room = 0;
    for item in items {
        let bytes = match &item {
            Item::Source(bytes) => bytes.len(),
            Item::Bytecode { pyc, .. } => pyc.len(),
        };
        match batches.last_mut() {
            Some(batch) if bytes <= room && batch.len() < BATCH_MAX_ITEMS => {
                room -= bytes;
                batch.push(item);
            }
            _ => {
                room = BATCH_MAX_BYTES.saturating_sub(bytes);
                batches.push(vec![item]);
            }
        }
    }
    batches
}

/// Serves as the parser until its standard input ends; the process must be good for nothing else.
///
/// Gives up every right first, and ends with an error where it cannot.
pub fn serve() -> ExitCode {
    if let Err(error) = crate::sandbox::prepare_parser() {
        return child::complain("parser", &error);
    }
    // The stack of the first thread is as large as somebody's limit says; this one is ours.
    match std::thread::Builder::new().stack_size(STACK_BYTES).spawn(work).map(std::thread::JoinHandle::join) {
        Ok(Ok(code)) => code,
        Ok(Err(_)) => ExitCode::from(101),
        Err(error) => child::complain("parser", &error),
    }
}

fn work() -> ExitCode {
    if let Err(error) = crate::sandbox::enter_parser() {
        return child::complain("parser", &error);
    }
    let answer = |items: Vec<Item>| items.iter().map(summarize).collect::<Vec<Parsed>>();
    match child::serve(IDLE, answer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => child::complain("parser", &error),
    }
}

fn summarize(item: &Item) -> Parsed {
    match item {
        Item::Source(bytes) => {
            let text = source::decode(bytes).map_err(|error| Error::Encoding(error.to_string()))?;
            source::summarize(&text).map_err(Error::Syntax)
        }
        Item::Bytecode { pyc, python } => bytecode::summarize(pyc, *python).map_err(|error| match error {
            bytecode::Error::Broken(_) => Error::Broken(error.to_string()),
            bytecode::Error::Header(_) | bytecode::Error::Limit(_) => Error::Bytecode(error.to_string()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_order_and_bounds() {
        let sizes = [1, BATCH_MAX_BYTES, 2, 3, BATCH_MAX_BYTES * 2, 4];
        let items: Vec<Item> = sizes.iter().map(|size| Item::Source(vec![0; *size])).collect();
        let shape: Vec<usize> = batches(items.clone()).iter().map(Vec::len).collect();
        assert_eq!(shape, [1, 1, 2, 1, 1]);
        assert_eq!(batches(items.clone()).concat(), items);
        let many = vec![Item::Source(Vec::new()); BATCH_MAX_ITEMS + 1];
        assert_eq!(batches(many).len(), 2);
    }

    #[test]
    fn what_is_no_source_says_why() {
        assert!(matches!(summarize(&Item::Source(b"x = (".to_vec())), Err(Error::Syntax(_))));
        assert!(matches!(summarize(&Item::Source(b"\xff\xfe".to_vec())), Err(Error::Encoding(_))));
        assert!(summarize(&Item::Source(b"x = 1\n".to_vec())).is_ok());
    }
}
