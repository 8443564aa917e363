//! What is wrong with a host, its key, its disk or its broker, and what is said about it.

use crate::harness::app::Place;
use crate::harness::broker::Broker;
use crate::harness::hosts::{begin_coordinator, enrol, keys, start_agent, start_coordinator};
use crate::harness::process::{Running, command as plain_command};
use crate::harness::rabbitmq::RabbitMq;
use crate::harness::unstale::{Answer, Up, array, text, unstale};
use crate::harness::wait::{eventually, eventually_some};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableHandle as _};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The URLs of a broker: the coordinator's and the agents'.
type Urls = (String, String);

fn status(up: &Up) -> Value {
    up.run(["status", "--output", "json"]).json()
}

/// Ends a role that should end by itself with an error, and returns what it said.
fn said_at_the_end(mut process: Running) -> String {
    assert_eq!(process.wait(30), 2, "{}", process.log());
    process.log()
}

/// One host, and another agent that claims its name.
fn nobody_is_believed_whom_two_claim_to_be((for_coordinator, for_agents): &Urls) {
    let (place, host, thief, clone) = (Place::new(), Place::new(), Place::new(), Place::new());
    enrol(&place, &[("web-1", &host)]);
    let coordinator = start_coordinator(&place, for_coordinator);
    let agent = start_agent(&host, for_agents, "web-1");
    let only_host = |status: &Value| array(status, "hosts").iter().map(|host| text(host, "host")).collect::<Vec<_>>();
    eventually("the host reports", 30, || status(&coordinator), |seen| only_host(seen) == ["web-1"]);

    // A key of its own for that name, which nobody enrolled: what it says is counted, the host's own word goes on.
    let public = keys(&place, &["show", "--public"]).expect(0).stdout;
    keys(&thief, &["new", "agent", "--host", "web-1"]).expect(0);
    keys(&thief, &["enrol", public.trim()]).expect(0);
    let impostor = start_agent(&thief, for_agents, "web-1");
    let seen = eventually(
        "the impostor is not believed",
        60,
        || status(&coordinator),
        |seen| seen["bus"]["rejected"]["unknown_key"].as_u64() >= Some(1),
    );
    assert_eq!(only_host(&seen), ["web-1"], "{seen:#}");
    assert_eq!(text(&seen["hosts"][0], "because"), "", "{seen:#}");
    drop(impostor);

    // The host's own key, copied with its state, as a cloned machine would have it: neither is believed.
    drop(agent);
    for folder in ["keys", "agent-state"] {
        let copied = plain_command("cp").arg("-a").arg(host.join(folder)).arg(clone.path()).status();
        assert!(copied.expect("cp").success());
    }
    let _both = [start_agent(&host, for_agents, "web-1"), start_agent(&clone, for_agents, "web-1")];
    let seen = eventually(
        "both are seen",
        60,
        || status(&coordinator),
        |seen| text(&seen["hosts"][0], "because").contains("two agents answer to this name"),
    );
    assert_eq!(only_host(&seen), ["web-1"], "{seen:#}");
    assert!(coordinator.run(["status"]).stdout.contains("give it another --host"));
}

#[test]
fn on_redis_an_agent_under_the_name_of_another_host_is_not_believed() {
    let place = Place::new();
    let broker = Broker::start(&place);
    nobody_is_believed_whom_two_claim_to_be(&(broker.for_coordinator(), broker.for_agents()));
}

#[test]
fn on_rabbitmq_an_agent_under_the_name_of_another_host_is_not_believed() {
    let place = Place::new();
    let broker = RabbitMq::start(&place.join("rabbitmq"));
    nobody_is_believed_whom_two_claim_to_be(&(broker.for_coordinator(), broker.for_agents()));
}

