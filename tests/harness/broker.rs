//! A private Redis on a port of its own, under the rules of access that are shipped.

use crate::harness::app::Place;
use crate::harness::process::{Running, command as plain_command};
use crate::harness::python::tests_dir;
use crate::harness::wait::eventually_some;
use rustix::process::Signal;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;

/// The server. What a restart leaves of its data is nothing.
#[derive(Debug)]
pub(crate) struct Broker {
    process: Running,
    port: u16,
    dir: PathBuf,
}

impl Broker {
    /// Starts it, and waits until it answers.
    pub(crate) fn start(place: &Place) -> Self {
        let dir = place.folder("broker");
        let shipped = fs::read_to_string(tests_dir().join("../deploy/redis.acl")).expect("the shipped rules");
        let shipped = shipped.replace("PASSWORD-OF-COORDINATOR", "c0").replace("PASSWORD-OF-AGENTS", "a0");
        let mut rules = String::from("user admin on >admin ~* &* +@all\n");
        for line in shipped.lines().filter(|line| line.starts_with("user ")) {
            rules += line;
            rules.push('\n');
        }
        fs::write(dir.join("acl"), rules).expect("rules");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        let broker = Self { process: Self::run(port, &dir), port, dir };
        broker.wait();
        broker
    }

    fn run(port: u16, dir: &PathBuf) -> Running {
        let mut command = plain_command("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(dir).arg("--aclfile").arg(dir.join("acl"));
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
        format!("redis://unstale-coordinator:c0@127.0.0.1:{}", self.port)
    }

    /// The URL for agents.
    pub(crate) fn for_agents(&self) -> String {
        format!("redis://unstale-agent:a0@127.0.0.1:{}", self.port)
    }

    /// Runs a command as one who may do everything, and returns what the server says.
    pub(crate) fn admin(&self, words: &[&str]) -> String {
        let mut command = plain_command("redis-cli");
        command.args(["-p", &self.port.to_string(), "--user", "admin", "--pass", "admin", "--no-auth-warning"]);
        let output = command.args(words).output().expect("redis-cli");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Adds an envelope to a stream, as one who may.
    pub(crate) fn add(&self, stream: &str, envelope: &str) {
        let mut command = plain_command("redis-cli");
        command.args(["-p", &self.port.to_string(), "--user", "admin", "--pass", "admin", "--no-auth-warning", "-x"]);
        command.args(["XADD", stream, "*", "h", "web-1", "e"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("redis-cli");
        child.stdin.take().expect("its input").write_all(envelope.as_bytes()).expect("an envelope");
        let said = child.wait_with_output().expect("redis-cli");
        assert!(said.stdout.contains(&b'-') && !said.stdout.starts_with(b"ERR"), "{said:?}");
    }

    /// Kills it, and starts it again without anything that it held.
    pub(crate) fn kill_and_restart(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait(10);
        self.process = Self::run(self.port, &self.dir);
        self.wait();
    }
}
