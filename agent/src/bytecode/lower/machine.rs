//! The machine: instructions in order, jumps, and what they mark.

use super::super::marshal::Code;
use super::super::opcodes::Op;
use super::Context;
use super::symbols::Symbol;
use crate::python::ir::{Action, Branch, Expr, Statement};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Most values whose copies are kept for a jump; deeper stacks are cut to their height only.
const MAX_KEPT: usize = 64;

/// What is being lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// The body of a module.
    Module,
    /// The body of a class at this depth of classes, from 1.
    Class(usize),
    /// A function: only what it returns counts.
    Function,
    /// A comprehension that is a function of its own: only its element counts.
    Comprehension,
}

#[expect(clippy::struct_excessive_bools, reason = "each says a thing of its own, and none excludes another")]
pub(super) struct Machine<'c, 'a> {
    pub(super) code: &'c Rc<Code>,
    pub(super) mode: Mode,
    pub(super) context: &'c mut Context<'a>,
    pub(super) stack: Vec<Symbol>,
    pub(super) out: Vec<Statement>,
    /// Names of the arguments by name of the call to come: `KW_NAMES`.
    pub(super) keyword_names: Vec<String>,
    /// What a function returns, or a comprehension's element.
    pub(super) result: Option<Expr>,
    /// Why a function is more than one expression.
    pub(super) not_simple: bool,
    /// Names that the comprehension in hand binds per element.
    pub(super) bound: Vec<String>,
    /// Whether an inlined comprehension is in hand.
    pub(super) inlined: bool,
    pub(super) ended: bool,
    regions: Vec<(usize, usize, Branch)>,
    /// Where an `else` would begin, and its mark.
    otherwise: BTreeMap<usize, Branch>,
    kept: BTreeMap<usize, (usize, Option<Vec<Symbol>>)>,
    reachable: bool,
    /// Offsets of the present instruction and of the one after it, caches left out.
    at: usize,
    pub(super) next: usize,
}

impl<'c, 'a> Machine<'c, 'a> {
    pub(super) fn new(code: &'c Rc<Code>, mode: Mode, context: &'c mut Context<'a>) -> Self {
        let protected = code.protected.iter();
        // Up to 3.10 the operations themselves say what is protected. In functions only comprehensions are.
        let regions = protected.map(|(start, end)| (*start, *end, Branch::Sometimes)).collect();
        Self {
            code,
            mode,
            context,
            stack: Vec::new(),
            out: Vec::new(),
            keyword_names: Vec::new(),
            result: None,
            not_simple: false,
            bound: Vec::new(),
            inlined: false,
            ended: false,
            regions,
            otherwise: BTreeMap::new(),
            kept: BTreeMap::new(),
            reachable: true,
            at: 0,
            next: 0,
        }
    }

    /// Goes through all instructions and returns the statements.
    pub(super) fn run(mut self) -> Vec<Statement> {
        self.execute();
        self.out
    }

    /// Goes through all instructions of a function, and returns its one expression.
    pub(super) fn returned(mut self) -> Option<(Expr, Vec<String>)> {
        self.execute();
        if self.not_simple { None } else { self.result.map(|expr| (expr, self.bound)) }
    }

    fn execute(&mut self) {
        let code = self.code.clone();
        let mut offset = 0;
        let mut argument = 0_usize;
        while let Some([number, low]) =
            code.instructions.get(offset..offset + 2).and_then(|pair| <[u8; 2]>::try_from(pair).ok())
        {
            self.context.nodes += 1;
            let is_function = matches!(self.mode, Mode::Function | Mode::Comprehension);
            if self.context.is_full() || self.ended || (is_function && self.not_simple) {
                return;
            }
            self.at = offset;
            offset += 2;
            let operation = self.context.table.get(usize::from(number)).copied().flatten();
            argument = argument << 8 | usize::from(low);
            match operation {
                Some(Op::Cache) => argument = 0,
                Some(Op::ExtendedArg) => argument &= 0x00ff_ffff,
                _ => {
                    self.next = self.after_caches(offset);
                    self.arrive();
                    self.step(operation, argument);
                    argument = 0;
                }
            }
        }
    }

    fn after_caches(&self, offset: usize) -> usize {
        let mut next = offset;
        while let Some(number) = self.code.instructions.get(next) {
            if self.context.table.get(usize::from(*number)).copied().flatten() != Some(Op::Cache) {
                break;
            }
            next += 2;
        }
        next
    }

