//! The coordinator on Redis: a connection that reads reports, and one for everything else.
//!
//! It writes only while it holds the lease, and only through scripts that compare holder and epoch in the same step. While
//! the server takes nothing it goes on reading, and its lease ends; a server that is a replica by now is left.

use super::agent::has_begun_anew;
use super::names::Names;
use super::session::{Access, BEGINNING, Connection, Entry, Refused, order};
use crate::bus::backoff::random;
use crate::bus::ends::{CoordinatorSide, FromCoordinator, Lease, ToCoordinator, deliver};
use crate::bus::envelope::{Channel, Encoded};
use crate::bus::queue;
use crate::bus::sessions::{Ended, Sessions};
use crate::clock::Clock;
use redis::streams::StreamReadReply;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use unstale_protocol::fingerprint::Fingerprint;
use unstale_protocol::ids::{Epoch, HostName};
use unstale_protocol::time::Moment;

/// The name of its connections.
const NAME: &str = "unstale-coordinator";
/// How long a read waits for reports.
const WAIT: Duration = Duration::from_secs(1);
/// After this many reads without reports the stream is looked at again: its ids may have begun anew.
const QUIET_MAX: u32 = 5;
/// Reports that are read at once.
const REPORTS_MAX: usize = 100;
/// How long a lease lasts, and how often it is renewed and what is retained is looked at.
const LEASE: Duration = Duration::from_secs(10);
const RENEWAL: Duration = Duration::from_secs(3);
/// Desired states that the stream keeps.
const DESIRED_MAX: usize = 16;
/// Permits that a host's stream keeps, and how long they are kept: far longer than a permit lives.
const PERMITS_MAX: usize = 64;
const PERMITS_KEPT: Duration = Duration::from_mins(10);
/// How long a manifest is kept, and how often it is written again: one that is wanted no more, by a coordinator that
/// was killed before it could remove it, does not stay for ever. Who leads again writes what is missing at once.
const MANIFESTS_KEPT: Duration = Duration::from_hours(7 * 24);
const MANIFESTS_AGAIN: Duration = Duration::from_hours(24);

/// Lets a script write although the memory limit is reached: Redis 7.0.
const ALLOW_OOM: &str = "#!lua flags=allow-oom\n";
/// Keys: lease. Arguments: holder, milliseconds, least epoch. A lease of another holder that would end long after any
/// that is given is of a clock that was wrong. Returns whether it is held, and the epoch.
const TAKE_LEASE: &str = "\
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local h = redis.call('HMGET', KEYS[1], 'holder', 'epoch', 'until')
local epoch = tonumber(h[2] or '0') or 0
local ends = tonumber(h[3] or '0') or 0
local least = tonumber(ARGV[3])
if h[1] == ARGV[1] and ends > now and epoch >= least then
  redis.call('HSET', KEYS[1], 'until', string.format('%.0f', now + ARGV[2]))
  return {1, string.format('%.0f', epoch)}
end
if h[1] and h[1] ~= ARGV[1] and ends > now and ends <= now + 600000 then
  return {0, string.format('%.0f', epoch)}
end
epoch = math.max(epoch + 1, least)
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'epoch', string.format('%.0f', epoch),
  'until', string.format('%.0f', now + ARGV[2]))
return {1, string.format('%.0f', epoch)}";
/// Keys: lease, stream. Arguments: holder, epoch, length, envelope, milliseconds to keep or 0.
const ADD: &str = "\
local h = redis.call('HMGET', KEYS[1], 'holder', 'epoch')
if h[1] ~= ARGV[1] or h[2] ~= ARGV[2] then return redis.error_reply('STALE ' .. tostring(h[2])) end
redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[3], '*', 'e', ARGV[4])
if ARGV[5] ~= '0' then redis.call('PEXPIRE', KEYS[2], ARGV[5]) end
return 1";
/// Keys: lease, manifest. Arguments: holder, epoch, envelope, milliseconds to keep.
const PUT: &str = "\
local h = redis.call('HMGET', KEYS[1], 'holder', 'epoch')
if h[1] ~= ARGV[1] or h[2] ~= ARGV[2] then return redis.error_reply('STALE ' .. tostring(h[2])) end
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
return 1";

