//! Units without a supervisor: refused, unless the configuration says how they are started.

use crate::support::{Running, Scratch, at, catches_term, eventually, is_alive, signal, unit};
use std::process::Command;
use std::time::Duration;
use unstale_agent::process::{Kind, Supervisor, Unit};
use unstale_agent::restart::{Hands, Hold, Means, Refusal, StartCommand, UnitConfig, UnitFacts, check_trusted};
use unstale_protocol::ids::Pid;

const HANDLER: &str = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); time.sleep(600)";

async fn alone() -> (Running, Unit) {
    let running = Running::start(Command::new("python3").args(["-c", HANDLER]));
    catches_term(running.pid()).await;
    let unit = unit(running.pid(), Kind::Beat, Supervisor::None);
    (running, unit)
}

fn config(unit: &Unit, start: &[&str]) -> UnitConfig {
    UnitConfig {
        command: unit.processes[0].command[..1].to_vec(),
        start: start.iter().map(|word| (*word).to_owned()).collect(),
        ..UnitConfig::default()
    }
}

#[tokio::test]
async fn what_nothing_brings_back_is_left_alone() {
    let (running, unit) = alone().await;
    let facts = UnitFacts::of(&unit);
    let plan = Hands::default().plan(&unit, &facts, &[]).await;
    assert!(matches!(&plan, Err(Refusal::NothingBringsBack { .. })), "{plan:?}");
    assert!(plan.unwrap_err().to_string().starts_with("cannot restart: nothing would bring it back"));
    // A drain by hand may insist on it.
    let plan = Hands::default().plan_drain(&unit, &facts, &[]).await.unwrap();
    assert!(!plan.can_be_given_back());
    let other = UnitConfig { command: vec!["something-else".to_owned()], ..config(&unit, &["true"]) };
    let nameless = UnitConfig { command: Vec::new(), ..config(&unit, &["true"]) };
    let stranger = UnitConfig { user: Some("nobody".to_owned()), ..config(&unit, &["true"]) };
    for config in [other, nameless, stranger] {
        let why = Hands::default().plan(&unit, &facts, &[config]).await.unwrap_err().to_string();
        assert!(why.contains("no start command of `[[units]]` fits slot `"), "{why}");
        assert!(why.contains(&format!("command `{} -c ", unit.processes[0].command[0])), "{why}");
    }
    assert!(is_alive(running.pid()));
}

#[tokio::test]
async fn what_is_started_as_the_agents_own_user_takes_the_place_of_nobody_elses_worker() {
    let (_running, mut unit) = alone().await;
    let facts = UnitFacts::of(&unit);
    let start = config(&unit, &["/bin/true"]);
    assert!(Hands::default().plan(&unit, &facts, std::slice::from_ref(&start)).await.is_ok());
    unit.processes[0].uid = 1500;
    unit.processes[0].user = "shop".to_owned();
    let plan = Hands::default().plan(&unit, &facts, std::slice::from_ref(&start)).await;
    let Err(refusal @ Refusal::NothingBringsBack { .. }) = plan else { panic!("{plan:?}") };
    assert!(refusal.to_string().contains("with `user`"), "{refusal}");
    let named = UnitConfig { user: Some("shop".to_owned()), ..start.clone() };
    assert!(Hands::default().plan(&unit, &facts, &[named]).await.is_ok());
    // A pre-flight command runs as the worker's user, so it may be anybody's.
    let preflight = UnitConfig { preflight: start.start.clone(), start: Vec::new(), ..start };
    assert!(preflight.fits(&unit));
}

#[tokio::test]
async fn a_configured_command_brings_it_back() {
    let (mut running, unit) = alone().await;
    let scratch = Scratch::new();
    let pidfile = scratch.path.join("pid");
    let script = format!("python3 -c '{HANDLER}' & echo $! > {}", pidfile.display());
    let hands = Hands::default();
    let plan = hands.plan(&unit, &UnitFacts::of(&unit), &[config(&unit, &["/bin/sh", "-c", &script])]).await.unwrap();
    assert!(matches!(plan.means, Means::StartCommand { .. }));
    let hold = Hold::take(&unit).unwrap();
    assert!(hands.start(&plan, at(0)).await.is_err(), "never a second one beside the first");
    hands.stop(&plan, &hold, at(0)).await.unwrap();
    hands.ended(&plan, &hold).await;
    running.reap();
    hands.start(&plan, at(1)).await.unwrap();
    let new = eventually("the new one is up", async || scratch.read("pid").trim().parse().ok().map(Pid)).await;
    assert!(is_alive(new));
    signal(new, rustix::process::Signal::KILL);
}

