//! Private brokers under the rules that are shipped.

#[path = "../../../tests/harness/rabbitmq.rs"]
#[cfg_attr(test, expect(clippy::duplicate_mod, reason = "the tests of the bus have it, too"))]
mod rabbitmq;

use super::processes::pause;
use rabbitmq::RabbitMq;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Which broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Redis,
    RabbitMq,
}

impl Kind {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::RabbitMq => "rabbitmq",
        }
    }
}

enum Server {
    Redis(Child, u16),
    /// None while it is killed and restarted.
    RabbitMq(Option<Box<RabbitMq>>),
}

/// A broker, with its data in a directory of its own.
pub(crate) struct Broker {
    server: Server,
    dir: TempDir,
}

#[expect(clippy::disallowed_methods, reason = "the pause between two looks")]
fn redis(dir: &Path, port: u16) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.arg("--dir").arg(dir).arg("--aclfile").arg(dir.join("acl"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let server = command.spawn().expect("redis-server: `apt-get install redis-server`");
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    server
}

impl Broker {
    pub(crate) fn start(kind: Kind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = match kind {
            Kind::Redis => {
                let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/redis.acl");
                let shipped = fs::read_to_string(shipped).unwrap();
                let shipped = shipped.replace("PASSWORD-OF-COORDINATOR", "c0").replace("PASSWORD-OF-AGENTS", "a0");
                fs::write(dir.path().join("acl"), shipped + "user admin on >admin ~* &* +@all\n").unwrap();
                let socket = TcpListener::bind("127.0.0.1:0").unwrap();
                let port = socket.local_addr().unwrap().port();
                drop(socket);
                Server::Redis(redis(dir.path(), port), port)
            }
            Kind::RabbitMq => {
                let server = RabbitMq::start(dir.path());
                server.control(&["add_user", "admin", "admin"]);
                server.control(&["set_permissions", "admin", ".*", ".*", ".*"]);
                Server::RabbitMq(Some(Box::new(server)))
            }
        };
        Self { server, dir }
    }

    pub(crate) fn kind(&self) -> Kind {
        match self.server {
            Server::Redis(..) => Kind::Redis,
            Server::RabbitMq(_) => Kind::RabbitMq,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        match &self.server {
            Server::Redis(process, _) => process.id(),
            Server::RabbitMq(_) => fs::read_to_string(self.dir.path().join("pid")).unwrap().trim().parse().unwrap(),
        }
    }

    pub(crate) fn for_coordinator(&self) -> String {
        match &self.server {
            Server::Redis(_, port) => format!("redis://unstale-coordinator:c0@127.0.0.1:{port}"),
            Server::RabbitMq(server) => server.as_ref().unwrap().for_coordinator(),
        }
    }

    pub(crate) fn for_agents(&self) -> String {
        match &self.server {
            Server::Redis(_, port) => format!("redis://unstale-agent:a0@127.0.0.1:{port}"),
            Server::RabbitMq(server) => server.as_ref().unwrap().for_agents(),
        }
    }

    /// Where it is, for who may do everything there.
    pub(crate) fn admin(&self) -> (String, u16) {
        match &self.server {
            Server::Redis(_, port) => (format!("redis://admin:admin@127.0.0.1:{port}"), *port),
            Server::RabbitMq(server) => {
                let port = server.as_ref().unwrap().port;
                (format!("amqp://admin:admin@127.0.0.1:{port}"), port)
            }
        }
    }

    /// Kills it, and starts it again with what it had written.
    pub(crate) async fn kill_and_restart(&mut self) {
        match &mut self.server {
            Server::Redis(process, port) => {
                process.kill().unwrap();
                process.wait().unwrap();
                pause(1_000).await;
                *process = redis(self.dir.path(), *port);
            }
            Server::RabbitMq(server) => {
                let mut killed = server.take().unwrap();
                let restarting = tokio::task::spawn_blocking(move || {
                    killed.kill_and_restart();
                    killed
                });
                *server = Some(restarting.await.unwrap());
            }
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Server::Redis(process, _) = &mut self.server {
            process.kill().unwrap_or_default();
            drop(process.wait());
        }
    }
}
