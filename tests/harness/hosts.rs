//! A fleet on one machine: a coordinator and agents as processes of their own, over a real broker, with real keys.
//!
//! Each agent looks only at what lies below a place of its own, which is its host.

use crate::harness::app::{App, Place};
use crate::harness::bus::Bus;
use crate::harness::process::Running;
use crate::harness::python::{newest, venv};
use crate::harness::unstale::{Answer, Up, array, program, text, unstale};
use crate::harness::wait::{eventually, eventually_some};
use crate::harness::workers::{Program, Supervisord, celery_command};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::process::Command;

/// A configuration that looks often, and lets a start take as long as a test holds it up.
const EAGER: &str = "[agent]\nscan_interval = \"500ms\"\nsurvival_window = \"2s\"\nstart_timeout = \"10m\"\n";
/// How many agents may look at one machine often.
const FEW: usize = 4;
/// A configuration that looks as seldom as the default, and waits longer for workers that start side by side.
const CALM: &str = "[agent]\nsurvival_window = \"2s\"\nstart_timeout = \"10m\"\n";

/// One host: an app, its worker under supervisord, its agent.
#[derive(Debug)]
pub(crate) struct Host {
    /// Its name.
    pub(crate) name: String,
    /// Its agent; none while that is down.
    pub(crate) agent: Option<Running>,
    /// The worker's supervisor.
    pub(crate) supervisord: Supervisord,
    /// The app.
    pub(crate) app: App,
    /// Everything of it.
    pub(crate) place: Place,
}

/// The whole.
#[derive(Debug)]
pub(crate) struct Fleet {
    /// The coordinator.
    pub(crate) coordinator: Up,
    /// The hosts.
    pub(crate) hosts: Vec<Host>,
    /// The broker.
    pub(crate) bus: Bus,
    /// Everything of coordinator and broker.
    pub(crate) place: Place,
}

/// Runs `unstale keys` on the keys in a place.
pub(crate) fn keys(place: &Place, arguments: &[&str]) -> Answer {
    let directory = place.join("keys").display().to_string();
    unstale(["keys"].iter().chain(arguments).copied().chain(["--keys", &directory]))
}

/// Starts a coordinator on this place's keys, state and socket, and waits until it leads.
pub(crate) fn start_coordinator(place: &Place, url: &str) -> Up {
    let mut up = begin_coordinator(place, url);
    wait_for_lead(&mut up);
    up
}

/// The same, without waiting for anything.
pub(crate) fn begin_coordinator(place: &Place, url: &str) -> Up {
    run_coordinator(place, coordinator_command(place, url))
}

/// The command of a coordinator on this place's keys, state and socket.
fn coordinator_command(place: &Place, url: &str) -> Command {
    let config = place.join("coordinator.toml");
    fs::write(&config, "").expect("a configuration file");
    let (socket, state) = (place.join("coordinator.sock"), place.join("coordinator-state"));
    let mut command = program();
    command.arg("coordinator").arg("--state-dir").arg(&state).arg("--socket").arg(&socket).arg("--config").arg(&config);
    command.arg("--keys").arg(place.join("keys")).env("UNSTALE_BUS", url).envs(fleet_of(place));
    command
}

fn run_coordinator(place: &Place, mut command: Command) -> Up {
    let (socket, state) = (place.join("coordinator.sock"), place.join("coordinator-state"));
    let process = Running::start(&mut command, &place.join("coordinator.log"));
    Up { process, socket, state }
}

/// Waits until a coordinator leads.
pub(crate) fn wait_for_lead(up: &mut Up) {
    eventually_some("the coordinator leads", 30, || {
        assert!(!up.process.has_ended(), "the coordinator ended: {}", up.process.log());
        let answer = up.run(["status", "--output", "json"]);
        if answer.code != 2 && answer.json()["bus"]["leads"] == true { Ok(()) } else { Err((answer, up.process.log())) }
    });
}

/// Starts an agent on this place's keys and state.
pub(crate) fn start_agent(place: &Place, url: &str, name: &str) -> Running {
    run_agent(place, agent_command(place, url, name, EAGER))
}

/// The command of an agent on this place's keys and state.
fn agent_command(place: &Place, url: &str, name: &str, configuration: &str) -> Command {
    let config = place.join("agent.toml");
    fs::write(&config, configuration).expect("a configuration file");
    let mut command = program();
    command.args(["agent", "--host", name]).arg("--state-dir").arg(place.join("agent-state"));
    command.arg("--root").arg(place.path()).arg("--config").arg(&config);
    command.arg("--keys").arg(place.join("keys")).env("UNSTALE_BUS", url).envs(fleet_of(place));
    command
}

