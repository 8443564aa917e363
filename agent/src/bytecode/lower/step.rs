//! One instruction.

use super::super::opcodes::Op;
use super::machine::{Machine, Mode};
use super::symbols::{Import, Symbol};
use crate::python::ir::{Action, Branch, Comprehension, Conversion, Expr, Makes, Operator, Unary};
use std::rc::Rc;
use unstale_protocol::value::Value;

impl Machine<'_, '_> {
    pub(super) fn step(&mut self, operation: Option<Op>, argument: usize) {
        let Some(operation) = operation else {
            // Not understood: what it does to the stack is not known.
            self.not_simple = true;
            self.stack.clear();
            return;
        };
        match operation {
            Op::Cache
            | Op::Nop
            | Op::Resume
            | Op::Precall
            | Op::ExtendedArg
            | Op::MakeCell
            | Op::CopyFreeVars
            | Op::SetupAnnotations
            | Op::ToBool
            | Op::PopBlock
            | Op::PopExcept
            | Op::ListToTuple => {
                if operation == Op::ListToTuple {
                    self.list_to_tuple();
                }
            }
            Op::ReturnGenerator => self.push(Symbol::unknown("a generator")),
            Op::PushNull => self.push(Symbol::Null),
            Op::PopTop => self.pop_top(),
            Op::RotTwo => self.swap(2, true),
            Op::RotThree => self.rotate(3),
            Op::RotFour => self.rotate(4),
            Op::RotN => self.rotate(argument),
            Op::DupTop => self.copy(1),
            Op::DupTopTwo => {
                self.copy(2);
                self.copy(2);
            }
            Op::Copy => self.copy(argument),
            Op::Swap => self.swap(argument, false),
            Op::EndFor => {
                // In 3.12 it takes the iterator; from 3.13 on a POP_TOP follows.
                if self.context.minor < 13 {
                    self.pop();
                }
            }
            _ => self.step_data(operation, argument),
        }
    }

    fn step_data(&mut self, operation: Op, argument: usize) {
        let minor = self.context.minor;
        match operation {
            Op::LoadConst => {
                let symbol = self.code.constants.get(argument).map(Symbol::constant);
                self.push(symbol.unwrap_or_else(|| Symbol::unknown("a constant that is missing")));
            }
            Op::LoadName => self.load(&self.name(argument)),
            Op::LoadGlobal => {
                let (index, null) = if minor >= 11 { (argument >> 1, argument & 1 == 1) } else { (argument, false) };
                if null && minor < 13 {
                    self.push(Symbol::Null);
                }
                self.load(&self.name(index));
                if null && minor >= 13 {
                    self.push(Symbol::Null);
                }
            }
            Op::LoadFast | Op::LoadFastCheck | Op::LoadClosure => {
                let name =
                    if operation == Op::LoadClosure && minor < 11 { self.cell(argument) } else { self.local(argument) };
                self.load(&name);
            }
            Op::LoadFastAndClear => self.push(Symbol::Saved),
            Op::LoadFastLoadFast => {
                self.load(&self.local(argument >> 4));
                self.load(&self.local(argument & 15));
            }
            Op::StoreFast => self.store_fast(&self.local(argument)),
            Op::StoreFastLoadFast => {
                self.store_fast(&self.local(argument >> 4));
                self.load(&self.local(argument & 15));
            }
            Op::StoreFastStoreFast => {
                self.store_fast(&self.local(argument >> 4));
                self.store_fast(&self.local(argument & 15));
            }
            Op::LoadDeref | Op::LoadClassderef => self.load(&self.cell(argument)),
            Op::LoadFromDictOrDeref => {
                self.pop();
                self.load(&self.cell(argument));
            }
            Op::LoadFromDictOrGlobals => {
                self.pop();
                self.load(&self.name(argument));
            }
            Op::LoadLocals => self.push(Symbol::unknown("locals()")),
            Op::LoadBuildClass => self.push(Symbol::BuildClass),
            Op::LoadAssertionError => self.load("AssertionError"),
            Op::LoadAttr | Op::LoadMethod => {
                let (index, method) = match (operation, minor) {
                    (Op::LoadAttr, 12..) => (argument >> 1, argument & 1 == 1),
                    (Op::LoadMethod, _) => (argument, true),
                    _ => (argument, false),
                };
                let (object, depth) = self.pop().into_expr();
                let attribute = Expr::Attribute(Box::new(object), self.name(index).as_ref().to_owned());
                // Up to 3.10 a method stands alone: CALL_METHOD knows.
                if method && (11..13).contains(&minor) {
                    self.push(Symbol::Null);
                }
                self.push(Symbol::expr(attribute, depth + 1));
                if method && minor >= 13 {
                    self.push(Symbol::Null);
                }
            }
            Op::LoadSuperAttr => {
                self.pop_many(3);
                self.push(Symbol::unknown("super()"));
            }
            _ => self.step_build(operation, argument),
        }
    }

