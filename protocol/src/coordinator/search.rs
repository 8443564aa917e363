//! Manifests that a leader lacks: it took over with a disk of its own, and what is desired came from the bus. It looks
//! where the bus keeps them, and asks the hosts that have judged by them, one at a time and piece by piece.
//!
//! The digest in the desired state is all the trust there is: what is told counts only once all of it fits. What is lost is
//! asked for again, then of the next host.

use super::{Action, Coordinator, Host, Standing, event};
use crate::fingerprint::Fingerprint;
use crate::ids::{AppName, HostName, Revision};
use crate::message::Report;
use crate::piece::{Fetch, Piece};
use crate::time::Moment;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

/// How long the bus is given alone, before a host is asked for what the bus may keep itself.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// How long a host is given for an answer.
const ASK_PAUSE: Duration = Duration::from_secs(5);
/// How often a host is asked for the same piece.
const TRIES_MAX: u32 = 2;

/// How far one manifest has been found.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// Who is asked, and who was before.
    host: Option<HostName>,
    last: Option<HostName>,
    /// How often for the piece that follows `text`.
    tries: u32,
    /// What that host has sent, up to the length it has stated.
    text: String,
    length: Option<u32>,
    /// When there is more to do.
    due: Moment,
}

impl Search {
    fn next(&self, manifest: Fingerprint) -> Option<Action> {
        let from = u32::try_from(self.text.len()).ok()?;
        Some(Action::Fetch(Fetch { host: self.host.clone()?, manifest, from }))
    }

    /// Takes a piece of whoever is asked; tells whether it may be one.
    fn add(&mut self, piece: &Piece) -> bool {
        let is_piece = piece.is_whole() && self.length.is_none_or(|length| length == piece.length);
        if is_piece {
            (self.length, self.tries) = (Some(piece.length), 1);
            self.text.push_str(&piece.text);
        }
        is_piece
    }

    fn is_whole(&self) -> bool {
        self.length.is_some_and(|length| usize::try_from(length) == Ok(self.text.len()))
    }

    /// Lets go of the host and of what it has sent; the next turn asks the next one.
    fn give_up(&mut self) {
        let last = self.host.take().or_else(|| self.last.take());
        *self = Self { last, due: self.due, ..Self::default() };
    }
}

impl Coordinator {
    /// Takes which manifests are on disk here. Until it is told none is looked for.
    pub fn handle_held(&mut self, held: BTreeSet<Fingerprint>, now: Moment) {
        self.expire(now);
        self.held = Some(held);
        self.search(now);
    }

    /// Takes a manifest that the bus kept.
    pub fn handle_manifest(&mut self, text: String, now: Moment) {
        self.expire(now);
        self.take_manifest(Fingerprint::of_bytes(text.as_bytes()), text, "from the bus");
    }

    /// Takes a piece of a manifest. One that nobody was asked for changes nothing.
    pub fn handle_piece(&mut self, piece: &Piece, now: Moment) {
        self.expire(now);
        let Some(search) = self.searches.get_mut(&piece.manifest) else { return };
        let is_next = usize::try_from(piece.from) == Ok(search.text.len());
        if search.host.as_ref() != Some(&piece.host) || !is_next {
            return;
        }
        if !search.add(piece) {
            return search.give_up();
        }
        if !search.is_whole() {
            search.due = now.after(ASK_PAUSE);
            let next = search.next(piece.manifest);
            return self.actions.extend(next);
        }
        let text = std::mem::take(&mut search.text);
        search.give_up();
        if Fingerprint::of_bytes(text.as_bytes()) == piece.manifest {
            self.take_manifest(piece.manifest, text, &format!("from {}", piece.host));
        }
    }

    /// Returns the apps whose manifest is not on disk here, as far as that was told.
    pub fn lacking(&self) -> impl Iterator<Item = (&AppName, Revision, Fingerprint)> {
        let held = self.held.as_ref();
        let current = self.rollouts.iter().filter_map(|(app, revisions)| Some((app, revisions.values().next_back()?)));
        current
            .filter(move |(_, rollout)| held.is_some_and(|held| !held.contains(&rollout.manifest)))
            .map(|(app, rollout)| (app, rollout.revision, rollout.manifest))
    }

    fn take_manifest(&mut self, digest: Fingerprint, text: String, because: &str) {
        if self.standing == Standing::Standby {
            return;
        }
        let events: Vec<_> = self
            .lacking()
            .filter(|(_, _, manifest)| *manifest == digest)
            .map(|(app, revision, _)| event("manifest fetched", app, revision, because))
            .collect();
        if events.is_empty() {
            return;
        }
        self.searches.remove(&digest);
        self.held.get_or_insert_default().insert(digest);
        self.actions.push_back(Action::Keep(digest, text));
        self.actions.push_back(Action::Store(events));
    }

    /// Looks for what is lacking, as far as it is due.
    pub(super) fn search(&mut self, now: Moment) {
        let mut lacking: BTreeMap<Fingerprint, Vec<(AppName, Revision)>> = BTreeMap::new();
        if self.standing != Standing::Standby {
            for (app, revision, manifest) in self.lacking() {
                lacking.entry(manifest).or_default().push((app.clone(), revision));
            }
        }
        self.searches.retain(|digest, _| lacking.contains_key(digest));
        for (digest, apps) in lacking {
            let Some(mut search) = self.searches.remove(&digest) else {
                self.actions.push_back(Action::LookUp(digest));
                self.searches.insert(digest, Search { due: now.after(LOOK_PAUSE), ..Search::default() });
                continue;
            };
            if now >= search.due {
                search.due = now.after(ASK_PAUSE);
                self.actions.push_back(Action::LookUp(digest));
                if search.host.is_none() || search.tries >= TRIES_MAX {
                    search.give_up();
                    search.host = self.next_holder(search.last.as_ref(), &apps, now).cloned();
                }
                search.tries += 1;
                self.actions.extend(search.next(digest));
            }
            self.searches.insert(digest, search);
        }
    }

    /// Returns when there is something to look for.
    pub(super) fn search_due(&self) -> Option<Moment> {
        let is_leading = self.standing != Standing::Standby;
        self.searches.values().map(|search| search.due).filter(|_| is_leading).min()
    }

    /// Returns the next host that has judged one of these, after the one that was asked last.
    fn next_holder(&self, after: Option<&HostName>, apps: &[(AppName, Revision)], now: Moment) -> Option<&HostName> {
        let has_judged = |report: &Report| {
            let told = |app| report.apps.get(app).filter(|told| !told.unseen).map(|told| told.revision);
            apps.iter().any(|(app, revision)| told(app) == Some(*revision))
        };
        let may_have = |host: &Host| {
            let is_there = !host.is_doubled() && !host.record.left && !self.is_silent(Some(host), now);
            is_there && host.report.as_deref().is_some_and(has_judged)
        };
        let later =
            self.hosts.range::<HostName, _>((after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded));
        later.chain(&self.hosts).find(|(_, host)| may_have(host)).map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests;
