//! The condition of a server, as far as the bus depends on it: what would break, and how to set it.

use super::session::{Access, Connection};
use crate::bus::condition::Condition;
use std::collections::BTreeMap;
use std::time::Duration;

/// Longest answer of INFO that is looked through, in lines.
const LINES_MAX: usize = 1_000;

/// Connects and looks.
///
/// # Errors
/// Why it cannot be reached.
pub(crate) async fn look(access: &Access) -> Result<Vec<Condition>, String> {
    let mut connection = access.connect("unstale-doctor", Duration::ZERO).await.map_err(|ended| ended.to_string())?;
    Ok(of(&mut connection).await)
}

/// Looks at the server behind a connection.
pub(super) async fn of(connection: &mut Connection) -> Vec<Condition> {
    match connection.run::<String>(&redis::cmd("INFO"), "INFO").await {
        Ok(info) => judge(&info),
        Err(refused) => {
            vec![Condition::note(refused.words(), "look with the coordinator's user, who may ask for INFO")]
        }
    }
}

/// Says what INFO means for the bus.
fn judge(info: &str) -> Vec<Condition> {
    let fields: BTreeMap<&str, &str> =
        info.lines().take(LINES_MAX).filter_map(|line| line.trim().split_once(':')).collect();
    let field = |name: &str| fields.get(name).copied().unwrap_or_default();
    let number = |name: &str| field(name).parse::<u64>().unwrap_or(0);
    let mut found = Vec::new();
    let version = field("redis_version");
    let parts: Vec<u64> = version.split('.').map(|part| part.parse().unwrap_or(0)).collect();
    found.push(match parts.first().copied().unwrap_or(0) {
        0..5 => Condition {
            found: format!("version {version} has no streams"),
            help: Some("Redis 5 or later is needed, 7 or later recommended".to_owned()),
            is_needed: true,
        },
        5..7 => Condition::note(
            format!("version {version}: the coordinator cannot write when its memory is full"),
            "Redis 7 or later lets its few writes through",
        ),
        _ => Condition::good(format!("version {version}")),
    });
    let policy = field("maxmemory_policy");
    if number("maxmemory") > 0 && policy != "noeviction" && !policy.is_empty() {
        found.push(Condition::note(
            format!("evicts keys when its memory is full ({policy}): what is desired is then written again and again"),
            "`CONFIG SET maxmemory-policy noeviction`, which a Celery broker needs, too",
        ));
    }
    let (used, most) = (number("used_memory"), number("maxmemory"));
    if most > 0 && used.saturating_mul(10) > most.saturating_mul(9) {
        found.push(Condition::note(
            format!("memory is nearly full: {used} of {most} bytes"),
            "reports are lost while it is; raise `maxmemory`",
        ));
    }
    let (clients, limit) = (number("connected_clients"), number("maxclients"));
    if limit > 0 {
        let room = limit.saturating_sub(clients);
        found.push(if room < 1_000 {
            Condition::note(
                format!("room for {room} more connections of {limit}"),
                "every agent keeps one open and opens a second one while it reports: raise `maxclients`",
            )
        } else {
            Condition::good(format!("room for {room} more connections: one per agent, two while it reports"))
        });
    }
    if field("aof_enabled") == "0" {
        found.push(Condition::note(
            "keeps no append-only file: after its restart the coordinator writes everything again".to_owned(),
            "nothing depends on it; `CONFIG SET appendonly yes` saves the pause",
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_break_is_said_with_what_to_do() {
        let check = |info: &str, part: &str, has_help: bool| {
            let found = judge(info);
            let hit = found.iter().find(|condition| condition.found.contains(part));
            assert_eq!(hit.map(|hit| hit.help.is_some()), Some(has_help), "{info}: {found:?}");
        };
        check("redis_version:7.0.15\r\n", "version 7.0.15", false);
        check("redis_version:6.2.1\r\n", "memory is full", true);
        check("redis_version:4.0.9\r\n", "no streams", true);
        check("redis_version:7.0.1\nmaxmemory:100\nmaxmemory_policy:allkeys-lru\n", "allkeys-lru", true);
        check("redis_version:7.0.1\nmaxmemory:100\nused_memory:95\nmaxmemory_policy:noeviction\n", "nearly full", true);
        check("maxclients:10000\nconnected_clients:9500\n", "room for 500", true);
        check("maxclients:10000\nconnected_clients:50\n", "room for 9950", false);
        check("aof_enabled:0\n", "append-only", true);
        assert!(judge("").iter().any(|condition| condition.is_needed), "what says nothing is no Redis");
    }
}
