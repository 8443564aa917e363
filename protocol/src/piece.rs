//! Manifests on their way back: a coordinator that lacks one asks a host for it, and the host answers piece by piece.
//!
//! Each piece fits into a message of a host's usual size, so that no bus and no reader needs room for more. What they are
//! worth is told by the digest of all of them together.

use crate::fingerprint::Fingerprint;
use crate::ids::HostName;
use crate::manifest::MANIFEST_MAX_BYTES;
use serde::{Deserialize, Serialize};

/// Most bytes of a manifest in one piece: quoted twice it grows to four times that, at worst.
pub const PIECE_MAX_BYTES: usize = 64 << 10;
/// How much shorter a piece may be that is not the last: it does not end within a character.
const SLACK_BYTES: usize = 3;

/// A question to one host for a piece of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename = "fetch")]
pub struct Fetch {
    /// The host that is asked.
    pub host: HostName,
    /// The manifest's digest.
    pub manifest: Fingerprint,
    /// Where the piece begins, in bytes.
    pub from: u32,
}

/// The answer to a [`Fetch`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The host that answers.
    pub host: HostName,
    /// The manifest's digest.
    pub manifest: Fingerprint,
    /// Where the piece begins, in bytes.
    pub from: u32,
    /// How long the whole manifest is, in bytes.
    pub length: u32,
    /// The piece.
    pub text: String,
}

impl Piece {
    /// Returns the piece of `text`, which is the manifest that was asked for; `None` where none begins there.
    pub fn cut(fetch: &Fetch, text: &str) -> Option<Self> {
        let from = usize::try_from(fetch.from).ok()?;
        let rest = text.get(from..).filter(|rest| !rest.is_empty())?;
        let end = rest.floor_char_boundary(PIECE_MAX_BYTES);
        Some(Self {
            host: fetch.host.clone(),
            manifest: fetch.manifest,
            from: fetch.from,
            length: u32::try_from(text.len()).ok()?,
            text: rest.get(..end)?.to_owned(),
        })
    }

    /// Tells whether it may be what was asked for: who sends less than a whole piece could go on for ever.
    pub fn is_whole(&self) -> bool {
        let (from, length) = (usize::try_from(self.from), usize::try_from(self.length));
        let (Ok(from), Ok(length)) = (from, length) else { return false };
        let rest = length.saturating_sub(from);
        let is_last = self.text.len() == rest;
        let is_full = self.text.len() + SLACK_BYTES >= PIECE_MAX_BYTES && self.text.len() < rest;
        length <= MANIFEST_MAX_BYTES && rest > 0 && self.text.len() <= PIECE_MAX_BYTES && (is_last || is_full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprint::Salt;
    use crate::ids::{DrainId, Incarnation, Pid, ProcessIdentity, SlotId, Version};
    use crate::message::{Downward, Nonce, Permit, Purpose};
    use crate::time::Moment;

    fn fetch(from: usize) -> Fetch {
        let manifest = Fingerprint::of_bytes(b"m");
        Fetch { host: HostName::new("web-1").unwrap(), manifest, from: u32::try_from(from).unwrap() }
    }

    #[test]
    fn pieces_make_the_whole_whatever_its_letters() {
        for text in ["{}".to_owned(), "x".repeat(3 * PIECE_MAX_BYTES), format!("a{}", "\u{1f40d}".repeat(40_000))] {
            let mut whole = String::new();
            while whole.len() < text.len() {
                let piece = Piece::cut(&fetch(whole.len()), &text).unwrap();
                assert!(piece.is_whole(), "{} at {}", piece.text.len(), piece.from);
                whole.push_str(&piece.text);
            }
            assert_eq!(whole, text);
            assert_eq!(Piece::cut(&fetch(text.len()), &text), None);
        }
        assert_eq!(Piece::cut(&fetch(1), "\u{1f40d}"), None, "within a letter");
    }

    #[test]
    fn who_sends_crumbs_or_too_much_sends_no_piece() {
        let piece = |from: usize, length: usize, text: usize| {
            let Fetch { host, manifest, from } = fetch(from);
            let length = u32::try_from(length).unwrap();
            Piece { host, manifest, from, length, text: "x".repeat(text) }.is_whole()
        };
        assert!(piece(0, 10, 10) && piece(4, 10, 6) && piece(0, PIECE_MAX_BYTES + 9, PIECE_MAX_BYTES));
        assert!(!piece(0, 10, 9) && !piece(0, 10, 11) && !piece(10, 10, 0) && !piece(11, 10, 1));
        assert!(!piece(0, PIECE_MAX_BYTES + 1, PIECE_MAX_BYTES + 1));
        assert!(!piece(0, MANIFEST_MAX_BYTES + 1, PIECE_MAX_BYTES));
        assert!(piece(MANIFEST_MAX_BYTES - 5, MANIFEST_MAX_BYTES, 5));
    }

    #[test]
    fn a_question_for_a_manifest_is_no_permit_and_a_permit_needs_no_kind() {
        let host = HostName::new("web-1").unwrap();
        let fetch = Fetch { host: host.clone(), manifest: Fingerprint::of_bytes(b"m"), from: 7 };
        let text = serde_json::to_string(&fetch).unwrap();
        assert_eq!(Downward::from_json(&text).unwrap(), Downward::Fetch(fetch));
        assert!(serde_json::from_str::<Permit>(&text).is_err(), "an older agent takes it for none");
        let identity = ProcessIdentity { pid: Pid(7), start_ticks: 1, pid_namespace: 0 };
        let incarnation = Incarnation { counter: 1, random: Salt::default() };
        let permit = Permit {
            host,
            slot: SlotId::new("celery/none/x/0/1").unwrap(),
            identity,
            nonce: Nonce { incarnation, at: Moment(5) },
            version: Version::default(),
            author: Salt::default(),
            purpose: Purpose::Drain(DrainId::new("drain-1").unwrap()),
            must: Vec::new(),
        };
        let text = serde_json::to_string(&permit).unwrap();
        assert_eq!(Downward::from_json(&text).unwrap(), Downward::Permit(permit));
        assert_eq!(Downward::from_json(r#"{"kind":"song"}"#).unwrap(), Downward::Unknown);
        assert!(Downward::from_json("{}").is_err() && Downward::from_json(r#"{"kind":"fetch"}"#).is_err());
    }
}