#[test]
fn what_an_agent_did_not_believe_reaches_the_status() {
    let (place, host) = (Place::new(), Place::new());
    let broker = Broker::start(&place);
    enrol(&place, &[("web-1", &host)]);
    let coordinator = start_coordinator(&place, &broker.for_coordinator());
    let _agent = start_agent(&host, &broker.for_agents(), "web-1");
    eventually("the host reports", 30, || status(&coordinator), |seen| array(seen, "hosts").len() == 1);
    for noise in ["{", r#"{"v":1,"kid":"","alg":"none","sig":"","p":"{}"}"#] {
        broker.add("unstale:{default}:permit:web-1", noise);
    }
    let seen = eventually(
        "its next report says so",
        90,
        || status(&coordinator),
        |seen| {
            let rejected = &seen["hosts"][0]["rejected"];
            rejected["not_an_envelope"] == 1 && rejected["unknown_key"] == 1
        },
    );
    assert_eq!(seen["bus"]["rejected"], serde_json::json!({}), "{seen:#}");
    let shown = coordinator.run(["status"]).stdout;
    assert!(shown.contains("web-1: messages that changed nothing: not an envelope 1, unknown key 1"), "{shown}");
}

#[test]
fn a_coordinator_waits_for_its_broker_with_one_clear_line_or_leaves_at_once() {
    let place = Place::new();
    keys(&place, &["new", "coordinator"]).expect(0);
    let url = "redis://unstale-coordinator:s3cret@127.0.0.1:1";
    let mut coordinator = begin_coordinator(&place, url);
    coordinator.process.wait_for_log("waiting for the bus", 20);
    // Whoever asks meanwhile is told the same.
    let shown = eventually_some("it answers", 20, || {
        let said = coordinator.run(["status"]);
        if said.code == 0 { Ok(said.stdout) } else { Err(said) }
    });
    assert!(shown.contains("not reached") && shown.contains("127.0.0.1:1"), "{shown}");
    assert!(!coordinator.process.has_ended());
    let log = coordinator.process.log();
    assert!(log.matches("waiting for the bus").count() == 1 && !log.contains("s3cret"), "{log}");
    drop(coordinator);
    let path = |name: &str| place.join(name).display().to_string();
    let (keys_dir, state, socket) = (path("keys"), path("state"), path("sock"));
    let said = unstale([
        "coordinator",
        "--bus",
        url,
        "--fail-fast",
        "--keys",
        &keys_dir,
        "--state-dir",
        &state,
        "--socket",
        &socket,
    ])
    .expect(2);
    assert!(said.stderr.contains("127.0.0.1:1") && !said.stderr.contains("s3cret"), "{said:?}");
}

#[test]
fn a_key_of_the_wrong_kind_is_named() {
    let (place, host) = (Place::new(), Place::new());
    let agent = keys(&host, &["new", "agent", "--host", "web-1"]).expect(0).stdout;
    keys(&place, &["new", "coordinator"]).expect(0);
    // The agent's private key in the coordinator's place.
    fs::copy(host.join("keys/agent.key"), place.join("keys/coordinator.key")).expect("a copy");
    let said = fails_fast(&place, &["coordinator"]);
    assert!(said.stderr.contains("coordinator.key") && said.stderr.contains("agent:web-1"), "{said:?}");
    // An agent that believes an agent.
    keys(&host, &["enrol", agent.trim()]).expect(0);
    let said = fails_fast(&host, &["agent", "--host", "web-1"]);
    assert!(said.stderr.contains("no key of a coordinator is enrolled"), "{said:?}");
}

/// Runs a role on a place's keys that cannot begin.
fn fails_fast(place: &Place, role: &[&str]) -> Answer {
    let path = |name: &str| place.join(name).display().to_string();
    let (keys_dir, state, socket) = (path("keys"), path("state"), path("sock"));
    let mut arguments = role.to_vec();
    arguments.extend(["--bus", "redis://127.0.0.1:1", "--fail-fast", "--keys", &keys_dir, "--state-dir", &state]);
    if role[0] == "coordinator" {
        arguments.extend(["--socket", &socket]);
    }
    unstale(arguments).expect(2)
}

