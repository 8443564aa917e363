//! The broker of a fleet, where one is named: can it be used, and what would break?

use super::Finding;
use crate::cli::DoctorArgs;
use crate::commands::roles::Wire;
use crate::config::Config;

const WHAT: &str = "bus";

/// Looks at the broker that the arguments or the configuration name; nothing where none is.
pub(super) async fn look(args: &DoctorArgs, config: &Config) -> Vec<Finding> {
    if args.bus.is_none() && config.bus.url == crate::bus::address::BusUrl::Embedded {
        return Vec::new();
    }
    let wire = match Wire::find_for_look(args.bus.as_ref(), &args.passwords, config) {
        Ok(wire) => wire,
        Err(error) => return vec![Finding::missing(WHAT, format!("{error:#}"), "see `unstale coordinator --help`")],
    };
    match wire.look().await {
        Err(why) => vec![Finding::missing(WHAT, why, "coordinator and agents wait until it can be used")],
        Ok(conditions) => {
            let mut findings = vec![Finding::good(WHAT, format!("{} answers", wire.url))];
            findings.extend(conditions.into_iter().map(|condition| match (condition.help, condition.is_needed) {
                (None, _) => Finding::good(WHAT, condition.found),
                (Some(help), false) => Finding::note(WHAT, condition.found, help),
                (Some(help), true) => Finding::missing(WHAT, condition.found, help),
            }));
            findings
        }
    }
}
