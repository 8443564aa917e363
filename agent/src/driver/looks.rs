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
use unstale_protocol::time::{Jitter, Moment};

/// Shortest pause before a manifest is asked for again. It doubles from one request to the next, up to half of the longest;
/// each is longer by a random part of itself, so that agents that miss the same one do not ask together.
const MANIFEST_PAUSE: Duration = Duration::from_secs(2);
const MANIFEST_PAUSE_MAX: Duration = Duration::from_mins(1);

/// One look at a time; what is asked for meanwhile follows.
#[derive(Debug)]
pub(super) struct Looks {
    scan_interval: Duration,
    look_interval: Duration,
    scan_at: Moment,
    look_at: Moment,
    is_under_way: bool,
    /// When each manifest that is missing is asked for again, and the pause that this came from.
    missing: BTreeMap<Fingerprint, (Moment, Duration)>,
    jitter: Jitter,
}

impl Looks {
    /// `seed` feeds the jitter of pauses.
    pub(super) fn new(scan_interval: Duration, look_interval: Duration, seed: u64) -> Self {
        Self {
            scan_interval,
            look_interval,
            scan_at: Moment(0),
            look_at: Moment(0),
            is_under_way: false,
            missing: BTreeMap::new(),
            jitter: Jitter::new(seed),
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
        let look = if self.is_under_way { Moment(u64::MAX / 2) } else { self.scan_at.min(self.look_at) };
        self.missing.values().map(|(at, _)| *at).fold(look, Moment::min)
    }

    /// Returns those of the manifests that are missing that are to be asked for now.
    pub(super) fn manifests_to_ask(&mut self, missing: Vec<Fingerprint>, now: Moment) -> Vec<Fingerprint> {
        self.missing.retain(|digest, _| missing.contains(digest));
        missing.into_iter().filter(|digest| self.ask_manifest(*digest, now)).collect()
    }

    /// Another coordinator may answer from now on: what is missing is asked for at once.
    pub(super) fn ask_manifests_anew(&mut self) {
        self.missing.clear();
    }

    fn ask_manifest(&mut self, digest: Fingerprint, now: Moment) -> bool {
        let last = self.missing.get(&digest).copied();
        if last.is_some_and(|(at, _)| now < at) {
            return false;
        }
        let pause = last.map_or(MANIFEST_PAUSE, |(_, pause)| (pause * 2).min(MANIFEST_PAUSE_MAX / 2));
        let next = now.after(pause + self.jitter.part_of(pause));
        self.missing.insert(digest, (next, pause));
        true
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

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: Fingerprint = Fingerprint([7; 32]);

    /// Returns when a manifest is asked for that never comes, in milliseconds.
    fn asked(seed: u64, until: u64) -> Vec<u64> {
        let mut looks = Looks::new(Duration::from_secs(2), Duration::from_mins(1), seed);
        looks.is_under_way = true;
        let (mut at, mut asked) = (0, Vec::new());
        while at < until {
            asked.extend(looks.manifests_to_ask(vec![DIGEST], Moment(at)).iter().map(|_| at));
            let next = looks.next_due().0;
            assert!(next > at, "the driver would spin");
            at = next;
        }
        asked
    }

    #[test]
    fn a_manifest_that_does_not_come_is_asked_for_less_and_less_often_and_not_by_all_at_once() {
        let pauses = |seed| asked(seed, 600_000).windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>();
        for seed in 0..50 {
            for (number, pause) in pauses(seed).into_iter().enumerate() {
                let least = (2_000_u64 << number.min(10)).min(30_000);
                assert!((least..=2 * least).contains(&pause), "seed {seed}: pause {number} is {pause} ms");
            }
        }
        let second: std::collections::BTreeSet<_> = (0..50).map(|seed| asked(seed << 20, 600_000)[1] / 100).collect();
        assert!(second.len() > 10, "{second:?}");
    }

    #[test]
    fn what_is_no_longer_missing_or_may_be_answered_by_another_begins_anew() {
        let mut looks = Looks::new(Duration::from_secs(2), Duration::from_mins(1), 1);
        assert_eq!(looks.manifests_to_ask(vec![DIGEST], Moment(0)), [DIGEST]);
        assert_eq!(looks.manifests_to_ask(vec![DIGEST], Moment(1)), []);
        looks.ask_manifests_anew();
        assert_eq!(looks.manifests_to_ask(vec![DIGEST], Moment(2)), [DIGEST]);
        assert_eq!(looks.manifests_to_ask(vec![], Moment(3)), []);
        assert_eq!(looks.manifests_to_ask(vec![DIGEST], Moment(4)), [DIGEST]);
    }
}
