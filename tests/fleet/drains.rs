//! Taking units of a fleet out of work by hand, through its coordinator.

use crate::harness::hosts::{Fleet, Host};
use crate::harness::process::is_running;
use crate::harness::unstale::{array, text};
use crate::harness::wait::eventually;
use serde_json::Value;

const HOSTS: [&str; 2] = ["web-1", "web-2"];

/// Where each drain stands, by host.
fn standings(status: &Value) -> Vec<(String, String)> {
    array(status, "drains").iter().map(|drain| (text(drain, "host"), text(drain, "standing"))).collect()
}

/// Where the drains stand, whichever host they are of.
fn sorted(status: &Value) -> Vec<String> {
    let mut stand: Vec<String> = standings(status).into_iter().map(|(_, standing)| standing).collect();
    stand.sort();
    stand
}

fn pair(host: &str, standing: &str) -> (String, String) {
    (host.to_owned(), standing.to_owned())
}

fn is_stopped(host: &Host) -> bool {
    host.supervisord.control(&["status", "shop"]).contains("STOPPED")
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn units_of_a_fleet_are_drained_by_any_selector_within_the_budget_and_survive_kills() {
    let mut fleet = Fleet::start(&HOSTS);
    fleet.coordinator.broadcast("shop", &fleet.hosts[0].app.code, &["--timeout", "15m"]).expect(0);
    let mains: Vec<u32> = fleet.hosts.iter().map(|host| host.supervisord.wait_for_pid("shop")).collect();

    // A look beforehand.
    let said = fleet.coordinator.run(["drain", "app:shop", "--dry-run", "--output", "json"]).expect(0).json();
    assert_eq!(standings(&said), [pair("web-1", "would_drain"), pair("web-2", "would_drain")], "{said:#}");
    assert!(mains.iter().all(|main| is_running(*main)));

    // Both are of one pool, of which one may be out of work: the other one waits for leave.
    let said = fleet.coordinator.run(["drain", "app:shop", "--timeout", "40s", "--output", "json"]).expect(3).json();
    assert_eq!(standings(&said).len(), HOSTS.len(), "{said:#}");
    fleet.wait_for("one is drained", |status| sorted(status) == ["drained", "waiting"]);
    assert_eq!(fleet.hosts.iter().filter(|host| is_stopped(host)).count(), 1);

    // It is on disk, on both sides. The agents first: what the new coordinator hears is then of their new lives.
    fleet.kill_agent(0);
    fleet.kill_agent(1);
    fleet.kill_coordinator();
    fleet.wait_for("every host was looked at", |status| {
        let hosts = array(status, "hosts");
        hosts.iter().filter(|host| host["apps"]["shop"]["unseen"] == false).count() == HOSTS.len()
    });
    assert_eq!(sorted(&fleet.status()), ["drained", "waiting"]);
    assert_eq!(fleet.hosts.iter().filter(|host| is_stopped(host)).count(), 1);

    // Beyond the budget, said aloud.
    let said = fleet.coordinator.run(["drain", "app:shop", "--force", "--timeout", "5m"]).expect(0);
    assert!(said.stderr.contains("beyond the budget"), "{said:?}");
    // Gone, and a moment later also in supervisord's own words.
    let supervised =
        || fleet.hosts.iter().map(|host| host.supervisord.control(&["status", "shop"])).collect::<Vec<_>>();
    eventually("both are stopped", 20, supervised, |said| said.iter().all(|line| line.contains("STOPPED")));
    let log = fleet.coordinator.process.log();
    assert!(log.contains("by force, beyond the budget of"), "{log}");

    // One by its host, the other by its slot.
    fleet.coordinator.run(["undrain", "host:web-1"]).expect(0);
    let first = fleet.hosts[0].supervisord.wait_for_pid("shop");
    assert!(is_stopped(&fleet.hosts[1]));
    let slot = text(&array(&fleet.status(), "drains")[0], "slot");
    fleet.coordinator.run(["undrain", &format!("slot:{slot}")]).expect(0);
    let second = fleet.hosts[1].supervisord.wait_for_pid("shop");

    // By its unit, by its pool, and by what fits nothing.
    fleet.hosts[0].supervisord.wait_until_ready("shop", 2);
    fleet.hosts[1].supervisord.wait_until_ready("shop", 2);
    let unit = format!("unit:celery:{second}");
    eventually(
        "the new life is known",
        60,
        || fleet.coordinator.run(["drain", &unit, "--dry-run", "--output", "json"]),
        |said| said.code == 0,
    );
    fleet.coordinator.run(["drain", &unit, "--timeout", "5m"]).expect(0);
    assert!(is_stopped(&fleet.hosts[1]) && is_running(first));
    fleet.coordinator.run(["undrain", &unit]).expect(0);
    let status = fleet.status();
    let pools =
        array(&status, "hosts").iter().flat_map(|host| array(host, "slots")).flat_map(|slot| array(slot, "pools"));
    let pool = pools.map(|pool| pool.as_str().expect("a name")).next().expect("a pool").to_owned();
    let said =
        fleet.coordinator.run(["drain", &format!("pool:{pool}"), "--dry-run", "--output", "json"]).expect(0).json();
    assert_eq!(standings(&said).len(), HOSTS.len(), "{said:#}");
    let said = fleet.coordinator.run(["drain", "host:web-9"]).expect(2);
    assert!(said.stderr.contains("no unit matches"), "{said:?}");
}
