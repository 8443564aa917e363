//! Tests of the whole: one integration target of package `unstale`. Its modules are the layers.
//!
//! Not here: unit tests (in the file they test), properties of one crate (in that crate's `tests/`).
//! Run by `tests/run`, which installs what they need; `cargo it python::` runs one layer.

#[cfg(test)]
mod cli;
#[cfg(test)]
mod fleet;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod itself;
#[cfg(test)]
mod python;
#[cfg(test)]
mod tidy;
