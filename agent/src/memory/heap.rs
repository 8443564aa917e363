//! Python objects as they lie in memory: types, dicts, attributes, text.
//!
//! Pure functions over a [`Space`]. Every number that comes from the process is checked before it is used
//! as a length or an address. Meaning (enums, modules, tables) is added by the modules above.

use super::Error;
use super::layout::{InstanceForm, KeysForm, Layout};
use super::source::{Buffers, ByAddress, Space, plausible};
use std::sync::Arc;

/// Most dict entries decoded in one walk, all dicts together.
const MAX_ENTRIES: usize = 1_000_000;
/// Most entries of one dict, deleted ones included.
const MAX_DICT: u64 = 262_144;
/// Largest `dk_log2_size`.
const MAX_LOG2_SIZE: u8 = 24;
/// Longest text in characters.
const MAX_TEXT: u64 = 65_536;
/// Longest C string that names a type, in bytes.
const MAX_TYPE_NAME: usize = 256;
/// Longest chain of bases.
pub(crate) const MAX_BASES: u64 = 256;
/// Largest instance in bytes.
const MAX_INSTANCE: u64 = 1 << 20;

/// `Py_TPFLAGS_HEAPTYPE`.
pub(crate) const HEAP_TYPE: u64 = 1 << 9;
/// `Py_TPFLAGS_LONG_SUBCLASS`.
pub(crate) const INT_TYPE: u64 = 1 << 24;
/// `Py_TPFLAGS_UNICODE_SUBCLASS`.
pub(crate) const STR_TYPE: u64 = 1 << 28;
/// `Py_TPFLAGS_DICT_SUBCLASS`.
pub(crate) const DICT_TYPE: u64 = 1 << 29;
/// `Py_TPFLAGS_TYPE_SUBCLASS`.
pub(crate) const TYPE_TYPE: u64 = 1 << 31;

/// A live entry of a dict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: u64,
    pub(crate) value: u64,
    /// Address of the key's pointer; the value's follows it in combined tables.
    pub(crate) slot: u64,
}

/// A type object.
#[derive(Clone, Debug)]
pub(crate) struct Type {
    pub(crate) address: u64,
    /// `tp_name`.
    pub(crate) name: Arc<str>,
    pub(crate) flags: u64,
    pub(crate) basic_size: u64,
    pub(crate) item_size: u64,
    pub(crate) dict_offset: i64,
    /// `tp_dict`, 0 where it is kept elsewhere (static types of 3.12 and later).
    pub(crate) dict: u64,
    pub(crate) bases: u64,
    pub(crate) mro: u64,
    pub(crate) subclasses: u64,
    /// `ht_qualname`, 0 where it is no heap type.
    pub(crate) qualname: u64,
    /// `ht_cached_keys`, or 0.
    pub(crate) cached_keys: u64,
}

impl Type {
    /// Tells whether the type is one of C code, with this name.
    pub(crate) fn is_builtin(&self, name: &str) -> bool {
        self.flags & HEAP_TYPE == 0 && &*self.name == name
    }

    /// Returns `__name__`.
    pub(crate) fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// A table of keys, checked.
#[derive(Clone, Copy, Debug)]
struct Table {
    entries: u64,
    count: u64,
    stride: u64,
    /// Offset of the key in an entry; the value follows it.
    key: u64,
}

/// The objects of one interpreter.
pub(crate) struct Heap<'s> {
    pub(crate) space: Space<'s>,
    pub(crate) layout: &'static Layout,
    /// Addresses of interned names, learnt from dicts of this interpreter.
    pub(crate) names: Vec<(&'static str, u64)>,
    /// Address of the type `str`, once known.
    pub(crate) str_type: u64,
    texts: ByAddress<u64, Option<Arc<str>>>,
    types: ByAddress<u64, Arc<Type>>,
    decoded: usize,
}

impl<'s> Heap<'s> {
    pub(crate) fn new(space: Space<'s>, layout: &'static Layout) -> Self {
        Self {
            space,
            layout,
            names: Vec::new(),
            str_type: 0,
            texts: ByAddress::default(),
            types: ByAddress::default(),
            decoded: 0,
        }
    }

