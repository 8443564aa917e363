//! Four colours with a meaning each.

use anstyle::{AnsiColor, Style};
use unstale_protocol::verdict::Verdict;

fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Stale, failed, errors: red.
pub(crate) fn bad(text: &str) -> String {
    paint(AnsiColor::Red.on_default().bold(), text)
}

/// Fresh, converged, what helps: green.
pub(crate) fn good(text: &str) -> String {
    paint(AnsiColor::Green.on_default(), text)
}

/// Unknown, waiting, what an operator should look at: yellow.
pub(crate) fn doubtful(text: &str) -> String {
    paint(AnsiColor::Yellow.on_default(), text)
}

/// What matters less: dim.
pub(crate) fn quiet(text: &str) -> String {
    paint(Style::new().dimmed(), text)
}

/// Names that a line is about: bold.
pub(crate) fn strong(text: &str) -> String {
    paint(Style::new().bold(), text)
}

/// A verdict in its colour.
pub(crate) fn verdict(verdict: Verdict) -> String {
    match verdict {
        Verdict::Fresh => good("fresh"),
        Verdict::Stale => bad("stale"),
        Verdict::Unknown => doubtful("unknown"),
        Verdict::Untracked => quiet("untracked"),
    }
}
