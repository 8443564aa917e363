//! What this agent may do, by its own configuration.

use crate::restart::Plan;

/// What this agent may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allow {
    /// Remove stale bytecode.
    pub purge: bool,
    /// Tell supervisors to stop and start.
    pub supervisor: bool,
    /// Send signals.
    pub signal: bool,
}

impl Default for Allow {
    fn default() -> Self {
        Self { purge: true, supervisor: true, signal: true }
    }
}

impl Allow {
    /// Says why `plan` may not be carried out, where that is so.
    pub(crate) fn refusal(self, plan: &Plan) -> Option<&'static str> {
        if !self.signal {
            return Some("this agent may not send signals: [agent] allow");
        }
        if !self.supervisor && plan.needs_supervisor() {
            return Some("this agent may not tell supervisors anything: [agent] allow");
        }
        None
    }
}
