//! Which workers there are: real processes that come, go, change what they are, and take each other's numbers.

use crate::{Started, eventually, python, say, tree};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use unstale_agent::discover::{Discovery, Scan, app_packages};
use unstale_agent::process::{Kind, Supervisor, Unit};
use unstale_agent::reader::{self, Reader};
use unstale_protocol::ids::Pid;

/// The unit that holds a process.
pub(crate) fn unit(scan: &Scan, pid: Pid) -> &Unit {
    let holds = |unit: &&Unit| unit.processes.iter().any(|process| process.identity.pid == pid);
    scan.units.iter().find(holds).expect("a unit")
}

const FORK: &str = "import os, sys, time\nif os.fork() == 0:\n    time.sleep(60)\nelse:\n    print('up', flush=True)\n    time.sleep(60)\n";

#[tokio::test(flavor = "current_thread")]
async fn a_python_and_its_fork_are_one_unit() {
    let directory = tempfile::tempdir().expect("directory");
    std::fs::write(directory.path().join("app.py"), FORK).expect("written");
    let started = python(directory.path(), &["-m", "app"]);
    let (mut reader, mut discovery) = (crate::reader(), Discovery::new());
    let scan = discovery.scan(&mut reader).await.expect("scan");
    let unit = unit(&scan, started.pid());
    assert_eq!((unit.kind, unit.processes.len()), (Kind::Python, 2), "{unit:?}");
    assert_eq!(unit.root().map(|root| root.identity.pid), Some(started.pid()));
    let root = unit.root().expect("root");
    assert_eq!(root.command[1..], ["-m", "app"]);
    assert_eq!(root.cwd.as_deref(), directory.path().to_str());
    assert!(root.environment.iter().any(|(name, _)| name == "PWD"));
    assert_eq!(root.denied, None);
    assert_eq!(root.identity, reader::identify(started.pid()).expect("identity"));
    assert!(matches!(unit.supervisor, Supervisor::None | Supervisor::Systemd { .. } | Supervisor::Other { .. }));
    // The second look costs no question about it, and says the same.
    let again = discovery.scan(&mut reader).await.expect("scan");
    assert_eq!(self::unit(&again, started.pid()), unit);
    drop(started);
    tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let scan = discovery.scan(&mut reader).await.expect("scan");
            if scan.units.iter().all(|other| other.id != unit.id) {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("an ended unit is forgotten");
}

fn venv(name: &str) -> PathBuf {
    let made = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/venv")).args(["python3", name]).output();
    let made = made.expect("tests/venv (needs bash)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Path::new(String::from_utf8(made.stdout).expect("text").trim()).join("bin")
}

/// Looks until a unit is as wanted, at most a minute.
async fn look(discovery: &mut Discovery, reader: &mut Reader, wanted: impl Fn(&Scan) -> bool) -> Arc<Scan> {
    let looking = async {
        loop {
            let scan = discovery.scan(reader).await.expect("scan");
            if wanted(&scan) {
                return scan;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), looking).await.expect("the unit comes up in time")
}

#[tokio::test(flavor = "current_thread")]
async fn programs_of_a_supervisord_are_units_with_its_names() {
    let directory = tempfile::tempdir().expect("directory");
    let root = directory.path().canonicalize().expect("path");
    let config = "[supervisord]\nlogfile=log\npidfile=pid\n[program:loop]\nnumprocs=2\n\
        process_name=%(program_name)s_%(process_num)02d\ncommand=python3 -m loop\n\
        [program:shell]\ncommand=sh -c 'python3 -m loop; true'\n";
    let code = "import time\ntime.sleep(60)\n";
    tree(&root, &[("conf/s.conf", config), ("loop.py", code)]);
    let mut command = Command::new(venv("worker").join("supervisord"));
    command.args(["-n", "-c", "conf/s.conf"]).current_dir(&root).stdout(Stdio::null()).stderr(Stdio::null());
    let started = Started(command.spawn().expect("supervisord"), String::new());
    let (mut reader, mut discovery) = (crate::reader(), Discovery::new());
    let config = root.join("conf/s.conf").to_str().expect("text").to_owned();
    let names = |scan: &Scan| {
        let mut names = Vec::new();
        for unit in &scan.units {
            if let Supervisor::Supervisord { name, pid, config: named } = &unit.supervisor
                && *pid == started.pid()
            {
                assert_eq!((named, unit.kind), (&config, Kind::Python));
                names.push((name.clone(), unit.service.clone(), unit.slot.to_string()));
            }
        }
        names
    };
    let scan = look(&mut discovery, &mut reader, |scan| names(scan).len() == 3).await;
    let found = names(&scan);
    let programs: Vec<&str> = found.iter().map(|(name, _, _)| name.as_str()).collect();
    assert_eq!(programs, ["loop:loop_00", "loop:loop_01", "shell:shell"]);
    assert!(found[0].2.starts_with("python/supervisord:") && found[0].2.ends_with("/loop:loop_00"), "{found:?}");
    assert_eq!(found[2].1, "shell");
    assert!(scan.supervisors >= 1);
    let is_supervisord = |unit: &Unit| unit.processes.iter().any(|process| process.identity.pid == started.pid());
    assert!(!scan.units.iter().any(is_supervisord), "a supervisor is no worker");
    // It ends its programs before it ends.
    let pid = rustix::process::Pid::from_raw(i32::try_from(started.pid().0).expect("pid")).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("asked to end");
    look(&mut discovery, &mut reader, |scan| names(scan).is_empty()).await;
}

#[tokio::test(flavor = "current_thread")]
async fn workers_that_write_titles_keep_their_kind_and_unit() {
    let directory = tempfile::tempdir().expect("directory");
    let app = "from celery import Celery\napp = Celery('shop', broker='memory://')\n";
    let web = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'']\n";
    tree(directory.path(), &[("shop.py", app), ("web.py", web)]);
    let programs = venv("titled");
    let start = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(programs.join(program));
        command.args(arguments).current_dir(directory.path()).env("PWD", directory.path());
        command.env("UNSTALE_APP", "shop").env("HOME", directory.path());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started");
        Started(child, String::new())
    };
    let (mut reader, mut discovery) = (crate::reader(), Discovery::new());
    let celery = start("celery", &["-A", "shop", "worker", "-c", "1", "--without-gossip", "--without-mingle"]);
    let gunicorn = start("gunicorn", &["--bind=unix:web.sock", "web:app"]);
    let is_up = |scan: &Scan, started: &Started| {
        let holds = |unit: &&Unit| unit.root().is_some_and(|root| root.identity.pid == started.pid());
        let unit = scan.units.iter().find(holds);
        unit.is_some_and(|unit| unit.processes.len() == 2 && unit.processes.iter().all(|process| process.titled))
    };
    let both = |scan: &Scan| is_up(scan, &celery) && is_up(scan, &gunicorn);
    // Seen from the start, the environment of before the title is known; seen late, it is blank.
    let early = look(&mut discovery, &mut reader, both).await;
    let late = Discovery::new().scan(&mut reader).await.expect("scan");
    for (scan, knows_environment) in [(&early, true), (&late, false)] {
        for (started, kind, package) in [(&celery, Kind::Celery, "shop"), (&gunicorn, Kind::Gunicorn, "web")] {
            let unit = unit(scan, started.pid());
            let root = unit.root().expect("root");
            assert_eq!((unit.kind, root.identity.pid, unit.processes.len()), (kind, started.pid(), 2), "{unit:?}");
            assert_eq!(app_packages(&root.command), [package], "{:?}", root.command);
            let claimed = root.environment.iter().any(|(name, _)| name == "UNSTALE_APP");
            assert_eq!(claimed, knows_environment, "{root:?}");
        }
    }
    for started in [&celery, &gunicorn] {
        let slots = [&early, &late].map(|scan| unit(scan, started.pid()).slot.clone());
        assert_eq!(slots[0], slots[1], "a title does not change the slot");
    }
    for started in [&celery, &gunicorn] {
        let pid = rustix::process::Pid::from_raw(i32::try_from(started.pid().0).expect("pid")).expect("pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("asked to end");
    }
    let is_gone = |scan: &Scan, started: &Started| {
        scan.units.iter().flat_map(|unit| &unit.processes).all(|process| process.parent != started.pid())
    };
    look(&mut discovery, &mut reader, |scan| is_gone(scan, &celery) && is_gone(scan, &gunicorn)).await;
}

/// Looks three times at most: all that is young is asked about in each look.
async fn is_soon_a_root(discovery: &mut Discovery, reader: &mut Reader, pid: Pid) -> bool {
    let identity = reader::identify(pid).expect("identity");
    for _ in 0..3 {
        let scan = discovery.scan(reader).await.expect("scan");
        if scan.units.iter().filter_map(Unit::root).any(|root| root.identity == identity) {
            return true;
        }
    }
    false
}

const WAIT: &str = "import time; print('up', flush=True); time.sleep(600)";

/// Nobody came and nobody went, and yet it is another process: numbers come round on a busy host.
#[tokio::test(flavor = "current_thread")]
async fn a_worker_that_takes_the_number_of_an_ended_process_is_seen() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut reader, mut discovery) = (crate::reader(), Discovery::new());
    for former in ["sleep", "python3"] {
        let mut worker = None;
        // Whoever starts something at the same time may take the number first.
        for _ in 0..200 {
            let mut first = match former {
                "sleep" => Started(Command::new(former).arg("600").spawn().expect("started"), String::new()),
                _ => python(directory.path(), &["-c", WAIT]),
            };
            discovery.scan(&mut reader).await.expect("scan");
            first.kill();
            std::fs::write("/proc/sys/kernel/ns_last_pid", (first.pid().0 - 1).to_string()).expect("as root");
            let second = python(directory.path(), &["-c", WAIT]);
            if second.pid() == first.pid() {
                worker = Some(second);
                break;
            }
        }
        let worker = worker.expect("the number is taken within 200 tries");
        assert!(is_soon_a_root(&mut discovery, &mut reader, worker.pid()).await, "after {former}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_process_that_executes_python_later_is_seen() {
    let mut command = Command::new("sh");
    command.args(["-c", "echo up; read go; exec python3 -c 'import time; time.sleep(600)'"]);
    let mut started = say(command);
    let (mut reader, mut discovery) = (crate::reader(), Discovery::new());
    let scan = discovery.scan(&mut reader).await.expect("scan");
    assert!(scan.units.iter().flat_map(|unit| &unit.processes).all(|process| process.identity.pid != started.pid()));
    drop(started.0.stdin.take());
    // Not by its name: a wrapper script of that name comes first where a version switcher has one.
    let program = format!("/proc/{}/exe", started.pid());
    let is_python =
        |program: PathBuf| program.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python"));
    eventually(|| std::fs::read_link(&program).is_ok_and(is_python)).await;
    assert!(is_soon_a_root(&mut discovery, &mut reader, started.pid()).await);
}

/// Its number stays taken: nobody goes.
#[tokio::test(flavor = "current_thread")]
async fn a_worker_that_nobody_reaps_has_ended() {
    let directory = tempfile::tempdir().expect("directory");
    let mut started = python(directory.path(), &["-c", WAIT]);
    let (mut reader, mut discovery) = (crate::reader(), Discovery::new());
    assert!(is_soon_a_root(&mut discovery, &mut reader, started.pid()).await);
    let identity = reader::identify(started.pid()).expect("identity");
    started.0.kill().expect("killed");
    let is_gone =
        |scan: &Scan| scan.units.iter().flat_map(|unit| &unit.processes).all(|process| process.identity != identity);
    look(&mut discovery, &mut reader, is_gone).await;
    for _ in 0..20 {
        let scan = discovery.scan(&mut reader).await.expect("scan");
        assert!(is_gone(&scan), "it stays ended");
    }
}