#[test]
fn permissions_that_are_too_narrow_are_told_with_the_key_or_queue() {
    let (place, host) = (Place::new(), Place::new());
    enrol(&place, &[("web-1", &host)]);
    let broker = Broker::start(&place);
    broker.admin(&["ACL", "SETUSER", "unstale-agent", "resetkeys", "%R~unstale:{default}:desired"]);
    broker.admin(&["ACL", "SETUSER", "unstale-coordinator", "-eval"]);
    let coordinator = begin_coordinator(&place, &broker.for_coordinator());
    coordinator.process.wait_for_log("this user may not", 30);
    coordinator.process.wait_for_log("deploy/redis.acl", 5);
    let agent = start_agent(&host, &broker.for_agents(), "web-1");
    agent.wait_for_log("this user may not", 30);
    let log = agent.log();
    assert!(log.contains("unstale:{default}:permit:web-1") && log.contains("deploy/redis.acl"), "{log}");
    drop((coordinator, agent));

    let broker = RabbitMq::start(&place.join("rabbitmq"));
    broker.control(&["set_permissions", "unstale-agent", "^$", "^$", "^$"]);
    broker.control(&["set_permissions", "unstale-coordinator", "^$", "^$", "^$"]);
    let coordinator = begin_coordinator(&place, &broker.for_coordinator());
    let agent = start_agent(&host, &broker.for_agents(), "web-1");
    for process in [&coordinator.process, &agent] {
        process.wait_for_log("deploy/rabbitmq-permissions", 60);
        assert!(process.log().contains("unstale.default."), "{}", process.log());
    }
}