    fn load(&mut self, name: &str) {
        self.push(Symbol::Expr(Expr::Name(name.to_owned()), 0));
    }

    fn step_build(&mut self, operation: Op, argument: usize) {
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

    fn list_to_tuple(&mut self) {
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

    fn step_operator(&mut self, operation: Op, argument: usize) {
        let unary = match operation {
            Op::UnaryPositive => Some(Unary::Plus),
            Op::UnaryNegative => Some(Unary::Minus),
            Op::UnaryNot => Some(Unary::Not),
            Op::UnaryInvert => Some(Unary::Invert),
            _ => None,
        };
        if let Some(unary) = unary {
            self.unary(unary);
            return;
        }
        if let Some(operator) = binary(operation, argument) {
            let ((right, b), (left, a)) = (self.pop().into_expr(), self.pop().into_expr());
            let (operands, depth) = match left {
                // Chains of one operator stay flat, as in source.
                Expr::Operation(known, mut operands) if known == operator => {
                    operands.push(right);
                    (operands, a.max(b + 1))
                }
                left => (vec![left, right], a.max(b) + 1),
            };
            self.push(Symbol::expr(Expr::Operation(operator, operands), depth));
            return;
        }
        match operation {
            Op::CallIntrinsic1 => match argument {
                2 => self.import_star(),
                5 => self.unary(Unary::Plus),
                6 => self.list_to_tuple(),
                _ => {
                    self.pop();
                    self.push(Symbol::unknown("an operation that is not followed"));
                }
            },
            Op::BinarySubscr => {
                let ((index, a), (object, b)) = (self.pop().into_expr(), self.pop().into_expr());
                self.push(Symbol::expr(Expr::Subscript(Box::new(object), Box::new(index)), a.max(b) + 1));
            }
            Op::BinarySlice => {
                let object = self.pop_many(3).into_iter().next();
                let (object, depth) = object.map_or((Expr::unresolved("a slice"), 0), Symbol::into_expr);
                let slice = Expr::Subscript(Box::new(object), Box::new(Expr::unresolved("a slice")));
                self.push(Symbol::expr(slice, depth + 1));
            }
            Op::CompareOp => self.compare(argument),
            Op::IsOp | Op::ContainsOp | Op::CheckExcMatch => {
                self.pop();
                if operation != Op::CheckExcMatch {
                    self.pop();
                }
                self.push(Symbol::unknown("a condition"));
            }
            _ => self.step_flow(operation, argument),
        }
    }

    fn unary(&mut self, operator: Unary) {
        let symbol = match (operator, self.pop()) {
            (Unary::Not, Symbol::Version(yes, no)) => Symbol::Version(no, yes),
            (operator, symbol) => {
                let (operand, depth) = symbol.into_expr();
                Symbol::expr(Expr::Unary(operator, Box::new(operand)), depth + 1)
            }
        };
        self.push(symbol);
    }

    /// Recognises `sys.version_info >= (3, minor)` and `<`.
    fn compare(&mut self, argument: usize) {
        let ((right, _), (left, _)) = (self.pop().into_expr(), self.pop().into_expr());
        let index = match self.context.minor {
            ..=11 => argument,
            12 => argument >> 4,
            _ => argument >> 5,
        };
        let left = match left {
            Expr::Subscript(object, index) if matches!(*index, Expr::Unresolved(_)) => *object,
            other => other,
        };
        let is_version = matches!(&left, Expr::Attribute(object, name)
            if name == "version_info" && matches!(&**object, Expr::Name(name) if name == "sys"));
        let minor = match &right {
            Expr::Constant(Value::Tuple(parts)) => match parts.as_slice() {
                [Value::Int(major), Value::Int(minor)] if *major == 3.into() => u8::try_from(minor).ok(),
                _ => None,
            },
            _ => None,
        };
        let symbol = match (is_version, minor, index) {
            (true, Some(minor), 0 | 5) => {
                let from = Branch::Python { since: minor, below: u8::MAX };
                let before = Branch::Python { since: 0, below: minor };
                if index == 5 { Symbol::Version(from, before) } else { Symbol::Version(before, from) }
            }
            _ => Symbol::unknown("a condition"),
        };
        self.push(symbol);
    }

    fn step_flow(&mut self, operation: Op, argument: usize) {
        let units = if self.context.minor >= 10 { 2 } else { 1 };
        let forward = self.next.saturating_add(argument.saturating_mul(units));
        // Up to 3.10 conditional jumps name their target, later the way to it.
        let target = if self.context.minor >= 11 { forward } else { argument.saturating_mul(units) };
        match operation {
            Op::PopJumpIfFalse | Op::PopJumpForwardIfFalse => {
                let condition = self.pop();
                self.jump_if(target, &condition, false);
            }
            Op::PopJumpIfTrue | Op::PopJumpForwardIfTrue => {
                let condition = self.pop();
                self.jump_if(target, &condition, true);
            }
            Op::PopJumpIfNone | Op::PopJumpIfNotNone | Op::PopJumpForwardIfNone | Op::PopJumpForwardIfNotNone => {
                self.pop();
                self.jump(target, Branch::Sometimes);
            }
            Op::PopJumpBackwardIfFalse
            | Op::PopJumpBackwardIfTrue
            | Op::PopJumpBackwardIfNone
            | Op::PopJumpBackwardIfNotNone => {
                self.pop();
                self.jump(0, Branch::Sometimes);
            }
            Op::JumpIfFalseOrPop | Op::JumpIfTrueOrPop => {
                self.jump(target, Branch::Sometimes);
                self.pop();
            }
            Op::JumpIfNotExcMatch => {
                self.pop_many(2);
                self.jump(target, Branch::Sometimes);
            }
            Op::JumpForward => self.leave(Some(forward)),
            Op::JumpAbsolute => {
                let target = argument.saturating_mul(units);
                if target > self.next { self.leave(Some(target)) } else { self.back() }
            }
            Op::JumpBackward | Op::JumpBackwardNoInterrupt => self.back(),
            Op::SetupFinally | Op::SetupWith | Op::BeforeWith => self.protect(operation, forward),
            Op::CallFinally => self.jump(forward, Branch::Sometimes),
            Op::GetIter => {
                let symbol = self.pop();
                self.push(Symbol::Iterator(Box::new(symbol)));
            }
            Op::ForIter => self.for_iter(forward),
            Op::YieldValue => {
                let (element, _) = self.pop().into_expr();
                if self.mode == Mode::Comprehension {
                    self.result = Some(element);
                    self.ended = true;
                } else {
                    self.not_simple = true;
                    self.push(Symbol::unknown("what is sent in"));
                }
            }
            Op::ReturnValue | Op::ReturnConst => {
                let symbol = if operation == Op::ReturnConst {
                    self.code.constants.get(argument).map_or(Symbol::Null, Symbol::constant)
                } else {
                    self.pop()
                };
                if self.mode == Mode::Function {
                    self.result = Some(self.plain(symbol).0);
                    self.ended = true;
                }
                self.leave(None);
            }
            Op::RaiseVarargs | Op::Reraise => {
                self.not_simple = true;
                self.leave_by_exception();
            }
            Op::PushExcInfo | Op::WithExceptStart => self.push(Symbol::unknown("an exception")),
            Op::BeginFinally => self.push(Symbol::unknown("a place on the stack")),
            Op::PopFinally | Op::EndFinally | Op::WithCleanupFinish => {
                self.pop();
            }
            Op::WithCleanupStart => self.push(Symbol::unknown("a place on the stack")),
            _ => self.step_store(operation, argument),
        }
    }

    /// `with` and `try`: what is protected is a branch. From 3.11 on a table says what is.
    fn protect(&mut self, operation: Op, target: usize) {
        let made = || Symbol::unknown("made by a with statement");
        if operation != Op::SetupFinally {
            self.pop();
            self.push(made());
        }
        if operation != Op::BeforeWith {
            self.jump(target, Branch::Sometimes);
        }
        if operation != Op::SetupFinally {
            self.push(made());
        }
    }

    fn for_iter(&mut self, target: usize) {
        let below = self.stack.len().checked_sub(2).and_then(|index| self.stack.get(index));
        let is_comprehension = matches!(self.stack.last(), Some(Symbol::Iterator(_)))
            && matches!(below, Some(Symbol::Expr(Expr::List(items) | Expr::Set(items), _)) if items.is_empty());
        if self.mode == Mode::Comprehension || (is_comprehension && !self.inlined) {
            self.inlined = self.mode != Mode::Comprehension;
            self.bound.clear();
        } else {
            self.jump(target, Branch::Sometimes);
            self.emit(Action::Opaque { why: "a loop".to_owned() });
        }
        self.push(Symbol::Item);
    }

    /// The end of a loop's body. What follows a comprehension's is reached when it is done.
    fn back(&mut self) {
        if matches!(self.stack.last(), Some(Symbol::Iterator(_))) {
            return;
        }
        if matches!(self.mode, Mode::Function) {
            self.not_simple = true;
        }
        self.leave_by_exception();
    }

    fn import_star(&mut self) {
        if let Symbol::Module(import) = self.pop() {
            let names = vec![("*".to_owned(), "*".to_owned())];
            self.emit(Action::ImportFrom { level: import.level, module: import.module.as_ref().to_owned(), names });
        }
        if self.context.minor >= 12 {
            self.push(Symbol::Null);
        }
    }

    fn step_store(&mut self, operation: Op, argument: usize) {
        match operation {
            Op::ImportStar => self.import_star(),
            Op::ImportName => {
                let ((names, _), (level, _)) = (self.pop().into_expr(), self.pop().into_expr());
                let level = match level {
                    Expr::Constant(Value::Int(level)) => u32::try_from(&level).unwrap_or(0),
                    _ => 0,
                };
                let takes_names = names != Expr::Constant(Value::None);
                self.push(Symbol::Module(Rc::new(Import { module: self.name(argument), level, takes_names })));
            }
            Op::ImportFrom => {
                let symbol = match self.stack.last() {
                    Some(Symbol::Module(import) | Symbol::From(import, _)) => {
                        Symbol::From(import.clone(), self.name(argument))
                    }
                    _ => Symbol::unknown("an import"),
                };
                self.push(symbol);
            }
            _ => self.step_more(operation, argument),
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

fn binary(operation: Op, argument: usize) -> Option<Operator> {
    Some(match operation {
        // `NB_…` in Include/opcode.h, the same numbers again for `+=`.
        Op::BinaryOp => match argument % 13 {
            0 => Operator::Add,
            1 => Operator::And,
            2 => Operator::FloorDivide,
            3 => Operator::ShiftLeft,
            4 => Operator::MatrixMultiply,
            5 => Operator::Multiply,
            6 => Operator::Remainder,
            7 => Operator::Or,
            8 => Operator::Power,
            9 => Operator::ShiftRight,
            10 => Operator::Subtract,
            11 => Operator::Divide,
            _ => Operator::Xor,
        },
        Op::BinaryAdd | Op::InplaceAdd => Operator::Add,
        Op::BinarySubtract | Op::InplaceSubtract => Operator::Subtract,
        Op::BinaryMultiply | Op::InplaceMultiply => Operator::Multiply,
        Op::BinaryTrueDivide | Op::InplaceTrueDivide => Operator::Divide,
        Op::BinaryFloorDivide | Op::InplaceFloorDivide => Operator::FloorDivide,
        Op::BinaryModulo | Op::InplaceModulo => Operator::Remainder,
        Op::BinaryPower | Op::InplacePower => Operator::Power,
        Op::BinaryMatrixMultiply | Op::InplaceMatrixMultiply => Operator::MatrixMultiply,
        Op::BinaryLshift | Op::InplaceLshift => Operator::ShiftLeft,
        Op::BinaryRshift | Op::InplaceRshift => Operator::ShiftRight,
        Op::BinaryAnd | Op::InplaceAnd => Operator::And,
        Op::BinaryOr | Op::InplaceOr => Operator::Or,
        Op::BinaryXor | Op::InplaceXor => Operator::Xor,
        _ => return None,
    })
}
