//! Two Redis servers, one of which copies the other, and a Sentinel that watches over them.

use crate::harness::app::Place;
use crate::harness::broker::Broker;
use crate::harness::process::{Running, command as plain_command};
use crate::harness::wait::eventually;
use rustix::process::Signal;
use std::fs;
use std::net::TcpListener;

/// What the Sentinel calls the two.
const NAME: &str = "fleet";

/// All three.
#[derive(Debug)]
pub(crate) struct Watched {
    /// The one that is written to at first.
    primary: Broker,
    /// The other one.
    replica: Broker,
    sentinel: Running,
    port: u16,
}

impl Watched {
    /// Starts them, and waits until the Sentinel knows both and the copy is whole.
    pub(crate) fn start(place: &Place) -> Self {
        let primary = Broker::start(place);
        let replica = Broker::copying(place, &primary);
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        let dir = place.folder("sentinel");
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {dir}\n\
             sentinel monitor {NAME} 127.0.0.1 {primary} 1\n\
             sentinel auth-user {NAME} admin\nsentinel auth-pass {NAME} admin\n\
             sentinel down-after-milliseconds {NAME} 1500\nsentinel failover-timeout {NAME} 4000\n",
            dir = dir.display(),
            primary = primary.port,
        );
        fs::write(dir.join("sentinel.conf"), text).expect("its configuration");
        let mut command = plain_command("redis-server");
        command.arg(dir.join("sentinel.conf")).arg("--sentinel");
        let sentinel = Running::start(&mut command, &dir.join("log"));
        let this = Self { primary, replica, sentinel, port };
        eventually(
            "the Sentinel knows both",
            20,
            || (this.ask(&["SENTINEL", "REPLICAS", NAME]), this.sentinel.log()),
            |(said, _)| {
                said.contains(&format!("127.0.0.1:{}", this.replica.port)) && said.contains("master-link-status\nok")
            },
        );
        this
    }

    fn ask(&self, words: &[&str]) -> String {
        let mut command = plain_command("redis-cli");
        command.args(["-p", &self.port.to_string()]).args(words);
        String::from_utf8_lossy(&command.output().expect("redis-cli").stdout).into_owned()
    }

    /// The coordinator's URL.
    pub(crate) fn for_coordinator(&self) -> String {
        format!("redis+sentinel://unstale-coordinator:c0@127.0.0.1:{}/{NAME}", self.port)
    }

    /// The agents' URL.
    pub(crate) fn for_agents(&self) -> String {
        format!("redis+sentinel://unstale-agent:a0@127.0.0.1:{}/{NAME}", self.port)
    }

    /// Stops the copying at what is there now: the copy grows old.
    pub(crate) fn freeze_the_copy(&self) {
        self.replica.signal(Signal::STOP);
    }

    /// Lets the copy go on.
    pub(crate) fn wake_the_copy(&self) {
        self.replica.signal(Signal::CONT);
    }

    /// Kills the one that is written to; it does not come back.
    pub(crate) fn kill_the_primary(&mut self) {
        self.primary.kill();
    }

    /// Kills the copy and starts it again with nothing in it.
    pub(crate) fn empty_the_copy(&mut self) {
        self.replica.kill_and_restart();
    }

    /// Waits until the copy is what is written to.
    pub(crate) fn wait_for_the_failover(&self) {
        eventually(
            "the copy is promoted",
            40,
            || (self.replica.admin(&["ROLE"]), self.sentinel.log()),
            |(role, _)| role.starts_with("master"),
        );
    }
}
