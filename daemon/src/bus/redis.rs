//! The bus over Redis or Valkey.
//!
//! One stream for desired, one small stream of permits per host, one of reports; the lease and every write of the
//! coordinator by script. Each agent has one standing connection, and a second one only while it says something. No
//! Pub/Sub, no consumer groups, none of the crate's recovery. Every key begins with `unstale:{FLEET}:`.

mod agent;
mod condition;
mod coordinator;
mod names;
mod session;
#[cfg(test)]
mod tests;

pub(crate) use agent::run as agent;
pub(crate) use condition::look;
pub(crate) use coordinator::run as coordinator;
pub(crate) use names::Names;
pub(crate) use session::Access;
