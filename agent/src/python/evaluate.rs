//! What an expression stands for, as far as text alone determines it.
//!
//! Nothing is executed: names are followed to their definitions, constants are computed, members of
//! enums are known, calls of functions that only return an expression are followed, everything else is
//! *unresolved* with the reason. Depth and steps are bounded.

mod attributes;
mod calls;
mod names;
mod operators;

use attributes::member;
pub(super) use calls::{to_integer, to_text};
pub(super) use operators::{equal, float, integer};

use super::enums::EnumInfo;
use super::ir::{Conversion, Expr, Lambda, Makes};
use super::link::{ClassRef, Project};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use unstale_protocol::value::Value;

/// Deepest chain of definitions that is followed.
const MAX_DEPTH: u32 = 60;

/// Most expressions computed for one module.
const MAX_STEPS: u32 = 2_000_000;

/// Most items of one computed sequence.
pub(super) const MAX_ITEMS: usize = 20_000;

/// What an expression stands for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Thing {
    /// Plain data.
    Value(Value),
    /// A tuple, list or set with parts that are not all plain data.
    Sequence(Kind, Vec<Thing>),
    /// A dict.
    Mapping(Vec<(Thing, Thing)>),
    /// A module, in the project or not.
    Module(String),
    /// Something of a module that is not in the project, by its dotted name.
    External(String),
    /// A class of the project.
    Class(ClassRef),
    /// An enum made by a call: `Enum("E", "A B")`.
    Made(Rc<EnumInfo>),
    /// A member of an enum.
    Member(Rc<EnumInfo>, String),
    /// A function whose result is an expression.
    Function(Rc<Function>),
    /// The result of calling a class or something external.
    Instance(Rc<Instance>),
    /// `of[arguments]`.
    Generic(Box<Thing>, Vec<Thing>),
    /// `A | B` of types.
    Union(Vec<Thing>),
    /// An attribute that waits to be called: `"a".upper`.
    Method(Box<Thing>, String),
    /// Not determined by text, with the reason.
    Unresolved(String),
}

/// What a sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tuple,
    List,
    Set,
}

/// A function and where it was made.
#[derive(Debug, PartialEq)]
pub(super) struct Function {
    pub(super) module: Rc<str>,
    pub(super) lambda: Lambda,
    pub(super) locals: Locals,
}

/// A call that was not followed.
#[derive(Debug, PartialEq)]
pub(super) struct Instance {
    pub(super) of: Thing,
    pub(super) arguments: Vec<Thing>,
    pub(super) keywords: Vec<(String, Thing)>,
    /// Where it stands, to read text in annotations.
    pub(super) module: Rc<str>,
}

impl Instance {
    pub(super) fn keyword(&self, name: &str) -> Option<&Thing> {
        self.keywords.iter().find(|(keyword, _)| keyword == name).map(|(_, thing)| thing)
    }
}

pub(super) type Locals = Rc<BTreeMap<String, Thing>>;

/// Where a name is looked up.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) module: Rc<str>,
    /// The statement of the module's body that is being executed; `None` once all of it has been.
    pub(super) before: Option<usize>,
    /// The class whose body is being executed, and the statement in it.
    pub(super) class: Option<(ClassRef, usize)>,
    pub(super) locals: Locals,
}

impl Scope {
    /// Returns the scope of a function in `module`: all of its body has been executed.
    pub(super) fn late(module: &Rc<str>) -> Self {
        Self { module: module.clone(), before: None, class: None, locals: Locals::default() }
    }

    /// Returns the scope at statement `index` of the body of `class`.
    pub(super) fn in_class(class: &ClassRef, index: usize) -> Self {
        Self {
            module: class.module.clone(),
            before: class.path.first().copied(),
            class: Some((class.clone(), index)),
            locals: Locals::default(),
        }
    }
}

pub(super) fn unresolved(why: impl Into<String>) -> Thing {
    Thing::Unresolved(why.into())
}

