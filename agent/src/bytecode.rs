//! Bytecode to [`Summary`]: what a `.pyc` says, in the same form as its source.
//!
//! A marshal reader and a symbolic stack machine of our own. Nothing is executed; what an operation does
//! that is not understood makes a value unresolved, never another one. The parser process calls this.

pub mod header;
mod lower;
mod marshal;
mod opcodes;

use crate::python::ir::Summary;
use header::{HEADER_BYTES, HeaderError};
use marshal::MarshalError;
use serde::{Deserialize, Serialize};
use unstale_protocol::ids::PythonVersion;

/// Why a `.pyc` gives no summary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Error {
    /// The interpreter ignores the file, or its version is not supported.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The header is good and the body is not: an import would fail, and not recompile.
    #[error("its body cannot be read: {0}")]
    Broken(String),
    /// Beyond a bound of this reader; an import might succeed.
    #[error("its body is not followed: {0}")]
    Limit(String),
}

/// Lowers the module in a `.pyc` of `python`.
///
/// # Errors
///
/// See [`Error`].
pub fn summarize(pyc: &[u8], python: PythonVersion) -> Result<Summary, Error> {
    header::read(pyc, python)?;
    let body = pyc.get(HEADER_BYTES..).unwrap_or_default();
    let code = marshal::module(body, python.minor).map_err(|error| match error {
        MarshalError::Truncated | MarshalError::Bad { .. } => Error::Broken(error.to_string()),
        MarshalError::TooDeep | MarshalError::TooMany => Error::Limit(error.to_string()),
    })?;
    let table = opcodes::table(python.minor).ok_or(HeaderError::Unsupported(python))?;
    Ok(lower::module(&code, python.minor, &table))
}
