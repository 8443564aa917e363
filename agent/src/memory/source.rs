//! The one seam to foreign memory, and the cache above it.
//!
//! [`Source`] copies ranges of bytes; who implements it decides where they come from (a live process, a
//! recording). [`Space`] asks for many pieces at a time, and hands out words. Nothing above it
//! does IO.

use super::Error;
use super::memo::Sample;
use crate::reading::Cost;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

/// Smallest page of a kernel, in bytes: what lies in one is mapped or not as a whole.
pub(crate) const PAGE: u64 = 4096;
/// Granularity of the cache in bytes: what is asked for lies scattered, and copying whole pages costs more than the
/// walk itself.
const CELL: u64 = 512;
const CELL_BYTES: usize = 512;
/// Most cells between two that are rather copied in vain than asked for apart.
const GAP: u64 = 3;
/// Most ranges in one call: `UIO_MAXIOV`, `process_vm_readv(2)`.
pub(crate) const MAX_SPANS: usize = 1024;
/// Most bytes copied for one walk.
const MAX_BYTES: u64 = 64 << 20;
/// Most calls for one walk.
const MAX_CALLS: u32 = 5_000;
/// Longest single range in bytes: the largest dict table that is accepted, and some room.
const MAX_SPAN: u64 = 16 << 20;
/// First address above the user half on x86-64 and on aarch64 with 48 bits.
const ADDRESS_END: u64 = 1 << 48;
/// The lowest page is never mapped.
const ADDRESS_START: u64 = 4096;

/// A range of foreign memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: usize,
}

/// A line of `/proc/PID/maps`, proc(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Whether it can be written.
    pub writable: bool,
    /// Offset in the file.
    pub offset: u64,
    /// The file, or a name in brackets, or nothing.
    pub path: String,
}

/// Why nothing could be read at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The kernel refused (EPERM, EACCES).
    Denied,
    /// There is no such process any more (ESRCH).
    Gone,
    /// Something else, in words.
    Other(String),
}

/// What a call copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Bytes up to the first one that could not be read.
    pub bytes: usize,
    /// System calls that it took.
    pub calls: u32,
}

/// Foreign memory.
pub trait Source {
    /// Copies the ranges one after another into `buffer`, which is as long as all of them together, and
    /// stops at the first byte that cannot be read.
    ///
    /// # Errors
    /// The process as a whole cannot be read.
    fn read(&self, spans: &[Span], buffer: &mut [u8]) -> Result<Copied, Fault>;

    /// Returns the mappings in ascending order.
    ///
    /// # Errors
    /// They cannot be read.
    fn mappings(&self) -> Result<Vec<Mapping>, Fault>;
}

/// Tells whether a value can be the address of an object.
pub(crate) fn plausible(address: u64) -> bool {
    (ADDRESS_START..ADDRESS_END).contains(&address) && address.is_multiple_of(8)
}

/// Spreads page numbers and addresses over the buckets of a hash table: Fibonacci hashing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        self.write_u64(rest.iter().fold(1, |word, byte| word << 8 | u64::from(*byte)));
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(26);
    }
}

/// A map by address; never iterated where order could leak.
pub(crate) type ByAddress<K, V> = HashMap<K, V, BuildHasherDefault<Spread>>;

/// Where a cell lies in the buffer.
#[derive(Clone, Copy, Debug)]
enum Slot {
    Wanted,
    Missing,
    At(usize),
}

/// How finely is noted what a walk has looked at, in bytes: half a word, since what matters may share one with what
/// does not.
const GRAIN: usize = 4;
/// Grains of a cell that the walk has looked at, one bit each; first those that may change, then the lasting ones.
type Looked = [[u64; CELL_BYTES / GRAIN / 64]; 2];

/// What a look at memory is to be noted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Noting {
    /// It may change at any time.
    Changing,
    /// It lasts as long as something else that was looked at does: text that a dict holds.
    Lasting,
    /// It does not matter for the answer.
    Nothing,
}

/// Memory for cells, kept between reads so that it is not faulted in each time.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    arena: Vec<u8>,
    cells: ByAddress<u64, Slot>,
    /// By place in the arena.
    looked: Vec<Looked>,
}

impl Buffers {
    /// Gives back what only an unusual read needed.
    pub(crate) fn shrink(&mut self) {
        const KEEP: usize = 16 << 20;
        if self.arena.len() > KEEP {
            self.arena.truncate(KEEP);
            self.arena.shrink_to_fit();
        }
    }
}

