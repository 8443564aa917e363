//! When to look, and at what.

use crate::eyes::KnownManifest;
use crate::restart::Plan;
use crate::survey::Asked;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use unstale_protocol::fingerprint::Fingerprint;
use unstale_protocol::host::Host;
use unstale_protocol::ids::{Revision, SlotId};
use unstale_protocol::manifest::Manifest;
use unstale_protocol::time::Moment;

/// Pause before a manifest is asked for again.
const MANIFEST_PAUSE: Duration = Duration::from_secs(2);

/// One look at a time; what is asked for meanwhile follows.
#[derive(Debug)]
pub(super) struct Looks {
    scan_interval: Duration,
    look_interval: Duration,
    scan_at: Moment,
    look_at: Moment,
    is_under_way: bool,
    asked_manifests: BTreeMap<Fingerprint, Moment>,
}

impl Looks {
    pub(super) fn new(scan_interval: Duration, look_interval: Duration) -> Self {
        Self {
            scan_interval,
            look_interval,
            scan_at: Moment(0),
            look_at: Moment(0),
            is_under_way: false,
            asked_manifests: BTreeMap::new(),
        }
    }

    pub(super) fn ask_full(&mut self) {
        self.look_at = Moment(0);
    }

    /// Says whether to begin a look now, and whether it is a full one.
    pub(super) fn due(&mut self, now: Moment) -> Option<bool> {
        if self.is_under_way || (now < self.scan_at && now < self.look_at) {
            return None;
        }
        let full = now >= self.look_at;
        self.is_under_way = true;
        self.scan_at = now.after(self.scan_interval);
        if full {
            self.look_at = now.after(self.look_interval);
        }
        Some(full)
    }

    pub(super) fn done(&mut self) {
        self.is_under_way = false;
    }

    pub(super) fn next_due(&self) -> Moment {
        // While a look is under way its answer wakes the driver.
        if self.is_under_way { Moment(u64::MAX / 2) } else { self.scan_at.min(self.look_at) }
    }

    pub(super) fn ask_manifest(&mut self, digest: Fingerprint, now: Moment) -> bool {
        let is_due = self.asked_manifests.get(&digest).is_none_or(|at| now >= at.after(MANIFEST_PAUSE));
        if is_due {
            self.asked_manifests.insert(digest, now);
        }
        is_due
    }
}

/// Returns the manifests that the desired state names and that are not here.
pub(super) fn wanted_manifests(host: &Host, manifests: &BTreeMap<Fingerprint, Arc<Manifest>>) -> Vec<Fingerprint> {
    named(host).filter(|digest| !manifests.contains_key(digest)).collect()
}

/// Lets go of manifests that the desired state no longer names.
pub(super) fn forget_manifests(host: &Host, manifests: &mut BTreeMap<Fingerprint, Arc<Manifest>>) {
    manifests.retain(|digest, _| named(host).any(|named| named == *digest));
}

fn named(host: &Host) -> impl Iterator<Item = Fingerprint> {
    let desired = host.desired();
    let apps = desired.apps.values().map(|app| app.manifest);
    apps.chain(desired.probes.iter().map(|probe| probe.manifest))
}

/// Says what the next look has to cover.
pub(super) fn asked(
    host: &Host,
    manifests: &BTreeMap<Fingerprint, Arc<Manifest>>,
    full: bool,
    begun_at: Moment,
) -> Asked {
    let mut known = Vec::new();
    let mut awaited = BTreeMap::new();
    for (app, desired) in &host.desired().apps {
        match manifests.get(&desired.manifest) {
            Some(manifest) => known.push(KnownManifest {
                app: app.clone(),
                revision: desired.revision,
                manifest: Arc::clone(manifest),
            }),
            None => {
                awaited.insert(app.clone(), desired.revision);
            }
        }
    }
    let slots: BTreeMap<SlotId, Option<Plan>> = host
        .known_slots()
        .map(|(slot, means)| (slot.clone(), super::act::Means::parse(means).map(|means| means.plan)))
        .collect();
    let probes = host.desired().probes.iter().filter_map(|probe| {
        let manifest = Arc::clone(manifests.get(&probe.manifest)?);
        Some((probe.id.clone(), KnownManifest { app: probe.app.clone(), revision: Revision::default(), manifest }))
    });
    Asked { begun_at, full, manifests: known, awaited, slots, probes: probes.collect() }
}
