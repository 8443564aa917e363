//! Database URLs as people have them: libpq's, and SQLAlchemy's with a driver and its own parameters.

use crate::percent::decoded;
use std::path::PathBuf;
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

/// Parameters that the driver understands under libpq's names.
const PASSED_ON: [&str; 9] =
    ["host", "hostaddr", "port", "user", "password", "dbname", "options", "application_name", "target_session_attrs"];

/// Where a database is and how it is spoken to.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) config: Config,
    pub(super) tls: Tls,
    /// A file with the certificates that are trusted, `sslrootcert`.
    pub(super) root_certificate: Option<PathBuf>,
    /// Host and database, for messages: neither user nor password.
    pub(super) place: String,
}

/// What `sslmode` asks for: libpq documentation, section SSL Support.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tls {
    /// Never.
    Off,
    /// Where the server offers it, whoever it is.
    Preferred,
    /// Always, whoever the server is (`require` without a root certificate).
    Encrypted,
    /// Always, with a certificate of a trusted authority.
    VerifiedAuthority,
    /// As `VerifiedAuthority`, and for this host's name.
    VerifiedHost,
}

/// Reads a URL, or libpq's `key=value` form.
///
/// # Errors
/// What is wrong with it, without repeating it.
pub(super) fn parse(url: &str) -> Result<Address, String> {
    let url = url.trim();
    let Some((scheme, rest)) = url.split_once("://") else {
        let config: Config = url.parse().map_err(|_| "it is neither a URL nor `key=value` pairs".to_owned())?;
        let tls = match config.get_ssl_mode() {
            SslMode::Disable => Tls::Off,
            SslMode::Require => Tls::Encrypted,
            _ => Tls::Preferred,
        };
        return Ok(finish(config, tls, None));
    };
    if !matches!(scheme.split_once('+').map_or(scheme, |(dialect, _driver)| dialect), "postgresql" | "postgres") {
        return Err("it is not PostgreSQL's: its scheme must be `postgresql`".to_owned());
    }
    let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut mode = None;
    let mut root_certificate = None;
    let mut passed = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match key {
            "sslmode" | "ssl" => mode = Some(value.to_owned()),
            "sslrootcert" => root_certificate = Some(PathBuf::from(decoded(value))),
            key if PASSED_ON.contains(&key) => passed.push(pair),
            // Parameters of one driver or another that change nothing of what is read.
            _ => {}
        }
    }
    let query = passed.join("&");
    let mark = if query.is_empty() { "" } else { "?" };
    // The driver's own message repeats the part that is wrong, which may be the password.
    let config: Config = format!("postgresql://{before}{mark}{query}")
        .parse()
        .map_err(|_| "host, port or a parameter cannot be understood".to_owned())?;
    let tls = match mode.as_deref() {
        None | Some("prefer" | "allow" | "") => Tls::Preferred,
        Some("disable" | "false" | "False" | "0") => Tls::Off,
        // libpq: with a root certificate `require` behaves as `verify-ca`.
        Some("require" | "true" | "True" | "1") if root_certificate.is_some() => Tls::VerifiedAuthority,
        Some("require" | "true" | "True" | "1") => Tls::Encrypted,
        Some("verify-ca") => Tls::VerifiedAuthority,
        Some("verify-full") => Tls::VerifiedHost,
        Some(_) => return Err("`sslmode` must be disable, allow, prefer, require, verify-ca or verify-full".to_owned()),
    };
    Ok(finish(config, tls, root_certificate))
}

fn finish(mut config: Config, tls: Tls, root_certificate: Option<PathBuf>) -> Address {
    use tokio_postgres::config::Host;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        // As libpq does: the usual directory of the server's socket.
        config.host_path("/var/run/postgresql");
    }
    let is_local = config.get_hosts().iter().any(|host| matches!(host, Host::Unix(_)));
    let tls = if is_local { Tls::Off } else { tls };
    config.ssl_mode(match tls {
        Tls::Off => SslMode::Disable,
        Tls::Preferred => SslMode::Prefer,
        Tls::Encrypted | Tls::VerifiedAuthority | Tls::VerifiedHost => SslMode::Require,
    });
    if config.get_application_name().is_none() {
        config.application_name("unstale");
    }
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        })
        .collect();
    let hosts = if hosts.is_empty() { "the database".to_owned() } else { hosts.join(",") };
    let place = match config.get_dbname() {
        Some(name) => format!("database `{name}` on {hosts}"),
        None => format!("the database on {hosts}"),
    };
    Address { config, tls, root_certificate, place }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_their_users_write_them() {
        let check = |url: &str, place: &str, tls: Tls| {
            let address = parse(url).unwrap_or_else(|why| panic!("{url}: {why}"));
            assert_eq!((address.place.as_str(), address.tls), (place, tls), "{url}");
        };
        check("postgresql://u:p@db:5432/shop", "database `shop` on db", Tls::Preferred);
        check("postgres://u@db/shop?sslmode=disable", "database `shop` on db", Tls::Off);
        check("postgresql+psycopg2://u:p@db/shop?sslmode=require", "database `shop` on db", Tls::Encrypted);
        check("postgresql+asyncpg://u:p@db/shop?ssl=require", "database `shop` on db", Tls::Encrypted);
        check("postgresql+psycopg://db/shop?sslmode=verify-full", "database `shop` on db", Tls::VerifiedHost);
        check(
            "postgresql://db/shop?sslmode=require&sslrootcert=%2Fca.pem",
            "database `shop` on db",
            Tls::VerifiedAuthority,
        );
        check(
            "postgresql+pg8000://db/shop?gssencmode=disable&connect_timeout=3",
            "database `shop` on db",
            Tls::Preferred,
        );
        check("postgresql:///shop", "database `shop` on /var/run/postgresql", Tls::Off);
        check("postgresql:///shop?host=/tmp/pg&sslmode=require", "database `shop` on /tmp/pg", Tls::Off);
        check("host=db dbname=shop user=u password=p", "database `shop` on db", Tls::Preferred);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for url in [
            "mysql://u:secret@db/shop",
            "postgresql://u:secret@db:port/shop",
            "postgresql://u:secret@db/shop?sslmode=secret",
            "postgresql://u:sec%zzret@db:secret/shop?port=secret",
            "secret",
        ] {
            let why = parse(url).err().unwrap_or_else(|| panic!("{url}"));
            assert!(!why.contains("secret"), "{why}");
        }
    }
}