    pub(crate) fn type_address(&mut self, object: u64) -> Result<u64, Error> {
        self.space.pointer(object + self.layout.ob_type())
    }

    pub(crate) fn type_of(&mut self, object: u64) -> Result<Arc<Type>, Error> {
        let address = self.type_address(object)?;
        self.type_at(address)
    }

    pub(crate) fn is_type(&mut self, object: u64) -> Result<bool, Error> {
        Ok(self.type_of(object)?.flags & TYPE_TYPE != 0)
    }

    /// Notes that a type will be looked at.
    pub(crate) fn want_type(&mut self, address: u64) {
        if plausible(address) && !self.types.contains_key(&address) {
            self.space.want_in_page(address, self.layout.header + 360);
        }
    }

    /// Notes that a heap type will be looked at as a whole.
    pub(crate) fn want_heap_type(&mut self, address: u64) {
        self.space.want(address, self.layout.heap_type_end());
    }

    /// Reads a type object: `struct _typeobject`, `PyHeapTypeObject`.
    pub(crate) fn type_at(&mut self, address: u64) -> Result<Arc<Type>, Error> {
        if let Some(known) = self.types.get(&address) {
            return Ok(Arc::clone(known));
        }
        let fields = address + self.layout.header;
        let name_at = self.space.word(fields + 8)?;
        let flags = self.space.word(fields + 152)?;
        let heap = flags & HEAP_TYPE != 0;
        let found = Arc::new(Type {
            address,
            name: self.c_string(name_at)?,
            flags,
            basic_size: self.space.word(fields + 16)?,
            item_size: self.space.word(fields + 24)?,
            dict_offset: self.space.word(fields + 272)?.cast_signed(),
            dict: self.space.pointer_or_null(fields + 248)?,
            bases: self.space.pointer_or_null(fields + 320)?,
            mro: self.space.pointer_or_null(fields + 328)?,
            // In static types of 3.12 and later this is an index.
            subclasses: if heap { self.space.pointer_or_null(fields + 344)? } else { 0 },
            qualname: if heap { self.space.pointer(address + self.layout.qualname)? } else { 0 },
            cached_keys: if heap { self.space.pointer_or_null(address + self.layout.qualname + 8)? } else { 0 },
        });
        self.types.insert(address, Arc::clone(&found));
        Ok(found)
    }

