//! systemd user instances in namespaces of their own: real jobs, real `Restart=`, real kills.

use crate::support::{Running, Scratch, at, catches_term, eventually, is_alive, unit, venv};
use std::os::unix::fs::chown;
use std::process::{Command, Stdio};
use std::time::Duration;
use unstale_agent::process::{Kind, Supervisor, Unit};
use unstale_agent::restart::{Hands, Hold, Means, Plan, Refusal, StepError, StopSignal, Trap, UnitFacts, in_hand};
use unstale_agent::supervisor::{Reach, SlotState};
use unstale_protocol::ids::Pid;

/// Ends in order on `TERM`, and keeps a child, as a pool does.
const POOL: &str = "import os, signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(0))\n\
                    time.sleep(float(sys.argv[1]) if len(sys.argv) > 1 else 0)\nwhile True: time.sleep(60)\n";

struct Systemd {
    _running: Running,
    scratch: Scratch,
    uid: u32,
}

impl Systemd {
    async fn start(uid: u32, units: &[(&str, &str)]) -> Self {
        let scratch = Scratch::new();
        let home = scratch.path.join(uid.to_string());
        std::fs::create_dir_all(home.join("systemd/user")).unwrap();
        scratch.write("worker.py", POOL);
        let mut command = Command::new("/bin/bash");
        command
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hands/user-systemd.sh"))
            .arg(&home)
            .arg(uid.to_string());
        for path in [&home, &home.join("systemd"), &home.join("systemd/user")] {
            chown(path, Some(uid), Some(uid)).unwrap();
        }
        std::fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::set_permissions(&scratch.path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        // Ends with its standard input, and with that pipe's other end: this process.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let systemd = Self { _running: Running::start(&mut command), scratch, uid };
        for (name, text) in units {
            systemd.write(name, text);
        }
        eventually("the manager answers", async || {
            let state = systemd.state("none.service").await;
            (state == SlotState::Gone).then_some(())
        })
        .await;
        systemd.control(&["daemon-reload"]);
        systemd
    }

    fn write(&self, name: &str, text: &str) {
        let here = self.scratch.path.display().to_string();
        let text = text.replace("HERE", &here).replace("WORKER", &format!("/usr/bin/env python3 {here}/worker.py"));
        self.scratch.write(&format!("{}/systemd/user/{name}", self.uid), &text);
    }

    fn reach(&self) -> Reach {
        Reach { user_runtime: self.scratch.path.clone(), ..Reach::default() }
    }

    fn supervisor(&self, name: &str) -> Supervisor {
        Supervisor::Systemd { name: name.to_owned(), user: Some(self.uid) }
    }

    async fn state(&self, name: &str) -> SlotState {
        unstale_agent::supervisor::state(&self.reach(), &self.supervisor(name)).await
    }

    /// An order of an operator.
    fn control(&self, words: &[&str]) {
        let uid = self.uid.to_string();
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "systemctl", "--user"])
            .args(words)
            .env("XDG_RUNTIME_DIR", self.scratch.path.join(self.uid.to_string()));
        command.env_remove("DBUS_SESSION_BUS_ADDRESS").stdout(Stdio::null());
        assert!(command.status().unwrap().success(), "{words:?}");
    }

    async fn up(&self, name: &str, not: Option<Pid>) -> Pid {
        let main = eventually("the service is up", async || match self.state(name).await {
            SlotState::Up { main_pid } if Some(main_pid) != not => Some(main_pid),
            _ => None,
        })
        .await;
        catches_term(main).await;
        main
    }

    async fn begin(&self, name: &str, kind: Kind) -> Unit {
        self.control(&["start", name]);
        let main = self.up(name, None).await;
        unit(main, kind, self.supervisor(name))
    }

    /// Plans as for a kind that ends on `TERM`; `Rq` stands for what has tasks, `Beat` for what has none.
    async fn plan(&self, hands: &Hands, unit: &Unit) -> Result<Plan, Refusal> {
        hands.plan(unit, &UnitFacts { root_holds: Some(true), ..UnitFacts::of(unit) }, &[]).await
    }

    fn hands(&self) -> Hands {
        Hands::new(self.reach())
    }
}

