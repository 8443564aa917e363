//! The hands against real supervisors, real workers and a real kernel.
//!
//! Every trap that is looked for before acting has a test here that falls into it when its guard is taken away.
//! Needs root, Python 3 with venv, and systemd; a test that lacks one of them fails and says so.

#[cfg(test)]
mod commands;
#[cfg(test)]
mod hold;
#[cfg(test)]
mod owner;
#[cfg(test)]
mod purge;
#[cfg(test)]
mod stranger;
#[cfg(test)]
mod supervised;
#[cfg(test)]
mod supervisord;
#[cfg(test)]
mod support;
#[cfg(test)]
mod systemd;
#[cfg(test)]
mod watch;
#[cfg(test)]
mod web;
