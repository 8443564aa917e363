//! The keys of one fleet. The braces keep all of them in one slot of a cluster.

use crate::bus::envelope::FleetName;
use unstale_protocol::fingerprint::Fingerprint;
use unstale_protocol::ids::HostName;

/// The keys of one fleet.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    prefix: String,
}

impl Names {
    /// Returns the keys of a fleet.
    pub(crate) fn new(fleet: &FleetName) -> Self {
        Self { prefix: format!("unstale:{{{fleet}}}:") }
    }

    /// The stream of desired states.
    pub(super) fn desired(&self) -> String {
        format!("{}desired", self.prefix)
    }

    /// The stream of permits for one host.
    pub(super) fn permits(&self, host: &HostName) -> String {
        format!("{}permit:{host}", self.prefix)
    }

    /// One manifest.
    pub(super) fn manifest(&self, digest: &Fingerprint) -> String {
        format!("{}manifest:{digest}", self.prefix)
    }

    /// The stream of reports.
    pub(super) fn reports(&self) -> String {
        format!("{}reports", self.prefix)
    }

    /// The lease on leadership.
    pub(super) fn lease(&self) -> String {
        format!("{}lease", self.prefix)
    }
}
