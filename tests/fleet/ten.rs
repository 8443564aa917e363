//! Ten hosts with a real worker each, and one budget for all of them.

use crate::harness::hosts::{Fleet, Host, outcome};
use crate::harness::process::stat;
use crate::harness::python::newest;
use crate::harness::restarts::{Mark, most_down_at_once};
use crate::harness::unstale::{inspect, verdicts};

const HOSTS: [&str; 10] = ["web-0", "web-1", "web-2", "web-3", "web-4", "web-5", "web-6", "web-7", "web-8", "web-9"];
/// Those that have the new source, and workers that hold it, before anything is announced.
const FRESH: [usize; 2] = [3, 7];
/// How many may be unavailable at once.
const BUDGET: usize = 3;

/// Deploys to one host and restarts its worker by hand.
fn freshen(host: &Host) {
    host.app.flip();
    std::fs::remove_file(host.app.bytecode("enums", newest().minor())).expect("bytecode");
    host.supervisord.control(&["restart", "shop"]);
    host.supervisord.wait_until_ready("shop", 2);
}

/// The main process of a host's worker, and when it began.
fn life(host: &Host) -> (u32, u64) {
    let pid = host.supervisord.wait_for_pid("shop");
    (pid, stat(pid).expect("a process that runs").start)
}

#[test]
#[ignore = "takes minutes: tests/run fleet:: -- --ignored"]
fn ten_hosts_converge_within_one_budget_and_what_was_fresh_is_not_touched() {
    let fleet = Fleet::start(&HOSTS);
    let is_fresh = |index: &usize| FRESH.contains(index);
    let fresh: Vec<&Host> = FRESH.iter().map(|index| &fleet.hosts[*index]).collect();
    for host in &fresh {
        freshen(host);
    }
    let lives: Vec<_> = fresh.iter().map(|host| life(host)).collect();
    let mark = Mark::set(&fleet.hosts);
    for (_, host) in fleet.hosts.iter().enumerate().filter(|(index, _)| !is_fresh(index)) {
        host.app.flip();
    }

    let mut broadcast = fleet.begin_broadcast_with(&["--max-unavailable", &BUDGET.to_string()]);
    let code = broadcast.wait(225);
    let log = fleet.coordinator.process.log();
    assert_eq!((code, outcome(&broadcast).as_str()), (0, "converged"), "{}\n{log}", broadcast.log());

    let restarts = mark.restarts_since(&fleet.hosts);
    let mut once: Vec<&str> = restarts.iter().map(|restart| restart.host.as_str()).collect();
    once.sort_unstable();
    let stale: Vec<&str> =
        HOSTS.iter().enumerate().filter(|(index, _)| !is_fresh(index)).map(|(_, name)| *name).collect();
    assert_eq!(once, stale, "each stale worker is restarted exactly once, and no other one: {restarts:#?}");
    let most = most_down_at_once(&restarts);
    assert!((2..=BUDGET).contains(&most), "{most} were down at once: {restarts:#?}");
    assert_eq!(fresh.iter().map(|host| life(host)).collect::<Vec<_>>(), lives, "what was fresh is as it was");
    for host in &fleet.hosts {
        let seen = verdicts(&inspect(&host.place.path()));
        assert!(seen.len() == 2 && seen.iter().all(|(_, verdict)| verdict == "fresh"), "{}: {seen:?}", host.name);
    }
}
