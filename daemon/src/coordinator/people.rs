//! Who asked, as people know them: names for user ids.

use crate::control::Caller;
use std::io::Read as _;

/// Longest `/etc/passwd` that is searched.
const PASSWD_MAX_BYTES: u64 = 1 << 20;

/// Returns the caller's name, or its number where it has none: passwd(5).
pub(super) fn name(caller: &Caller) -> String {
    let mut bytes = Vec::new();
    let read = std::fs::File::open("/etc/passwd").and_then(|file| file.take(PASSWD_MAX_BYTES).read_to_end(&mut bytes));
    // Real names may be in any encoding.
    let found = read.ok().and_then(|_| find(&String::from_utf8_lossy(&bytes), caller.uid));
    found.unwrap_or_else(|| format!("uid {}", caller.uid))
}

/// Returns what the record says of an operator's word: who, and why where they said.
pub(super) fn record(caller: &Caller, message: Option<&str>) -> String {
    match message {
        Some(message) => format!("by {}: {message}", name(caller)),
        None => format!("by {}", name(caller)),
    }
}

fn find(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid && !name.is_empty()).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\nshop:x:1001:1001::/srv:/bin/sh\n";
        assert_eq!(find(passwd, 1001).as_deref(), Some("shop"));
        assert_eq!(find(passwd, 7), None);
    }
}
