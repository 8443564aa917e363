//! The host as it is: real Python processes, real helpers, real files.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use unstale_agent::child::Program;
use unstale_agent::discover::{Discovery, Scan};
use unstale_agent::process::{Kind, Supervisor, Unit};
use unstale_agent::reader::{self, Reader};
use unstale_agent::reading::{Outcome, ReadOptions};
use unstale_protocol::ids::Pid;

fn reader() -> Reader {
    Reader::new(Program { path: env!("CARGO_BIN_EXE_unstale-part").into(), args: vec!["__reader".to_owned()] })
}

/// A process that is killed when the test ends, however it ends.
struct Started(Child);

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
    let source = "import enum, time\nclass Color(enum.Enum):\n    RED = 'red'\nprint('up', flush=True)\ntime.sleep(60)\n";
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
