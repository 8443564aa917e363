//! The control API: HTTP over a Unix socket whose mode (0600) is the authentication.
//!
//! Handlers turn requests into [`crate::control::Command`]s and answers into JSON; they decide nothing. Errors are
//! `{code, message, help}`.

mod lines;
mod socket;

pub(crate) use socket::{Listener, SocketError};

use crate::api::Refusal;
use crate::cli::{AppTarget, Selector};
use crate::control::{Asker, Caller, Command};
use axum::body::Bytes;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::serve::IncomingStream;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unstale_protocol::ids::{AppName, DrainId, HostName, Revision, SchemaVersion};

/// Longest body that is read.
const BODY_MAX_BYTES: usize = 8 << 20;

#[derive(Clone)]
struct Shared {
    asker: Asker,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        // The mode of the socket let the caller in; who it is goes into the record only.
        match stream.io().peer_cred() {
            Ok(peer) => Self { uid: peer.uid(), pid: peer.pid() },
            Err(_) => Self { uid: u32::MAX, pid: None },
        }
    }
}

/// Serves until `shutdown` is cancelled; open event streams end with it.
///
/// # Errors
/// Where the listener fails for good.
pub(crate) async fn serve(
    listener: Listener,
    asker: Asker,
    tasks: TaskTracker,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let app = routes(Shared { asker, tasks, shutdown: shutdown.clone() });
    let (socket, _path) = listener.into_parts()?;
    axum::serve(socket, app.into_make_service_with_connect_info::<Caller>())
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

fn routes(shared: Shared) -> axum::Router {
    axum::Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/v1/broadcasts", post(broadcast))
        .route("/v1/probes", post(probe))
        .route("/v1/probes/{id}", get(probe_status).delete(probe_over))
        .route("/v1/rollouts/{app}/{revision}", get(rollout))
        .route("/v1/rollouts/{app}/{revision}/events", get(events))
        .route("/v1/rollouts/{app}/{revision}/{hand}", post(hand))
        .route("/v1/drains", post(drain))
        .route("/v1/drains/{id}", delete(undrain))
        .route("/v1/hosts/{host}/forget", post(forget))
        .route("/v1/status", get(status))
        .route("/v1/why", get(why))
        .fallback(async || refused(Refusal::new(404, "no-such-route", "there is nothing here")))
        .method_not_allowed_fallback(async || {
            refused(Refusal::new(405, "method-not-allowed", "this can be asked with another method only"))
        })
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .with_state(shared)
}

fn refused(refusal: Refusal) -> Response {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, axum::Json(refusal)).into_response()
}

fn respond<T: Serialize>(result: Result<T, Refusal>) -> Response {
    match result {
        Ok(value) => axum::Json(value).into_response(),
        Err(refusal) => refused(refusal),
    }
}

fn body<T: DeserializeOwned>(bytes: Result<Bytes, BytesRejection>) -> Result<T, Refusal> {
    let bytes = bytes.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Refusal::new(413, "too-large", "the body is longer than 8 MiB"),
        _ => Refusal::new(400, "bad-body", "the body did not arrive whole"),
    })?;
    serde_json::from_slice(&bytes).map_err(|error| Refusal::new(400, "bad-body", format!("the body is wrong: {error}")))
}

/// A name from a path or a query, checked.
fn name<T: std::str::FromStr<Err: std::fmt::Display>>(what: &str, text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|error| Refusal::new(400, "bad-name", format!("{what}: {error}")))
}

/// The revision of a path: a number, or `latest`.
fn target(app: &str, revision: &str) -> Result<AppTarget, Refusal> {
    let app: AppName = name("app", app)?;
    match revision {
        "latest" => Ok(AppTarget { app, revision: None }),
        number => Ok(AppTarget { app, revision: Some(Revision(name("revision", number)?)) }),
    }
}

async fn ready(State(shared): State<Shared>) -> Response {
    if *shared.asker.is_ready.borrow() {
        return "ready\n".into_response();
    }
    refused(Refusal::new(503, "starting", "the coordinator has not read its state yet"))
}