/// Foreign memory as one walk has seen it: each cell is copied once.
pub(crate) struct Space<'s> {
    source: &'s dyn Source,
    buffers: Buffers,
    used: usize,
    wanted: Vec<u64>,
    guards: Vec<Span>,
    cost: Cost,
    /// The cell that was looked at last, and where it lies: most looks stay in one.
    last: (u64, usize),
    /// Something that is not mapped was looked at.
    has_missed: bool,
    noting: Noting,
}

impl<'s> Space<'s> {
    pub(crate) fn new(source: &'s dyn Source, mut buffers: Buffers) -> Self {
        buffers.cells.clear();
        buffers.looked.clear();
        Self {
            source,
            buffers,
            used: 0,
            wanted: Vec::new(),
            guards: Vec::new(),
            cost: Cost::default(),
            last: (0, 0),
            has_missed: false,
            noting: Noting::Changing,
        }
    }

    /// Ends the walk: gives back the buffers and the cost.
    pub(crate) fn finish(self) -> (Buffers, Cost) {
        (self.buffers, self.cost)
    }

    /// Returns what was looked at, joined to ranges, in ascending order: what may change, and what lasts.
    pub(crate) fn looked_at(&self) -> [Vec<Span>; 2] {
        let mut cells: Vec<(u64, usize)> = Vec::with_capacity(self.buffers.cells.len());
        for (cell, slot) in &self.buffers.cells {
            if let Slot::At(start) = slot {
                cells.push((*cell, *start));
            }
        }
        cells.sort_unstable();
        let mut both = [Vec::new(), Vec::new()];
        for (cell, start) in cells {
            let Some(looked) = self.buffers.looked.get(start / CELL_BYTES) else { continue };
            for (spans, looked) in both.iter_mut().zip(looked) {
                join_grains(spans, cell * CELL, looked);
            }
        }
        both
    }

    /// Tells whether something was looked at that is not mapped.
    pub(crate) fn has_missed(&self) -> bool {
        self.has_missed
    }

