//! What an enum class inherits: data type, how `auto()` counts, what `str()` gives.

use super::super::evaluate::{Evaluator, Function, Locals, Thing};
use super::super::ir::{Action, Class};
use super::super::link::ClassRef;
use std::rc::Rc;

/// Deepest inheritance that is followed.
const MAX_BASES_DEPTH: u32 = 16;

/// What decides how members of an enum class are made.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) struct Traits {
    pub(super) flag: bool,
    pub(super) mixin: Mixin,
    pub(super) generate: Generate,
    /// Django: the last text of a tuple is a label.
    pub(super) choices: bool,
    /// Why values are not what is written, where `__new__` or `__init__` decides.
    pub(super) computed: Option<String>,
    pub(super) text: Text,
}

/// The data type that is mixed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mixin {
    None,
    Str,
    Int,
    Float,
    Tuple,
    Other(String),
}

/// What `auto()` gives.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Generate {
    /// One more than before.
    Count,
    /// The next power of two.
    Power,
    /// The name.
    Name,
    /// The name in lower case.
    LowerName,
    /// What a `_generate_next_value_` of the project returns.
    Custom(Rc<Function>),
    Unresolved(String),
}

/// What `str(member)` gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    /// `Class.NAME`.
    Qualified,
    /// `str(value)`.
    Value,
    Unknown,
}

/// Returns the traits of an enum class; `None` for what is no enum class.
pub(in super::super) fn traits_of(evaluator: &Evaluator<'_>, thing: &Thing) -> Option<Traits> {
    match thing {
        Thing::External(name) => external(name, evaluator.minor()),
        Thing::Class(class) => of_class(evaluator, class, 0),
        Thing::Made(info) => Some(info.traits.clone()),
        _ => None,
    }
}

fn external(name: &str, minor: u8) -> Option<Traits> {
    let plain = Traits {
        flag: false,
        mixin: Mixin::None,
        generate: Generate::Count,
        choices: false,
        computed: None,
        text: Text::Qualified,
    };
    // From 3.11 on these are ReprEnum, which keeps the data type's `__str__`.
    let number = if minor >= 11 { Text::Value } else { Text::Qualified };
    let django = |mixin, generate| Traits { mixin, generate, choices: true, text: Text::Value, ..plain.clone() };
    Some(match name {
        "enum.Enum" | "enum.ReprEnum" => plain,
        "enum.IntEnum" => Traits { mixin: Mixin::Int, text: number, ..plain },
        "enum.StrEnum" | "backports.strenum.StrEnum" => {
            Traits { mixin: Mixin::Str, generate: Generate::LowerName, text: Text::Value, ..plain }
        }
        "strenum.StrEnum" => Traits { mixin: Mixin::Str, generate: Generate::Name, text: Text::Value, ..plain },
        "strenum.LowercaseStrEnum" => {
            Traits { mixin: Mixin::Str, generate: Generate::LowerName, text: Text::Value, ..plain }
        }
        "enum.Flag" => Traits { flag: true, generate: Generate::Power, text: Text::Unknown, ..plain },
        "enum.IntFlag" => {
            Traits { flag: true, mixin: Mixin::Int, generate: Generate::Power, text: Text::Unknown, ..plain }
        }
        "django.db.models.TextChoices" | "django.db.models.enums.TextChoices" => django(Mixin::Str, Generate::Name),
        "django.db.models.IntegerChoices" | "django.db.models.enums.IntegerChoices" => {
            django(Mixin::Int, Generate::Count)
        }
        "django.db.models.Choices" | "django.db.models.enums.Choices" => django(Mixin::None, Generate::Count),
        _ => return None,
    })
}

