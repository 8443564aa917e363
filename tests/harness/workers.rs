//! Real workers: Celery and gunicorn, alone or under supervisord, and a Redis server for them.

use crate::harness::app::{App, Place};
use crate::harness::process::{Running, children, command as plain_command};
use crate::harness::wait::{eventually, eventually_some};
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Options that make a Celery worker start fast and stay quiet.
const QUIET: [&str; 6] =
    ["--without-mingle", "--without-gossip", "--without-heartbeat", "--loglevel=INFO", "-n", "w@test"];

/// The command line of a Celery worker of the app: main process and `children` prefork children.
pub(crate) fn celery_command(venv: &Path, children: u32) -> Vec<String> {
    let mut command = vec![
        venv.join("bin/celery").display().to_string(),
        "-A".to_owned(),
        "shop.tasks:app".to_owned(),
        "worker".to_owned(),
        "-c".to_owned(),
        children.to_string(),
    ];
    command.extend(QUIET.iter().map(|&option| option.to_owned()));
    command
}

/// The command line of a gunicorn master of the app with two workers, listening on a Unix socket.
pub(crate) fn gunicorn_command(venv: &Path, socket: &Path, more: &[&str]) -> Vec<String> {
    let mut command = vec![
        venv.join("bin/gunicorn").display().to_string(),
        "--workers=2".to_owned(),
        format!("--bind=unix:{}", socket.display()),
        "--worker-tmp-dir=/dev/shm".to_owned(),
    ];
    command.extend(more.iter().map(|&option| option.to_owned()));
    command.push("shop.web:app".to_owned());
    command
}

/// Starts a command line of the app without any supervisor; its output goes to `place/name.log`.
pub(crate) fn start_alone(place: &Place, app: &App, name: &str, command_line: &[String]) -> Running {
    let (program, arguments) = command_line.split_first().expect("a command");
    let mut command = app.command(Path::new(program));
    command.args(arguments);
    Running::start(&mut command, &place.join(format!("{name}.log")))
}

/// Waits until a prefork worker has this many children, and returns them.
pub(crate) fn wait_for_children(main: u32, count: usize) -> Vec<u32> {
    eventually(&format!("{count} children of {main}"), 30, || children(main), |found| found.len() == count)
}

/// Asks a web server on a Unix socket; returns the pid and the value it answers with.
pub(crate) fn ask(socket: &Path) -> Result<(u32, String), String> {
    let mut stream = UnixStream::connect(socket).map_err(|error| error.to_string())?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
        .map_err(|error| error.to_string())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| error.to_string())?;
    let (pid, value) = text
        .lines()
        .next_back()
        .and_then(|line| line.split_once(' '))
        .ok_or_else(|| format!("no answer in {text:?}"))?;
    Ok((pid.parse().map_err(|_| text.clone())?, value.to_owned()))
}

/// Waits until a web server answers.
pub(crate) fn wait_for_web(socket: &Path) -> (u32, String) {
    eventually_some("the web server answers", 30, || ask(socket))
}

/// A program in a supervisord configuration.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// Its name, which is its group's name too.
    pub(crate) name: String,
    /// Its command line.
    pub(crate) command: Vec<String>,
    /// The app it runs.
    pub(crate) app: App,
    /// Further lines of its section.
    pub(crate) options: Vec<&'static str>,
}

impl Program {
    /// A program with supervisord's own defaults, but for a quick start.
    pub(crate) fn new(name: &str, app: &App, command: Vec<String>) -> Self {
        Self { name: name.to_owned(), command, app: app.clone(), options: vec!["startsecs=1"] }
    }

    /// The same with one more line.
    pub(crate) fn with(mut self, option: &'static str) -> Self {
        self.options.push(option);
        self
    }
}

/// A private supervisord.
#[derive(Debug)]
pub(crate) struct Supervisord {
    process: Running,
    dir: PathBuf,
    venv: PathBuf,
}

impl Supervisord {
    /// Starts it with these programs, and waits until each has a process.
    pub(crate) fn start(place: &Place, venv: &Path, programs: &[Program]) -> Self {
        Self::start_group(place, venv, None, programs)
    }