async fn broadcast(
    State(shared): State<Shared>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    bytes: Result<Bytes, BytesRejection>,
) -> Response {
    let ask = async {
        let request = body(bytes)?;
        shared.asker.ask(|answer| Command::Broadcast(Box::new(request), caller, answer)).await
    };
    respond(ask.await)
}

async fn probe(State(shared): State<Shared>, bytes: Result<Bytes, BytesRejection>) -> Response {
    let ask = async {
        let request = body(bytes)?;
        shared.asker.ask(|answer| Command::Probe(Box::new(request), answer)).await
    };
    respond(ask.await)
}

async fn probe_status(State(shared): State<Shared>, Path(id): Path<String>) -> Response {
    respond(shared.asker.ask(|answer| Command::ProbeStatus(id, answer)).await)
}

async fn probe_over(State(shared): State<Shared>, Path(id): Path<String>) -> Response {
    respond(shared.asker.ask(|answer| Command::ProbeOver(id, answer)).await)
}

async fn hand(
    State(shared): State<Shared>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Path((app, revision, hand)): Path<(String, String, String)>,
    bytes: Result<Bytes, BytesRejection>,
) -> Response {
    let ask = async {
        let target = target(&app, &revision)?;
        let request = match bytes {
            Ok(bytes) if bytes.is_empty() => crate::api::HandRequest::default(),
            bytes => body(bytes)?,
        };
        match hand.as_str() {
            "pause" => shared.asker.ask(|answer| Command::Pause(target, request, caller, answer)).await,
            "resume" => shared.asker.ask(|answer| Command::Resume(target, request, caller, answer)).await,
            "abort" => shared.asker.ask(|answer| Command::Abort(target, request, caller, answer)).await,
            _ => Err(Refusal::new(404, "no-such-route", "a rollout can be asked to pause, resume or abort")),
        }
    };
    respond(ask.await)
}

async fn rollout(State(shared): State<Shared>, Path((app, revision)): Path<(String, String)>) -> Response {
    let ask = async {
        let target = target(&app, &revision)?;
        shared.asker.ask(|answer| Command::Rollout(target, answer)).await
    };
    respond(ask.await)
}

#[derive(Deserialize)]
struct EventsQuery {
    #[serde(default)]
    after: u64,
}

async fn events(
    State(shared): State<Shared>,
    Path((app, revision)): Path<(String, u64)>,
    Query(query): Query<EventsQuery>,
) -> Response {
    let version = match name::<AppName>("app", &app) {
        Ok(app) => SchemaVersion { app, revision: Revision(revision) },
        Err(refusal) => return refused(refusal),
    };
    match lines::follow(&shared.asker, version, query.after, &shared.tasks, shared.shutdown.clone()).await {
        Ok(lines) => {
            let kind = HeaderValue::from_static("application/x-ndjson");
            ([(header::CONTENT_TYPE, kind)], axum::body::Body::new(lines)).into_response()
        }
        Err(refusal) => refused(refusal),
    }
}

async fn drain(
    State(shared): State<Shared>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    bytes: Result<Bytes, BytesRejection>,
) -> Response {
    let ask = async {
        let request = body(bytes)?;
        shared.asker.ask(|answer| Command::Drain(request, caller, answer)).await
    };
    respond(ask.await)
}

async fn undrain(
    State(shared): State<Shared>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Path(id): Path<String>,
) -> Response {
    let ask = async {
        let id: DrainId = name("drain", &id)?;
        shared.asker.ask(|answer| Command::Undrain(id, caller, answer)).await
    };
    respond(ask.await)
}

async fn forget(
    State(shared): State<Shared>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Path(host): Path<String>,
) -> Response {
    let ask = async {
        let host: HostName = name("host", &host)?;
        shared.asker.ask(|answer| Command::Forget(host, caller, answer)).await
    };
    respond(ask.await)
}

async fn status(State(shared): State<Shared>) -> Response {
    respond(shared.asker.ask(Command::Status).await)
}

#[derive(Deserialize)]
struct WhyQuery {
    target: String,
}

async fn why(State(shared): State<Shared>, Query(query): Query<WhyQuery>) -> Response {
    let ask = async {
        let target: Selector = name("target", &query.target)?;
        shared.asker.ask(|answer| Command::Why(target, answer)).await
    };
    respond(ask.await)
}
