//! supervisord over XML-RPC: what it knows of a program, start and stop.
//!
//! Where it listens stands in its configuration file. What it answers is text of bounded size from a
//! process that may belong to any user; only names of its own programs go to it. What is asked and told in one go goes
//! over one connection: a path may lead to somebody else the next time.

use super::config::{self, AutoRestart, Config};
use super::http::{Connection, Endpoint};
use super::xmlrpc::{self, Answer, Argument, Value};
use super::{Error, SlotState, Told};
use std::collections::BTreeMap;
use unstale_protocol::ids::Pid;

/// Faults of supervisord's `xmlrpc.Faults`.
mod fault {
    pub(super) const BAD_NAME: i64 = 10;
    pub(super) const ALREADY_STARTED: i64 = 60;
    pub(super) const NOT_RUNNING: i64 = 70;
}

/// One supervisord, its configuration read.
#[derive(Debug)]
pub(crate) struct Server {
    who: String,
    pid: Pid,
    endpoint: Endpoint,
    config: Config,
}

/// A conversation with a supervisord that has said who it is.
struct Talk<'a> {
    server: &'a Server,
    connection: Connection,
}

/// States of supervisord's `states.ProcessStates`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Stopped by request, or never started.
    Stopped,
    /// Started, younger than `startsecs`.
    Starting,
    /// Up.
    Running,
    /// Died while starting; it will be tried again.
    Backoff,
    /// Being stopped by request.
    Stopping,
    /// Ended by itself and not brought back.
    Exited,
    /// Given up after `startretries`.
    Fatal,
    /// A state this version does not know.
    Unknown,
}

/// One program as supervisord has it now.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// `GROUP:PROGRAM`.
    pub(crate) name: String,
    /// How it stands.
    pub(crate) state: State,
    /// The process that supervisord started; 0 for none.
    pub(crate) pid: u32,
    /// What supervisord says about it.
    pub(crate) words: String,
    /// Whether it comes back by itself; `None` where the configuration does not tell.
    pub(crate) autorestart: Option<AutoRestart>,
    /// Exit codes that count as expected.
    pub(crate) exit_codes: Vec<i32>,
    /// `stopasgroup` or `killasgroup`: its own stop signals everything.
    pub(crate) stops_group: bool,
    /// `environment` of the program, as it stands in the file.
    pub(crate) environment: String,
    /// What in the configuration could not be read.
    pub(crate) problems: Vec<String>,
}

impl Program {
    /// Tells how the slot stands.
    pub(crate) fn state(&self) -> SlotState {
        match self.state {
            State::Running => SlotState::Up { main_pid: Pid(self.pid) },
            State::Starting => SlotState::Starting,
            State::Stopping => SlotState::Stopping,
            State::Backoff => SlotState::Crashing { why: format!("supervisord: {} ({})", self.name, self.words) },
            State::Fatal => SlotState::GaveUp { why: format!("supervisord: {} ({})", self.name, self.words) },
            State::Stopped | State::Exited | State::Unknown => SlotState::Stopped,
        }
    }
}

impl Server {
    /// Finds where the supervisord with pid `pid` listens, from its configuration file.
    ///
    /// # Errors
    /// [`Error::Unreachable`] where the file cannot be read or names no socket.
    pub(crate) async fn find(pid: Pid, path: &str) -> Result<Self, Error> {
        let who = format!("supervisord (pid {pid}, {path})");
        let unreachable = |why: String| Error::Unreachable { who: who.clone(), why };
        let config = config::load(pid, path).await.map_err(unreachable)?;
        let endpoint = config.endpoint().ok_or_else(|| {
            unreachable(
                "its configuration names no socket; add [unix_http_server] with file=… and \
                 [rpcinterface:supervisor], then restart supervisord"
                    .to_owned(),
            )
        })?;
        Ok(Self { who, pid, endpoint, config })
    }

    /// Reads what supervisord knows of the program `name`, `GROUP:PROGRAM`.
    ///
    /// # Errors
    /// [`Error::NoSuch`] where it has no such program, else why it cannot be asked.
    pub(crate) async fn look(&self, name: &str) -> Result<Program, Error> {
        let all = self.talk().await?.processes().await?;
        let process = all
            .iter()
            .find(|process| full_name(process) == name)
            .ok_or_else(|| Error::NoSuch { who: self.who.clone(), name: name.to_owned() })?;
        Ok(self.program(name, process))
    }

    /// Names all its programs that run, by the process that it has started.
    ///
    /// # Errors
    /// Why it cannot be asked.
    pub(crate) async fn names(&self) -> Result<BTreeMap<Pid, String>, Error> {
        let all = self.talk().await?.processes().await?;
        let named = |process: &Value| Some((Pid(u32::try_from(process.int("pid")).ok()?), full_name(process)));
        Ok(all.iter().filter_map(named).filter(|(pid, _)| pid.0 != 0).collect())
    }

    /// Names the program whose process is the first of `chain` (a process, its parent, …) that
    /// supervisord has started.
    ///
    /// # Errors
    /// [`Error::NoSuch`] where none of them is its child, else why it cannot be asked.
    pub(crate) async fn name_of(&self, chain: &[Pid]) -> Result<String, Error> {
        let names = self.names().await?;
        let found = chain.iter().find_map(|pid| names.get(pid).cloned());
        found.ok_or_else(|| Error::NoSuch { who: self.who.clone(), name: format!("program for {chain:?}") })
    }

