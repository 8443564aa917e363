//! Two networks of one machine, joined by one cable whose packets can be lost: one for a broker and the coordinator, one
//! for the hosts.
//!
//! Nothing of the machine's own network is touched. Both end with the processes that hold them.

use crate::harness::app::Place;
use crate::harness::process::Running;
use crate::harness::python::run;
use crate::harness::wait::eventually;
use std::fs;
use std::process::Command;

/// Both of them.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// Where the broker and the coordinator are.
    pub(crate) brokers: Namespace,
    /// Where the hosts are.
    pub(crate) hosts: Namespace,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Namespace {
    holder: Running,
    /// Its address on the cable.
    pub(crate) address: &'static str,
}

/// What the cable does with packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cable {
    /// It carries them.
    Whole,
    /// It loses so many of a hundred, in either direction.
    Loses(u32),
    /// It carries none.
    Broken,
}

impl Namespaces {
    /// Makes both, with a whole cable.
    pub(crate) fn start(place: &Place) -> Self {
        assert!(rustix::process::geteuid().is_root(), "network namespaces need root: run tests/run");
        let brokers = Namespace::start(place, "brokers", "10.0.0.1");
        let hosts = Namespace::start(place, "hosts", "10.0.0.2");
        let to = hosts.holder.pid().to_string();
        brokers.run("ip", &["link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", &to]);
        for namespace in [&brokers, &hosts] {
            namespace.run("ip", &["link", "set", "lo", "up"]);
            namespace.run("ip", &["address", "add", &format!("{}/24", namespace.address), "dev", "cable"]);
            namespace.run("ip", &["link", "set", "cable", "up"]);
            namespace.run("nft", &["add table ip cable"]);
            let chain = "add chain ip cable arrives { type filter hook input priority 0; policy accept; }";
            namespace.run("nft", &[chain]);
        }
        Self { brokers, hosts }
    }

    /// Makes the cable so.
    pub(crate) fn set(&self, cable: Cable) {
        for namespace in [&self.brokers, &self.hosts] {
            namespace.run("nft", &["flush chain ip cable arrives"]);
            let which = match cable {
                Cable::Whole => continue,
                Cable::Loses(percent) => format!("numgen random mod 100 < {percent}"),
                Cable::Broken => String::new(),
            };
            namespace.run("nft", &[&format!("add rule ip cable arrives iifname cable {which} counter drop")]);
        }
    }

    /// How many packets were lost in each direction since the cable was last set.
    pub(crate) fn lost(&self) -> [u64; 2] {
        [&self.brokers, &self.hosts].map(|namespace| {
            let rules = namespace.run("nft", &["list chain ip cable arrives"]);
            let count = rules.split("counter packets ").nth(1).and_then(|rest| rest.split(' ').next());
            count.and_then(|count| count.parse().ok()).unwrap_or(0)
        })
    }
}

impl Namespace {
    fn start(place: &Place, name: &str, address: &'static str) -> Self {
        let own = fs::read_link("/proc/self/ns/net").expect("this process's network");
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "infinity"]);
        let holder = Running::start(&mut command, &place.join(format!("{name}.log")));
        let network = format!("/proc/{}/ns/net", holder.pid());
        eventually(
            "a network namespace, which this kernel may not give",
            10,
            || (fs::read_link(&network).unwrap_or_else(|_| own.clone()), holder.log()),
            |(network, _)| *network != own,
        );
        Self { holder, address }
    }

    /// What stands before a command line to run it here.
    pub(crate) fn prefix(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net=/proc/{}/ns/net", self.holder.pid()), "--".to_owned()]
    }

    /// The same command, run here.
    pub(crate) fn enter(&self, command: &Command) -> Command {
        let prefix = self.prefix();
        let mut entered = Command::new(&prefix[0]);
        entered.args(&prefix[1..]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => entered.env(name, value),
                None => entered.env_remove(name),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            entered.current_dir(directory);
        }
        entered
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(arguments);
        run(self.enter(&command))
    }
}
