//! Whose worker is it? The first rule that decides, and whether the claim binds.
//!
//! Configuration decides; an environment variable, a place below the broadcast's path and a fitting manifest are
//! claims that any local user could forge, so they bind only where the user and the directories can be trusted.

use super::Sight;
use crate::judge::{CodeView, Fit, Placed, fit};
use crate::process::{Process, Unit};
use crate::restart::glob;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use unstale_protocol::host::Announced;
use unstale_protocol::ids::{AppName, Revision, SlotId};
use unstale_protocol::manifest::Manifest;

/// What configuration says of one app.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppRules {
    /// Directories that hold its code, as its workers see them.
    pub roots: Vec<String>,
    /// Users whose claims bind; empty: root, the owner of the app's root, services.
    pub users: Vec<String>,
    /// Slots that do not count, as patterns with `*`.
    pub ignore: Vec<String>,
}

/// A manifest that is announced.
#[derive(Clone, Debug)]
pub struct KnownManifest {
    /// The app.
    pub app: AppName,
    /// Its revision.
    pub revision: Revision,
    /// The manifest.
    pub manifest: Arc<Manifest>,
}

/// One unit's standing towards one app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It belongs to the app, whose modules lie there.
    Bound(Placed),
    /// It says that it belongs to the app, and may not: listed, without effect.
    Unbound(String),
    /// It could be this app's or another's.
    Ambiguous(String),
}

/// What decides about claims on this host.
#[derive(Clone, Debug)]
pub struct Claims<'a> {
    /// Configuration by app.
    pub rules: &'a BTreeMap<AppName, AppRules>,
    /// What is announced.
    pub manifests: &'a [KnownManifest],
    /// `/proc/sys/kernel/random/boot_id` of this host.
    pub boot_id: &'a str,
    /// What is known of directories: owner, and why they cannot be trusted.
    pub directories: &'a BTreeMap<String, Directory>,
    /// Announcements for which a rule before the last has decided since this agent began to look.
    pub decided: &'a BTreeSet<Announced>,
}

/// Returns what a manifest was announced as. A later revision of the same source is the same.
fn announced(known: &KnownManifest) -> Announced {
    let paths = known.manifest.origin.as_ref().map(|origin| origin.paths.clone()).unwrap_or_default();
    (known.app.clone(), paths)
}

/// What is known of an app's root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// Its owner.
    pub owner: Option<u32>,
    /// Why it cannot be trusted: it or a parent is world-writable.
    pub distrust: Option<String>,
}

/// By which rule a unit was claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    Configured,
    Environment,
    Origin,
    Fits,
}

/// A unit with what was seen of its processes.
pub(crate) type Seen<'a> = (&'a Unit, Vec<&'a Arc<Sight>>);

