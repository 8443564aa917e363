//! Two fleets on one broker, beside what Celery keeps there: nobody touches anything of another one.

use crate::harness::app::Place;
use crate::harness::bus::Bus;
use crate::harness::hosts::{Fleet, Host, enrol, outcome, set_fleet, start_agent, start_coordinator};
use crate::harness::process::{Running, stat};
use crate::harness::python::tests_dir;
use crate::harness::restarts::Mark;
use crate::harness::unstale::{Up, array, text};
use crate::harness::wait::eventually;
use serde_json::Value;
use std::fs;

/// The name of the other fleet, which has a host of the same name as the first.
const OTHER: &str = "b";
const HOST: &str = "web-1";
/// What Celery keeps on its Redis, as commands that make it.
const CELERYS: [&[&str]; 5] = [
    &["RPUSH", "celery", "{\"body\":1}", "{\"body\":2}"],
    &["HSET", "unacked", "tag", "[\"body\"]"],
    &["ZADD", "unacked_index", "7", "tag"],
    &["SADD", "_kombu.binding.celery", "celery\u{6}\u{16}\u{6}\u{16}celery"],
    &["SET", "celery-task-meta-1", "{\"status\":\"SUCCESS\"}"],
];

/// The other fleet: one coordinator, one host.
struct Other {
    coordinator: Up,
    _agent: Running,
    host: Host,
    _place: Place,
}

impl Other {
    /// Admits it to the broker under the shipped rules, and starts it.
    fn start(bus: &Bus) -> Self {
        admit(bus);
        let own = |url: String| url.replace("unstale-coordinator", "b-coordinator").replace("unstale-agent", "b-agent");
        let (place, of_host) = (Place::new(), Place::new());
        set_fleet(&place, OTHER);
        set_fleet(&of_host, OTHER);
        enrol(&place, &[(HOST, &of_host)]);
        let coordinator = start_coordinator(&place, &own(bus.for_coordinator()));
        let host = Host::start(HOST, of_host);
        host.supervisord.wait_for_log("shop", "ready.", 1);
        let agent = start_agent(&host.place, &own(bus.for_agents()), HOST);
        let other = Self { coordinator, _agent: agent, host, _place: place };
        eventually(
            "its host was looked at",
            60,
            || other.status(),
            |status| array(status, "hosts").iter().any(|host| host["scanned"] == true),
        );
        other
    }

    fn status(&self) -> Value {
        self.coordinator.run(["status", "--output", "json"]).json()
    }
}

/// Adds the other fleet's users, with the rules that are shipped.
fn admit(bus: &Bus) {
    let shipped = match bus {
        Bus::RabbitMq(broker) => return broker.admit(OTHER, "b-coordinator", "b-agent"),
        _ => fs::read_to_string(tests_dir().join("../deploy/redis.acl")).expect("the shipped rules"),
    };
    let rules = shipped.replace("PASSWORD-OF-COORDINATOR", "c0").replace("PASSWORD-OF-AGENTS", "a0");
    let rules = rules.replace("{default}", "{b}").replace("user unstale-", "user b-");
    for line in rules.lines() {
        let rule = line.strip_prefix("user ").expect("a rule");
        let words: Vec<&str> = ["ACL", "SETUSER"].into_iter().chain(rule.split(' ')).collect();
        assert_eq!(bus.redis(&words).trim(), "OK", "{line}");
    }
}

/// The worker's main process and when it began.
fn life(host: &Host) -> (u32, u64) {
    let pid = host.supervisord.wait_for_pid("shop");
    (pid, stat(pid).expect("a process that runs").start)
}

/// Rolls out first in one fleet, then in the other, and asserts that each time only its own worker was restarted.
fn rolls_out_apart(fleet: &Fleet, other: &Other) {
    let first = &fleet.hosts[0];
    let hosts = [first, &other.host];
    let before = hosts.map(life);
    let mark = Mark::set(&fleet.hosts);
    first.app.flip();
    other.host.app.flip();

    let mut broadcast = fleet.begin_broadcast();
    assert_eq!((broadcast.wait(225), outcome(&broadcast).as_str()), (0, "converged"), "{}", broadcast.log());
    assert_eq!(mark.restarts_since(&fleet.hosts).len(), 1);
    let between = hosts.map(life);
    assert_ne!(between[0], before[0]);
    assert_eq!(between[1], before[1], "the other fleet's worker is as it was");
    let status = other.status();
    assert!(array(&status, "apps").is_empty(), "{status:#}");
    assert_eq!(text(&status["bus"], "fleet"), OTHER);

    other.coordinator.broadcast("shop", &other.host.app.code, &["--timeout", "15m"]).expect(0);
    let after = hosts.map(life);
    assert_eq!(after[0], between[0], "the first fleet's worker is as it was");
    assert_ne!(after[1], between[1]);
    for status in [fleet.status(), status] {
        assert_eq!(status["bus"]["rejected"], serde_json::json!({}), "{status:#}");
    }
}

