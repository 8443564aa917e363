//! Text: PEP 393 strings, and the C strings that name types.

use super::{Heap, STR_TYPE};
use crate::memory::Error;
use std::sync::Arc;

/// Longest text in characters.
const MAX_TEXT: u64 = 65_536;
/// Longest C string that names a type, in bytes.
const MAX_TYPE_NAME: usize = 256;

impl Heap<'_> {
    /// Fetches the beginnings of texts.
    pub(crate) fn fetch_texts(&mut self, addresses: impl IntoIterator<Item = u64>) -> Result<(), Error> {
        for address in addresses {
            if !self.texts.contains_key(&address) {
                self.space.want_in_page(address, 96);
            }
        }
        self.space.fetch()
    }

    /// Reads a dict's key; `None` where it is not plain text.
    pub(crate) fn key_text(&mut self, address: u64) -> Result<Option<Arc<str>>, Error> {
        if let Some(known) = self.texts.get(&address) {
            return Ok(known.clone());
        }
        let kind = self.type_address(address)?;
        let is_text = kind == self.str_type || self.type_at(kind)?.flags & STR_TYPE != 0;
        let found = if is_text { self.characters(address)?.map(Arc::from) } else { None };
        self.texts.insert(address, found.clone());
        Ok(found)
    }

    /// Looks once more at all of a text that was read before.
    pub(crate) fn look_at_text(&mut self, address: u64) -> Result<(), Error> {
        self.type_address(address)?;
        self.characters(address).map(|_| ())
    }

    /// Reads text that must be there.
    pub(crate) fn text(&mut self, address: u64) -> Result<Arc<str>, Error> {
        self.key_text(address)?.ok_or(Error::Implausible("text"))
    }

    /// Reads the characters of a `str` or of a subclass: PEP 393. `None` where they are no Unicode text
    /// (lone surrogates) or too many.
    pub(super) fn characters(&mut self, address: u64) -> Result<Option<String>, Error> {
        let fields = address + self.layout.header;
        let length = self.space.word(fields)?;
        let [state, ..] = self.space.array::<4>(fields + 16)?;
        let (kind, compact, ascii) = ((state >> 2) & 7, state & 0x20 != 0, state & 0x40 != 0);
        if length > MAX_TEXT || kind == 0 {
            // Kind 0: text of the old C API whose characters were never asked for, up to 3.11.
            return Ok(None);
        }
        if !matches!(kind, 1 | 2 | 4) {
            return Err(Error::Implausible("kind of a text"));
        }
        let data = match (compact, ascii) {
            (true, true) => address + self.layout.ascii,
            (true, false) => address + self.layout.compact,
            (false, _) => self.space.word(address + self.layout.compact)?,
        };
        let len = usize::try_from(length * u64::from(kind)).map_err(|_| Error::Implausible("length"))?;
        self.spend_bytes(length * u64::from(kind))?;
        let bytes = self.space.bytes(data, len)?;
        Ok(match kind {
            1 if ascii => match String::from_utf8(bytes) {
                Ok(text) if text.is_ascii() => Some(text),
                _ => return Err(Error::Implausible("ASCII text")),
            },
            1 => Some(bytes.into_iter().map(char::from).collect()),
            2 => bytes.as_chunks::<2>().0.iter().map(|pair| char::from_u32(u16::from_le_bytes(*pair).into())).collect(),
            _ => bytes.as_chunks::<4>().0.iter().map(|four| char::from_u32(u32::from_le_bytes(*four))).collect(),
        })
    }

    pub(super) fn c_string(&mut self, at: u64) -> Result<Arc<str>, Error> {
        let mut bytes = Vec::new();
        while bytes.len() < MAX_TYPE_NAME {
            let piece: [u8; 8] = match self.space.array(at + bytes.len() as u64) {
                Ok(piece) => piece,
                // The last bytes of a mapping.
                Err(_) => [self.space.array::<1>(at + bytes.len() as u64)?[0], 0, 0, 0, 0, 0, 0, 0],
            };
            let text = piece.iter().position(|byte| *byte == 0);
            bytes.extend_from_slice(piece.get(..text.unwrap_or(8)).unwrap_or_default());
            if text.is_some() {
                return Ok(String::from_utf8_lossy(&bytes).into());
            }
        }
        Err(Error::Implausible("name of a type"))
    }
}
