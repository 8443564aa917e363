//! A rollout over two hosts that a test disturbs in its middle: each worker has a task in hand, and drains for as long as
//! the test wants it to.

use crate::harness::hosts::{Fleet, outcome};
use crate::harness::process::Running;
use crate::harness::python::{newest, venv};
use crate::harness::wait::{eventually, eventually_some};
use std::fs;

/// The task that every worker has in hand.
const TASK: &str = "task";
/// What everybody says who has lost the bus.
const LOST: &str = "the bus is lost";

/// The rollout.
#[derive(Debug)]
pub(crate) struct Rollout {
    /// The fleet.
    pub(crate) fleet: Fleet,
    broadcast: Running,
    first: usize,
    second: usize,
}

impl Rollout {
    /// Begins it on a fleet of two hosts, and waits until the first worker drains.
    pub(crate) fn begin(fleet: Fleet) -> Self {
        assert_eq!(fleet.hosts.len(), 2);
        let python = venv(&newest(), "worker").join("bin/python");
        for host in &fleet.hosts {
            host.app.send(&python, TASK);
            host.app.wait_for_journal(&format!("start {TASK}"), 20);
        }
        fleet.flip();
        let broadcast = fleet.begin_broadcast();
        let first = eventually_some("one worker drains", 80, || {
            (0..2).find(|index| drains(&fleet, *index)).ok_or_else(|| broadcast.log())
        });
        Self { fleet, broadcast, first, second: 1 - first }
    }

    /// Lets the first worker end, and waits until it is back.
    pub(crate) fn finish_first(&self) {
        self.finish(self.first);
    }

    /// Waits until the second worker drains, and lets it end.
    pub(crate) fn finish_second(&self) {
        self.wait_for_second();
        self.finish(self.second);
    }

    /// Waits until the second worker drains.
    pub(crate) fn wait_for_second(&self) {
        eventually(
            "the second worker drains",
            40,
            || (self.fleet.status(), self.fleet.coordinator.process.log(), self.agents_say()),
            |_| drains(&self.fleet, self.second),
        );
    }

    /// Asserts that the second worker was not told to stop yet.
    #[track_caller]
    pub(crate) fn assert_the_second_works_on(&self) {
        assert!(!drains(&self.fleet, self.second), "{}", self.fleet.coordinator.process.log());
    }

    fn finish(&self, index: usize) {
        let host = self.fleet.hosts.get(index).expect("a host");
        host.app.open_door(TASK);
        eventually(
            &format!("the worker of {} is back", host.name),
            30,
            || fs::read_to_string(host.place.join("supervisord/supervisord.log")).unwrap_or_default(),
            |log| log.matches("success: shop entered RUNNING").count() >= 2,
        );
    }

    /// How often the coordinator, and each agent, have lost the bus so far.
    pub(crate) fn losses(&self) -> [usize; 3] {
        let [first, second] = self.agents_say().map(|log| log.matches(LOST).count());
        [self.fleet.coordinator.process.log().matches(LOST).count(), first, second]
    }

    fn agents_say(&self) -> [String; 2] {
        [0, 1].map(|index| {
            let agent = self.fleet.hosts.get(index).and_then(|host| host.agent.as_ref());
            agent.expect("an agent that runs").log()
        })
    }

    /// Waits until the coordinator has lost the bus once more than at `before`.
    pub(crate) fn wait_until_the_coordinator_has_lost_the_bus(&self, before: [usize; 3]) {
        eventually(
            "the coordinator has lost the bus",
            10,
            || (self.losses(), self.fleet.coordinator.process.log()),
            |(now, _)| now[0] > before[0],
        );
    }

    /// The same for both agents.
    pub(crate) fn wait_until_the_agents_have_lost_the_bus(&self, before: [usize; 3]) {
        eventually(
            "the agents have lost the bus",
            10,
            || (self.losses(), self.agents_say()),
            |(now, _)| now[1] > before[1] && now[2] > before[2],
        );
    }

    /// Waits for proof, and asserts that each worker was restarted exactly once, one at a time.
    pub(crate) fn converges(mut self) {
        let code = self.broadcast.wait(300);
        assert_eq!(
            (code, outcome(&self.broadcast).as_str()),
            (0, "converged"),
            "{}\n{}\n{:#?}",
            self.broadcast.log(),
            self.fleet.coordinator.process.log(),
            self.agents_say()
        );
        self.fleet.assert_each_was_restarted_once_and_one_at_a_time();
    }
}

fn drains(fleet: &Fleet, index: usize) -> bool {
    fleet.hosts.get(index).expect("a host").supervisord.log("shop").contains("Warm shutdown")
}