fn service(settings: &str) -> String {
    format!("[Service]\nExecStart=WORKER\n{settings}\n")
}

const X: &str = "x.service";

#[tokio::test]
async fn a_service_that_stays_down_is_started_and_one_that_comes_back_is_let() {
    let systemd =
        Systemd::start(0, &[(X, &service("Restart=on-failure")), ("y.service", &service("Restart=always"))]).await;
    let hands = systemd.hands();
    for (name, means) in [
        (X, Means::TermThenStart { signal: StopSignal::Term }),
        ("y.service", Means::TermThenBack { signal: StopSignal::Term }),
    ] {
        let unit = systemd.begin(name, Kind::Beat).await;
        let plan = systemd.plan(&hands, &unit).await.unwrap();
        assert_eq!(plan.means, means);
        let hold = Hold::take(&unit).unwrap();
        hands.stop(&plan, &hold, at(0)).await.unwrap();
        hands.ended(&plan, &hold).await;
        hands.start(&plan, at(1)).await.unwrap();
        systemd.up(name, Some(plan.root.pid)).await;
        assert!(matches!(hands.state(&plan).await, SlotState::Up { .. }), "one start is no crash loop");
        hands.start(&plan, at(2)).await.unwrap();
    }
}

#[tokio::test]
async fn running_tasks_survive_a_kill_mode_that_would_lose_them() {
    let venv = venv("worker");
    let command = format!("{}/bin/celery -A app worker -c 2 --without-mingle --without-gossip", venv.display());
    let text = format!("[Service]\nWorkingDirectory=HERE\nExecStart={command}\nTimeoutStopSec=20\n");
    let systemd = Systemd::start(0, &[(X, &text)]).await;
    systemd.scratch.write("app.py", crate::supervised::APP);
    let unit = systemd.begin(X, Kind::Celery).await;
    let unit = eventually("the worker is ready", async || {
        let unit = crate::support::unit(unit.processes[0].identity.pid, Kind::Celery, systemd.supervisor(X));
        (in_hand(&unit, &UnitFacts::of(&unit)).idle.len() == 2).then_some(unit)
    })
    .await;
    crate::supervised::send(&venv, &systemd.scratch.path, &["a", "4", "b", "4"]);
    eventually("both tasks run", async || (systemd.scratch.read("log").lines().count() == 2).then_some(())).await;
    let hands = systemd.hands();
    let plan = systemd.plan(&hands, &unit).await.unwrap();
    assert!(plan.notes.contains(&Trap::StopLosesTasks { unit: X.to_owned(), kill_mode: "control-group".to_owned() }));
    let hold = Hold::take(&unit).unwrap();
    hands.stop(&plan, &hold, at(0)).await.unwrap();
    hands.ended(&plan, &hold).await;
    let log = systemd.scratch.read("log");
    assert_eq!(log.matches("end").count(), 2, "{log}");
    hands.start(&plan, at(1)).await.unwrap();
    systemd.up(X, Some(plan.root.pid)).await;
}

#[tokio::test]
async fn an_operators_stop_is_never_undone() {
    // Something must refer to a unit that stays down, or systemd forgets when it was stopped.
    let keep = "[Unit]\nWants=y.service\n";
    let units = [(X, service("Restart=always")), ("y.service", service("Restart=no"))];
    let systemd = Systemd::start(0, &[(X, &units[0].1), ("y.service", &units[1].1), ("keep.target", keep)]).await;
    systemd.control(&["start", "keep.target"]);
    let hands = systemd.hands();
    for name in [X, "y.service"] {
        let unit = systemd.begin(name, Kind::Beat).await;
        let plan = systemd.plan(&hands, &unit).await.unwrap();
        let hold = Hold::take(&unit).unwrap();
        systemd.control(&["stop", name]);
        hold.ended().await;
        let refused = hands.start(&plan, at(1)).await.unwrap_err();
        assert!(refused.to_string().contains("stopped by somebody else"), "{refused}");
        assert_eq!(systemd.state(name).await, SlotState::Stopped);
    }
}

