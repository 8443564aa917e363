//! A real supervisord with real Celery workers over a broker made of files.

use crate::support::{Running, Scratch, eventually, venv};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use unstale_agent::process::Supervisor;
use unstale_agent::supervisor::{self, Reach, SlotState};
use unstale_protocol::ids::Pid;

/// A Celery app whose tasks write down when they start and end, and what they were run with.
pub(crate) const APP: &str = r#"
import os, time
from celery import Celery
here = os.path.dirname(os.path.abspath(__file__))
app = Celery("app", broker="filesystem://")
queue = os.path.join(here, "queue")
os.makedirs(queue, exist_ok=True)
app.conf.update(
    broker_transport_options={"data_folder_in": queue, "data_folder_out": queue, "polling_interval": 0.1},
    worker_prefetch_multiplier=1, task_ignore_result=True,
)
@app.task
def work(name, seconds):
    note("start", name)
    time.sleep(seconds)
    note("end", name)
def note(what, name):
    with open(os.path.join(here, "log"), "a") as log:
        log.write(what + " " + name + "\n")
"#;

/// Sends the tasks that its arguments name, `NAME SECONDS` each. A message is moved to its queue whole: Kombu makes the
/// file first and writes it afterwards, and a worker that looks in between would take it empty.
const SEND: &str = r#"
import os, sys, tempfile
import app
with tempfile.TemporaryDirectory(dir=app.here) as outgoing:
    app.app.conf.broker_transport_options["data_folder_out"] = outgoing
    for name, seconds in zip(sys.argv[1::2], sys.argv[2::2]):
        app.work.delay(name, float(seconds))
    for name in os.listdir(outgoing):
        os.rename(os.path.join(outgoing, name), os.path.join(app.queue, name))
"#;

/// Sends tasks, each with its name and its seconds, to the workers of an app in `directory`.
pub(crate) fn send(venv: &Path, directory: &Path, tasks: &[&str]) {
    let mut command = Command::new(venv.join("bin/python"));
    let status = command.args(["-c", SEND]).args(tasks).current_dir(directory).status().unwrap();
    assert!(status.success(), "the tasks cannot be sent");
}

pub(crate) struct Supervisord {
    // Ended before its directory is removed.
    pub(crate) running: Running,
    pub(crate) scratch: Scratch,
    venv: PathBuf,
}

impl Supervisord {
    /// Starts a supervisord with `programs`, in which `VENV` and `HERE` stand for the directories.
    pub(crate) async fn start(environment: &str, programs: &str) -> Self {
        let (scratch, venv) = (Scratch::new(), venv(environment));
        scratch.write("app.py", APP);
        let supervisord = Self { running: launch(&scratch, &venv, programs), scratch, venv };
        eventually("supervisord answers", async || {
            let state = supervisor::state(&Reach::default(), &supervisord.supervisor("none:none")).await;
            (state == SlotState::Gone).then_some(())
        })
        .await;
        supervisord
    }

    pub(crate) fn config(&self) -> String {
        self.scratch.path.join("supervisord.conf").display().to_string()
    }

    pub(crate) fn supervisor(&self, name: &str) -> Supervisor {
        Supervisor::Supervisord { name: name.to_owned(), pid: self.running.pid(), config: self.config() }
    }

    pub(crate) async fn state(&self, name: &str) -> SlotState {
        supervisor::state(&Reach::default(), &self.supervisor(name)).await
    }

    /// Waits until the program is up with a process other than `not`, and executes: before, the process is a copy of
    /// supervisord with its signal handlers.
    pub(crate) async fn up(&self, name: &str, not: Option<Pid>) -> Pid {
        let command = |pid: Pid| std::fs::read(format!("/proc/{pid}/cmdline")).ok();
        let own = command(self.running.pid());
        eventually("the program is up", async || match self.state(name).await {
            SlotState::Up { main_pid } if Some(main_pid) != not && command(main_pid) != own => Some(main_pid),
            _ => None,
        })
        .await
    }

    /// An order of an operator.
    pub(crate) fn operator(&self, words: &[&str]) {
        let mut command = Command::new(self.venv.join("bin/supervisorctl"));
        command.arg("-c").arg(self.config()).args(words).stdout(Stdio::null());
        assert!(command.status().unwrap().success(), "{words:?}");
    }

    /// Sends a task.
    pub(crate) fn send(&self, name: &str, seconds: f64) {
        send(&self.venv, &self.scratch.path, &[name, &seconds.to_string()]);
    }

    /// Waits until the tasks' log has `line`.
    pub(crate) async fn logged(&self, line: &str) {
        eventually(line, async || self.log().iter().any(|have| have == line).then_some(())).await;
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.scratch.read("log").lines().map(str::to_owned).collect()
    }
}

fn launch(scratch: &Scratch, venv: &Path, programs: &str) -> Running {
    let here = scratch.path.display().to_string();
    let programs = programs.replace("VENV", &venv.display().to_string()).replace("HERE", &here);
    scratch.write("programs/all.conf", &programs);
    let config = "[unix_http_server]\nfile=%(here)s/s.sock\nusername=u\npassword=p\n\
        [supervisord]\nnodaemon=true\nlogfile=%(here)s/supervisord.log\npidfile=%(here)s/pid\n\
        [rpcinterface:supervisor]\nsupervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n\
        [supervisorctl]\nserverurl=unix://%(here)s/s.sock\nusername=u\npassword=p\n\
        [include]\nfiles = programs/*.conf\n";
    let config = scratch.write("supervisord.conf", config);
    let mut command = Command::new(venv.join("bin/supervisord"));
    command.arg("-c").arg(config).current_dir(&scratch.path).stdout(Stdio::null()).stderr(Stdio::null());
    Running::start(&mut command)
}
