//! What a walk looked at, and what it found: so that the next look at unchanged memory is a comparison.
//!
//! An answer depends on nothing but the bytes that the walk looked at and on what was asked. If a process has
//! the same bytes at the same addresses, its answer is the same, whoever's walk it was: a forked child is
//! compared with its parent and its siblings. Bytes are compared, not digests of them, so that no two states are
//! ever taken for one another. Where anything differs the process is walked.
//!
//! Among the bytes are those that the walk guarded, which change for good with whatever they guard. So one pass is
//! enough, in whatever order: what was different when the pass began would still be different when it came by.

use super::Error;
use super::source::{Source, Space, Span};
use super::walk::Answer;
use crate::reading::Cost;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Bytes between two ranges that are rather copied in vain than asked for apart: finding a page costs the kernel
/// more than copying half of it.
const GAP: u64 = 2048;
/// How many ranges are compared at once: what is copied for it should stay in the processor's cache.
const AT_ONCE: usize = 64;
/// Most bytes of one memo: the walk of an app of a thousand modules looks at a tenth of it.
const MAX_BYTES: usize = 8 << 20;

/// Bytes that are copied, and which of them matter.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    /// What is copied.
    spans: Vec<Span>,
    /// What is compared: place in the bytes copied for its piece, and length.
    parts: Vec<(u32, u32)>,
    /// The bytes that are compared, one after another.
    bytes: Vec<u8>,
    /// What is copied and compared at once.
    pieces: Vec<Piece>,
}

/// Some of a sample's ranges, and where what belongs to them begins.
#[derive(Clone, Copy, Debug, Default)]
struct Piece {
    spans: usize,
    parts: usize,
    bytes: usize,
    /// How many bytes are copied for it.
    copied: usize,
}

impl Sample {
    /// Takes these ranges, as the walk has seen them; `None` where they are too much.
    pub(crate) fn of(space: &mut Space<'_>, spans: &[Span]) -> Result<Option<Self>, Error> {
        let mut sample = Self::default();
        let mut piece = Piece::default();
        let mut copied = 0_usize;
        for span in &joined(spans) {
            let more = match sample.spans.last_mut() {
                Some(last) if is_near(last, span) => {
                    let len = usize::try_from(span.start - last.start).unwrap_or(usize::MAX).saturating_add(span.len);
                    let more = len - last.len;
                    last.len = len;
                    more
                }
                _ => {
                    if sample.spans.len() - piece.spans == AT_ONCE {
                        sample.pieces.push(piece);
                        piece = Piece {
                            spans: sample.spans.len(),
                            parts: sample.parts.len(),
                            bytes: sample.bytes.len(),
                            copied: 0,
                        };
                    }
                    sample.spans.push(*span);
                    span.len
                }
            };
            copied = copied.saturating_add(more);
            piece.copied = piece.copied.saturating_add(more);
            if copied > MAX_BYTES {
                return Ok(None);
            }
            let (Ok(place), Ok(len)) = (u32::try_from(piece.copied - span.len), u32::try_from(span.len)) else {
                return Ok(None);
            };
            sample.parts.push((place, len));
            let start = sample.bytes.len();
            sample.bytes.resize(start + span.len, 0);
            space.copy(span.start, sample.bytes.get_mut(start..).unwrap_or_default())?;
        }
        sample.pieces.push(piece);
        sample.spans.shrink_to_fit();
        sample.parts.shrink_to_fit();
        sample.bytes.shrink_to_fit();
        sample.pieces.shrink_to_fit();
        Ok(Some(sample))
    }

