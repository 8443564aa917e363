//! The helper processes alone, so that this crate's tests can start them.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("__reader") => unstale_agent::reader::serve(),
        _ => ExitCode::from(64),
    }
}