/// Forgets the first fleet's host, once its agent is gone.
fn forgets(fleet: &mut Fleet) {
    drop(fleet.hosts.pop());
    fleet.coordinator.run(["forget", &format!("host:{HOST}")]).expect(0);
    fleet.wait_for("it is forgotten", |status| array(status, "hosts").is_empty());
}

/// Every key of a Redis that does not begin so, with its value.
fn keys_without(bus: &Bus, prefix: &str) -> Vec<(String, String)> {
    let listed = bus.redis(&["KEYS", "*"]);
    let mut keys: Vec<&str> = listed.lines().filter(|key| !key.starts_with(prefix)).collect();
    keys.sort_unstable();
    keys.into_iter().map(|key| (key.to_owned(), bus.redis(&["DUMP", key]))).collect()
}

#[test]
fn two_fleets_and_celery_share_a_redis_without_touching_each_other() {
    let mut fleet = Fleet::start(&[HOST]);
    for command in CELERYS {
        fleet.bus.redis(command);
    }
    let celerys = keys_without(&fleet.bus, "unstale:");
    assert_eq!(celerys.len(), CELERYS.len(), "{celerys:?}");
    let other = Other::start(&fleet.bus);
    rolls_out_apart(&fleet, &other);
    assert_eq!(keys_without(&fleet.bus, "unstale:"), celerys, "what is Celery's is as it was");
    let exists = |bus: &Bus, key: &str| bus.redis(&["EXISTS", key]).trim() == "1";
    let (ours, theirs) = ("unstale:{default}:permit:web-1", "unstale:{b}:permit:web-1");
    assert!(exists(&fleet.bus, ours) && exists(&fleet.bus, theirs));
    forgets(&mut fleet);
    eventually("its key is gone", 20, || exists(&fleet.bus, ours), |is_there| !is_there);
    assert!(exists(&fleet.bus, theirs));
    assert_eq!(array(&other.status(), "hosts").len(), 1);
    for key in fleet.bus.redis(&["KEYS", "unstale:*"]).lines() {
        assert!(key.starts_with("unstale:{default}:") || key.starts_with("unstale:{b}:"), "{key}");
    }
}

#[test]
fn two_fleets_and_celery_share_a_rabbitmq_without_touching_each_other() {
    let mut fleet = Fleet::start_on_rabbitmq(&[HOST]);
    let Bus::RabbitMq(broker) = &fleet.bus else { panic!("no RabbitMQ") };
    let definitions = fleet.place.join("definitions.json");
    let celery =
        r#"{"queues": [{"name": "celery", "vhost": "/", "durable": true, "auto_delete": false, "arguments": {}}]}"#;
    fs::write(&definitions, celery).expect("a file");
    broker.control(&["import_definitions", &definitions.display().to_string()]);
    let other = Other::start(&fleet.bus);
    rolls_out_apart(&fleet, &other);
    forgets(&mut fleet);
    assert_eq!(array(&other.status(), "hosts").len(), 1);
    let Bus::RabbitMq(broker) = &fleet.bus else { panic!("no RabbitMQ") };
    let is_ours = |name: &&str| name.starts_with("unstale.default.") || name.starts_with("unstale.b.");
    let queues = broker.control(&["list_queues", "--no-table-headers", "name"]);
    let foreign: Vec<&str> = queues.lines().filter(|name| !is_ours(name)).collect();
    assert_eq!(foreign, ["celery"], "{queues}");
    let exchanges = broker.control(&["list_exchanges", "--no-table-headers", "name"]);
    let foreign: Vec<&str> =
        exchanges.lines().filter(|name| !is_ours(name) && !name.is_empty() && !name.starts_with("amq.")).collect();
    assert!(foreign.is_empty(), "{exchanges}");
}
