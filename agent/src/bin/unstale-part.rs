//! The helper processes alone, so that this crate's tests can start them, and a look at what a sandbox leaves.
//!
//! What ships is the one binary of `daemon`.

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::io::{Read, Write};
use std::process::ExitCode;
use unstale_agent::sandbox;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("__reader") => unstale_agent::reader::serve(),
        Some("__parser") => unstale_agent::parser::serve(),
        Some("probe-reader") => probe(sandbox::prepare_reader().and_then(|()| sandbox::enter_reader())),
        Some("probe-parser") => probe(sandbox::prepare_parser().and_then(|()| sandbox::enter_parser())),
        // Helpers that misbehave in one way each.
        Some("silent") => silent(),
        Some("babbling") => answer_once(b"\xff\xff\xff\xff and so on"),
        Some("lying") => answer_once(b"\x02\0\0\0{}"),
        _ => ExitCode::from(64),
    }
}

/// Reads all that it is told and never answers.
fn silent() -> ExitCode {
    let mut all = Vec::new();
    match std::io::stdin().read_to_end(&mut all) {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn answer_once(answer: &[u8]) -> ExitCode {
    let mut first = [0; 4];
    let said = std::io::stdin().read_exact(&mut first).and_then(|()| {
        let mut out = std::io::stdout();
        out.write_all(answer).and_then(|()| out.flush())
    });
    if said.is_ok() { silent() } else { ExitCode::FAILURE }
}

/// Tries what a helper must not do, and prints what came of each try, one per line.
fn probe(entered: Result<(), sandbox::Error>) -> ExitCode {
    if let Err(error) = entered {
        return say(&format!("not entered: {error}\n"));
    }
    let flags = |flags: OFlags| flags | OFlags::CLOEXEC;
    let own = rustix::process::getpid();
    let tries: [(&str, Result<(), Errno>); 14] = [
        ("open", rustix::fs::open("/etc/hostname", flags(OFlags::RDONLY), Mode::empty()).map(drop)),
        (
            "openat2",
            rustix::fs::openat2(CWD, "/etc/hostname", flags(OFlags::RDONLY), Mode::empty(), ResolveFlags::empty())
                .map(drop),
        ),
        ("open for writing", rustix::fs::open("/dev/null", flags(OFlags::WRONLY), Mode::empty()).map(drop)),
        ("open for both", rustix::fs::open("/dev/null", flags(OFlags::RDWR), Mode::empty()).map(drop)),
        (
            "create",
            rustix::fs::open("/tmp/unstale-probe", flags(OFlags::RDONLY | OFlags::CREATE), Mode::RUSR).map(drop),
        ),
        ("empty", rustix::fs::open("/dev/null", flags(OFlags::RDONLY | OFlags::TRUNC), Mode::empty()).map(drop)),
        ("write to another descriptor", rustix::io::write(std::io::stdin(), b"x").map(drop)),
        ("duplicate", rustix::io::dup(std::io::stderr()).map(drop)),
        ("unlink", rustix::fs::unlinkat(CWD, "/no/such/file", rustix::fs::AtFlags::empty())),
        ("rename", rustix::fs::renameat(CWD, "/no/such/file", CWD, "/no/such/other")),
        ("kill", rustix::process::test_kill_process(own)),
        (
            "socket",
            rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).map(drop),
        ),
        ("thread", errno(std::thread::Builder::new().spawn(|| ()).map(drop))),
        ("execute", errno(std::process::Command::new("/bin/true").status().map(drop))),
    ];
    let line = |(what, result): (&str, Result<(), Errno>)| match result {
        Ok(()) => format!("{what}: allowed\n"),
        Err(Errno::PERM) => format!("{what}: refused\n"),
        Err(error) => format!("{what}: {error}\n"),
    };
    let mut text: String = tries.into_iter().map(line).collect();
    let kept = rustix::thread::capabilities(None).map(|sets| sets.permitted);
    text += "capabilities: ";
    text += &kept.map_or_else(|error| error.to_string(), |kept| kept.bits().to_string());
    say(&text)
}

fn errno(result: std::io::Result<()>) -> Result<(), Errno> {
    result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn say(text: &str) -> ExitCode {
    if std::io::stdout().write_all(text.as_bytes()).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
