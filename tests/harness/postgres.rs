//! A private PostgreSQL server on a Unix socket.

use crate::harness::app::Place;
use crate::harness::process::Running;
use crate::harness::python::run;
use crate::harness::wait::eventually_some;
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The server. Its superuser and database are called `shop`.
#[derive(Debug)]
pub(crate) struct Postgres {
    process: Running,
    dir: PathBuf,
}

impl Postgres {
    /// Makes a cluster, starts it, and waits until it answers.
    pub(crate) fn start(place: &Place) -> Self {
        let dir = place.folder("postgres");
        let data = dir.join("data");
        let programs = programs();
        if rustix::process::geteuid().is_root() {
            // The server refuses to run as root.
            let mut command = Command::new("chown");
            command.arg("nobody").arg(&dir);
            run(command);
        }
        let mut initdb = unprivileged(&programs.join("initdb"));
        initdb.args(["--username=shop", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "--pgdata"]);
        initdb.arg(&data).current_dir(&dir);
        run(initdb);
        let mut command = unprivileged(&programs.join("postgres"));
        command.arg("-D").arg(&data).current_dir(&dir);
        for setting in ["listen_addresses=", "fsync=off", &format!("unix_socket_directories={}", dir.display())] {
            command.args(["-c", setting]);
        }
        let process = Running::start(&mut command, &place.join("postgres.log"));
        let this = Self { process, dir };
        eventually_some("PostgreSQL answers", 20, || {
            let output = this.psql("postgres", "CREATE DATABASE shop").output().map_err(|error| error.to_string())?;
            if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
        });
        this
    }

    /// Runs SQL in the database `shop`.
    pub(crate) fn sql(&self, text: &str) -> String {
        run(self.psql("shop", text))
    }

    /// The URL of the database `shop`.
    pub(crate) fn url(&self) -> String {
        format!("postgresql://shop@localhost/shop?host={}", self.dir.display())
    }

    /// The same for SQLAlchemy with psycopg.
    pub(crate) fn sqlalchemy_url(&self) -> String {
        format!("postgresql+psycopg://shop@/shop?host={}", self.dir.display())
    }

    fn psql(&self, database: &str, text: &str) -> Command {
        let mut command = Command::new("psql");
        command.args([
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--set=ON_ERROR_STOP=1",
            "--username=shop",
        ]);
        command.arg("--host").arg(&self.dir).arg("--dbname").arg(database).arg("--command").arg(text);
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A killed server leaves its shared memory behind; this signal is its fast shutdown.
        if !self.process.has_ended() {
            self.process.signal(Signal::INT);
            if !std::thread::panicking() {
                self.process.wait(20);
            }
        }
    }
}

/// The directory of the newest server's programs: Debian keeps each version in a directory of its own.
fn programs() -> PathBuf {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|path| path.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().expect("no PostgreSQL server found; on Debian: apt-get install postgresql")
}

fn unprivileged(program: &Path) -> Command {
    if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    }
}
