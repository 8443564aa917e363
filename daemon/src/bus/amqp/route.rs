//! Addresses for answers, as far as their form tells whether the broker gave them, and where it did.
//!
//! Of use to the coordinator alone: who asks names an address in a field that anybody who may publish can write, and the
//! broker closes the connection of whoever publishes to one that it cannot read.

use super::agent::REPLY_TO;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// A process in it: Erlang, "External Term Format", `NEW_PID_EXT` and `PID_EXT`, and how many bytes of numbers follow the
/// name of the node.
const PROCESSES: [([u8; 2], usize); 2] = [([131, 88], 12), ([131, 103], 9)];
/// The name of the node: `ATOM_UTF8_EXT` and `SMALL_ATOM_UTF8_EXT`, with two bytes of length and with one.
const LONG_NAME: u8 = 118;
const SHORT_NAME: u8 = 119;

/// Returns the number of the node that an address of [`REPLY_TO`] leads to, where it may be one: behind it a process and
/// a key, both in Base64, the process at a node of the name `reply@NUMBER`. So it is in RabbitMQ 3.10
/// (`rabbit_direct_reply_to`) to 4.2 (`rabbit_volatile_queue`). Whether node or process live is not told.
pub(super) fn node_of(route: &str) -> Option<u32> {
    let (process, key) = route.strip_prefix(REPLY_TO)?.strip_prefix('.')?.split_once('.')?;
    if BASE64.decode(key).ok()?.is_empty() {
        return None;
    }
    let process = BASE64.decode(process).ok()?;
    let (name, numbers_bytes) = PROCESSES.iter().find_map(|(tag, bytes)| Some((process.strip_prefix(tag)?, *bytes)))?;
    let (length, rest) = match name {
        [LONG_NAME, high, low, rest @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        [SHORT_NAME, length, rest @ ..] => (usize::from(*length), rest),
        _ => return None,
    };
    let (name, numbers) = rest.split_at_checked(length)?;
    let (_, number) = std::str::from_utf8(name).ok()?.split_once('@')?;
    let is_number = numbers.len() == numbers_bytes && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse().ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_broker_may_have_given_is_an_address() {
        let key = "AAECAwQFBgcICQoLDA0ODw==";
        let node = |process: &[u8]| node_of(&format!("{REPLY_TO}.{}.{key}", BASE64.encode(process)));
        // As RabbitMQ 3.10.8 gave it, then in the other forms that there are.
        let given = "g1h2AA5yZXBseUAxMDIwNTM5NgAAArwAAAAAawP2fA==.C8Cei9jxJrvfmmwItNYbug==";
        assert_eq!(node_of(&format!("{REPLY_TO}.{given}")), Some(10_205_396));
        assert_eq!(node(b"\x83Xw\x07reply@1aaaabbbbcccc"), Some(1));
        assert_eq!(node(b"\x83gv\0\x07reply@1aaaabbbbc"), Some(1));
        for process in [
            &b""[..],
            b"\x83",
            b"\x83a\x05",
            b"\x83X",
            b"\x83Xw",
            b"\x83Xv\0",
            b"\x83Xw\xffreply@1aaaabbbbcccc",
            b"\x83Xd\0\x07reply@1aaaabbbbcccc",
            b"\x83Xw\x07reply@1aaaabbbbccc",
            b"\x83Xw\x07reply@1aaaabbbbccccd",
            b"\x83gw\x07reply@1aaaabbbbcccc",
            b"\x83Xw\x06reply1aaaabbbbcccc",
            b"\x83Xw\x07reply@xaaaabbbbcccc",
            b"\x83Xw\x06reply@aaaabbbbcccc",
            b"\x83Xw\x08reply@+1aaaabbbbcccc",
            b"\x83Xw\x09re@ply@11aaaabbbbcccc",
            b"\x83Xw\x07rep\xffy@1aaaabbbbcccc",
            b"\x83Xw\x11reply@99999999999aaaabbbbcccc",
        ] {
            assert_eq!(node(process), None, "{process:?}");
        }
        for suffix in ["", ".", "..", ".x.y", ".AAAA.AAAA", &format!(".{key}"), &format!(".{given}.{key}")] {
            assert_eq!(node_of(&format!("{REPLY_TO}{suffix}")), None, "{suffix}");
        }
        assert_eq!(node_of(&format!("{REPLY_TO}.{}.", BASE64.encode(b"\x83Xw\x07reply@1aaaabbbbcccc"))), None);
        assert!(node_of("unstale.default.reports").is_none() && node_of("").is_none());
    }
}
