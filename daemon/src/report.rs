//! How a run ends: exit codes, errors with their causes and hints, and the one place that prints.
//!
//! Data goes to stdout, everything else to stderr. A stale worker is an answer, not an error.

use crate::cli::Output;
use crate::client::ClientError;
use crate::config::ConfigError;
use crate::database::DatabaseError;
use crate::http::SocketError;
use crate::keys::KeyError;
use crate::store::StoreError;
use serde::Serialize;
use std::cell::RefCell;
use std::io::{self, Write as _};
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

/// How a run ended, as scripts see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Exit {
    /// Clean, or converged and verified.
    Clean,
    /// Drift, stale, or ended with failures.
    Stale,
    /// Usage, configuration or I/O error.
    Error,
    /// Unknown remains, or the time limit passed while still in progress.
    Unknown,
    /// Halted by policy.
    Halted,
    /// Superseded or aborted.
    Aborted,
    /// Internal error.
    Internal,
    /// Detached by Ctrl-C.
    Detached,
    /// A helper process ended; only the agent that started it looks.
    Part(ExitCode),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Clean => Self::from(0),
            Exit::Stale => Self::from(1),
            Exit::Error => Self::from(2),
            Exit::Unknown => Self::from(3),
            Exit::Halted => Self::from(4),
            Exit::Aborted => Self::from(5),
            Exit::Internal => Self::from(101),
            Exit::Detached => Self::from(130),
            Exit::Part(code) => code,
        }
    }
}

thread_local! {
    /// What a panic said, where the code around it expects one and speaks for it.
    static CAUGHT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs the program; a panic becomes exit code 101 and one line on stderr.
pub(crate) fn guarded(run: impl FnOnce() -> Exit) -> ExitCode {
    panic::set_hook(Box::new(|info| {
        let is_expected = CAUGHT.with_borrow_mut(|caught| match caught {
            Some(text) => {
                *text = info.to_string();
                true
            }
            None => false,
        });
        if !is_expected {
            note(&format!(
                "internal error: {info}\nThis is a defect in unstale; please report it with the line above."
            ));
        }
    }));
    panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or(Exit::Internal).into()
}

/// Runs code of a library that may panic on damaged input.
///
/// # Errors
/// What the panic said.
pub(crate) fn contained<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    CAUGHT.set(Some(String::new()));
    let result = panic::catch_unwind(AssertUnwindSafe(run));
    let text = CAUGHT.take().unwrap_or_default();
    result.map_err(|_| text)
}

/// Prints text on stdout. A reader that went away ends nothing: the exit code still tells.
pub(crate) fn answer(text: &str) {
    finish(anstream::stdout().write_all(text.as_bytes()));
}

/// Prints one JSON object on stdout, on a line of its own.
pub(crate) fn answer_json(value: &impl Serialize) {
    // JSON has no colours that would have to be taken out for a file, and it may be megabytes: it leaves in pieces.
    let mut inert = Inert(io::BufWriter::with_capacity(PIECE_BYTES, io::stdout().lock()));
    match serde_json::to_writer_pretty(&mut inert, value) {
        Ok(()) => finish(inert.0.write_all(b"\n").and_then(|()| inert.0.flush())),
        // Nobody is left to be told that stdout is closed.
        Err(error) if error.is_io() => {}
        Err(error) => note(&format!("error: cannot write the answer as JSON: {error}")),
    }
}

/// How many bytes of an answer are written at once.
const PIECE_BYTES: usize = 64 << 10;

/// Escapes in JSON text what its encoder leaves as it is and a terminal could take for a command: DEL and the C1
/// controls. Outside of strings JSON has none of them. The encoder writes whole characters.
struct Inert<W>(W);

