//! Operations that build tuples, lists, sets, dicts and text.

use super::super::opcodes::Op;
use super::machine::{Machine, Mode};
use super::symbols::Symbol;
use crate::python::ir::{Comprehension, Conversion, Expr, Makes};
use unstale_protocol::value::Value;

impl Machine<'_, '_> {
    pub(super) fn step_build(&mut self, operation: Op, argument: usize) {
        match operation {
            Op::BuildTuple => self.build(argument, Expr::Tuple),
            Op::BuildList => self.build(argument, Expr::List),
            Op::BuildSet => self.build(argument, Expr::Set),
            Op::BuildString => self.build(argument, Expr::Join),
            Op::BuildSlice => {
                self.pop_many(argument);
                self.push(Symbol::unknown("a slice"));
            }
            Op::BuildMap => {
                let mut symbols = self.pop_many(argument.saturating_mul(2)).into_iter();
                let mut deepest = 0;
                let mut pairs = Vec::new();
                while let (Some(key), Some(value)) = (symbols.next(), symbols.next()) {
                    let ((key, a), (value, b)) = (key.into_expr(), self.plain(value));
                    deepest = deepest.max(a).max(b);
                    pairs.push((Some(key), value));
                }
                self.push(Symbol::expr(Expr::Dict(pairs), deepest + 1));
            }
            Op::BuildConstKeyMap => {
                let (keys, _) = self.pop().into_expr();
                let values = self.pop_many(argument);
                let keys = match keys {
                    Expr::Constant(Value::Tuple(keys)) => keys,
                    _ => Vec::new(),
                };
                let mut deepest = 0;
                let pairs = keys.into_iter().zip(values).map(|(key, value)| {
                    let (value, depth) = self.plain(value);
                    deepest = deepest.max(depth);
                    (Some(Expr::Constant(key)), value)
                });
                let pairs = pairs.collect();
                self.push(Symbol::expr(Expr::Dict(pairs), deepest + 1));
            }
            Op::FormatValue => {
                if argument & 4 != 0 {
                    self.pop();
                }
                let conversion = match argument {
                    0 => Conversion::None,
                    1 => Conversion::Str,
                    _ => Conversion::Other,
                };
                self.format(conversion);
            }
            Op::ConvertValue => self.format(if argument == 1 { Conversion::Str } else { Conversion::Other }),
            Op::FormatSimple => {
                if !matches!(self.stack.last(), Some(Symbol::Expr(Expr::Format(..), _))) {
                    self.format(Conversion::None);
                }
            }
            Op::FormatWithSpec => {
                self.pop();
                self.format(Conversion::Other);
            }
            Op::ListExtend | Op::SetUpdate => self.extend(argument),
            Op::ListAppend | Op::SetAdd => self.append(operation, argument),
            Op::DictUpdate | Op::DictMerge => {
                let (added, depth) = self.pop().into_expr();
                self.merge(argument, added, depth);
            }
            Op::BuildTupleUnpack | Op::BuildTupleUnpackWithCall => self.unpack_build(argument, Expr::Tuple),
            Op::BuildListUnpack => self.unpack_build(argument, Expr::List),
            Op::BuildSetUnpack => self.unpack_build(argument, Expr::Set),
            Op::BuildMapUnpack | Op::BuildMapUnpackWithCall => {
                let mut deepest = 0;
                let mut pairs = Vec::new();
                for part in self.pop_many(argument) {
                    let (part, depth) = part.into_expr();
                    deepest = deepest.max(depth);
                    match part {
                        Expr::Dict(inner) => pairs.extend(inner),
                        other => pairs.push((None, other)),
                    }
                }
                self.push(Symbol::expr(Expr::Dict(pairs), deepest + 1));
            }
            _ => self.step_operator(operation, argument),
        }
    }

    fn build(&mut self, count: usize, make: fn(Vec<Expr>) -> Expr) {
        let mut deepest = 0;
        let items = self.pop_many(count).into_iter().map(|symbol| {
            let (expr, depth) = self.plain(symbol);
            deepest = deepest.max(depth);
            expr
        });
        let items = items.collect();
        self.push(Symbol::expr(make(items), deepest + 1));
    }

    fn unpack_build(&mut self, count: usize, make: fn(Vec<Expr>) -> Expr) {
        let mut deepest = 0;
        let mut items = Vec::new();
        for symbol in self.pop_many(count) {
            let (expr, depth) = symbol.into_expr();
            deepest = deepest.max(depth);
            items.extend(unpacked(expr));
        }
        self.push(Symbol::expr(make(items), deepest + 2));
    }

    fn format(&mut self, conversion: Conversion) {
        let (expr, depth) = self.pop().into_expr();
        self.push(Symbol::expr(Expr::Format(Box::new(expr), conversion), depth + 1));
    }

    pub(super) fn list_to_tuple(&mut self) {
        let top = match self.pop() {
            Symbol::Expr(Expr::List(items), depth) => Symbol::Expr(Expr::Tuple(items), depth),
            _ => Symbol::unknown("a tuple of what is not known"),
        };
        self.push(top);
    }

    /// Adds to the list or set that lies `place` below.
    fn extend(&mut self, place: usize) {
        let (added, depth) = self.pop().into_expr();
        let index = self.stack.len().wrapping_sub(place);
        match self.stack.get_mut(index) {
            Some(Symbol::Expr(Expr::List(items) | Expr::Set(items), deepest)) => {
                items.extend(unpacked(added));
                *deepest = (*deepest).max(depth + 2);
            }
            Some(other) => *other = Symbol::unknown("a list that is built in parts"),
            None => {}
        }
    }

    fn append(&mut self, operation: Op, place: usize) {
        let (element, depth) = self.pop().into_expr();
        if self.mode == Mode::Comprehension {
            self.result = Some(element);
            self.ended = true;
            return;
        }
        let index = self.stack.len().wrapping_sub(place);
        let makes = if operation == Op::SetAdd { Makes::Set } else { Makes::List };
        let iterable = match (self.inlined, self.stack.last()) {
            (true, Some(Symbol::Iterator(inner))) => Some((**inner).clone().into_expr()),
            _ => None,
        };
        let names = std::mem::take(&mut self.bound);
        let symbol = match iterable {
            Some((iterable, below)) if !names.is_empty() => {
                let made = Comprehension { makes, element, names, iterable };
                Symbol::expr(Expr::Comprehension(Box::new(made)), depth.max(below) + 1)
            }
            _ => Symbol::unknown("a list that is built in parts"),
        };
        self.inlined = false;
        if let Some(slot) = self.stack.get_mut(index) {
            *slot = symbol;
        }
    }

    fn merge(&mut self, place: usize, added: Expr, depth: usize) {
        let index = self.stack.len().wrapping_sub(place);
        match self.stack.get_mut(index) {
            Some(Symbol::Expr(Expr::Dict(pairs), deepest)) => {
                match added {
                    Expr::Dict(inner) => pairs.extend(inner),
                    other => pairs.push((None, other)),
                }
                *deepest = (*deepest).max(depth + 1);
            }
            Some(other) => *other = Symbol::unknown("a dict that is built in parts"),
            None => {}
        }
    }
}

/// Takes the items of a literal out of it; anything else is unpacked at run time.
fn unpacked(expr: Expr) -> Vec<Expr> {
    match expr {
        Expr::Tuple(items) | Expr::List(items) | Expr::Set(items) => items,
        Expr::Constant(Value::Tuple(items) | Value::List(items) | Value::FrozenSet(items)) => {
            items.into_iter().map(Expr::Constant).collect()
        }
        other => vec![Expr::Starred(Box::new(other))],
    }
}
