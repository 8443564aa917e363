//! How a wait is shown: one line that changes on a terminal, plain lines elsewhere, nothing when quiet.

use super::{broadcast, plain, style};
use crate::api::{Event, Rollout};
use crate::cli::LogArgs;
use crate::report;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal as _;
use std::time::Duration;

/// What a person sees while a command waits, on stderr.
#[derive(Debug)]
pub(crate) struct Progress {
    line: Option<ProgressBar>,
    is_quiet: bool,
    last: String,
}

impl Progress {
    /// Starts to show what is waited for.
    pub(crate) fn start(log: LogArgs, what: &str) -> Self {
        let is_animated = !log.quiet && std::io::stderr().is_terminal();
        let line = is_animated.then(|| {
            let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            // Without the template there is no spinner, and the words still show.
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                line.set_style(style);
            }
            line.enable_steady_tick(Duration::from_millis(120));
            line.set_message(what.to_owned());
            line
        });
        if line.is_none() && !log.quiet {
            report::note(what);
        }
        Self { line, is_quiet: log.quiet, last: what.to_owned() }
    }

    /// Shows where the wait stands.
    pub(crate) fn show(&mut self, text: &str) {
        if self.last == text {
            return;
        }
        text.clone_into(&mut self.last);
        match &self.line {
            Some(line) => line.set_message(text.to_owned()),
            None if self.is_quiet => {}
            None => report::note(text),
        }
    }

    /// Shows one thing that happened, which stays on the screen.
    pub(crate) fn happened(&self, event: &Event) {
        let place = match (&event.slot, &event.host) {
            (Some(slot), Some(host)) => format!("  {}", style::quiet(&plain(&format!("{slot} on {host}")))),
            (None, Some(host)) => format!("  {}", style::quiet(&plain(host))),
            _ => String::new(),
        };
        self.say(&format!("  {}{place}", plain(&event.text)));
    }

    /// Says something that stays on the screen.
    pub(crate) fn say(&self, text: &str) {
        match &self.line {
            Some(line) => line.suspend(|| report::note(text)),
            None if self.is_quiet => {}
            None => report::note(text),
        }
    }

    /// Ends the line that changes.
    pub(crate) fn finish(self) {
        if let Some(line) = self.line {
            line.finish_and_clear();
        }
    }
}

/// Returns where a rollout stands in one line.
pub(crate) fn line(rollout: &Rollout) -> String {
    let because = rollout.because.as_deref().map(|because| format!("; {}", plain(because))).unwrap_or_default();
    format!("{}@{}: {}{because}", rollout.app, rollout.revision, broadcast::units(&rollout.units))
}
