//! Dicts: their tables of keys in all forms, and finding names in them.

use super::Heap;
use crate::memory::Error;
use crate::memory::layout::KeysForm;
use crate::memory::source::{Noting, plausible};
use std::sync::Arc;

/// Most entries of one dict, deleted ones included.
pub(super) const MAX_DICT: u64 = 262_144;
/// Largest `dk_log2_size`.
const MAX_LOG2_SIZE: u8 = 24;

/// A live entry of a dict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: u64,
    pub(crate) value: u64,
    /// Address of the key's pointer; the value's follows it in combined tables.
    pub(crate) slot: u64,
}

/// A table of keys, checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    entries: u64,
    count: u64,
    stride: u64,
    /// Offset of the key in an entry; the value follows it.
    key: u64,
}

impl Heap<'_> {
    pub(super) fn table(&mut self, keys: u64) -> Result<Table, Error> {
        let (entries, count, size, stride, key) = match self.layout.keys {
            KeysForm::Sized => {
                let size = self.space.word(keys + 8)?;
                if !size.is_power_of_two() || size > 1 << MAX_LOG2_SIZE {
                    return Err(Error::Implausible("dk_size"));
                }
                let width = match size {
                    0..=0xff => 1,
                    0x100..=0xffff => 2,
                    _ => 4,
                };
                (keys + 40 + size * width, self.space.word(keys + 32)?, size, 24, 8)
            }
            KeysForm::Logarithmic => {
                let [log2, index, kind] = self.space.array::<3>(keys + 8)?;
                let count = self.space.word(keys + 24)?;
                if count == 0 {
                    return Ok(Table { entries: keys + 32, count, stride: 16, key: 0 });
                }
                let widen = match log2 {
                    0..=7 => 0,
                    8..=15 => 1,
                    _ => 2,
                };
                if log2 > MAX_LOG2_SIZE || index != log2 + widen || kind > 2 {
                    return Err(Error::Implausible("dk_log2_size"));
                }
                let (stride, key) = if kind == 0 { (24, 8) } else { (16, 0) };
                (keys + 32 + (1 << index), count, 1 << log2, stride, key)
            }
        };
        if count > MAX_DICT {
            return Err(Error::Limit("entries of one dict (262,144)"));
        }
        if count * 3 > size * 2 + 3 {
            return Err(Error::Implausible("dk_nentries"));
        }
        Ok(Table { entries, count, stride, key })
    }

    /// Fetches whole dicts level by level: headers, heads of tables, entries. Null ones are passed over.
    pub(crate) fn fetch_dicts(&mut self, dicts: &[u64], most: u64) -> Result<(), Error> {
        let header = self.layout.header;
        for dict in dicts {
            self.space.want(*dict, header + 32);
        }
        self.space.fetch()?;
        let mut tables = Vec::with_capacity(dicts.len());
        for dict in dicts {
            if let Ok(keys) = self.space.pointer(*dict + header + 16) {
                self.space.want(keys, 40);
                tables.push(keys);
                if let Ok(values @ 1..) = self.space.pointer_or_null(*dict + header + 24) {
                    self.space.want_in_page(values, 256);
                }
            }
        }
        self.fetch_tables(&tables, most)
    }

    /// Fetches the first `most` entries of tables.
    pub(crate) fn fetch_tables(&mut self, tables: &[u64], most: u64) -> Result<(), Error> {
        for keys in tables {
            self.space.want(*keys, 40);
        }
        self.space.fetch()?;
        for keys in tables {
            if let Ok(table) = self.table(*keys) {
                self.space.want(table.entries, table.count.min(most) * table.stride);
            }
        }
        self.space.fetch()
    }

    /// Reads the live entries of a dict, or of its first `most` slots, in the table's order. A dict is decoded
    /// once in a walk.
    pub(crate) fn entries(&mut self, dict: u64, most: u64) -> Result<Arc<[Entry]>, Error> {
        if let Some(known) = self.dicts.get(&(dict, most)) {
            return Ok(Arc::clone(known));
        }
        let fields = dict + self.layout.header;
        let used = self.space.word(fields)?;
        let keys = self.space.pointer(fields + 16)?;
        let values = self.space.pointer_or_null(fields + 24)?;
        let table = self.table(keys)?;
        if used > table.count {
            return Err(Error::Implausible("ma_used"));
        }
        let values = (values != 0).then(|| values + self.layout.values_start);
        let entries: Arc<[Entry]> = self.table_entries(table, values, most)?.into();
        self.dicts.insert((dict, most), Arc::clone(&entries));
        Ok(entries)
    }

    pub(super) fn table_entries(&mut self, table: Table, values: Option<u64>, most: u64) -> Result<Vec<Entry>, Error> {
        let count = table.count.min(most);
        self.spend(count)?;
        let bytes = usize::try_from(count * table.stride).map_err(|_| Error::Implausible("length"))?;
        let bytes = self.space.bytes(table.entries, bytes)?;
        let split = match values {
            Some(at) => Some(self.words(at, count)?),
            None => None,
        };
        let (words, _) = bytes.as_chunks::<8>();
        let (stride, first) = if table.stride == 24 { (3, 1) } else { (2, 0) };
        let mut entries = Vec::with_capacity(words.len() / stride);
        for (index, words) in words.chunks_exact(stride).enumerate() {
            let word = |at: usize| words.get(at).map_or(0, |word| u64::from_le_bytes(*word));
            let key = word(first);
            let value = match &split {
                Some(values) => values.get(index).copied().unwrap_or(0),
                None => word(first + 1),
            };
            if value == 0 {
                continue;
            }
            if !plausible(key) || !plausible(value) {
                return Err(Error::Implausible("dict entry"));
            }
            let slot = table.entries + index as u64 * table.stride + table.key;
            entries.push(Entry { key, value, slot });
        }
        Ok(entries)
    }

    /// Tells whether a dict keeps its values apart from its keys.
    pub(crate) fn is_split(&mut self, dict: u64) -> Result<bool, Error> {
        Ok(self.space.pointer_or_null(dict + self.layout.header + 24)? != 0)
    }

    /// Demands that a dict's header and its table's head stay as they are.
    pub(crate) fn guard_dict(&mut self, dict: u64) -> Result<(), Error> {
        let fields = dict + self.layout.header;
        let keys = self.space.pointer(fields + 16)?;
        self.space.guard(fields, 32);
        self.guard_keys(keys);
        Ok(())
    }

    /// Demands that the head of a dict's table stays as it is, and where it lies; not its version, which
    /// changes with every assignment.
    pub(crate) fn guard_table(&mut self, dict: u64) -> Result<(), Error> {
        let at = dict + self.layout.header + 16;
        let keys = self.space.pointer(at)?;
        self.space.guard(at, 8);
        self.guard_keys(keys);
        Ok(())
    }

    pub(super) fn guard_keys(&mut self, keys: u64) {
        for (offset, len) in self.layout.keys_head() {
            self.space.guard(keys + offset, *len);
        }
    }

    /// Finds the entry of a name: by the address of the interned text, else by content.
    pub(crate) fn find(&mut self, entries: &[Entry], name: &'static str) -> Result<Option<Entry>, Error> {
        let known = self.names.iter().find(|(known, _)| *known == name).map(|(_, address)| *address);
        if let Some(address) = known
            && let Some(entry) = entries.iter().find(|entry| entry.key == address)
        {
            return Ok(Some(*entry));
        }
        let found = self.find_text(entries, name)?;
        if let (Some(entry), None) = (found, known) {
            self.names.push((name, entry.key));
        }
        Ok(found)
    }

    /// Finds the entries of names in a dict of which everything else is somebody else's and changes: for the answer
    /// only what is found counts, or all of it where a name is not there.
    pub(crate) fn find_only<const N: usize>(
        &mut self,
        dict: u64,
        names: [&'static str; N],
    ) -> Result<[Option<Entry>; N], Error> {
        self.fetch_dicts(&[dict], MAX_DICT)?;
        self.space.note(Noting::Nothing);
        let leafed = self.leaf(dict);
        self.space.note(Noting::Changing);
        let leafed = leafed?;
        let mut found = [None; N];
        let mut is_whole = true;
        for (name, place) in names.into_iter().zip(&mut found) {
            *place = self.find(&leafed, name)?;
            is_whole &= place.is_some();
        }
        if !is_whole {
            self.entries(dict, MAX_DICT)?;
            return Ok(found);
        }
        let fields = dict + self.layout.header;
        self.space.word(fields + 24)?;
        let keys = self.space.pointer(fields + 16)?;
        self.table(keys)?;
        for entry in found.iter().flatten() {
            // A key stands in a dict once.
            if self.space.array::<8>(entry.slot)? != entry.key.to_le_bytes()
                || self.space.array::<8>(entry.slot + 8)? != entry.value.to_le_bytes()
            {
                return Err(Error::Changed);
            }
        }
        Ok(found)
    }

    /// Reads the entries of a dict with a table of its own, without keeping them.
    fn leaf(&mut self, dict: u64) -> Result<Vec<Entry>, Error> {
        let fields = dict + self.layout.header;
        if self.space.pointer_or_null(fields + 24)? != 0 {
            return Err(Error::Implausible("dict of a module"));
        }
        let keys = self.space.pointer(fields + 16)?;
        let table = self.table(keys)?;
        self.table_entries(table, None, MAX_DICT)
    }

    /// Finds the entry of a text by content.
    pub(crate) fn find_text(&mut self, entries: &[Entry], name: &str) -> Result<Option<Entry>, Error> {
        self.fetch_texts(entries.iter().map(|entry| entry.key))?;
        for entry in entries {
            if self.key_text(entry.key)?.is_some_and(|text| &*text == name) {
                return Ok(Some(*entry));
            }
        }
        Ok(None)
    }
}
