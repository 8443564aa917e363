//! An agent on Redis: one standing connection that reads, and a second one only while there is something to say.

use super::names::Names;
use super::session::{Access, BEGINNING, Connection, ENVELOPE, Entry, Refused, order};
use crate::bus::backoff::{Backoff, random};
use crate::bus::ends::{AgentSide, FromAgent, ToAgent};
use crate::bus::envelope::{Channel, Encoded};
use crate::bus::queue;
use crate::bus::sessions::{Ended, Sessions};
use redis::streams::StreamReadReply;
use std::convert::Infallible;
use std::time::Duration;
use unstale_protocol::ids::HostName;

/// The name of its connections.
const NAME: &str = "unstale-agent";
/// How long a read waits for news; a silent network is noticed 5 s later.
const WAIT: Duration = Duration::from_secs(15);
/// After this many reads without news the streams are looked at again: their ids may have begun anew.
const QUIET_MAX: u32 = 4;
/// Entries of desired states and permits that are read at once; more are not kept.
const ENTRIES_MAX: usize = 16;
/// Reports that the stream keeps, about: they are read as they come, each tells a host's whole state, and the server's
/// memory is Celery's, too. Two of each host in a fleet of ten thousand.
const REPORTS_MAX: usize = 20_000;
/// How long the second connection is kept with nothing to say.
const IDLE: Duration = Duration::from_secs(2);

/// How often the second connection is tried before what was to be said is lost.
const TRIES: u32 = 4;

/// Carries the messages of one host until the end behind `side` is gone.
///
/// # Errors
/// Where the first connection cannot be had and [`Access::fail_fast`] is set.
pub(crate) async fn run(mut side: AgentSide, access: Access, names: Names, host: HostName) -> anyhow::Result<()> {
    let mut sessions = Sessions::of(&access);
    loop {
        let Err(ended) = session(&mut side, &access, &names, &host, &mut sessions).await;
        if !sessions.go_on(ended, &side.link).await? {
            return Ok(());
        }
    }
}

async fn session(
    side: &mut AgentSide,
    access: &Access,
    names: &Names,
    host: &HostName,
    sessions: &mut Sessions,
) -> Result<Infallible, Ended> {
    let mut connection = access.connect(NAME, WAIT).await?;
    let cursor = look_at_desired(&mut connection, names, side).await?;
    // What was to be said before is old; the agent says everything again once it is connected.
    side.outgoing.clear();
    sessions.begin(&side.link);
    let AgentSide { outgoing, incoming, .. } = side;
    let read = read(connection, names, host, cursor, incoming);
    let speak = async {
        let mut voice = Voice { access, names, host, connection: None, is_refused: false };
        loop {
            let message = if voice.connection.is_some() {
                let Ok(message) = tokio::time::timeout(IDLE, outgoing.receive()).await else {
                    voice.connection = None;
                    continue;
                };
                message
            } else {
                outgoing.receive().await
            };
            if let Some(answer) = voice.say(message.ok_or(queue::Closed)?).await? {
                incoming.send(answer)?;
            }
        }
    };
    tokio::select! {
        ended = read => Err(ended),
        ended = speak => ended,
    }
}

/// Hands on what is retained as desired, and returns the newest entry's id. All of it: somebody's noise may lie on top.
async fn look_at_desired(connection: &mut Connection, names: &Names, side: &AgentSide) -> Result<String, Ended> {
    let mut cursor = BEGINNING.to_owned();
    for entry in connection.newest(&names.desired(), ENTRIES_MAX).await? {
        cursor = entry.id;
        side.incoming.send(ToAgent::Desired(Channel::Desired.shortened(entry.envelope.into())))?;
    }
    Ok(cursor)
}

