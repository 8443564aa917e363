//! Escape sequences of a command line must not reach a terminal.

use std::borrow::Cow;
use std::fmt::Write;

/// Returns `text` with everything escaped that could steer a terminal or deceive its reader.
///
/// That is: control characters (C0, DEL, C1), line and paragraph separators, marks that change the direction
/// of writing, invisible joiners. They become `\n`, `\x1b` or `\u{202e}`; all other text stays as it is.
pub fn terminal(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            _ if !is_harmful(c) => shown.push(c),
            _ => {
                let code = u32::from(c);
                let written =
                    if code < 0x100 { write!(shown, "\\x{code:02x}") } else { write!(shown, "\\u{{{code:x}}}") };
                // Writing to a String cannot fail.
                if written.is_err() {
                    shown.push('?');
                }
            }
        }
    }
    Cow::Owned(shown)
}

/// Returns a command line as one line for people: masked by [`super::mask::command`], escaped by [`terminal`].
pub fn command(command: &[String]) -> String {
    let masked = super::mask::command(command);
    let words: Vec<Cow<'_, str>> = masked.iter().map(|word| terminal(word)).collect();
    words.join(" ")
}

fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(terminal(text), expected, "{text:?}");
    }

    #[test]
    fn escape_sequences_never_reach_a_terminal() {
        check("\x1b]0;owned\x07", "\\x1b]0;owned\\x07");
        check("\x1b[2Jclean", "\\x1b[2Jclean");
        check("\u{9b}31m", "\\x9b31m");
        check("a\nb\r\tc\0\x7f", "a\\nb\\r\\tc\\x00\\x7f");
    }

    #[test]
    fn text_that_hides_its_direction_is_shown() {
        check("user\u{202e}gpj.exe", "user\\u{202e}gpj.exe");
        check("a\u{200b}b\u{2028}c\u{feff}\u{e0041}", "a\\u{200b}b\\u{2028}c\\u{feff}\\u{e0041}");
    }

    #[test]
    fn ordinary_text_stays() {
        check("celery -A shop worker", "celery -A shop worker");
        check("größe=5 名前 🐍 C:\\x", "größe=5 名前 🐍 C:\\x");
    }

    #[test]
    fn a_command_is_masked_and_escaped() {
        let words = ["python", "--password", "x\x1b[2J", "a\x1bb"].map(str::to_owned);
        assert_eq!(command(&words), "python --password [redacted] a\\x1bb");
    }
}
