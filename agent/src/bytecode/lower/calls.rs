//! Calls: of what is known, of `__build_class__`, of decorators, of comprehensions.

use super::super::opcodes::Op;
use super::machine::{Machine, Mode};
use super::symbols::{Made, Symbol};
use crate::python::ir::{Call, Class, Expr, MAX_CLASS_DEPTH};
use unstale_protocol::value::Value;

type Keywords = Vec<(Option<String>, Symbol)>;

impl Machine<'_, '_> {
    pub(super) fn step_call(&mut self, operation: Op, argument: usize) {
        match operation {
            Op::KwNames => self.keyword_names = self.constant_names(argument),
            Op::CallFunction | Op::CallMethod => {
                let arguments = self.pop_many(argument);
                let function = self.pop();
                self.call(function, arguments, Vec::new());
            }
            Op::CallFunctionKw => {
                let names = names_of(&self.pop());
                let (arguments, keywords) = self.split(argument, names);
                let function = self.pop();
                self.call(function, arguments, keywords);
            }
            Op::Call => {
                let names = std::mem::take(&mut self.keyword_names);
                let (arguments, keywords) = self.split(argument, names);
                self.call_with_self(arguments, keywords);
            }
            Op::CallKw => {
                let names = names_of(&self.pop());
                let (arguments, keywords) = self.split(argument, names);
                self.call_with_self(arguments, keywords);
            }
            Op::CallFunctionEx => {
                let keywords = if argument & 1 == 1 { Some(self.pop()) } else { None };
                let arguments = self.pop();
                let function = if self.context.minor >= 11 {
                    let (upper, lower) = (self.pop(), self.pop());
                    if matches!(upper, Symbol::Null) { lower } else { upper }
                } else {
                    self.pop()
                };
                self.call_unpacked(function, arguments, keywords);
            }
            Op::MakeFunction => self.make_function(argument),
            Op::SetFunctionAttribute => {
                let (function, value) = (self.pop(), self.pop());
                let function = match function {
                    Symbol::Function(mut made) => {
                        self.set_attribute(&mut made, argument, value);
                        Symbol::Function(made)
                    }
                    other => other,
                };
                self.push(function);
            }
            _ => {
                self.not_simple = true;
                self.stack.clear();
            }
        }
    }

    fn constant_names(&self, index: usize) -> Vec<String> {
        self.code.constants.get(index).map(|object| names_of(&Symbol::constant(object))).unwrap_or_default()
    }

    /// Takes `count` arguments, the last of which bear `names`.
    fn split(&mut self, count: usize, names: Vec<String>) -> (Vec<Symbol>, Keywords) {
        let mut arguments = self.pop_many(count);
        let by_name = arguments.split_off(arguments.len().saturating_sub(names.len()));
        (arguments, names.into_iter().map(Some).zip(by_name).collect())
    }

    /// From 3.11 on two places lie below the arguments: the function, and `self` or nothing.
    fn call_with_self(&mut self, mut arguments: Vec<Symbol>, keywords: Keywords) {
        let (upper, lower) = (self.pop(), self.pop());
        match (lower, upper) {
            (Symbol::Null, function) | (function, Symbol::Null) => self.call(function, arguments, keywords),
            (function, first) => {
                arguments.insert(0, first);
                self.call(function, arguments, keywords);
            }
        }
    }

    fn call(&mut self, function: Symbol, mut arguments: Vec<Symbol>, keywords: Keywords) {
        let single = arguments.len() == 1 && keywords.is_empty();
        match (function, arguments.first()) {
            (Symbol::BuildClass, _) => {
                let class = self.build_class(arguments, keywords);
                self.push(class);
            }
            (Symbol::Function(made), Some(Symbol::Iterator(_))) if single => {
                let comprehension = match arguments.pop() {
                    Some(Symbol::Iterator(iterable)) => self.comprehension(&made, *iterable),
                    _ => Symbol::unknown("a comprehension"),
                };
                self.push(comprehension);
            }
            (decorator @ Symbol::Expr(..), Some(Symbol::Class(_))) if single => {
                let decorator = decorator.into_expr().0;
                if let Some(Symbol::Class(mut class)) = arguments.pop() {
                    class.decorators.insert(0, decorator);
                    self.push(Symbol::Class(class));
                }
            }
            (decorator @ Symbol::Expr(..), Some(Symbol::Function(made)))
                if single && &*made.code.name != "<lambda>" =>
            {
                let decorator = decorator.into_expr().0;
                if let Some(Symbol::Function(mut made)) = arguments.pop() {
                    made.decorators.insert(0, decorator);
                    self.push(Symbol::Function(made));
                }
            }
            (function, _) => self.call_expression(function, arguments, keywords),
        }
    }

