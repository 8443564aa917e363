//! Python objects as they lie in memory: types, dicts, attributes, text.
//!
//! Pure functions over a [`Space`]. Every number that comes from the process is checked before it is used
//! as a length or an address. Meaning (enums, modules, tables) is added by the modules above.

mod dict;
mod instance;
mod text;

pub(crate) use dict::Entry;

use super::Error;
use super::layout::Layout;
use super::source::{Buffers, ByAddress, Space, plausible};
use std::sync::Arc;

/// Most entries of dicts and items of containers decoded in one walk, all together: what little memory
/// can claim to hold is without bound, since all may lead to the same place.
const MAX_ITEMS: u64 = 2_000_000;
/// Most bytes of texts and values decoded in one walk.
const MAX_CONTENT: u64 = 64 << 20;
/// Longest chain of bases.
pub(crate) const MAX_BASES: u64 = 256;
/// `ob_type`, and what follows it in texts, numbers and containers: their length.
pub(crate) const TYPE_AND_LENGTH: usize = 16;
/// `PyTypeObject.tp_subclasses`, after the object's header.
pub(crate) const SUBCLASSES: u64 = 344;

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
    dicts: ByAddress<(u64, u64), Arc<[Entry]>>,
    instances: ByAddress<u64, Arc<[Entry]>>,
    items: u64,
    content: u64,
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
            dicts: ByAddress::default(),
            instances: ByAddress::default(),
            items: 0,
            content: 0,
        }
    }

    /// Counts what is decoded against the bound of one walk.
    pub(crate) fn spend(&mut self, items: u64) -> Result<(), Error> {
        self.items = self.items.saturating_add(items);
        if self.items > MAX_ITEMS { Err(Error::Limit("items of one read (2,000,000)")) } else { Ok(()) }
    }

    /// Counts decoded bytes against the bound of one walk.
    pub(crate) fn spend_bytes(&mut self, bytes: u64) -> Result<(), Error> {
        self.content = self.content.saturating_add(bytes);
        if self.content > MAX_CONTENT { Err(Error::Limit("texts and values of one read (64 MiB)")) } else { Ok(()) }
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

    /// Fetches heap types as a whole, then their names, which lie elsewhere.
    pub(crate) fn fetch_heap_types(&mut self, addresses: &[u64]) -> Result<(), Error> {
        for address in addresses {
            self.want_heap_type(*address);
        }
        self.space.fetch()?;
        for address in addresses {
            if let Ok(name) = self.space.word(address + self.layout.header + 8) {
                self.space.want_in_page(name, 32);
            }
        }
        self.space.fetch()
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
            subclasses: if heap { self.space.pointer_or_null(fields + SUBCLASSES)? } else { 0 },
            qualname: if heap { self.space.pointer(address + self.layout.qualname)? } else { 0 },
            cached_keys: if heap { self.space.pointer_or_null(address + self.layout.qualname + 8)? } else { 0 },
        });
        self.types.insert(address, Arc::clone(&found));
        Ok(found)
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
        self.spend(count)?;
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