/// Computes what expressions stand for, and remembers which modules it missed.
#[derive(Debug)]
pub(super) struct Evaluator<'p> {
    pub(super) project: &'p Project,
    missing: RefCell<BTreeSet<String>>,
    depth: Cell<u32>,
    steps: Cell<u32>,
    pub(super) enums: RefCell<BTreeMap<ClassRef, Option<Rc<EnumInfo>>>>,
    assigned: RefCell<BTreeMap<(Rc<str>, usize), Thing>>,
}

impl<'p> Evaluator<'p> {
    pub(super) fn new(project: &'p Project) -> Self {
        Self {
            project,
            missing: RefCell::default(),
            depth: Cell::new(0),
            steps: Cell::new(0),
            enums: RefCell::default(),
            assigned: RefCell::default(),
        }
    }

    pub(super) fn minor(&self) -> u8 {
        self.project.python().minor
    }

    /// Notes a module whose summary would help, unless its meaning is built in here.
    pub(super) fn miss(&self, module: &str) {
        let root = module.split('.').next().unwrap_or(module);
        if !is_built_in(root) && !self.project.contains(module) && !module.is_empty() {
            self.missing.borrow_mut().insert(module.to_owned());
        }
    }

    pub(super) fn into_missing(self) -> BTreeSet<String> {
        self.missing.into_inner()
    }

    /// Runs `compute` one level deeper, unless a bound is reached.
    pub(super) fn deeper(&self, compute: impl FnOnce() -> Thing) -> Thing {
        let (depth, steps) = (self.depth.get(), self.steps.get());
        if depth >= MAX_DEPTH {
            return unresolved("definitions that lead too far");
        }
        if steps >= MAX_STEPS {
            return unresolved("too much to compute");
        }
        self.depth.set(depth + 1);
        self.steps.set(steps + 1);
        let thing = compute();
        self.depth.set(depth);
        thing
    }

    /// Returns what `expr` stands for in `scope`.
    pub(super) fn eval(&self, expr: &Expr, scope: &Scope) -> Thing {
        self.deeper(|| match expr {
            Expr::Constant(value) => Thing::Value(value.clone()),
            Expr::Name(name) => self.name(name, scope),
            Expr::Attribute(object, name) => {
                let object = self.eval(object, scope);
                self.attribute(&object, name)
            }
            Expr::Call(call) => self.call_expr(call, scope),
            Expr::Tuple(items) => self.sequence(Kind::Tuple, items, scope),
            Expr::List(items) => self.sequence(Kind::List, items, scope),
            Expr::Set(items) => self.sequence(Kind::Set, items, scope),
            Expr::Dict(pairs) => self.dict(pairs, scope),
            Expr::Operation(operator, operands) => {
                let things: Vec<Thing> = operands.iter().map(|operand| self.eval(operand, scope)).collect();
                let mut things = things.into_iter();
                let first = things.next().unwrap_or_else(|| unresolved("an operation"));
                things.fold(first, |left, right| operators::binary(*operator, left, right))
            }
            Expr::Unary(operator, operand) => operators::unary(*operator, self.eval(operand, scope)),
            Expr::Join(parts) => self.join(parts, scope),
            Expr::Format(..) => unresolved("an f-string"),
            Expr::Subscript(object, index) => self.subscript(object, index, scope),
            Expr::Starred(inner) => unresolved(format!("*{}", inner.sketch())),
            Expr::Lambda(lambda) => Thing::Function(Rc::new(Function {
                module: scope.module.clone(),
                lambda: (**lambda).clone(),
                locals: scope.locals.clone(),
            })),
            Expr::Comprehension(made) => {
                let Some(items) = self.items(&self.eval(&made.iterable, scope)) else {
                    return unresolved(format!("goes through {}", made.iterable.sketch()));
                };
                let mut inner = scope.clone();
                let elements = items.into_iter().map(|item| {
                    let locals = Rc::make_mut(&mut inner.locals);
                    match made.names.as_slice() {
                        [only] => drop(locals.insert(only.clone(), item)),
                        names => {
                            let parts = self.items(&item).unwrap_or_default();
                            for (index, name) in names.iter().enumerate() {
                                let part = parts.get(index).cloned().unwrap_or_else(|| unresolved("an unpacked part"));
                                locals.insert(name.clone(), part);
                            }
                        }
                    }
                    self.eval(&made.element, &inner)
                });
                let kind = if made.makes == Makes::Set { Kind::Set } else { Kind::List };
                Thing::Sequence(kind, elements.collect())
            }
            Expr::Unresolved(why) => unresolved(why.clone()),
        })
    }

