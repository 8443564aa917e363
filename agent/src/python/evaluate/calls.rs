//! Calls that can be followed: functions that return an expression, a few built-ins and text methods.

use super::super::enums;
use super::super::ir::{Call, ParameterKind};
use super::operators::integer;
use super::{Evaluator, Function, Instance, Kind, Locals, MAX_ITEMS, Scope, Thing, unresolved};
use num_bigint::BigInt;
use std::collections::BTreeMap;
use std::rc::Rc;
use unstale_protocol::value::Value;

impl Evaluator<'_> {
    pub(super) fn call_expr(&self, call: &Call, scope: &Scope) -> Thing {
        let function = self.eval(&call.function, scope);
        let Some(arguments) = self.arguments(&call.arguments, scope) else {
            return unresolved(format!("calls {} with arguments that are not known", call.function.sketch()));
        };
        let mut keywords = Vec::with_capacity(call.keywords.len());
        for (name, value) in &call.keywords {
            let value = self.eval(value, scope);
            match (name, value) {
                (Some(name), value) => keywords.push((name.clone(), value)),
                (None, Thing::Mapping(pairs)) => {
                    for (key, value) in pairs {
                        let Thing::Value(Value::Str(key)) = key else {
                            return unresolved(format!("calls {}", call.function.sketch()));
                        };
                        keywords.push((key, value));
                    }
                }
                (None, _) => {
                    return unresolved(format!("calls {} with arguments that are not known", call.function.sketch()));
                }
            }
        }
        if let Thing::Unresolved(_) = function {
            return unresolved(format!("calls {}", call.function.sketch()));
        }
        self.call(function, arguments, keywords, scope)
    }

    /// Calls a thing.
    pub(in super::super) fn call(
        &self,
        function: Thing,
        arguments: Vec<Thing>,
        keywords: Vec<(String, Thing)>,
        scope: &Scope,
    ) -> Thing {
        self.deeper(|| match &function {
            Thing::Function(made) => self.apply(made, arguments, keywords),
            Thing::Method(object, name) => self.method(object, name, &arguments),
            Thing::External(name) if keywords.is_empty() && name.starts_with("builtins.") => {
                let builtin = name.trim_start_matches("builtins.").to_owned();
                self.builtin(&builtin, arguments, scope)
            }
            Thing::Class(_) | Thing::Made(_) | Thing::External(_) => {
                if let Some(traits) = enums::traits_of(self, &function)
                    && let Some(thing) = enums::call(self, &function, &traits, &arguments, &keywords, scope)
                {
                    return thing;
                }
                instance(function, arguments, keywords, scope)
            }
            Thing::Generic(of, _) => instance((**of).clone(), arguments, keywords, scope),
            _ => unresolved(format!("calls {}", self.title(&function))),
        })
    }

    /// Binds the parameters and computes what is returned.
    pub(in super::super) fn apply(
        &self,
        function: &Function,
        arguments: Vec<Thing>,
        mut keywords: Vec<(String, Thing)>,
    ) -> Thing {
        let mut locals: BTreeMap<String, Thing> = (*function.locals).clone();
        let mut arguments = arguments.into_iter();
        let definition = Scope::late(&function.module);
        for parameter in &function.lambda.parameters {
            let by_name = keywords.iter().position(|(name, _)| *name == parameter.name);
            let thing = match parameter.kind {
                ParameterKind::Rest => Thing::Sequence(Kind::Tuple, arguments.by_ref().collect()),
                ParameterKind::RestByName => {
                    let rest = std::mem::take(&mut keywords);
                    let pairs = rest.into_iter().map(|(name, thing)| (Thing::Value(Value::Str(name)), thing));
                    Thing::Mapping(pairs.collect())
                }
                ParameterKind::Plain | ParameterKind::Keyword => {
                    let positional = if parameter.kind == ParameterKind::Plain { arguments.next() } else { None };
                    match (positional, by_name, &parameter.default) {
                        (Some(thing), _, _) => thing,
                        (None, Some(at), _) => keywords.swap_remove(at).1,
                        (None, None, Some(default)) => self.eval(default, &definition),
                        (None, None, None) => {
                            return unresolved("a call without a needed argument");
                        }
                    }
                }
            };
            locals.insert(parameter.name.clone(), thing);
        }
        if arguments.next().is_some() || !keywords.is_empty() {
            return unresolved("a call with too many arguments");
        }
        let scope = Scope { locals: Locals::new(locals), ..Scope::late(&function.module) };
        self.eval(&function.lambda.returns, &scope)
    }

    fn builtin(&self, name: &str, arguments: Vec<Thing>, scope: &Scope) -> Thing {
        let why = || unresolved(format!("calls {name}"));
        match (name, arguments.as_slice()) {
            ("str", [Thing::Value(value)]) => to_text(value).map_or_else(why, |text| Thing::Value(Value::Str(text))),
            ("str", []) => Thing::Value(Value::str("")),
            ("str", [Thing::Member(info, member)]) => match info.text_of_member(member) {
                Some(text) => Thing::Value(Value::Str(text)),
                None => why(),
            },
            ("int", [Thing::Value(value)]) => {
                to_integer(value).map_or_else(why, |number| Thing::Value(Value::Int(number)))
            }
            ("float", [Thing::Value(value)]) => match super::operators::float(value) {
                Some(number) => Thing::Value(Value::float(number)),
                None => why(),
            },
            ("list" | "tuple", []) => Thing::Sequence(sequence_kind(name), Vec::new()),
            ("list" | "tuple", [only]) => match self.items(only) {
                Some(items) => Thing::Sequence(sequence_kind(name), items),
                None => why(),
            },
            ("map", [function, sequence]) => match self.items(sequence) {
                Some(items) => {
                    let results = items.into_iter().map(|item| self.call(function.clone(), vec![item], vec![], scope));
                    Thing::Sequence(Kind::List, results.collect())
                }
                None => why(),
            },
            ("len", [only]) => match (only, self.items(only)) {
                (_, Some(items)) => Thing::Value(Value::int(items.len())),
                (Thing::Value(Value::Str(text)), None) => Thing::Value(Value::int(text.chars().count())),
                _ => why(),
            },
            ("range", bounds) => range(bounds).unwrap_or_else(why),
            ("enumerate", [only]) => match self.items(only) {
                Some(items) => {
                    let pairs = items
                        .into_iter()
                        .enumerate()
                        .map(|(index, item)| Thing::Sequence(Kind::Tuple, vec![Thing::Value(Value::int(index)), item]));
                    Thing::Sequence(Kind::List, pairs.collect())
                }
                None => why(),
            },
            // A class or descriptor: kept, so that members can be told from what is none.
            ("property" | "staticmethod" | "classmethod" | "object" | "type", _) => {
                instance(Thing::External(format!("builtins.{name}")), arguments, Vec::new(), scope)
            }
            _ => why(),
        }
    }

    fn method(&self, object: &Thing, name: &str, arguments: &[Thing]) -> Thing {
        let why = || unresolved(format!("calls .{name}()"));
        match (object, name, arguments) {
            (Thing::Mapping(pairs), "keys", []) => {
                Thing::Sequence(Kind::List, pairs.iter().map(|(key, _)| key.clone()).collect())
            }
            (Thing::Mapping(pairs), "values", []) => {
                Thing::Sequence(Kind::List, pairs.iter().map(|(_, value)| value.clone()).collect())
            }
            (Thing::Mapping(pairs), "items", []) => {
                let items =
                    pairs.iter().map(|(key, value)| Thing::Sequence(Kind::Tuple, vec![key.clone(), value.clone()]));
                Thing::Sequence(Kind::List, items.collect())
            }
            (Thing::Value(Value::Str(text)), _, _) => {
                text_method(self, text, name, arguments).map_or_else(why, |text| Thing::Value(Value::Str(text)))
            }
            _ => why(),
        }
    }
}

