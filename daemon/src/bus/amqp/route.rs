//! Addresses for answers, as far as their form tells whether the broker gave them.
//!
//! Of use to the coordinator alone: who asks names an address in a field that anybody who may publish can write, and the
//! broker closes the connection of whoever publishes to one that it cannot read.

use super::agent::REPLY_TO;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// What a process's name begins with in it: Erlang, "External Term Format".
const TERM: u8 = 131;

/// Tells whether this may be an address of [`REPLY_TO`]: behind it a process and a key, both in Base64. So it is in
/// RabbitMQ 3.10 (`rabbit_direct_reply_to`) to 4.2 (`rabbit_volatile_queue`). Whether the process lives is not told.
pub(super) fn is_address(route: &str) -> bool {
    let suffix = route.strip_prefix(REPLY_TO).and_then(|rest| rest.strip_prefix('.'));
    let Some((process, key)) = suffix.and_then(|suffix| suffix.split_once('.')) else { return false };
    let (process, key) = (BASE64.decode(process), BASE64.decode(key));
    process.is_ok_and(|term| term.first() == Some(&TERM)) && key.is_ok_and(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_broker_may_have_given_is_an_address() {
        let (process, key) = ("g1h3DHJlcGx5QDEyMzQ1NgAAD5sAAAAAY+tojg==", "AAECAwQFBgcICQoLDA0ODw==");
        assert!(is_address(&format!("{REPLY_TO}.{process}.{key}")));
        for suffix in [
            "",
            ".",
            "..",
            ".x.y",
            ".AAAA.AAAA",
            &format!(".{process}"),
            &format!(".{process}."),
            &format!(".{key}.{key}"),
        ] {
            assert!(!is_address(&format!("{REPLY_TO}{suffix}")), "{suffix}");
        }
        assert!(!is_address(&format!("{REPLY_TO}.{process}.{key}.{key}")));
        assert!(!is_address("unstale.default.reports") && !is_address(""));
    }
}