    /// The same with all programs in one group, whose name stands before theirs: `shop:first`.
    pub(crate) fn start_group(place: &Place, venv: &Path, group: Option<&str>, programs: &[Program]) -> Self {
        let dir = place.folder("supervisord");
        let mut text = format!(
            "[unix_http_server]\nfile={dir}/sock\n\n\
             [supervisord]\nlogfile={dir}/supervisord.log\npidfile={dir}/pid\nchildlogdir={dir}\nnodaemon=true\n\n\
             [rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n\n\
             [supervisorctl]\nserverurl=unix://{dir}/sock\n",
            dir = dir.display()
        );
        for program in programs {
            let environment: Vec<String> =
                program.app.environment().iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
            write!(
                text,
                "\n[program:{name}]\ncommand={command}\ndirectory={code}\nenvironment={environment}\n\
                 redirect_stderr=true\nstdout_logfile={dir}/{name}.log\n{options}\n",
                name = program.name,
                command = program.command.join(" "),
                code = program.app.code.display(),
                environment = environment.join(","),
                dir = dir.display(),
                options = program.options.join("\n"),
            )
            .expect("text");
        }
        if let Some(group) = group {
            let names: Vec<&str> = programs.iter().map(|program| program.name.as_str()).collect();
            write!(text, "\n[group:{group}]\nprograms={}\n", names.join(",")).expect("text");
        }
        fs::write(dir.join("supervisord.conf"), text).expect("its configuration");
        let mut command = plain_command(venv.join("bin/supervisord"));
        command.arg("-c").arg(dir.join("supervisord.conf")).current_dir(&dir);
        let process = Running::start(&mut command, &place.join("supervisord.out"));
        let this = Self { process, dir, venv: venv.to_owned() };
        for program in programs {
            let name = &program.name;
            this.wait_for_pid(&group.map_or_else(|| name.clone(), |group| format!("{group}:{name}")));
        }
        this
    }

    /// The supervisord process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What a program has printed.
    pub(crate) fn log(&self, program: &str) -> String {
        fs::read_to_string(self.dir.join(format!("{program}.log"))).unwrap_or_default()
    }

    /// Waits until a program has printed `text` this many times.
    pub(crate) fn wait_for_log(&self, program: &str, text: &str, count: usize) {
        eventually(
            &format!("{program} prints {text:?} {count} times"),
            40,
            || self.log(program),
            |log| log.matches(text).count() >= count,
        );
    }

    /// Waits until a Celery program has said this many times that it is ready, and supervisord calls it running.
    ///
    /// A worker may be ready before `startsecs` have passed: whoever asks supervisord then is told `STARTING`.
    pub(crate) fn wait_until_ready(&self, program: &str, count: usize) {
        let name = program.rsplit(':').next().unwrap_or(program);
        self.wait_for_log(name, "ready.", count);
        eventually(
            &format!("{program} is running"),
            20,
            || self.control(&["status", program]),
            |said| said.contains("RUNNING"),
        );
    }

    /// Runs `supervisorctl`, and returns what it prints, whatever its exit code.
    pub(crate) fn control(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(self.venv.join("bin/supervisorctl"));
        command.arg("-c").arg(self.dir.join("supervisord.conf")).args(arguments);
        let output = command.output().expect("supervisorctl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The pid of a program's process: a child of supervisord in the program's own log order.
    pub(crate) fn wait_for_pid(&self, program: &str) -> u32 {
        eventually_some(&format!("{program} runs"), 20, || {
            let said = self.control(&["pid", program]);
            said.trim().parse().ok().filter(|pid| *pid != 0).ok_or(said)
        })
    }
}

/// A private Redis server on a Unix socket.
#[derive(Debug)]
pub(crate) struct Redis {
    _process: Running,
    socket: PathBuf,
}

impl Redis {
    /// Starts it, and waits until it answers.
    pub(crate) fn start(place: &Place) -> Self {
        let dir = place.folder("redis");
        let socket = dir.join("sock");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]).arg(&socket);
        command.arg("--dir").arg(&dir);
        let process = Running::start(&mut command, &dir.join("log"));
        eventually_some("redis answers", 10, || {
            let mut stream = UnixStream::connect(&socket).map_err(|error| error.to_string())?;
            stream.write_all(b"PING\r\n").map_err(|error| error.to_string())?;
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).map_err(|error| error.to_string())?;
            if &answer == b"+PONG" { Ok(()) } else { Err(format!("{answer:?}")) }
        });
        Self { _process: process, socket }
    }

    /// The URL that Celery takes.
    pub(crate) fn url(&self) -> String {
        format!("redis+socket://{}", self.socket.display())
    }
}
