//! What always holds of the machines, whatever is fed to them in whatever order.
//!
//! `tests/defects` breaks the machines by hand and holds these properties to finding each break.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "properties/coordinator.rs"]
mod coordinator;
#[path = "properties/fleet.rs"]
mod fleet;
#[path = "properties/restart.rs"]
mod restart;