    fn sequence(&self, kind: Kind, items: &[Expr], scope: &Scope) -> Thing {
        match self.arguments(items, scope) {
            Some(things) => Thing::Sequence(kind, things),
            None => unresolved("unpacks what is not known"),
        }
    }

    /// Evaluates items or arguments, stars unpacked; `None` where one cannot be.
    pub(super) fn arguments(&self, items: &[Expr], scope: &Scope) -> Option<Vec<Thing>> {
        let mut things = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Expr::Starred(inner) => things.extend(self.items(&self.eval(inner, scope))?),
                _ => things.push(self.eval(item, scope)),
            }
            if things.len() > MAX_ITEMS {
                return None;
            }
        }
        Some(things)
    }

    fn dict(&self, pairs: &[(Option<Expr>, Expr)], scope: &Scope) -> Thing {
        let mut things: Vec<(Thing, Thing)> = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            match key {
                Some(key) => things.push((self.eval(key, scope), self.eval(value, scope))),
                None => match self.eval(value, scope) {
                    Thing::Mapping(inner) => things.extend(inner),
                    _ => return unresolved("unpacks what is not known"),
                },
            }
        }
        Thing::Mapping(things)
    }

    fn join(&self, parts: &[Expr], scope: &Scope) -> Thing {
        let mut text = String::new();
        for part in parts {
            let piece = match part {
                Expr::Constant(Value::Str(piece)) => Some(piece.clone()),
                Expr::Format(inner, Conversion::None | Conversion::Str) => match self.eval(inner, scope) {
                    Thing::Value(value) => to_text(&value),
                    _ => None,
                },
                _ => None,
            };
            let Some(piece) = piece else {
                return unresolved("an f-string of what is not known");
            };
            text.push_str(&piece);
        }
        Thing::Value(Value::Str(text))
    }

    fn subscript(&self, object: &Expr, index: &Expr, scope: &Scope) -> Thing {
        let of = self.eval(object, scope);
        let key = self.eval(index, scope);
        if let (Some(info), Thing::Value(Value::Str(name))) = (self.enum_of(&of), &key) {
            return member(&info, name);
        }
        match (&of, &key) {
            (Thing::Mapping(pairs), key) => match pairs.iter().rev().find(|(candidate, _)| candidate == key) {
                Some((_, value)) => value.clone(),
                None => unresolved(format!("an item of {}", object.sketch())),
            },
            (Thing::Sequence(Kind::Tuple | Kind::List, _) | Thing::Value(Value::Tuple(_) | Value::List(_)), _) => {
                let items = self.items(&of).unwrap_or_default();
                let Thing::Value(Value::Int(number)) = &key else {
                    return unresolved("an item by what is not known");
                };
                let index = i64::try_from(number).ok().map(|number| {
                    if number < 0 { number + i64::try_from(items.len()).unwrap_or(i64::MAX) } else { number }
                });
                let item = index.and_then(|index| usize::try_from(index).ok()).and_then(|index| items.get(index));
                item.cloned().unwrap_or_else(|| unresolved("an item that does not exist"))
            }
            (Thing::External(_) | Thing::Class(_), _) => {
                let arguments = match key {
                    Thing::Sequence(Kind::Tuple, items) => items,
                    Thing::Value(Value::Tuple(items)) => items.into_iter().map(Thing::Value).collect(),
                    other => vec![other],
                };
                Thing::Generic(Box::new(of), arguments)
            }
            _ => unresolved(format!("an item of {}", object.sketch())),
        }
    }

    /// Returns the plain data that a thing is; what is none is unresolved inside it.
    pub(super) fn value(&self, thing: &Thing) -> Value {
        self.value_at(thing, 0)
    }

    fn value_at(&self, thing: &Thing, depth: usize) -> Value {
        if depth > unstale_protocol::value::MAX_DEPTH {
            return Value::unresolved("nested too deeply");
        }
        match thing {
            Thing::Value(value) => value.clone(),
            Thing::Sequence(kind, items) => {
                let mut values: Vec<Value> = items.iter().map(|item| self.value_at(item, depth + 1)).collect();
                match kind {
                    Kind::Tuple => Value::Tuple(values),
                    Kind::List => Value::List(values),
                    Kind::Set => {
                        values.sort();
                        values.dedup();
                        Value::Set(values)
                    }
                }
            }
            Thing::Mapping(pairs) => {
                let pairs =
                    pairs.iter().map(|(key, value)| (self.value_at(key, depth + 1), self.value_at(value, depth + 1)));
                Value::Dict(pairs.collect())
            }
            Thing::Unresolved(why) => Value::unresolved(why.clone()),
            Thing::External(name) => Value::unresolved(format!("{name}, which is not read")),
            Thing::Module(name) => Value::unresolved(format!("the module {name}")),
            Thing::Class(_) | Thing::Made(_) | Thing::Generic(..) | Thing::Union(_) => Value::unresolved("a class"),
            Thing::Member(..) => Value::unresolved("a member of an enum"),
            Thing::Function(_) | Thing::Method(..) => Value::unresolved("a function"),
            Thing::Instance(instance) => Value::unresolved(format!("calls {}", self.title(&instance.of))),
        }
    }

    /// Returns a name for people.
    pub(super) fn title(&self, thing: &Thing) -> String {
        match thing {
            Thing::External(name) | Thing::Module(name) => name.strip_prefix("builtins.").unwrap_or(name).to_owned(),
            Thing::Class(class) => class.qualname(self.project),
            Thing::Made(info) => info.name.qualname.clone(),
            Thing::Unresolved(why) => why.clone(),
            _ => "something that is not known".to_owned(),
        }
    }
}

/// Tells whether what matters of a top-level package is built in here, so that its text is not asked for.
pub(super) fn is_built_in(root: &str) -> bool {
    matches!(
        root,
        "builtins"
            | "enum"
            | "typing"
            | "typing_extensions"
            | "collections"
            | "functools"
            | "dataclasses"
            | "abc"
            | "datetime"
            | "decimal"
            | "uuid"
            | "os"
            | "sys"
            | "re"
            | "json"
            | "logging"
            | "pathlib"
            | "itertools"
            | "operator"
            | "string"
            | "types"
            | "time"
            | "math"
            | "random"
            | "hashlib"
            | "http"
            | "signal"
            | "socket"
            | "contextlib"
            | "copy"
            | "inspect"
            | "warnings"
            | "threading"
            | "asyncio"
            | "subprocess"
            | "secrets"
            | "ipaddress"
            | "fractions"
            | "numbers"
            | "zoneinfo"
            | "calendar"
            | "base64"
            | "io"
            | "struct"
            | "__future__"
            | "sqlalchemy"
            | "sqlmodel"
            | "flask_sqlalchemy"
            | "django"
            | "pydantic"
            | "strenum"
            | "backports"
            | "six"
            | "celery"
            | "attr"
            | "attrs"
    )
}
