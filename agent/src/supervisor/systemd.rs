//! systemd over D-Bus: properties first, then `StartUnit`, `StopUnit` and `TryRestartUnit`.
//!
//! The system manager is asked over the system bus, a user's manager over its own socket. A unit
//! `user@` is never touched: it holds everything that its user runs. The interface is
//! org.freedesktop.systemd1(5).

mod properties;

pub(crate) use properties::{KillMode, Restart, Service};

use super::{CALL_TIMEOUT, Error, Reach, Told};
use properties::{Properties, service};
use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;
use zbus::export::futures_core::Stream;
use zbus::zvariant::OwnedObjectPath;
use zbus::{Connection, MatchRule, MessageStream, connection};

const DESTINATION: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// How long a start job is watched for an early failure before it is left to run.
const JOB_WATCH: Duration = Duration::from_secs(2);
/// Signals kept while a job is watched; more than that are other units' and may be lost.
const SIGNALS: usize = 256;

/// A connection to one service manager.
#[derive(Debug)]
pub(crate) struct Manager {
    connection: Connection,
    who: String,
    /// A manager's own socket has no bus names.
    direct: bool,
}

impl Manager {
    /// Connects to the system manager, or to the manager of the user with uid `user`.
    ///
    /// # Errors
    /// [`Error::Unreachable`] with the socket and what to do about it.
    pub(crate) async fn connect(reach: &Reach, user: Option<u32>) -> Result<Self, Error> {
        match user {
            None => Self::system(reach).await,
            Some(uid) => Self::user(reach, uid).await,
        }
    }

    async fn system(reach: &Reach) -> Result<Self, Error> {
        let who = "systemd".to_owned();
        let unreachable = |why: String| Error::Unreachable { who: "systemd".to_owned(), why };
        let builder = match &reach.system_bus {
            Some(address) => connection::Builder::address(address.as_str()),
            None => connection::Builder::system(),
        };
        let builder = builder.map_err(|error| unreachable(error.to_string()))?;
        let connection = within(builder.method_timeout(CALL_TIMEOUT).build()).await.map_err(|why| {
            unreachable(format!("{why} (the system bus; is dbus running, and is its socket visible here?)"))
        })?;
        Ok(Self { connection, who, direct: false })
    }

    async fn user(reach: &Reach, uid: u32) -> Result<Self, Error> {
        let who = format!("the systemd manager of uid {uid}");
        let socket = reach.user_runtime.join(uid.to_string()).join("systemd/private");
        let unreachable = |why: String| Error::Unreachable {
            who: who.clone(),
            why: format!("{}: {why} (only root and that user may connect)", socket.display()),
        };
        let stream = tokio::time::timeout(CALL_TIMEOUT, tokio::net::UnixStream::connect(&socket))
            .await
            .map_err(|_| unreachable("no answer".to_owned()))?
            .map_err(|error| unreachable(error.to_string()))?;
        // A socket in a user's directory may be anybody's: only that user's own process is believed.
        let peer = stream.peer_cred().map_err(|error| unreachable(error.to_string()))?;
        if peer.uid() != uid {
            return Err(unreachable(format!("it belongs to uid {}", peer.uid())));
        }
        let builder = connection::Builder::unix_stream(stream).p2p().method_timeout(CALL_TIMEOUT);
        let connection = within(builder.build()).await.map_err(unreachable)?;
        Ok(Self { connection, who, direct: true })
    }

    /// Reads everything that matters about the service `name`.
    ///
    /// # Errors
    /// [`Error::NoSuch`] where there is no such service, else why it cannot be read.
    pub(crate) async fn look(&self, name: &str) -> Result<Service, Error> {
        let name = checked_name(name, &self.who)?;
        let path: OwnedObjectPath = self.manager("LoadUnit", &(name,)).await?;
        let unit = self.properties(&path, "org.freedesktop.systemd1.Unit").await?;
        if unit.text("LoadState") == "not-found" {
            return Err(Error::NoSuch { who: self.who.clone(), name: name.to_owned() });
        }
        let own = self.properties(&path, "org.freedesktop.systemd1.Service").await?;
        Ok(service(name, &unit, &own))
    }

    /// Starts `name`. Watches the job a moment, to report a failure that comes at once.
    ///
    /// # Errors
    /// [`Error::Refused`] where systemd refuses or the job fails at once.
    pub(crate) async fn start(&self, name: &str) -> Result<Told, Error> {
        self.job("StartUnit", name, "replace").await
    }

    /// Stops `name` and leaves it stopped. Returns once the job is queued: stopping may take long.
    ///
    /// # Errors
    /// [`Error::Refused`] where systemd refuses.
    pub(crate) async fn stop(&self, name: &str) -> Result<Told, Error> {
        let name = checked_name(name, &self.who)?;
        let job: Result<OwnedObjectPath, Error> = self.manager("StopUnit", &(name, "replace")).await;
        match job {
            Ok(_) => Ok(Told::Asked),
            Err(Error::NoSuch { .. }) => Ok(Told::Already),
            Err(error) => Err(error),
        }
    }

    /// Stops and starts `name` as one job, unless it does not run. Returns once the job is queued.
    ///
    /// # Errors
    /// [`Error::Refused`] where systemd refuses.
    pub(crate) async fn restart(&self, name: &str) -> Result<Told, Error> {
        let name = checked_name(name, &self.who)?;
        // Mode `fail`: a stop that an operator has queued meanwhile wins.
        let _job: OwnedObjectPath = self.manager("TryRestartUnit", &(name, "fail")).await?;
        Ok(Told::Asked)
    }

