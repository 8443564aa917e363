//! Bindings: one column's way to the database.
//!
//! The usual repair of `invalid input value for enum` is a `values_callable` on the column. It changes
//! the labels that are sent and leaves the class alone, so a binding is compared beside its class.

use crate::ids::EnumName;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A mapped column: `app.models:Conn.crm_type`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ColumnName {
    /// The module that defines the mapped class, dotted.
    pub module: String,
    /// `__qualname__` of the mapped class.
    pub class: String,
    /// The column's name in its table: the attribute's, unless the declaration names another.
    pub column: String,
}

impl fmt::Display for ColumnName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}.{}", self.module, self.class, self.column)
    }
}

/// How labels are made from the members of the class. Known only where the declaration is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sends {
    /// `Enum(Cls)`: the members' names.
    Names,
    /// A `values_callable` that returns the members' values.
    Values,
    /// `Enum("a", "b", name=…)`: the labels as written.
    Labels,
    /// A `values_callable`, or labels, that cannot be computed statically.
    Unresolved {
        /// What stands in the way, for people.
        why: String,
    },
}

/// One label that would be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// The text.
    Text(String),
    /// Cannot be computed statically.
    Unresolved {
        /// What stands in the way, for people.
        why: String,
    },
}

impl Label {
    /// Returns the text, where it is known.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Unresolved { .. } => None,
        }
    }
}

/// One column's way to the database, as one layer has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The column.
    pub column: ColumnName,
    /// The Python enum, if the type was given a class.
    pub enum_name: Option<EnumName>,
    /// The database enum's name, where the type has one.
    pub type_name: Option<String>,
    /// The database enum's schema, where one is stated.
    pub schema: Option<String>,
    /// False where `native_enum=False` makes the column a VARCHAR.
    pub native: bool,
    /// How labels are made; `None` in memory, which holds only the result.
    pub sends: Option<Sends>,
    /// The labels that SQLAlchemy would really send, in order, those of aliases left out.
    pub labels: Vec<Label>,
}
