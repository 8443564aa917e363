//! A bound on nesting that is computed from the tokens, without recursion.

use ruff_python_ast::token::{TokenKind, Tokens};
use ruff_text_size::{Ranged, TextSize};

/// Most open brackets; CPython's tokenizer stops at 200 (`MAXLEVEL`, Parser/tokenizer.h).
const MAX_BRACKETS: usize = 200;

/// Most open blocks; CPython's tokenizer stops at 100 (`MAXINDENT`, Parser/tokenizer.h).
const MAX_BLOCKS: usize = 100;

/// Most tokens on the way from the outermost bracket to the innermost, each counted from the last comma:
/// no branch of the syntax tree is deeper. CPython's own compiler gives up near 6,000 levels.
const MAX_CHAIN: usize = 5_000;

/// Returns where and why the nesting is too deep, if it is.
pub(super) fn excess(tokens: &Tokens) -> Option<(TextSize, &'static str)> {
    let mut blocks = 0_usize;
    // Tokens since the last comma at each bracket level, and their sum.
    let mut levels: Vec<usize> = vec![0];
    let mut sum = 0_usize;
    for token in tokens {
        match token.kind() {
            TokenKind::Indent => blocks += 1,
            TokenKind::Dedent => blocks = blocks.saturating_sub(1),
            TokenKind::Newline | TokenKind::Semi => {
                levels.clear();
                levels.push(0);
                sum = 0;
            }
            TokenKind::Lpar | TokenKind::Lsqb | TokenKind::Lbrace => {
                count(&mut levels, &mut sum);
                levels.push(0);
            }
            TokenKind::Rpar | TokenKind::Rsqb | TokenKind::Rbrace => {
                sum -= levels.pop().unwrap_or(0).min(sum);
                if levels.is_empty() {
                    levels.push(0);
                }
            }
            TokenKind::Comma => {
                if let Some(level) = levels.last_mut() {
                    sum -= (*level).min(sum);
                    *level = 0;
                }
            }
            TokenKind::NonLogicalNewline | TokenKind::Comment | TokenKind::String => {}
            _ => count(&mut levels, &mut sum),
        }
        if blocks > MAX_BLOCKS {
            return Some((token.range().start(), "too many levels of indentation"));
        }
        if levels.len() > MAX_BRACKETS + 1 {
            return Some((token.range().start(), "too many nested parentheses"));
        }
        if sum > MAX_CHAIN {
            return Some((token.range().start(), "an expression is nested too deeply"));
        }
    }
    None
}

fn count(levels: &mut [usize], sum: &mut usize) {
    if let Some(level) = levels.last_mut() {
        *level += 1;
        *sum += 1;
    }
}