    async fn job(&self, method: &'static str, name: &str, mode: &str) -> Result<Told, Error> {
        let name = checked_name(name, &self.who)?;
        // Before the call: a job of a unit that fails at once is over before the answer is read.
        let mut removed = self.subscribe().await?;
        let job: OwnedObjectPath = self.manager(method, &(name, mode)).await?;
        let watch = tokio::time::timeout(JOB_WATCH, job_result(&mut removed, &job));
        match watch.await.unwrap_or(None).as_deref() {
            None | Some("done" | "skipped") => Ok(Told::Asked),
            Some(result) => Err(Error::Refused {
                who: self.who.clone(),
                what: format!("{method} {name}"),
                why: format!("the job ended with `{result}`; `systemctl status {name}` says more"),
            }),
        }
    }

    async fn subscribe(&self) -> Result<MessageStream, Error> {
        let malformed = |error: zbus::Error| Error::Malformed { who: self.who.clone(), why: error.to_string() };
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .interface(MANAGER)
            .and_then(|rule| rule.member("JobRemoved"))
            .and_then(|rule| rule.path(MANAGER_PATH))
            .map_err(malformed)?
            .build();
        let stream = within(MessageStream::for_match_rule(rule, &self.connection, Some(SIGNALS)))
            .await
            .map_err(|why| Error::Unreachable { who: self.who.clone(), why })?;
        if !self.direct {
            // Without a subscriber the manager sends no signals; a second subscription is refused, which is fine.
            let subscribed: Result<(), Error> = self.manager("Subscribe", &()).await;
            if let Err(Error::Unreachable { who, why }) = subscribed {
                return Err(Error::Unreachable { who, why });
            }
        }
        Ok(stream)
    }

    async fn manager<B, R>(&self, method: &'static str, body: &B) -> Result<R, Error>
    where
        B: serde::Serialize + zbus::zvariant::DynamicType + Sync,
        R: for<'d> zbus::zvariant::DynamicDeserialize<'d>,
    {
        let reply = self.call(MANAGER_PATH, MANAGER, method, body).await?;
        reply.body().deserialize().map_err(|error| self.malformed(&error))
    }

    async fn properties(&self, path: &OwnedObjectPath, interface: &str) -> Result<Properties, Error> {
        let reply = self.call(path.as_str(), "org.freedesktop.DBus.Properties", "GetAll", &(interface,)).await?;
        let map = reply.body().deserialize().map_err(|error| self.malformed(&error))?;
        Ok(Properties::new(map))
    }

    async fn call<B>(&self, path: &str, interface: &str, method: &'static str, body: &B) -> Result<zbus::Message, Error>
    where
        B: serde::Serialize + zbus::zvariant::DynamicType + Sync,
    {
        let destination = if self.direct { None } else { Some(DESTINATION) };
        let call = self.connection.call_method(destination, path, Some(interface), method, body);
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(self.refusal(method, error)),
            Err(_) => Err(Error::Unreachable {
                who: self.who.clone(),
                why: format!("no answer to {method} within {} s", CALL_TIMEOUT.as_secs()),
            }),
        }
    }

    fn refusal(&self, what: &str, error: zbus::Error) -> Error {
        let zbus::Error::MethodError(name, words, _) = error else {
            return Error::Unreachable { who: self.who.clone(), why: error.to_string() };
        };
        if name.as_str() == "org.freedesktop.systemd1.NoSuchUnit" {
            return Error::NoSuch { who: self.who.clone(), name: words.unwrap_or_else(|| "such unit".to_owned()) };
        }
        let remedy = match name.as_str() {
            "org.freedesktop.DBus.Error.AccessDenied"
            | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => {
                "; run the agent as root, or allow it org.freedesktop.systemd1.manage-units for this unit in a polkit rule"
            }
            _ => "",
        };
        let words = words.unwrap_or_else(|| name.to_string());
        Error::Refused { who: self.who.clone(), what: what.to_owned(), why: format!("{words}{remedy}") }
    }

    fn malformed(&self, error: &zbus::Error) -> Error {
        Error::Malformed { who: self.who.clone(), why: error.to_string() }
    }
}

/// Waits until `job` is removed; `None` where the connection ends first.
async fn job_result(signals: &mut MessageStream, job: &OwnedObjectPath) -> Option<String> {
    loop {
        let message = poll_fn(|context| Pin::new(&mut *signals).poll_next(context)).await?.ok()?;
        let body = message.body();
        let removed: Result<(u32, OwnedObjectPath, String, String), _> = body.deserialize();
        if let Ok((_, path, _, result)) = removed
            && path == *job
        {
            return Some(result);
        }
    }
}

async fn within<T>(call: impl Future<Output = zbus::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", CALL_TIMEOUT.as_secs())),
    }
}

/// Refuses what is no service, and the service that holds a user's whole session.
fn checked_name<'a>(name: &'a str, who: &str) -> Result<&'a str, Error> {
    let refused = |why: &str| Error::Refused { who: who.to_owned(), what: format!("{name:?}"), why: why.to_owned() };
    if name.len() > 255 || name.contains('/') || !name.ends_with(".service") {
        return Err(refused("that is not the name of a service"));
    }
    if name.starts_with("user@") {
        return Err(refused("this service holds everything that its user runs, and is never restarted"));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_whole_manager_is_never_touched() {
        for name in ["user@1500.service", "user@0.service", "x.scope", "a/b.service", "", &"x".repeat(300)] {
            assert!(checked_name(name, "systemd").is_err(), "{name}");
        }
        for name in ["shop.service", "shop@1.service", "tpl@x\\x2dy.service"] {
            assert_eq!(checked_name(name, "systemd"), Ok(name));
        }
    }
}
