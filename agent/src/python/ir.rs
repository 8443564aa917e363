//! The small form that source text and bytecode are both lowered to.
//!
//! It keeps what definitions depend on: imports, assignments, annotations, classes, and functions that
//! only return an expression. It is no syntax tree: what a statement does inside a branch is kept flat
//! with a mark, and what is not understood becomes [`Expr::Unresolved`] with the reason.
//! `source` and `bytecode` make it, `link` and `evaluate` use it. It travels between processes as JSON,
//! so its depth and size are bounded by whoever makes it.

use serde::{Deserialize, Serialize};
use unstale_protocol::value::Value;

/// Deepest nesting of expressions that is kept; JSON readers stop at 128 levels, and one level here is up to four there.
pub const MAX_EXPR_DEPTH: usize = 14;

/// Deepest nesting of classes that is kept.
pub const MAX_CLASS_DEPTH: usize = 5;

/// Most expressions and statements in one summary.
pub const MAX_NODES: usize = 400_000;

/// What one module says, as far as definitions depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The statements of the module's body, in order; those inside branches stand flat, with a mark.
    pub body: Vec<Statement>,
    /// Which bound was reached, where one was: names may then be missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<String>,
}

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Its line, from 1; 0 where it is not known.
    pub line: u32,
    /// Whether it is always executed.
    #[serde(default, skip_serializing_if = "Branch::is_always")]
    pub branch: Branch,
    /// What it does.
    pub action: Action,
}

/// Whether a statement is executed whenever its module or class body is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Branch {
    /// It is.
    #[default]
    Always,
    /// It stands in an `if`, `try`, `with`, `for`, `while` or `match`.
    Sometimes,
    /// Only on Python 3.`since` (inclusive) to 3.`below` (exclusive): `if sys.version_info >= (3, 11)`.
    Python {
        /// First minor version.
        since: u8,
        /// First minor version that does not execute it any more.
        below: u8,
    },
}

impl Branch {
    /// Tells whether the statement is always executed.
    pub fn is_always(&self) -> bool {
        matches!(self, Self::Always)
    }

    /// Returns the mark of a statement that is marked `inner` inside a block marked `self`.
    pub(crate) fn within(self, inner: Self) -> Self {
        match (self, inner) {
            (Self::Always, other) | (other, Self::Always) => other,
            (Self::Python { since: a, below: b }, Self::Python { since: c, below: d }) => {
                Self::Python { since: a.max(c), below: b.min(d) }
            }
            _ => Self::Sometimes,
        }
    }
}

/// What a statement does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// `import module` or `import module as name`.
    Import {
        /// The module, dotted.
        module: String,
        /// The name after `as`; without one the first part of `module` is bound.
        alias: Option<String>,
    },
    /// `from module import names`.
    ImportFrom {
        /// Leading dots.
        level: u32,
        /// The module after the dots; empty for `from . import x`.
        module: String,
        /// What is imported, and the name it is bound to. A star is `("*", "*")`.
        names: Vec<(String, String)>,
    },
    /// `name = value`. Several targets are several statements.
    Assign {
        /// The name.
        name: String,
        /// The value.
        value: Expr,
    },
    /// `name: annotation`; a value stands in an [`Action::Assign`] before it.
    Annotate {
        /// The name.
        name: String,
        /// The annotation; text where the module postpones annotations.
        annotation: Expr,
    },
    /// A class definition.
    Class(Class),
    /// A function definition.
    Function(Function),
    /// Something that can bind names or change the namespace in ways that are not followed.
    Opaque {
        /// What it is, for people.
        why: String,
    },
}

/// A class definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    /// Its name.
    pub name: String,
    /// Its bases, in order.
    pub bases: Vec<Expr>,
    /// Its keywords; `None` for `**arguments`.
    pub keywords: Vec<(Option<String>, Expr)>,
    /// Its decorators, outermost first.
    pub decorators: Vec<Expr>,
    /// Its body.
    pub body: Vec<Statement>,
}

/// A function definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Its decorators, outermost first.
    pub decorators: Vec<Expr>,
    /// Its parameters and what it returns.
    pub lambda: Lambda,
    /// Whether its body assigns `_value_` of something.
    #[serde(default)]
    pub assigns_value: bool,
}

/// Parameters and the one expression that is returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lambda {
    /// The parameters, in order.
    pub parameters: Vec<Parameter>,
    /// What is returned; unresolved where the body is more than `return` and a doc string.
    pub returns: Expr,
}

/// A parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Which arguments it takes.
    pub kind: ParameterKind,
    /// Its default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Expr>,
}

/// Which arguments a parameter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterKind {
    /// By position or by name.
    Plain,
    /// By name only.
    Keyword,
    /// `*name`: the rest by position.
    Rest,
    /// `**name`: the rest by name.
    RestByName,
}

