//! Bus URLs: which broker, where, under which name. What they show of themselves has no password.

use crate::percent::decoded;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Brokers that one URL may name.
const HOSTS_MAX: usize = 16;
const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;
const AMQP_PORT: u16 = 5672;
const AMQPS_PORT: u16 = 5671;

/// A password. It does not print itself.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

/// What coordinator and agents talk over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum BusUrl {
    /// Within one process: `unstale up`.
    #[default]
    Embedded,
    /// Redis or Valkey.
    Redis(RedisUrl),
    /// RabbitMQ.
    Amqp(AmqpUrl),
}

/// `amqp://`, `amqps://`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AmqpUrl {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) login: Login,
    /// The virtual host; `/` where none is stated.
    pub(crate) vhost: String,
}

/// `redis://`, `rediss://`, `redis+sentinel://`, `rediss+sentinel://`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RedisUrl {
    pub(crate) tls: bool,
    /// The server, or the Sentinels.
    pub(crate) places: Vec<(String, u16)>,
    /// What the Sentinels call the server, where they are to be asked.
    pub(crate) master: Option<String>,
    pub(crate) login: Login,
    /// Sentinels have users of their own; a URL does not name them.
    pub(crate) for_sentinels: Login,
    pub(crate) database: i64,
}

/// As whom, where that is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret>,
}

impl FromStr for BusUrl {
    type Err = String;

    /// # Errors
    /// What is wrong with it, without repeating what may be a password.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "embedded" {
            return Ok(Self::Embedded);
        }
        let (scheme, rest) = text.split_once("://").ok_or("a bus is named by a URL, such as `redis://HOST:6379`")?;
        let (tls, kind) = match scheme {
            "redis" => (false, Kind::Redis),
            "rediss" => (true, Kind::Redis),
            "redis+sentinel" => (false, Kind::Sentinel),
            "rediss+sentinel" => (true, Kind::Sentinel),
            "amqp" => (false, Kind::Amqp),
            "amqps" => (true, Kind::Amqp),
            other => {
                // A scheme holds no secret; anything else before `://` may.
                let shown = other.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
                let shown = if shown { format!(" `{other}`") } else { String::new() };
                return Err(format!(
                    "no bus has the scheme{shown}: there are redis://, rediss://, redis+sentinel://, amqp:// and amqps://"
                ));
            }
        };
        if rest.contains(['?', '#']) {
            return Err("a bus URL has no `?` and no `#`; in a password write them `%3F` and `%23`".to_owned());
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (Some(user), hosts),
            None => (None, authority),
        };
        let login = match user.map(|user| user.split_once(':').unwrap_or((user, ""))) {
            None => Login::default(),
            Some((name, password)) => {
                let given = |text: &str| Some(decoded(text)).filter(|text| !text.is_empty());
                Login { username: given(name), password: given(password).map(Secret) }
            }
        };
        let for_sentinels = Login::default();
        let places = places(hosts, kind.port(tls))?;
        if kind != Kind::Sentinel && places.len() > 1 {
            return Err("several hosts are for Sentinels: `redis+sentinel://HOST,HOST/NAME`".to_owned());
        }
        let database = |text: &str| match text {
            "" => Ok(0),
            text => text
                .parse::<u16>()
                .map(i64::from)
                .map_err(|_| "what follows the last `/` is the number of a database".to_owned()),
        };
        Ok(match kind {
            Kind::Redis => {
                let database = database(path)?;
                Self::Redis(RedisUrl { tls, places, master: None, login, for_sentinels, database })
            }
            Kind::Sentinel => {
                let (name, number) = path.split_once('/').unwrap_or((path, ""));
                if name.is_empty() {
                    return Err(
                        "Sentinels are asked for a server by its name: `redis+sentinel://HOST,HOST/NAME`".to_owned()
                    );
                }
                let (master, database) = (Some(decoded(name)), database(number)?);
                Self::Redis(RedisUrl { tls, places, master, login, for_sentinels, database })
            }
            Kind::Amqp => {
                let Some((host, port)) = places.into_iter().next() else { return Err("no host is named".to_owned()) };
                let vhost = if path.is_empty() { "/".to_owned() } else { decoded(path) };
                Self::Amqp(AmqpUrl { tls, host, port, login, vhost })
            }
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Redis,
    Sentinel,
    Amqp,
}

impl Kind {
    fn port(self, tls: bool) -> u16 {
        match (self, tls) {
            (Self::Redis, _) => REDIS_PORT,
            (Self::Sentinel, _) => SENTINEL_PORT,
            (Self::Amqp, false) => AMQP_PORT,
            (Self::Amqp, true) => AMQPS_PORT,
        }
    }
}

fn places(text: &str, usual_port: u16) -> Result<Vec<(String, u16)>, String> {
    let wrong = || "a host is written HOST or HOST:PORT, an IPv6 address in brackets".to_owned();
    let places: Vec<(String, u16)> = text
        .split(',')
        .take(HOSTS_MAX + 1)
        .map(|place| {
            let is_bare = place.ends_with(']') || !place.contains(':');
            let (host, port) = if is_bare {
                (place, usual_port)
            } else {
                let (host, port) = place.rsplit_once(':').ok_or_else(wrong)?;
                (host, port.parse().map_err(|_| wrong())?)
            };
            let host = host.strip_prefix('[').map_or(Some(host), |inner| inner.strip_suffix(']'));
            let host = host.filter(|host| !host.is_empty()).ok_or_else(wrong)?;
            Ok((host.to_owned(), port))
        })
        .collect::<Result<_, String>>()?;
    if places.len() > HOSTS_MAX { Err(format!("at most {HOSTS_MAX} hosts may be named")) } else { Ok(places) }
}

impl fmt::Display for BusUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Redis(url) => url.fmt(f),
            Self::Amqp(url) => url.fmt(f),
        }
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentinel = if self.master.is_some() { "+sentinel" } else { "" };
        write!(f, "redis{}{sentinel}://", if self.tls { "s" } else { "" })?;
        self.login.fmt(f)?;
        for (index, (host, port)) in self.places.iter().enumerate() {
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            write!(f, "{}{host}:{port}", if index == 0 { "" } else { "," })?;
        }
        if let Some(master) = &self.master {
            write!(f, "/{master}")?;
        }
        if self.database != 0 {
            write!(f, "/{}", self.database)?;
        }
        Ok(())
    }
}