fn run_agent(place: &Place, mut command: Command) -> Running {
    Running::start(&mut command, &place.join("agent.log"))
}

/// Lets everything that is started on this place's keys be of another fleet than the default.
pub(crate) fn set_fleet(place: &Place, name: &str) {
    fs::write(place.join("fleet"), name).expect("a name");
}

fn fleet_of(place: &Place) -> Option<(&'static str, String)> {
    fs::read_to_string(place.join("fleet")).ok().map(|name| ("UNSTALE_FLEET", name))
}

/// Makes the coordinator's key, and enrols it for the agents whose keys it enrols.
pub(crate) fn enrol(coordinator: &Place, agents: &[(&str, &Place)]) {
    let own = keys(coordinator, &["new", "coordinator"]).expect(0).stdout;
    for (name, place) in agents {
        let agent = keys(place, &["new", "agent", "--host", name]).expect(0).stdout;
        keys(coordinator, &["enrol", agent.trim()]).expect(0);
        keys(place, &["enrol", own.trim()]).expect(0);
    }
}

impl Bus {
    /// Starts a coordinator on this bus, and waits until it leads.
    fn start_coordinator(&self, place: &Place) -> Up {
        let command = coordinator_command(place, &self.for_coordinator());
        let mut up = run_coordinator(place, self.beside_the_broker(command));
        wait_for_lead(&mut up);
        up
    }

    /// Starts an agent on this bus.
    fn start_agent(&self, place: &Place, name: &str) -> Running {
        self.start_agent_with(place, name, EAGER)
    }

    /// The same with another configuration.
    fn start_agent_with(&self, place: &Place, name: &str, configuration: &str) -> Running {
        let command = agent_command(place, &self.for_agents(), name, configuration);
        run_agent(place, self.among_the_hosts(command))
    }
}

impl Host {
    /// Starts its worker, not yet its agent, and waits for nothing but the worker's process.
    pub(crate) fn start(name: &str, place: Place) -> Self {
        let venv = venv(&newest(), "worker");
        let app = App::new(&place, "shop");
        app.compile(&newest().path);
        let worker = Program::new("shop", &app, celery_command(&venv, 1)).with("autorestart=true");
        let supervisord = Supervisord::start(&place, &venv, &[worker]);
        Self { name: name.to_owned(), agent: None, supervisord, app, place }
    }
}

impl Fleet {
    /// Starts it with these hosts, each with one fresh worker that takes tasks, and waits until all were looked at.
    pub(crate) fn start(names: &[&str]) -> Self {
        let place = Place::new();
        let bus = Bus::on_redis(&place);
        Self::start_on(place, bus, names)
    }

    /// The same over RabbitMQ.
    pub(crate) fn start_on_rabbitmq(names: &[&str]) -> Self {
        let place = Place::new();
        let bus = Bus::on_rabbitmq(&place);
        Self::start_on(place, bus, names)
    }

    /// The same over a bus that lies in this place.
    pub(crate) fn start_on(place: Place, bus: Bus, names: &[&str]) -> Self {
        let places: Vec<Place> = names.iter().map(|_| Place::new()).collect();
        let all: Vec<(&str, &Place)> = names.iter().copied().zip(&places).collect();
        enrol(&place, &all);
        let coordinator = bus.start_coordinator(&place);
        let mut hosts: Vec<Host> = names.iter().zip(places).map(|(name, place)| Host::start(name, place)).collect();
        for host in &mut hosts {
            host.supervisord.wait_for_log("shop", "ready.", 1);
            // Many agents that look as often as they can leave nothing for the workers of a small machine.
            let configuration = if names.len() > FEW { CALM } else { EAGER };
            host.agent = Some(bus.start_agent_with(&host.place, &host.name, configuration));
        }
        let fleet = Self { coordinator, hosts, bus, place };
        fleet.wait_for("every host was looked at", |status| {
            let hosts = array(status, "hosts");
            hosts.len() == names.len() && hosts.iter().all(|host| host["scanned"] == true)
        });
        fleet
    }

    /// Where the fleet stands.
    pub(crate) fn status(&self) -> Value {
        self.coordinator.run(["status", "--output", "json"]).json()
    }

    /// Waits until the status is as it should be.
    pub(crate) fn wait_for(&self, what: &str, is_so: impl Fn(&Value) -> bool) {
        eventually(what, 60, || self.status(), |status| is_so(status));
    }