#[test]
fn a_broker_that_is_too_old_is_told_apart_from_one_that_is_away() {
    let place = Place::new();
    keys(&place, &["new", "coordinator"]).expect(0);
    let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
    let mut command = plain_command("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    // What came with version 5.
    for name in ["XADD", "XREAD", "XREVRANGE"] {
        command.args(["--rename-command", name, ""]);
    }
    let _redis = Running::start(&mut command, &place.join("redis.log"));
    let coordinator = begin_coordinator(&place, &format!("redis://127.0.0.1:{port}"));
    coordinator.process.wait_for_log("Redis 5 or later is needed", 30);
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_left_as_it_is() {
    let (place, host) = (Place::new(), Place::new());
    enrol(&place, &[("web-1", &host)]);
    let broker = Broker::start(&place);
    let coordinator = start_coordinator(&place, &broker.for_coordinator());
    let agent = start_agent(&host, &broker.for_agents(), "web-1");
    eventually("the host reports", 30, || status(&coordinator), |seen| array(seen, "hosts").len() == 1);
    drop((coordinator, agent));
    let stores = [place.join("coordinator-state/coordinator.redb"), host.join("agent-state/agent.redb")];
    for store in &stores {
        let database = Database::open(store).expect("a store");
        let change = database.begin_write().expect("a transaction");
        let meta = TableDefinition::<&str, &[u8]>::new("meta");
        change.open_table(meta).expect("a table").insert("format", 2_u32.to_be_bytes().as_slice()).expect("a row");
        change.commit().expect("a commit");
    }
    let before = stores.each_ref().map(|store| rows(store));
    let coordinator = begin_coordinator(&place, &broker.for_coordinator()).process;
    let agent = start_agent(&host, &broker.for_agents(), "web-1");
    for (process, store) in [coordinator, agent].into_iter().zip(&stores) {
        let said = said_at_the_end(process);
        let named = store.display().to_string();
        assert!(
            said.contains(&named) && said.contains("format 2") && said.contains("run the version that wrote it"),
            "{said}"
        );
    }
    assert_eq!(stores.each_ref().map(|store| rows(store)), before);
}

/// Everything in a store: tables, keys and values.
fn rows(store: &Path) -> Vec<(String, String, Vec<u8>)> {
    let database = Database::open(store).expect("a store");
    let read = database.begin_read().expect("a transaction");
    let mut rows = Vec::new();
    for table in read.list_tables().expect("its tables") {
        let name = table.name().to_owned();
        let table = read.open_table(TableDefinition::<&str, &[u8]>::new(&name)).expect("a table");
        for row in table.iter().expect("its rows") {
            let (key, value) = row.expect("a row");
            rows.push((name.clone(), key.value().to_owned(), value.value().to_vec()));
        }
    }
    rows
}

/// A small file system of its own.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        fs::create_dir_all(at).expect("a directory");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs"]).arg(at);
        assert!(command.status().expect("mount").success(), "mounting needs root: run tests/run");
        Self(at.to_owned())
    }

    /// Leaves no room at all.
    fn fill(&self) {
        let chunk = vec![0x5a; 4096];
        let mut file = fs::File::create(self.0.join("filler")).expect("a file");
        while std::io::Write::write_all(&mut file, &chunk).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("filler")).expect("the filler");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

#[test]
fn a_full_disk_ends_a_role_with_a_clear_word_and_it_goes_on_once_there_is_room() {
    let (place, host) = (Place::new(), Place::new());
    enrol(&place, &[("web-1", &host)]);
    let broker = Broker::start(&place);
    let disks = [place.join("coordinator-state"), host.join("agent-state")].map(|at| SmallDisk::mount(&at));
    let full = |process: Running, name: &str| {
        let said = said_at_the_end(process);
        assert!(said.contains("no room left") && said.contains(name) && said.contains("make room"), "{said}");
    };
    // Full from the start.
    disks.iter().for_each(SmallDisk::fill);
    full(begin_coordinator(&place, &broker.for_coordinator()).process, "coordinator-state");
    full(start_agent(&host, &broker.for_agents(), "web-1"), "agent-state");

    disks.iter().for_each(SmallDisk::make_room);
    let coordinator = start_coordinator(&place, &broker.for_coordinator());
    let agent = start_agent(&host, &broker.for_agents(), "web-1");
    eventually("the host reports", 30, || status(&coordinator), |seen| array(seen, "hosts").len() == 1);
    let epoch = status(&coordinator)["epoch"].as_u64();

    // Full while they run: the next thing to be remembered cannot be.
    let Up { process, socket, .. } = coordinator;
    let (mut coordinator, mut agent) = (process, agent);
    let mut number = 0;
    let mut announce_until = |what: &str, role: &mut Running| {
        eventually_some(what, 60, || {
            number += 1;
            let said = announce(&socket, &place, number);
            if role.has_ended() { Ok(()) } else { Err(said) }
        });
    };
    disks[1].fill();
    announce_until("the agent ends", &mut agent);
    full(agent, "agent.redb");
    disks[0].fill();
    announce_until("the coordinator ends", &mut coordinator);
    full(coordinator, "coordinator.redb");

    disks.iter().for_each(SmallDisk::make_room);
    let coordinator = start_coordinator(&place, &broker.for_coordinator());
    let _agent = start_agent(&host, &broker.for_agents(), "web-1");
    let seen = eventually(
        "the host reports again",
        60,
        || status(&coordinator),
        |seen| array(seen, "hosts").first().is_some_and(|host| host["reported_ms_ago"].is_u64()),
    );
    assert!(seen["epoch"].as_u64() > epoch, "{seen:#}");
}

/// Announces an app of this number, whose manifest is some kilobytes long.
fn announce(socket: &Path, place: &Place, number: u32) -> Answer {
    let source = place.folder(format!("app-{number}"));
    let mut text = "import enum\n\n\nclass Kind(enum.Enum):\n".to_owned();
    for member in 0..200 {
        writeln!(text, "    MEMBER_{member} = {number}{member}").expect("text");
    }
    fs::write(source.join("kinds.py"), text).expect("a source file");
    let (at, source) = (format!("unix:{}", socket.display()), source.display().to_string());
    unstale(["broadcast", "--detach", "--coordinator", &at, "--app", &format!("shop-{number}"), &source])
}
