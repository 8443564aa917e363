//! Reports of many hosts to the real coordinator, with real keys: how fast they are collected, verified and stored, and
//! what the coordinator and an agent take of memory.

use super::brokers::Broker;
use super::processes::{anonymous, clock, cpu, pause, rests};
use super::raw::Writer;
use crate::bus::envelope::{Channel, Encoded, FleetName, Seal};
use crate::cli::Surroundings;
use crate::keys::{KeyPlace, Role};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use unstale_protocol::fingerprint::Salt;
use unstale_protocol::ids::{
    AppName, HostName, Incarnation, Pid, PoolName, ProcessIdentity, Revision, SlotId, UnitId, Version,
};
use unstale_protocol::message::{AppReport, Phase, PoolReport, Report, SlotJudgement, SlotReport, UnitCounts, Upward};
use unstale_protocol::time::Moment;
use unstale_protocol::verdict::{Cure, Verdict};

/// Hosts that report at once, and how many a coordinator's memory is stated for.
const REPORTING: usize = 10_000;
const RESIDENT: usize = 5_000;
/// How much of the broker's own rate is to be reached; megabytes that an agent may take.
const LEAST: f64 = 0.6;
const AGENT_MOST: f64 = 10.0;

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        drop(self.0.wait());
    }
}

fn unstale(role: &str, url: &str, dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
    let config = dir.join(format!("{role}.toml"));
    fs::write(&config, "").unwrap();
    command.arg(role).arg("--keys").arg(dir.join("keys")).arg("--config").arg(config);
    let log = File::create(dir.join(format!("{role}.log"))).unwrap();
    command.env("UNSTALE_BUS", url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command
}

fn place(dir: &Path) -> KeyPlace {
    KeyPlace::choose(Some(dir), &Surroundings::default()).unwrap()
}

/// What a host says of an app with four workers, all of them right.
fn report(host: HostName) -> Report {
    let app = AppName::new("shop").unwrap();
    let slot = |number: usize| SlotId::new(format!("celery/systemd/shop@{number}.service")).unwrap();
    let pools = ["shop/celery/shop", "shop/celery/mail"].map(|pool| PoolName::new(pool).unwrap());
    let judgement = || SlotJudgement { verdict: Verdict::Fresh, cure: Cure::None };
    let slots = (0..4).map(|number| SlotReport {
        slot: slot(number),
        unit: Some(UnitId::new(format!("celery:{}", 4_000 + number)).unwrap()),
        last_unit: None,
        identity: Some(ProcessIdentity {
            pid: Pid(u32::try_from(4_000 + number).unwrap()),
            start_ticks: 1_234_567,
            pid_namespace: 4_026_531_836,
        }),
        pools: [pools[number % 2].clone()].into(),
        apps: [(app.clone(), judgement())].into(),
        phase: Phase::Up,
        because: String::new(),
        done: None,
    });
    let slots = slots.collect();
    let units = UnitCounts { fresh: 4, ..UnitCounts::default() };
    let of_app = AppReport { revision: Revision(1), converged: true, units, ..AppReport::default() };
    Report {
        host,
        incarnation: Incarnation { counter: 1, random: Salt([1; 16]) },
        sequence: 1,
        clock: Moment(1),
        accepted: Version::default(),
        author: Salt::default(),
        refused: None,
        unsupported: None,
        leaving: false,
        scanned: true,
        apps: [(app, of_app)].into(),
        pools: pools.map(|pool| (pool, PoolReport { total: 2, unavailable: 0 })).into(),
        slots,
        omitted: 0,
        others: Vec::new(),
        others_omitted: 0,
        rejected: BTreeMap::new(),
        probes: BTreeMap::new(),
    }
}

/// A coordinator with its keys, and the reports of hosts that it has enrolled.
struct Stage {
    coordinator: Process,
    dir: TempDir,
    /// The store is on a real disk.
    _store: TempDir,
    reports: Vec<Encoded>,
}

impl Stage {
    async fn set(broker: &Broker, hosts: usize) -> Self {
        // In memory, where there is some: thousands of keys are written, each of them safely.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let keys = place(&dir.path().join("keys"));
        let (own, _) = keys.make(&Role::Coordinator).unwrap();
        let mut lines = String::new();
        let reports = (0..hosts)
            .map(|number| {
                let host = HostName::new(format!("web-{number}")).unwrap();
                let role = Role::Agent(host.clone());
                let place = place(&dir.path().join(format!("{number}")));
                let (public, _) = place.make(&role).unwrap();
                place.enrol(&own).unwrap();
                lines.extend([public.to_string(), "\n".to_owned()]);
                let seal = Seal::with_keys(FleetName::default(), place, role).unwrap();
                seal.close(Channel::Report, &serde_json::to_string(&Upward::Report(report(host))).unwrap()).unwrap()
            })
            .collect();
        fs::write(keys.agents(), lines).unwrap();
        let mut command = unstale("coordinator", &broker.for_coordinator(), dir.path());
        let store = tempfile::tempdir().unwrap();
        command.arg("--socket").arg(dir.path().join("socket")).arg("--state-dir").arg(store.path().join("state"));
        let coordinator = Process(command.spawn().unwrap());
        let stage = Self { coordinator, dir, _store: store, reports };
        while stage.status()["bus"]["leads"] != true {
            pause(200).await;
        }
        rests(stage.coordinator.0.id()).await;
        stage
    }

    fn status(&self) -> Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
        let socket = format!("unix:{}", self.dir.path().join("socket").display());
        command.args(["status", "--output", "json"]).env("UNSTALE_COORDINATOR", socket).stderr(Stdio::null());
        serde_json::from_slice(&command.output().unwrap().stdout).unwrap_or(Value::Null)
    }

    fn heard(&self) -> usize {
        let status = self.status();
        status["hosts"].as_array().map_or(0, |hosts| hosts.iter().filter(|host| host["scanned"] == true).count())
    }
}

