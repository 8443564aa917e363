//! The bus between coordinator and agents: one contract, a transport per broker.
//!
//! *Watch desired*, *send report*, *receive permits addressed to me*. Every transport may lose, repeat
//! and reorder messages; what is said again and again, and what is decided from it, lives in
//! `unstale_protocol`. Messages travel as the bytes that a network would carry.

pub(crate) mod embedded;
