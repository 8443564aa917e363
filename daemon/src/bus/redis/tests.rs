//! The transport against a real server, under the rules that are shipped.

mod doors;

use super::{Access, Names};
use crate::bus::address::{BusUrl, Login, RedisUrl, Secret};
use crate::bus::contract::{self, Bus, hears, hears_desired, host, is_told, is_up, listen};
use crate::bus::ends::{self, AgentEnd, CoordinatorEnd, FromAgent, FromCoordinator, Link, ToAgent, ToCoordinator};
use crate::bus::envelope::FleetName;
use crate::bus::proxy::{Fault, Proxy};
use crate::clock::Clock;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::task::JoinSet;
use unstale_protocol::fingerprint::Fingerprint;
use unstale_protocol::ids::Epoch;

const RULES: &str = include_str!("../../../../deploy/redis.acl");

/// A server on a port of its own, without persistence.
struct Server {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Server {
    async fn start(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Self::spawn(&dir.path().to_owned(), port, more);
        let server = Self { child, port, dir };
        server.answers().await;
        server
    }

    fn spawn(dir: &PathBuf, port: u16, more: &[&str]) -> Child {
        // Every line of the shipped file: one that Redis does not take keeps it from starting.
        let rules = RULES.replace("PASSWORD-OF-COORDINATOR", "c0").replace("PASSWORD-OF-AGENTS", "a0");
        std::fs::write(dir.join("acl"), rules + "user admin on >admin ~* &* +@all\n").unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(dir).arg("--aclfile").arg(dir.join("acl")).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("redis-server: `apt-get install redis-server`")
    }

    async fn answers(&self) {
        for _ in 0..600 {
            if self.access("admin", "admin").connect("test", Duration::ZERO).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("redis-server does not answer");
    }

    /// Kills it and starts it again, empty.
    async fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.dir.path().to_owned(), self.port, &[]);
        self.answers().await;
    }

    fn access(&self, user: &str, password: &str) -> Access {
        Access {
            url: url(&format!("redis://{user}:{password}@127.0.0.1:{}", self.port)),
            authority: None,
            identity: None,
            fail_fast: false,
        }
    }

