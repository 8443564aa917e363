//! A host that nothing is heard of.

use crate::harness::hosts::Fleet;
use crate::harness::unstale::{array, text};
use crate::harness::wait::eventually;
use rustix::process::Signal;

#[test]
fn a_silent_host_is_shown_uses_no_budget_and_is_named_by_whoever_waits_for_it() {
    let mut fleet = Fleet::start(&["web-1", "web-2"]);
    fleet.flip();
    let code = fleet.hosts[0].app.code.clone();
    // A look beforehand asks everybody.
    let said = fleet.coordinator.broadcast("shop", &code, &["--dry-run"]).expect(0).json();
    let asked: Vec<String> = array(&said, "units_detail").iter().map(|unit| text(unit, "host")).collect();
    assert_eq!(
        (asked, &said["units"]["pending"]),
        (vec!["web-1".to_owned(), "web-2".to_owned()], &2.into()),
        "{said:#}"
    );
    let agent = fleet.hosts[1].agent.as_mut().expect("an agent");
    agent.signal(Signal::KILL);
    agent.wait(10);
    // It becomes silent three minutes after its last word, whether anything was announced or not.
    let seen = eventually(
        "it is silent",
        200,
        || fleet.status(),
        |status| array(status, "hosts").iter().any(|host| text(host, "standing") == "silent"),
    );
    let standing = |name: &str| {
        let host = array(&seen, "hosts").iter().find(|host| text(host, "host") == name).expect("the host").clone();
        (text(&host, "standing"), host["reported_ms_ago"].as_u64().expect("since when"))
    };
    let (silent, since) = standing("web-2");
    assert!(silent == "silent" && since >= 180_000, "{seen:#}");
    let (reporting, lag) = standing("web-1");
    assert!(reporting == "reporting" && lag < 180_000, "{seen:#}");
    assert!(fleet.coordinator.run(["status"]).stdout.contains("silent"));

    let answer = fleet.coordinator.broadcast("shop", &code, &["--timeout", "15m"]).expect(3);
    let said = answer.json();
    assert_eq!((text(&said, "outcome").as_str(), &said["units"]["restarted"]), ("incomplete", &1.into()), "{said:#}");
    assert!(format!("{said}").contains("silent: web-2"), "{said:#}");
    let said = fleet.coordinator.broadcast("shop", &code, &["--timeout", "15m", "--ignore-silent"]).expect(0).json();
    assert_eq!(text(&said, "outcome"), "converged", "{said:#}");
    // A look beforehand names who does not answer.
    let said = fleet.coordinator.broadcast("shop", &code, &["--timeout", "30s", "--dry-run"]).expect(3);
    assert!(said.stdout.contains("web-2"), "{said:?}");
}
