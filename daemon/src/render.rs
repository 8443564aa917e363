//! What a tired person reads: answers as text. Pure: data in, text out.
//!
//! Colours are ANSI sequences that the printer removes where they are not wanted. Every foreign text is
//! escaped here, before it is coloured: none of it can reach a terminal as a command.

pub(crate) mod broadcast;
pub(crate) mod doctor;
pub(crate) mod drain;
pub(crate) mod inspect;
pub(crate) mod keys;
pub(crate) mod progress;
pub(crate) mod status;
pub(crate) mod style;
pub(crate) mod why;

use std::time::Duration;
use unstale_agent::display::escape;

/// Returns foreign text with everything escaped that could command a terminal or deceive its reader.
pub(crate) fn plain(text: &str) -> String {
    escape::terminal(text).into_owned()
}

/// Returns `1 unit`, `2 units`.
pub(crate) fn count(number: u32, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Returns `480 ms`, `5.3 s`, `12 m 3 s`, `3 h 20 m`, `9 d 4 h`.
pub(crate) fn elapsed(ms: u64) -> String {
    let seconds = Duration::from_millis(ms).as_secs();
    match seconds {
        _ if ms < 1_000 => format!("{ms} ms"),
        0..10 => format!("{}.{} s", seconds, ms % 1_000 / 100),
        10..60 => format!("{seconds} s"),
        60..3_600 => format!("{} m {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// Returns the lines of a table: columns as wide as their widest cell, two spaces between, none at the end.
pub(crate) fn table(rows: &[Vec<String>]) -> Vec<String> {
    let width = |text: &str| anstream::adapter::strip_str(text).to_string().chars().count();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell)).max().unwrap_or(0))
        .collect();
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (cell, wide) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.push_str(&" ".repeat((wide + 2).saturating_sub(width(cell))));
            }
            line.truncate(line.trim_end().len());
            line
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_command_a_terminal() {
        let check = |text: &str, want: &str| assert_eq!(plain(text), want);
        check("celery -A shop", "celery -A shop");
        check("\x1b[2J\x1b]0;x\x07", "\\x1b[2J\\x1b]0;x\\x07");
        check("a\nb\tc", "a\\nb\\tc");
        check("\u{9b}31m", "\\x9b31m");
        check("evil\u{202e}txt", "evil\\u{202e}txt");
        check("größe \u{1f600}", "größe \u{1f600}");
    }

    #[test]
    fn lengths_of_time_are_short() {
        let check = |ms: u64, want: &str| assert_eq!(elapsed(ms), want);
        check(480, "480 ms");
        check(5_310, "5.3 s");
        check(59_999, "59 s");
        check(723_000, "12 m 3 s");
        check(12_000_000, "3 h 20 m");
        check(800_000_000, "9 d 6 h");
    }

    #[test]
    fn a_table_ignores_colours_in_its_widths() {
        let rows = [vec![style::bad("stale"), "x".into()], vec!["ok".into(), "yy".into()]];
        let lines: Vec<_> = table(&rows).iter().map(|line| anstream::adapter::strip_str(line).to_string()).collect();
        assert_eq!(lines, ["stale  x", "ok     yy"]);
    }
}