/// Keys: lease, what is to go. Arguments: holder, epoch.
const REMOVE: &str = "\
local h = redis.call('HMGET', KEYS[1], 'holder', 'epoch')
if h[1] ~= ARGV[1] or h[2] ~= ARGV[2] then return redis.error_reply('STALE ' .. tostring(h[2])) end
redis.call('DEL', KEYS[2])
return 1";

/// Carries the coordinator's messages until the end behind `side` is gone.
///
/// # Errors
/// Where the first connection cannot be had and [`Access::fail_fast`] is set.
pub(crate) async fn run(mut side: CoordinatorSide, access: Access, names: Names, clock: Clock) -> anyhow::Result<()> {
    let mut sessions = Sessions::of(&access);
    // One life of this process: a name that nobody else takes.
    let holder = format!("{:016x}{:016x}", random(), random());
    // Up to where reports were read, in any session of this life.
    let mut cursor = None;
    loop {
        let Err(ended) = session(&mut side, &access, &names, (&holder, clock), (&mut sessions, &mut cursor)).await;
        if !sessions.go_on(ended, &side.link).await? {
            return Ok(());
        }
    }
}

async fn session(
    side: &mut CoordinatorSide,
    access: &Access,
    names: &Names,
    (holder, clock): (&str, Clock),
    (sessions, cursor): (&mut Sessions, &mut Option<String>),
) -> Result<Infallible, Ended> {
    let mut reader = access.connect(NAME, WAIT).await?;
    let newest = reader.newest(&names.reports(), 1).await?;
    let newest = newest.last().map_or_else(|| BEGINNING.to_owned(), |entry| entry.id.clone());
    let after = match cursor.take() {
        Some(last) if order(&last) <= order(&newest) => last,
        // The stream has begun anew.
        Some(_) => BEGINNING.to_owned(),
        // Reports of before this life are old: agents report at every reign.
        None => newest,
    };
    // Kept from here on, also where the second connection cannot be had.
    let cursor = cursor.insert(after);
    let mut connection = access.connect(NAME, Duration::ZERO).await?;
    // Permits that could not be sent are asked for again.
    side.outgoing.clear();
    if sessions.is_first() {
        for condition in super::condition::of(&mut connection).await {
            if let Some(help) = condition.help {
                tracing::warn!(bus = %access.url, found = condition.found, help, "the broker could be set better");
            }
        }
    }
    sessions.begin(&side.link);
    let mut writer = Writer {
        connection,
        names,
        holder,
        clock,
        lease: None,
        is_standby: false,
        may_go_beyond: true,
        may_look_up: true,
        looked: DESIRED_MAX,
        kept: BTreeMap::new(),
    };
    let CoordinatorSide { desired, least_epoch, manifests, outgoing, incoming, link } = side;
    let write = async {
        let mut due = interval(RENEWAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = due.tick() => {
                    let ours = desired.borrow().clone();
                    writer.look_at_desired(ours.as_ref(), incoming).await?;
                    let least = *least_epoch.borrow();
                    let refused = writer.renew(least, incoming).await?;
                    sessions.refused(refused.as_deref(), link);
                    writer.look_at_manifests().await?;
                    let wanted = manifests.borrow_and_update().clone();
                    writer.keep_manifests(&wanted).await?;
                    // Counted from here: over a slow way all of this takes longer than the pause, and permits wait.
                    due.reset();
                }
                changed = manifests.changed() => {
                    changed?;
                    let wanted = manifests.borrow_and_update().clone();
                    writer.keep_manifests(&wanted).await?;
                }
                changed = desired.changed() => {
                    changed?;
                    let ours = desired.borrow_and_update().clone();
                    if let Some(ours) = ours {
                        writer.add(&names.desired(), DESIRED_MAX, &ours, Duration::ZERO, incoming).await?;
                    }
                }
                message = outgoing.receive() => match message.ok_or(queue::Closed)? {
                    FromCoordinator::Permit(host, permit) => {
                        writer.add(&names.permits(&host), PERMITS_MAX, &permit, PERMITS_KEPT, incoming).await?;
                    }
                    FromCoordinator::Forget(host) => writer.forget(&host).await?,
                    FromCoordinator::LookUp(digest) => writer.look_up(digest, incoming).await?,
                },
            }
        }
    };
    let read = read(reader, names, cursor, incoming);
    tokio::select! {
        ended = write => ended,
        ended = read => Err(ended),
    }
}

