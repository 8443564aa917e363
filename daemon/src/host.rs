//! This host's name.

use unstale_protocol::ids::{HostName, NAME_MAX_BYTES};

/// Returns the machine's name: uname(2).
pub(crate) fn name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

/// Returns the machine's name as one on the bus: other characters than those allowed become `-`.
pub(crate) fn bus_name() -> Option<HostName> {
    fitted(&name())
}

fn fitted(name: &str) -> Option<HostName> {
    let text: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
        .take(NAME_MAX_BYTES)
        .collect();
    HostName::new(text.trim_start_matches(['.', '_', '-'])).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_machine_name_can_stand_on_the_bus() {
        let check = |name: &str, want: Option<&str>| assert_eq!(fitted(name).map(String::from).as_deref(), want);
        check("web-3.example", Some("web-3.example"));
        check("-web 3", Some("web-3"));
        check("größe", Some("gr--e"));
        check("--", None);
    }
}
