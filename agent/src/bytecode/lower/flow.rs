//! Jumps, loops, what is protected, returns, and imports.

use super::super::opcodes::Op;
use super::machine::{Machine, Mode};
use super::symbols::{Import, Symbol};
use crate::python::ir::{Action, Branch, Expr};
use std::rc::Rc;
use unstale_protocol::value::Value;

impl Machine<'_, '_> {
    pub(super) fn step_flow(&mut self, operation: Op, argument: usize) {
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

    pub(super) fn import_star(&mut self) {
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
