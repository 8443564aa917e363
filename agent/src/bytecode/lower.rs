//! A symbolic stack machine: code objects to statements.
//!
//! Instructions are gone through once, in order. Values on the stack are expressions. Forward jumps keep
//! the stack for their target; where two ways meet with different values the value is unresolved. What
//! lies between a conditional jump and its target is marked as a branch.

mod build;
mod calls;
mod flow;
mod functions;
mod machine;
mod step;
mod stores;
mod symbols;

use super::marshal::Code;
use super::opcodes::Op;
use crate::python::ir::{MAX_NODES, Summary};
use machine::{Machine, Mode};
use std::rc::Rc;

/// Lowers the code object of a module.
pub(super) fn module(code: &Rc<Code>, minor: u8, table: &[Option<Op>; 256]) -> Summary {
    let mut context = Context { minor, table, nodes: 0, functions: 0 };
    let body = Machine::new(code, Mode::Module, &mut context).run();
    let incomplete = (context.nodes >= MAX_NODES).then(|| "the module is too large to follow".to_owned());
    Summary { body, incomplete }
}

/// What all machines of one module share.
struct Context<'a> {
    minor: u8,
    table: &'a [Option<Op>; 256],
    /// Instructions and expressions so far.
    nodes: usize,
    /// Functions around the present one.
    functions: usize,
}

impl Context<'_> {
    fn is_full(&self) -> bool {
        self.nodes >= MAX_NODES
    }
}
