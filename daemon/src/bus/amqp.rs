//! The bus over RabbitMQ (AMQP 0.9.1, 3.10 or later).
//!
//! Desired states lie in a stream that everybody reads from its last chunk; reports and requests go to one quorum queue;
//! permits and manifests come back by direct reply-to. Who holds an exclusive queue leads. Each agent has one connection
//! and declares nothing. None of the crate's recovery: a session that fails is begun anew. Every name begins with
//! `unstale.FLEET.`.

mod agent;
mod answered;
mod answers;
mod condition;
mod coordinator;
mod names;
mod route;
mod session;
#[cfg(test)]
mod tests;

pub(crate) use agent::run as agent;
pub(crate) use condition::look;
pub(crate) use coordinator::run as coordinator;
pub(crate) use names::Names;
pub(crate) use session::Access;
