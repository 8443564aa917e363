//! The log, on stderr: what is written and in which form. Also whether anything is coloured.

use crate::cli::{LogArgs, LogFormat, Watched};
use std::io::IsTerminal as _;
use tracing::level_filters::LevelFilter;

/// Starts the log. Called once, before anything is logged.
pub(crate) fn start(args: LogArgs, watched: Watched) {
    if args.no_color {
        anstream::ColorChoice::Never.write_global();
    }
    let colours = std::io::stderr().is_terminal()
        && !matches!(anstream::AutoStream::choice(&std::io::stderr()), anstream::ColorChoice::Never);
    let log = tracing_subscriber::fmt()
        .with_max_level(level(args, watched))
        .with_writer(std::io::stderr)
        .with_target(args.verbose > 1);
    // A second start changes nothing: only tests could ask for one.
    match args.log_format {
        LogFormat::Text => log.with_ansi(colours).try_init().unwrap_or_default(),
        LogFormat::Json => log.json().flatten_event(true).try_init().unwrap_or_default(),
    }
}

/// One step less for a command that somebody waits for: its answer says what was done.
fn level(args: LogArgs, watched: Watched) -> LevelFilter {
    match (args.quiet, args.verbose, watched) {
        (true, ..) => LevelFilter::ERROR,
        (false, 0, Watched::ByCaller) => LevelFilter::WARN,
        (false, 0, Watched::ByNobody) | (false, 1, Watched::ByCaller) => LevelFilter::INFO,
        (false, 1, Watched::ByNobody) | (false, 2, Watched::ByCaller) => LevelFilter::DEBUG,
        (false, ..) => LevelFilter::TRACE,
    }
}
