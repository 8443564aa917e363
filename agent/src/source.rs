//! Source text to [`Summary`], with ruff's parser. No other module knows that parser.
//!
//! Nothing is imported or run. The parser process calls this; nesting is bounded before the syntax tree
//! is walked, because walking or dropping a deep one would overflow the stack.

mod decode;
mod expressions;
mod nesting;
mod statements;

pub use decode::{DecodeError, decode};
pub(crate) use expressions::{MAX_TEXT_BYTES, string};
pub(crate) use statements::MUTATORS;

use crate::python::ir::{Expr, Summary};
use ruff_python_parser::{parse_expression, parse_module};
use ruff_text_size::{Ranged, TextSize};
use serde::{Deserialize, Serialize};

/// Why a text is no Python module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct SyntaxError {
    /// Line of the first error, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What is wrong.
    pub message: String,
}

/// Lowers the text of one module.
///
/// # Errors
///
/// The first syntax error, or nesting beyond what the interpreter itself accepts.
pub fn summarize(text: &str) -> Result<Summary, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = Lines::of(text);
    let parsed = parse_module(text).map_err(|error| {
        let (line, column) = lines.locate(text, error.range().start());
        SyntaxError { line, column, message: error.error.to_string() }
    })?;
    if let Some((at, message)) = nesting::excess(parsed.tokens()) {
        let (line, column) = lines.locate(text, at);
        // Dropping so deep a tree recurses as deeply; the process that parses hostile text is short-lived.
        std::mem::forget(parsed);
        return Err(SyntaxError { line, column, message: message.to_owned() });
    }
    Ok(statements::lower(parsed.syntax(), &lines))
}

/// Lowers one expression: an annotation that was written, or kept, as text.
pub(crate) fn expression(text: &str) -> Expr {
    if text.len() > MAX_ANNOTATION_BYTES {
        return Expr::unresolved("an annotation too long to parse");
    }
    let Ok(parsed) = parse_expression(text) else {
        return Expr::unresolved("text that is no expression");
    };
    if nesting::excess(parsed.tokens()).is_some() {
        std::mem::forget(parsed);
        return Expr::unresolved("an expression nested too deeply");
    }
    expressions::lower(parsed.expr())
}

/// Longest annotation in text form that is parsed.
const MAX_ANNOTATION_BYTES: usize = 4096;

/// Tells whether a file can hold an enum or a binding at all, by a search for the words that every such
/// file contains. Only for scans of whole directories: a module that is asked for is always parsed.
pub fn may_matter(bytes: &[u8]) -> bool {
    const WORDS: [&[u8]; 6] = [b"Enum", b"ENUM", b"Choices", b"Flag", b"Mapped", b"Column"];
    // One pass over the bytes: look closer only where a word could begin.
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'E' | b'C' | b'F' | b'M')) {
        let tail = rest.get(at..).unwrap_or_default();
        if WORDS.iter().any(|word| tail.starts_with(word)) {
            return true;
        }
        rest = tail.get(1..).unwrap_or_default();
    }
    false
}

/// Where lines begin.
pub(crate) struct Lines(Vec<u32>);

impl Lines {
    fn of(text: &str) -> Self {
        let mut starts = vec![0];
        let bytes = text.as_bytes();
        for (index, byte) in bytes.iter().enumerate() {
            let ends = *byte == b'\n' || (*byte == b'\r' && bytes.get(index + 1) != Some(&b'\n'));
            if ends {
                starts.push(u32::try_from(index + 1).unwrap_or(u32::MAX));
            }
        }
        Self(starts)
    }

    pub(crate) fn line(&self, at: TextSize) -> u32 {
        let offset = at.to_u32();
        u32::try_from(self.0.partition_point(|start| *start <= offset)).unwrap_or(u32::MAX)
    }

    fn locate(&self, text: &str, at: TextSize) -> (u32, u32) {
        let line = self.line(at);
        let start = self.0.get((line as usize).saturating_sub(1)).copied().unwrap_or(0) as usize;
        let before = text.get(start..at.to_usize()).unwrap_or("");
        (line, u32::try_from(before.chars().count() + 1).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::ir::{Action, Branch};

    #[test]
    fn a_syntax_error_is_located() {
        let error = summarize("x = 1\nclass A(:\n    pass\n").unwrap_err();
        assert_eq!(error.line, 2);
        assert!(error.column > 1, "{error}");
        assert!(summarize("def f(:\n").is_err());
        assert!(summarize("x = 'a\0'\0").is_err());
    }

    #[test]
    fn deep_nesting_is_refused_and_does_not_overflow_the_stack() {
        let deep = 100_000;
        for text in [
            format!("x = {}1", "-".repeat(deep)),
            format!("x = a{}", ".b".repeat(deep)),
            format!("x = {}{}", "[".repeat(deep), "]".repeat(deep)),
            format!("x = {}1", "not ".repeat(deep)),
            format!("x = {}1", "lambda: ".repeat(deep)),
            format!("x = 1{}", " + 1".repeat(deep)),
            format!("x = a{}", "()".repeat(deep)),
            format!("x = {}1", "a if b else ".repeat(deep)),
            format!("x = {}1", "a ** ".repeat(deep)),
            format!("x = {}1{}", "f(a, ".repeat(deep), ")".repeat(deep)),
        ] {
            assert!(summarize(&text).is_err(), "{}", text.get(..40).unwrap_or(""));
        }
        let blocks = (0..150).map(|depth| " ".repeat(depth) + "if a:\n").collect::<Vec<_>>().concat();
        assert!(summarize(&format!("{blocks}{}pass\n", " ".repeat(150))).is_err());
    }

    #[test]
    fn wide_literals_are_not_deep() {
        let wide = format!("x = [{}]", "(a.b.c, 'd', -1),".repeat(20_000));
        assert!(summarize(&wide).is_ok());
    }

    #[test]
    fn lone_surrogates_are_unresolved() {
        let summary = summarize("x = '\\ud800'\n").unwrap();
        let Action::Assign { value, .. } = &summary.body[0].action else { panic!("{summary:?}") };
        assert!(matches!(value, Expr::Unresolved(_)), "{value:?}");
    }

    #[test]
    fn branches_on_the_python_version_are_kept() {
        let check = |test: &str, body: Branch, orelse: Branch| {
            let summary = summarize(&format!("import sys\nif {test}:\n    a = 1\nelse:\n    a = 2\n")).unwrap();
            assert_eq!(summary.body[1].branch, body, "{test}");
            assert_eq!(summary.body[2].branch, orelse, "{test}");
        };
        let from = |since| Branch::Python { since, below: u8::MAX };
        let to = |below| Branch::Python { since: 0, below };
        check("sys.version_info >= (3, 11)", from(11), to(11));
        check("sys.version_info < (3, 11)", to(11), from(11));
        check("sys.version_info[:2] >= (3, 11)", from(11), to(11));
        check("sys.version_info > (3,)", Branch::Sometimes, Branch::Sometimes);
        check("TYPE_CHECKING", Branch::Sometimes, Branch::Sometimes);
    }

    #[test]
    fn only_files_with_the_words_may_matter() {
        for text in ["class A(Enum)", "x = ENUM(", "Choices", "class F(IntFlag)", "Mapped[int]", "db.Column()"] {
            assert!(may_matter(text.as_bytes()), "{text}");
        }
        for text in ["", "E", "enum", "import os\nprint(1)\nEnu"] {
            assert!(!may_matter(text.as_bytes()), "{text}");
        }
    }
}