#[tokio::test]
async fn a_service_that_is_being_stopped_is_left_alone() {
    let slow =
        "import signal, time\nsignal.signal(15, lambda *_: time.sleep(3) or exit(0))\nwhile True: time.sleep(60)\n";
    let systemd = Systemd::start(0, &[(X, "[Service]\nExecStart=/usr/bin/env python3 HERE/slow.py\n")]).await;
    systemd.scratch.write("slow.py", slow);
    let unit = systemd.begin(X, Kind::Beat).await;
    systemd.control(&["stop", "--no-block", X]);
    eventually("it is being stopped", async || (systemd.state(X).await == SlotState::Stopping).then_some(())).await;
    let plan = systemd.plan(&systemd.hands(), &unit).await;
    assert!(matches!(plan, Err(Refusal::InOtherHands { .. })), "{plan:?}");
}

#[tokio::test]
async fn starts_stay_below_systemds_limit() {
    let text = format!(
        "[Unit]\nStartLimitBurst=5\nStartLimitIntervalSec=3600\n{}",
        service("Restart=always\nRestartSec=50ms")
    );
    let systemd = Systemd::start(0, &[(X, &text)]).await;
    let hands = systemd.hands();
    let mut unit = systemd.begin(X, Kind::Beat).await;
    for restart in 0..3 {
        let plan = systemd.plan(&hands, &unit).await.unwrap();
        // The slot outlasts its units.
        let plan = Plan { slot: "beat/systemd/x.service".parse().unwrap(), ..plan };
        let hold = Hold::take(&unit).unwrap();
        hands.stop(&plan, &hold, at(restart)).await.unwrap();
        hands.ended(&plan, &hold).await;
        hands.start(&plan, at(restart)).await.unwrap();
        let main = systemd.up(X, Some(plan.root.pid)).await;
        unit = crate::support::unit(main, Kind::Beat, systemd.supervisor(X));
    }
    let plan = systemd.plan(&hands, &unit).await.unwrap();
    let plan = Plan { slot: "beat/systemd/x.service".parse().unwrap(), ..plan };
    let hold = Hold::take(&unit).unwrap();
    let refused = hands.stop(&plan, &hold, at(9)).await;
    assert!(matches!(refused, Err(StepError::StartLimit { allowed: 3, .. })), "{refused:?}");
    assert!(is_alive(plan.root.pid) && hold.survivors().len() == 1);
    hands.stop(&plan, &hold, at(3600)).await.unwrap();
}

#[tokio::test]
async fn units_bound_to_it_are_brought_back_or_it_is_left_alone() {
    let bound =
        "[Unit]\nBindsTo=x.service\nAfter=x.service\n[Service]\nExecStart=WORKER\n[Install]\nWantedBy=x.service\n";
    let text = format!("[Unit]\nWants=b.service\n{}", service("Restart=always"));
    let systemd = Systemd::start(0, &[(X, &text), ("b.service", bound)]).await;
    let hands = systemd.hands();
    let unit = systemd.begin(X, Kind::Rq).await;
    let before = systemd.up("b.service", None).await;
    let refused = systemd.plan(&hands, &unit).await;
    assert!(matches!(&refused, Err(Refusal::BoundUnits { units }) if units == &["b.service"]), "{refused:?}");
    let unit = Unit { kind: Kind::Beat, ..unit };
    let plan = systemd.plan(&hands, &unit).await.unwrap();
    assert_eq!(plan.means, Means::SupervisorRestart);
    let hold = Hold::take(&unit).unwrap();
    hands.stop(&plan, &hold, at(0)).await.unwrap();
    hands.ended(&plan, &hold).await;
    hands.start(&plan, at(1)).await.unwrap();
    systemd.up(X, Some(plan.root.pid)).await;
    systemd.up("b.service", Some(before)).await;
}

