//! Bytes of a source file to text: byte order mark and encoding declaration (PEP 263).

use serde::{Deserialize, Serialize};

/// Why the bytes of a source file are no text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum DecodeError {
    /// Not valid in the encoding that is declared, or in UTF-8 where none is.
    #[error("byte {offset} is not valid {encoding}")]
    Invalid {
        /// The encoding.
        encoding: String,
        /// Offset of the first bad byte.
        offset: usize,
    },
    /// An encoding that is not supported here.
    #[error("its encoding {0:?} is not supported: save it as UTF-8")]
    Unsupported(String),
}

/// Decodes a source file: UTF-8, with or without byte order mark, Latin-1 and ASCII. Line ends become
/// line feeds, as the interpreter's tokenizer makes them.
///
/// # Errors
///
/// Bytes that the encoding does not allow, and other encodings.
pub fn decode(bytes: &[u8]) -> Result<String, DecodeError> {
    let (body, has_mark) = match bytes.strip_prefix(b"\xef\xbb\xbf") {
        Some(body) => (body, true),
        None => (bytes, false),
    };
    let declared = declaration(body).map(|name| name.to_ascii_lowercase().replace('_', "-"));
    let text = match declared.as_deref() {
        None | Some("utf-8" | "utf8" | "utf-8-sig" | "u8") => utf8(body)?,
        Some(name) if has_mark => return Err(DecodeError::Unsupported(name.to_owned())),
        Some("latin-1" | "latin1" | "iso-8859-1" | "iso8859-1" | "l1" | "cp819" | "8859") => {
            body.iter().map(|byte| char::from(*byte)).collect()
        }
        Some("ascii" | "us-ascii" | "646") => match body.iter().position(|byte| !byte.is_ascii()) {
            Some(offset) => {
                return Err(DecodeError::Invalid { encoding: "ascii".to_owned(), offset });
            }
            None => utf8(body)?,
        },
        Some(name) => return Err(DecodeError::Unsupported(name.chars().take(40).collect())),
    };
    if text.contains('\r') { Ok(text.replace("\r\n", "\n").replace('\r', "\n")) } else { Ok(text) }
}

fn utf8(body: &[u8]) -> Result<String, DecodeError> {
    match std::str::from_utf8(body) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(DecodeError::Invalid { encoding: "utf-8".to_owned(), offset: error.valid_up_to() }),
    }
}

/// Finds `coding[:=] NAME` in a comment on the first line, or on the second where the first is blank or a comment.
fn declaration(body: &[u8]) -> Option<String> {
    for line in body.split(|byte| matches!(byte, b'\n' | b'\r')).take(2) {
        let start = line.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\x0c')).unwrap_or(line.len());
        let line = line.get(start..).unwrap_or_default();
        if line.is_empty() {
            continue;
        }
        if line.first() != Some(&b'#') {
            return None;
        }
        if let Some(name) = coding(line) {
            return Some(name);
        }
    }
    None
}

fn coding(comment: &[u8]) -> Option<String> {
    let mut rest = comment;
    while let Some(at) = rest.windows(6).position(|window| window == b"coding") {
        rest = rest.get(at + 6..).unwrap_or_default();
        let Some(after) = rest.strip_prefix(b":").or_else(|| rest.strip_prefix(b"=")) else {
            continue;
        };
        let name: String = after
            .iter()
            .skip_while(|byte| matches!(byte, b' ' | b'\t'))
            .take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
            .map(|byte| char::from(*byte))
            .collect();
        if !name.is_empty() {
            return Some(name);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_decoded_as_the_interpreter_does() {
        let check = |bytes: &[u8], want: Result<&str, ()>| {
            assert_eq!(decode(bytes).as_deref().map_err(|_| ()), want, "{}", bytes.escape_ascii());
        };
        check(b"x = 1\n", Ok("x = 1\n"));
        check("x = 'ä'".as_bytes(), Ok("x = 'ä'"));
        check(b"\xef\xbb\xbfx", Ok("x"));
        check(b"# -*- coding: latin-1 -*-\nx = '\xe4'", Ok("# -*- coding: latin-1 -*-\nx = 'ä'"));
        check(
            b"#!/usr/bin/python\n# vim: set fileencoding=iso-8859-1 :\n'\xe4'",
            Ok("#!/usr/bin/python\n# vim: set fileencoding=iso-8859-1 :\n'ä'"),
        );
        check(b"x = 1\n# coding: latin-1\n'\xe4'", Err(()));
        check(b"'\xe4'", Err(()));
        check(b"# coding: koi8-r\n", Err(()));
        check(b"\xef\xbb\xbf# coding: latin-1\n", Err(()));
        check(b"# coding: ascii\n'\xe4'", Err(()));
        check(b"a\r\nb\rc", Ok("a\nb\nc"));
        check(b"", Ok(""));
    }
}
