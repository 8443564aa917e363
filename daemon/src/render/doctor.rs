//! `doctor` as text.

use super::{plain, style};
use crate::commands::doctor::{Doctor, Standing};
use std::fmt::Write as _;

/// Returns the answer for people.
pub(crate) fn text(doctor: &Doctor) -> String {
    let mut out = String::new();
    for finding in &doctor.findings {
        let mark = match finding.standing {
            Standing::Good => style::good("ok      "),
            Standing::Note => style::quiet("note    "),
            Standing::Missing => style::bad("missing "),
        };
        writeln!(out, "{mark}{}: {}", style::strong(finding.what), plain(&finding.found)).unwrap_or_default();
        if let Some(help) = &finding.help {
            writeln!(out, "        {}", plain(help)).unwrap_or_default();
        }
    }
    out
}
