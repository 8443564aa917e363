//! Attributes of objects: the instance dict, whatever form it has.

use super::dict::{Entry, MAX_DICT};
use super::{Heap, INT_TYPE, Type};
use crate::memory::Error;
use crate::memory::layout::{InstanceForm, Layout};
use crate::memory::source::plausible;
use std::sync::Arc;

/// Largest instance in bytes.
const MAX_INSTANCE: u64 = 1 << 20;

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

impl Heap<'_> {
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

    /// Reads the attributes of an object: its instance dict, whatever form it has. Once in a walk.
    pub(crate) fn attributes(&mut self, object: u64) -> Result<Arc<[Entry]>, Error> {
        if let Some(known) = self.instances.get(&object) {
            return Ok(Arc::clone(known));
        }
        let kind = self.type_of(object)?;
        let found: Arc<[Entry]> = match self.instance(object, &kind)? {
            Attributes::None => Arc::default(),
            Attributes::Dict(dict) => self.entries(dict, MAX_DICT)?,
            Attributes::Values(values) => {
                if !plausible(kind.cached_keys) || !plausible(values) {
                    return Err(Error::Implausible("instance values"));
                }
                let table = self.table(kind.cached_keys)?;
                self.table_entries(table, Some(values), MAX_DICT)?.into()
            }
        };
        self.instances.insert(object, Arc::clone(&found));
        Ok(found)
    }
}