/// Drains a unit, until it is held down.
async fn drained(hands: &Hands, unit: &Unit) -> (Plan, Hold) {
    let plan = hands.plan_drain(unit, &UnitFacts::of(unit), &[]).await.unwrap();
    let hold = Hold::take(unit).unwrap();
    hands.drain(&plan, &hold).unwrap();
    hold.root_ended().await;
    hands.hold_down(&plan).await.unwrap();
    (plan, hold)
}

#[tokio::test]
async fn a_drained_service_stays_down_until_it_is_given_back() {
    let systemd = Systemd::start(0, &[(X, &service("Restart=always"))]).await;
    let hands = systemd.hands();
    let unit = systemd.begin(X, Kind::Beat).await;
    let (plan, _hold) = drained(&hands, &unit).await;
    // Longer than RestartSec, behind which systemd would have brought it back.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(systemd.state(X).await, SlotState::Stopped);
    hands.release(&plan, at(9)).await.unwrap();
    systemd.up(X, None).await;
}

#[tokio::test]
async fn a_new_life_with_work_in_hand_is_not_stopped_by_the_drain_of_the_one_before() {
    let python = venv("worker").join("bin/python").display().to_string();
    let looped =
        format!("[Service]\nExecStart=/bin/sh -c 'while true; do {python} HERE/celery -A app beat; done; true'\n");
    let systemd = Systemd::start(0, &[(X, &service("Restart=always")), ("y.service", &looped)]).await;
    systemd.scratch.write("celery", &POOL.replace("len(sys.argv) > 1", "False"));
    let hands = systemd.hands();
    systemd.control(&["start", "y.service"]);
    let x = systemd.begin(X, Kind::Beat).await;
    let shell = eventually("the shell is up", async || match systemd.state("y.service").await {
        SlotState::Up { main_pid } => Some(main_pid),
        _ => None,
    })
    .await;
    let worker = async |not: Option<Pid>| {
        let found = eventually("the worker below the shell", async || {
            crate::support::descendants(shell).into_iter().find(|pid| Some(*pid) != not)
        });
        let root = found.await;
        catches_term(root).await;
        root
    };
    let y = unit(worker(None).await, Kind::Beat, systemd.supervisor("y.service"));
    for unit in [x, y] {
        let plan = hands.plan_drain(&unit, &UnitFacts::of(&unit), &[]).await.unwrap();
        let hold = Hold::take(&unit).unwrap();
        hands.drain(&plan, &hold).unwrap();
        // The agent is killed, the root ends, and the unit is brought back and works for a while.
        drop(hold);
        let old = plan.root.pid;
        let is_wrapped = unit.supervisor != systemd.supervisor(X);
        let new = if is_wrapped { worker(Some(old)).await } else { systemd.up(X, Some(old)).await };
        tokio::time::sleep(Duration::from_secs(4)).await;
        let told = hands.hold_down(&plan).await;
        assert!(matches!(&told, Err(StepError::NewLife(why)) if why.contains(&new.to_string())), "{told:?}");
        assert!(is_alive(new));
    }
}

#[tokio::test]
async fn a_drain_waits_until_systemd_has_stopped_what_is_left_however_long_that_takes() {
    // The main process ends at once, and leaves a child that only the end of TimeoutStopSec ends.
    let stubborn = "import os, signal, sys, time\nif os.fork() == 0:\n    signal.signal(15, signal.SIG_IGN)\n\
                    else:\n    signal.signal(15, lambda *_: sys.exit(0))\nwhile True: time.sleep(60)\n";
    let text = "[Service]\nExecStart=/usr/bin/env python3 HERE/stubborn.py\nTimeoutStopSec=33\nRestart=no\n";
    let systemd = Systemd::start(0, &[(X, text)]).await;
    systemd.scratch.write("stubborn.py", stubborn);
    let hands = systemd.hands();
    let unit = systemd.begin(X, Kind::Beat).await;
    let (_, hold) = drained(&hands, &unit).await;
    assert!(hold.survivors().is_empty());
}

