//! Stores, and the shuffling of the stack around them.

use super::super::opcodes::Op;
use super::machine::{Machine, Mode};
use super::symbols::Symbol;
use crate::python::ir::{Action, Expr};
use crate::source::MUTATORS;
use unstale_protocol::value::Value;

/// Names that the compiler itself binds in class bodies.
const IMPLICIT: [&str; 7] = [
    "__module__",
    "__qualname__",
    "__doc__",
    "__firstlineno__",
    "__static_attributes__",
    "__classcell__",
    "__classdictcell__",
];

impl Machine<'_, '_> {
    pub(super) fn step_more(&mut self, operation: Op, argument: usize) {
        match operation {
            Op::StoreName | Op::StoreGlobal => {
                let symbol = self.pop();
                self.store(&self.name(argument), symbol);
            }
            Op::StoreDeref => {
                self.not_simple = true;
                self.pop();
            }
            Op::DeleteName => {
                let name = self.name(argument).as_ref().to_owned();
                self.emit(Action::Assign { name, value: Expr::unresolved("a deleted name") });
            }
            Op::StoreAttr => {
                self.not_simple = true;
                self.pop_many(2);
            }
            Op::DeleteAttr => {
                self.not_simple = true;
                self.pop();
            }
            Op::StoreSubscr => {
                let (key, container, value) = (self.pop(), self.pop(), self.pop());
                self.store_item(&key, &container, value);
            }
            Op::StoreSlice => {
                let mut symbols = self.pop_many(4).into_iter();
                if let Some(container) = symbols.nth(1) {
                    self.changes(&container);
                }
            }
            Op::DeleteSubscr => {
                self.pop();
                let container = self.pop();
                self.changes(&container);
            }
            Op::UnpackSequence => self.unpack(argument),
            Op::UnpackEx => {
                self.pop();
                let count = (argument & 0xff).saturating_add(1).saturating_add(argument >> 8);
                for _ in 0..count.min(512) {
                    self.push(Symbol::unknown("unpacked from an expression"));
                }
            }
            _ => self.step_call(operation, argument),
        }
    }

    fn store(&mut self, name: &str, symbol: Symbol) {
        if matches!(self.mode, Mode::Function | Mode::Comprehension) {
            self.not_simple = true;
            return;
        }
        let name = name.to_owned();
        match symbol {
            Symbol::Class(mut class) => {
                class.name.clone_from(&name);
                self.emit(Action::Class(*class));
            }
            Symbol::Function(made) if &*made.code.name != "<lambda>" => {
                let function = self.function(&name, &made);
                self.emit(Action::Function(function));
            }
            Symbol::Module(import) => {
                let module = import.module.as_ref().to_owned();
                let is_plain = module.split('.').next() == Some(name.as_str());
                self.emit(Action::Import { module, alias: (!is_plain).then_some(name) });
            }
            Symbol::From(import, original) => {
                let module = import.module.as_ref().to_owned();
                self.emit(if import.takes_names {
                    let names = vec![(original.as_ref().to_owned(), name)];
                    Action::ImportFrom { level: import.level, module, names }
                } else {
                    Action::Import { module, alias: Some(name) }
                });
            }
            _ if matches!(self.mode, Mode::Class(_)) && IMPLICIT.contains(&name.as_str()) => {}
            symbol => {
                let (value, _) = self.plain(symbol);
                // `A = B = auto()` makes one object: the second name stands for the first.
                if !matches!(value, Expr::Constant(_) | Expr::Name(_))
                    && let Some(Symbol::Expr(top, depth)) = self.stack.last_mut()
                    && *top == value
                {
                    (*top, *depth) = (Expr::Name(name.clone()), 0);
                }
                self.emit(Action::Assign { name, value });
            }
        }
    }

