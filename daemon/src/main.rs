//! The one binary: parse, start the log, run, report. Everything else is a room of its own.

mod api;
mod bus;
mod cli;
mod client;
mod clock;
mod commands;
mod config;
mod control;
mod coordinator;
mod database;
mod host;
mod http;
mod keys;
mod manifest;
mod percent;
mod render;
mod report;
mod shutdown;
mod store;
mod telemetry;

fn main() -> std::process::ExitCode {
    report::guarded(|| commands::parts::serve(std::env::args_os().nth(1).as_deref()).unwrap_or_else(run))
}

fn run() -> report::Exit {
    match cli::read() {
        Ok(cli) => {
            telemetry::start(cli.log, cli.command.is_watched());
            let form = cli.command.output();
            commands::run(cli).unwrap_or_else(|error| report::error(&error, form))
        }
        Err(usage) => report::usage(&usage),
    }
}