/// Reads reports until something fails. What the driver has no room for stays in the stream.
async fn read(
    mut connection: Connection,
    names: &Names,
    cursor: &mut String,
    incoming: &queue::Sender<ToCoordinator>,
) -> Ended {
    let stream = names.reports();
    let what = format!("XREAD {stream}");
    let mut quiet = 0;
    loop {
        let mut command = redis::cmd("XREAD");
        command.arg("BLOCK").arg(WAIT.as_millis().to_string()).arg("COUNT").arg(REPORTS_MAX);
        command.arg("STREAMS").arg(&stream).arg(&*cursor);
        let reply = match connection.run::<Option<StreamReadReply>>(&command, &what).await {
            Ok(reply) => reply.unwrap_or_default(),
            Err(refused) => return refused.into(),
        };
        if reply.keys.is_empty() {
            quiet += 1;
            if quiet >= QUIET_MAX {
                quiet = 0;
                match has_begun_anew(&mut connection, &stream, cursor).await {
                    Ok(false) => {}
                    Ok(true) => BEGINNING.clone_into(cursor),
                    Err(refused) => return refused.into(),
                }
            }
        }
        for entry in reply.keys.into_iter().flat_map(|key| key.ids).map(Entry::from) {
            *cursor = entry.id;
            let report = ToCoordinator::Report(entry.envelope.into());
            if let Err(closed) = incoming.room().await.and_then(|()| deliver(incoming, report)) {
                return closed.into();
            }
        }
    }
}

/// The connection that writes, and the lease under which it does.
struct Writer<'a> {
    connection: Connection,
    names: &'a Names,
    holder: &'a str,
    clock: Clock,
    lease: Option<Lease>,
    /// Another one leads: it was said.
    is_standby: bool,
    /// The server lets scripts go beyond its memory limit.
    may_go_beyond: bool,
    /// This user may read manifests: rules of before did not say so.
    may_look_up: bool,
    /// How many of the newest desired states are looked at: all of them first, for noise may lie on top.
    looked: usize,
    /// Manifests that were written, what, and when that is due again.
    kept: BTreeMap<Fingerprint, (Encoded, Moment)>,
}

