//! Values of members: exact builtin types only, everything else by the name of its type.

use super::Error;
use super::heap::{DICT_TYPE, Heap, INT_TYPE, STR_TYPE};
use num_bigint::{BigInt, Sign};
use unstale_protocol::value::{MAX_DEPTH, Value};

/// Most items of one container.
const MAX_ITEMS: u64 = 4_096;
/// Most 30-bit digits of an integer: `Include/cpython/longintrepr.h`.
const MAX_DIGITS: u64 = 1_024;
/// Longest bytes value.
const MAX_BLOB: u64 = 65_536;
/// Most values of one walk, nested ones included.
pub(crate) const MAX_VALUES: usize = 400_000;
/// Most slots of a set's table.
const MAX_SET: u64 = 65_536;

/// The builtin types whose objects are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    None,
    Bool,
    Int,
    Float,
    Str,
    Bytes,
    Tuple,
    List,
    Dict,
    Set,
    FrozenSet,
}

/// Reads values and keeps count of them.
#[derive(Debug, Default)]
pub(crate) struct Values {
    decoded: usize,
}

impl Values {
    /// Fetches what decoding these objects will need, one level of nesting at a time.
    pub(crate) fn fetch(heap: &mut Heap<'_>, objects: &[u64]) -> Result<(), Error> {
        let mut level = objects.to_vec();
        for _ in 0..=MAX_DEPTH {
            if level.is_empty() || level.len() > MAX_VALUES {
                break;
            }
            for object in &level {
                heap.space.want_in_page(*object, 80);
            }
            heap.space.fetch()?;
            let mut next = Vec::new();
            let mut dicts = Vec::new();
            for object in &level {
                match kind(heap, *object) {
                    // What cannot be read is found out about when it is decoded.
                    Ok(Some(Kind::Tuple)) => next.extend(heap.tuple(*object, MAX_ITEMS).unwrap_or_default()),
                    Ok(Some(Kind::List)) => next.extend(heap.list(*object, MAX_ITEMS).unwrap_or_default()),
                    Ok(Some(Kind::Dict)) => dicts.push(*object),
                    _ => {}
                }
            }
            heap.fetch_dicts(&dicts, MAX_ITEMS)?;
            for dict in dicts {
                let entries = heap.entries(dict, MAX_ITEMS).unwrap_or_default();
                next.extend(entries.iter().flat_map(|entry| [entry.key, entry.value]));
            }
            level = next;
        }
        Ok(())
    }

    /// Reads one value.
    pub(crate) fn read(&mut self, heap: &mut Heap<'_>, object: u64) -> Result<Value, Error> {
        self.nested(heap, object, 0)
    }

    /// `depth` is bounded by [`MAX_DEPTH`], so the recursion is too.
    fn nested(&mut self, heap: &mut Heap<'_>, object: u64, depth: usize) -> Result<Value, Error> {
        self.decoded += 1;
        if self.decoded > MAX_VALUES {
            return Err(Error::Limit("values of one read (400,000)"));
        }
        let Some(kind) = kind(heap, object)? else { return opaque(heap, object) };
        let fields = object + heap.layout.header;
        Ok(match kind {
            Kind::None => Value::None,
            Kind::Bool => match int(heap, object)? {
                Some(number) => Value::Bool(number != BigInt::ZERO),
                None => return opaque(heap, object),
            },
            Kind::Int => match int(heap, object)? {
                Some(number) => Value::Int(number),
                None => return opaque(heap, object),
            },
            Kind::Float => Value::Float(heap.space.word(fields)?),
            Kind::Str => match heap.key_text(object)? {
                Some(text) => Value::Str(text.to_string()),
                None => return opaque(heap, object),
            },
            Kind::Bytes => match heap.space.word(fields)? {
                length @ 0..=MAX_BLOB => {
                    heap.spend_bytes(length)?;
                    let length = usize::try_from(length).map_err(|_| Error::Implausible("length"))?;
                    Value::Bytes(heap.space.bytes(fields + 16, length)?)
                }
                _ => return opaque(heap, object),
            },
            _ if depth >= MAX_DEPTH => return opaque(heap, object),
            Kind::Tuple => {
                let items = heap.tuple(object, MAX_ITEMS)?;
                Value::Tuple(self.items(heap, &items, depth)?)
            }
            Kind::List => {
                let items = heap.list(object, MAX_ITEMS)?;
                Value::List(self.items(heap, &items, depth)?)
            }
            Kind::Dict => return self.dict(heap, object, depth),
            Kind::Set => Value::Set(self.set(heap, object, depth)?),
            Kind::FrozenSet => Value::FrozenSet(self.set(heap, object, depth)?),
        })
    }

    fn items(&mut self, heap: &mut Heap<'_>, items: &[u64], depth: usize) -> Result<Vec<Value>, Error> {
        items.iter().map(|item| self.nested(heap, *item, depth + 1)).collect()
    }