    /// Tells whether all that matters is the same in a process now.
    pub(crate) fn is_in(&self, source: &dyn Source, cost: &mut Cost) -> Result<bool, Error> {
        let mut buffer = vec![0; self.room()];
        for index in 0..self.pieces.len() {
            if !self.piece_is_in(index, source, &mut buffer, cost)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns how many bytes its largest piece needs to be copied to.
    fn room(&self) -> usize {
        self.pieces.iter().map(|piece| piece.copied).max().unwrap_or(0)
    }

    /// Tells whether what matters of one piece is the same in a process now. `buffer` has [`Self::room`].
    fn piece_is_in(
        &self,
        index: usize,
        source: &dyn Source,
        buffer: &mut [u8],
        cost: &mut Cost,
    ) -> Result<bool, Error> {
        let Some(piece) = self.pieces.get(index) else { return Ok(true) };
        let end = self.pieces.get(index + 1).copied().unwrap_or(Piece {
            spans: self.spans.len(),
            parts: self.parts.len(),
            bytes: self.bytes.len(),
            copied: 0,
        });
        let (Some(spans), Some(parts), Some(mut bytes), Some(buffer)) = (
            self.spans.get(piece.spans..end.spans),
            self.parts.get(piece.parts..end.parts),
            self.bytes.get(piece.bytes..end.bytes),
            buffer.get_mut(..piece.copied),
        ) else {
            return Ok(false);
        };
        let copied = source.read(spans, buffer)?;
        cost.add(copied.calls, copied.bytes as u64);
        if copied.bytes != piece.copied {
            return Ok(false);
        }
        for (place, len) in parts {
            let (place, len) = (*place as usize, *len as usize);
            let Some((wanted, rest)) = bytes.split_at_checked(len) else { return Ok(false) };
            if buffer.get(place..place + len) != Some(wanted) {
                return Ok(false);
            }
            bytes = rest;
        }
        Ok(true)
    }
}

fn is_near(last: &Span, next: &Span) -> bool {
    next.start - (last.start + last.len as u64) <= GAP
}

/// A walk that was accepted.
#[derive(Debug)]
pub(crate) struct Memo {
    changing: Sample,
    /// What cannot change in the same process while the rest stays.
    lasting: Sample,
    answer: Arc<Answer>,
}

impl Memo {
    /// Remembers a walk; `None` where too much was looked at, or something that is not there.
    pub(crate) fn of(space: &mut Space<'_>, answer: Arc<Answer>) -> Result<Option<Self>, Error> {
        if space.has_missed() {
            return Ok(None);
        }
        let [changing, lasting] = space.looked_at();
        let (Some(changing), Some(lasting)) = (Sample::of(space, &changing)?, Sample::of(space, &lasting)?) else {
            return Ok(None);
        };
        Ok(Some(Self { changing, lasting, answer }))
    }

    /// Returns about how many bytes it takes.
    pub(crate) fn size(&self) -> usize {
        const PART: usize = size_of::<(u32, u32)>();
        let size =
            |sample: &Sample| sample.bytes.len() + sample.parts.len() * PART + sample.spans.len() * size_of::<Span>();
        size(&self.changing) + size(&self.lasting)
    }

    /// Returns what a walk came to.
    pub(crate) fn answer(&self) -> &Arc<Answer> {
        &self.answer
    }

    /// Returns how many bytes a piece needs to be copied to.
    pub(crate) fn room(&self) -> usize {
        self.changing.room().max(self.lasting.room())
    }

    /// Tells whether a process, which may be another one than was walked, is now as the walk has seen it.
    pub(crate) fn is_in(&self, source: &dyn Source, cost: &mut Cost) -> Result<bool, Error> {
        let pass = Pass::default();
        self.compare(source, false, &pass, &mut vec![0; self.room()], cost)?;
        Ok(!pass.differs())
    }

    /// Compares piece after piece with a process, until none is left, one differs or cannot be had. Several may work
    /// at one pass. `is_own` says that it is the process that was walked. `buffer` has [`Self::room`].
    pub(crate) fn compare(
        &self,
        source: &dyn Source,
        is_own: bool,
        pass: &Pass,
        buffer: &mut [u8],
        cost: &mut Cost,
    ) -> Result<(), Error> {
        let lasting = if is_own { 0 } else { self.lasting.pieces.len() };
        while !pass.differs() {
            let index = pass.next.fetch_add(1, Ordering::Relaxed);
            let same = match index.checked_sub(self.changing.pieces.len()) {
                None => self.changing.piece_is_in(index, source, buffer, cost),
                Some(index) if index < lasting => self.lasting.piece_is_in(index, source, buffer, cost),
                Some(_) => return Ok(()),
            };
            if !matches!(same, Ok(true)) {
                pass.differs.store(true, Ordering::Relaxed);
                return same.map(|_| ());
            }
        }
        Ok(())
    }
}

/// One comparison of a process with a memo.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    next: AtomicUsize,
    differs: AtomicBool,
}

impl Pass {
    /// Tells whether a difference was found.
    pub(crate) fn differs(&self) -> bool {
        self.differs.load(Ordering::Relaxed)
    }
}

/// Sorts ranges and joins those that touch or overlap.
pub(crate) fn joined(spans: &[Span]) -> Vec<Span> {
    let mut sorted = spans.to_vec();
    sorted.sort_unstable_by_key(|span| (span.start, span.len));
    let mut joined: Vec<Span> = Vec::with_capacity(sorted.len());
    for span in sorted {
        let end = span.start + span.len as u64;
        match joined.last_mut() {
            Some(last) if span.start <= last.start + last.len as u64 => {
                last.len = last.len.max(usize::try_from(end - last.start).unwrap_or(usize::MAX));
            }
            _ => joined.push(span),
        }
    }
    joined
}
