//! Credentials in command lines.
//!
//! Masks too much rather than too little: a lost path is a nuisance, a printed password is a leak.

/// What stands in place of a secret.
pub const REDACTED: &str = "[redacted]";

/// Parts of names whose values are secrets.
const SECRET_NAMES: [&str; 5] = ["pass", "token", "secret", "key", "pwd"];

/// Returns `command` without credentials: the user part of URLs, and the values of arguments whose name has
/// `pass`, `token`, `secret`, `key` or `pwd` in it (`--password x`, `--api-key=x`, `TOKEN=x`).
pub fn command(command: &[String]) -> Vec<String> {
    let mut value_is_secret = false;
    command
        .iter()
        .map(|argument| {
            let hide = std::mem::take(&mut value_is_secret) && !argument.starts_with("--");
            value_is_secret = is_secret_option(argument);
            // A title or a piece of code is a command line in one argument.
            if hide { REDACTED.to_owned() } else { pieces(argument) }
        })
        .collect()
}

fn pieces(argument: &str) -> String {
    let mut value_is_secret = false;
    let pieces: Vec<String> = argument
        .split(' ')
        .map(|piece| {
            let hide = std::mem::take(&mut value_is_secret) && !piece.starts_with("--") && !piece.is_empty();
            value_is_secret = is_secret_option(piece.trim_start_matches('('));
            if hide { REDACTED.to_owned() } else { assignment(&urls(piece)) }
        })
        .collect();
    pieces.join(" ")
}

/// Tells whether `argument` is an option whose value follows as the next argument.
fn is_secret_option(argument: &str) -> bool {
    argument.starts_with('-') && !argument.contains('=') && has_secret_name(argument)
}

fn has_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.iter().any(|part| name.contains(part))
}

/// Masks the user part of every URL in `text`: up to the last `@` before a blank or a quotation mark, since
/// passwords with a slash in them are common, though wrong.
fn urls(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        let end = after.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`')).unwrap_or(after.len());
        let (url, tail) = after.split_at(end);
        // A list such as `redis://a@h;redis://b@h` has several: stop before the next one's scheme.
        let (url, next) = match url.find("://") {
            Some(at) => {
                let scheme = url.get(..at).unwrap_or_default();
                let start = scheme.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '+').map_or(at, |i| i + 1);
                url.split_at_checked(start).unwrap_or((url, ""))
            }
            None => (url, ""),
        };
        match url.rsplit_once('@') {
            Some((_, host)) => {
                shown.push_str(REDACTED);
                shown.push('@');
                shown.push_str(host);
            }
            None => shown.push_str(url),
        }
        if next.is_empty() {
            rest = tail;
        } else {
            rest = after.get(url.len()..).unwrap_or_default();
        }
    }
    shown.push_str(rest);
    shown
}

/// Masks the value of each `name=value` whose name sounds like a secret; several may be joined by `&`, `,` or `;`.
fn assignment(text: &str) -> String {
    let Some((name, value)) = text.split_once('=') else {
        return text.to_owned();
    };
    if has_secret_name(name.rsplit(['&', ',', ';', '?']).next().unwrap_or(name)) {
        // In a query string others may follow; anywhere else the rest belongs to the secret.
        return match value.split_once('&') {
            Some((_, rest)) if name.contains('?') || name.contains('&') => {
                format!("{name}={REDACTED}&{}", assignment(rest))
            }
            _ => format!("{name}={REDACTED}"),
        };
    }
    format!("{name}={}", assignment(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: &[&str], expected: &[&str]) {
        let given: Vec<String> = given.iter().map(|word| (*word).to_owned()).collect();
        assert_eq!(command(&given), expected, "{given:?}");
    }

    #[test]
    fn user_parts_of_urls_are_masked() {
        check(&["-b", "redis://:s3cret@host:6379/0"], &["-b", "redis://[redacted]@host:6379/0"]);
        check(&["--broker=amqp://u:p@h//"], &["--broker=amqp://[redacted]@h//"]);
        check(&["amqp://u:p/w@rd@h/v"], &["amqp://[redacted]@h/v"]);
        check(&["https://ghp_abc@github.com/x"], &["https://[redacted]@github.com/x"]);
        check(&["redis://:a@h1;redis://:b@h2"], &["redis://[redacted]@h1;redis://[redacted]@h2"]);
        check(&["https://example.org/a?b=c"], &["https://example.org/a?b=c"]);
    }

    #[test]
    fn values_of_arguments_that_sound_secret_are_masked() {
        check(&["--password", "hunter2", "x"], &["--password", "[redacted]", "x"]);
        check(&["--db-PASS=hunter2"], &["--db-PASS=[redacted]"]);
        check(&["API_TOKEN=abc=def"], &["API_TOKEN=[redacted]"]);
        check(&["-secret", "-x", "y"], &["-secret", "[redacted]", "y"]);
        check(&["--signing-key", "k"], &["--signing-key", "[redacted]"]);
        check(&["--no-password", "--verbose"], &["--no-password", "--verbose"]);
        check(&["http://h/p?a=1&token=abc&b=2"], &["http://h/p?a=1&token=[redacted]&b=2"]);
    }

    #[test]
    fn a_title_is_a_command_line_in_one_argument() {
        check(
            &["[celeryd: w1@box:MainProcess] -active- (-A app worker -b redis://:p@h --password x)"],
            &["[celeryd: w1@box:MainProcess] -active- (-A app worker -b redis://[redacted]@h --password [redacted]"],
        );
        check(&["connect(password='x', user='y')"], &["connect(password=[redacted] user='y')"]);
    }

    #[test]
    fn what_is_no_secret_stays() {
        check(&["celery", "-A", "shop", "worker", "-n", "w1@%h"], &["celery", "-A", "shop", "worker", "-n", "w1@%h"]);
        check(&["", "=", "://", "@", "a b"], &["", "=", "://", "@", "a b"]);
    }
}
