//! Connections to Redis: where, as whom, with which time limits; and what is said when one cannot be had.

use crate::bus::address::{Login, RedisUrl};
use crate::bus::sessions::{self, Ended};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::streams::StreamRangeReply;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ErrorKind, FromRedisValue,
    IntoConnectionInfo as _, RedisConnectionInfo, TlsCertificates, Value,
};
use std::time::Duration;
use unstale_agent::display::escape;

/// How long connecting may take, and with it the whole login.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a command that does not wait may take.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A dead peer is noticed after these: idle time, interval, probes.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(5), Duration::from_secs(2), 3);
/// The field of every stream that holds an envelope.
pub(super) const ENVELOPE: &str = "e";
/// An id below every entry of a stream.
pub(super) const BEGINNING: &str = "0-0";

/// What is said where a Sentinel asks for a login that it was not given.
const SENTINEL_LOGIN: &str = "it wants a password: `sentinel_password_file` in `[bus]`, or UNSTALE_SENTINEL_PASSWORD";

/// How the server is reached.
pub(crate) type Access = sessions::Access<RedisUrl>;

/// Why one command failed.
#[derive(Debug)]
pub(super) struct Refused {
    /// The command and its key.
    what: String,
    error: redis::RedisError,
}

impl Refused {
    /// Tells whether the server takes nothing for now, for want of memory, disk or replicas: reading still works, and with
    /// too little memory so does what may go beyond it. READONLY is none of these: such a server is a replica by now.
    pub(super) fn is_unwritable(&self) -> bool {
        const NOT_NOW: [&str; 3] = ["OOM", "MISCONF", "NOREPLICAS"];
        match self.error.code() {
            // Before 7.0 a script's error has no code, and ends with what the command in it was told.
            Some("ERR") => {
                let said = self.error.to_string();
                said.contains("unning script") && NOT_NOW.iter().any(|code| said.contains(&format!(" -{code} ")))
            }
            Some(code) => NOT_NOW.contains(&code),
            None => false,
        }
    }

    /// Tells whether the server wants a password first.
    fn wants_login(&self) -> bool {
        self.error.code() == Some("NOAUTH")
    }

    /// Tells whether this user may not do it.
    pub(super) fn is_forbidden(&self) -> bool {
        self.error.code() == Some("NOPERM")
    }

    /// Tells whether another coordinator leads.
    pub(super) fn is_stale(&self) -> bool {
        self.error.code() == Some("STALE")
    }

    /// Tells whether the server does not know the line that lets a script go beyond the memory limit.
    pub(super) fn is_old_script(&self) -> bool {
        format!("{}", self.error).contains("ompil")
    }

    pub(super) fn words(&self) -> String {
        let Self { what, error } = self;
        let said = escape::terminal(&error.to_string()).into_owned();
        match error.code() {
            Some("NOPERM") => {
                format!("this user may not {what} ({said}): `deploy/redis.acl` has the rules that are needed")
            }
            Some("OOM") => format!("the server has no memory left for {what}"),
            Some("ERR") if said.contains("unknown command") => {
                format!("the server does not know {what}: Redis 5 or later is needed")
            }
            _ if error.is_timeout() => format!("no answer to {what} in time"),
            _ => format!("{what}: {said}"),
        }
    }
}

impl From<Refused> for Ended {
    fn from(refused: Refused) -> Self {
        Self::Failed(refused.words())
    }
}

/// A connection, and what is done on it.
pub(super) struct Connection(MultiplexedConnection);

impl Connection {
    /// Runs one command; `what` names it in messages.
    pub(super) async fn run<T: FromRedisValue>(&mut self, command: &Cmd, what: &str) -> Result<T, Refused> {
        command.query_async(&mut self.0).await.map_err(|error| Refused { what: what.to_owned(), error })
    }

    /// Reads the newest entries of a stream, oldest first.
    pub(super) async fn newest(&mut self, stream: &str, count: usize) -> Result<Vec<Entry>, Refused> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(stream).arg("+").arg("-").arg("COUNT").arg(count);
        let reply: StreamRangeReply = self.run(&command, &format!("XREVRANGE {stream}")).await?;
        let mut entries: Vec<Entry> = reply.ids.into_iter().map(Entry::from).collect();
        entries.reverse();
        Ok(entries)
    }
}

/// One entry of a stream.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) id: String,
    /// Its envelope; empty where it has none, which is no envelope either.
    pub(super) envelope: Vec<u8>,
}

impl From<redis::streams::StreamId> for Entry {
    fn from(mut entry: redis::streams::StreamId) -> Self {
        let envelope = match entry.map.remove(ENVELOPE) {
            Some(Value::BulkString(bytes)) => bytes,
            _ => Vec::new(),
        };
        Self { id: entry.id, envelope }
    }
}

/// Compares ids of entries: milliseconds, then a number. What is none lies below all.
pub(super) fn order(id: &str) -> (u64, u64) {
    let (time, number) = id.split_once('-').unwrap_or((id, "0"));
    (time.parse().unwrap_or(0), number.parse().unwrap_or(0))
}

