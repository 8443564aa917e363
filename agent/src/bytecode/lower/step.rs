//! One instruction.

use super::super::opcodes::Op;
use super::machine::Machine;
use super::symbols::Symbol;
use crate::python::ir::{Branch, Expr, Operator, Unary};
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

    pub(super) fn step_operator(&mut self, operation: Op, argument: usize) {
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
}

/// Returns the operator of a binary operation.
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
