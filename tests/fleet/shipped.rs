//! The units of `deploy/systemd`: both roles under a real systemd, with no more rights than those give them.

use crate::harness::app::{App, Place};
use crate::harness::broker::Broker;
use crate::harness::python::{newest, run, tests_dir, venv};
use crate::harness::systemd::{Instance, Systemd};
use crate::harness::unstale::{Answer, answer, array, program};
use crate::harness::wait::{eventually, eventually_some};
use crate::harness::workers::celery_command;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

const NOBODY: u32 = 65_534;
/// What is shipped for agents that start workers.
const START_COMMANDS: &str = include_str!("../../deploy/systemd/start-commands.conf");
const COORDINATOR: &str = "unix:/run/unstale/coordinator.sock";

/// Coordinator and agent as the shipped units run them, in one systemd, over one Redis.
struct Installed {
    systemd: Systemd,
    broker: Broker,
    place: Place,
}

impl Installed {
    /// Installs both, with this configuration, beside what lies in a place already.
    fn start_in(place: Place, configuration: &str) -> Self {
        let broker = Broker::start(&place);
        let systemd = Systemd::start(&place, Instance::System);
        let this = Self { systemd, broker, place };
        let shipped = tests_dir().with_file_name("deploy/systemd");
        let here = this.place.folder("shipped");
        fs::copy(shipped.join("sysusers.conf"), here.join("sysusers.conf")).expect("the coordinator's user");
        fs::write(here.join("unstale.toml"), configuration).expect("a configuration");
        let (program, here) = (program().get_program().to_owned(), here.display());
        this.sh(&format!("cp {} /usr/bin/unstale && install -d -m 755 /etc/unstale", Path::new(&program).display()));
        this.sh(&format!("systemd-sysusers {here}/sysusers.conf && cp {here}/unstale.toml /etc/unstale/"));
        // As the head of the coordinator's unit says, without `sudo`, which not every machine has.
        this.sh("install -d -o unstale -g unstale -m 700 /etc/unstale/coordinator-keys");
        let keys_of_coordinator = |words: &str| {
            let as_unstale = "setpriv --reuid unstale --regid unstale --clear-groups unstale keys";
            this.sh(&format!("{as_unstale} {words} --keys /etc/unstale/coordinator-keys"))
        };
        let own = keys_of_coordinator("new coordinator");
        let agent = this.sh("unstale keys new agent --host web-1 --keys /etc/unstale/keys");
        keys_of_coordinator(&format!("enrol {}", agent.trim()));
        this.sh(&format!("unstale keys enrol {} --keys /etc/unstale/keys", own.trim()));
        for unit in ["unstale-agent.service", "unstale-coordinator.service"] {
            fs::copy(shipped.join(unit), this.unit(unit)).expect("a unit");
        }
        let arguments = "--state-dir /var/lib/unstale-agent --keys /etc/unstale/keys --host web-1";
        let words = [
            "[Service]\nExecStart=\n".to_owned(),
            format!("ExecStart=/usr/bin/unstale agent {arguments} --root {}\n", this.place.path().display()),
            format!("Environment=UNSTALE_BUS={}\n", this.broker.for_agents()),
            this.logged("agent"),
        ];
        this.drop_in("unstale-agent.service", "test.conf", &words.concat());
        let bus = format!("[Service]\nEnvironment=UNSTALE_BUS={}\n", this.broker.for_coordinator());
        this.drop_in("unstale-coordinator.service", "test.conf", &(bus + &this.logged("coordinator")));
        this
    }

    fn unit(&self, name: &str) -> PathBuf {
        self.place.join("units").join(name)
    }

    fn drop_in(&self, unit: &str, name: &str, text: &str) {
        let directory = self.unit(&format!("{unit}.d"));
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(directory.join(name), text).expect("a drop-in");
    }

    /// Where a role writes to: this systemd has no journal.
    fn logged(&self, role: &str) -> String {
        format!("StandardError=append:{}\n", self.place.join(format!("{role}.log")).display())
    }

    fn sh(&self, line: &str) -> String {
        let mut command = self.systemd.command(Path::new("/bin/sh"));
        command.args(["-c", line]);
        run(command)
    }

