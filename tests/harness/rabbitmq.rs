//! A private RabbitMQ on ports of its own, with the permissions that are shipped.
//!
//! It stands alone, so that the transport's own tests can use it, too.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Where Debian keeps the programs themselves, before they change their user.
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
/// How often, and after which pause, the server is asked whether it is up.
const TRIES: u32 = 240;
const INTERVAL: Duration = Duration::from_millis(500);

/// The server, and the name service that it needs.
#[derive(Debug)]
pub(crate) struct RabbitMq {
    /// The server's first process.
    pub(crate) server: Child,
    /// The name service.
    pub(crate) names: Child,
    dir: PathBuf,
    /// Where it listens.
    pub(crate) port: u16,
    names_port: u16,
    address: &'static str,
    /// What stands before a command line to run it where the server is.
    prefix: Vec<String>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port()
}

fn prefixed(prefix: &[String], program: &str) -> Command {
    let Some((first, rest)) = prefix.split_first() else { return Command::new(program) };
    let mut command = Command::new(first);
    command.args(rest).arg(program);
    command
}

/// Held by the one that starts.
static STARTS: Mutex<()> = Mutex::new(());

impl RabbitMq {
    /// Starts it with its data in `dir`, and waits until both roles can log in.
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_at(dir, "127.0.0.1", Vec::new())
    }

    /// The same at another address, where it is reached with `prefix` before a command line.
    pub(crate) fn start_at(dir: &Path, address: &'static str, prefix: Vec<String>) -> Self {
        // A start takes a processor for many seconds: side by side they keep the tests beside them waiting.
        let _one_at_a_time = STARTS.lock().unwrap_or_else(PoisonError::into_inner);
        fs::create_dir_all(dir).expect("a directory");
        fs::write(dir.join("plugins"), "[].").expect("a list of plugins");
        fs::write(dir.join("rabbitmq.conf"), "loopback_users = none\n").expect("a configuration");
        let (port, names_port) = (free_port(), free_port());
        let mut names = prefixed(&prefix, "epmd");
        names.args(["-port", &names_port.to_string(), "-address", "127.0.0.1"]);
        names.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let names = names.spawn().expect("epmd: `apt-get install rabbitmq-server`");
        let server = Self::run(dir, (address, port), names_port, &prefix);
        let this = Self { server, names, dir: dir.to_owned(), port, names_port, address, prefix };
        this.wait();
        this.admit("default", "unstale-coordinator", "unstale-agent");
        this
    }

    /// Adds the two users of a fleet with the permissions that are shipped.
    pub(crate) fn admit(&self, fleet: &str, coordinator: &str, agent: &str) {
        self.control(&["add_user", coordinator, "c0"]);
        self.control(&["add_user", agent, "a0"]);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rabbitmq-permissions");
        let mut command = self.command(&script.display().to_string());
        let shipped = command.args(["/", fleet, coordinator, agent]).output().expect("the script");
        assert!(shipped.status.success(), "{shipped:?}");
    }

    fn environment(command: &mut Command, dir: &Path, (address, port): (&str, u16), names_port: u16) {
        let path = std::env::var_os("PATH").unwrap_or_default().to_string_lossy().into_owned();
        command.env("PATH", format!("{PROGRAMS}:{path}")).env("HOME", dir).current_dir(dir);
        command.env("RABBITMQ_NODENAME", format!("unstale-{port}@localhost"));
        command.env("RABBITMQ_NODE_IP_ADDRESS", address).env("RABBITMQ_NODE_PORT", port.to_string());
        command.env("RABBITMQ_DIST_PORT", free_port().to_string()).env("ERL_EPMD_PORT", names_port.to_string());
        command.env("RABBITMQ_MNESIA_BASE", dir.join("data")).env("RABBITMQ_LOG_BASE", dir.join("log"));
        command.env("RABBITMQ_ENABLED_PLUGINS_FILE", dir.join("plugins"));
        command.env("RABBITMQ_CONFIG_FILE", dir.join("rabbitmq")).env("RABBITMQ_PID_FILE", dir.join("pid"));
        command.stdin(Stdio::null());
    }

    fn run(dir: &Path, place: (&str, u16), names_port: u16, prefix: &[String]) -> Child {
        let mut command = prefixed(prefix, &format!("{PROGRAMS}/rabbitmq-server"));
        Self::environment(&mut command, dir, place, names_port);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("rabbitmq-server: `apt-get install rabbitmq-server`")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = prefixed(&self.prefix, program);
        Self::environment(&mut command, &self.dir, (self.address, self.port), self.names_port);
        command
    }

    #[expect(clippy::disallowed_methods, reason = "the pause between two looks")]
    fn wait(&self) {
        for _ in 0..TRIES {
            let said = self.command("rabbitmqctl").args(["await_startup", "--timeout", "60"]).output();
            if said.expect("rabbitmqctl").status.success() {
                return;
            }
            std::thread::sleep(INTERVAL);
        }
        panic!("RabbitMQ does not come up");
    }

    /// Asks the broker's administrator program; returns what it says.
    pub(crate) fn control(&self, words: &[&str]) -> String {
        let output = self.command("rabbitmqctl").arg("-q").args(words).output().expect("rabbitmqctl");
        assert!(output.status.success(), "rabbitmqctl {words:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The URL for the coordinator.
    pub(crate) fn for_coordinator(&self) -> String {
        format!("amqp://unstale-coordinator:c0@{}:{}", self.address, self.port)
    }

    /// The URL for agents.
    pub(crate) fn for_agents(&self) -> String {
        format!("amqp://unstale-agent:a0@{}:{}", self.address, self.port)
    }

    /// Kills it, and starts it again with what it had written.
    pub(crate) fn kill_and_restart(&mut self) {
        self.kill();
        self.server = Self::run(&self.dir, (self.address, self.port), self.names_port, &self.prefix);
        self.wait();
    }

    fn kill(&mut self) {
        // The shell that was started has replaced itself, or waits for this process.
        if let Ok(pid) = fs::read_to_string(self.dir.join("pid")) {
            drop(Command::new("kill").args(["-9", pid.trim()]).stderr(Stdio::null()).status());
        }
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        self.kill();
        drop(self.names.kill());
        drop(self.names.wait());
    }
}
