//! Long-lived helper processes behind one pipe each: asked, awaited, killed and replaced.
//!
//! The client half ([`Child`]) lives in the agent; the serving half ([`serve`]) in the helper. What is asked
//! is decided by `reader` and `parser`. A helper that misses its deadline, dies, or answers nonsense is
//! killed by its own handle and replaced at the next request; the request that met it fails.

mod frame;
pub(crate) mod hex;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{ChildStderr, Command};

/// Largest request, in bytes.
pub const REQUEST_MAX_BYTES: usize = 16 << 20;
/// Largest answer, in bytes.
pub const ANSWER_MAX_BYTES: usize = 64 << 20;
/// How long the agent waits for a killed helper to be gone.
const REAP_TIMEOUT: Duration = Duration::from_secs(1);

/// How a helper is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The binary, usually `/proc/self/exe`.
    pub path: PathBuf,
    /// Its arguments: the hidden subcommand.
    pub args: Vec<String>,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The helper could not be started.
    #[error("cannot start the {part}: {source}")]
    Start {
        /// Which helper.
        part: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The deadline passed; the helper was killed.
    #[error("the {part} did not answer within {after_ms} ms and was replaced")]
    Timeout {
        /// Which helper.
        part: &'static str,
        /// The deadline, in milliseconds.
        after_ms: u64,
    },
    /// The helper ended instead of answering.
    #[error("the {part} ended instead of answering: {how}")]
    Died {
        /// Which helper.
        part: &'static str,
        /// How it ended: its exit code or signal.
        how: String,
    },
    /// The answer was no frame, or not the answer to this request; the helper was killed.
    #[error("the {part} answered nonsense and was replaced: {why}")]
    Malformed {
        /// Which helper.
        part: &'static str,
        /// What was wrong.
        why: String,
    },
    /// The request is larger than a frame may be; the helper was not asked.
    #[error("a request to the {part} is {bytes} bytes long; at most {REQUEST_MAX_BYTES} are allowed")]
    TooLarge {
        /// Which helper.
        part: &'static str,
        /// How long it would have been.
        bytes: usize,
    },
}

/// A helper as the agent sees it: one request in flight, started when first needed.
#[derive(Debug)]
pub struct Child {
    part: &'static str,
    program: Program,
    running: Option<Running>,
    restarts: u64,
}

#[derive(Debug)]
struct Running {
    // Killed on drop: a request that is given up half-way leaves no helper with half an answer in its pipe.
    process: tokio::process::Child,
    requests: tokio::process::ChildStdin,
    answers: tokio::process::ChildStdout,
    complaints: ChildStderr,
}

impl Child {
    /// Returns the helper `part` that `program` starts.
    pub fn new(part: &'static str, program: Program) -> Self {
        Self { part, program, running: None, restarts: 0 }
    }

    /// Returns the pid of the running helper, if there is one.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().and_then(|running| running.process.id())
    }

    /// Returns how many times a helper was started.
    pub fn starts(&self) -> u64 {
        self.restarts
    }

    /// Starts the helper before it is first asked, so that it gets ready meanwhile; what goes wrong shows when it is
    /// asked.
    pub fn prepare(&mut self) {
        if self.running.is_none() {
            self.running = self.start().ok();
        }
    }

    /// Lets go of a helper that has ended, so that it does not stay in the list of processes.
    pub fn reap(&mut self) {
        self.running = self.alive();
    }

    /// Asks and waits for the answer, at most for `deadline`.
    ///
    /// # Errors
    /// [`Error`]; the helper is gone afterwards, except for [`Error::TooLarge`].
    pub async fn ask<A: DeserializeOwned>(&mut self, request: &impl Serialize, deadline: Duration) -> Result<A, Error> {
        let part = self.part;
        let request = serde_json::to_vec(request).map_err(|error| malformed(part, &error))?;
        if request.len() > REQUEST_MAX_BYTES {
            return Err(Error::TooLarge { part, bytes: request.len() });
        }
        let Some(mut running) = self.alive() else {
            return self.ask_new(&request, deadline).await;
        };
        match exchange(&mut running, &request, deadline).await {
            Ok(answer) => self.finish(running, &answer),
            // It may have ended from idleness after we looked: its own doing, and no answer was begun.
            Err(Failure::Ended) if ended_from_idleness(&mut running).await => self.ask_new(&request, deadline).await,
            Err(failure) => Err(bury(part, running, failure, deadline).await),
        }
    }

    async fn ask_new<A: DeserializeOwned>(&mut self, request: &[u8], deadline: Duration) -> Result<A, Error> {
        let mut running = self.start()?;
        match exchange(&mut running, request, deadline).await {
            Ok(answer) => self.finish(running, &answer),
            Err(failure) => Err(bury(self.part, running, failure, deadline).await),
        }
    }

    fn finish<A: DeserializeOwned>(&mut self, running: Running, answer: &[u8]) -> Result<A, Error> {
        // The helper is kept only if it made sense.
        let answer = serde_json::from_slice(answer).map_err(|error| malformed(self.part, &error))?;
        self.running = Some(running);
        Ok(answer)
    }

    fn alive(&mut self) -> Option<Running> {
        let mut running = self.running.take()?;
        match running.process.try_wait() {
            Ok(None) => Some(running),
            Ok(Some(_)) | Err(_) => None,
        }
    }

    fn start(&mut self) -> Result<Running, Error> {
        let part = self.part;
        let start = |source| Error::Start { part, source };
        // No environment: nothing of ours is the helper's business, and libraries read variables.
        let mut process = Command::new(&self.program.path)
            .args(&self.program.args)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(start)?;
        self.restarts = self.restarts.saturating_add(1);
        let pipes = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let (Some(requests), Some(answers), Some(complaints)) = pipes else {
            return Err(start(std::io::Error::other("it has no pipes")));
        };
        Ok(Running { process, requests, answers, complaints })
    }
}

