//! The host as it is: real Python processes, real helpers, real files.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod discovery;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use unstale_agent::child::{self, Child, Program};
use unstale_agent::discover::Discovery;
use unstale_agent::eyes::{Eyes, LookOptions, Sight};
use unstale_agent::files;
use unstale_agent::lookup::{Located, Query, StartFrom};
use unstale_agent::parser::{Item, Parser};
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

/// A value of an enum lies in memory whose pages its owner serves, and never does: `userfaultfd(2)`. The process itself
/// does not touch it, so nothing of it stands still but whoever reads it from outside.
const UNSERVED: &str = "import ctypes, enum, fcntl, mmap, os, struct, time
class Color(enum.Enum):
    RED = ('red', object())
SYS_USERFAULTFD, UFFDIO_API, UFFDIO_REGISTER = 323, 0xC018AA3F, 0xC020AA00
served = ctypes.CDLL(None).syscall(SYS_USERFAULTFD, os.O_CLOEXEC)
fcntl.ioctl(served, UFFDIO_API, bytearray(struct.pack('3Q', 0xAA, 0, 0)))
pages = mmap.mmap(-1, 16384)
start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
fcntl.ioctl(served, UFFDIO_REGISTER, bytearray(struct.pack('4Q', start, 16384, 1, 0)))
# The second item of the tuple: reference count, type and length come before the items.
ctypes.c_size_t.from_address(id(Color.RED.value) + 32).value = start
print('up', flush=True)
time.sleep(600)
";

#[cfg(target_arch = "x86_64")]
#[tokio::test(flavor = "current_thread")]
async fn memory_that_its_owner_never_serves_costs_one_deadline() {
    let directory = tempfile::tempdir().expect("directory");
    let honest = "import enum, time\nprint('up', flush=True)\ntime.sleep(600)\n";
    tree(directory.path(), &[("hostile.py", UNSERVED), ("honest.py", honest)]);
    let [hostile, honest] = ["hostile.py", "honest.py"].map(|file| python(directory.path(), &[file]));
    let [hostile, honest] = [&hostile, &honest].map(|started| reader::identify(started.pid()).expect("identity"));
    let mut reader = reader();
    assert_eq!(reader.turn().await.facts(&[hostile.pid]).await.expect("facts").len(), 1);
    let first = reader.child().pid().expect("running");
    let reading = reader.turn().await.read(hostile, &ReadOptions::default()).await;
    assert_eq!((reading.outcome, reading.enums), (Outcome::Timeout, Vec::new()));
    assert!(!Path::new(&format!("/proc/{first}")).exists(), "a reader that waits for the page is killed");
    // The kernel does not wait for anybody there.
    let reading = reader.turn().await.read(hostile, &ReadOptions { through_mem: true, ..ReadOptions::default() }).await;
    assert!(matches!(&reading.outcome, Outcome::Damaged(why) if why.contains("no memory at")), "{:?}", reading.outcome);
    let reading = reader.turn().await.read(honest, &ReadOptions::default()).await;
    assert_eq!(reading.outcome, Outcome::Complete);
    assert_eq!(reader.child().starts(), 2);
}

#[cfg(target_arch = "x86_64")]
#[tokio::test(flavor = "current_thread")]
async fn a_process_that_costs_deadline_after_deadline_is_left_to_full_looks() {
    let directory = tempfile::tempdir().expect("directory");
    tree(directory.path(), &[("hostile.py", UNSERVED)]);
    let hostile = python(directory.path(), &["hostile.py"]);
    let identity = reader::identify(hostile.pid()).expect("identity");
    let mut eyes = eyes();
    for settled in [false, false, true] {
        assert_eq!(sight(&mut eyes, identity, false).await.reading.outcome, Outcome::Timeout);
        assert_eq!(eyes.has_settled(), settled);
    }
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
    let process = discovery::unit(&scan, started.pid()).root().expect("root").clone();
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
