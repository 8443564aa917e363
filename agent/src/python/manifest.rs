//! From the summaries of a source tree to what a manifest says of it.
//!
//! Definitions depend on the worker's Python, so each enum is computed for every version that can be read,
//! and neighbouring versions that agree are joined.

use super::DefinedEnum;
use super::ir::Summary;
use super::link::{ModuleKind, Project};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use unstale_protocol::binding::{Binding, Sends};
use unstale_protocol::enumdef::EnumDef;
use unstale_protocol::ids::{EnumName, PythonVersion};
use unstale_protocol::manifest::{Entry, ManifestBinding, PythonRange, Variant};

/// The versions that definitions are computed for: 3.8 to 3.13.
const MINORS: std::ops::RangeInclusive<u8> = 8..=13;

/// Most rounds in which modules are found under another name.
const MAX_ROUNDS: usize = 8;

/// One module of a source tree.
#[derive(Clone, Debug)]
pub struct SourceModule {
    /// Whether it is a package.
    pub kind: ModuleKind,
    /// Its file relative to the app's root, without a leading `src/`.
    pub path: String,
    /// What it says.
    pub summary: Arc<Summary>,
}

/// One enum under all versions.
#[derive(Clone, Debug, PartialEq)]
pub struct EnumVariants {
    /// Its name.
    pub name: EnumName,
    /// Names of its direct bases.
    pub bases: Vec<String>,
    /// Its module's file.
    pub path: String,
    /// The line of its definition.
    pub line: u32,
    /// Definitions by version, lowest first; whether the members are known.
    pub variants: Vec<(PythonRange, EnumDef, bool)>,
}

/// What a source tree defines.
#[derive(Clone, Debug, Default)]
pub struct Built {
    /// Its enums, by name.
    pub enums: Vec<EnumVariants>,
    /// Its bindings, by column, as the newest version has them.
    pub bindings: Vec<Binding>,
    /// The same as a manifest's entries; not sorted.
    pub entries: Vec<Entry>,
    /// Modules that were not given and whose text would help.
    pub missing: BTreeSet<String>,
}

/// Computes enums and bindings of `modules`, by dotted name, under every version.
pub fn variants(modules: &BTreeMap<String, SourceModule>) -> Built {
    let mut aliases: BTreeMap<String, String> = BTreeMap::new();
    let mut runs = Vec::new();
    for minor in MINORS {
        runs.push((minor, run(modules, &mut aliases, minor)));
    }
    let mut built = Built::default();
    let mut enums: BTreeMap<EnumName, Vec<(u8, DefinedEnum)>> = BTreeMap::new();
    for (minor, run) in &mut runs {
        built.missing.append(&mut run.missing);
        for defined in run.enums.drain(..) {
            enums.entry(defined.name.clone()).or_default().push((*minor, defined));
        }
    }
    let path_of = |module: &str| modules.get(module).map(|module| module.path.clone()).unwrap_or_default();
    for (name, list) in enums {
        let Some((_, last)) = list.last() else { continue };
        let (bases, line, path) = (last.bases.clone(), last.line, path_of(&name.module));
        built.enums.push(EnumVariants { bases, line, path, variants: join(list), name });
    }
    built.bindings = agreed(runs.into_iter().map(|(_, run)| run.bindings).collect());
    for binding in &mut built.bindings {
        if let Some(name) = &mut binding.enum_name
            && let Some(real) = aliases.get(&name.module)
        {
            name.module.clone_from(real);
        }
    }
    built.entries = entries(&built, path_of);
    built
}

#[derive(Default)]
struct Run {
    enums: Vec<DefinedEnum>,
    bindings: Vec<Binding>,
    missing: BTreeSet<String>,
}

