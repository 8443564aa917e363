//! The Redis of a demo: a private one on this machine, under the rules of access that ship.

use super::stage::Stage;
use anyhow::{Context as _, bail};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The rules that ship, with a word in the place of each password.
const RULES: &str = include_str!("../../../../deploy/redis.acl");

/// A program that can be started.
#[derive(Debug)]
pub(super) struct Redis {
    program: PathBuf,
}

/// What was started.
#[derive(Debug)]
pub(super) struct Broker {
    port: u16,
    /// The password of the coordinator's user.
    pub(super) coordinator: String,
    /// The password of the agents' user.
    pub(super) agents: String,
}

impl Redis {
    /// Looks whether there is one.
    ///
    /// # Errors
    /// Where there is none: how to get it.
    pub(super) fn find(program: &Path) -> anyhow::Result<Self> {
        let asked = Command::new(program).arg("--version").stdin(Stdio::null()).output();
        let said = asked.map(|output| output.status.success());
        if said.is_ok_and(|is_one| is_one) {
            return Ok(Self { program: program.to_owned() });
        }
        bail!(
            "cannot run `{}`: the fleet's demo needs a Redis or Valkey server (Debian: `apt-get install redis-server`); \
             `--redis PROGRAM` names one that is elsewhere",
            program.display()
        )
    }

    /// Starts it on a free port of this machine alone, with new passwords and nothing kept on disk.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub(super) fn start(&self, stage: &mut Stage) -> anyhow::Result<Broker> {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let port = free.context("there is no free port")?.port();
        let broker = Broker { port, coordinator: password()?, agents: password()? };
        let rules = stage.directory().join("redis.acl");
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&rules);
        file.and_then(|mut file| file.write_all(broker.rules().as_bytes())).context("cannot write rules of access")?;
        let log = stage.directory().join("redis.log");
        let mut command = stage.program(&self.program);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--aclfile").arg(rules).arg("--logfile").arg(&log);
        stage.start("Redis", command, &[log])?;
        Ok(broker)
    }
}

impl Broker {
    /// Where it is, for a user.
    pub(super) fn url(&self, user: &str) -> String {
        format!("redis://{user}@127.0.0.1:{}", self.port)
    }

    /// Tells whether it listens.
    pub(super) fn listens(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }

    fn rules(&self) -> String {
        let ours = RULES.replace("PASSWORD-OF-COORDINATOR", &self.coordinator);
        let ours = ours.replace("PASSWORD-OF-AGENTS", &self.agents);
        // Whoever comes without a name may do nothing.
        format!("user default off\n{ours}")
    }
}

fn password() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read random numbers")?;
    Ok(u128::from_ne_bytes(bytes).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_rules_get_new_passwords_and_nobody_else_may_do_anything() {
        let broker = Broker { port: 1, coordinator: "c0".into(), agents: "a0".into() };
        let rules = broker.rules();
        assert!(rules.starts_with("user default off\n"), "{rules}");
        assert!(rules.contains("user unstale-coordinator on >c0 ") && rules.contains("user unstale-agent on >a0 "));
        assert!(rules.lines().all(|line| line.starts_with("user ")), "Redis takes no comments in it: {rules}");
        assert!(!rules.contains("PASSWORD") && !broker.url("x").contains("c0"), "{rules}");
        assert_ne!(password().unwrap(), password().unwrap());
    }
}
