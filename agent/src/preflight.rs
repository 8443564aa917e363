//! Static pre-flight: which imports a module needs before it can be imported at all. Nothing is executed.
//!
//! Only imports at module level, outside `try`, `if`, `with` and functions, count: they are made whenever the
//! module is. Who calls this looks the files up; a missing one means that a restart would not come back.

use crate::python::ir::{Action, Branch, Summary};
use crate::python::link::{ModuleKind, absolute};
use serde::{Deserialize, Serialize};

/// One import that must succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportNeed {
    /// The module, absolute. One that begins with a dot leads out of its package and exists nowhere.
    pub module: String,
    /// Names that are imported from it; each must be a submodule or be defined there, see [`provides`].
    /// Empty for `import module` and for a star.
    pub names: Vec<String>,
    /// The line of the import, from 1.
    pub line: u32,
}

/// Returns the imports that the module `name` always makes, in order.
pub fn imports_needed(summary: &Summary, name: &str, kind: ModuleKind) -> Vec<ImportNeed> {
    let always = summary.body.iter().filter(|statement| statement.branch == Branch::Always);
    let needs = always.filter_map(|statement| match &statement.action {
        Action::Import { module, .. } => {
            Some(ImportNeed { module: module.clone(), names: Vec::new(), line: statement.line })
        }
        Action::ImportFrom { level, module, names } => {
            let outside = || {
                let dots = usize::try_from(*level).unwrap_or(0).min(64);
                ".".repeat(dots) + module
            };
            let module = absolute(name, kind, *level, module).unwrap_or_else(outside);
            let names = names.iter().filter(|(name, _)| name != "*").map(|(name, _)| name.clone());
            Some(ImportNeed { module, names: names.collect(), line: statement.line })
        }
        _ => None,
    });
    needs.collect()
}

/// Tells whether `from <this module> import name` succeeds without a submodule of that name, as far as text
/// can tell: what may define names in ways that are not followed counts as defining them all.
pub fn provides(summary: &Summary, name: &str) -> bool {
    let implicit = matches!(
        name,
        "__name__" | "__file__" | "__doc__" | "__path__" | "__package__" | "__spec__" | "__dict__" | "__builtins__"
    );
    if implicit || summary.incomplete.is_some() {
        return true;
    }
    summary.body.iter().any(|statement| match &statement.action {
        Action::Import { module, alias } => match alias {
            Some(alias) => alias == name,
            None => module.split('.').next() == Some(name),
        },
        Action::ImportFrom { names, .. } => names.iter().any(|(_, bound)| bound == name || bound == "*"),
        Action::Assign { name: bound, .. } => bound == name,
        Action::Class(class) => class.name == name,
        Action::Function(function) => function.name == name || function.name == "__getattr__",
        Action::Opaque { .. } => true,
        Action::Annotate { .. } => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::summarize;

    #[test]
    fn only_imports_that_are_always_made_are_needed() {
        let text = "import os.path\nfrom .sub import a, b as c\nfrom .. import top\nfrom x import *\n\
                    try:\n    import maybe\nexcept ImportError:\n    pass\nif a:\n    import rarely\n\
                    def f():\n    import late\n";
        let summary = summarize(text).unwrap();
        let needs = |name, kind| {
            let needs = imports_needed(&summary, name, kind);
            needs.into_iter().map(|need| (need.module, need.names.join(" "), need.line)).collect::<Vec<_>>()
        };
        let want = |sub: &str, top: &str| {
            vec![
                ("os.path".to_owned(), String::new(), 1),
                (sub.to_owned(), "a b".to_owned(), 2),
                (top.to_owned(), "top".to_owned(), 3),
                ("x".to_owned(), String::new(), 4),
            ]
        };
        assert_eq!(needs("app.pkg.mod", ModuleKind::Module), want("app.pkg.sub", "app"));
        assert_eq!(needs("app.pkg", ModuleKind::Package), want("app.pkg.sub", "app"));
        assert_eq!(needs("mod", ModuleKind::Module), want(".sub", ".."));
    }

    #[test]
    fn a_module_provides_what_it_may_define() {
        let check = |text: &str, want: bool| assert_eq!(provides(&summarize(text).unwrap(), "x"), want, "{text}");
        check("x = 1", true);
        check("def x(): pass", true);
        check("class x: pass", true);
        check("import x", true);
        check("import a as x", true);
        check("from a import b as x", true);
        check("from a import *", true);
        check("def __getattr__(name): pass", true);
        check("if a:\n    x = 1", true);
        check("for x in y: pass", true);
        check("y = 1", false);
        check("import a.x", false);
        check("x: int", false);
        check("def f():\n    x = 1", false);
    }
}