/// Keeps a call that is not followed.
fn instance(of: Thing, arguments: Vec<Thing>, keywords: Vec<(String, Thing)>, scope: &Scope) -> Thing {
    let module = scope.module.clone();
    Thing::Instance(Rc::new(Instance { of, arguments, keywords, module }))
}

fn sequence_kind(name: &str) -> Kind {
    if name == "tuple" { Kind::Tuple } else { Kind::List }
}

fn range(bounds: &[Thing]) -> Option<Thing> {
    let number = |thing: &Thing| match thing {
        Thing::Value(value) => i64::try_from(integer(value)?).ok(),
        _ => None,
    };
    let (first, end, step) = match bounds {
        [end] => (0, number(end)?, 1),
        [first, end] => (number(first)?, number(end)?, 1),
        [first, end, step] => (number(first)?, number(end)?, number(step)?),
        _ => return None,
    };
    let step = usize::try_from(step).ok().filter(|step| *step > 0)?;
    let numbers: Vec<Thing> =
        (first..end).step_by(step).take(MAX_ITEMS + 1).map(|number| Thing::Value(Value::int(number))).collect();
    (numbers.len() <= MAX_ITEMS).then_some(Thing::Sequence(Kind::List, numbers))
}

/// Text methods, for ASCII only: beyond it the tables of the two languages may differ.
fn text_method(evaluator: &Evaluator<'_>, text: &str, name: &str, arguments: &[Thing]) -> Option<String> {
    let plain = |thing: &Thing| match thing {
        Thing::Value(Value::Str(text)) => Some(text.clone()),
        _ => None,
    };
    match (name, arguments) {
        ("replace", [from, to]) => {
            let from = plain(from).filter(|from| !from.is_empty())?;
            Some(text.replace(&from, &plain(to)?))
        }
        ("join", [list]) => {
            let list = evaluator.items(list)?;
            let parts = list.iter().map(plain).collect::<Option<Vec<_>>>()?;
            Some(parts.join(text))
        }
        ("removeprefix", [start]) => {
            let start = plain(start)?;
            Some(text.strip_prefix(&start).unwrap_or(text).to_owned())
        }
        ("removesuffix", [end]) => {
            let end = plain(end)?;
            Some(text.strip_suffix(&end).unwrap_or(text).to_owned())
        }
        (_, []) if text.is_ascii() => match name {
            "lower" | "casefold" => Some(text.to_ascii_lowercase()),
            "upper" => Some(text.to_ascii_uppercase()),
            "strip" => Some(text.trim_matches(is_space).to_owned()),
            "lstrip" => Some(text.trim_start_matches(is_space).to_owned()),
            "rstrip" => Some(text.trim_end_matches(is_space).to_owned()),
            "capitalize" => Some(capitalize(text)),
            "title" => Some(title(text)),
            "swapcase" => Some(text.chars().map(swap_case).collect()),
            _ => None,
        },
        _ => None,
    }
}

