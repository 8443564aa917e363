//! A recorded address space: what one read looked at, kept for tests.
//!
//! With it every Python version stays testable on machines that have none of them.

use super::Error;
use super::memo::joined;
use super::source::{Copied, Fault, Mapping, PAGE, Source, Space, Span};
use std::collections::BTreeMap;

/// First bytes of the file format.
const MAGIC: &[u8; 16] = b"unstale-image/1\n";
const PAGE_BYTES: usize = 4096;
/// Most bytes that a recording may claim to hold.
const MAX_IMAGE: usize = 64 << 20;

/// A recorded address space. Bytes of a recorded page that nobody looked at are zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    mappings: Vec<Mapping>,
    ranges: BTreeMap<u64, Vec<u8>>,
    pages: BTreeMap<u64, Vec<u8>>,
}

/// A file is no recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a recording of memory, or a damaged one")]
pub struct ImageError;

impl Image {
    /// Keeps what a walk has looked at.
    pub(crate) fn of(space: &mut Space<'_>) -> Result<Self, Error> {
        let spans = joined(&space.looked_at().concat());
        let mut image = Self::default();
        let holds = |mapping: &Mapping| {
            spans.iter().any(|span| span.start < mapping.end && span.start + span.len as u64 > mapping.start)
        };
        for mapping in space.source().mappings()? {
            if mapping.path.starts_with('/') && holds(&mapping) {
                let name = mapping.path.rsplit('/').next().unwrap_or_default();
                image.mappings.push(Mapping { path: format!("/{name}"), ..mapping });
            }
        }
        for span in spans {
            let bytes = space.bytes(span.start, span.len)?;
            image.insert(span.start, bytes);
        }
        Ok(image)
    }

    fn insert(&mut self, start: u64, bytes: Vec<u8>) {
        for (at, byte) in (start..).zip(&bytes) {
            let page = self.pages.entry(at / PAGE).or_insert_with(|| vec![0; PAGE_BYTES]);
            if let Some(place) = usize::try_from(at % PAGE).ok().and_then(|offset| page.get_mut(offset)) {
                *place = *byte;
            }
        }
        self.ranges.insert(start, bytes);
    }

    /// Returns the recording as a file has it: little-endian counts, mappings, then ranges of bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        number(&mut out, self.mappings.len() as u64);
        for mapping in &self.mappings {
            for word in [mapping.start, mapping.end, u64::from(mapping.writable), mapping.offset] {
                number(&mut out, word);
            }
            number(&mut out, mapping.path.len() as u64);
            out.extend_from_slice(mapping.path.as_bytes());
        }
        number(&mut out, self.ranges.len() as u64);
        let mut last = 0;
        for (start, bytes) in &self.ranges {
            number(&mut out, start - last);
            number(&mut out, bytes.len() as u64);
            out.extend_from_slice(bytes);
            last = *start;
        }
        out
    }

    /// Reads a recording.
    ///
    /// # Errors
    /// The bytes are no recording.
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        let mut rest = bytes.strip_prefix(MAGIC).filter(|_| bytes.len() <= MAX_IMAGE).ok_or(ImageError)?;
        let mut image = Self::default();
        for _ in 0..take_number(&mut rest)? {
            let [start, end, writable, offset] =
                [take_number(&mut rest)?, take_number(&mut rest)?, take_number(&mut rest)?, take_number(&mut rest)?];
            let path = String::from_utf8(take_bytes(&mut rest)?.to_vec()).map_err(|_| ImageError)?;
            image.mappings.push(Mapping { start, end, writable: writable != 0, offset, path });
        }
        let mut last = 0u64;
        for _ in 0..take_number(&mut rest)? {
            last = last.checked_add(take_number(&mut rest)?).ok_or(ImageError)?;
            let bytes = take_bytes(&mut rest)?.to_vec();
            last.checked_add(bytes.len() as u64).ok_or(ImageError)?;
            image.insert(last, bytes);
        }
        if rest.is_empty() { Ok(image) } else { Err(ImageError) }
    }
}

impl Source for Image {
    fn read(&self, spans: &[Span], buffer: &mut [u8]) -> Result<Copied, Fault> {
        let mut copied = Copied { bytes: 0, calls: 1 };
        let mut rest = buffer;
        for span in spans {
            let (mut now, later) = rest.split_at_mut(span.len.min(rest.len()));
            let mut at = span.start;
            while !now.is_empty() {
                let Some(page) = self.pages.get(&(at / PAGE)) else { return Ok(copied) };
                let have = usize::try_from(at % PAGE).ok().and_then(|offset| page.get(offset..)).unwrap_or_default();
                let count = have.len().min(now.len());
                let (part, after) = now.split_at_mut(count);
                part.copy_from_slice(have.get(..count).unwrap_or_default());
                now = after;
                at += count as u64;
                copied.bytes += count;
            }
            rest = later;
        }
        Ok(copied)
    }

    fn mappings(&self) -> Result<Vec<Mapping>, Fault> {
        Ok(self.mappings.clone())
    }
}

/// Writes a number as LEB128: seven bits in a byte, the lowest first.
fn number(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            out.push(low & 0x7f);
            return;
        }
        out.push(low | 0x80);
    }
}

fn take_number(rest: &mut &[u8]) -> Result<u64, ImageError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first().ok_or(ImageError)?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(ImageError)
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], ImageError> {
    let len = usize::try_from(take_number(rest)?).map_err(|_| ImageError)?;
    let (bytes, after) = rest.split_at_checked(len).ok_or(ImageError)?;
    *rest = after;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Image {
        let mut image = Image::default();
        image.mappings.push(Mapping { start: 4096, end: 8192, writable: true, offset: 0, path: "/python".to_owned() });
        image.insert(8190, vec![1, 2, 3, 4]);
        image.insert(1 << 40, vec![9; 300]);
        image
    }

    #[test]
    fn a_recording_survives_being_written() {
        let image = sample();
        assert_eq!(Image::decode(&image.encode()), Ok(image));
    }

    #[test]
    fn a_cut_recording_is_refused() {
        let bytes = sample().encode();
        for len in 0..bytes.len() {
            assert_eq!(Image::decode(&bytes[..len]), Err(ImageError), "{len}");
        }
    }

    #[test]
    fn reading_stops_at_the_first_unknown_page() {
        let mut buffer = [0xaa; 12];
        let spans = [Span { start: 8190, len: 4 }, Span { start: (3 << 12) - 4, len: 8 }];
        let copied = sample().read(&spans, &mut buffer).unwrap();
        assert_eq!((copied.bytes, &buffer[..8]), (8, &[1, 2, 3, 4, 0, 0, 0, 0][..]));
    }
}