#[tokio::test]
async fn a_service_that_crashes_after_the_restart_is_noticed() {
    let text =
        format!("[Unit]\nStartLimitBurst=4\nStartLimitIntervalSec=60\n{}", service("Restart=always\nRestartSec=200ms"));
    let systemd = Systemd::start(0, &[(X, &text)]).await;
    let hands = systemd.hands();
    let unit = systemd.begin(X, Kind::Beat).await;
    let plan = systemd.plan(&hands, &unit).await.unwrap();
    let hold = Hold::take(&unit).unwrap();
    systemd.scratch.write("worker.py", "import nonexistent");
    hands.stop(&plan, &hold, at(0)).await.unwrap();
    hands.ended(&plan, &hold).await;
    hands.start(&plan, at(1)).await.ok();
    let why = eventually("systemd gives up", async || match hands.state(&plan).await {
        SlotState::GaveUp { why } => Some(why),
        _ => None,
    })
    .await;
    assert!(why.contains("start-limit-hit") || why.contains("exit-code"), "{why}");
}

#[tokio::test]
async fn what_deserves_a_word_gets_it() {
    let systemd = Systemd::start(0, &[(X, &service("Restart=no\nEnvironment=REMAP_SIGTERM=SIGQUIT"))]).await;
    let hands = systemd.hands();
    let unit = systemd.begin(X, Kind::Beat).await;
    systemd.write(X, &service("Restart=no\nEnvironment=A=B"));
    let plan = systemd.plan(&hands, &unit).await.unwrap();
    assert!(plan.notes.contains(&Trap::NeedsDaemonReload { unit: X.to_owned() }), "{:?}", plan.notes);
    let celery = Unit { kind: Kind::Celery, ..unit };
    let blind = UnitFacts { environment_known: false, ..UnitFacts::default() };
    let plan = hands.plan(&celery, &blind, &[]).await;
    assert!(matches!(&plan, Err(Refusal::RemapSigterm { place, .. }) if place.contains(X)), "{plan:?}");
}

#[tokio::test]
async fn a_process_that_is_not_the_main_one_is_left_alone() {
    let pair = "[Service]\nExecStart=/bin/sh -c 'python3 HERE/worker.py & exec python3 HERE/worker.py'\n";
    let systemd = Systemd::start(0, &[(X, pair)]).await;
    systemd.control(&["start", X]);
    let main = systemd.up(X, None).await;
    let beside = eventually("the other process", async || crate::support::descendants(main).first().copied()).await;
    catches_term(beside).await;
    // The child of the main process would not be the root; an orphan of another start is.
    let orphan = Running::start(Command::new("python3").arg(systemd.scratch.path.join("worker.py")));
    catches_term(orphan.pid()).await;
    let unit = unit(orphan.pid(), Kind::Beat, systemd.supervisor(X));
    let plan = systemd.plan(&systemd.hands(), &unit).await;
    assert!(matches!(plan, Err(Refusal::NotTheMain { .. })), "{plan:?}");
}

