//! systemd over D-Bus: properties first, then `StartUnit`, `StopUnit` and `TryRestartUnit`.
//!
//! The system manager is asked over the system bus, a user's manager over its own socket. A unit
//! `user@` is never touched: it holds everything that its user runs. The interface is
//! org.freedesktop.systemd1(5).

mod bus;
mod properties;

pub(crate) use properties::{KillMode, Restart, Service};

use super::{Error, Reach, Told, rights};
use bus::{Body, Bus, CallError, Method};
use properties::{Properties, service};
use std::time::Duration;
use zvariant::{OwnedObjectPath, OwnedValue};

const DESTINATION: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// What is heard of jobs: on a bus anybody may send a signal of this name.
const JOBS: &str = "type='signal',sender='org.freedesktop.systemd1',interface='org.freedesktop.systemd1.Manager',\
                    member='JobRemoved'";
/// How long a start job is watched for an early failure before it is left to run.
const JOB_WATCH: Duration = Duration::from_secs(2);

/// A connection to one service manager.
#[derive(Debug)]
pub(crate) struct Instance {
    bus: Bus,
    who: String,
}

impl Instance {
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
        match Bus::connect(reach.system_bus.as_deref(), DESTINATION).await {
            Ok(bus) => Ok(Self { bus, who }),
            Err(error) => {
                let hint = "the system bus; is dbus running, and is its socket visible here?";
                Err(Error::Unreachable { who, why: format!("{} ({hint})", words(error)) })
            }
        }
    }

    async fn user(reach: &Reach, uid: u32) -> Result<Self, Error> {
        let who = format!("the systemd manager of uid {uid}");
        let socket = reach.user_runtime.join(uid.to_string()).join("systemd/private");
        let unreachable = |why: String| Error::Unreachable {
            who: who.clone(),
            why: format!("{}: {why} (only root and that user may connect)", socket.display()),
        };
        // A socket in a user's directory may be anybody's: only that user's own process is believed.
        let stream = rights::connect(socket.clone(), uid).await.map_err(unreachable)?;
        let bus = Bus::direct(stream).await.map_err(|error| unreachable(words(error)))?;
        Ok(Self { bus, who })
    }

    /// Reads everything that matters about the service `name`.
    ///
    /// # Errors
    /// [`Error::NoSuch`] where there is no such service, else why it cannot be read.
    pub(crate) async fn look(&mut self, name: &str) -> Result<Service, Error> {
        let name = checked_name(name, &self.who)?;
        let path = self.object("LoadUnit", &[name]).await?;
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
    pub(crate) async fn start(&mut self, name: &str) -> Result<Told, Error> {
        let name = checked_name(name, &self.who)?;
        // Before the call: a job of a unit that fails at once is over before the answer is read.
        self.bus.listen(JOBS).await.map_err(|error| self.error("AddMatch", error))?;
        match self.manager("Subscribe", &[]).await {
            // A second subscription is refused, which is fine.
            Ok(_) | Err(Error::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
        let job = self.object("StartUnit", &[name, "replace"]).await?;
        // `done` proves nothing, and a job that takes longer is left to run.
        match tokio::time::timeout(JOB_WATCH, job_result(&mut self.bus, &job)).await.unwrap_or(None).as_deref() {
            None | Some("done" | "skipped") => Ok(Told::Asked),
            Some(result) => Err(Error::Refused {
                who: self.who.clone(),
                what: format!("StartUnit {name}"),
                why: format!("the job ended with `{result}`; `systemctl status {name}` says more"),
            }),
        }
    }

    /// Stops `name` and leaves it stopped. Returns once the job is queued: stopping may take long.
    ///
    /// # Errors
    /// [`Error::Refused`] where systemd refuses.
    pub(crate) async fn stop(&mut self, name: &str) -> Result<Told, Error> {
        let name = checked_name(name, &self.who)?;
        match self.manager("StopUnit", &[name, "replace"]).await {
            Ok(_) => Ok(Told::Asked),
            Err(Error::NoSuch { .. }) => Ok(Told::Already),
            Err(error) => Err(error),
        }
    }

    /// Stops and starts `name` as one job, unless it does not run. Returns once the job is queued.
    ///
    /// # Errors
    /// [`Error::Refused`] where systemd refuses.
    pub(crate) async fn restart(&mut self, name: &str) -> Result<Told, Error> {
        let name = checked_name(name, &self.who)?;
        // Mode `fail`: a stop that an operator has queued meanwhile wins.
        self.manager("TryRestartUnit", &[name, "fail"]).await?;
        Ok(Told::Asked)
    }

    /// Reads how the manager itself stands: `running`, `degraded`, `stopping`, …
    async fn system_state(&mut self) -> Result<String, Error> {
        let method = Method { path: MANAGER_PATH, interface: "org.freedesktop.DBus.Properties", member: "Get" };
        let what = "SystemState";
        let body = self.bus.call(method, &[MANAGER, what]).await.map_err(|error| self.error(what, error))?;
        let value: OwnedValue = body.read().map_err(|error| self.error(what, error))?;
        String::try_from(value).map_err(|error| self.error(what, CallError::Malformed(error.to_string())))
    }

    async fn object(&mut self, method: &'static str, arguments: &[&str]) -> Result<OwnedObjectPath, Error> {
        let body = self.manager(method, arguments).await?;
        body.read().map_err(|error| self.error(method, error))
    }

    async fn manager(&mut self, member: &'static str, arguments: &[&str]) -> Result<Body, Error> {
        let method = Method { path: MANAGER_PATH, interface: MANAGER, member };
        self.bus.call(method, arguments).await.map_err(|error| self.error(member, error))
    }

    async fn properties(&mut self, path: &OwnedObjectPath, interface: &str) -> Result<Properties, Error> {
        let member = "GetAll";
        let method = Method { path: path.as_str(), interface: "org.freedesktop.DBus.Properties", member };
        let body = self.bus.call(method, &[interface]).await.map_err(|error| self.error(member, error))?;
        Ok(Properties::new(body.read().map_err(|error| self.error(member, error))?))
    }

    fn error(&self, what: &str, error: CallError) -> Error {
        let who = self.who.clone();
        let (name, words) = match error {
            CallError::Unreachable(why) => return Error::Unreachable { who, why },
            CallError::Malformed(why) => return Error::Malformed { who, why },
            CallError::Refused { name, words } => (name, words),
        };
        if name == "org.freedesktop.systemd1.NoSuchUnit" {
            return Error::NoSuch { who, name: words };
        }
        let remedy = match name.as_str() {
            "org.freedesktop.DBus.Error.AccessDenied"
            | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => {
                "; run the agent as root, or allow it org.freedesktop.systemd1.manage-units for this unit in a polkit rule"
            }
            _ => "",
        };
        let words = if words.is_empty() { name } else { words };
        Error::Refused { who, what: what.to_owned(), why: format!("{words}{remedy}") }
    }
}

/// Tells whether the system manager is taking the machine down. Where it does not say so in time, or nobody can be asked,
/// the answer is no: who cannot tell has not left.
pub(crate) async fn is_machine_stopping(reach: &Reach, timeout: Duration) -> bool {
    let asked = async { Instance::connect(reach, None).await?.system_state().await };
    match tokio::time::timeout(timeout, asked).await {
        Ok(Ok(state)) => is_stopping(&state),
        Ok(Err(error)) => {
            tracing::debug!(%error, "cannot tell whether the machine is shutting down");
            false
        }
        Err(_) => {
            tracing::debug!("systemd did not say in time whether the machine is shutting down");
            false
        }
    }
}

/// The word for a queued or running shutdown, a reboot too: org.freedesktop.systemd1(5), `SystemState`.
fn is_stopping(state: &str) -> bool {
    state == "stopping"
}

/// Waits until `job` is removed and returns its result; `None` where the connection ends first.
async fn job_result(bus: &mut Bus, job: &OwnedObjectPath) -> Option<String> {
    loop {
        let body = bus.signal("JobRemoved").await.ok()?;
        let removed: Result<(u32, OwnedObjectPath, String, String), CallError> = body.read();
        if let Ok((_, path, _, result)) = removed
            && path == *job
        {
            return Some(result);
        }
    }
}

fn words(error: CallError) -> String {
    match error {
        CallError::Unreachable(why) | CallError::Malformed(why) => why,
        CallError::Refused { name, words } => format!("{name}: {words}"),
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

    /// A system bus on which the manager says so of itself; with `None` nobody answers that question.
    async fn asked(state: Option<&'static str>) -> bool {
        let scratch = tempfile::tempdir().unwrap();
        let socket = scratch.path().join("bus");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let reach = Reach { system_bus: Some(format!("unix:path={}", socket.display())), ..Reach::default() };
        let bus = async {
            bus::serve(listener, state).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            stopping = is_machine_stopping(&reach, Duration::from_millis(300)) => stopping,
            () = bus => false,
        }
    }

    #[tokio::test]
    async fn a_machine_is_stopping_only_where_its_manager_says_so() {
        for (state, want) in
            [("stopping", true), ("running", false), ("degraded", false), ("Stopping", false), ("", false)]
        {
            assert_eq!(asked(Some(state)).await, want, "{state}");
        }
    }

    #[tokio::test]
    async fn whoever_cannot_be_asked_in_time_has_not_said_that_the_machine_stops() {
        assert!(!asked(None).await);
        let nowhere = Reach { system_bus: Some("unix:path=/proc/nonexistent".to_owned()), ..Reach::default() };
        assert!(!is_machine_stopping(&nowhere, Duration::from_secs(1)).await);
    }

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
