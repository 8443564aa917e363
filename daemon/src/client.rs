//! The command line's side of the control API: HTTP/JSON over the coordinator's Unix socket.
//!
//! The peer must be root, the caller's own user, or who owns a directory that root has made for the socket, else
//! nothing is sent: a socket in a shared directory could be anybody's. One connection per call; answers are read up to
//! a bound.

use crate::api::{Event, Refusal};
use crate::cli::{CoordinatorArgs, Surroundings};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

/// Longest answer that is read.
const ANSWER_MAX_BYTES: usize = 32 << 20;
/// Longest line of an event stream.
const LINE_MAX_BYTES: usize = 1 << 20;
/// How long an answer may take; an event stream shows a sign of life every 15 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How often, and how many times, a coordinator is looked for that is being restarted: for half a minute.
const RETURN_INTERVAL: Duration = Duration::from_millis(500);
const RETURN_TRIES: u32 = 60;

/// Where the coordinator listens unless something else is said.
const SYSTEM_SOCKET: &str = "/run/unstale/coordinator.sock";

/// Why the coordinator gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens at any of these places.
    #[error("no coordinator listens on {}", list(.tried))]
    NobodyListens {
        /// Where was looked, in order.
        tried: Vec<PathBuf>,
    },
    /// The socket may not be used.
    #[error("no permission to use the coordinator's socket `{}`", .0.display())]
    NoPermission(PathBuf),
    /// Somebody else listens there.
    #[error("the process that listens on `{}` belongs to uid {uid}, which is neither root nor you, nor was its directory given to it by root", path.display())]
    Stranger {
        /// The socket.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// The coordinator said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The connection broke; what was asked may have been done.
    #[error("the connection to the coordinator on `{}` broke: {why}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// How.
        why: String,
    },
    /// What came back is no answer of a coordinator.
    #[error("what listens on `{}` does not answer as a coordinator: {why}", path.display())]
    Strange {
        /// The socket.
        path: PathBuf,
        /// What was strange.
        why: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| format!("`{}`", path.display())).collect::<Vec<_>>().join(" or ")
}

impl ClientError {
    /// Returns the code that scripts see.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::NobodyListens { .. } => "no-coordinator",
            Self::NoPermission(_) => "coordinator-no-permission",
            Self::Stranger { .. } => "coordinator-stranger",
            Self::Refused(refusal) => &refusal.code,
            Self::Broken { .. } => "coordinator-broken",
            Self::Strange { .. } => "coordinator-strange",
        }
    }

    /// Returns what can be done.
    pub(crate) fn help(&self) -> Option<String> {
        match self {
            Self::NobodyListens { .. } => {
                Some(
                    "is `unstale up`, or a fleet's `unstale coordinator`, running here? Name its socket with --coordinator unix:PATH"
                        .to_owned(),
                )
            }
            Self::NoPermission(_) => Some("run as the user that runs the coordinator, or with sudo".to_owned()),
            Self::Stranger { .. } => Some("name the right socket with --coordinator unix:PATH".to_owned()),
            Self::Refused(refusal) => refusal.help.clone(),
            Self::Broken { .. } => Some("look with `unstale status` whether it was done".to_owned()),
            Self::Strange { .. } => None,
        }
    }
}

/// A coordinator that was found.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    path: PathBuf,
}

/// Returns where a coordinator is looked for, first place first.
pub(crate) fn places(args: &CoordinatorArgs, surroundings: &Surroundings) -> Vec<PathBuf> {
    if let Some(address) = &args.coordinator {
        return vec![address.0.clone()];
    }
    let runtime = surroundings.runtime_dir().map(|dir| dir.join("unstale/coordinator.sock"));
    runtime.into_iter().chain([PathBuf::from(SYSTEM_SOCKET)]).collect()
}

/// Returns where a coordinator listens unless something else is said.
pub(crate) fn own_place(surroundings: &Surroundings) -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from(SYSTEM_SOCKET));
    }
    surroundings.runtime_dir().map(|dir| dir.join("unstale/coordinator.sock"))
}