/// Returns the traits of a class of the project; `None` where it is no enum.
pub(super) fn of_class(evaluator: &Evaluator<'_>, class: &ClassRef, depth: u32) -> Option<Traits> {
    let definition = evaluator.project.class(class).filter(|_| depth < MAX_BASES_DEPTH)?;
    let mut traits: Option<Traits> = None;
    let mut mixed = Mixed::default();
    for base in evaluator.bases(class) {
        let inherited = match &base {
            Thing::Class(base) => of_class(evaluator, base, depth + 1),
            other => traits_of(evaluator, other),
        };
        match (inherited, &mut traits) {
            (Some(inherited), None) => traits = Some(inherited),
            (Some(inherited), Some(first)) => {
                if first.mixin == Mixin::None {
                    first.mixin = inherited.mixin;
                }
                first.choices |= inherited.choices;
                first.computed = first.computed.take().or(inherited.computed);
            }
            // Only what stands before the enum in the method resolution order overrides it.
            (None, first) => mixed.add(evaluator, &base, first.is_none(), depth + 1),
        }
    }
    let mut traits = traits?;
    mixed.own(definition, class, true);
    if let Some(mixin) = mixed.mixin {
        traits.mixin = mixin;
    }
    if let Some(generate) = mixed.generate {
        traits.generate = generate;
    }
    if mixed.text {
        traits.text = Text::Unknown;
    }
    traits.computed = mixed.computed.or(traits.computed);
    Some(traits)
}

/// What classes that are no enums themselves bring along.
#[derive(Default)]
struct Mixed {
    mixin: Option<Mixin>,
    generate: Option<Generate>,
    computed: Option<String>,
    text: bool,
}

impl Mixed {
    fn add(&mut self, evaluator: &Evaluator<'_>, base: &Thing, first: bool, depth: u32) {
        let found = match base {
            Thing::External(name) => match name.as_str() {
                "builtins.str" => Some(Mixin::Str),
                "builtins.int" => Some(Mixin::Int),
                "builtins.float" => Some(Mixin::Float),
                "builtins.tuple" => Some(Mixin::Tuple),
                "builtins.object" | "abc.ABC" | "typing.Generic" | "typing.Protocol" => None,
                other => Some(Mixin::Other(other.trim_start_matches("builtins.").to_owned())),
            },
            Thing::Class(class) => {
                self.plain_class(evaluator, class, first, depth);
                None
            }
            other => Some(Mixin::Other(evaluator.title(other))),
        };
        if let Some(Mixin::Other(name)) = &found {
            // Nothing is known of it: it may decide values, and what `auto()` gives.
            self.text = true;
            if first {
                self.generate.get_or_insert_with(|| Generate::Unresolved(format!("inherits from {name}")));
            }
        }
        if let Some(found) = found {
            self.mixin.get_or_insert(found);
        }
    }

    fn plain_class(&mut self, evaluator: &Evaluator<'_>, class: &ClassRef, first: bool, depth: u32) {
        let Some(definition) = evaluator.project.class(class).filter(|_| depth < MAX_BASES_DEPTH) else {
            return;
        };
        if !definition.decorators.is_empty() {
            self.mixin.get_or_insert_with(|| Mixin::Other(definition.name.clone()));
        }
        self.own(definition, class, first);
        for base in evaluator.bases(class) {
            let before = self.mixin.clone();
            self.add(evaluator, &base, first, depth + 1);
            // `class Text(str)` is a data type of its own: its values are instances of it.
            if before.is_none() && self.mixin.is_some() {
                self.mixin = Some(Mixin::Other(definition.name.clone()));
            }
        }
    }

    /// Takes what the body of a class itself defines.
    fn own(&mut self, definition: &Class, class: &ClassRef, first: bool) {
        for statement in &definition.body {
            let Action::Function(function) = &statement.action else {
                continue;
            };
            match function.name.as_str() {
                "__new__" => self.computed = Some("made by __new__".to_owned()),
                "__init__" if function.assigns_value => self.computed = Some("set by __init__".to_owned()),
                "__str__" => self.text = true,
                "_generate_next_value_" if first => {
                    self.generate = Some(match &function.lambda.returns {
                        super::super::ir::Expr::Unresolved(why) => Generate::Unresolved(why.clone()),
                        _ => Generate::Custom(Rc::new(Function {
                            module: class.module.clone(),
                            lambda: function.lambda.clone(),
                            locals: Locals::default(),
                        })),
                    });
                }
                _ => {}
            }
        }
    }
}