    /// Makes every worker stale, by the same edit everywhere.
    pub(crate) fn flip(&self) {
        for host in &self.hosts {
            host.app.flip();
        }
    }

    /// Begins a broadcast of the first host's source; its answer is in the log.
    pub(crate) fn begin_broadcast(&self) -> Running {
        self.begin_broadcast_with(&[])
    }

    /// The same with more arguments.
    pub(crate) fn begin_broadcast_with(&self, more: &[&str]) -> Running {
        let first = self.hosts.first().expect("a host");
        let mut command = self.coordinator.command(["broadcast", "--output", "json", "--app", "shop"]);
        command.args(["--timeout", "15m"]).args(more).arg(&first.app.code);
        Running::start(&mut command, &self.place.join("broadcast.log"))
    }

    /// Waits until a worker was told to stop.
    pub(crate) fn wait_for_first_drain(&self) {
        eventually(
            "one worker drains",
            80,
            || self.hosts.iter().map(|host| host.supervisord.log("shop")).collect::<Vec<_>>(),
            |logs| logs.iter().any(|log| log.contains("Warm shutdown")),
        );
    }

    /// Kills the coordinator and starts it again.
    pub(crate) fn kill_coordinator(&mut self) {
        self.coordinator.process.signal(Signal::KILL);
        self.coordinator.process.wait(10);
        self.coordinator = self.bus.start_coordinator(&self.place);
    }

    /// Starts a second coordinator with keys, state and socket of its own, and the whole fleet's trust.
    pub(crate) fn second_coordinator(&self, place: &Place) -> Up {
        let own = keys(place, &["new", "coordinator"]).expect(0).stdout;
        for host in &self.hosts {
            keys(&host.place, &["enrol", own.trim()]).expect(0);
            let agent = keys(&host.place, &["show", "--public"]).expect(0).stdout;
            keys(place, &["enrol", agent.trim()]).expect(0);
        }
        let first = keys(&self.place, &["show", "--public"]).expect(0).stdout;
        keys(place, &["enrol", first.trim()]).expect(0);
        keys(&self.place, &["enrol", own.trim()]).expect(0);
        begin_coordinator(place, &self.bus.for_coordinator())
    }

    /// Kills a host's agent, where it has one.
    pub(crate) fn end_agent(&mut self, index: usize) {
        if let Some(mut agent) = self.hosts.get_mut(index).expect("a host").agent.take() {
            agent.signal(Signal::KILL);
            agent.wait(10);
        }
    }

    /// Kills a host's agent and starts it again.
    pub(crate) fn kill_agent(&mut self, index: usize) {
        self.end_agent(index);
        let host = self.hosts.get_mut(index).expect("a host");
        host.agent = Some(self.bus.start_agent(&host.place, &host.name));
    }

    /// Asserts that each worker was restarted exactly once, that never two were down at once, and that all are fresh.
    pub(crate) fn assert_each_was_restarted_once_and_one_at_a_time(&self) {
        let mut down: Vec<(String, String, String)> = Vec::new();
        for host in &self.hosts {
            let log = fs::read_to_string(host.place.join("supervisord/supervisord.log")).expect("its log");
            let of = |word: &str| -> Vec<String> {
                log.lines().filter(|line| line.contains(word)).map(|line| line.chars().take(23).collect()).collect()
            };
            let (ended, running) = (of("exited: shop"), of("success: shop entered RUNNING"));
            assert_eq!((ended.len(), running.len()), (1, 2), "{} restarts its worker once:\n{log}", host.name);
            down.push((ended[0].clone(), running[1].clone(), host.name.clone()));
            super::unstale::inspect(&host.place.path());
            let seen = super::unstale::verdicts(&super::unstale::inspect(&host.place.path()));
            assert!(!seen.is_empty() && seen.iter().all(|(_, verdict)| verdict == "fresh"), "{}: {seen:?}", host.name);
        }
        down.sort();
        for pair in down.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "two were down at once: {down:#?}");
        }
    }
}

/// What the last line of JSON in a broadcast's log says of the outcome.
pub(crate) fn outcome(broadcast: &Running) -> String {
    let log = broadcast.log();
    let begin = log.lines().skip_while(|line| !line.starts_with('{')).collect::<Vec<_>>().join("\n");
    let last = serde_json::Deserializer::from_str(&begin).into_iter::<Value>().filter_map(Result::ok).last();
    last.map_or_else(|| format!("none in {log}"), |value| text(&value, "outcome"))
}