    /// Starts both roles, and waits until the agent was heard.
    fn begin(&self) {
        self.systemd.control(&["daemon-reload"]);
        self.systemd.control(&["start", "unstale-coordinator.service", "unstale-agent.service"]);
        eventually_some("the agent is heard", 6, || {
            let said = self.unstale(&["status", "--output", "json"]);
            let heard = said.code != 2 && said.json()["hosts"].to_string().contains("web-1");
            if heard { Ok(()) } else { Err((said, self.log())) }
        });
    }

    fn unstale(&self, arguments: &[&str]) -> Answer {
        let mut command = self.systemd.unstale();
        command.args(arguments).args(["--coordinator", COORDINATOR]);
        answer(command)
    }

    fn broadcast(&self, app: &App) -> Answer {
        let code = app.code.display().to_string();
        self.unstale(&["broadcast", "--output", "json", "--app", "shop", "--timeout", "120s", &code])
    }

    fn log(&self) -> String {
        let logs = ["agent", "coordinator"].map(|role| fs::read_to_string(self.place.join(format!("{role}.log"))));
        format!("{}\n{logs:#?}", self.sh("systemctl status --no-pager unstale-coordinator unstale-agent || true"))
    }
}

#[test]
fn both_roles_do_their_work_with_the_rights_of_their_shipped_units() {
    let installed = Installed::start_in(Place::new(), "[agent]\nsurvival_window = \"2s\"\n");
    let app = App::new(&installed.place, "shop");
    app.compile(&newest().path);
    // Whose the bytecode is decides with whose rights it is removed.
    let bytecode = app.bytecode("enums", newest().minor());
    let cache = bytecode.parent().expect("a directory").to_owned();
    fs::set_permissions(installed.place.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    for path in [cache.as_path(), bytecode.as_path()] {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("its owner");
    }
    let command = celery_command(&venv(&newest(), "worker"), 2);
    let old = installed.systemd.service("shop.service", &app, &command, &["Restart=always"]);
    installed.systemd.wait_for_log("shop.service", "ready.", 1);
    installed.begin();
    app.flip();
    let result = installed.broadcast(&app).expect(0).json();
    assert_eq!(result["outcome"], "converged", "{result:#}");
    assert_eq!(result["units"]["restarted"], 1, "{result:#}");
    assert_eq!(result["purged_files"], 1, "{result:#}");
    assert_ne!(installed.systemd.main_pid("shop.service"), old);
}

#[test]
fn what_a_start_command_has_started_is_no_part_of_the_agents_service() {
    let place = Place::new();
    let app = App::new(&place, "shop");
    let command = celery_command(&venv(&newest(), "worker"), 1);
    let (script, log) = (place.join("start-worker"), place.join("worker.log"));
    app.script(&script, &format!("exec {} >>{} 2>&1 </dev/null", command.join(" "), log.display()));
    let unit = format!("[[units]]\nslot = \"celery/none/*\"\nstart = [{script:?}]\ndirectory = {:?}\n", app.code);
    let installed = Installed::start_in(place, &format!("[agent]\nsurvival_window = \"2s\"\n{unit}"));
    installed.drop_in("unstale-agent.service", "start-commands.conf", START_COMMANDS);
    installed.sh(&format!("cd {} && systemd-run --scope --quiet {} &", app.code.display(), script.display()));
    eventually(
        "the worker is ready",
        30,
        || fs::read_to_string(&log).unwrap_or_default(),
        |log| log.contains("ready."),
    );
    installed.begin();
    let worker = || {
        let mut command = installed.systemd.unstale();
        command.args(["inspect", "--output", "json", "--root"]).arg(installed.place.path());
        let seen = answer(command).json();
        let main = array(&seen, "workers")[0].clone();
        (main["pid"].clone(), main["supervisor"].clone(), main["verdict"].clone())
    };
    let (old, ..) = worker();
    app.flip();
    let result = installed.broadcast(&app).expect(0).json();
    assert_eq!(result["units"]["restarted"], 1, "{result:#}");
    let (new, supervisor, verdict) = worker();
    assert_ne!(new, old);
    assert_eq!((supervisor, verdict), (Value::Null, json!("fresh")));
    installed.systemd.control(&["restart", "unstale-agent.service"]);
    assert_eq!(worker().0, new, "the worker outlives the agent");
}
