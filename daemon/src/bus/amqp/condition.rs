//! The condition of a RabbitMQ, as far as it can be told without its own tools.

use super::names::Names;
use super::session::{Access, answered};
use crate::bus::condition::Condition;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

/// Connects and looks; declares nothing.
///
/// # Errors
/// Why it cannot be reached.
pub(crate) async fn look(access: &Access, names: &Names) -> Result<Vec<Condition>, String> {
    let connection = access.connect("unstale-doctor").await.map_err(|ended| ended.to_string())?;
    let mut found = Vec::new();
    if connection.status().blocked() {
        found.push(Condition::note(
            "stops who publishes: it is short of memory or disk".to_owned(),
            "`rabbitmqctl status` names the alarm; until it is over nothing is rolled out",
        ));
    }
    let stream = names.desired();
    let channel = answered("open a channel", connection.create_channel()).await.map_err(|ended| ended.to_string())?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let looked = channel.queue_declare(stream.as_str().into(), passive, FieldTable::default());
    found.push(match answered(&format!("look at {stream}"), looked).await {
        Ok(_) => Condition::good(format!("the stream {stream} is there")),
        Err(ended) => Condition::note(
            ended.to_string(),
            "the first coordinator declares it; where it may not, or RabbitMQ is older than 3.10, agents hear what is \
             desired only while it is up",
        ),
    });
    found.push(Condition::note(
        "keeps two file descriptors open for every agent".to_owned(),
        "`rabbitmqctl status` tells how many it may have: twice the number of agents and connections, and some thousands",
    ));
    // Nothing is lost where the broker does not hear it.
    answered("close", connection.close(200, "".into())).await.unwrap_or_default();
    Ok(found)
}