/// Computes everything for one version. A module that is imported by another name than the tree gives it,
/// because the import path starts elsewhere, is found by its path when only one file fits.
fn run(modules: &BTreeMap<String, SourceModule>, aliases: &mut BTreeMap<String, String>, minor: u8) -> Run {
    let mut project = Project::new(PythonVersion::three(minor));
    for (name, module) in modules {
        project.insert(name.clone(), module.kind, module.summary.clone());
    }
    for (alias, real) in &*aliases {
        if let Some(module) = modules.get(real) {
            project.insert(alias.clone(), module.kind, module.summary.clone());
        }
    }
    let mut run = Run::default();
    for _ in 0..MAX_ROUNDS {
        run = Run::default();
        for name in modules.keys() {
            let mut evaluated = project.definitions(name);
            run.enums.append(&mut evaluated.enums);
            run.bindings.append(&mut evaluated.bindings);
            run.missing.append(&mut evaluated.missing);
        }
        let mut found_more = false;
        for missing in &run.missing {
            if let Some((real, module)) = by_path(modules, missing)
                && !project.contains(missing)
            {
                aliases.insert(missing.clone(), real.clone());
                project.insert(missing.clone(), module.kind, module.summary.clone());
                found_more = true;
            }
        }
        if !found_more {
            break;
        }
    }
    run
}