#[tokio::test]
async fn what_usually_reloads_itself_is_given_back_by_its_command() {
    let handler = HANDLER.replace("time;", "time; signal.signal(1, lambda *_: None);");
    let mut running = Running::start(Command::new("python3").args(["-c", &handler]));
    catches_term(running.pid()).await;
    let unit = unit(running.pid(), Kind::Gunicorn, Supervisor::None);
    let facts = UnitFacts { root_holds: Some(false), ..UnitFacts::of(&unit) };
    let scratch = Scratch::new();
    let script = format!("python3 -c '{HANDLER}' & echo $! > {}", scratch.path.join("pid").display());
    let hands = Hands::default();
    let plan = hands.plan_drain(&unit, &facts, &[config(&unit, &["/bin/sh", "-c", &script])]).await.unwrap();
    assert!(plan.means == Means::Hup && plan.can_be_given_back());
    let hold = Hold::take(&unit).unwrap();
    hands.drain(&plan, &hold).unwrap();
    hold.ended().await;
    running.reap();
    hands.release(&plan, at(1)).await.unwrap();
    let new = eventually("the new one is up", async || scratch.read("pid").trim().parse().ok().map(Pid)).await;
    signal(new, rustix::process::Signal::KILL);
}

#[tokio::test]
async fn what_no_signal_and_no_supervisor_ends_is_not_drained() {
    let handler = HANDLER.replace("time;", "time; signal.signal(1, lambda *_: None);");
    let running = Running::start(Command::new("python3").args(["-c", &handler]));
    catches_term(running.pid()).await;
    let unit = unit(running.pid(), Kind::Uwsgi, Supervisor::None);
    let plan = Hands::default().plan_drain(&unit, &UnitFacts::of(&unit), &[]).await;
    assert_eq!(plan, Err(Refusal::NothingEndsIt));
    assert!(is_alive(running.pid()));
}

#[tokio::test]
async fn a_command_that_fails_or_hangs_says_so() {
    let command = |script: &str| StartCommand {
        argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()],
        user: None,
        directory: "/".into(),
    };
    let failed = command("echo no module named shop >&2; exit 1").run(Duration::from_secs(5)).await.unwrap_err();
    assert!(failed.why.contains("no module named shop") && failed.why.contains("exit status: 1"), "{failed}");
    let long = command("sleep 600").run(Duration::from_millis(300)).await.unwrap_err();
    assert!(long.why.contains("did not end"), "{long}");
    command("i=0; while [ $i -lt 5000 ]; do echo warning >&2; i=$((i+1)); done")
        .run(Duration::from_secs(20))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_process_that_does_not_catch_the_signal_is_left_alone() {
    let running = Running::start(Command::new("python3").args(["-c", "import time; time.sleep(600)"]));
    eventually("python is up", async || {
        (!unit(running.pid(), Kind::Python, Supervisor::None).processes.is_empty()).then_some(())
    })
    .await;
    let unit = unit(running.pid(), Kind::Python, Supervisor::None);
    let plan = Hands::default().plan(&unit, &UnitFacts::of(&unit), &[config(&unit, &["true"])]).await;
    assert!(matches!(plan, Err(Refusal::NotCaught { .. })), "{plan:?}");
}

#[test]
fn commands_of_a_file_that_others_can_write_are_not_trusted() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let scratch = Scratch::new();
    let path = scratch.write("unstale.toml", "");
    let check = || check_trusted(&std::fs::File::open(&path).unwrap(), &path);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(check(), Ok(()));
    for mode in [0o666, 0o646, 0o664] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        assert!(check().is_err_and(|why| why.contains("chmod")), "{mode:o}");
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    chown(&path, Some(1500), None).unwrap();
    assert!(check().is_err_and(|why| why.contains("chown root")));
}
