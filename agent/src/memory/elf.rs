//! Symbols of a loaded ELF file, from memory alone.
//!
//! No file is opened, so that deleted or replaced binaries and other mount namespaces do not matter.
//! Formats: System V gABI chapters 4 and 5; `DT_GNU_HASH` as glibc's `elf/dl-lookup.c` reads it.

use super::Error;
use super::source::{Mapping, PAGE, Space};

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
/// Most program headers.
const MAX_HEADERS: u64 = 64;
/// Most entries of the dynamic section.
const MAX_DYNAMIC: u64 = 256;
/// Longest hash chain.
const MAX_CHAIN: u64 = 4_096;
/// Size of `Elf64_Sym`.
const SYMBOL: u64 = 24;

/// A loaded ELF file.
#[derive(Debug)]
pub(crate) struct Elf {
    bias: u64,
    strings: u64,
    symbols: u64,
    gnu_hash: Option<u64>,
    hash: Option<u64>,
}

impl Elf {
    /// Reads the headers of the file mapped at `mapping`; `None` where it is none that can be searched.
    pub(crate) fn at(space: &mut Space<'_>, mapping: &Mapping) -> Result<Option<Self>, Error> {
        let base = mapping.start;
        space.want(base, PAGE);
        let header: [u8; 64] = space.array(base)?;
        if header.get(..6) != Some(b"\x7fELF\x02\x01") {
            return Ok(None);
        }
        let headers_at = base.checked_add(space.word(base + 32)?).ok_or(Error::Implausible("e_phoff"))?;
        let [size, count] = [u16::from_le_bytes(space.array(base + 54)?), u16::from_le_bytes(space.array(base + 56)?)];
        let (size, count) = (u64::from(size), u64::from(count));
        if size != 56 || count > MAX_HEADERS {
            return Ok(None);
        }
        let (mut bias, mut dynamic) = (None, None);
        for index in 0..count {
            let at = headers_at.checked_add(index * size).ok_or(Error::Implausible("e_phoff"))?;
            let kind = u32::from_le_bytes(space.array(at)?);
            let address = space.word(at.wrapping_add(16))?;
            if kind == PT_LOAD && space.word(at.wrapping_add(8))? / PAGE == 0 {
                bias = Some(base.wrapping_sub(address / PAGE * PAGE));
            } else if kind == PT_DYNAMIC {
                dynamic = Some(address);
            }
        }
        let (Some(bias), Some(dynamic)) = (bias, dynamic) else { return Ok(None) };
        Self::dynamic(space, bias, bias.wrapping_add(dynamic))
    }

    fn dynamic(space: &mut Space<'_>, bias: u64, at: u64) -> Result<Option<Self>, Error> {
        // glibc relocates these addresses in place, musl leaves them relative.
        let absolute = |value: u64| if value < bias { value.wrapping_add(bias) } else { value };
        let (mut strings, mut symbols, mut gnu_hash, mut hash) = (None, None, None, None);
        space.want_in_page(at, MAX_DYNAMIC * 16);
        for index in 0..MAX_DYNAMIC {
            let entry = at.wrapping_add(index * 16);
            let value = space.word(entry.wrapping_add(8))?;
            match space.word(entry)? {
                0 => break,
                DT_STRTAB => strings = Some(absolute(value)),
                DT_SYMTAB => symbols = Some(absolute(value)),
                DT_GNU_HASH => gnu_hash = Some(absolute(value)),
                DT_HASH => hash = Some(absolute(value)),
                _ => {}
            }
        }
        let (Some(strings), Some(symbols)) = (strings, symbols) else { return Ok(None) };
        Ok(Some(Self { bias, strings, symbols, gnu_hash, hash }))
    }

    /// Returns the address of a defined symbol.
    pub(crate) fn symbol(&self, space: &mut Space<'_>, name: &str) -> Result<Option<u64>, Error> {
        match (self.gnu_hash, self.hash) {
            (Some(table), _) => self.by_gnu_hash(space, table, name),
            (None, Some(table)) => self.by_hash(space, table, name),
            (None, None) => Ok(None),
        }
    }

    fn by_gnu_hash(&self, space: &mut Space<'_>, table: u64, name: &str) -> Result<Option<u64>, Error> {
        let hash = name.bytes().fold(5381u32, |hash, byte| hash.wrapping_mul(33).wrapping_add(u32::from(byte)));
        let [buckets, first, bloom] = space.halves(table)?;
        if buckets == 0 {
            return Ok(None);
        }
        let buckets_at = table.wrapping_add(16 + u64::from(bloom) * 8);
        let chains_at = buckets_at.wrapping_add(u64::from(buckets) * 4);
        let [mut index] = space.halves(buckets_at.wrapping_add(u64::from(hash % buckets) * 4))?;
        for _ in 0..MAX_CHAIN {
            let Some(position) = index.checked_sub(first) else { return Ok(None) };
            let [link] = space.halves(chains_at.wrapping_add(u64::from(position) * 4))?;
            if link | 1 == hash | 1
                && let Some(address) = self.matches(space, index, name)?
            {
                return Ok(Some(address));
            }
            if link & 1 == 1 {
                return Ok(None);
            }
            index = index.wrapping_add(1);
        }
        Ok(None)
    }

    fn by_hash(&self, space: &mut Space<'_>, table: u64, name: &str) -> Result<Option<u64>, Error> {
        let hash = name.bytes().fold(0u32, |hash, byte| {
            let hash = (hash << 4).wrapping_add(u32::from(byte));
            let high = hash & 0xf000_0000;
            (hash ^ (high >> 24)) & !high
        });
        let [buckets] = space.halves(table)?;
        if buckets == 0 {
            return Ok(None);
        }
        let link = |at: u64| table.wrapping_add(8).wrapping_add(at * 4);
        let [mut index] = space.halves(link(u64::from(hash % buckets)))?;
        for _ in 0..MAX_CHAIN {
            if index == 0 {
                break;
            }
            if let Some(address) = self.matches(space, index, name)? {
                return Ok(Some(address));
            }
            [index] = space.halves(link(u64::from(buckets) + u64::from(index)))?;
        }
        Ok(None)
    }

    fn matches(&self, space: &mut Space<'_>, index: u32, name: &str) -> Result<Option<u64>, Error> {
        let symbol = self.symbols.wrapping_add(u64::from(index) * SYMBOL);
        let [name_at] = space.halves(symbol)?;
        let section = u16::from_le_bytes(space.array(symbol.wrapping_add(6))?);
        let found = space.bytes(self.strings.wrapping_add(u64::from(name_at)), name.len() + 1)?;
        let equal = found.strip_suffix(&[0]) == Some(name.as_bytes());
        if !equal || section == 0 {
            return Ok(None);
        }
        Ok(Some(self.bias.wrapping_add(space.word(symbol.wrapping_add(8))?)))
    }
}
