//! One file per command, and the runtime that they share.

mod abort;
mod agent;
mod broadcast;
mod coordinator;
mod demo;
pub(crate) mod doctor;
mod drain;
mod follow;
mod forget;
mod inspect;
pub(crate) mod keys;
mod local;
pub(crate) mod parts;
mod roles;
mod state;
mod status;
mod up;
mod why;

use crate::cli::{Cli, Command, StateCommand};
use crate::report::Exit;
use anyhow::Context as _;

/// Carries out what was asked.
///
/// # Errors
/// Why there is no answer; `report` knows the exit code and the hint.
pub(crate) fn run(cli: Cli) -> anyhow::Result<Exit> {
    let Cli { log, surroundings, command } = cli;
    match command {
        Command::State(StateCommand::Dump(args)) => state::dump(&args, &surroundings),
        Command::Keys(command) => keys::run(command, &surroundings),
        Command::Inspect(args) => on_runtime(inspect::run(args)),
        Command::Coordinator(args) => on_runtime(coordinator::run(args, surroundings)),
        Command::Agent(args) => on_runtime(agent::run(args, surroundings)),
        Command::Up(args) => on_runtime(up::run(args, surroundings)),
        Command::Broadcast(args) => on_runtime(broadcast::run(args, log, surroundings)),
        Command::Status(args) => on_runtime(status::run(args, log, surroundings)),
        Command::Why(args) => on_runtime(why::run(args, surroundings)),
        Command::Drain(args) => on_runtime(drain::run(args, log, surroundings)),
        Command::Undrain(args) => on_runtime(drain::undo(args, log, surroundings)),
        Command::Pause(args) => on_runtime(abort::pause(args, surroundings)),
        Command::Resume(args) => on_runtime(abort::resume(args, surroundings)),
        Command::Abort(args) => on_runtime(abort::abort(args, surroundings)),
        Command::Forget(args) => on_runtime(forget::run(args, surroundings)),
        Command::Demo(args) => on_runtime(demo::run(args, surroundings)),
        Command::Doctor(args) => on_runtime(doctor::run(args, surroundings)),
    }
}

fn on_runtime(work: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(work)
}