fn is_space(letter: char) -> bool {
    matches!(letter, ' ' | '\t'..='\r' | '\x1c'..='\x1f')
}

fn swap_case(letter: char) -> char {
    if letter.is_ascii_uppercase() { letter.to_ascii_lowercase() } else { letter.to_ascii_uppercase() }
}

fn capitalize(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        let rest = letters.as_str().to_ascii_lowercase();
        format!("{}{rest}", first.to_ascii_uppercase())
    })
}

fn title(text: &str) -> String {
    let mut after_letter = false;
    let letters = text.chars().map(|letter| {
        let changed = if after_letter { letter.to_ascii_lowercase() } else { letter.to_ascii_uppercase() };
        after_letter = letter.is_ascii_alphabetic();
        changed
    });
    letters.collect()
}

/// Returns `str(value)` where that is certain.
pub(in super::super) fn to_text(value: &Value) -> Option<String> {
    match value {
        Value::Str(text) => Some(text.clone()),
        Value::Int(number) => Some(number.to_string()),
        Value::Bool(true) => Some("True".to_owned()),
        Value::Bool(false) => Some("False".to_owned()),
        Value::None => Some("None".to_owned()),
        _ => None,
    }
}

/// Returns `int(value)` where that is certain.
pub(in super::super) fn to_integer(value: &Value) -> Option<BigInt> {
    match value {
        Value::Str(text) => {
            let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
            let plain = !digits.is_empty() && digits.len() < 4_000 && digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| text.parse().ok())?
        }
        other => integer(other),
    }
}

