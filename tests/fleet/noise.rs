//! What a bus may bring that nobody should believe, and what stands in the way of reaching one.

use crate::harness::app::Place;
use crate::harness::broker::Broker;
use crate::harness::hosts::{enrol, keys, start_agent, start_coordinator};
use crate::harness::process::Running;
use crate::harness::unstale::{array, program, unstale};
use crate::harness::wait::eventually;

const REPORTS: &str = "unstale:{default}:reports";
const DESIRED: &str = "unstale:{default}:desired";
const PERMITS: &str = "unstale:{default}:permit:web-1";

#[test]
fn noise_forgeries_and_strangers_change_nothing_and_are_counted() {
    let (place, host, stranger) = (Place::new(), Place::new(), Place::new());
    let broker = Broker::start(&place);
    enrol(&place, &[("web-1", &host)]);
    let coordinator = start_coordinator(&place, &broker.for_coordinator());
    let agent = start_agent(&host, &broker.for_agents(), "web-1");
    // Its key is good, and nobody has enrolled it.
    let own = keys(&place, &["show", "--public"]).expect(0).stdout;
    keys(&stranger, &["new", "agent", "--host", "web-2"]).expect(0);
    keys(&stranger, &["enrol", own.trim()]).expect(0);
    let _stranger = start_agent(&stranger, &broker.for_agents(), "web-2");
    let status = || coordinator.run(["status", "--output", "json"]).json();
    eventually("the host reports", 30, status, |status| array(status, "hosts").len() == 1);

    let envelope = broker.admin(&["XREVRANGE", DESIRED, "+", "-", "COUNT", "1"]);
    let envelope = envelope.lines().find(|line| line.starts_with('{')).expect("an envelope").to_owned();
    let epoch = status()["epoch"].clone();
    let unsigned = r#"{"v":1,"kid":"","alg":"none","sig":"","p":"{}"}"#;
    let forged = envelope.replace("\\\"epoch\\\":", "\\\"epoch\\\":9");
    let long = "x".repeat(600_000);
    // Lifted to another kind, unsigned, changed, too long, nothing at all.
    let other_kind = envelope.as_str();
    for noise in [other_kind, unsigned, &long, "", "{"] {
        broker.add(REPORTS, noise);
    }
    for noise in [unsigned, forged.as_str(), "", "{"] {
        broker.add(DESIRED, noise);
    }
    for noise in [other_kind, unsigned, ""] {
        broker.add(PERMITS, noise);
    }
    let seen = eventually("all of it is counted", 30, status, |status| {
        let rejected = &status["bus"]["rejected"];
        // The stranger's reports and the lifted and unsigned ones have keys that are not enrolled for agents.
        ["too_long", "not_an_envelope", "unknown_key"].iter().all(|reason| rejected[reason].as_u64().is_some())
    });
    assert_eq!(seen["epoch"], epoch, "{seen:#}");
    assert_eq!(array(&seen, "hosts").len(), 1, "{seen:#}");
    eventually(
        "the agent says what it did not believe",
        30,
        || agent.log(),
        |log| ["signature", "unknown_key", "not_an_envelope"].iter().all(|reason| log.contains(reason)),
    );
    // What is desired lies on top again.
    let begin = envelope.split_once("\"sig\"").expect("a signature").0;
    eventually(
        "the noise is written over",
        30,
        || broker.admin(&["XREVRANGE", DESIRED, "+", "-", "COUNT", "1"]),
        |top| top.contains(begin) && top.contains(&format!("\\\"epoch\\\":{epoch},")),
    );
}

#[test]
fn an_agent_waits_for_its_broker_with_one_clear_line_or_leaves_at_once() {
    let (place, host) = (Place::new(), Place::new());
    enrol(&place, &[("web-1", &host)]);
    let url = "redis://unstale-agent:s3cret@127.0.0.1:1";
    let mut agent = start_agent(&host, url, "web-1");
    agent.wait_for_log("waiting for the bus", 20);
    assert!(!agent.log().contains("s3cret"), "{}", agent.log());
    assert!(!agent.has_ended());
    drop(agent);
    let directory = |name: &str| host.join(name).display().to_string();
    let said = unstale([
        "agent",
        "--host",
        "web-1",
        "--bus",
        url,
        "--fail-fast",
        "--keys",
        &directory("keys"),
        "--state-dir",
        &directory("other"),
    ])
    .expect(2);
    assert!(said.stderr.contains("127.0.0.1:1") && !said.stderr.contains("s3cret"), "{said:?}");
}

#[test]
fn who_cannot_speak_on_a_bus_is_told_why() {
    let place = Place::new();
    let path = |name: &str| place.join(name).display().to_string();
    let check = |role: &[&str], more: &[&str], part: &str| {
        let (state, socket) = (path("state"), path("sock"));
        let mut arguments: Vec<&str> = role.to_vec();
        arguments.extend(["--state-dir", &state]);
        if role[0] == "coordinator" {
            arguments.extend(["--socket", &socket]);
        }
        arguments.extend(more);
        let said = unstale(arguments).expect(2);
        assert!(said.stderr.contains(part) && !said.stderr.contains("s3cret"), "{said:?}");
    };
    let (keys_dir, bus) = (path("keys"), "redis://:s3cret@127.0.0.1:1");
    let coordinator = ["coordinator", "--keys", &keys_dir];
    let agent = ["agent", "--host", "web-1", "--keys", &keys_dir];
    check(&coordinator, &["--bus", bus], "unstale keys new coordinator");
    check(&agent, &["--bus", bus], "unstale keys new agent --host web-1");
    check(&coordinator, &["--bus", "kafka://:s3cret@x"], "`kafka`");
    check(&coordinator, &[], "no bus is named");
    keys(&place, &["new", "agent", "--host", "web-1"]).expect(0);
    check(&agent, &["--bus", bus], "no key of a coordinator is enrolled");
    let other = ["agent", "--host", "web-2", "--keys", &keys_dir];
    check(&other, &["--bus", bus], "speaks for agent:web-1");
    keys(&place, &["new", "coordinator"]).expect(0);
    check(&agent, &["--bus", bus, "--fail-fast"], "127.0.0.1:1");
    let key = place.join("keys/agent.key");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("its mode");
    check(&agent, &["--bus", bus], "chmod 600");
    std::fs::write(&key, "song").expect("a key file");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("its mode");
    check(&agent, &["--bus", bus], "not a private key");
}

#[test]
fn without_signatures_every_status_says_so() {
    let place = Place::new();
    let broker = Broker::start(&place);
    let socket = place.join("coordinator.sock");
    let mut command = program();
    command.args(["coordinator", "--insecure-bus"]).arg("--state-dir").arg(place.join("state"));
    command.arg("--socket").arg(&socket).env("UNSTALE_BUS", broker.for_coordinator());
    let process = Running::start(&mut command, &place.join("log"));
    process.wait_for_log("NOTHING IS SIGNED", 20);
    let status = || unstale(["status", "--coordinator", &format!("unix:{}", socket.display())]);
    eventually("the coordinator leads", 30, status, |said| said.stdout.contains("leads in epoch"));
    assert!(status().stdout.contains("NOTHING IS SIGNED"));
}