    fn store_item(&mut self, key: &Symbol, container: &Symbol, value: Symbol) {
        if let (Symbol::Expr(Expr::Constant(Value::Str(name)), _), Symbol::Expr(Expr::Name(holder), _)) =
            (key, container)
            && holder == "__annotations__"
        {
            let (annotation, _) = self.plain(value);
            self.emit(Action::Annotate { name: name.clone(), annotation });
            return;
        }
        self.not_simple = true;
        self.changes(container);
    }

    fn changes(&mut self, container: &Symbol) {
        if matches!(self.mode, Mode::Function | Mode::Comprehension) {
            self.not_simple = true;
            return;
        }
        match container {
            Symbol::Expr(Expr::Name(name), _) => {
                let value = Expr::unresolved("changed after it was made");
                self.emit(Action::Assign { name: name.clone(), value });
            }
            _ if matches!(self.mode, Mode::Class(_)) => {
                self.emit(Action::Opaque { why: "assigns items".to_owned() });
            }
            _ => {}
        }
    }

    /// A value that is thrown away: an expression that stands alone.
    pub(super) fn pop_top(&mut self) {
        let Symbol::Expr(expr, _) = self.pop() else { return };
        if matches!(self.mode, Mode::Function) {
            self.not_simple = true;
            return;
        }
        let Expr::Call(call) = expr else { return };
        if let Expr::Attribute(object, method) = &call.function
            && let Expr::Name(name) = &**object
            && MUTATORS.contains(&method.as_str())
        {
            let value = Expr::unresolved("changed after it was made");
            self.emit(Action::Assign { name: name.clone(), value });
        } else if matches!(self.mode, Mode::Class(_)) {
            self.emit(Action::Opaque { why: "calls a function".to_owned() });
        }
    }

    pub(super) fn store_fast(&mut self, name: &str) {
        match self.pop() {
            Symbol::Item => self.bound.push(name.to_owned()),
            Symbol::Saved => {}
            _ => self.not_simple = true,
        }
    }

    fn unpack(&mut self, count: usize) {
        let count = count.min(4096);
        match self.pop() {
            Symbol::Item => (0..count).for_each(|_| self.push(Symbol::Item)),
            Symbol::Expr(Expr::Constant(Value::Tuple(items)), _) if items.len() == count => {
                for item in items.into_iter().rev() {
                    self.push(Symbol::Expr(Expr::Constant(item), 0));
                }
            }
            _ => (0..count).for_each(|_| self.push(Symbol::unknown("unpacked from an expression"))),
        }
    }

    /// Pushes the symbol that lies `place` below the top, from 1.
    pub(super) fn copy(&mut self, place: usize) {
        let index = self.stack.len().wrapping_sub(place);
        let symbol = self.stack.get(index).cloned();
        self.push(symbol.unwrap_or_else(|| Symbol::unknown("a value that is not followed")));
    }

    /// Swaps the top with what lies `place` below, from 1. Two values that are swapped belong to
    /// `a, b = b, a`, whose order of evaluation is not kept.
    pub(super) fn swap(&mut self, place: usize, rotates: bool) {
        let (Some(top), Some(other)) = (self.stack.len().checked_sub(1), self.stack.len().checked_sub(place.max(1)))
        else {
            return;
        };
        self.stack.swap(top, other);
        let plain = |symbol: Option<&Symbol>| matches!(symbol, Some(Symbol::Expr(expr, _)) if !matches!(expr, Expr::Constant(_)));
        let names = matches!(self.mode, Mode::Module | Mode::Class(_));
        if names
            && (rotates || place == 2)
            && plain(self.stack.get(top))
            && plain(self.stack.get(other))
            && top != other
        {
            for index in [top, other] {
                if let Some(symbol) = self.stack.get_mut(index) {
                    *symbol = Symbol::unknown("unpacked from an expression");
                }
            }
        }
    }

    /// Moves the top below the `count - 1` symbols under it.
    pub(super) fn rotate(&mut self, count: usize) {
        if count > 1 && count <= self.stack.len() {
            let top = self.pop();
            self.stack.insert(self.stack.len() + 1 - count, top);
        }
    }
}
