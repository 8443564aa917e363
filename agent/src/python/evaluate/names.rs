//! Names: who bound them, in which order, under which condition.

use super::super::ir::Action;
use super::super::link::{ClassRef, ModuleKind, absolute, bound_names, candidates};
use super::{Evaluator, Function, Locals, Scope, Thing, calls, is_built_in, unresolved};
use std::rc::Rc;
use unstale_protocol::value::Value;

impl Evaluator<'_> {
    /// Follows a name.
    pub(in super::super) fn name(&self, name: &str, scope: &Scope) -> Thing {
        if let Some(thing) = scope.locals.get(name) {
            return thing.clone();
        }
        if let Some((class, before)) = &scope.class
            && let Some(definition) = self.project.class(class)
        {
            let binding: Vec<usize> = definition
                .body
                .iter()
                .enumerate()
                .take(*before)
                .filter(|(_, statement)| bound_names(&statement.action).contains(&name))
                .map(|(index, _)| index)
                .collect();
            if !binding.is_empty() {
                return self.class_attribute(class, &binding, name);
            }
        }
        self.module_name(&scope.module, name, scope.before)
            .or_else(|| calls::is_builtin(name).then(|| Thing::External(format!("builtins.{name}"))))
            .unwrap_or_else(|| unresolved(format!("the name {name}, which {} does not define", scope.module)))
    }

    /// Returns what the statements `binding` of the body of `class` bind `name` to.
    pub(in super::super) fn class_attribute(&self, class: &ClassRef, binding: &[usize], name: &str) -> Thing {
        let Some(definition) = self.project.class(class) else {
            return unresolved("a class that is gone");
        };
        let found = candidates(self.project, &definition.body, binding, None);
        let things = found.into_iter().filter_map(|index| {
            let statement = definition.body.get(index)?;
            let scope = Scope::in_class(class, index);
            Some(match &statement.action {
                Action::Class(_) => Thing::Class(class.nested(index)),
                action => self.action(action, name, &scope),
            })
        });
        self.agree(things.collect(), name)
    }

    /// Follows a name of a module; `None` where nothing binds it.
    pub(in super::super) fn module_name(&self, module: &Rc<str>, name: &str, before: Option<usize>) -> Option<Thing> {
        let found = self.project.module(module)?;
        let indices = found.bindings(self.project, name, before);
        if indices.is_empty() {
            return self.star(module, name);
        }
        let things = indices.into_iter().filter_map(|index| {
            let statement = found.summary.body.get(index)?;
            if matches!(statement.action, Action::Class(_)) {
                return Some(Thing::Class(ClassRef { module: module.clone(), path: [index].into() }));
            }
            let key = (module.clone(), index);
            if let Action::Assign { .. } = statement.action
                && let Some(thing) = self.assigned.borrow().get(&key)
            {
                return Some(thing.clone());
            }
            let scope = Scope { before: Some(index), ..Scope::late(module) };
            let thing = self.deeper(|| self.action(&statement.action, name, &scope));
            if matches!(statement.action, Action::Assign { .. }) && !matches!(thing, Thing::Unresolved(_)) {
                self.assigned.borrow_mut().insert(key, thing.clone());
            }
            Some(thing)
        });
        Some(self.agree(things.collect(), name))
    }

    /// Returns what a statement binds `name` to.
    fn action(&self, action: &Action, name: &str, scope: &Scope) -> Thing {
        match action {
            Action::Import { module, alias } => match alias {
                Some(_) => Thing::Module(module.clone()),
                None => Thing::Module(module.split('.').next().unwrap_or(module).to_owned()),
            },
            Action::ImportFrom { level, module, names } => {
                let original = names.iter().rev().find(|(_, bound)| bound == name).map(|(name, _)| name.as_str());
                match (self.absolute(scope, *level, module), original) {
                    // A package that imports from itself means its submodule.
                    (Some(module), Some(original)) if *module == *scope.module => {
                        let submodule = format!("{module}.{original}");
                        self.miss(&submodule);
                        Thing::Module(submodule)
                    }
                    (Some(module), Some(original)) => self.member_of_module(&module, original),
                    _ => unresolved("an import that leads out of its package"),
                }
            }
            Action::Assign { value, .. } => self.eval(value, scope),
            Action::Function(function) => {
                let harmless = function.decorators.iter().all(|decorator| {
                    let sketch = decorator.sketch();
                    let last = sketch.trim_end_matches("(…)").rsplit('.').next().unwrap_or("").to_owned();
                    matches!(last.as_str(), "staticmethod" | "lru_cache" | "cache" | "no_type_check")
                });
                if !harmless {
                    return unresolved(format!("the decorated function {name}"));
                }
                Thing::Function(Rc::new(Function {
                    module: scope.module.clone(),
                    lambda: function.lambda.clone(),
                    locals: Locals::default(),
                }))
            }
            Action::Class(_) | Action::Annotate { .. } | Action::Opaque { .. } => {
                unresolved(format!("the name {name}"))
            }
        }
    }

    pub(in super::super) fn absolute(&self, scope: &Scope, level: u32, module: &str) -> Option<String> {
        let package = self.project.module(&scope.module).is_some_and(|found| found.is_package);
        let kind = if package { ModuleKind::Package } else { ModuleKind::Module };
        absolute(&scope.module, kind, level, module)
    }

    /// Chooses among definitions of which any may be in force.
    fn agree(&self, mut things: Vec<Thing>, name: &str) -> Thing {
        things.dedup();
        if things.len() > 1 {
            // What the standard library of this version lacks was not imported; what it has, was.
            things.retain(|thing| !matches!(thing, Thing::External(external) if !self.exists(external)));
            if let Some(at) =
                things.iter().position(|thing| matches!(thing, Thing::External(name) if name.starts_with("enum.")))
            {
                return things.swap_remove(at);
            }
            // `try: import x` / `except ImportError: x = None`.
            if things.iter().any(|thing| !matches!(thing, Thing::Value(_))) {
                things.retain(|thing| !matches!(thing, Thing::Value(Value::None)));
            }
            things.dedup();
        }
        match (things.pop(), things.is_empty()) {
            (Some(only), true) => only,
            (None, _) => unresolved(format!("the name {name}, which this Python version does not define")),
            (Some(_), false) => unresolved(format!("the name {name}, which depends on a condition")),
        }
    }

    /// Tells whether the standard library's `enum` has a name in this Python version.
    fn exists(&self, external: &str) -> bool {
        match external.strip_prefix("enum.") {
            Some("StrEnum" | "ReprEnum" | "member" | "nonmember" | "verify" | "property") => self.minor() >= 11,
            _ => true,
        }
    }

    fn star(&self, module: &Rc<str>, name: &str) -> Option<Thing> {
        let found = self.project.module(module)?;
        if name.starts_with('_') {
            return None;
        }
        let scope = Scope::late(module);
        let mut doubt = None;
        for (_, level, from) in found.stars.iter().rev() {
            let Some(from) = self.absolute(&scope, *level, from) else {
                continue;
            };
            if from == **module {
                continue;
            }
            if self.project.contains(&from) {
                let from: Rc<str> = from.as_str().into();
                let thing = self.deeper(|| self.module_name(&from, name, None).unwrap_or(Thing::Union(Vec::new())));
                if thing != Thing::Union(Vec::new()) {
                    return Some(thing);
                }
            } else if is_built_in(from.split('.').next().unwrap_or(&from)) {
                if calls::is_exported(&from, name) {
                    return Some(Thing::External(format!("{from}.{name}")));
                }
            } else {
                self.miss(&from);
                doubt = Some(unresolved(format!("the name {name}, which may come from {from}")));
            }
        }
        doubt.filter(|_| !calls::is_builtin(name))
    }

    /// Returns `name` of a module: defined there, imported there, or a submodule.
    pub(in super::super) fn member_of_module(&self, module: &str, name: &str) -> Thing {
        let submodule = format!("{module}.{name}");
        let Some(found) = self.project.module(module) else {
            if self.project.contains(&submodule) {
                return Thing::Module(submodule);
            }
            self.miss(module);
            return Thing::External(submodule);
        };
        let key: Rc<str> = module.into();
        let thing = self.deeper(|| self.module_name(&key, name, None).unwrap_or(Thing::Union(Vec::new())));
        if thing != Thing::Union(Vec::new()) {
            return thing;
        }
        if self.project.contains(&submodule) {
            return Thing::Module(submodule);
        }
        if found.is_package {
            self.miss(&submodule);
            return Thing::Module(submodule);
        }
        unresolved(format!("the name {name}, which {module} does not define"))
    }
}
