//! The bus between coordinator and agents: one contract, a transport per broker.
//!
//! *Watch desired*, *send report*, *receive permits addressed to me*. Every transport is a function between two pairs
//! of channels ([`ends`]); it may lose, repeat and reorder messages. What is said again and again, and what is decided
//! from it, lives in `unstale_protocol`. Messages travel in signed envelopes that no transport opens ([`envelope`]).

pub(crate) mod address;
pub(crate) mod amqp;
mod backoff;
pub(crate) mod condition;
#[cfg(test)]
mod contract;
pub(crate) mod embedded;
pub(crate) mod ends;
pub(crate) mod envelope;
#[cfg(test)]
#[expect(dead_code, reason = "the tests of whole fleets use the rest")]
#[path = "../../tests/harness/proxy.rs"]
mod proxy;
mod queue;
pub(crate) mod redis;
mod sessions;
