//! The code that a process would load at its next start: what source and bytecode of its modules say.

use crate::purge::StaleFile;
use crate::python::DefinedEnum;
use crate::python::link::Evaluated;
use std::collections::BTreeMap;
use std::sync::Arc;
use unstale_protocol::binding::Binding;

/// The modules of one process at its next start, by their key in `sys.modules`.
#[derive(Clone, Debug, Default)]
pub struct CodeView {
    /// Modules that are loaded, by key.
    pub modules: BTreeMap<String, Arc<ModuleView>>,
    /// Modules that a manifest names and that are not loaded, by path relative to the app's root.
    pub unloaded: BTreeMap<String, Arc<ModuleView>>,
    /// Why nothing could be looked up, where that is so.
    pub problem: Option<String>,
}

/// One module at the next start.
#[derive(Clone, Debug, Default)]
pub struct ModuleView {
    /// File that it was imported from, absolute, as the process sees it.
    pub imported_from: Option<String>,
    /// File that would be imported, absolute, as the process sees it.
    pub next: Option<String>,
    /// The same after all symbolic links.
    pub next_resolved: Option<String>,
    /// Why the source says nothing: it is gone, has a syntax error, is not looked into.
    pub problem: Option<String>,
    /// The file lies in a layer of a container image.
    pub in_image: bool,
    /// What the source defines.
    pub source: Evaluated,
    /// What the bytecode is worth.
    pub bytecode: BytecodeState,
}

/// The bytecode that this interpreter would use for the module.
#[derive(Clone, Debug, Default)]
pub enum BytecodeState {
    /// There is none, or CPython would not accept it.
    #[default]
    None,
    /// It would be used, and says what the source says.
    Right {
        /// The file.
        path: String,
        /// What it defines.
        defines: Arc<Evaluated>,
    },
    /// It would be used, and differs from the source.
    Stale {
        /// The file as it was proven.
        file: StaleFile,
        /// What it defines.
        defines: Arc<Evaluated>,
        /// How it differs, for people.
        why: String,
    },
    /// It would be used, and cannot be decoded.
    Unknown {
        /// The file.
        path: String,
        /// Why not.
        why: String,
    },
}

impl BytecodeState {
    /// Returns the file, where there is one.
    pub fn path(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Right { path, .. } | Self::Unknown { path, .. } => Some(path.clone()),
            Self::Stale { file, .. } => Some(file.path.to_string_lossy().into_owned()),
        }
    }

    /// Returns what it defines, where it was decoded.
    pub fn defines(&self) -> Option<&Evaluated> {
        match self {
            Self::Right { defines, .. } | Self::Stale { defines, .. } => Some(defines),
            Self::None | Self::Unknown { .. } => None,
        }
    }
}

impl ModuleView {
    /// Returns the enum of that qualified name.
    pub fn defined(&self, qualname: &str) -> Option<&DefinedEnum> {
        self.source.enums.iter().find(|defined| defined.name.qualname == qualname)
    }

    /// Returns the binding of that class and column.
    pub fn binding(&self, class: &str, column: &str) -> Option<&Binding> {
        self.source.bindings.iter().find(|binding| binding.column.class == class && binding.column.column == column)
    }

    /// Tells whether the source says that this column of this class is surely not an `Enum`.
    pub fn is_plain(&self, class: &str, column: &str) -> bool {
        self.source
            .mapped
            .iter()
            .any(|mapped| mapped.name.qualname == class && mapped.plain.iter().any(|plain| plain == column))
    }
}

/// Returns what tells two evaluations of one module apart, for people; `None` where nothing is proven.
pub(crate) fn difference(source: &Evaluated, bytecode: &Evaluated) -> Option<String> {
    for ours in &source.enums {
        let Some(theirs) = bytecode.enums.iter().find(|other| other.name.qualname == ours.name.qualname) else {
            continue;
        };
        if ours.compare(theirs).is_different() {
            return Some(format!("bytecode and source differ in {}", ours.name));
        }
    }
    for ours in &source.bindings {
        let Some(theirs) = bytecode.bindings.iter().find(|other| other.column == ours.column) else { continue };
        let differs = ours.labels.len() != theirs.labels.len()
            || ours
                .labels
                .iter()
                .zip(&theirs.labels)
                .any(|(a, b)| a.text().is_some_and(|a| b.text().is_some_and(|b| a != b)));
        let is_known = |binding: &Binding| {
            !matches!(binding.sends, Some(unstale_protocol::binding::Sends::Unresolved { .. }) | None)
        };
        if differs && is_known(ours) && is_known(theirs) {
            return Some(format!("bytecode and source differ in the labels of {}", ours.column));
        }
    }
    None
}
