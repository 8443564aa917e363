//! `unstale demo`: what a newcomer sees first.

use crate::harness::process::all;
use crate::harness::python::{newest, venv};
use crate::harness::unstale::{Answer, answer, program};
use std::fs;
use std::path::Path;

fn demo(more: &[&str]) -> Answer {
    let mut command = program();
    command.arg("demo").arg("--venv").arg(venv(&newest(), "worker")).args(more);
    answer(command)
}

/// The directory that a demo was played in.
fn stage(said: &Answer) -> String {
    let line = said.stdout.lines().find(|line| line.starts_with("1. ")).expect("a first step");
    line.rsplit_once(", in ").expect("its place").1.to_owned()
}

/// Asserts that a demo succeeded, said this as its proof, and left neither a file nor a process.
#[track_caller]
fn check(more: &[&str], proof: &[&str]) {
    let said = demo(more).expect(0);
    let (_, proven) = said.stdout.split_once("\nProof\n").unwrap_or_else(|| panic!("no proof: {said:?}"));
    for words in proof {
        assert!(proven.contains(words), "{words:?} is not proven: {said:?}");
    }
    let stage = stage(&said);
    assert!(!Path::new(&stage).exists(), "{stage} is still there");
    let left: Vec<u32> = all()
        .into_iter()
        .filter(|pid| {
            let of = |link: &str| fs::read_link(format!("/proc/{pid}/{link}"));
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            of("cwd").is_ok_and(|cwd| cwd.starts_with(&stage)) || String::from_utf8_lossy(&command).contains(&stage)
        })
        .collect();
    assert!(left.is_empty(), "still running: {left:?}");
}

#[test]
fn the_demo_of_one_host_ends_with_proof_and_leaves_nothing_behind() {
    check(&[], &["exactly once", "no process holds the old value", "inserts 'hubspot'"]);
}

#[test]
fn the_demo_of_a_fleet_ends_with_proof_from_three_hosts_and_leaves_nothing_behind() {
    check(
        &["--fleet"],
        &["each worker was restarted exactly once", "never were two down at once: web-", "on any host", "'hubspot'"],
    );
}

#[test]
fn without_a_redis_the_demo_of_a_fleet_says_how_to_get_one_before_it_begins() {
    let said = demo(&["--fleet", "--redis", "/nonexistent/redis-server"]).expect(2);
    assert_eq!(said.stdout, "");
    assert!(said.stderr.contains("apt-get install redis-server") && said.stderr.contains("--redis"), "{said:?}");
}
