//! One app on one host: when its files were first right, what is to be purged, when to look again.

use super::input::{AppView, PurgeResult, Scan};
use crate::ids::{AppName, Generation, Revision};
use crate::message::{Desired, DesiredApp};
use crate::time::Moment;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// When bytecode is looked at again after files became right or were purged, besides the second look of
/// the policy: a process that had read the old source can still write it back.
const EARLY_LOOK: Duration = Duration::from_secs(2);
const LATE_LOOK: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct App {
    pub(super) revision: Revision,
    attempt: Generation,
    /// A new attempt is answered by a full look that began after it was heard of: until then, when that was.
    awaited_since: Option<Moment>,
    pub(super) view: AppView,
    /// When a look first found all files right, without a contradiction since.
    right_since: Option<Moment>,
    /// A full scan, begun late enough after that, has been seen.
    looked_twice: bool,
    looks: BTreeSet<Moment>,
    purging: bool,
    pub(super) purged_files: u32,
    /// Files that could not be removed, with the reason, until a look no longer names them or they are tried again.
    pub(super) refused: BTreeMap<String, String>,
    /// The last purge removed nothing.
    purged_in_vain: bool,
}

impl App {
    pub(super) fn new(revision: Revision, attempt: Generation, now: Moment) -> Self {
        Self {
            revision,
            attempt,
            awaited_since: Some(now),
            view: AppView::default(),
            right_since: None,
            looked_twice: false,
            looks: BTreeSet::new(),
            purging: false,
            purged_files: 0,
            refused: BTreeMap::new(),
            purged_in_vain: false,
        }
    }

    /// Follows the attempt. Returns whether it is a new one: what was found before it, also why something cannot be
    /// restarted or removed, may have been mended meanwhile.
    pub(super) fn follow_attempt(&mut self, attempt: Generation, now: Moment) -> bool {
        if attempt <= self.attempt {
            return false;
        }
        self.attempt = attempt;
        self.awaited_since = Some(now);
        self.refused.clear();
        self.purged_in_vain = false;
        true
    }

    /// Tells whether a look has answered the attempt.
    pub(super) fn is_seen(&self) -> bool {
        self.awaited_since.is_none()
    }

    pub(super) fn see(&mut self, view: &AppView, scan: &Scan, second_look: Duration, now: Moment) {
        if view.revision != self.revision {
            return;
        }
        if self.awaited_since.is_some_and(|since| !scan.full || scan.begun_at < since) {
            return;
        }
        if view.waiting.is_none() {
            self.awaited_since = None;
        }
        self.view = view.clone();
        self.refused.retain(|file, _| view.stale_files.contains(file));
        self.purged_in_vain &= !view.stale_files.is_empty();
        if !view.files_right || view.waiting.is_some() {
            self.right_since = None;
            self.looked_twice = false;
            return;
        }
        if !scan.full {
            return;
        }
        match self.right_since {
            None => {
                self.right_since = Some(now);
                self.schedule_looks(second_look, now);
            }
            Some(since) if scan.begun_at >= since.after(second_look) => self.looked_twice = true,
            Some(_) => {}
        }
    }

    fn schedule_looks(&mut self, second_look: Duration, now: Moment) {
        self.looks.extend([EARLY_LOOK, second_look, LATE_LOOK].map(|span| now.after(span)));
    }

    pub(super) fn is_proven_right(&self) -> bool {
        self.right_since.is_some() && self.looked_twice && !self.purging
    }

    pub(super) fn next_purge(&mut self) -> Option<BTreeSet<String>> {
        if self.purging {
            return None;
        }
        let files: BTreeSet<_> =
            self.view.stale_files.iter().filter(|file| !self.refused.contains_key(*file)).cloned().collect();
        if files.is_empty() {
            return None;
        }
        self.purging = true;
        Some(files)
    }

    pub(super) fn purged(&mut self, result: &PurgeResult, now: Moment) {
        self.purging = false;
        self.purged_files = self.purged_files.saturating_add(u32::try_from(result.removed.len()).unwrap_or(u32::MAX));
        for file in &result.removed {
            self.view.stale_files.remove(file);
        }
        self.refused.extend(result.refused.clone());
        let in_vain = result.removed.is_empty();
        if !in_vain || !self.purged_in_vain {
            self.looks.extend([EARLY_LOOK, LATE_LOOK].map(|span| now.after(span)));
        } else if self.looks.is_empty() {
            // Each try costs full looks: what is refused again and again is tried once a minute.
            self.looks.insert(now.after(LATE_LOOK));
        }
        self.purged_in_vain = in_vain;
    }

    pub(super) fn look_is_due(&mut self, now: Moment) -> bool {
        let later = self.looks.split_off(&Moment(now.0.saturating_add(1)));
        let due = !self.looks.is_empty();
        self.looks = later;
        if due {
            // A refused file may be removable now; the look says whether it is still there.
            self.refused.clear();
        }
        due
    }

    pub(super) fn look_at(&self) -> Option<Moment> {
        self.looks.first().copied()
    }
}

/// Returns the apps of which something else is wanted now than what actions under way rest on.
pub(super) fn changed(known: &Desired, wanted: &Desired) -> BTreeSet<AppName> {
    let is_same = |(name, known): &(&AppName, &DesiredApp)| {
        let wanted = wanted.apps.get(*name);
        wanted.is_some_and(|wanted| (wanted.revision, wanted.manifest) == (known.revision, known.manifest))
    };
    known.apps.iter().filter(|app| !is_same(app)).map(|(name, _)| name.clone()).collect()
}
