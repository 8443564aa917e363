//! Reads marshalled code objects of CPython 3.8 to 3.13, with bounds: `Python/marshal.c` of those versions.

use num_bigint::{BigInt, Sign};
use std::rc::Rc;

/// Deepest nesting of objects that is followed; the interpreter itself stops at 2,000.
const MAX_DEPTH: u32 = 100;

/// Most objects in one file: a file of 4 MiB has at most so many bytes, and each object takes one.
const MAX_OBJECTS: usize = 4_000_000;

/// Longest integer in 15-bit digits: 30,720 bits.
const MAX_DIGITS: usize = 2_048;

/// What can be wrong with a marshalled object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MarshalError {
    #[error("the data ends early")]
    Truncated,
    #[error("byte {at}: {what}")]
    Bad { at: usize, what: &'static str },
    #[error("objects are nested deeper than {MAX_DEPTH}")]
    TooDeep,
    #[error("more than {MAX_OBJECTS} objects")]
    TooMany,
}

/// A marshalled object.
#[derive(Clone, Debug)]
pub(super) enum Object {
    None,
    Bool(bool),
    Int(BigInt),
    Float(f64),
    /// Text; `None` where it holds lone surrogates.
    Text(Option<Rc<str>>),
    Bytes(Rc<[u8]>),
    Tuple(Rc<[Object]>),
    FrozenSet(Rc<[Object]>),
    Code(Rc<Code>),
    /// Complex numbers, `...`, and what a reference to an unfinished object gives.
    Other,
}

/// A code object, as far as it is looked at.
#[derive(Debug)]
pub(super) struct Code {
    pub(super) arguments: usize,
    pub(super) keyword_only: usize,
    pub(super) flags: u32,
    pub(super) instructions: Rc<[u8]>,
    pub(super) constants: Rc<[Object]>,
    pub(super) names: Vec<Rc<str>>,
    /// Parameters first. From 3.11 on all of `co_localsplusnames`.
    pub(super) locals: Vec<Rc<str>>,
    /// What `LOAD_DEREF` counts: cells, then free variables; from 3.11 on the same as `locals`.
    pub(super) cells: Vec<Rc<str>>,
    pub(super) name: Rc<str>,
    /// Start and end of what is protected, in bytes of code; 3.11 and later.
    pub(super) protected: Vec<(usize, usize)>,
}