    async fn run(&self, words: &[&str]) -> redis::Value {
        let mut connection = self.access("admin", "admin").connect("test", Duration::ZERO).await.unwrap();
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        connection.run(&command, words[0]).await.unwrap_or_else(|refused| panic!("{}", refused.words()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn url(text: &str) -> RedisUrl {
    let Ok(BusUrl::Redis(url)) = text.parse() else { panic!("{text}") };
    url
}

fn names() -> Names {
    Names::new(&FleetName::default())
}

fn start_coordinator(set: &mut JoinSet<anyhow::Result<()>>, access: Access) -> CoordinatorEnd {
    let (end, side) = ends::coordinator();
    set.spawn(super::coordinator(side, access, names(), Clock::start()));
    end
}

fn start_agent(set: &mut JoinSet<anyhow::Result<()>>, access: Access, number: usize) -> AgentEnd {
    let (end, side) = ends::agent();
    set.spawn(super::agent(side, access, names(), host(number)));
    end
}

fn start(set: &mut JoinSet<anyhow::Result<()>>, server: &Server) -> Bus {
    let coordinator = start_coordinator(set, server.access("unstale-coordinator", "c0"));
    let agents = [1, 2].map(|number| (host(number), start_agent(set, server.access("unstale-agent", "a0"), number)));
    Bus { coordinator, agents: agents.into() }
}

#[tokio::test]
async fn redis_keeps_the_contract_under_the_shipped_rules() {
    let server = Server::start(&[]).await;
    let mut set = JoinSet::new();
    let bus = start(&mut set, &server);
    tokio::select! {
        _ = contract::holds(bus) => {}
        ended = set.join_next() => panic!("{ended:?}"),
    }
    // Both names are bounded and of this fleet alone.
    let redis::Value::Array(keys) = server.run(&["KEYS", "*"]).await else { panic!("keys") };
    assert!(!keys.is_empty());
    for key in keys {
        let key: String = redis::from_redis_value(key).unwrap();
        assert!(key.starts_with("unstale:{default}:"), "{key}");
        let redis::Value::Int(left) = server.run(&["PTTL", &key]).await else { panic!("{key}") };
        let hours = left / 3_600_000;
        // What a coordinator that was killed could not remove goes by itself, long after it was written last.
        if key.starts_with("unstale:{default}:manifest:") {
            assert!((167..=168).contains(&hours), "{key} is kept for {hours} h");
        } else if key.starts_with("unstale:{default}:permit:") {
            assert!((1..=600_000).contains(&left), "{key} is kept for {left} ms");
        } else {
            assert_eq!(left, -1, "{key} would end by itself");
        }
    }
}

#[tokio::test]
async fn over_a_slow_way_redis_still_carries_permits_and_keeps_the_lead() {
    let server = Server::start(&[]).await;
    let proxy = Proxy::start(server.port);
    proxy.set(Fault::Late(Duration::from_millis(500)));
    let access = |user: &str, password: &str| Access {
        url: url(&format!("redis://{user}:{password}@127.0.0.1:{}", proxy.port())),
        ..server.access(user, password)
    };
    let mut set = JoinSet::new();
    let (clock, (mut coordinator, side)) = (Clock::start(), ends::coordinator());
    set.spawn(super::coordinator(side, access("unstale-coordinator", "c0"), names(), clock));
    let mut agents = [(host(1), start_agent(&mut set, access("unstale-agent", "a0"), 1))];
    // One more thing to look at: all of it takes longer than the pause between two looks.
    coordinator.manifests.put(Fingerprint::of_bytes(b"1"), (*b"manifest").into());
    contract::holds_over_a_slow_way(&mut coordinator, &mut agents, clock).await;
}

#[tokio::test]
async fn what_a_server_lost_is_written_again_and_everybody_comes_back() {
    let mut server = Server::start(&[]).await;
    let mut set = JoinSet::new();
    let Bus { mut coordinator, mut agents } = start(&mut set, &server);
    coordinator.desired.send_replace(Some((*b"desired one").into()));
    for (_, agent) in &mut agents {
        hears_desired(&mut coordinator, agent, "desired one").await;
    }
    server.restart().await;
    for (_, agent) in &mut agents {
        hears(agent, "that the link was down", |message| match message {
            ToAgent::Link(Link::Down(_) | Link::Up(2..)) => Some(()),
            _ => None,
        })
        .await;
        hears_desired(&mut coordinator, agent, "desired one").await;
    }
    // Without a disconnection, too.
    server.run(&["FLUSHALL"]).await;
    let mut late = start_agent(&mut set, server.access("unstale-agent", "a0"), 3);
    hears_desired(&mut coordinator, &mut late, "desired one").await;
}

#[tokio::test]
async fn one_coordinator_leads_and_a_second_one_writes_nothing_until_it_does() {
    let server = Server::start(&[]).await;
    let mut set = JoinSet::new();
    let held = |message| match message {
        ToCoordinator::Lease(Some(lease)) => Some(lease),
        _ => None,
    };
    let mut first = start_coordinator(&mut set, server.access("unstale-coordinator", "c0"));
    first.least_epoch.send_replace(Epoch(7));
    let lease = is_told(&mut first, "that it leads", held).await;
    assert!(lease.epoch >= Some(Epoch(7)));
    first.desired.send_replace(Some((*b"of the first").into()));
    let mut others = JoinSet::new();
    let mut second = start_coordinator(&mut others, server.access("unstale-coordinator", "c0"));
    second.desired.send_replace(Some((*b"of the second").into()));
    let found = is_told(&mut second, "what is on the bus", |message| match message {
        ToCoordinator::Tip(found) => Some(found),
        ToCoordinator::Lease(Some(_)) => panic!("two leaders"),
        _ => None,
    });
    let mut agent = start_agent(&mut set, server.access("unstale-agent", "a0"), 1);
    tokio::select! {
        found = found => drop(found),
        () = listen(&mut first) => {}
    }
    is_up(&mut agent).await;
    hears_desired(&mut first, &mut agent, "of the first").await;
    // The first one is gone without a word: the second one leads once the lease has ended, under a higher epoch.
    set.abort_all();
    let taken = is_told(&mut second, "that it leads", held).await;
    assert!(taken.epoch > lease.epoch, "{taken:?} {lease:?}");
}

#[tokio::test]
async fn who_wakes_when_another_one_leads_removes_nothing() {
    let server = Server::start(&[]).await;
    let mut set = JoinSet::new();
    let mut coordinator = start_coordinator(&mut set, server.access("unstale-coordinator", "c0"));
    let leads = |message| matches!(message, ToCoordinator::Lease(Some(_))).then_some(());
    is_told(&mut coordinator, "that it leads", leads).await;
    let digest = Fingerprint::of_bytes(b"1");
    coordinator.manifests.put(digest, (*b"manifest").into());
    coordinator.send(FromCoordinator::Permit(host(1), (*b"permit").into()));
    let (manifest, permits) = (names().manifest(&digest), names().permits(&host(1)));
    let there = async || server.run(&["EXISTS", &manifest, &permits]).await;
    while there().await != redis::Value::Int(2) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let taken = "local t = redis.call('TIME') \
        redis.call('HSET', KEYS[1], 'holder', 'another', 'epoch', '9', 'until', t[1] * 1000 + 60000)";
    server.run(&["EVAL", taken, "1", &names().lease()]).await;
    // Decided while it led.
    coordinator.manifests.retain(|_| false);
    coordinator.send(FromCoordinator::Forget(host(1)));
    let lost = |message| matches!(message, ToCoordinator::Lease(None)).then_some(());
    is_told(&mut coordinator, "that it leads no more", lost).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(there().await, redis::Value::Int(2));
}

#[tokio::test]
async fn a_manifest_that_another_coordinator_has_written_is_looked_up() {
    let server = Server::start(&[]).await;
    let mut set = JoinSet::new();
    let mut first = start_coordinator(&mut set, server.access("unstale-coordinator", "c0"));
    let digest = Fingerprint::of_bytes(b"1");
    first.manifests.put(digest, (*b"manifest").into());
    let mut second = start_coordinator(&mut set, server.access("unstale-coordinator", "c0"));
    let asker = async {
        loop {
            for digest in [Fingerprint::of_bytes(b"2"), digest] {
                second.send(FromCoordinator::LookUp(digest));
            }
            let told = is_told(&mut second, "of a manifest", |message| match message {
                ToCoordinator::Manifest(of, manifest) => Some((of, manifest)),
                _ => None,
            });
            if let Ok(told) = tokio::time::timeout(Duration::from_millis(500), told).await {
                return told;
            }
        }
    };
    tokio::select! {
        told = asker => assert_eq!(told, (digest, (*b"manifest").into())),
        () = listen(&mut first) => {}
    }
}

#[tokio::test]
async fn a_coordinator_under_rules_of_before_leads_and_looks_nothing_up() {
    let server = Server::start(&[]).await;
    server.run(&["ACL", "SETUSER", "unstale-coordinator", "-getrange"]).await;
    let mut set = JoinSet::new();
    let mut coordinator = start_coordinator(&mut set, server.access("unstale-coordinator", "c0"));
    is_told(&mut coordinator, "that it leads", |message| {
        matches!(message, ToCoordinator::Lease(Some(_))).then_some(())
    })
    .await;
    coordinator.send(FromCoordinator::LookUp(Fingerprint::of_bytes(b"1")));
    for _ in 0..2 {
        is_told(&mut coordinator, "that it leads still", |message| match message {
            ToCoordinator::Link(Link::Down(why)) => panic!("{why}"),
            message => matches!(message, ToCoordinator::Lease(Some(_))).then_some(()),
        })
        .await;
    }
}

#[tokio::test]
async fn a_wrong_password_is_waited_out_and_said() {
    let server = Server::start(&[]).await;
    let mut set = JoinSet::new();
    let mut agent = start_agent(&mut set, server.access("unstale-agent", "wrong"), 1);
    let why = hears(&mut agent, "why", |message| match message {
        ToAgent::Link(Link::Down(why)) if !why.contains("yet") => Some(why),
        _ => None,
    })
    .await;
    assert!(why.contains("refuses user or password") && !why.contains("wrong@"), "{why}");
    server.run(&["ACL", "SETUSER", "unstale-agent", ">wrong"]).await;
    is_up(&mut agent).await;
}

#[tokio::test]
async fn what_a_user_may_not_do_is_named() {
    let server = Server::start(&[]).await;
    server.run(&["ACL", "SETUSER", "unstale-agent", "-xread"]).await;
    let mut set = JoinSet::new();
    let mut agent = start_agent(&mut set, server.access("unstale-agent", "a0"), 1);
    let why = hears(&mut agent, "why", |message| match message {
        ToAgent::Link(Link::Down(why)) if why.contains("may not") => Some(why),
        _ => None,
    })
    .await;
    assert!(why.contains("XREAD unstale:{default}:desired") && why.contains("redis.acl"), "{why}");
}

#[tokio::test]
async fn who_does_not_want_to_wait_is_told_at_once() {
    let (_end, side) = ends::agent();
    let access = Access { url: url("redis://:s3cret@127.0.0.1:1"), authority: None, identity: None, fail_fast: true };
    let error = super::agent(side, access, names(), host(1)).await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1") && !error.contains("s3cret"), "{error}");
}

#[tokio::test]
async fn a_full_memory_takes_what_the_coordinator_writes() {
    let server = Server::start(&[]).await;
    let mut set = JoinSet::new();
    let Bus { mut coordinator, mut agents } = start(&mut set, &server);
    is_told(&mut coordinator, "that it leads", |message| {
        matches!(message, ToCoordinator::Lease(Some(_))).then_some(())
    })
    .await;
    server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    coordinator.desired.send_replace(Some((*b"desired one").into()));
    hears_desired(&mut coordinator, &mut agents[0].1, "desired one").await;
}

#[tokio::test]
async fn an_agent_goes_on_reading_where_nothing_is_written() {
    let server = Server::start(&[]).await;
    let mut set = JoinSet::new();
    let mut agent = start_agent(&mut set, server.access("unstale-agent", "a0"), 1);
    is_up(&mut agent).await;
    server.run(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    // Twice: by the second time the first one had its effect.
    let mut statistics = String::new();
    for _ in 0..100 {
        agent.send(FromAgent::Report((*b"report").into())).unwrap();
        statistics = redis::from_redis_value(server.run(&["INFO", "errorstats"]).await).unwrap();
        let count = statistics.split_once("errorstat_NOREPLICAS:count=").and_then(|(_, rest)| rest.lines().next());
        if count.is_some_and(|count| count.parse::<u32>().unwrap() >= 2) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(statistics.contains("NOREPLICAS"), "{statistics}");
    server.run(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    server.run(&["XADD", "unstale:{default}:desired", "*", "e", "afterwards"]).await;
    hears(&mut agent, "what is desired afterwards", |message| match message {
        ToAgent::Desired(desired) if *desired == *b"afterwards" => Some(()),
        ToAgent::Link(link) => panic!("{link:?}"),
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_gets_no_second_connection_keeps_the_one_that_it_reads_on() {
    let server = Server::start(&[]).await;
    let mut admin = server.access("admin", "admin").connect("test", Duration::ZERO).await.unwrap();
    let mut ask = async |words: &[&str]| -> redis::Value {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        admin.run(&command, words[0]).await.unwrap_or_else(|refused| panic!("{}", refused.words()))
    };
    let mut set = JoinSet::new();
    let mut agent = start_agent(&mut set, server.access("unstale-agent", "a0"), 1);
    is_up(&mut agent).await;
    ask(&["CONFIG", "SET", "maxclients", "2"]).await;
    agent.send(FromAgent::Report((*b"report").into())).unwrap();
    let is_quiet = |said| redis::from_redis_value::<String>(said).unwrap().contains("rejected_connections:0");
    while is_quiet(ask(&["INFO", "stats"]).await) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ask(&["CONFIG", "SET", "maxclients", "100"]).await;
    agent.send(FromAgent::Report((*b"report").into())).unwrap();
    while ask(&["XLEN", "unstale:{default}:reports"]).await == redis::Value::Int(0) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ask(&["XADD", "unstale:{default}:desired", "*", "e", "afterwards"]).await;
    hears(&mut agent, "what is desired afterwards", |message| match message {
        ToAgent::Desired(desired) if *desired == *b"afterwards" => Some(()),
        ToAgent::Link(link) => panic!("{link:?}"),
        _ => None,
    })
    .await;
}

/// The coordinator's connections, as the server numbers them.
async fn coordinators(server: &Server) -> Vec<String> {
    let listed: String = redis::from_redis_value(server.run(&["CLIENT", "LIST"]).await).unwrap();
    let ours = listed.lines().filter(|line| line.contains(" name=unstale-coordinator "));
    ours.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_coordinator_goes_on_reading_where_nothing_is_written_and_leaves_a_replica() {
    let server = Server::start(&[]).await;
    let mut set = JoinSet::new();
    let mut coordinator = start_coordinator(&mut set, server.access("unstale-coordinator", "c0"));
    let held = |message| match message {
        ToCoordinator::Lease(Some(lease)) => Some(lease.epoch),
        _ => None,
    };
    let first = is_told(&mut coordinator, "that it leads", held).await;
    let before = coordinators(&server).await;
    assert_eq!(before.len(), 2, "{before:?}");
    server.run(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    let refusal = is_told(&mut coordinator, "why nothing is written", |message| match message {
        ToCoordinator::Link(Link::Down(why)) => Some(why),
        _ => None,
    });
    let refusal = refusal.await;
    assert!(refusal.contains("NOREPLICAS"), "{refusal}");
    // Nothing of all this is written, and it is not taken for written.
    coordinator.desired.send_replace(Some((*b"meanwhile").into()));
    coordinator.manifests.put(Fingerprint::of_bytes(b"1"), (*b"manifest").into());
    coordinator.send(FromCoordinator::Forget(host(1)));
    is_told(&mut coordinator, "that it leads no more", |message| match message {
        ToCoordinator::Lease(None) => Some(()),
        ToCoordinator::Link(link) => panic!("{link:?}"),
        _ => None,
    })
    .await;
    assert_eq!(coordinators(&server).await, before);
    assert_eq!(server.run(&["EXISTS", "unstale:{default}:desired"]).await, redis::Value::Int(0));
    server.run(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    let again = is_told(&mut coordinator, "that it leads again", held).await;
    assert!(again > first, "{again:?} {first:?}");
    let mut agent = start_agent(&mut set, server.access("unstale-agent", "a0"), 1);
    hears_desired(&mut coordinator, &mut agent, "meanwhile").await;
    contract::fetches(&mut coordinator, &mut agent, Fingerprint::of_bytes(b"1"), "manifest").await;
    assert_eq!(coordinators(&server).await, before);
    // A replica never takes anything: another server may lead by now.
    server.run(&["REPLICAOF", "127.0.0.1", "1"]).await;
    is_told(&mut coordinator, "that it is a replica", |message| match message {
        ToCoordinator::Link(Link::Down(why)) => Some(why),
        _ => None,
    })
    .await;
    server.run(&["REPLICAOF", "NO", "ONE"]).await;
    is_told(&mut coordinator, "that it leads once more", held).await;
    assert!(coordinators(&server).await.iter().all(|connection| !before.contains(connection)));
}

#[tokio::test]
async fn a_server_that_falls_silent_is_noticed_and_reports_of_meanwhile_are_read() {
    let server = Server::start(&[]).await;
    let mut set = JoinSet::new();
    let mut coordinator = start_coordinator(&mut set, server.access("unstale-coordinator", "c0"));
    let up = |message| matches!(message, ToCoordinator::Link(Link::Up(_))).then_some(());
    is_told(&mut coordinator, "that it is connected", up).await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(server.child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let why = is_told(&mut coordinator, "that nothing answers", |message| match message {
        ToCoordinator::Link(Link::Down(why)) => Some(why),
        _ => None,
    })
    .await;
    assert!(why.contains("no answer") || why.contains("does not answer"), "{why}");
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    server.run(&["XADD", "unstale:{default}:reports", "*", "h", "web-1", "e", "meanwhile"]).await;
    is_told(&mut coordinator, "what was said meanwhile", |message| match message {
        ToCoordinator::Report(report) if *report == *b"meanwhile" => Some(()),
        _ => None,
    })
    .await;
}
