//! Exchange and queues of one fleet.

use crate::bus::envelope::FleetName;

/// The names of one fleet.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    prefix: String,
}

impl Names {
    /// Returns the names of a fleet.
    pub(crate) fn new(fleet: &FleetName) -> Self {
        Self { prefix: format!("unstale.{fleet}.") }
    }

    /// The exchange that agents publish to.
    pub(super) fn exchange(&self) -> String {
        format!("{}rx", self.prefix)
    }

    /// The queue of reports and requests.
    pub(super) fn reports(&self) -> String {
        format!("{}reports", self.prefix)
    }

    /// The stream of desired states.
    pub(super) fn desired(&self) -> String {
        format!("{}desired", self.prefix)
    }

    /// The queue whose holder leads.
    pub(super) fn leader(&self) -> String {
        format!("{}leader", self.prefix)
    }
}
