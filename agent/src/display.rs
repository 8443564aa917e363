//! Making text of processes fit for people: credentials masked, control characters shown.
//!
//! Pure. Called by everything that prints or logs a command line, a path or a name that a process chose.

pub mod escape;
pub mod mask;