    fn c_string(&mut self, at: u64) -> Result<Arc<str>, Error> {
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

    /// Tells whether a type derives from `ancestor`, by its `tp_mro`.
    pub(crate) fn derives(&mut self, kind: &Type, ancestor: u64) -> Result<bool, Error> {
        if kind.address == ancestor {
            return Ok(true);
        }
        if kind.mro == 0 {
            return Ok(false);
        }
        Ok(self.tuple(kind.mro, MAX_BASES)?.contains(&ancestor))
    }

    /// Reads the items of a tuple (or struct sequence).
    pub(crate) fn tuple(&mut self, at: u64, most: u64) -> Result<Vec<u64>, Error> {
        let count = self.space.word(at + self.layout.header)?;
        self.pointers(at + self.layout.header + 8, count, most)
    }

    /// Reads the items of a list.
    pub(crate) fn list(&mut self, at: u64, most: u64) -> Result<Vec<u64>, Error> {
        let count = self.space.word(at + self.layout.header)?;
        if count == 0 {
            return Ok(Vec::new());
        }
        let items = self.space.pointer(at + self.layout.header + 8)?;
        self.pointers(items, count, most)
    }

    fn pointers(&mut self, at: u64, count: u64, most: u64) -> Result<Vec<u64>, Error> {
        if count > most {
            return Err(Error::Limit("items of one container"));
        }
        let words = self.words(at, count)?;
        if words.iter().all(|word| plausible(*word)) { Ok(words) } else { Err(Error::Implausible("items")) }
    }

    /// Reads consecutive words; the caller has bounded their number.
    pub(crate) fn words(&mut self, at: u64, count: u64) -> Result<Vec<u64>, Error> {
        let len = usize::try_from(count.saturating_mul(8)).map_err(|_| Error::Implausible("length"))?;
        let bytes = self.space.bytes(at, len)?;
        let (words, _) = bytes.as_chunks::<8>();
        Ok(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    fn table(&mut self, keys: u64) -> Result<Table, Error> {
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

    /// Reads the live entries of a dict, or of its first `most` slots, in the table's order.
    pub(crate) fn entries(&mut self, dict: u64, most: u64) -> Result<Vec<Entry>, Error> {
        let fields = dict + self.layout.header;
        let used = self.space.word(fields)?;
        let keys = self.space.pointer(fields + 16)?;
        let values = self.space.pointer_or_null(fields + 24)?;
        let table = self.table(keys)?;
        if used > table.count {
            return Err(Error::Implausible("ma_used"));
        }
        let values = (values != 0).then(|| values + self.layout.values_start);
        self.table_entries(table, values, most)
    }

    fn table_entries(&mut self, table: Table, values: Option<u64>, most: u64) -> Result<Vec<Entry>, Error> {
        let count = table.count.min(most);
        self.decoded += usize::try_from(count).unwrap_or(usize::MAX);
        if self.decoded > MAX_ENTRIES {
            return Err(Error::Limit("dict entries of one read (1,000,000)"));
        }
        let words = self.words(table.entries, count * table.stride / 8)?;
        let split = match values {
            Some(at) => Some(self.words(at, count)?),
            None => None,
        };
        let stride = usize::try_from(table.stride / 8).unwrap_or(3);
        let first = usize::try_from(table.key / 8).unwrap_or(0);
        let mut entries = Vec::with_capacity(words.len() / stride);
        for (index, words) in words.chunks_exact(stride).enumerate() {
            let key = words.get(first).copied().unwrap_or(0);
            let value = match &split {
                Some(values) => values.get(index).copied().unwrap_or(0),
                None => words.get(first + 1).copied().unwrap_or(0),
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

    fn guard_keys(&mut self, keys: u64) {
        let (offset, len) = self.layout.keys_head();
        self.space.guard(keys + offset, len);
    }

    /// Notes what will be needed to read the attributes of an object.
    pub(crate) fn want_instance(&mut self, object: u64, kind: &Type) {
        let len = kind.basic_size.min(512) + 64;
        self.space.want(object.saturating_sub(32), 32);
        self.space.want(object, self.layout.header + 16);
        self.space.want_in_page(object, len);
    }

    /// Returns the instance dict of an object, or 0 and where its values lie.
    fn instance(&mut self, object: u64, kind: &Type) -> Result<Attributes, Error> {
        if !self.layout.is_managed(kind.flags) {
            let Some(at) = self.dict_slot(object, kind)? else { return Ok(Attributes::None) };
            return Ok(Attributes::of_dict(self.space.pointer_or_null(at)?));
        }
        match self.layout.instance {
            InstanceForm::Offset => Ok(Attributes::None),
            InstanceForm::TwoPointers => match self.space.pointer_or_null(object - 32)? {
                0 => Ok(Attributes::of_dict(self.space.pointer_or_null(object - 24)?)),
                values => Ok(Attributes::Values(values)),
            },
            InstanceForm::TaggedPointer => match self.space.word(object - 24)? {
                word if word & 1 == 1 => Ok(Attributes::Values(word.wrapping_add(1))),
                0 => Ok(Attributes::None),
                word if plausible(word) => Ok(Attributes::Dict(word)),
                _ => Err(Error::Implausible("instance dict")),
            },
            InstanceForm::Inline { dict_before } => match self.space.pointer_or_null(object - dict_before)? {
                0 if Layout::has_inline_values(kind.flags) && kind.basic_size < MAX_INSTANCE => {
                    let values = object + kind.basic_size;
                    let [_, _, _, valid] = self.space.array::<4>(values)?;
                    Ok(if valid == 1 {
                        Attributes::Values(values + self.layout.values_start)
                    } else {
                        Attributes::None
                    })
                }
                dict => Ok(Attributes::of_dict(dict)),
            },
        }
    }

    /// Returns where the pointer to the instance dict lies: `_PyObject_GetDictPtr`.
    fn dict_slot(&mut self, object: u64, kind: &Type) -> Result<Option<u64>, Error> {
        if kind.dict_offset == 0 {
            return Ok(None);
        }
        if let Ok(offset) = u64::try_from(kind.dict_offset) {
            return if offset < MAX_INSTANCE {
                Ok(Some(object + offset))
            } else {
                Err(Error::Implausible("tp_dictoffset"))
            };
        }
        let size = self.space.word(object + self.layout.header)?;
        let items = if kind.flags & INT_TYPE != 0 && self.layout.tagged_int {
            size >> 3
        } else {
            size.cast_signed().unsigned_abs()
        };
        let back = kind.dict_offset.unsigned_abs();
        let whole = items
            .checked_mul(kind.item_size)
            .and_then(|bytes| bytes.checked_add(kind.basic_size))
            .filter(|bytes| *bytes < MAX_INSTANCE)
            .ok_or(Error::Implausible("size of an instance"))?;
        let whole = whole.next_multiple_of(8);
        match whole.checked_sub(back) {
            Some(offset) => Ok(Some(object + offset)),
            None => Err(Error::Implausible("tp_dictoffset")),
        }
    }

    /// Fetches what is needed to read the attributes of objects of known types.
    pub(crate) fn fetch_attributes(&mut self, objects: &[(u64, Arc<Type>)]) -> Result<(), Error> {
        for (object, kind) in objects {
            self.want_instance(*object, kind);
        }
        self.space.fetch()?;
        let mut dicts = Vec::new();
        let mut tables = Vec::new();
        for (object, kind) in objects {
            match self.instance(*object, kind) {
                Ok(Attributes::Dict(dict)) => dicts.push(dict),
                Ok(Attributes::Values(values)) => {
                    self.space.want_in_page(values, 128);
                    tables.push(kind.cached_keys);
                }
                Ok(Attributes::None) | Err(_) => {}
            }
        }
        tables.sort_unstable();
        tables.dedup();
        self.fetch_tables(&tables, MAX_DICT)?;
        self.fetch_dicts(&dicts, MAX_DICT)
    }

    /// Reads the attributes of an object: its instance dict, whatever form it has.
    pub(crate) fn attributes(&mut self, object: u64) -> Result<Vec<Entry>, Error> {
        let kind = self.type_of(object)?;
        match self.instance(object, &kind)? {
            Attributes::None => Ok(Vec::new()),
            Attributes::Dict(dict) => self.entries(dict, MAX_DICT),
            Attributes::Values(values) => {
                if !plausible(kind.cached_keys) || !plausible(values) {
                    return Err(Error::Implausible("instance values"));
                }
                let table = self.table(kind.cached_keys)?;
                self.table_entries(table, Some(values), MAX_DICT)
            }
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

    /// Reads text that must be there.
    pub(crate) fn text(&mut self, address: u64) -> Result<Arc<str>, Error> {
        self.key_text(address)?.ok_or(Error::Implausible("text"))
    }

    /// Reads the characters of a `str` or of a subclass: PEP 393. `None` where they are no Unicode text
    /// (lone surrogates) or too many.
    fn characters(&mut self, address: u64) -> Result<Option<String>, Error> {
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

    /// Returns the dict of a module object, or `None` where the object is no module.
    pub(crate) fn module_dict(&mut self, module: u64, module_type: u64) -> Result<Option<u64>, Error> {
        let kind = self.type_of(module)?;
        if !self.derives(&kind, module_type)? {
            return Ok(None);
        }
        let dict = self.space.pointer_or_null(module + self.layout.header)?;
        Ok((dict != 0).then_some(dict))
    }
}

/// Where an object's attributes lie.
#[derive(Clone, Copy, Debug)]
enum Attributes {
    None,
    Dict(u64),
    /// The first pointer of an array that goes with the type's `ht_cached_keys`.
    Values(u64),
}

impl Attributes {
    fn of_dict(dict: u64) -> Self {
        if dict == 0 { Self::None } else { Self::Dict(dict) }
    }
}

/// Looks at objects before the layout is certain, without giving the space away.
pub(crate) fn borrowed<'s, T>(
    space: &mut Space<'s>,
    layout: &'static Layout,
    look: impl FnOnce(&mut Heap<'s>) -> Result<T, Error>,
) -> Result<T, Error> {
    let empty = Space::new(space.source(), Buffers::default());
    let mut heap = Heap::new(std::mem::replace(space, empty), layout);
    let answer = look(&mut heap);
    *space = heap.space;
    answer
}
