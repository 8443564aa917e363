//! What a walk looked at, and what it found: so that the next look at unchanged memory is a comparison.
//!
//! An answer depends on nothing but the bytes that the walk looked at and on what was asked. If a process has
//! the same bytes at the same addresses, its answer is the same, whoever's walk it was: a forked child is
//! compared with its parent and its siblings. Bytes are compared, not digests of them, so that no two states are
//! ever taken for one another. Where anything differs the process is walked.
//!
//! Among the bytes are those that the walk guarded, which change for good with whatever they guard. So one pass is
//! enough: what was different when the pass began would still be different when it came by.

use super::Error;
use super::source::{Source, Space, Span};
use super::walk::Answer;
use crate::reading::Cost;
use std::sync::Arc;

/// Bytes between two ranges that are rather copied in vain than asked for apart: finding a page costs the kernel
/// more than copying half of it.
const GAP: u64 = 2048;
/// How many ranges are compared at once: what is copied for it should stay in the processor's cache.
const AT_ONCE: usize = 128;
/// Most bytes of one memo: the walk of an app of a thousand modules looks at a tenth of it.
const MAX_BYTES: usize = 8 << 20;

/// Bytes that are copied, and which of them matter.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    /// What is copied.
    spans: Vec<Span>,
    /// What is compared: place in the copied bytes, and length.
    parts: Vec<(u32, u32)>,
    /// The bytes that are compared, one after another.
    bytes: Vec<u8>,
}

impl Sample {
    /// Takes these ranges, as the walk has seen them; `None` where they are too much.
    pub(crate) fn of(space: &mut Space<'_>, spans: &[Span]) -> Result<Option<Self>, Error> {
        let mut sample = Self::default();
        let mut copied = 0_usize;
        for span in &joined(spans) {
            let joined = match sample.spans.last_mut() {
                Some(last) if is_near(last, span) => {
                    let len = usize::try_from(span.start - last.start).unwrap_or(usize::MAX).saturating_add(span.len);
                    copied = copied.saturating_add(len - last.len);
                    last.len = len;
                    true
                }
                _ => false,
            };
            if !joined {
                sample.spans.push(*span);
                copied = copied.saturating_add(span.len);
            }
            if copied > MAX_BYTES {
                return Ok(None);
            }
            let (Ok(place), Ok(len)) = (u32::try_from(copied - span.len), u32::try_from(span.len)) else {
                return Ok(None);
            };
            sample.parts.push((place, len));
            let start = sample.bytes.len();
            sample.bytes.resize(start + span.len, 0);
            space.copy(span.start, sample.bytes.get_mut(start..).unwrap_or_default())?;
        }
        sample.spans.shrink_to_fit();
        sample.parts.shrink_to_fit();
        sample.bytes.shrink_to_fit();
        Ok(Some(sample))
    }

    /// Tells whether all that matters is the same in a process now.
    pub(crate) fn is_in(&self, source: &dyn Source, cost: &mut Cost) -> Result<bool, Error> {
        let mut buffer = Vec::new();
        let mut parts = self.parts.iter();
        let mut bytes = self.bytes.as_slice();
        let mut before = 0_usize;
        let mut pending = parts.next();
        for spans in self.spans.chunks(AT_ONCE) {
            let total: usize = spans.iter().map(|span| span.len).sum();
            buffer.resize(total, 0);
            let copied = source.read(spans, &mut buffer)?;
            cost.calls = cost.calls.saturating_add(copied.calls);
            cost.bytes = cost.bytes.saturating_add(copied.bytes as u64);
            if copied.bytes != total {
                return Ok(false);
            }
            // A part never crosses the end of a span.
            while let Some((place, len)) = pending {
                let (place, len) = (*place as usize, *len as usize);
                let Some(at) = place.checked_sub(before).filter(|at| at + len <= total) else { break };
                let (wanted, rest) = bytes.split_at(len.min(bytes.len()));
                if buffer.get(at..at + len) != Some(wanted) {
                    return Ok(false);
                }
                bytes = rest;
                pending = parts.next();
            }
            before += total;
        }
        Ok(pending.is_none())
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

    /// Returns the answer if a walk through this process would come to it. `is_own` says that it is the process that
    /// was walked.
    pub(crate) fn recall(
        &self,
        source: &dyn Source,
        is_own: bool,
        cost: &mut Cost,
    ) -> Result<Option<Arc<Answer>>, Error> {
        let same = self.changing.is_in(source, cost)? && (is_own || self.lasting.is_in(source, cost)?);
        Ok(same.then(|| Arc::clone(&self.answer)))
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