impl<W: io::Write> io::Write for Inert<W> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        // In UTF-8 each of them is this byte or begins with that one.
        if !piece.iter().any(|byte| matches!(byte, 0x7f | 0xc2)) {
            self.0.write_all(piece)?;
            return Ok(piece.len());
        }
        for c in str::from_utf8(piece).map_err(io::Error::other)?.chars() {
            match c {
                '\u{7f}'..='\u{9f}' => write!(self.0, "\\u{:04x}", u32::from(c))?,
                c => write!(self.0, "{c}")?,
            }
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Prints a line for people on stderr.
pub(crate) fn note(line: &str) {
    finish(writeln!(anstream::stderr(), "{line}"));
}

fn finish(result: io::Result<()>) {
    // Nobody is left to be told that stdout or stderr is closed.
    result.unwrap_or_default();
}

/// Reports what clap found wrong, or prints the help or version that was asked for.
pub(crate) fn usage(error: &clap::Error) -> Exit {
    finish(error.print());
    if error.use_stderr() { Exit::Error } else { Exit::Clean }
}

/// The body of every error, on the wire and on stderr with `--output json`.
#[derive(Debug, Serialize)]
struct ErrorObject<'a> {
    schema: &'static str,
    code: &'a str,
    message: String,
    help: Option<String>,
}

/// Reports why there is no answer: the chain of causes, then what can be done.
pub(crate) fn error(error: &anyhow::Error, form: Output) -> Exit {
    let explained = explain(error);
    match form {
        Output::Text => {
            note(&format!("{}: {error}", crate::render::style::bad("error")));
            for cause in error.chain().skip(1) {
                note(&format!("  caused by: {cause}"));
            }
            if let Some(help) = &explained.help {
                note(&format!("{}: {help}", crate::render::style::good("hint")));
            }
        }
        Output::Json => {
            let object = ErrorObject {
                schema: "unstale.error/1",
                code: explained.code,
                message: format!("{error:#}"),
                help: explained.help.clone(),
            };
            note(&serde_json::to_string(&object).unwrap_or_else(|_| format!("error: {error:#}")));
        }
    }
    explained.exit
}

struct Explained<'a> {
    code: &'a str,
    help: Option<String>,
    exit: Exit,
}

fn explain(error: &anyhow::Error) -> Explained<'_> {
    for cause in error.chain() {
        let (code, help) = if let Some(error) = cause.downcast_ref::<StoreError>() {
            (error.code(), error.help())
        } else if let Some(error) = cause.downcast_ref::<ClientError>() {
            (error.code(), error.help())
        } else if let Some(error) = cause.downcast_ref::<SocketError>() {
            (error.code(), error.help())
        } else if let Some(error) = cause.downcast_ref::<ConfigError>() {
            (error.code(), error.help())
        } else if let Some(error) = cause.downcast_ref::<DatabaseError>() {
            (error.code(), error.help())
        } else if let Some(error) = cause.downcast_ref::<KeyError>() {
            (error.code(), error.help())
        } else if cause.downcast_ref::<tokio::task::JoinError>().is_some_and(tokio::task::JoinError::is_panic) {
            return Explained { code: "internal", help: None, exit: Exit::Internal };
        } else {
            continue;
        };
        return Explained { code, help, exit: Exit::Error };
    }
    Explained { code: "error", help: None, exit: Exit::Error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_hint_is_found_behind_the_context() {
        let error = Err::<(), _>(StoreError::Locked { path: "/x".into(), pid: Some(7) }).context("cannot start");
        let error = error.unwrap_err();
        let explained = explain(&error);
        assert_eq!((explained.code, explained.exit), ("state-locked", Exit::Error));
        assert!(explained.help.is_some());
    }

    #[test]
    fn json_cannot_command_a_terminal_and_means_the_same() {
        for text in ["\u{9b}2J \u{7f} \u{1b} ok", "\u{c2}\u{a0}\u{201c}\u{85}\u{20ac}", "\u{7f}\n\u{80}"] {
            let mut shown = Vec::new();
            serde_json::to_writer_pretty(Inert(&mut shown), text).unwrap();
            let shown = String::from_utf8(shown).unwrap();
            assert!(shown.chars().all(|c| !c.is_control()), "{shown}");
            assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        }
    }

    #[test]
    fn a_contained_panic_is_a_value() {
        assert_eq!(contained(|| 7), Ok(7));
        assert!(contained(|| -> u8 { panic!("broken page") }).is_err());
    }
}