/// Reads until something fails.
async fn read(
    mut connection: Connection,
    names: &Names,
    host: &HostName,
    mut desired: String,
    incoming: &queue::Sender<ToAgent>,
) -> Ended {
    let streams = [names.desired(), names.permits(host)];
    // Old permits die by their nonce.
    let mut permits = BEGINNING.to_owned();
    let mut quiet = 0;
    loop {
        let mut command = redis::cmd("XREAD");
        command.arg("BLOCK").arg(WAIT.as_millis().to_string()).arg("COUNT").arg(ENTRIES_MAX).arg("STREAMS");
        command.arg(&streams).arg(&desired).arg(&permits);
        let [of_desired, of_permits] = &streams;
        let what = format!("XREAD {of_desired} {of_permits}");
        let reply = match connection.run::<Option<StreamReadReply>>(&command, &what).await {
            Ok(reply) => reply.unwrap_or_default(),
            Err(refused) => return refused.into(),
        };
        if reply.keys.is_empty() {
            quiet += 1;
            if quiet >= QUIET_MAX {
                quiet = 0;
                match has_begun_anew(&mut connection, of_desired, &desired).await {
                    Ok(false) => {}
                    Ok(true) => return Ended::Failed("the server has lost what it held".to_owned()),
                    Err(refused) => return refused.into(),
                }
            }
        }
        for key in reply.keys {
            for entry in key.ids.into_iter().map(Entry::from) {
                let envelope: Encoded = entry.envelope.into();
                let message = if key.key == *of_desired {
                    desired = entry.id;
                    ToAgent::Desired(Channel::Desired.shortened(envelope))
                } else {
                    permits = entry.id;
                    ToAgent::Permit(Channel::Permit.shortened(envelope))
                };
                if let Err(closed) = incoming.send(message) {
                    return closed.into();
                }
            }
        }
    }
}

/// Tells whether a stream's newest entry lies below one that was read: then a read from there would wait for ever.
pub(super) async fn has_begun_anew(connection: &mut Connection, stream: &str, cursor: &str) -> Result<bool, Refused> {
    let newest = connection.newest(stream, 1).await?;
    Ok(newest.last().is_some_and(|entry| order(&entry.id) < order(cursor)))
}

/// The connection that speaks.
struct Voice<'a> {
    access: &'a Access,
    names: &'a Names,
    host: &'a HostName,
    connection: Option<Connection>,
    /// None could be had for what was to be said last: it was said that it is so.
    is_refused: bool,
}

impl Voice<'_> {
    /// Returns the connection to speak on. Where none can be had the session goes on all the same, for what is desired can
    /// still be read, and whether the server is gone is seen there: reports and requests are said again.
    async fn connect(&mut self) -> Option<Connection> {
        if let Some(connection) = self.connection.take() {
            return Some(connection);
        }
        let mut backoff = Backoff::default();
        let mut because = String::new();
        for _ in 0..TRIES {
            match self.access.connect(NAME, Duration::ZERO).await {
                Ok(connection) => {
                    self.is_refused = false;
                    return Some(connection);
                }
                Err(ended) => because = ended.to_string(),
            }
            tokio::time::sleep(backoff.failed(random())).await;
        }
        if !self.is_refused {
            tracing::warn!(because, "nothing can be said: no second connection");
        }
        self.is_refused = true;
        None
    }

    async fn say(&mut self, message: FromAgent) -> Result<Option<ToAgent>, Ended> {
        let Some(mut connection) = self.connect().await else { return Ok(None) };
        let answer = match message {
            FromAgent::Report(envelope) => {
                let stream = self.names.reports();
                let mut command = redis::cmd("XADD");
                command.arg(&stream).arg("MAXLEN").arg("~").arg(REPORTS_MAX).arg("*");
                command.arg("h").arg(self.host.as_str()).arg(ENVELOPE).arg(&*envelope);
                match connection.run::<()>(&command, &format!("XADD {stream}")).await {
                    // It is said again; what is desired can still be read.
                    Err(refused) if refused.is_unwritable() => {
                        tracing::warn!(because = refused.words(), "report not delivered");
                    }
                    said => said?,
                }
                None
            }
            FromAgent::WantManifest(digest) => {
                let key = self.names.manifest(&digest);
                let mut command = redis::cmd("GET");
                command.arg(&key);
                let found: Option<Vec<u8>> = connection.run(&command, &format!("GET {key}")).await?;
                found.map(|envelope| ToAgent::Manifest(digest, Channel::Manifest.shortened(envelope.into())))
            }
        };
        self.connection = Some(connection);
        Ok(answer)
    }
}