/// Writes reports to where nobody reads, then to where the coordinator does, and waits until it has dealt with all.
pub(crate) async fn rate(broker: &Broker) {
    let stage = Stage::set(broker, REPORTING).await;
    let raw = Writer::to_nobody(broker).await;
    raw.write_all(&stage.reports[..1_000]).await;
    let began = clock();
    raw.write_all(&stage.reports).await;
    let of_raw = began.elapsed().as_secs_f64();
    let writer = Writer::of_reports(broker).await;
    let pid = stage.coordinator.0.id();
    let (began, before) = (clock(), cpu(pid));
    writer.write_all(&stage.reports).await;
    let ours = rests(pid).await.duration_since(began).as_secs_f64();
    let spent = (cpu(pid) - before) / f64::from(u32::try_from(REPORTING).unwrap()) * 1e6;
    let heard = stage.heard();
    let per_second = |seconds: f64| format!("{:.0}/s", f64::from(u32::try_from(REPORTING).unwrap()) / seconds);
    let what = format!("{heard} reports of {} B stored", stage.reports[0].len());
    let is_met = of_raw / ours >= LEAST && heard == REPORTING;
    crate::line(&what, &per_second(ours), &per_second(of_raw), of_raw / ours, "at least 0.6", is_met);
    println!("  {:<44} {spent:>9.0} us", "coordinator CPU per report");
}

/// The memory of a coordinator that knows so many hosts, and of an agent with the bus connected.
pub(crate) async fn memory(broker: &Broker) {
    let stage = Stage::set(broker, RESIDENT).await;
    Writer::of_reports(broker).await.write_all(&stage.reports).await;
    let pid = stage.coordinator.0.id();
    rests(pid).await;
    let megabytes = anonymous(pid);
    let what = format!("coordinator that knows {} agents", stage.heard());
    println!("  {what:<44} {megabytes:>9.1} MB");

    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("code")).unwrap();
    fs::rename(stage.dir.path().join("0"), dir.path().join("keys")).unwrap_or_else(|_| {
        let (from, to) = (stage.dir.path().join("0"), dir.path().join("keys"));
        assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    });
    let mut command = unstale("agent", &broker.for_agents(), dir.path());
    command
        .arg("--state-dir")
        .arg(dir.path().join("state"))
        .args(["--host", "web-0"])
        .arg("--root")
        .arg(dir.path().join("code"));
    let agent = Process(command.spawn().unwrap());
    pause(20_000).await;
    let megabytes = anonymous(agent.0.id());
    let verdict = if megabytes <= AGENT_MOST { "" } else { " MISSED" };
    println!("  {:<44} {megabytes:>9.1} MB {:>21}  at most 10 MB{verdict}", "agent, all its processes", "");
}