    pub(crate) fn source(&self) -> &'s dyn Source {
        self.source
    }

    /// Notes that bytes will be needed: they come with the next fetch.
    pub(crate) fn want(&mut self, at: u64, len: u64) {
        let Some(end) = at.checked_add(len.max(1) - 1) else { return };
        if at < ADDRESS_START || end >= ADDRESS_END || len > MAX_SPAN {
            return;
        }
        for cell in at / CELL..=end / CELL {
            self.buffers.cells.entry(cell).or_insert_with(|| {
                self.wanted.push(cell);
                Slot::Wanted
            });
        }
    }

    /// Like [`Self::want`], for a guessed length: does not go beyond the first byte's page.
    pub(crate) fn want_in_page(&mut self, at: u64, len: u64) {
        self.want(at, len.min(PAGE - at % PAGE));
    }

    /// Copies all wanted cells.
    pub(crate) fn fetch(&mut self) -> Result<(), Error> {
        let mut cells = std::mem::take(&mut self.wanted);
        cells.sort_unstable();
        let mut runs = runs(&cells);
        let mut done = 0;
        while let Some(rest @ [_, ..]) = runs.get_mut(done..) {
            let count = rest.len().min(MAX_SPANS);
            let (asked, _) = rest.split_at_mut(count);
            let bytes = asked.iter().map(|run| run.len).sum();
            self.room(bytes)?;
            let buffer = self.buffers.arena.get_mut(self.used..self.used + bytes).ok_or(Error::Limit("buffer"))?;
            let copied = self.source.read(asked, buffer)?;
            self.charge(copied.calls, copied.bytes as u64)?;
            let mut left = copied.bytes.min(bytes) / CELL_BYTES;
            for run in asked {
                let first = run.start / CELL;
                let got = left.min(run.len / CELL_BYTES);
                left -= got;
                (first..).take(got).for_each(|cell| self.keep(cell));
                if got * CELL_BYTES < run.len {
                    let after = self.miss(first + got as u64);
                    let end = run.start + run.len as u64;
                    *run = Span { start: after, len: usize::try_from(end.saturating_sub(after)).unwrap_or(0) };
                    done += usize::from(run.len == 0);
                    break;
                }
                done += 1;
            }
        }
        Ok(())
    }

    /// Takes the next cell of the arena in, unless it was there before: what was seen once stays as it was seen.
    fn keep(&mut self, cell: u64) {
        if !matches!(self.buffers.cells.get(&cell), Some(Slot::At(_) | Slot::Missing)) {
            self.buffers.cells.insert(cell, Slot::At(self.used));
        }
        self.buffers.looked.push(Looked::default());
        self.used += CELL_BYTES;
    }

    /// Takes note of a page that cannot be read, from one of its cells on; returns where the next page begins.
    fn miss(&mut self, cell: u64) -> u64 {
        let after = (cell * CELL / PAGE + 1) * PAGE;
        for cell in cell..after / CELL {
            if let Some(slot @ Slot::Wanted) = self.buffers.cells.get_mut(&cell) {
                *slot = Slot::Missing;
            }
        }
        after
    }

    fn room(&mut self, bytes: usize) -> Result<(), Error> {
        let end = self.used.saturating_add(bytes);
        if u64::try_from(end).is_ok_and(|end| end > MAX_BYTES) {
            return Err(Error::Limit("bytes of one read (64 MiB)"));
        }
        if self.buffers.arena.len() < end {
            self.buffers.arena.resize(end, 0);
        }
        Ok(())
    }

    /// Reads guarded bytes again and tells whether they are what the walk saw.
    pub(crate) fn holds_still(&mut self, guards: &[Span]) -> Result<bool, Error> {
        let sample = Sample::of(self, guards)?.ok_or(Error::Limit("bytes that must hold still (8 MiB)"))?;
        let mut cost = Cost::default();
        let same = sample.is_in(self.source, &mut cost)?;
        self.charge(cost.calls, cost.bytes)?;
        Ok(same)
    }

    fn charge(&mut self, calls: u32, bytes: u64) -> Result<(), Error> {
        self.cost.add(calls, bytes);
        if self.cost.calls > MAX_CALLS {
            return Err(Error::Limit("calls of one read (5,000)"));
        }
        Ok(())
    }

    /// Copies bytes out of the cache, fetching what is not there.
    pub(crate) fn copy(&mut self, at: u64, into: &mut [u8]) -> Result<(), Error> {
        let len = u64::try_from(into.len()).unwrap_or(u64::MAX);
        let end = at.checked_add(len).ok_or(Error::Unmapped(at))?;
        if at < ADDRESS_START || end > ADDRESS_END || len > MAX_SPAN {
            return Err(Error::Unmapped(at));
        }
        let mut at = at;
        let mut into = into;
        while !into.is_empty() {
            let place = self.look(at, end)?;
            let (now, later) = into.split_at_mut(place.len());
            let have = self.buffers.arena.get(place).ok_or(Error::Unmapped(at))?;
            now.copy_from_slice(have);
            at += have.len() as u64;
            into = later;
        }
        Ok(())
    }

    /// Looks at bytes from `at` on, as far as one cell has them, but not beyond `end`; returns where in the arena they
    /// lie.
    fn look(&mut self, at: u64, end: u64) -> Result<Range<usize>, Error> {
        let cell = self.cell(at, end)?;
        let offset = usize::try_from(at % CELL).unwrap_or(0);
        let count = (CELL_BYTES - offset).min(usize::try_from(end - at).unwrap_or(CELL_BYTES));
        self.mark(cell, offset, count);
        Ok(cell + offset..cell + offset + count)
    }

    /// Looks at bytes without copying them.
    fn look_at(&mut self, span: Span) -> Result<(), Error> {
        let end = span.start.checked_add(span.len as u64).filter(|end| *end <= ADDRESS_END);
        let end = end.ok_or(Error::Unmapped(span.start))?;
        let mut at = span.start;
        while at < end {
            at += self.look(at, end)?.len() as u64;
        }
        Ok(())
    }

    /// Says what the next looks are to be noted as.
    pub(crate) fn note(&mut self, noting: Noting) {
        self.noting = noting;
    }

    /// Notes that bytes of a cell are looked at; `count` is at least 1.
    fn mark(&mut self, cell: usize, offset: usize, count: usize) {
        let Some([changing, lasting]) = self.buffers.looked.get_mut(cell / CELL_BYTES) else { return };
        let looked = match self.noting {
            Noting::Changing => changing,
            Noting::Lasting => lasting,
            Noting::Nothing => return,
        };
        let (mut grain, last) = (offset / GRAIN, (offset + count - 1) / GRAIN);
        while grain <= last {
            let bits = (64 - grain % 64).min(last + 1 - grain);
            if let Some(part) = looked.get_mut(grain / 64) {
                *part |= (u64::MAX >> (64 - bits)) << (grain % 64);
            }
            grain += bits;
        }
    }

    /// Returns where the cell of an address lies in the arena.
    fn cell(&mut self, at: u64, end: u64) -> Result<usize, Error> {
        let number = at / CELL;
        if self.last.0 == number {
            return Ok(self.last.1);
        }
        let mut slot = self.buffers.cells.get(&number).copied();
        if !matches!(slot, Some(Slot::At(_) | Slot::Missing)) {
            // What was not foreseen will hardly stay alone.
            self.want(at, end - at);
            self.want(at / PAGE * PAGE, PAGE);
            self.fetch()?;
            slot = self.buffers.cells.get(&number).copied();
        }
        if let Some(Slot::At(start)) = slot {
            self.last = (number, start);
            return Ok(start);
        }
        self.has_missed = true;
        Err(Error::Unmapped(at))
    }

    /// Reads fixed bytes.
    pub(crate) fn array<const N: usize>(&mut self, at: u64) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.copy(at, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads bytes.
    pub(crate) fn bytes(&mut self, at: u64, len: usize) -> Result<Vec<u8>, Error> {
        if u64::try_from(len).is_ok_and(|len| len > MAX_SPAN) {
            return Err(Error::Implausible("length"));
        }
        let mut bytes = vec![0; len];
        self.copy(at, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a little-endian word.
    pub(crate) fn word(&mut self, at: u64) -> Result<u64, Error> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// Reads consecutive 32-bit words.
    pub(crate) fn halves<const N: usize>(&mut self, at: u64) -> Result<[u32; N], Error> {
        let mut words = [0; N];
        let mut at = at;
        for word in &mut words {
            *word = u32::from_le_bytes(self.array(at)?);
            at = at.wrapping_add(4);
        }
        Ok(words)
    }

    /// Reads the address of an object.
    pub(crate) fn pointer(&mut self, at: u64) -> Result<u64, Error> {
        match self.word(at)? {
            address if plausible(address) => Ok(address),
            _ => Err(Error::Implausible("pointer")),
        }
    }

    /// Reads the address of an object, or 0.
    pub(crate) fn pointer_or_null(&mut self, at: u64) -> Result<u64, Error> {
        match self.word(at)? {
            0 => Ok(0),
            address if plausible(address) => Ok(address),
            _ => Err(Error::Implausible("pointer")),
        }
    }

    /// Demands that these bytes are still the same when the walk is over.
    pub(crate) fn guard(&mut self, at: u64, len: usize) {
        self.guards.push(Span { start: at, len });
    }

    /// Notes that all guarded bytes are looked at, and these.
    pub(crate) fn look_at_guards<'g>(&mut self, mut more: impl Iterator<Item = &'g Span>) -> Result<(), Error> {
        let guards = std::mem::take(&mut self.guards);
        let own = guards.iter().try_for_each(|span| self.look_at(*span));
        self.guards = guards;
        own?;
        more.try_for_each(|span| self.look_at(*span))
    }

    /// Puts guards back.
    pub(crate) fn guard_all(&mut self, guards: Vec<Span>) {
        self.guards.extend(guards);
    }

    /// How many guards there are: what to give to [`Self::release`].
    pub(crate) fn guarded(&self) -> usize {
        self.guards.len()
    }

    /// Gives up the guards after the first `count`.
    pub(crate) fn release(&mut self, count: usize) {
        self.guards.truncate(count);
    }

    /// Takes away the guards after the first `count`.
    pub(crate) fn take_guards(&mut self, count: usize) -> Vec<Span> {
        self.guards.split_off(count.min(self.guards.len()))
    }
}

/// Adds the ranges of one cell's grains.
fn join_grains(spans: &mut Vec<Span>, cell: u64, looked: &[u64]) {
    for (index, word) in looked.iter().enumerate() {
        let mut rest = *word;
        while rest != 0 {
            let first = rest.trailing_zeros();
            let count = (rest >> first).trailing_ones();
            let at = cell + (index as u64 * 64 + u64::from(first)) * GRAIN as u64;
            let len = count as usize * GRAIN;
            match spans.last_mut() {
                Some(last) if last.start + last.len as u64 == at => last.len += len,
                _ => spans.push(Span { start: at, len }),
            }
            let done = first + count;
            rest = if done < 64 { rest >> done << done } else { 0 };
        }
    }
}

/// Joins sorted cells that lie close together to ranges.
fn runs(cells: &[u64]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut next = 0;
    for cell in cells {
        match spans.last_mut() {
            Some(last) if *cell <= next + GAP => {
                last.len += usize::try_from(cell - next + 1).unwrap_or(1) * CELL_BYTES;
            }
            _ => spans.push(Span { start: cell * CELL, len: CELL_BYTES }),
        }
        next = cell + 1;
    }
    spans
}