/// Tells whether a name is one of the built-ins that are known here.
pub(super) fn is_builtin(name: &str) -> bool {
    matches!(
        name,
        "str"
            | "int"
            | "float"
            | "bool"
            | "bytes"
            | "bytearray"
            | "complex"
            | "list"
            | "tuple"
            | "dict"
            | "set"
            | "frozenset"
            | "object"
            | "type"
            | "property"
            | "staticmethod"
            | "classmethod"
            | "map"
            | "len"
            | "range"
            | "sorted"
            | "reversed"
            | "enumerate"
            | "zip"
            | "filter"
            | "min"
            | "max"
            | "sum"
            | "repr"
            | "ascii"
            | "chr"
            | "ord"
            | "hash"
            | "iter"
            | "next"
            | "getattr"
            | "hasattr"
            | "setattr"
            | "isinstance"
            | "issubclass"
            | "super"
            | "vars"
            | "locals"
            | "globals"
            | "Exception"
            | "BaseException"
            | "ValueError"
            | "TypeError"
            | "KeyError"
            | "RuntimeError"
            | "LookupError"
            | "AttributeError"
            | "NotImplementedError"
            | "OSError"
    )
}

/// Tells whether `from module import *` brings `name`, for the modules whose meaning is built in here.
pub(super) fn is_exported(module: &str, name: &str) -> bool {
    match module {
        "enum" => matches!(
            name,
            "Enum"
                | "IntEnum"
                | "StrEnum"
                | "Flag"
                | "IntFlag"
                | "ReprEnum"
                | "auto"
                | "unique"
                | "member"
                | "nonmember"
                | "verify"
                | "EnumMeta"
                | "EnumType"
        ),
        "sqlalchemy" | "sqlalchemy.types" | "sqlmodel" => matches!(
            name,
            "Enum"
                | "Column"
                | "ARRAY"
                | "String"
                | "Integer"
                | "Boolean"
                | "DateTime"
                | "Text"
                | "Float"
                | "JSON"
                | "Numeric"
                | "BigInteger"
                | "Date"
                | "LargeBinary"
                | "ForeignKey"
                | "Table"
                | "MetaData"
                | "SmallInteger"
                | "Unicode"
                | "UnicodeText"
                | "Time"
                | "Interval"
                | "Uuid"
                | "SQLModel"
                | "Field"
        ),
        "sqlalchemy.orm" => {
            matches!(name, "Mapped" | "mapped_column" | "DeclarativeBase" | "declarative_base" | "relationship")
        }
        "typing" => matches!(name, "Optional" | "Union" | "Annotated" | "Literal" | "List" | "Any" | "ClassVar"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_methods_are_those_of_python() {
        assert_eq!(title("in_progress now's"), "In_Progress Now'S");
        assert_eq!(capitalize("aBC dEF"), "Abc def");
        assert_eq!("aB1".chars().map(swap_case).collect::<String>(), "Ab1");
        assert_eq!(to_integer(&Value::str("-12")), Some(BigInt::from(-12)));
        assert_eq!(to_integer(&Value::str("1_2")), None);
    }
}