impl Client {
    /// Finds the first place where a coordinator listens.
    ///
    /// # Errors
    /// [`ClientError::NobodyListens`], [`ClientError::NoPermission`] or [`ClientError::Stranger`].
    pub(crate) async fn find(args: &CoordinatorArgs, surroundings: &Surroundings) -> Result<Self, ClientError> {
        let tried = places(args, surroundings);
        let mut refused = None;
        for path in &tried {
            match connect(path).await {
                Ok(_) => return Ok(Self { path: path.clone() }),
                Err(Connect::Nobody) => {}
                Err(Connect::Error(error)) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or(ClientError::NobodyListens { tried }))
    }

    /// Asks with GET.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    /// Asks with GET, again and again while the coordinator is being restarted: for who waits on it.
    ///
    /// # Errors
    /// [`ClientError`], once it has not come back within half a minute.
    pub(crate) async fn get_once_back<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let mut tries = 0;
        loop {
            match self.get(path).await {
                Err(ClientError::NobodyListens { .. } | ClientError::Broken { .. }) if tries < RETURN_TRIES => {
                    tries += 1;
                    tokio::time::sleep(RETURN_INTERVAL).await;
                }
                answer => return answer,
            }
        }
    }

    /// Asks with POST.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.strange(&error))?;
        self.call(Method::POST, path, body.into()).await
    }

    /// Asks with DELETE.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::DELETE, path, Bytes::new()).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, ClientError> {
        let whole = async {
            let (response, _connection) = self.send(method, path, body).await?;
            let status = response.status();
            let bytes = self.collect(response.into_body()).await?;
            if status.is_success() {
                return serde_json::from_slice(&bytes).map_err(|error| self.strange(&error));
            }
            Err(self.refusal(status, &bytes))
        };
        tokio::time::timeout(ANSWER_TIMEOUT, whole).await.unwrap_or_else(|_| Err(self.broken("no answer within 30 s")))
    }

    /// Opens the event stream at `path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) async fn events(&self, path: &str) -> Result<EventStream, ClientError> {
        let (response, connection) = self.send(Method::GET, path, Bytes::new()).await?;
        let status = response.status();
        if !status.is_success() {
            let bytes = self.collect(response.into_body()).await?;
            return Err(self.refusal(status, &bytes));
        }
        Ok(EventStream {
            client: self.clone(),
            body: response.into_body(),
            buffer: Vec::new(),
            _connection: connection,
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(Response<Incoming>, JoinSet<()>), ClientError> {
        let stream = match connect(&self.path).await {
            Ok(stream) => stream,
            Err(Connect::Nobody) => return Err(ClientError::NobodyListens { tried: vec![self.path.clone()] }),
            Err(Connect::Error(error)) => return Err(error),
        };
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error.to_string()))?;
        // The connection ends with the set, which lives as long as whoever reads the answer.
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the coordinator ended");
            }
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "coordinator")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| self.strange(&error))?;
        let response = sender.send_request(request).await.map_err(|error| self.broken(&error.to_string()))?;
        Ok((response, tasks))
    }

    async fn collect(&self, body: Incoming) -> Result<Bytes, ClientError> {
        match Limited::new(body, ANSWER_MAX_BYTES).collect().await {
            Ok(whole) => Ok(whole.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(self.strange(&"the answer is too long")),
            Err(error) => Err(self.broken(&error.to_string())),
        }
    }

    fn refusal(&self, status: StatusCode, bytes: &[u8]) -> ClientError {
        match serde_json::from_slice::<Refusal>(bytes) {
            Ok(refusal) => ClientError::Refused(Refusal { status: status.as_u16(), ..refusal }),
            Err(_) => self.strange(&format!("HTTP status {status}")),
        }
    }

    fn broken(&self, why: &str) -> ClientError {
        ClientError::Broken { path: self.path.clone(), why: why.to_owned() }
    }

    fn strange(&self, why: &impl ToString) -> ClientError {
        ClientError::Strange { path: self.path.clone(), why: why.to_string() }
    }
}

