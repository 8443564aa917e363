//! Functions, lambdas and comprehensions: parameters and the one expression that is returned.

use super::super::opcodes::Op;
use super::machine::{Machine, Mode};
use super::symbols::{Made, Symbol};
use crate::python::ir::{Comprehension, Expr, Function, Lambda, Makes, Parameter, ParameterKind};

/// `CO_VARARGS` and others, Include/code.h.
const VARARGS: u32 = 0x04;
const VARKEYWORDS: u32 = 0x08;
const SUSPENDS: u32 = 0x20 | 0x80 | 0x200;

/// Deepest nesting of functions that is followed.
const MAX_FUNCTIONS: usize = 12;

impl Machine<'_, '_> {
    /// Returns the expression that a symbol is, a lambda included.
    pub(super) fn plain(&mut self, symbol: Symbol) -> (Expr, usize) {
        match symbol {
            Symbol::Function(made) if &*made.code.name == "<lambda>" => {
                let lambda = self.lambda(&made, "a lambda");
                // Its own depth was bounded on the way; what stands around it has to count it.
                (Expr::Lambda(Box::new(lambda)), crate::python::ir::MAX_EXPR_DEPTH / 2)
            }
            other => other.into_expr(),
        }
    }

    pub(super) fn function(&mut self, name: &str, made: &Made) -> Function {
        Function {
            name: name.to_owned(),
            decorators: made.decorators.clone(),
            lambda: self.lambda(made, name),
            assigns_value: name == "__init__" && self.assigns_value(made),
        }
    }

    fn assigns_value(&self, made: &Made) -> bool {
        let mut argument = 0_usize;
        made.code.instructions.chunks_exact(2).any(|pair| {
            let [number, low] = *pair else { return false };
            argument = argument << 8 & 0x00ff_ffff | usize::from(low);
            let operation = self.context.table.get(usize::from(number)).copied().flatten();
            let stores = operation == Some(Op::StoreAttr)
                && made.code.names.get(argument).is_some_and(|name| &**name == "_value_");
            if operation != Some(Op::ExtendedArg) {
                argument = 0;
            }
            stores
        })
    }

    fn lambda(&mut self, made: &Made, name: &str) -> Lambda {
        let returns = if made.code.flags & SUSPENDS == 0 { self.body(made) } else { None };
        Lambda {
            parameters: parameters(made),
            returns: returns.unwrap_or_else(|| Expr::unresolved(format!("calls {name}, which does more than return"))),
        }
    }

    fn body(&mut self, made: &Made) -> Option<Expr> {
        if self.context.functions >= MAX_FUNCTIONS {
            return None;
        }
        self.context.functions += 1;
        let result = Machine::new(&made.code, Mode::Function, self.context).returned();
        self.context.functions -= 1;
        result.map(|(expr, _)| expr)
    }

    /// A comprehension that is called at once: up to 3.11, in classes of 3.12, and generators.
    pub(super) fn comprehension(&mut self, made: &Made, iterable: Symbol) -> Symbol {
        let makes = match &*made.code.name {
            "<listcomp>" => Makes::List,
            "<setcomp>" => Makes::Set,
            "<genexpr>" => Makes::Generator,
            _ => return Symbol::unknown("a comprehension"),
        };
        if self.context.functions >= MAX_FUNCTIONS {
            return Symbol::unknown("a comprehension nested too deeply");
        }
        let (iterable, depth) = self.plain(iterable);
        self.context.functions += 1;
        let result = Machine::new(&made.code, Mode::Comprehension, self.context).returned();
        self.context.functions -= 1;
        match result {
            Some((element, names)) if !names.is_empty() => {
                let made = Comprehension { makes, element, names, iterable };
                let around = crate::python::ir::MAX_EXPR_DEPTH / 2;
                Symbol::expr(Expr::Comprehension(Box::new(made)), depth.max(around) + 1)
            }
            _ => Symbol::unknown("a comprehension with a condition"),
        }
    }
}

fn parameters(made: &Made) -> Vec<Parameter> {
    let code = &made.code;
    let mut names = code.locals.iter().map(|name| name.as_ref().to_owned());
    let plain: Vec<String> = names.by_ref().take(code.arguments).collect();
    let keywords: Vec<String> = names.by_ref().take(code.keyword_only).collect();
    let rest = if code.flags & VARARGS == 0 { None } else { names.next() };
    let rest_by_name = if code.flags & VARKEYWORDS == 0 { None } else { names.next() };
    let without = plain.len().saturating_sub(made.defaults.len());
    let mut parameters = Vec::new();
    for (index, name) in plain.into_iter().enumerate() {
        let default = index.checked_sub(without).and_then(|index| made.defaults.get(index)).cloned();
        parameters.push(Parameter { name, kind: ParameterKind::Plain, default });
    }
    parameters.extend(rest.map(|name| Parameter { name, kind: ParameterKind::Rest, default: None }));
    for name in keywords {
        let default = made.keyword_defaults.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
        parameters.push(Parameter { name, kind: ParameterKind::Keyword, default });
    }
    parameters.extend(rest_by_name.map(|name| Parameter { name, kind: ParameterKind::RestByName, default: None }));
    parameters
}