impl fmt::Display for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "amqp{}://", if self.tls { "s" } else { "" })?;
        self.login.fmt(f)?;
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let vhost = if self.vhost == "/" { String::new() } else { format!("/{}", self.vhost) };
        write!(f, "{host}:{}{vhost}", self.port)
    }
}

impl fmt::Display for Login {
    /// As it begins a URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { username, password } = self;
        if username.is_none() && password.is_none() {
            return Ok(());
        }
        let shown = if password.is_some() { ":[redacted]" } else { "" };
        write!(f, "{}{shown}@", username.as_deref().unwrap_or_default())
    }
}

impl TryFrom<String> for BusUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<BusUrl> for String {
    fn from(url: BusUrl) -> Self {
        url.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown_without_their_password() {
        let check = |text: &str, shown: &str| {
            let url: BusUrl = text.parse().unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!(url.to_string(), shown, "{text}");
            assert!(!format!("{url:?}").contains("s3cret"), "{url:?}");
        };
        check("embedded", "embedded");
        check("redis://db", "redis://db:6379");
        check("redis://127.0.0.1:7000/3", "redis://127.0.0.1:7000/3");
        check("rediss://unstale:s3cret@db:7000", "rediss://unstale:[redacted]@db:7000");
        check("redis://:s3cret@[::1]:7000/", "redis://:[redacted]@[::1]:7000");
        check("redis://[::1]", "redis://[::1]:6379");
        check("redis+sentinel://a,b:7,c/shop/2", "redis+sentinel://a:26379,b:7,c:26379/shop/2");
        check("amqp://mq", "amqp://mq:5672");
        check("amqps://u:s3cret@mq/celery", "amqps://u:[redacted]@mq:5671/celery");
        let Ok(BusUrl::Redis(url)) = "redis://u%40x:p%2Fw@db".parse() else { panic!("a URL") };
        assert_eq!((url.login.username.as_deref(), url.login.password), (Some("u@x"), Some(Secret("p/w".into()))));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        let check = |text: &str, part: &str| {
            let why = text.parse::<BusUrl>().unwrap_err();
            assert!(why.contains(part) && !why.contains("s3cret"), "{text}: {why}");
        };
        check("kafka://u:s3cret@x", "`kafka`");
        check("u:s3cret@x://y", "scheme");
        check("localhost:6379", "URL");
        check("redis://u:s3cret@", "HOST");
        check("redis://u:s3cret@db:port", "HOST:PORT");
        check("redis://u:s3cret@a,b", "Sentinel");
        check("redis+sentinel://a,b", "name");
        check("redis://u:s3cret@db/s3cret", "number");
        check("redis://u:s3?cret@db", "%3F");
        check(&format!("redis+sentinel://{}/x", "a,".repeat(20) + "a"), "at most");
    }
}