/// A rollout's events as they happen.
#[derive(Debug)]
pub(crate) struct EventStream {
    client: Client,
    body: Incoming,
    buffer: Vec<u8>,
    _connection: JoinSet<()>,
}

impl EventStream {
    /// Returns the next event; `None` once the rollout has ended.
    ///
    /// # Cancel safety
    /// Safe: what has arrived stays in the buffer.
    ///
    /// # Errors
    /// [`ClientError::Broken`]: ask again with `?after=` the last event's number.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if line.len() > 1 {
                    return serde_json::from_slice(&line).map(Some).map_err(|error| self.client.strange(&error));
                }
            }
            if self.buffer.len() > LINE_MAX_BYTES {
                return Err(self.client.strange(&"a line is too long"));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend(frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Err(self.client.broken(&error.to_string())),
                None if self.body.is_end_stream() || self.buffer.is_empty() => return Ok(None),
                None => return Err(self.client.broken("it ended within a line")),
            }
        }
    }
}

enum Connect {
    Nobody,
    Error(ClientError),
}

async fn connect(path: &Path) -> Result<UnixStream, Connect> {
    let stream = UnixStream::connect(path).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => Connect::Nobody,
        io::ErrorKind::PermissionDenied => Connect::Error(ClientError::NoPermission(path.to_owned())),
        _ => Connect::Error(ClientError::Broken { path: path.to_owned(), why: error.to_string() }),
    })?;
    let peer = stream
        .peer_cred()
        .map_err(|error| Connect::Error(ClientError::Broken { path: path.to_owned(), why: error.to_string() }))?;
    let own = rustix::process::geteuid().as_raw();
    if peer.uid() != 0 && peer.uid() != own && !is_place_of(peer.uid(), path) {
        return Err(Connect::Error(ClientError::Stranger { path: path.to_owned(), uid: peer.uid() }));
    }
    Ok(stream)
}

/// Tells whether a socket lies where only this user can put one: in a directory of its own, which only root can have
/// made. So lies the socket of a coordinator that has a user of its own, `/run/unstale` made by systemd.
fn is_place_of(uid: u32, path: &Path) -> bool {
    let is_closed = |directory: Option<&Path>, owner: u32| {
        directory
            .and_then(|directory| std::fs::symlink_metadata(directory).ok())
            .is_some_and(|facts| facts.is_dir() && facts.uid() == owner && facts.mode() & 0o022 == 0)
    };
    let directory = path.parent();
    is_closed(directory, uid) && is_closed(directory.and_then(Path::parent), 0)
}

/// Writes text so that it can stand in a query or as one part of a path: RFC 3986, section 2.3.
pub(crate) fn encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.extend(['%', digit(byte >> 4), digit(byte & 15)]),
        }
        encoded
    })
}

