//! One host's eyes and hands.
//!
//! Eyes: find the Python workers (`discover`), read what they have loaded (`memory`), what their source
//! says (`source`) and what their bytecode says (`bytecode`). Hands: `purge`, `restart`, `supervisor`.
//! What to do is decided in `unstale_protocol`; nothing here speaks to a bus.

pub mod bytecode;
pub mod child;
pub mod discover;
pub mod display;
pub mod driver;
pub mod eyes;
pub mod files;
pub mod inspect;
pub mod judge;
pub mod lookup;
pub mod memory;
pub mod parser;
pub mod preflight;
pub mod process;
pub mod procfs;
pub mod purge;
pub mod python;
pub mod reader;
pub mod reading;
pub mod restart;
pub mod sandbox;
pub mod source;
pub mod supervisor;
pub mod survey;
pub mod watch;
