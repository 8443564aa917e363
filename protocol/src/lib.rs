//! What unstale's coordinator and agents say to each other, and what each of them decides.
//!
//! Nothing here does IO, reads a clock or draws a random number: time and randomness come in as
//! arguments, decisions come out as values. The agent and the daemon turn the world into inputs
//! and the outputs into the world.

pub mod binding;
pub mod coordinator;
pub mod enumdef;
pub mod fingerprint;
pub mod host;
pub mod ids;
pub mod manifest;
pub mod message;
pub mod piece;
pub mod restart;
pub mod time;
pub mod value;
pub mod verdict;
