//! Tests of the whole: one integration target of package `unstale`. Its modules are the layers.
//!
//! Not here: unit tests (in the file they test), properties of one crate (in that crate's `tests/`).
