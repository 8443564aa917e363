//! The labels of PostgreSQL's enums, read in one round trip, and the check of a broadcast against them.
//!
//! Nothing is written. The URL may hold a password: it is never printed.

mod address;
mod check;
mod tls;

pub(crate) use check::{check_before_broadcast, find};

use std::time::Duration;
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// How long connecting and reading may take together.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Types of kind `e` in the order (schema, name), their labels in sort order; a type without labels is one row
/// without a label. PostgreSQL documentation: `pg_type`, `pg_enum`, `pg_type_is_visible`.
const QUERY: &str = "\
select n.nspname, t.typname, pg_catalog.pg_type_is_visible(t.oid), e.enumlabel \
from pg_catalog.pg_type t \
join pg_catalog.pg_namespace n on n.oid = t.typnamespace \
left join pg_catalog.pg_enum e on e.enumtypid = t.oid \
where t.typtype = 'e' order by n.nspname, t.typname, e.enumsortorder";

/// One enum of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DatabaseEnum {
    /// Its schema.
    pub(crate) schema: String,
    /// Its name.
    pub(crate) name: String,
    /// Whether the connection's search path finds it by its bare name.
    pub(crate) is_visible: bool,
    /// Its labels in sort order.
    pub(crate) labels: Vec<String>,
}

/// Why the labels could not be read. No message holds a password.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DatabaseError {
    /// The URL is wrong.
    #[error("the database URL is wrong: {0}")]
    Url(String),
    /// The server cannot be reached.
    #[error("cannot connect to {place}")]
    Connect {
        /// The server, without user and password.
        place: String,
        /// What the driver said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The certificates for TLS cannot be used.
    #[error("cannot use TLS for {place}: {why}")]
    Tls {
        /// The server.
        place: String,
        /// What was wrong.
        why: String,
    },
    /// The labels cannot be read.
    #[error("cannot read the enums of {place}")]
    Query {
        /// The server.
        place: String,
        /// What the server said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The server did not answer in time.
    #[error("{place} did not answer within {} s", TIMEOUT.as_secs())]
    Timeout {
        /// The server.
        place: String,
    },
}

impl DatabaseError {
    /// Returns the code that scripts see.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Url(_) => "database-url",
            Self::Connect { .. } | Self::Tls { .. } | Self::Timeout { .. } => "database-unreachable",
            Self::Query { .. } => "database-query",
        }
    }

    /// Returns what can be done.
    pub(crate) fn help(&self) -> Option<String> {
        match self {
            Self::Url(_) => Some(
                "write `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`; SQLAlchemy's `postgresql+DRIVER://` is understood"
                    .to_owned(),
            ),
            Self::Connect { .. } | Self::Timeout { .. } => {
                Some("check the address and that this host may connect, or leave --database out".to_owned())
            }
            Self::Tls { .. } => Some("name the server's certificate authority with `sslrootcert=FILE`".to_owned()),
            Self::Query { .. } => None,
        }
    }
}

/// Reads all enums of the database behind `url`.
///
/// # Errors
/// [`DatabaseError`].
pub(crate) async fn read_labels(url: &str) -> Result<Vec<DatabaseEnum>, DatabaseError> {
    let address = address::parse(url).map_err(DatabaseError::Url)?;
    let place = address.place.clone();
    let read = async {
        match tls::connector(&address)? {
            Some(tls) => read_with(&address, tls).await,
            None => read_with(&address, NoTls).await,
        }
    };
    tokio::time::timeout(TIMEOUT, read).await.unwrap_or(Err(DatabaseError::Timeout { place }))
}

async fn read_with<T>(address: &address::Address, tls: T) -> Result<Vec<DatabaseEnum>, DatabaseError>
where
    T: tokio_postgres::tls::MakeTlsConnect<tokio_postgres::Socket>,
    T::Stream: Send + 'static,
{
    let place = || address.place.clone();
    let (client, connection) =
        address.config.connect(tls).await.map_err(|source| DatabaseError::Connect { place: place(), source })?;
    let query = client.simple_query(QUERY);
    tokio::select! {
        // The connection carries the query; it ends first only where something broke.
        ended = connection => match ended {
            Ok(()) => Err(DatabaseError::Timeout { place: place() }),
            Err(source) => Err(DatabaseError::Query { place: place(), source }),
        },
        rows = query => {
            let rows = rows.map_err(|source| DatabaseError::Query { place: place(), source })?;
            Ok(collect(&rows))
        }
    }
}

fn collect(rows: &[SimpleQueryMessage]) -> Vec<DatabaseEnum> {
    let mut enums: Vec<DatabaseEnum> = Vec::new();
    for message in rows {
        let SimpleQueryMessage::Row(row) = message else { continue };
        let text = |column: usize| row.try_get(column).ok().flatten();
        let (Some(schema), Some(name)) = (text(0), text(1)) else { continue };
        if enums.last().is_none_or(|last| last.schema != schema || last.name != name) {
            enums.push(DatabaseEnum {
                schema: schema.to_owned(),
                name: name.to_owned(),
                is_visible: text(2) == Some("t"),
                labels: Vec::new(),
            });
        }
        if let (Some(label), Some(last)) = (text(3), enums.last_mut()) {
            last.labels.push(label.to_owned());
        }
    }
    enums
}
