//! `drain` and `undrain` as text.

use super::{plain, style};
use crate::api::{Drain, DrainStanding, Drains};
use std::fmt::Write as _;

/// Returns the answer for people.
pub(crate) fn text(drains: &Drains) -> String {
    let mut out = if drains.drains.is_empty() { "No unit matches.\n".to_owned() } else { lines(&drains.drains) };
    for unseen in &drains.unseen {
        let unknown = style::doubtful("unknown");
        let (host, because) = (plain(&unseen.host), plain(&unseen.because));
        writeln!(out, "  {unknown}  what else is on {host}: {because}").unwrap_or_default();
    }
    out
}

/// Returns one line per drain.
pub(super) fn lines(drains: &[Drain]) -> String {
    let mut out = String::new();
    for drain in drains {
        let words = drain.standing.words();
        let standing = match drain.standing {
            DrainStanding::Drained | DrainStanding::Returned => style::good(words),
            DrainStanding::Failed => style::bad(words),
            _ => style::doubtful(words),
        };
        writeln!(out, "  {standing}  {}  {}", plain(&drain.slot), style::quiet(&plain(&drain.host)))
            .unwrap_or_default();
        if !drain.because.is_empty() && drain.standing != DrainStanding::Drained {
            writeln!(out, "      because {}", plain(&drain.because)).unwrap_or_default();
        }
    }
    out
}