#[tokio::test]
async fn a_worker_below_a_process_that_is_there_for_others_too_is_left_alone() {
    let python = venv("worker").join("bin/python").display().to_string();
    let worker = format!("{python} HERE/worker.py");
    let run = |shell: &str, script: String| format!("[Service]\nExecStart={shell} -c '{script}'\n");
    let units = [
        // A wrapper is fine.
        ("one.service", run("/bin/sh", format!("{worker}; true"))),
        ("two.service", run("/bin/sh", format!("{worker} & {worker}; wait"))),
        // The other one's parent has ended: only the cgroup tells that it belongs to the service.
        ("orphan.service", run("/bin/sh", format!("(sleep 600 &); {worker}; true"))),
        ("cron.service", run("HERE/cron", format!("{worker}; true"))),
    ];
    let texts: Vec<(&str, &str)> = units.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let systemd = Systemd::start(0, &texts).await;
    std::fs::copy("/bin/sh", systemd.scratch.path.join("cron")).unwrap();
    let hands = systemd.hands();
    for (name, _) in texts {
        systemd.control(&["start", name]);
        let main = eventually("the service is up", async || match systemd.state(name).await {
            SlotState::Up { main_pid } => Some(main_pid),
            _ => None,
        })
        .await;
        let is_python = |pid: &Pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.starts_with(&python))
        };
        let root =
            eventually("a worker below it", async || crate::support::descendants(main).into_iter().find(is_python));
        let root = root.await;
        catches_term(root).await;
        let unit = unit(root, Kind::Beat, systemd.supervisor(name));
        let drained = hands.plan_drain(&unit, &UnitFacts::of(&unit), &[]).await;
        let restarted = systemd.plan(&hands, &unit).await;
        for plan in [drained, restarted] {
            let is_refused = matches!(plan, Err(Refusal::NotTheMain { .. }));
            assert_eq!(is_refused, name != "one.service", "{name}: {plan:?}");
        }
    }
}

#[tokio::test]
async fn a_transient_service_is_left_alone_where_a_stop_would_be_its_end() {
    let systemd = Systemd::start(0, &[]).await;
    let mut command = Command::new("systemd-run");
    command.args(["--user", "--unit=t", "/usr/bin/env", "python3"]).arg(systemd.scratch.path.join("worker.py"));
    command.env("XDG_RUNTIME_DIR", systemd.scratch.path.join("0")).stderr(Stdio::null());
    command.env_remove("DBUS_SESSION_BUS_ADDRESS");
    assert!(command.status().unwrap().success());
    let main = systemd.up("t.service", None).await;
    let unit = unit(main, Kind::Rq, systemd.supervisor("t.service"));
    let plan = systemd.plan(&systemd.hands(), &unit).await;
    assert!(matches!(plan, Err(Refusal::Transient { .. })), "{plan:?}");
}

#[tokio::test]
async fn root_reaches_another_users_manager_and_believes_nobody_elses_socket() {
    let systemd = Systemd::start(1500, &[(X, &service("Restart=no"))]).await;
    systemd.control(&["start", X]);
    systemd.up(X, None).await;
    let other = systemd.scratch.path.join("1501");
    std::fs::create_dir(&other).unwrap();
    std::os::unix::fs::symlink(systemd.scratch.path.join("1500/systemd"), other.join("systemd")).unwrap();
    let supervisor = Supervisor::Systemd { name: X.to_owned(), user: Some(1501) };
    let state = unstale_agent::supervisor::state(&systemd.reach(), &supervisor).await;
    assert!(matches!(&state, SlotState::Unreachable { why } if why.contains("belongs to uid 1500")), "{state:?}");
}

#[tokio::test]
async fn the_system_managers_bus_is_asked_at_the_address_that_is_given() {
    let systemd = Systemd::start(0, &[(X, &service("Restart=no"))]).await;
    systemd.control(&["start", X]);
    let bus = format!("unix:path={}", systemd.scratch.path.join("0/bus").display());
    let reach = Reach { system_bus: Some(bus), ..Reach::default() };
    let supervisor = Supervisor::Systemd { name: X.to_owned(), user: None };
    let main =
        eventually("the bus answers", async || match unstale_agent::supervisor::state(&reach, &supervisor).await {
            SlotState::Up { main_pid } => Some(main_pid),
            _ => None,
        })
        .await;
    catches_term(main).await;
    let unit = unit(main, Kind::Beat, supervisor);
    let hands = Hands::new(reach);
    let plan = systemd.plan(&hands, &unit).await.unwrap();
    let hold = Hold::take(&unit).unwrap();
    hands.stop(&plan, &hold, at(0)).await.unwrap();
    hands.ended(&plan, &hold).await;
    hands.start(&plan, at(1)).await.unwrap();
    systemd.up(X, Some(main)).await;
}
