//! What the tests of the whole stand on: a private place, an app in it, servers and supervisors around it.
//!
//! Everything started here stops when its value is dropped, in every way a test can end. Nothing is
//! shared between tests but the virtual environments, which are never changed once made.

pub(crate) mod app;
pub(crate) mod broker;
pub(crate) mod bus;
pub(crate) mod hosts;
pub(crate) mod namespaces;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod python;
pub(crate) mod rabbitmq;
pub(crate) mod restarts;
pub(crate) mod rollout;
pub(crate) mod sentinel;
pub(crate) mod systemd;
pub(crate) mod unstale;
pub(crate) mod wait;
pub(crate) mod workers;
