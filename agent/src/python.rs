//! What Python text and bytecode say: definitions, bindings and imports, without running anything.
//!
//! `source` and `bytecode` lower a module to one [`ir::Summary`]; [`link::Project`] joins the summaries of
//! an app and computes its enums and bindings for one Python version. So both layers are judged by the
//! same code. Nothing here opens a file: who calls it looks modules up and hands their summaries in.

pub mod ir;
pub mod link;
pub mod manifest;

mod bindings;
mod enums;
mod evaluate;

pub use bindings::MappedColumns;
pub use enums::DefinedEnum;

#[cfg(test)]
mod tests;
