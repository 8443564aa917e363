//! An app's modules joined: who defines the name that another module imports.
//!
//! The project holds summaries only. A module that is not in it, and that would help, is named in
//! [`Evaluated::missing`]: the caller looks it up, inserts it and asks again.

use super::bindings::{self, MappedColumns};
use super::enums::{self, DefinedEnum};
use super::evaluate::Evaluator;
use super::ir::{Action, Branch, Class, Statement, Summary};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use unstale_protocol::binding::Binding;
use unstale_protocol::ids::PythonVersion;

/// The modules of one app under one Python version.
#[derive(Clone, Debug)]
pub struct Project {
    python: PythonVersion,
    modules: BTreeMap<String, Module>,
}

#[derive(Clone, Debug)]
pub(super) struct Module {
    pub(super) is_package: bool,
    pub(super) summary: Arc<Summary>,
    /// Statements of the body that bind each name.
    names: BTreeMap<String, Vec<usize>>,
    /// `from … import *`: statement, level, module.
    pub(super) stars: Vec<(usize, u32, String)>,
}

/// What one module defines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluated {
    /// Its enums, nested ones and base classes without members included, by qualified name.
    pub enums: Vec<DefinedEnum>,
    /// The bindings that its classes make, by class and column. Those that a child of a single-table
    /// inheritance adds bear the name of the ancestor that has the table.
    pub bindings: Vec<Binding>,
    /// Columns of its mapped classes that are surely not of an `Enum` type.
    pub mapped: Vec<MappedColumns>,
    /// Modules that are not in the project and whose summaries would help.
    pub missing: BTreeSet<String>,
}

impl Project {
    /// Returns a project without modules.
    pub fn new(python: PythonVersion) -> Self {
        Self { python, modules: BTreeMap::new() }
    }

    /// Adds a module, or replaces one.
    pub fn insert(&mut self, name: impl Into<String>, kind: ModuleKind, summary: Arc<Summary>) {
        let mut names: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut stars = Vec::new();
        for (index, statement) in summary.body.iter().enumerate() {
            for name in bound_names(&statement.action) {
                names.entry(name.to_owned()).or_default().push(index);
            }
            if let Action::ImportFrom { level, module, names } = &statement.action
                && names.iter().any(|(name, _)| name == "*")
            {
                stars.push((index, *level, module.clone()));
            }
        }
        let is_package = kind == ModuleKind::Package;
        self.modules.insert(name.into(), Module { is_package, summary, names, stars });
    }

    /// Tells whether the module is in the project.
    pub fn contains(&self, name: &str) -> bool {
        self.modules.contains_key(name)
    }

    /// Computes what `module` defines. A module that is not in the project defines nothing and is missing.
    pub fn definitions(&self, module: &str) -> Evaluated {
        let evaluator = Evaluator::new(self);
        let mut evaluated = if self.contains(module) {
            let (bindings, mapped) = bindings::of_module(&evaluator, module);
            Evaluated { enums: enums::of_module(&evaluator, module), bindings, mapped, missing: BTreeSet::new() }
        } else {
            evaluator.miss(module);
            Evaluated::default()
        };
        evaluated.missing = evaluator.into_missing();
        evaluated
    }

    /// Returns the Python version.
    pub fn python(&self) -> PythonVersion {
        self.python
    }

    pub(super) fn module(&self, name: &str) -> Option<&Module> {
        self.modules.get(name)
    }

    /// Tells whether `branch` is taken on this Python version; `Sometimes` may be.
    pub(super) fn is_taken(&self, branch: Branch) -> bool {
        match branch {
            Branch::Always | Branch::Sometimes => true,
            Branch::Python { since, below } => (since..below).contains(&self.python.minor),
        }
    }

    /// Returns the class at `path`: indices into bodies, outermost first.
    pub(super) fn class(&self, class: &ClassRef) -> Option<&Class> {
        let mut body = &self.module(&class.module)?.summary.body;
        let mut found = None;
        for index in class.path.iter() {
            let Action::Class(class) = &body.get(*index)?.action else {
                return None;
            };
            body = &class.body;
            found = Some(class);
        }
        found
    }
}

/// Whether a module is a package: relative imports start elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// A plain module.
    Module,
    /// An `__init__`.
    Package,
}

impl Module {
    /// Returns the statements that may have bound `name` when statement `before` is reached, or at any
    /// time where `before` is `None` or nothing before it binds the name.
    pub(super) fn bindings(&self, project: &Project, name: &str, before: Option<usize>) -> Vec<usize> {
        let Some(indices) = self.names.get(name) else {
            return Vec::new();
        };
        candidates(project, &self.summary.body, indices, before)
    }
}

/// Returns those of `indices` whose binding may be in force before statement `before`.
pub(super) fn candidates(
    project: &Project,
    body: &[Statement],
    indices: &[usize],
    before: Option<usize>,
) -> Vec<usize> {
    let last_first = |limit: usize| {
        let mut found = Vec::new();
        for index in indices.iter().rev().filter(|index| **index < limit) {
            let Some(statement) = body.get(*index) else {
                continue;
            };
            if !project.is_taken(statement.branch) {
                continue;
            }
            found.push(*index);
            if statement.branch != Branch::Sometimes {
                break;
            }
        }
        found
    };
    let found = last_first(before.unwrap_or(usize::MAX));
    if found.is_empty() { last_first(usize::MAX) } else { found }
}

/// Returns the names that a statement binds.
pub(super) fn bound_names(action: &Action) -> Vec<&str> {
    match action {
        Action::Import { alias: Some(alias), .. } => vec![alias],
        Action::Import { module, alias: None } => vec![module.split('.').next().unwrap_or(module)],
        Action::ImportFrom { names, .. } => {
            names.iter().filter(|(name, _)| name != "*").map(|(_, bound)| bound.as_str()).collect()
        }
        Action::Assign { name, .. } => vec![name],
        Action::Class(class) => vec![&class.name],
        Action::Function(function) => vec![&function.name],
        Action::Annotate { .. } | Action::Opaque { .. } => Vec::new(),
    }
}

/// A class by its place: the indices of its definition in the bodies around it, outermost first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClassRef {
    pub(super) module: Rc<str>,
    pub(super) path: Rc<[usize]>,
}

impl ClassRef {
    pub(super) fn nested(&self, index: usize) -> Self {
        let path: Vec<usize> = self.path.iter().copied().chain([index]).collect();
        Self { module: self.module.clone(), path: path.into() }
    }

    /// Returns `__qualname__`.
    pub(super) fn qualname(&self, project: &Project) -> String {
        let mut parts = Vec::new();
        for end in 1..=self.path.len() {
            let path = self.path.get(..end).unwrap_or_default();
            let outer = Self { module: self.module.clone(), path: path.into() };
            parts.push(project.class(&outer).map_or("?", |class| class.name.as_str()));
        }
        parts.join(".")
    }
}

/// Returns the absolute name of the module that `from <level dots><module> import …` names inside
/// `inside` (PEP 328), or `None` where the dots lead out of the package.
pub fn absolute(inside: &str, kind: ModuleKind, level: u32, module: &str) -> Option<String> {
    if level == 0 {
        return Some(module.to_owned());
    }
    let mut parts: Vec<&str> = inside.split('.').collect();
    let up = if kind == ModuleKind::Package { level - 1 } else { level };
    let kept = parts.len().checked_sub(usize::try_from(up).ok()?)?;
    if kept == 0 {
        return None;
    }
    parts.truncate(kept);
    if !module.is_empty() {
        parts.push(module);
    }
    Some(parts.join("."))
}
