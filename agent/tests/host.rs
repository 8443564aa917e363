//! The host as it is: real Python processes, real helpers, real files.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use unstale_agent::child::{self, Child, Program};
use unstale_agent::discover::{Discovery, Scan, app_packages};
use unstale_agent::eyes::{Eyes, LookOptions, Sight};
use unstale_agent::files;
use unstale_agent::lookup::{Located, Query, StartFrom};
use unstale_agent::parser::{Item, Parser};
use unstale_agent::process::{Kind, Supervisor, Unit};
use unstale_agent::reader::{self, Reader};
use unstale_agent::reading::{Outcome, ReadOptions};
use unstale_protocol::ids::{Pid, ProcessIdentity, PythonVersion};

const PART: &str = env!("CARGO_BIN_EXE_unstale-part");

fn part(name: &str) -> Program {
    Program { path: PART.into(), args: vec![name.to_owned()] }
}

fn reader() -> Reader {
    Reader::new(part("__reader"))
}

/// A process that is killed when the test ends, however it ends; and the line that it has said.
struct Started(std::process::Child, String);

impl Started {
    fn pid(&self) -> Pid {
        Pid(self.0.id())
    }

    fn kill(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts Python and waits until it has said one line.
fn python(directory: &Path, arguments: &[&str]) -> Started {
    let mut command = Command::new("python3");
    command.args(arguments).current_dir(directory).env("PWD", directory);
    say(command)
}

fn say(mut command: Command) -> Started {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 (apt-get install python3)");
    let mut line = String::new();
    let said = child.stdout.take().expect("pipe");
    BufReader::new(said).read_line(&mut line).expect("a line");
    Started(child, line)
}

fn unit(scan: &Scan, pid: Pid) -> &Unit {
    let holds = |unit: &&Unit| unit.processes.iter().any(|process| process.identity.pid == pid);
    scan.units.iter().find(holds).expect("a unit")
}

const FORK: &str = "import os, sys, time\nif os.fork() == 0:\n    time.sleep(60)\nelse:\n    print('up', flush=True)\n    time.sleep(60)\n";

#[tokio::test(flavor = "current_thread")]
async fn a_python_and_its_fork_are_one_unit() {
    let directory = tempfile::tempdir().expect("directory");
    std::fs::write(directory.path().join("app.py"), FORK).expect("written");
    let started = python(directory.path(), &["-m", "app"]);
    let (mut reader, mut discovery) = (reader(), Discovery::new());
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

#[tokio::test(flavor = "current_thread")]
async fn the_reader_reads_enums_within_its_sandbox() {
    let directory = tempfile::tempdir().expect("directory");
    let source =
        "import enum, time\nclass Color(enum.Enum):\n    RED = 'red'\nprint('up', flush=True)\ntime.sleep(60)\n";
    std::fs::write(directory.path().join("app.py"), source).expect("written");
    let started = python(directory.path(), &["app.py"]);
    let mut reader = reader();
    let identity = reader::identify(started.pid()).expect("identity");
    for _ in 0..2 {
        let reading = reader.turn().await.read(identity, &ReadOptions::default()).await;
        assert_eq!(reading.outcome, Outcome::Complete);
        let names: Vec<String> = reading.enums.iter().map(|class| class.name.to_string()).collect();
        assert_eq!(names, ["__main__:Color"]);
    }
    assert_eq!(reader.child().starts(), 1);
    drop(started);
    let reading = reader.turn().await.read(identity, &ReadOptions::default()).await;
    assert_eq!(reading.outcome, Outcome::Gone);
}

/// Returns what came of each try of a helper in its sandbox.
fn probe(part: &str) -> Vec<String> {
    let output = Command::new(PART).arg(part).output().expect("started");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_parser_can_do_nothing_but_answer() {
    let tries = probe("probe-parser");
    assert!(tries.len() > 10, "{tries:?}");
    for line in &tries[..14] {
        assert!(line.ends_with(": refused"), "{line}");
    }
    assert!(!tries[14].contains("capabilities: 1"), "{}", tries[14]);
}

#[test]
fn a_reader_can_read_and_nothing_else() {
    let tries = probe("probe-reader");
    let allowed: Vec<&str> = tries.iter().filter_map(|line| line.strip_suffix(": allowed")).collect();
    assert_eq!(allowed, ["open", "openat2"], "{tries:?}");
    for line in &tries[2..14] {
        assert!(line.ends_with(": refused"), "{line}");
    }
    // CAP_DAC_READ_SEARCH is 2, CAP_SYS_PTRACE 19; without rights of its own it has neither.
    let kept = tries[14].strip_prefix("capabilities: ").expect("a number").parse::<u64>().expect("a number");
    assert_eq!(kept & !(1 << 2 | 1 << 19), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn a_helper_that_misbehaves_is_replaced() {
    async fn check(part: &str, expected: &str) {
        let mut child = Child::new("test", self::part(part));
        for starts in 1..=2 {
            let answer: Result<Vec<u8>, _> = child.ask(&"hello", Duration::from_millis(300)).await;
            let error = format!("{:?}", answer.expect_err(part));
            assert!(error.starts_with(expected), "{part}: {error}");
            assert_eq!((child.pid(), child.starts()), (None, starts), "{part}");
        }
    }
    check("silent", "Timeout").await;
    check("babbling", "Malformed").await;
    check("lying", "Malformed").await;
    check("no such part", "Died").await;
    let mut child = Child::new("test", Program { path: "/no/such/program".into(), args: vec![] });
    let answer: Result<(), _> = child.ask(&(), Duration::from_secs(1)).await;
    assert!(matches!(answer, Err(child::Error::Start { .. })), "{answer:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_stopped_reader_costs_one_deadline() {
    let mut reader = reader();
    let own = reader::identify(Pid(std::process::id())).expect("identity");
    reader.turn().await.facts(&[own.pid]).await.expect("facts");
    let stopped = reader.child().pid().expect("running");
    let pid = rustix::process::Pid::from_raw(i32::try_from(stopped).expect("pid")).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stopped");
    let reading = reader.turn().await.read(own, &ReadOptions::default()).await;
    assert_eq!(reading.outcome, Outcome::Timeout);
    assert!(!Path::new(&format!("/proc/{stopped}/exe")).exists(), "the stopped one is gone");
    assert_eq!(reader.turn().await.facts(&[own.pid]).await.expect("facts").len(), 1);
    assert_eq!(reader.child().starts(), 2);
}

#[tokio::test(flavor = "current_thread")]
async fn a_killed_helper_is_replaced_without_an_error() {
    let mut reader = reader();
    let own = Pid(std::process::id());
    reader.turn().await.facts(&[own]).await.expect("facts");
    let first = reader.child().pid().expect("running");
    let pid = rustix::process::Pid::from_raw(i32::try_from(first).expect("pid")).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    // It has ended when all of its threads have.
    let threads = || std::fs::read_dir(format!("/proc/{first}/task")).map_or(0, Iterator::count);
    let is_zombie = || std::fs::read_to_string(format!("/proc/{first}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    eventually(|| is_zombie() && threads() == 1).await;
    assert_eq!(reader.turn().await.facts(&[own]).await.expect("facts").len(), 1);
}

#[tokio::test(flavor = "current_thread")]
async fn helpers_end_with_their_agent_even_where_they_cannot_notice() {
    // Of a session of its own, so that nobody else ends a stopped one.
    let agent = "import subprocess, sys, time\n\
        helper = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)\n\
        print(helper.pid, flush=True)\ntime.sleep(60)\n";
    for name in ["__reader", "__parser"] {
        let mut started = python(Path::new("/"), &["-c", agent, PART, name]);
        let helper = started.1.trim().to_owned();
        let says = |line: &str| {
            let status = std::fs::read_to_string(format!("/proc/{helper}/status")).unwrap_or_default();
            status.lines().any(|status| status.replace('\t', " ").starts_with(line))
        };
        eventually(|| says("Seccomp: 2")).await;
        let pid = rustix::process::Pid::from_raw(helper.parse().expect("a pid")).expect("a pid");
        let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("a handle");
        let send = |signal| rustix::process::pidfd_send_signal(&handle, signal);
        send(rustix::process::Signal::STOP).expect("stopped");
        eventually(|| says("State: T")).await;
        started.kill();
        tokio::time::timeout(Duration::from_secs(5), async {
            while says("State: T") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .ok();
        let is_left = says("State: T");
        // Where it is left it would stay for ever.
        send(rustix::process::Signal::KILL).ok();
        assert!(!is_left, "{name}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_parser_that_nobody_asks_ends_leaves_nothing_behind_and_is_started_again() {
    let mut parser = Parser::new(part("__parser"));
    let source = || vec![Item::Source(b"x = 1\n".to_vec())];
    assert!(parser.summarize(source()).await[0].is_ok());
    let pid = parser.child().pid().expect("running");
    parser.reap();
    assert_eq!(parser.child().pid(), Some(pid));
    let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // It waits for half a minute.
    tokio::time::sleep(Duration::from_secs(28)).await;
    eventually(|| state().contains(") Z ")).await;
    parser.reap();
    assert_eq!((parser.child().pid(), state()), (None, String::new()));
    assert!(parser.summarize(source()).await[0].is_ok());
    assert_eq!(parser.child().starts(), 2);
}

#[tokio::test(flavor = "current_thread")]
async fn one_hostile_file_does_not_spoil_the_batch() {
    let mut parser = Parser::new(part("__parser"));
    let good = Item::Source(b"import enum\nclass A(enum.Enum):\n    X = 1\n".to_vec());
    let deep = |start: &str, middle: &str, end: &str| {
        Item::Source(format!("{start}{}{end}", middle.repeat(60_000)).into_bytes())
    };
    let items = vec![
        good.clone(),
        deep("x = ", "-", "1"),
        deep("x = a", ".b", ""),
        deep("x = ", "[", ""),
        deep("x = 1", " + 1", ""),
        good.clone(),
        Item::Source(b"class".to_vec()),
        Item::Bytecode { pyc: vec![0xff; 64], python: PythonVersion::three(11) },
        good,
    ];
    let parsed = parser.summarize(items).await;
    let shape: Vec<bool> = parsed.iter().map(Result::is_ok).collect();
    assert!(shape[0] && shape[5] && shape[8], "{parsed:?}");
    assert!(!shape[6] && !shape[7], "{parsed:?}");
}

/// Makes the directories and files below `root`.
fn tree(root: &Path, files: &[(&str, &str)]) {
    for (path, content) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        std::fs::write(path, content).expect("written");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_worker_behind_a_link_would_import_the_release_that_the_link_names_now() {
    let directory = tempfile::tempdir().expect("directory");
    let root = directory.path().canonicalize().expect("path");
    let run = "import app.enums, time\nprint('up', flush=True)\ntime.sleep(60)\n";
    for release in ["6", "7"] {
        let enums = format!("import enum\nclass Kind(enum.Enum):\n    R{release} = 1\n");
        let below = root.join("releases").join(release);
        tree(&below, &[("app/__init__.py", ""), ("app/enums.py", &enums), ("app/run.py", run)]);
    }
    let link = root.join("current");
    std::os::unix::fs::symlink("releases/6", &link).expect("linked");
    let started = python(&link, &["-m", "app.run"]);
    std::fs::remove_file(&link).and_then(|()| std::os::unix::fs::symlink("releases/7", &link)).expect("moved");

    let (mut reader, mut discovery) = (reader(), Discovery::new());
    let scan = discovery.scan(&mut reader).await.expect("scan");
    let process = unit(&scan, started.pid()).root().expect("root").clone();
    let options = ReadOptions { list_modules: true, ..ReadOptions::default() };
    let reading = reader.turn().await.read(process.identity, &options).await;
    let interpreter = reading.interpreter.expect("interpreter");
    let variable = |name: &str| process.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let query = Query {
        modules: reading.modules,
        path: interpreter.path,
        argv0: interpreter.argv.first().cloned(),
        python: interpreter.version,
        cwd: process.cwd.clone(),
        pwd: variable("PWD"),
        python_path: None,
        root: None,
        supervisor_directory: None,
    };
    let lookup = reader.turn().await.find(process.identity, query).await.expect("lookup");
    assert_eq!(lookup.start.from, StartFrom::PwdThroughLink);
    let path = |below: &str| root.join(below).to_str().expect("text").to_owned();
    let found = |module: &str| lookup.findings.iter().find(|finding| finding.module == module).expect("a finding");
    let enums = found("app.enums");
    assert_eq!(enums.imported_from, Some(path("releases/6/app/enums.py")));
    assert_eq!(enums.next, Located::Source { path: path("current/app/enums.py") });
    assert_eq!(found("__main__").next, Located::Source { path: path("current/app/run.py") });
    let files = reader.turn().await.fetch(process.identity, &[path("current/app/enums.py")]).await.expect("files");
    let file = files[0].as_ref().expect("a file");
    assert_eq!(file.facts.path_resolved, path("releases/7/app/enums.py"));
    assert!(String::from_utf8_lossy(&file.bytes).contains("R7"));
}

#[tokio::test(flavor = "current_thread")]
async fn a_link_in_a_chroot_does_not_lead_to_the_hosts_file() {
    let directory = tempfile::tempdir().expect("directory");
    let jail = directory.path();
    tree(jail, &[("app/enums.py", "A = 1\n"), ("etc/inside", "inside\n")]);
    let link = |name: &str, to: &str| std::os::unix::fs::symlink(to, jail.join(name)).expect("linked");
    link("host", "/etc/passwd");
    link("up", "../../../../../../etc/passwd");
    link("inside", "/etc/inside");
    link("magic", "/proc/self/root/etc/passwd");
    let code =
        "import os, sys, time\nos.chroot(sys.argv[1])\nos.chdir('/app')\nprint('up', flush=True)\ntime.sleep(60)\n";
    // Without the right to change the root, in a user namespace of its own.
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("python3")
    } else {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "python3"]);
        command
    };
    command.args(["-c", code]).arg(jail);
    let started = say(command);
    let identity = reader::identify(started.pid()).expect("identity");
    let reader = reader();
    let facts = reader.turn().await.facts(&[started.pid()]).await.expect("facts");
    assert_eq!((facts[0].cwd.as_deref(), facts[0].other_root), (Some("/app"), true));
    let paths = ["/app/enums.py", "/inside", "/host", "/up", "/magic"].map(str::to_owned);
    let files = reader.turn().await.fetch(identity, &paths).await.expect("files");
    let bytes: Vec<Option<&[u8]>> = files.iter().map(|file| file.as_ref().ok().map(|file| &file.bytes[..])).collect();
    assert_eq!(bytes, [Some(&b"A = 1\n"[..]), Some(b"inside\n"), None, None, None]);
    assert!(matches!(&files[2], Err(files::Error::NotFound { .. })), "{:?}", files[2]);
    assert_eq!(files[1].as_ref().expect("a file").facts.path_resolved, "/etc/inside");
}

/// Returns the programs of a virtual environment that `tests/requirements` describes.
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
    let (mut reader, mut discovery) = (reader(), Discovery::new());
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
    let (mut reader, mut discovery) = (reader(), Discovery::new());
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

/// Waits for a condition, at most ten seconds.
async fn eventually(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("the condition holds in time");
}

fn eyes() -> Eyes {
    Eyes::new(part("__reader"), part("__parser"))
}

/// Looks at everything, or at what is new, and returns what is known of one process.
async fn sight(eyes: &mut Eyes, identity: ProcessIdentity, again: bool) -> Arc<Sight> {
    let listed = eyes.units().await.expect("units");
    let mut units = listed.units.clone();
    units.retain(|unit| unit.processes.iter().any(|process| process.identity == identity));
    eyes.look(&units, &LookOptions::default(), &[], again).await;
    Arc::clone(eyes.seen(&identity).expect("it is seen"))
}

/// The source of the module's only enum, as it is shown.
fn shown(sight: &Sight) -> String {
    format!("{:?}", sight.code.modules.get("shop.enums").expect("the module").source.enums)
}

#[tokio::test(flavor = "current_thread")]
async fn a_view_of_code_is_kept_until_any_file_behind_it_changes() {
    let directory = tempfile::tempdir().expect("directory");
    let write = |name: &str, text: &str| tree(directory.path(), &[(&format!("shop/{name}"), text)]);
    write("__init__.py", "");
    write("labels.py", "LABEL = 'first'\n");
    write("enums.py", "import enum\nfrom shop.labels import LABEL\nclass Crm(enum.Enum):\n    HUBSPOT = LABEL\n");
    let program = "import sys, time\nsys.dont_write_bytecode = True\nfrom shop import enums\n\
        print('up', flush=True)\ntime.sleep(600)\n";
    let started = python(directory.path(), &["-c", program]);
    let identity = reader::identify(started.pid()).expect("identity");
    let mut eyes = eyes();
    let first = sight(&mut eyes, identity, true).await;
    assert!(shown(&first).contains("first"), "{}", shown(&first));
    sight(&mut eyes, identity, false).await;
    let second = sight(&mut eyes, identity, true).await;
    assert!(Arc::ptr_eq(&first.code, &second.code), "nothing has changed");
    // A module that the enum's module takes a name from, and that holds no enum itself.
    write("labels.py", "LABEL = 'second'\n");
    let third = sight(&mut eyes, identity, true).await;
    assert!(shown(&third).contains("second"), "{}", shown(&third));
    let fourth = sight(&mut eyes, identity, true).await;
    assert!(Arc::ptr_eq(&third.code, &fourth.code), "nothing has changed");
    write("enums.py", "import enum\nclass Crm(enum.Enum):\n    HUBSPOT = 'third'\n");
    let fifth = sight(&mut eyes, identity, true).await;
    assert!(shown(&fifth).contains("third"), "{}", shown(&fifth));
    std::fs::remove_file(directory.path().join("shop/enums.py")).expect("removed");
    let sixth = sight(&mut eyes, identity, true).await;
    let module = sixth.code.modules.get("shop.enums").expect("the module");
    assert!(module.problem.as_ref().is_some_and(|why| why.contains("its source is gone")), "{module:?}");
}
