//! What can lie on the symbolic stack.

use super::super::marshal::{Code, Object};
use crate::python::ir::{Branch, Class, Expr, MAX_EXPR_DEPTH};
use crate::source;
use std::rc::Rc;
use unstale_protocol::value::{MAX_DEPTH, Value};

/// A value on the stack.
#[derive(Clone, Debug)]
pub(super) enum Symbol {
    /// An expression and how deep it is.
    Expr(Expr, usize),
    /// What marks a call without `self`.
    Null,
    /// A code object.
    Code(Rc<Code>),
    /// `__build_class__`.
    BuildClass,
    /// A function that was made.
    Function(Box<Made>),
    /// A class that was built.
    Class(Box<Class>),
    /// What `IMPORT_NAME` gave.
    Module(Rc<Import>),
    /// What `IMPORT_FROM` took of it.
    From(Rc<Import>, Rc<str>),
    /// An iterator over something.
    Iterator(Box<Symbol>),
    /// What an iterator yields.
    Item,
    /// A local that an inlined comprehension has put aside.
    Saved,
    /// `sys.version_info >= (3, 11)`: the marks of what follows if true, and if false.
    Version(Branch, Branch),
}

/// A function that was made.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) code: Rc<Code>,
    pub(super) defaults: Vec<Expr>,
    pub(super) keyword_defaults: Vec<(String, Expr)>,
    pub(super) decorators: Vec<Expr>,
}

/// An import.
#[derive(Debug)]
pub(super) struct Import {
    pub(super) module: Rc<str>,
    pub(super) level: u32,
    /// Whether names are imported from it.
    pub(super) takes_names: bool,
}

impl Symbol {
    /// Returns an expression whose parts are at most `depth` deep.
    pub(super) fn expr(expr: Expr, depth: usize) -> Self {
        if depth >= MAX_EXPR_DEPTH { Self::unknown("an expression nested too deeply") } else { Self::Expr(expr, depth) }
    }

    pub(super) fn unknown(why: &str) -> Self {
        Self::Expr(Expr::unresolved(why), 0)
    }

    /// Returns the expression that the symbol is, and its depth.
    pub(super) fn into_expr(self) -> (Expr, usize) {
        let why = match self {
            Self::Expr(expr, depth) => return (expr, depth),
            Self::Null | Self::Saved => "an empty place",
            Self::Code(_) => "a code object",
            Self::BuildClass => "__build_class__",
            Self::Function(_) => "a function",
            Self::Class(_) => "a class",
            Self::Module(_) | Self::From(..) => "a module",
            Self::Iterator(_) => "an iterator",
            Self::Item => "made by a loop",
            Self::Version(..) => "a condition",
        };
        (Expr::unresolved(why), 0)
    }

    /// Returns the constant that an object of the code is.
    pub(super) fn constant(object: &Object) -> Self {
        match object {
            Object::Code(code) => Self::Code(code.clone()),
            Object::Text(Some(text)) => Self::Expr(source::string(text), 0),
            Object::Text(None) => Self::unknown("text with a lone surrogate"),
            other => match value(other, 0) {
                Some(value) => Self::Expr(Expr::Constant(value), 0),
                None => Self::unknown("a constant that is not followed"),
            },
        }
    }

    /// Tells whether two symbols are surely the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Expr(left, _), Self::Expr(right, _)) => left == right,
            (Self::Null, Self::Null) | (Self::Item, Self::Item) | (Self::Saved, Self::Saved) => true,
            _ => false,
        }
    }
}

/// Returns the value of a constant; parts that are not known are unresolved inside it.
fn value(object: &Object, depth: usize) -> Option<Value> {
    if depth > MAX_DEPTH {
        return None;
    }
    let items = |items: &[Object]| {
        let values = items.iter().map(|item| value(item, depth + 1).unwrap_or_else(|| Value::unresolved("a constant")));
        values.collect::<Vec<_>>()
    };
    Some(match object {
        Object::None => Value::None,
        Object::Bool(flag) => Value::Bool(*flag),
        Object::Int(number) => Value::Int(number.clone()),
        Object::Float(number) => Value::float(*number),
        Object::Text(text) => match source::string(text.as_deref()?) {
            Expr::Constant(value) => value,
            _ => return None,
        },
        Object::Bytes(bytes) if bytes.len() <= source::MAX_TEXT_BYTES => Value::Bytes(bytes.to_vec()),
        Object::Tuple(parts) => Value::Tuple(items(parts)),
        Object::FrozenSet(parts) => {
            let mut values = items(parts);
            values.sort();
            Value::FrozenSet(values)
        }
        Object::Bytes(_) | Object::Code(_) | Object::Other => return None,
    })
}