    /// Joins the stacks of all jumps that lead here.
    fn arrive(&mut self) {
        let Some((height, kept)) = self.kept.remove(&self.at) else {
            if !self.reachable {
                // A handler, which only an exception leads to: what it finds on the stack is not known.
                self.stack.clear();
                self.reachable = true;
            }
            return;
        };
        if !self.reachable {
            self.reachable = true;
            match kept {
                Some(kept) => self.stack = kept,
                None => self.stack.truncate(height),
            }
            return;
        }
        self.stack.truncate(height);
        match kept {
            Some(kept) => {
                for (ours, theirs) in self.stack.iter_mut().zip(&kept) {
                    if !ours.is_same(theirs) {
                        *ours = Symbol::unknown("a condition");
                    }
                }
            }
            None => {
                if let Some(top) = self.stack.last_mut() {
                    *top = Symbol::unknown("a condition");
                }
            }
        }
    }

    /// Notes a jump to `target` under the mark `branch`; the stack is kept for it.
    pub(super) fn jump(&mut self, target: usize, branch: Branch) {
        if matches!(self.mode, Mode::Function | Mode::Comprehension) {
            self.not_simple = true;
            return;
        }
        if self.inlined {
            // A condition in a comprehension: its element is not every item's.
            self.inlined = false;
            self.bound.clear();
        }
        if target <= self.at {
            return;
        }
        self.regions.push((self.next, target, branch));
        let kept = (self.stack.len() <= MAX_KEPT).then(|| self.stack.clone());
        self.kept.entry(target).or_insert((self.stack.len(), kept));
    }

    /// Notes a conditional jump on the condition that was on the stack.
    pub(super) fn jump_if(&mut self, target: usize, condition: &Symbol, when_true: bool) {
        let Symbol::Version(yes, no) = condition else {
            self.jump(target, Branch::Sometimes);
            return;
        };
        // What follows is executed when the jump is not taken.
        let (body, otherwise) = if when_true { (*no, *yes) } else { (*yes, *no) };
        self.jump(target, body);
        self.otherwise.insert(target, otherwise);
    }

    /// Notes an unconditional jump: what follows is reached by other ways only.
    pub(super) fn leave(&mut self, target: Option<usize>) {
        if let Some(target) = target {
            let branch = self.otherwise.get(&self.next).copied().unwrap_or(Branch::Sometimes);
            self.jump(target, branch);
        } else if matches!(self.mode, Mode::Module | Mode::Class(_)) {
            // The end, written twice: what still follows belongs to one of the ways.
            let branch = self.otherwise.get(&self.next).copied().unwrap_or(Branch::Sometimes);
            self.regions.push((self.next, usize::MAX, branch));
        }
        self.reachable = false;
    }

    /// Notes that what follows is reached by other ways only, with nothing known of them.
    pub(super) fn leave_by_exception(&mut self) {
        self.reachable = false;
    }

    /// Returns the mark of the present instruction.
    pub(super) fn branch(&self) -> Branch {
        let around = self.regions.iter().filter(|(start, end, _)| (*start..*end).contains(&self.at));
        around.fold(Branch::Always, |outer, (_, _, inner)| outer.within(*inner))
    }

    pub(super) fn emit(&mut self, action: Action) {
        if matches!(self.mode, Mode::Function | Mode::Comprehension) {
            self.not_simple = true;
            return;
        }
        let line = 0; // Line tables are not read: what is shown of lines comes from the source.
        self.out.push(Statement { line, branch: self.branch(), action });
    }

    pub(super) fn push(&mut self, symbol: Symbol) {
        self.context.nodes += 1;
        self.stack.push(symbol);
    }

    /// Takes the top; an empty stack, as in handlers, yields what is not known.
    pub(super) fn pop(&mut self) -> Symbol {
        self.stack.pop().unwrap_or_else(|| Symbol::unknown("a value that is not followed"))
    }

    pub(super) fn pop_many(&mut self, count: usize) -> Vec<Symbol> {
        if self.stack.len() >= count {
            return self.stack.split_off(self.stack.len() - count);
        }
        let mut taken = std::mem::take(&mut self.stack);
        // A count beyond what any stack holds is damage, or a handler: one unknown stands for the rest.
        taken.insert(0, Symbol::unknown("a value that is not followed"));
        taken
    }

    pub(super) fn class_depth(&self) -> usize {
        if let Mode::Class(depth) = self.mode { depth } else { 0 }
    }

    pub(super) fn name(&self, index: usize) -> Rc<str> {
        self.code.names.get(index).cloned().unwrap_or_else(|| "?".into())
    }

    pub(super) fn local(&self, index: usize) -> Rc<str> {
        self.code.locals.get(index).cloned().unwrap_or_else(|| "?".into())
    }

    pub(super) fn cell(&self, index: usize) -> Rc<str> {
        self.code.cells.get(index).cloned().unwrap_or_else(|| "?".into())
    }
}