    fn dict(&mut self, heap: &mut Heap<'_>, object: u64, depth: usize) -> Result<Value, Error> {
        let entries = heap.entries(object, MAX_ITEMS + 1)?;
        // A split dict may keep an order of its own beside the table's.
        if entries.len() as u64 > MAX_ITEMS || (!entries.is_empty() && heap.is_split(object)?) {
            return opaque(heap, object);
        }
        let pairs: Result<Vec<_>, Error> = entries
            .iter()
            .map(|entry| Ok((self.nested(heap, entry.key, depth + 1)?, self.nested(heap, entry.value, depth + 1)?)))
            .collect();
        Ok(Value::Dict(pairs?))
    }

    /// `PySetObject`: open addressing over pairs (key, hash); a deleted slot has the hash -1.
    fn set(&mut self, heap: &mut Heap<'_>, object: u64, depth: usize) -> Result<Vec<Value>, Error> {
        let fields = object + heap.layout.header;
        let mask = heap.space.word(fields + 16)?;
        if mask >= MAX_SET || !(mask + 1).is_power_of_two() {
            return Err(Error::Implausible("mask of a set"));
        }
        let table = heap.space.pointer(fields + 24)?;
        heap.spend(mask + 1)?;
        let words = heap.words(table, (mask + 1) * 2)?;
        let mut items = Vec::new();
        for pair in words.as_chunks::<2>().0 {
            let [key, hash] = *pair;
            if key != 0 && hash != u64::MAX {
                if !super::source::plausible(key) {
                    return Err(Error::Implausible("item of a set"));
                }
                items.push(self.nested(heap, key, depth + 1)?);
            }
        }
        items.sort();
        Ok(items)
    }
}

/// Reads a small integer, such as a bool or a flag.
pub(crate) fn small(heap: &mut Heap<'_>, object: u64) -> Result<Option<i64>, Error> {
    Ok(match kind(heap, object)? {
        Some(Kind::Bool | Kind::Int) => int(heap, object)?.and_then(|number| i64::try_from(number).ok()),
        _ => None,
    })
}

/// Tells whether an object is `None`.
pub(crate) fn is_none(heap: &mut Heap<'_>, object: u64) -> Result<bool, Error> {
    Ok(kind(heap, object)? == Some(Kind::None))
}

fn kind(heap: &mut Heap<'_>, object: u64) -> Result<Option<Kind>, Error> {
    let kind = heap.type_of(object)?;
    if kind.flags & super::heap::HEAP_TYPE != 0 {
        return Ok(None);
    }
    Ok(match &*kind.name {
        "NoneType" => Some(Kind::None),
        "bool" if kind.flags & INT_TYPE != 0 => Some(Kind::Bool),
        "int" if kind.flags & INT_TYPE != 0 => Some(Kind::Int),
        "float" => Some(Kind::Float),
        "str" if kind.flags & STR_TYPE != 0 => Some(Kind::Str),
        "bytes" => Some(Kind::Bytes),
        "tuple" => Some(Kind::Tuple),
        "list" => Some(Kind::List),
        "dict" if kind.flags & DICT_TYPE != 0 => Some(Kind::Dict),
        "set" => Some(Kind::Set),
        "frozenset" => Some(Kind::FrozenSet),
        _ => None,
    })
}

fn opaque(heap: &mut Heap<'_>, object: u64) -> Result<Value, Error> {
    Ok(Value::Opaque { type_name: heap.type_of(object)?.name.to_string() })
}

/// `PyLongObject`: 30-bit digits, the sign in the size (to 3.11) or in the low bits of `lv_tag`.
fn int(heap: &mut Heap<'_>, object: u64) -> Result<Option<BigInt>, Error> {
    let fields = object + heap.layout.header;
    let size = heap.space.word(fields)?;
    let (count, negative) = if heap.layout.tagged_int {
        (size >> 3, size & 3 == 2)
    } else {
        (size.cast_signed().unsigned_abs(), size.cast_signed() < 0)
    };
    if count > MAX_DIGITS {
        return Ok(None);
    }
    heap.spend_bytes(count * 4)?;
    let bytes = heap.space.bytes(fields + 8, usize::try_from(count).unwrap_or(0) * 4)?;
    // From digits of 30 bits to digits of 32.
    let mut words = Vec::with_capacity(bytes.len() / 4);
    let (mut held, mut bits) = (0u64, 0u32);
    for digit in bytes.as_chunks::<4>().0 {
        let digit = u32::from_le_bytes(*digit);
        if digit >> 30 != 0 {
            return Err(Error::Implausible("digit of an integer"));
        }
        held |= u64::from(digit) << bits;
        bits += 30;
        if bits >= 32 {
            let [a, b, c, d, ..] = held.to_le_bytes();
            words.push(u32::from_le_bytes([a, b, c, d]));
            held >>= 32;
            bits -= 32;
        }
    }
    let [a, b, c, d, ..] = held.to_le_bytes();
    words.push(u32::from_le_bytes([a, b, c, d]));
    Ok(Some(BigInt::from_slice(if negative { Sign::Minus } else { Sign::Plus }, &words)))
}
