//! `keys show` as text.

use super::{plain, style, table};
use crate::commands::keys::Shown;

/// Returns the answer for people.
pub(crate) fn text(shown: &Shown) -> String {
    if shown.keys.is_empty() {
        return format!("No keys in {}: `unstale keys new coordinator` makes one.\n", plain(&shown.directory));
    }
    let rows: Vec<Vec<String>> = shown
        .keys
        .iter()
        .map(|key| {
            let standing = match (key.in_use, key.private, key.enrolled) {
                (true, _, true) => style::good("in use"),
                (true, _, false) => style::doubtful("in use, not enrolled here"),
                (_, true, _) => "kept, not in use".to_owned(),
                _ => "enrolled".to_owned(),
            };
            vec![
                style::strong(&key.id),
                key.role.to_owned(),
                key.host.as_deref().map(plain).unwrap_or_default(),
                standing,
            ]
        })
        .collect();
    table(&rows).iter().fold(String::new(), |text, line| text + line + "\n")
}