fn by_path<'a>(modules: &'a BTreeMap<String, SourceModule>, wanted: &str) -> Option<(&'a String, &'a SourceModule)> {
    let path = wanted.replace('.', "/");
    let ends = [format!("{path}.py"), format!("{path}/__init__.py")];
    let fits = |module: &SourceModule| {
        ends.iter().any(|end| {
            module.path.strip_suffix(end.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
        })
    };
    let mut found = modules.iter().filter(|(_, module)| fits(module));
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

/// Joins neighbouring versions that agree; the first reaches from the lowest, the last beyond the highest.
fn join(list: Vec<(u8, DefinedEnum)>) -> Vec<(PythonRange, EnumDef, bool)> {
    let mut variants: Vec<(PythonRange, EnumDef, bool)> = Vec::new();
    for (minor, defined) in list {
        let version = PythonVersion::three(minor);
        match variants.last_mut() {
            Some((_, definition, known)) if *definition == defined.definition && *known == defined.members_known => {}
            other => {
                if let Some((range, ..)) = other {
                    range.below = Some(version);
                }
                variants.push((PythonRange { from: version, below: None }, defined.definition, defined.members_known));
            }
        }
    }
    variants
}

/// Takes the newest version's bindings; one whose written labels depend on the version is unresolved.
fn agreed(mut runs: Vec<Vec<Binding>>) -> Vec<Binding> {
    let Some(mut newest) = runs.pop() else { return Vec::new() };
    for binding in &mut newest {
        let others = runs.iter().flatten().filter(|other| other.column == binding.column);
        let mut others = others.filter(|other| other.sends != binding.sends || other.labels != binding.labels);
        let by_version = others.any(|other| binding.sends == Some(Sends::Labels) || other.sends != binding.sends);
        if by_version {
            let why = "labels that depend on the Python version".to_owned();
            binding.sends = Some(Sends::Unresolved { why });
        }
    }
    newest
}

fn entries(built: &Built, path_of: impl Fn(&str) -> String) -> Vec<Entry> {
    let mut entries: Vec<Entry> = built
        .enums
        .iter()
        .map(|found| Entry {
            path: found.path.clone(),
            module: found.name.module.clone(),
            qualname: found.name.qualname.clone(),
            bases: found.bases.clone(),
            variants: found
                .variants
                .iter()
                .map(|(python, definition, members_known)| Variant {
                    python: *python,
                    outline: definition.outline(),
                    members_known: *members_known,
                })
                .collect(),
            bindings: Vec::new(),
        })
        .collect();
    for binding in &built.bindings {
        let made = ManifestBinding::new(binding, path_of(&binding.column.module));
        let owner = binding.enum_name.as_ref().and_then(|name| entries.iter_mut().find(|entry| entry.name() == *name));
        match owner {
            Some(entry) => entry.bindings.push(made),
            None => entries.push(Entry {
                path: made.path.clone(),
                module: binding.column.module.clone(),
                qualname: format!("{}.{}", binding.column.class, binding.column.column),
                bases: Vec::new(),
                variants: Vec::new(),
                bindings: vec![made],
            }),
        }
    }
    entries
}

/// Returns the dotted name and kind of the module in the file `path`, relative to the app's root.
///
/// Directories count as long as they are packages (`has_init` tells whether a directory, given relative to
/// the root, holds an `__init__.py`). A file that is in no package is named by its whole path, as namespace
/// packages are. A leading `src/` is no part of the name. `None` for what cannot be imported.
pub fn module_name_of(path: &str, has_init: impl Fn(&str) -> bool) -> Option<(String, ModuleKind)> {
    let stem = path.strip_suffix(".py")?;
    let (directory, name) = stem.rsplit_once('/').unwrap_or(("", stem));
    let mut parts: Vec<&str> = Vec::new();
    if name != "__init__" {
        parts.push(name);
    }
    let mut rest = directory;
    while !rest.is_empty() && has_init(rest) {
        let (above, last) = rest.rsplit_once('/').unwrap_or(("", rest));
        parts.push(last);
        rest = above;
    }
    if rest == directory && !rest.is_empty() {
        parts.extend(without_src(rest).rsplit('/').filter(|part| !part.is_empty()));
    }
    parts.reverse();
    let fits = |part: &&str| !part.is_empty() && part.chars().all(|letter| letter.is_alphanumeric() || letter == '_');
    if parts.is_empty() || !parts.iter().all(fits) {
        return None;
    }
    let kind = if name == "__init__" { ModuleKind::Package } else { ModuleKind::Module };
    Some((parts.join("."), kind))
}

/// Returns a path without a leading `src/`.
pub fn without_src(path: &str) -> &str {
    match path.strip_prefix("src") {
        Some("") => "",
        Some(rest) => rest.strip_prefix('/').unwrap_or(path),
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::summarize;

    fn module(path: &str, text: &str) -> SourceModule {
        let kind = if path.ends_with("__init__.py") { ModuleKind::Package } else { ModuleKind::Module };
        SourceModule { kind, path: path.to_owned(), summary: Arc::new(summarize(text).unwrap()) }
    }

    #[test]
    fn modules_are_named_by_their_packages() {
        let inits = ["app", "app/models", "src/shop", "backend/web"];
        let check = |path: &str, want: Option<(&str, ModuleKind)>| {
            let found = module_name_of(path, |directory| inits.contains(&directory));
            assert_eq!(found.as_ref().map(|(name, kind)| (name.as_str(), *kind)), want, "{path}");
        };
        check("app/models/user.py", Some(("app.models.user", ModuleKind::Module)));
        check("app/__init__.py", Some(("app", ModuleKind::Package)));
        check("src/shop/enums.py", Some(("shop.enums", ModuleKind::Module)));
        check("src/loose/enums.py", Some(("loose.enums", ModuleKind::Module)));
        check("src/tool.py", Some(("tool", ModuleKind::Module)));
        check("backend/web/views.py", Some(("web.views", ModuleKind::Module)));
        check("enums.py", Some(("enums", ModuleKind::Module)));
        check("srcs/enums.py", Some(("srcs.enums", ModuleKind::Module)));
        check("app/not-a-module.py", None);
        check("__init__.py", None);
        check("app/data.txt", None);
    }

    #[test]
    fn versions_that_agree_are_joined() {
        let text =
            "from enum import Enum\nclass A(Enum):\n    X = 'x'\nclass B(Enum):\n    Y = 'y'\n    class C: pass\n";
        let built = variants(&BTreeMap::from([("m".to_owned(), module("m.py", text))]));
        let ranges = |name: &str| {
            let found = built.enums.iter().find(|found| found.name.qualname == name).unwrap();
            found.variants.iter().map(|(range, ..)| range.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(ranges("A"), [">=3.8"]);
        assert_eq!(ranges("B"), [">=3.8,<3.13", ">=3.13"]);
    }

    #[test]
    fn bindings_stand_with_their_enum_also_under_another_import_path() {
        let enums = module("backend/app/enums.py", "from enum import Enum\nclass Crm(Enum):\n    A = 'a'\n");
        let models = module(
            "backend/app/models.py",
            "from sqlalchemy import Column, Enum\nfrom app.enums import Crm\nfrom app.db import Base\n\
             class Conn(Base):\n    __tablename__ = 'conn'\n    crm = Column(Enum(Crm))\n    kind = Column(Enum('x', name='k'))\n",
        );
        let modules =
            BTreeMap::from([("backend.app.enums".to_owned(), enums), ("backend.app.models".to_owned(), models)]);
        let built = variants(&modules);
        let found: Vec<_> = built.entries.iter().map(|entry| (entry.qualname.as_str(), entry.bindings.len())).collect();
        assert_eq!(found, [("Crm", 1), ("Conn.kind", 1)]);
        assert!(built.missing.contains("app.db"));
    }
}
