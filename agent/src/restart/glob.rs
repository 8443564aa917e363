//! Shell patterns with `*` and `?`, for names and for files. No recursion, no backtracking beyond one star.

use std::path::{Component, Path, PathBuf};

/// Most entries of directories that are looked at for one pattern.
const ENTRIES_MAX: usize = 10_000;

/// Tells whether `text` fits `pattern`: `*` is any run of characters (also `/`), `?` any one.
pub(crate) fn fits(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut place) = (0, 0);
    // Where to go on after a mismatch: behind the last star, one character further.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        match (pattern.get(at), text.get(place)) {
            (None, None) => return true,
            (Some('*'), _) => {
                retry = Some((at + 1, place));
                at += 1;
            }
            (Some('?'), Some(_)) => (at, place) = (at + 1, place + 1),
            (Some(wanted), Some(found)) if wanted == found => (at, place) = (at + 1, place + 1),
            _ => match retry {
                Some((behind, from)) if from < text.len() => {
                    retry = Some((behind, from + 1));
                    (at, place) = (behind, from + 1);
                }
                _ => return false,
            },
        }
    }
}

/// Lists the existing paths that fit `pattern` component by component, sorted, at most `limit`.
pub(crate) fn files(pattern: &Path, limit: usize) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    let mut entries_left = ENTRIES_MAX;
    for component in pattern.components() {
        let mut next = Vec::new();
        let Component::Normal(name) = component else {
            for path in &mut found {
                path.push(component);
            }
            continue;
        };
        let name = name.to_string_lossy();
        for path in found {
            if !name.contains(['*', '?']) {
                next.push(path.join(name.as_ref()));
                continue;
            }
            let Ok(entries) = std::fs::read_dir(&path) else { continue };
            let names = entries.filter_map(Result::ok).map(|entry| entry.file_name());
            let names = names.take(entries_left).inspect(|_| entries_left = entries_left.saturating_sub(1));
            let fitting = names.filter(|entry| fits(&name, &entry.to_string_lossy()) && !is_hidden(entry, &name));
            next.extend(fitting.map(|entry| path.join(entry)).take(limit));
        }
        next.truncate(limit);
        found = next;
    }
    found.retain(|path| path.exists());
    found.sort();
    found
}

/// A leading dot is matched by a leading dot only, as in a shell.
fn is_hidden(entry: &std::ffi::OsStr, pattern: &str) -> bool {
    entry.to_string_lossy().starts_with('.') && !pattern.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_like_a_shells() {
        for (pattern, text, expected) in [
            ("celery/none/*", "celery/none/ab12/1000/0", true),
            ("celery/*/shop@?.service", "celery/systemd/shop@1.service", true),
            ("celery/*/shop@?.service", "celery/systemd/shop@12.service", false),
            ("*", "", true),
            ("", "x", false),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXbXbX", false),
            ("**a", "bbba", true),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
        }
        assert!(!fits(&"*a".repeat(50), &"a".repeat(49)));
    }

    #[test]
    fn files_are_found_by_pattern() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["b.conf", "a.conf", ".hidden.conf", "c.ini"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let names = |limit| files(&directory.path().join("*.conf"), limit).len();
        assert_eq!((names(10), names(1)), (2, 1));
        assert!(files(&directory.path().join("none/*.conf"), 10).is_empty());
    }
}
