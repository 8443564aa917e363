//! No supervisor, or one that this version only recognises: nobody to ask.

use super::Error;
use crate::process::Supervisor;

/// Says why nobody can be asked.
pub(crate) fn why(supervisor: &Supervisor) -> String {
    match supervisor {
        Supervisor::Other { name } => format!("{name} is recognised but not driven by this version"),
        _ => "it has no supervisor".to_owned(),
    }
}

/// Returns the error of somebody who asks nonetheless.
pub(crate) fn refuse(supervisor: &Supervisor) -> Error {
    Error::Unreachable { who: "a supervisor".to_owned(), why: why(supervisor) }
}
