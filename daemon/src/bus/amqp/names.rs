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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_permissions_are_for_these_names_and_no_others() {
        let shipped = include_str!("../../../../deploy/rabbitmq-permissions");
        let names = Names::new(&FleetName::new("shop").unwrap());
        let names = [names.exchange(), names.reports(), names.desired(), names.leader()];
        let last = names.map(|name| name.strip_prefix("unstale.shop.").unwrap().to_owned()).join("|");
        assert!(shipped.contains(&format!(r"unstale\\.$fleet\\.({last})")), "{last}");
        assert!(!shipped.contains(".*"), "whatever follows may be another fleet's");
    }
}