fn digit(nibble: u8) -> char {
    char::from_digit(nibble.into(), 16).unwrap_or('0').to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Events, Status};
    use crate::control::{self, Command};
    use crate::http::{Listener, serve};
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    fn address(path: &Path) -> CoordinatorArgs {
        CoordinatorArgs { coordinator: Some(format!("unix:{}", path.display()).parse().unwrap()) }
    }

    fn event(number: u64) -> Event {
        Event { number, at_ms: 0, host: None, slot: None, what: "x".into(), text: format!("event {number}") }
    }

    /// Serves the real API before a coordinator that answers as `answer` does, while `check` runs.
    async fn with_coordinator<F: Future<Output = ()>>(
        answer: impl Fn(Command) + Send + 'static,
        check: impl FnOnce(Client) -> F,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.sock");
        let (asker, mut desk) = control::channel();
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let listener = Listener::bind(&path).unwrap();
        tasks.spawn(async move {
            desk.is_ready.send_replace(true);
            while let Some(command) = desk.commands.recv().await {
                answer(command);
                desk.newest_event.send_modify(|number| *number += 1);
            }
        });
        let server = tasks.spawn(serve(listener, asker, tasks.clone(), shutdown.clone()));
        let client = Client::find(&address(&path), &Surroundings::default()).await.unwrap();
        check(client).await;
        shutdown.cancel();
        server.await.unwrap().unwrap();
        tasks.close();
        tasks.wait().await;
        assert!(!path.exists());
    }

    fn reply(command: Command) {
        match command {
            Command::Status(answer) => answer.send(Ok(Status { epoch: 7, ..Status::default() })).unwrap(),
            Command::Why(_, answer) => answer.send(Err(Refusal::new(404, "no-such-target", "nobody"))).unwrap(),
            Command::Events(_, after, answer) => {
                let events = (after + 1..=3).map(event).collect();
                answer.send(Ok(Events { events, is_end: true })).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_user_is_believed_where_root_has_made_it_a_place_and_nowhere_else() {
        use std::os::unix::fs::{PermissionsExt as _, chown};
        const NOBODY: u32 = 65_534;
        assert!(rustix::process::geteuid().is_root(), "this test gives a directory away: run tests/run");
        let closed = tempfile::tempdir().unwrap();
        let place = closed.path().join("unstale");
        std::fs::create_dir(&place).unwrap();
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o755)).unwrap();
        let socket = place.join("coordinator.sock");
        assert!(!is_place_of(NOBODY, &socket), "it is root's");
        chown(&place, Some(NOBODY), Some(NOBODY)).unwrap();
        assert!(is_place_of(NOBODY, &socket));
        assert!(!is_place_of(NOBODY - 1, &socket), "it is another's");
        std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(!is_place_of(NOBODY, &socket), "anybody could have made it");
        std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o775)).unwrap();
        assert!(!is_place_of(NOBODY, &socket), "others may write to it");
    }

    #[tokio::test]
    async fn answers_and_refusals_come_back_as_they_were_given() {
        with_coordinator(reply, async |client| {
            assert_eq!(client.get::<Status>("/v1/status").await.unwrap().epoch, 7);
            let refused = client.get::<Status>("/v1/why?target=pid:7").await.unwrap_err();
            assert_eq!((refused.code(), refused.to_string().as_str()), ("no-such-target", "nobody"));
            let code = async |path: &str| client.get::<Status>(path).await.unwrap_err().code().to_owned();
            assert_eq!(code("/v1/why?target=pid:x").await, "bad-name");
            assert_eq!(code("/nowhere").await, "no-such-route");
            assert_eq!(code("/v1/broadcasts").await, "method-not-allowed");
            let body = serde_json::json!({"x": 1});
            assert_eq!(client.post::<Status>("/v1/drains", &body).await.unwrap_err().code(), "bad-body");
            let long = "x".repeat(9 << 20);
            assert_eq!(client.post::<Status>("/v1/drains", &long).await.unwrap_err().code(), "too-large");
        })
        .await;
    }

    #[tokio::test]
    async fn events_can_be_taken_up_where_they_were_left() {
        with_coordinator(reply, async |client| {
            let mut numbers = Vec::new();
            let mut events = client.events("/v1/rollouts/shop/1/events?after=1").await.unwrap();
            while let Some(event) = events.next().await.unwrap() {
                numbers.push(event.number);
            }
            assert_eq!(numbers, [2, 3]);
        })
        .await;
    }

    #[tokio::test]
    async fn nobody_there_is_said_with_the_place() {
        let directory = tempfile::tempdir().unwrap();
        let error =
            Client::find(&address(&directory.path().join("c.sock")), &Surroundings::default()).await.unwrap_err();
        assert!(matches!(&error, ClientError::NobodyListens { tried } if tried.len() == 1), "{error}");
        assert!(error.help().unwrap().contains("`unstale up`"));
    }

    #[test]
    fn names_are_encoded_for_urls() {
        assert_eq!(encoded("slot:celery/systemd/shop@1.service"), "slot%3Acelery%2Fsystemd%2Fshop%401.service");
    }
}
