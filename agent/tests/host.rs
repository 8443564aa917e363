//! The host as it is: real Python processes, real helpers, real files.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use unstale_agent::child::{self, Child, Program};
use unstale_agent::discover::{Discovery, Scan};
use unstale_agent::parser::{Item, Parser};
use unstale_agent::process::{Kind, Supervisor, Unit};
use unstale_agent::reader::{self, Reader};
use unstale_agent::reading::{Outcome, ReadOptions};
use unstale_protocol::ids::{Pid, PythonVersion};

const PART: &str = env!("CARGO_BIN_EXE_unstale-part");

fn reader() -> Reader {
    Reader::new(Program { path: PART.into(), args: vec!["__reader".to_owned()] })
}

/// A process that is killed when the test ends, however it ends.
struct Started(std::process::Child);

impl Started {
    fn pid(&self) -> Pid {
        Pid(self.0.id())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
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
    Started(child)
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
        let reading = reader.read(identity, &ReadOptions::default()).await;
        assert_eq!(reading.outcome, Outcome::Complete);
        let names: Vec<String> = reading.enums.iter().map(|class| class.name.to_string()).collect();
        assert_eq!(names, ["__main__:Color"]);
    }
    assert_eq!(reader.child().starts(), 1);
    drop(started);
    let reading = reader.read(identity, &ReadOptions::default()).await;
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
        let mut child = Child::new("test", Program { path: PART.into(), args: vec![part.to_owned()] });
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
    reader.facts(&[own.pid]).await.expect("facts");
    let stopped = reader.child().pid().expect("running");
    let pid = rustix::process::Pid::from_raw(i32::try_from(stopped).expect("pid")).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stopped");
    let reading = reader.read(own, &ReadOptions::default()).await;
    assert_eq!(reading.outcome, Outcome::Timeout);
    assert!(!Path::new(&format!("/proc/{stopped}/exe")).exists(), "the stopped one is gone");
    assert_eq!(reader.facts(&[own.pid]).await.expect("facts").len(), 1);
    assert_eq!(reader.child().starts(), 2);
}

#[tokio::test(flavor = "current_thread")]
async fn a_killed_helper_is_replaced_without_an_error() {
    let mut reader = reader();
    let own = Pid(std::process::id());
    reader.facts(&[own]).await.expect("facts");
    let first = reader.child().pid().expect("running");
    let pid = rustix::process::Pid::from_raw(i32::try_from(first).expect("pid")).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    eventually(|| std::fs::read_to_string(format!("/proc/{first}/stat")).is_ok_and(|stat| stat.contains(") Z "))).await;
    assert_eq!(reader.facts(&[own]).await.expect("facts").len(), 1);
}

#[tokio::test(flavor = "current_thread")]
async fn one_hostile_file_does_not_spoil_the_batch() {
    let mut parser = Parser::new(Program { path: PART.into(), args: vec!["__parser".to_owned()] });
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

/// Waits for a condition, at most ten seconds.
async fn eventually(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("the condition holds in time");
}