impl Writer<'_> {
    /// Runs a script of ours, by its text: it is small, and the server may have forgotten it at any time.
    async fn run<T: redis::FromRedisValue>(
        &mut self,
        text: &str,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<T, Refused> {
        let what = format!("EVAL for {}", keys.last().copied().unwrap_or_default());
        loop {
            let text = if self.may_go_beyond { format!("{ALLOW_OOM}{text}") } else { text.to_owned() };
            let mut command = redis::cmd("EVAL");
            command.arg(text).arg(keys.len()).arg(keys).arg(arguments);
            match self.connection.run(&command, &what).await {
                Err(refused) if self.may_go_beyond && refused.is_old_script() => {
                    tracing::info!("the server is older than 7.0: nothing can be written when its memory is full");
                    self.may_go_beyond = false;
                }
                answer => return answer,
            }
        }
    }

    /// Takes or renews the lease. It counts from before it was asked for, on our own clock. Returns why the server takes
    /// nothing for now; then the lease that was had ends when it would.
    async fn renew(&mut self, least: Epoch, told: &queue::Sender<ToCoordinator>) -> Result<Option<String>, Ended> {
        let asked_at = self.clock.now();
        let key = self.names.lease();
        let (milliseconds, least) = (LEASE.as_millis().to_string(), least.0.to_string());
        let arguments: [&[u8]; 3] = [self.holder.as_bytes(), milliseconds.as_bytes(), least.as_bytes()];
        let (is_held, epoch): (i64, u64) = match self.run(TAKE_LEASE, &[&key], &arguments).await {
            Ok(answer) => answer,
            Err(refused) if refused.is_unwritable() => {
                if self.lease.is_some_and(|lease| lease.until <= self.clock.now()) {
                    self.lose(told)?;
                }
                return Ok(Some(refused.words()));
            }
            Err(refused) => return Err(refused.into()),
        };
        if is_held == 1 {
            let granted = Lease { epoch: Some(Epoch(epoch)), until: asked_at.after(LEASE) };
            if self.lease.is_none_or(|lease| lease.epoch != Some(Epoch(epoch))) {
                tracing::info!(epoch, "this coordinator leads");
            }
            self.is_standby = false;
            self.lease = Some(granted);
            deliver(told, ToCoordinator::Lease(Some(granted)))?;
        } else {
            self.lose(told)?;
            if !self.is_standby {
                tracing::info!(epoch, "another coordinator leads, this one stands by");
            }
            self.is_standby = true;
        }
        Ok(None)
    }

    fn lose(&mut self, told: &queue::Sender<ToCoordinator>) -> Result<(), queue::Closed> {
        match self.lease.take() {
            Some(_) => deliver(told, ToCoordinator::Lease(None)),
            None => Ok(()),
        }
    }

    /// Adds an envelope to a stream, if this coordinator leads.
    async fn add(
        &mut self,
        stream: &str,
        most: usize,
        envelope: &[u8],
        kept: Duration,
        told: &queue::Sender<ToCoordinator>,
    ) -> Result<(), Ended> {
        let Some(lease) = self.lease else { return Ok(()) };
        let (epoch, most) = (lease.epoch.unwrap_or_default().0.to_string(), most.to_string());
        let kept = kept.as_millis().to_string();
        let arguments: [&[u8]; 5] =
            [self.holder.as_bytes(), epoch.as_bytes(), most.as_bytes(), envelope, kept.as_bytes()];
        let key = self.names.lease();
        match self.run::<i64>(ADD, &[&key, stream], &arguments).await {
            Ok(_) => Ok(()),
            Err(refused) if refused.is_stale() => {
                tracing::warn!("another coordinator has taken the lead");
                Ok(self.lose(told)?)
            }
            Err(refused) if refused.is_unwritable() => {
                tracing::warn!(because = refused.words(), "not written");
                Ok(())
            }
            Err(refused) => Err(refused.into()),
        }
    }

    /// Tells the driver what is retained as desired where that is not `ours`.
    async fn look_at_desired(
        &mut self,
        ours: Option<&Encoded>,
        incoming: &queue::Sender<ToCoordinator>,
    ) -> Result<(), Ended> {
        let newest = self.connection.newest(&self.names.desired(), self.looked).await?;
        self.looked = 1;
        if newest.is_empty() {
            deliver(incoming, ToCoordinator::Tip(None))?;
        }
        for entry in newest {
            let found: Encoded = entry.envelope.into();
            if Some(&found) != ours {
                deliver(incoming, ToCoordinator::Tip(Some(found)))?;
            }
        }
        Ok(())
    }

    /// Finds out which of the manifests that were written are not there any more: by one question where all are.
    async fn look_at_manifests(&mut self) -> Result<(), Ended> {
        let keys: Vec<(Fingerprint, String)> =
            self.kept.keys().map(|digest| (*digest, self.names.manifest(digest))).collect();
        let all: Vec<&str> = keys.iter().map(|(_, key)| key.as_str()).collect();
        if all.is_empty() || self.count(&all).await? == all.len() {
            return Ok(());
        }
        for (digest, key) in &keys {
            if self.count(&[key]).await? == 0 {
                self.kept.remove(digest);
            }
        }
        Ok(())
    }

    async fn count(&mut self, keys: &[&str]) -> Result<usize, Ended> {
        let mut command = redis::cmd("EXISTS");
        command.arg(keys);
        let what = format!("EXISTS {}", keys.first().copied().unwrap_or_default());
        Ok(self.connection.run(&command, &what).await?)
    }

    /// Writes manifests that are missing and removes those that are not wanted any more.
    async fn keep_manifests(&mut self, wanted: &BTreeMap<Fingerprint, Encoded>) -> Result<(), Ended> {
        let Some(lease) = self.lease else { return Ok(()) };
        let (lease_key, epoch) = (self.names.lease(), lease.epoch.unwrap_or_default().0.to_string());
        for (digest, envelope) in wanted {
            let key = self.names.manifest(digest);
            let now = self.clock.now();
            if self.kept.get(digest).is_some_and(|(written, due)| written == envelope && now < *due) {
                continue;
            }
            let kept = MANIFESTS_KEPT.as_millis().to_string();
            let arguments: [&[u8]; 4] = [self.holder.as_bytes(), epoch.as_bytes(), envelope, kept.as_bytes()];
            match self.run::<i64>(PUT, &[&lease_key, &key], &arguments).await {
                Ok(_) => drop(self.kept.insert(*digest, (envelope.clone(), now.after(MANIFESTS_AGAIN)))),
                // The next renewal finds out; what is not taken for now is tried again then.
                Err(refused) if refused.is_stale() || refused.is_unwritable() => {}
                Err(refused) => return Err(refused.into()),
            }
        }
        let unwanted: Vec<Fingerprint> =
            self.kept.keys().filter(|digest| !wanted.contains_key(digest)).copied().collect();
        for digest in unwanted {
            if self.delete(&self.names.manifest(&digest)).await? {
                self.kept.remove(&digest);
            }
        }
        Ok(())
    }

    /// Tells the driver a manifest that another coordinator has written, where it is there. No more of it is read than shows
    /// that it is too long.
    async fn look_up(&mut self, digest: Fingerprint, incoming: &queue::Sender<ToCoordinator>) -> Result<(), Ended> {
        if !self.may_look_up {
            return Ok(());
        }
        let key = self.names.manifest(&digest);
        let mut command = redis::cmd("GETRANGE");
        command.arg(&key).arg(0).arg(Channel::Manifest.max_bytes());
        match self.connection.run::<Vec<u8>>(&command, &format!("GETRANGE {key}")).await {
            Ok(found) if found.is_empty() => Ok(()),
            Ok(found) => Ok(deliver(incoming, ToCoordinator::Manifest(digest, found.into()))?),
            Err(refused) if refused.is_forbidden() => {
                tracing::warn!(because = refused.words(), "a manifest is not looked for here, only on hosts");
                self.may_look_up = false;
                Ok(())
            }
            Err(refused) => Err(refused.into()),
        }
    }

    async fn forget(&mut self, host: &HostName) -> Result<(), Ended> {
        self.delete(&self.names.permits(host)).await.map(drop)
    }

    /// Removes a key, if this coordinator leads: one that was paused must not take away what the next one needs. Tells
    /// whether it did.
    async fn delete(&mut self, key: &str) -> Result<bool, Ended> {
        let Some(lease) = self.lease else { return Ok(false) };
        let (lease_key, epoch) = (self.names.lease(), lease.epoch.unwrap_or_default().0.to_string());
        let arguments: [&[u8]; 2] = [self.holder.as_bytes(), epoch.as_bytes()];
        match self.run::<i64>(REMOVE, &[&lease_key, key], &arguments).await {
            Ok(_) => Ok(true),
            // The next renewal finds out.
            Err(refused) if refused.is_stale() || refused.is_unwritable() => Ok(false),
            Err(refused) => Err(refused.into()),
        }
    }
}