impl Claims<'_> {
    /// Decides for all units of this host at once: the last rule holds only where no other decides for an app.
    ///
    /// Nor where another ever did: while the one unit that lies below the broadcast's directory is down for its
    /// restart, a neighbour with the same modules must not become the app's. What was decided is returned too, to
    /// be handed in again at the next look.
    pub(crate) fn decide(
        &self,
        units: &[Seen<'_>],
    ) -> (BTreeMap<SlotId, BTreeMap<AppName, Claim>>, BTreeSet<Announced>) {
        let found: Vec<_> =
            units.iter().map(|(unit, sights)| (unit.slot.clone(), self.rules_of(unit, sights))).collect();
        let now: BTreeSet<&AppName> = found
            .iter()
            .flat_map(|(_, apps)| apps)
            .filter(|(_, (rule, _))| *rule < Rule::Fits)
            .map(|(app, _)| app)
            .collect();
        let all: BTreeSet<Announced> = self
            .manifests
            .iter()
            .filter(|known| now.contains(&known.app) || self.decided.contains(&announced(known)))
            .map(announced)
            .collect();
        let decided: BTreeSet<AppName> = all.iter().map(|(app, _)| app.clone()).collect();
        let mut claims = BTreeMap::new();
        for ((slot, apps), (unit, _)) in found.into_iter().zip(units) {
            let Some(first) = apps.values().map(|(rule, _)| *rule).min() else { continue };
            let first_apps: BTreeMap<AppName, Fit> = apps
                .into_iter()
                .filter(|(app, (rule, _))| *rule == first && (first < Rule::Fits || !decided.contains(app)))
                .map(|(app, (_, fit))| (app, fit))
                .collect();
            let of_unit = self.claims(unit, first, first_apps);
            if !of_unit.is_empty() {
                claims.insert(slot, of_unit);
            }
        }
        (claims, all)
    }

    fn rules_of(&self, unit: &Unit, sights: &[&Arc<Sight>]) -> BTreeMap<AppName, (Rule, Fit)> {
        let mut apps = BTreeMap::new();
        for known in self.manifests {
            let rules = self.rules.get(&known.app);
            if rules.is_some_and(|rules| rules.ignore.iter().any(|pattern| glob::fits(pattern, unit.slot.as_str()))) {
                continue;
            }
            let fits = best_fit(&known.manifest, sights);
            let root = unit.root();
            let named = root.is_some_and(|root| root.variable("UNSTALE_APP") == Some(known.app.as_str()));
            let below = |roots: &[String]| sights.iter().any(|sight| lies_below(&sight.code, roots));
            let rule = if rules.is_some_and(|rules| below(&rules.roots)) {
                Rule::Configured
            } else if named {
                Rule::Environment
            } else if fits == Fit::No {
                continue;
            } else if self.is_from_here(&known.manifest, unit, &below) {
                Rule::Origin
            } else {
                Rule::Fits
            };
            apps.insert(known.app.clone(), (rule, fits));
        }
        apps
    }

    fn is_from_here(&self, manifest: &Manifest, unit: &Unit, below: &dyn Fn(&[String]) -> bool) -> bool {
        manifest.origin.as_ref().is_some_and(|origin| {
            let same_place = unit.root().is_some_and(|root| root.mount_namespace == origin.mount_namespace);
            origin.boot_id == self.boot_id && same_place && below(&origin.paths)
        })
    }

    fn claims(&self, unit: &Unit, rule: Rule, apps: BTreeMap<AppName, Fit>) -> BTreeMap<AppName, Claim> {
        let is_contested = rule == Rule::Fits && apps.len() > 1;
        let names: Vec<String> = apps.keys().map(ToString::to_string).collect();
        apps.into_iter()
            .map(|(app, fits)| {
                let claim = match fits {
                    _ if is_contested => Claim::Ambiguous(format!(
                        "the manifests of {} fit it: say whose it is with [apps.NAME] roots",
                        names.join(" and ")
                    )),
                    Fit::Ambiguous(why) => Claim::Ambiguous(why),
                    Fit::Yes(placed) => self.bind(unit, rule, &app, placed),
                    Fit::No => self.bind(unit, rule, &app, Placed { root: String::new(), keys: BTreeMap::new() }),
                };
                (app, claim)
            })
            .collect()
    }

    /// A claim binds if the worker's user may make it and the app's root can be trusted.
    fn bind(&self, unit: &Unit, rule: Rule, app: &AppName, placed: Placed) -> Claim {
        let Some(root) = unit.root() else { return Claim::Unbound("it has ended".into()) };
        if rule == Rule::Configured {
            return Claim::Bound(placed);
        }
        let directory = self.directories.get(&placed.root);
        let users = self.rules.get(app).map(|rules| rules.users.as_slice()).unwrap_or_default();
        let may_claim = if users.is_empty() {
            let is_owner = directory.is_some_and(|directory| directory.owner == Some(root.uid));
            root.uid == 0 || is_owner || is_service(root)
        } else {
            users.contains(&root.user)
        };
        if !may_claim {
            return Claim::Unbound(format!("claims {app}: user {} may not", root.user));
        }
        match directory.and_then(|directory| directory.distrust.as_ref()) {
            Some(why) => Claim::Unbound(format!("claims {app}: {why}")),
            None => Claim::Bound(placed),
        }
    }
}

/// The fit of the process that shows most: a child can have loaded what its root has not.
fn best_fit(manifest: &Manifest, sights: &[&Arc<Sight>]) -> Fit {
    let mut best = Fit::No;
    for sight in sights {
        match (fit(manifest, &sight.reading, &sight.code), &best) {
            (Fit::Ambiguous(why), _) => return Fit::Ambiguous(why),
            (Fit::Yes(placed), Fit::No) => best = Fit::Yes(placed),
            (Fit::Yes(placed), Fit::Yes(known)) if placed.keys.len() > known.keys.len() => best = Fit::Yes(placed),
            _ => {}
        }
    }
    best
}

/// Tells whether the code of a process lies below one of the directories: as imported, or at its next start.
pub(crate) fn lies_below(code: &CodeView, roots: &[String]) -> bool {
    let is_below = |path: &Option<String>| {
        path.as_ref().is_some_and(|path| {
            roots.iter().any(|root| {
                let root = root.trim_end_matches('/');
                path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'))
            })
        })
    };
    code.modules
        .values()
        .any(|module| is_below(&module.imported_from) || is_below(&module.next) || is_below(&module.next_resolved))
}

/// Tells whether the process runs as a service: its cgroup lies outside `user.slice`.
fn is_service(process: &Process) -> bool {
    process.cgroup.contains(".service") && !process.cgroup.split('/').any(|part| part == "user.slice")
}