/// Why an exchange came to nothing.
enum Failure {
    Deadline,
    Ended,
    Nonsense(String),
}

async fn exchange(running: &mut Running, request: &[u8], deadline: Duration) -> Result<Vec<u8>, Failure> {
    let Running { requests, answers, complaints, .. } = running;
    let asked = async {
        frame::write(requests, request).await?;
        frame::read(answers, ANSWER_MAX_BYTES).await
    };
    let answered = async {
        // Whoever fills the pipe of complaints would block, so it is emptied meanwhile.
        tokio::select! {
            answer = asked => answer,
            () = log_complaints(complaints) => Err(frame::Error::Ended),
        }
    };
    match tokio::time::timeout(deadline, answered).await {
        Err(_) => Err(Failure::Deadline),
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(frame::Error::Ended)) => Err(Failure::Ended),
        Ok(Err(error @ frame::Error::TooLong { .. })) => Err(Failure::Nonsense(error.to_string())),
    }
}

/// Logs what the helper says on its standard error; never returns, since the end shows on the other pipe.
async fn log_complaints(complaints: &mut ChildStderr) {
    let mut buffer = [0_u8; 2048];
    loop {
        match complaints.read(&mut buffer).await {
            Ok(0) | Err(_) => return std::future::pending().await,
            Ok(count) => {
                let said = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default()).into_owned();
                tracing::debug!(said = %crate::display::escape::terminal(said.trim_end()), "helper complains");
            }
        }
    }
}

async fn ended_from_idleness(running: &mut Running) -> bool {
    let ended = tokio::time::timeout(REAP_TIMEOUT, running.process.wait()).await;
    matches!(ended, Ok(Ok(status)) if status.success())
}

async fn bury(part: &'static str, mut running: Running, failure: Failure, deadline: Duration) -> Error {
    // Gone already is as good as killed; the wait below tells.
    if let Err(error) = running.process.start_kill() {
        tracing::debug!(part, %error, "helper was gone before it was killed");
    }
    let ended = tokio::time::timeout(REAP_TIMEOUT, running.process.wait()).await;
    match failure {
        Failure::Deadline => Error::Timeout { part, after_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX) },
        Failure::Nonsense(why) => Error::Malformed { part, why },
        Failure::Ended => Error::Died {
            part,
            how: match ended {
                Ok(Ok(status)) => how(status),
                _ => "it closed its pipe and could not be waited for".to_owned(),
            },
        },
    }
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

fn malformed(part: &'static str, error: &serde_json::Error) -> Error {
    Error::Malformed { part, why: error.to_string() }
}

/// Serves requests from standard input on standard output until the pipe ends or `idle` passes without one.
///
/// # Errors
/// Where a pipe broke, or a request was no frame or not understood: the helper should end then.
pub(crate) fn serve<Q: DeserializeOwned, A: Serialize>(
    idle: Duration,
    mut answer: impl FnMut(Q) -> A,
) -> std::io::Result<()> {
    let stdin = std::io::stdin();
    let stdout = std::io::stdout();
    let mut requests = stdin.lock();
    let seconds = i64::try_from(idle.as_secs()).unwrap_or(i64::MAX);
    loop {
        let mut waiting = [PollFd::new(&stdin, PollFlags::IN)];
        match poll(&mut waiting, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })) {
            // Ended from idleness: the agent starts another one when it needs it.
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut length = [0; 4];
        if let Err(error) = requests.read_exact(&mut length) {
            return if error.kind() == std::io::ErrorKind::UnexpectedEof { Ok(()) } else { Err(error) };
        }
        let length = frame::length(length, REQUEST_MAX_BYTES).map_err(std::io::Error::other)?;
        let mut request = vec![0; length];
        requests.read_exact(&mut request)?;
        let request = serde_json::from_slice(&request)?;
        let bytes = serde_json::to_vec(&answer(request))?;
        let header = frame::header(bytes.len(), ANSWER_MAX_BYTES).map_err(std::io::Error::other)?;
        write_all(&stdout, &header)?;
        write_all(&stdout, &bytes)?;
    }
}

/// Says on standard error why a helper ends; the agent logs it.
pub(crate) fn complain(part: &str, error: &dyn std::error::Error) -> std::process::ExitCode {
    use std::io::Write;
    // Nobody may listen any more; then there is nobody to tell.
    if writeln!(std::io::stderr(), "{part}: {error}").is_err() {
        return std::process::ExitCode::from(3);
    }
    std::process::ExitCode::from(2)
}

/// Writes without the standard library's line buffer, which would copy large answers again.
fn write_all(to: impl AsFd, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&to, bytes) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