impl Access {
    /// Connects and logs in. `wait` is the longest that a command is to block.
    pub(super) async fn connect(&self, name: &str, wait: Duration) -> Result<Connection, Ended> {
        let limit = tokio::time::timeout(CONNECT_TIMEOUT, self.connect_now(name, wait));
        limit.await.unwrap_or_else(|_| Err(Ended::Failed(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))))
    }

    async fn connect_now(&self, name: &str, wait: Duration) -> Result<Connection, Ended> {
        let Some(master) = &self.url.master else {
            let Some(place) = self.url.places.first() else { return Err(Ended::Failed("no host".to_owned())) };
            return self.connect_to(place, name, wait).await;
        };
        // Asked anew each time: after a failover the old server may still be there, and be wrong.
        let place = self.ask_sentinels(master).await?;
        self.connect_to(&place, name, wait).await
    }

    async fn ask_sentinels(&self, master: &str) -> Result<(String, u16), Ended> {
        let mut reasons = Vec::new();
        for (host, port) in &self.url.places {
            // Why it cannot be reached names the place already.
            let at = |why: String| Ended::Failed(format!("{host}:{port}: {why}"));
            let asked = async {
                let login = info_of(&self.url.for_sentinels);
                let mut connection = self.open(&(host.clone(), *port), login, ANSWER_TIMEOUT).await?;
                let mut command = redis::cmd("SENTINEL");
                command.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
                match connection.run::<Option<_>>(&command, "SENTINEL GET-MASTER-ADDR-BY-NAME").await {
                    Ok(Some(place)) => Ok(place),
                    Ok(None) => Err(at(format!("it knows no server of the name {master}"))),
                    Err(refused) if refused.wants_login() => Err(at(SENTINEL_LOGIN.to_owned())),
                    Err(refused) => Err(at(refused.words())),
                }
            };
            let limit = tokio::time::timeout(CONNECT_TIMEOUT / 3, asked).await;
            match limit.unwrap_or_else(|_| Err(at("no answer".to_owned()))) {
                Ok(place) => return Ok(place),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Err(Ended::Failed(format!("no Sentinel told where {master} is ({})", reasons.join("; "))))
    }

    async fn connect_to(&self, place: &(String, u16), name: &str, wait: Duration) -> Result<Connection, Ended> {
        let login = info_of(&self.url.login).set_db(self.url.database);
        let mut connection = self.open(place, login, wait + ANSWER_TIMEOUT).await?;
        let mut command = redis::cmd("CLIENT");
        command.arg("SETNAME").arg(name);
        connection.run::<()>(&command, "CLIENT SETNAME").await?;
        Ok(connection)
    }

    async fn open(
        &self,
        (host, port): &(String, u16),
        login: RedisConnectionInfo,
        answer_timeout: Duration,
    ) -> Result<Connection, Ended> {
        let address = if self.url.tls {
            ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host.clone(), *port)
        };
        let (idle, interval, probes) = KEEPALIVE;
        let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(probes);
        let words = |error: redis::RedisError| {
            let said = escape::terminal(&error.to_string()).into_owned();
            Ended::Failed(match error.kind() {
                ErrorKind::AuthenticationFailed => format!("{host}:{port} refuses user or password"),
                _ if error.is_timeout() => format!("{host}:{port} does not answer"),
                _ => format!("{host}:{port}: {said}"),
            })
        };
        let info = address
            .into_connection_info()
            .map_err(words)?
            .set_redis_settings(login)
            .set_tcp_settings(TcpSettings::default().set_nodelay(true).set_keepalive(keepalive));
        let client = if self.url.tls {
            let client_tls =
                self.identity.clone().map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
            Client::build_with_tls(info, TlsCertificates { client_tls, root_cert: self.authority.clone() })
        } else {
            Client::open(info)
        };
        let options = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(answer_timeout));
        let client = client.map_err(words)?;
        client.get_multiplexed_async_connection_with_config(&options).await.map(Connection).map_err(words)
    }
}

fn info_of(login: &Login) -> RedisConnectionInfo {
    let mut info = RedisConnectionInfo::default().set_skip_set_lib_name();
    if let Some(username) = &login.username {
        info = info.set_username(username);
    }
    if let Some(password) = &login.password {
        info = info.set_password(&password.0);
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_takes_later_is_told_from_what_it_never_takes() {
        let check = |line: &str, is_expected: bool| {
            let parsed = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).and_then(Value::extract_error);
            let refused = Refused { what: "EVAL".to_owned(), error: parsed.unwrap_err() };
            assert_eq!(refused.is_unwritable(), is_expected, "{line}");
        };
        check("OOM command not allowed when used memory > 'maxmemory'.", true);
        check("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", true);
        check("NOREPLICAS Not enough good replicas to write.", true);
        // Redis 6.2.
        let script = "ERR Error running script (call to f_0): @user_script:4: @user_script: 4:";
        check(&format!("{script} -MISCONF Redis is configured to save RDB snapshots"), true);
        check(&format!("{script} -OOM command not allowed when used memory > 'maxmemory'."), true);
        check(&format!("{script} -READONLY You can't write against a read only replica."), false);
        check(&format!("{script} attempt to compare nil with number"), false);
        check("READONLY You can't write against a read only replica.", false);
        check("ERR unknown command 'MISCONF'", false);
        check("STALE 7", false);
    }

    #[test]
    fn ids_are_ordered_as_numbers() {
        assert!(order("9-2") < order("10-0") && order("10-2") < order("10-11") && order("x") == order(BEGINNING));
    }
}