/// Reads the code object of a module; `minor` decides its layout.
pub(super) fn module(bytes: &[u8], minor: u8) -> Result<Rc<Code>, MarshalError> {
    let mut reader = Reader { bytes, at: 0, references: Vec::new(), depth: 0, objects: 0, minor };
    match reader.object()? {
        Object::Code(code) => Ok(code),
        _ => Err(reader.bad("the file holds no code object")),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    references: Vec<Object>,
    depth: u32,
    objects: usize,
    minor: u8,
}

impl<'a> Reader<'a> {
    fn bad(&self, what: &'static str) -> MarshalError {
        MarshalError::Bad { at: self.at, what }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], MarshalError> {
        let end = self.at.checked_add(count).ok_or(MarshalError::Truncated)?;
        let taken = self.bytes.get(self.at..end).ok_or(MarshalError::Truncated)?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], MarshalError> {
        self.take(N)?.try_into().map_err(|_| MarshalError::Truncated)
    }

    fn byte(&mut self) -> Result<u8, MarshalError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn long(&mut self) -> Result<i32, MarshalError> {
        Ok(i32::from_le_bytes(self.array()?))
    }

    fn size(&mut self) -> Result<usize, MarshalError> {
        let size = self.long()?;
        usize::try_from(size).map_err(|_| self.bad("a negative size"))
    }

    fn object(&mut self) -> Result<Object, MarshalError> {
        self.objects += 1;
        if self.objects > MAX_OBJECTS {
            return Err(MarshalError::TooMany);
        }
        if self.depth >= MAX_DEPTH {
            return Err(MarshalError::TooDeep);
        }
        let tag = self.byte()?;
        // The place in the list of references is taken before the parts are read.
        let place = (tag & 0x80 != 0).then(|| {
            self.references.push(Object::Other);
            self.references.len() - 1
        });
        self.depth += 1;
        let object = self.tagged(tag & 0x7f)?;
        self.depth -= 1;
        if let Some(slot) = place.and_then(|place| self.references.get_mut(place)) {
            *slot = object.clone();
        }
        Ok(object)
    }

    fn tagged(&mut self, tag: u8) -> Result<Object, MarshalError> {
        Ok(match tag {
            b'N' => Object::None,
            b'T' => Object::Bool(true),
            b'F' => Object::Bool(false),
            b'.' | b'S' => Object::Other,
            b'i' => Object::Int(BigInt::from(self.long()?)),
            b'I' => Object::Int(BigInt::from(i64::from_le_bytes(self.array()?))),
            b'l' => self.big()?,
            b'g' => Object::Float(f64::from_le_bytes(self.array()?)),
            b'y' => {
                self.take(16)?;
                Object::Other
            }
            b'f' => {
                let count = usize::from(self.byte()?);
                let text = std::str::from_utf8(self.take(count)?).map_err(|_| self.bad("a float"))?;
                Object::Float(text.parse().map_err(|_| self.bad("a float"))?)
            }
            b'x' => {
                for _ in 0..2 {
                    let count = usize::from(self.byte()?);
                    self.take(count)?;
                }
                Object::Other
            }
            b's' => {
                let count = self.size()?;
                Object::Bytes(self.take(count)?.into())
            }
            b'u' | b't' => {
                let count = self.size()?;
                // The encoding lets lone surrogates through; such text is not known.
                Object::Text(std::str::from_utf8(self.take(count)?).ok().map(Into::into))
            }
            b'a' | b'A' => {
                let count = self.size()?;
                self.ascii(count)?
            }
            b'z' | b'Z' => {
                let count = usize::from(self.byte()?);
                self.ascii(count)?
            }
            b')' => {
                let count = usize::from(self.byte()?);
                Object::Tuple(self.objects(count)?)
            }
            b'(' | b'[' => {
                let count = self.size()?;
                Object::Tuple(self.objects(count)?)
            }
            b'<' | b'>' => {
                let count = self.size()?;
                Object::FrozenSet(self.objects(count)?)
            }
            b'r' => {
                let index = self.size()?;
                self.references.get(index).cloned().ok_or_else(|| self.bad("a reference to nothing"))?
            }
            b'c' => Object::Code(Rc::new(self.code()?)),
            _ => return Err(self.bad("an unknown type")),
        })
    }

    fn ascii(&mut self, count: usize) -> Result<Object, MarshalError> {
        let text = std::str::from_utf8(self.take(count)?).map_err(|_| self.bad("text that is not ASCII"))?;
        Ok(Object::Text(Some(text.into())))
    }

    fn objects(&mut self, count: usize) -> Result<Rc<[Object]>, MarshalError> {
        // Each object takes a byte at least: what is announced must be there.
        if count > self.bytes.len().saturating_sub(self.at) {
            return Err(MarshalError::Truncated);
        }
        let mut objects = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            objects.push(self.object()?);
        }
        Ok(objects.into())
    }

    fn big(&mut self) -> Result<Object, MarshalError> {
        let count = self.long()?;
        let digits = usize::try_from(count.unsigned_abs()).map_err(|_| self.bad("an integer"))?;
        let bytes = self.take(digits.checked_mul(2).ok_or(MarshalError::Truncated)?)?;
        if digits > MAX_DIGITS {
            return Ok(Object::Other);
        }
        let mut number = BigInt::ZERO;
        for pair in bytes.chunks_exact(2).rev() {
            let digit = pair.iter().rev().fold(0_u16, |digit, byte| digit << 8 | u16::from(*byte));
            number = (number << 15) + BigInt::from_biguint(Sign::Plus, digit.into());
        }
        Ok(Object::Int(if count < 0 { -number } else { number }))
    }

    fn text(&mut self) -> Result<Rc<str>, MarshalError> {
        match self.object()? {
            Object::Text(text) => Ok(text.unwrap_or_else(|| "?".into())),
            _ => Err(self.bad("a code object whose name is no text")),
        }
    }

    fn texts(&mut self) -> Result<Vec<Rc<str>>, MarshalError> {
        let Object::Tuple(items) = self.object()? else { return Err(self.bad("a code object without names")) };
        let texts = items.iter().map(|item| match item {
            Object::Text(text) => Some(text.clone().unwrap_or_else(|| "?".into())),
            _ => None,
        });
        texts.collect::<Option<Vec<_>>>().ok_or_else(|| self.bad("a code object without names"))
    }

    fn data(&mut self) -> Result<Rc<[u8]>, MarshalError> {
        match self.object()? {
            Object::Bytes(bytes) => Ok(bytes),
            _ => Err(self.bad("a code object without code")),
        }
    }

    fn code(&mut self) -> Result<Code, MarshalError> {
        let arguments = self.size()?;
        self.long()?; // positional-only ones are among the arguments
        let keyword_only = self.size()?;
        if self.minor < 11 {
            self.long()?; // number of locals
        }
        self.long()?; // stack size
        let flags = self.long()?.cast_unsigned();
        let instructions = self.data()?;
        let Object::Tuple(constants) = self.object()? else { return Err(self.bad("a code object without constants")) };
        let names = self.texts()?;
        let locals = self.texts()?;
        let cells = if self.minor < 11 {
            let free = self.texts()?;
            let mut cells = self.texts()?;
            cells.extend(free);
            cells
        } else {
            self.data()?; // kinds of locals
            locals.clone()
        };
        self.object()?; // file name
        let name = self.text()?;
        if self.minor >= 11 {
            self.object()?; // qualified name
        }
        self.long()?; // first line
        self.object()?; // line table
        let protected = if self.minor >= 11 { protected(&self.data()?) } else { Vec::new() };
        Ok(Code { arguments, keyword_only, flags, instructions, constants, names, locals, cells, name, protected })
    }
}

/// Reads start and end of the entries of an exception table (`Objects/exception_handling_notes.txt`, 3.11).
fn protected(table: &[u8]) -> Vec<(usize, usize)> {
    let mut bytes = table.iter().copied();
    let mut number = move || -> Option<usize> {
        let mut byte = bytes.next()?;
        let mut value = usize::from(byte & 63);
        while byte & 64 != 0 {
            byte = bytes.next()?;
            value = value.checked_mul(64)? | usize::from(byte & 63);
        }
        Some(value)
    };
    let mut entries = Vec::new();
    while let (Some(start), Some(length), Some(_target), Some(_depth)) = (number(), number(), number(), number()) {
        if let (Some(start), Some(length)) = (start.checked_mul(2), length.checked_mul(2)) {
            entries.push((start, start.saturating_add(length)));
        }
    }
    entries
}