/// An expression.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expr {
    /// A constant.
    Constant(Value),
    /// A name.
    Name(String),
    /// `object.name`.
    Attribute(Box<Expr>, String),
    /// A call.
    Call(Box<Call>),
    /// `(a, b)`.
    Tuple(Vec<Expr>),
    /// `[a, b]`.
    List(Vec<Expr>),
    /// `{a, b}`.
    Set(Vec<Expr>),
    /// `{a: b}`; a pair without a key is `**b`.
    Dict(Vec<(Option<Expr>, Expr)>),
    /// `a | b | c`: operands of one operator, applied from the left.
    Operation(Operator, Vec<Expr>),
    /// `-a`, `+a`, `~a`, `not a`.
    Unary(Unary, Box<Expr>),
    /// The parts of an f-string: constants and [`Expr::Format`].
    Join(Vec<Expr>),
    /// `{a!r}` in an f-string.
    Format(Box<Expr>, Conversion),
    /// `a[b]`.
    Subscript(Box<Expr>, Box<Expr>),
    /// `*a`.
    Starred(Box<Expr>),
    /// `lambda a: b`.
    Lambda(Box<Lambda>),
    /// `[element for name in iterable]`.
    Comprehension(Box<Comprehension>),
    /// What is not understood, with the reason.
    Unresolved(String),
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// What is called.
    pub function: Expr,
    /// Arguments by position; `*a` is [`Expr::Starred`].
    pub arguments: Vec<Expr>,
    /// Arguments by name; `None` for `**a`.
    pub keywords: Vec<(Option<String>, Expr)>,
}

/// A comprehension with one `for` and no `if`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comprehension {
    /// What it makes.
    pub makes: Makes,
    /// Each element.
    pub element: Expr,
    /// The names bound per element: one, or those of a tuple.
    pub names: Vec<String>,
    /// What is gone through.
    pub iterable: Expr,
}

/// What a comprehension makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Makes {
    /// A list.
    List,
    /// A set.
    Set,
    /// A generator.
    Generator,
}

/// A binary operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operator {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`
    Divide,
    /// `//`
    FloorDivide,
    /// `%`
    Remainder,
    /// `**`
    Power,
    /// `@`
    MatrixMultiply,
    /// `<<`
    ShiftLeft,
    /// `>>`
    ShiftRight,
    /// `|`
    Or,
    /// `^`
    Xor,
    /// `&`
    And,
}

/// A unary operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unary {
    /// `-`
    Minus,
    /// `+`
    Plus,
    /// `~`
    Invert,
    /// `not`
    Not,
}

/// What an f-string does to a part before it joins it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conversion {
    /// `format(a)`.
    None,
    /// `str(a)`.
    Str,
    /// `repr(a)`, `ascii(a)`, or a format specification.
    Other,
}

impl Expr {
    /// Returns an unresolved expression, with the reason.
    pub fn unresolved(why: impl Into<String>) -> Self {
        Self::Unresolved(why.into())
    }

    /// Returns a text constant.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Constant(Value::str(text))
    }

    /// Returns the expression as people would write it, shortened: for reasons and names of bases.
    pub fn sketch(&self) -> String {
        match self {
            Self::Constant(value) => value.repr().chars().take(60).collect(),
            Self::Name(name) => name.clone(),
            Self::Attribute(object, name) => format!("{}.{name}", object.sketch()),
            Self::Call(call) => format!("{}(…)", call.function.sketch()),
            Self::Subscript(object, _) => format!("{}[…]", object.sketch()),
            Self::Unresolved(why) => format!("<{why}>"),
            Self::Tuple(_) => "(…)".to_owned(),
            Self::List(_) => "[…]".to_owned(),
            Self::Set(_) | Self::Dict(_) => "{…}".to_owned(),
            Self::Operation(..) | Self::Unary(..) => "an operation".to_owned(),
            Self::Join(_) | Self::Format(..) => "an f-string".to_owned(),
            Self::Starred(inner) => format!("*{}", inner.sketch()),
            Self::Lambda(_) => "a lambda".to_owned(),
            Self::Comprehension(_) => "a comprehension".to_owned(),
        }
    }
}

/// Returns `name` as Python stores it inside a class: `__x` becomes `_Class__x` (language reference, 6.2.1).
pub(crate) fn mangle(class: Option<&str>, name: &str) -> String {
    match class.map(|class| class.trim_start_matches('_')) {
        Some(class) if !class.is_empty() && name.starts_with("__") && !name.ends_with("__") && !name.contains('.') => {
            format!("_{class}{name}")
        }
        _ => name.to_owned(),
    }
}
