//! A private Redis on a port of its own, under the rules of access that are shipped.

use crate::harness::app::Place;
use crate::harness::namespaces::Namespace;
use crate::harness::process::{Running, command as plain_command};
use crate::harness::python::tests_dir;
use crate::harness::wait::eventually_some;
use rustix::process::Signal;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The server. What a restart leaves of its data is nothing, unless that is kept.
#[derive(Debug)]
pub(crate) struct Broker {
    process: Running,
    /// Where it listens.
    pub(crate) port: u16,
    address: &'static str,
    dir: PathBuf,
    /// What stands before a command line to run it where the server is.
    prefix: Vec<String>,
    /// Further arguments of the server.
    more: Vec<String>,
}

impl Broker {
    /// Starts it, and waits until it answers.
    pub(crate) fn start(place: &Place) -> Self {
        Self::launch(place.folder("broker"), "127.0.0.1", Vec::new(), Vec::new())
    }

    /// Starts one that has on disk what it has promised to have.
    pub(crate) fn start_kept(place: &Place) -> Self {
        let more = ["--appendonly", "yes", "--appendfsync", "always"].map(str::to_owned).to_vec();
        Self::launch(place.folder("broker"), "127.0.0.1", Vec::new(), more)
    }

    /// Starts it in a network namespace.
    pub(crate) fn start_in(place: &Place, namespace: &Namespace) -> Self {
        Self::launch(place.folder("broker"), namespace.address, namespace.prefix(), Vec::new())
    }

    /// Starts one that copies another one.
    pub(crate) fn copying(place: &Place, other: &Self) -> Self {
        let more = format!("--replicaof {} {} --masteruser admin --masterauth admin", other.address, other.port);
        // The first copy is begun at once instead of after a pause for others.
        let more = format!("{more} --repl-diskless-sync-delay 0");
        let more = more.split(' ').map(str::to_owned).collect();
        Self::launch(place.folder("copy"), other.address, other.prefix.clone(), more)
    }

    fn launch(dir: PathBuf, address: &'static str, prefix: Vec<String>, more: Vec<String>) -> Self {
        let shipped = fs::read_to_string(tests_dir().join("../deploy/redis.acl")).expect("the shipped rules");
        let shipped = shipped.replace("PASSWORD-OF-COORDINATOR", "c0").replace("PASSWORD-OF-AGENTS", "a0");
        fs::write(dir.join("acl"), format!("user admin on >admin ~* &* +@all\n{shipped}")).expect("rules");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        let process = Self::run(port, address, &dir, &prefix, &more);
        let broker = Self { process, port, address, dir, prefix, more };
        broker.wait();
        broker
    }

    fn run(port: u16, address: &str, dir: &Path, prefix: &[String], more: &[String]) -> Running {
        let mut command = prefixed(prefix, "redis-server");
        command.args(["--port", &port.to_string(), "--bind", address, "--save", "", "--appendonly", "no"]);
        // Who asks from elsewhere than this machine's own address is let in, too: the rules say who may do what.
        command.args(["--protected-mode", "no"]);
        command.arg("--dir").arg(dir).arg("--aclfile").arg(dir.join("acl")).args(more);
        Running::start(&mut command, &dir.join("log"))
    }

    fn wait(&self) {
        eventually_some("redis answers", 10, || {
            let said = self.admin(&["PING"]);
            if said.trim() == "PONG" { Ok(()) } else { Err(said) }
        });
    }

    /// The URL for the coordinator.
    pub(crate) fn for_coordinator(&self) -> String {
        format!("redis://unstale-coordinator:c0@{}:{}", self.address, self.port)
    }

    /// The URL for agents.
    pub(crate) fn for_agents(&self) -> String {
        format!("redis://unstale-agent:a0@{}:{}", self.address, self.port)
    }

    fn client(&self) -> Command {
        let mut command = prefixed(&self.prefix, "redis-cli");
        command.args(["-h", self.address, "-p", &self.port.to_string(), "--user", "admin", "--pass", "admin"]);
        command.arg("--no-auth-warning");
        command
    }

    /// Runs a command as one who may do everything, and returns what the server says.
    pub(crate) fn admin(&self, words: &[&str]) -> String {
        let mut command = self.client();
        let output = command.args(words).output().expect("redis-cli");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Adds an envelope to a stream, as one who may.
    pub(crate) fn add(&self, stream: &str, envelope: &str) {
        let mut command = self.client();
        command.args(["-x", "XADD", stream, "*", "h", "web-1", "e"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("redis-cli");
        child.stdin.take().expect("its input").write_all(envelope.as_bytes()).expect("an envelope");
        let said = child.wait_with_output().expect("redis-cli");
        assert!(said.stdout.contains(&b'-') && !said.stdout.starts_with(b"ERR"), "{said:?}");
    }

    /// The server's process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sends a signal to the server.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait(10);
    }

    /// Kills it, and starts it again with nothing but what it has kept.
    pub(crate) fn kill_and_restart(&mut self) {
        self.kill();
        self.process = Self::run(self.port, self.address, &self.dir, &self.prefix, &self.more);
        self.wait();
    }
}

fn prefixed(prefix: &[String], program: &str) -> Command {
    let Some((first, rest)) = prefix.split_first() else { return plain_command(program) };
    let mut command = plain_command(first);
    command.args(rest).arg(program);
    command
}