    /// Starts `name`. Returns once it was spawned; that proves nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] with supervisord's words.
    pub(crate) async fn start(&self, name: &str) -> Result<Told, Error> {
        let mut talk = self.talk().await?;
        talk.check_running().await?;
        talk.order("supervisor.startProcess", name, fault::ALREADY_STARTED).await
    }

    /// Stops `name` and leaves it stopped. Returns once the signal was sent.
    ///
    /// # Errors
    /// [`Error::Refused`] with supervisord's words.
    pub(crate) async fn stop(&self, name: &str) -> Result<Told, Error> {
        self.talk().await?.order("supervisor.stopProcess", name, fault::NOT_RUNNING).await
    }

    /// Connects, and has it say who it is.
    async fn talk(&self) -> Result<Talk<'_>, Error> {
        // Whoever else than its own user holds the other end is told nothing.
        let connection =
            Connection::open(&self.endpoint, self.config.uid).await.map_err(|why| self.unreachable(&why))?;
        let mut talk = Talk { server: self, connection };
        talk.check_identity().await?;
        Ok(talk)
    }

    fn unreachable(&self, why: &str) -> Error {
        Error::Unreachable { who: self.who.clone(), why: format!("{}: {why}", self.endpoint) }
    }

    fn program(&self, name: &str, process: &Value) -> Program {
        let settings = self.config.program(process.text("group"), process.text("name"));
        Program {
            name: name.to_owned(),
            state: match process.int("state") {
                0 => State::Stopped,
                10 => State::Starting,
                20 => State::Running,
                30 => State::Backoff,
                40 => State::Stopping,
                100 => State::Exited,
                200 => State::Fatal,
                _ => State::Unknown,
            },
            pid: u32::try_from(process.int("pid")).unwrap_or(0),
            words: match process.text("spawnerr") {
                "" => format!("{} {}", process.text("statename"), process.text("description")),
                error => format!("{} {error}", process.text("statename")),
            },
            autorestart: settings.map(|settings| settings.autorestart),
            exit_codes: settings.map_or_else(|| vec![0], |settings| settings.exit_codes.clone()),
            stops_group: settings.is_some_and(|settings| settings.stops_group),
            environment: settings.map(|settings| settings.environment.clone()).unwrap_or_default(),
            problems: self.config.problems.clone(),
        }
    }
}

impl Talk<'_> {
    async fn order(&mut self, method: &str, name: &str, already: i64) -> Result<Told, Error> {
        // Without waiting: `startsecs` and `stopwaitsecs` are not ours to sit out.
        match self.call(method, &[Argument::Text(name), Argument::Bool(false)]).await? {
            Answer::Value(_) => Ok(Told::Asked),
            Answer::Fault { code, .. } if code == already => Ok(Told::Already),
            Answer::Fault { code: fault::BAD_NAME, .. } => {
                Err(Error::NoSuch { who: self.server.who.clone(), name: name.to_owned() })
            }
            Answer::Fault { code, words } => Err(Error::Refused {
                who: self.server.who.clone(),
                what: format!("{method} {name}"),
                why: format!("{words} (fault {code})"),
            }),
        }
    }

    /// Two supervisords may have been given the same socket; the wrong one must not be told anything.
    async fn check_identity(&mut self) -> Result<(), Error> {
        let pid = match self.value("supervisor.getPID", &[]).await? {
            Value::Int(pid) => pid,
            _ => 0,
        };
        if pid == i64::from(self.server.pid.0) {
            return Ok(());
        }
        Err(Error::Unreachable {
            who: self.server.who.clone(),
            why: format!(
                "{} is answered by pid {pid}: another supervisord, or one in another pid namespace",
                self.server.endpoint
            ),
        })
    }

    async fn check_running(&mut self) -> Result<(), Error> {
        let state = self.value("supervisor.getState", &[]).await?;
        if state.text("statename") == "RUNNING" {
            return Ok(());
        }
        Err(Error::Refused {
            who: self.server.who.clone(),
            what: "to start anything".to_owned(),
            why: format!("its state is {:?}", state.text("statename")),
        })
    }

    async fn processes(&mut self) -> Result<Vec<Value>, Error> {
        match self.value("supervisor.getAllProcessInfo", &[]).await? {
            Value::Array(items) => Ok(items),
            _ => Err(Error::Malformed { who: self.server.who.clone(), why: "getAllProcessInfo is no list".to_owned() }),
        }
    }

    async fn value(&mut self, method: &str, arguments: &[Argument<'_>]) -> Result<Value, Error> {
        match self.call(method, arguments).await? {
            Answer::Value(value) => Ok(value),
            Answer::Fault { code, words } => Err(Error::Refused {
                who: self.server.who.clone(),
                what: method.to_owned(),
                why: format!("{words} (fault {code}; is [rpcinterface:supervisor] in its configuration?)"),
            }),
        }
    }

    async fn call(&mut self, method: &str, arguments: &[Argument<'_>]) -> Result<Answer, Error> {
        let answer = self.connection.post(xmlrpc::request(method, arguments)).await;
        let bytes = answer.map_err(|why| self.server.unreachable(&why))?;
        xmlrpc::answer(&bytes).map_err(|why| Error::Malformed { who: self.server.who.clone(), why })
    }
}

/// Names the program of supervisord that started the first of `chain`: a process, its parent, and so on up.
///
/// # Errors
/// [`Error`] where supervisord does not answer, or started none of them.
pub async fn program_of(supervisord: Pid, config: &str, chain: &[Pid]) -> Result<String, Error> {
    Server::find(supervisord, config).await?.name_of(chain).await
}

fn full_name(process: &Value) -> String {
    format!("{}:{}", process.text("group"), process.text("name"))
}