    fn call_expression(&mut self, function: Symbol, arguments: Vec<Symbol>, keywords: Keywords) {
        let (function, mut deepest) = self.plain(function);
        let mut plain = |machine: &mut Self, symbol| {
            let (expr, depth) = machine.plain(symbol);
            deepest = deepest.max(depth);
            expr
        };
        let arguments = arguments.into_iter().map(|symbol| plain(self, symbol)).collect();
        let keywords = keywords.into_iter().map(|(name, symbol)| (name, plain(self, symbol))).collect();
        let call = Expr::Call(Box::new(Call { function, arguments, keywords }));
        self.push(Symbol::expr(call, deepest + 1));
    }

    /// `f(*a, **k)`, or a call with so many arguments that the compiler gathers them first.
    fn call_unpacked(&mut self, function: Symbol, arguments: Symbol, keywords: Option<Symbol>) {
        let arguments = match arguments {
            Symbol::Expr(Expr::Tuple(items) | Expr::List(items), depth) => {
                items.into_iter().map(|item| Symbol::Expr(item, depth)).collect()
            }
            Symbol::Expr(Expr::Constant(Value::Tuple(items)), _) => {
                items.into_iter().map(|item| Symbol::Expr(Expr::Constant(item), 0)).collect()
            }
            other => {
                let (expr, depth) = self.plain(other);
                vec![Symbol::expr(Expr::Starred(Box::new(expr)), depth + 1)]
            }
        };
        let keywords = match keywords {
            None => Vec::new(),
            Some(Symbol::Expr(Expr::Dict(pairs), depth)) => pairs
                .into_iter()
                .map(|(key, value)| match key {
                    Some(Expr::Constant(Value::Str(name))) => (Some(name), Symbol::Expr(value, depth)),
                    Some(_) => (None, Symbol::unknown("an argument by a name that is not known")),
                    None => (None, Symbol::Expr(value, depth)),
                })
                .collect(),
            Some(other) => vec![(None, other)],
        };
        self.call(function, arguments, keywords);
    }

    fn build_class(&mut self, arguments: Vec<Symbol>, keywords: Keywords) -> Symbol {
        let mut arguments = arguments.into_iter();
        let (Some(Symbol::Function(made)), Some(name)) = (arguments.next(), arguments.next()) else {
            return Symbol::unknown("a class that is built in an unusual way");
        };
        let Symbol::Expr(Expr::Constant(Value::Str(name)), _) = name else {
            return Symbol::unknown("a class that is built in an unusual way");
        };
        let depth = self.class_depth() + 1;
        if depth > MAX_CLASS_DEPTH || matches!(self.mode, Mode::Function | Mode::Comprehension) {
            return Symbol::unknown("a class that is not followed");
        }
        let bases = arguments.map(|base| self.plain(base).0).collect();
        let keywords = keywords.into_iter().map(|(name, value)| (name, self.plain(value).0)).collect();
        let body = Machine::new(&made.code, Mode::Class(depth), self.context).run();
        Symbol::Class(Box::new(Class { name, bases, keywords, decorators: Vec::new(), body }))
    }

    fn make_function(&mut self, flags: usize) {
        let minor = self.context.minor;
        if minor < 11 {
            self.pop(); // the qualified name
        }
        let code = self.pop();
        let flags = if minor >= 13 { 0 } else { flags };
        let mut parts = Vec::new();
        for flag in [8, 4, 2, 1] {
            if flags & flag != 0 {
                parts.push((flag, self.pop()));
            }
        }
        let Symbol::Code(code) = code else {
            self.push(Symbol::unknown("a function that is made in an unusual way"));
            return;
        };
        let mut made = Made { code, defaults: Vec::new(), keyword_defaults: Vec::new(), decorators: Vec::new() };
        for (flag, value) in parts {
            self.set_attribute(&mut made, flag, value);
        }
        self.push(Symbol::Function(Box::new(made)));
    }

    fn set_attribute(&mut self, made: &mut Made, flag: usize, value: Symbol) {
        match (flag, self.plain(value).0) {
            (1, Expr::Tuple(items)) => made.defaults = items,
            (1, Expr::Constant(Value::Tuple(items))) => {
                made.defaults = items.into_iter().map(Expr::Constant).collect();
            }
            (2, Expr::Dict(pairs)) => {
                let named = pairs.into_iter().filter_map(|(key, value)| match key {
                    Some(Expr::Constant(Value::Str(name))) => Some((name, value)),
                    _ => None,
                });
                made.keyword_defaults = named.collect();
            }
            _ => {}
        }
    }
}

fn names_of(symbol: &Symbol) -> Vec<String> {
    let Symbol::Expr(Expr::Constant(Value::Tuple(items)), _) = symbol else { return Vec::new() };
    let names = items.iter().map(|item| match item {
        Value::Str(name) => name.clone(),
        _ => "?".to_owned(),
    });
    names.collect()
}
