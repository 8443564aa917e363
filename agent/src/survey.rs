//! One look at the host, judged: what the eyes saw, turned into what the host's machine takes.
//!
//! Called by the driver for every scan. It decides nothing about restarts; it says which are stale, which cannot be
//! restarted and why, and which files are proven stale.

mod allow;
mod others;
mod probe;
mod vacancy;

pub use allow::Allow;

use crate::child;
use crate::discover;
use crate::eyes::{
    AppRules, Claim, Claims, Directory, Eyes, KnownManifest, LookOptions, Preflight, Seen, Sight, lies_below,
};
use crate::judge::{Placed, WorkerJudged, against_manifest};
use crate::process::{Process, Supervisor, Unit};
use crate::purge::StaleFile;
use crate::reading::Outcome;
use crate::restart::{Hands, Plan, UnitConfig, UnitFacts};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use unstale_protocol::host::{Announced, AppView, Numbering, Scan, UnitJudgement, UnitView};
use unstale_protocol::ids::{AppName, PoolName, ProcessIdentity, Revision, SlotId};
use unstale_protocol::time::Moment;
use unstale_protocol::verdict::{Cure, Verdict, sum};

/// What the agent's configuration says about workers.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// By app.
    pub apps: BTreeMap<AppName, AppRules>,
    /// Pools by name, each with the slots it takes, as patterns with `*`.
    pub pools: BTreeMap<PoolName, Vec<String>>,
    /// How units are started that nobody else brings back.
    pub units: Vec<UnitConfig>,
    /// Look only at workers whose code lies below these.
    pub roots: Vec<String>,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// What this agent may do.
    pub allow: Allow,
}

/// What a survey rests on.
#[derive(Clone, Debug)]
pub struct Asked {
    /// When it was asked for.
    pub begun_at: Moment,
    /// Look at files and all memory, not only at what is new.
    pub full: bool,
    /// What is announced, with the manifests that are here.
    pub manifests: Vec<KnownManifest>,
    /// Apps whose manifest is not here yet.
    pub awaited: BTreeMap<AppName, Revision>,
    /// Slots that must be said to be vacant where nothing is up in them, with the plan of the last action.
    pub slots: BTreeMap<SlotId, Option<Plan>>,
    /// Dry runs by name, with the manifests to judge by; those whose manifest is here.
    pub probes: BTreeMap<String, KnownManifest>,
}

impl Asked {
    /// Tells whether the answer would be the same if nothing on the host has changed. Slots in which nothing is up
    /// change without a process to be seen.
    fn is_like(&self, other: &Self) -> bool {
        let names = |asked: &Self| -> Vec<(AppName, Revision)> {
            asked.manifests.iter().map(|known| (known.app.clone(), known.revision)).collect()
        };
        names(self) == names(other)
            && self.awaited == other.awaited
            && self.slots.keys().eq(other.slots.keys())
            && self.probes.keys().eq(other.probes.keys())
    }
}

/// What was seen and what it means.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// For the host's machine.
    pub scan: Scan,
    /// All units that were looked at.
    pub units: Vec<Unit>,
    /// The judgement on each process, per app.
    pub judged: BTreeMap<ProcessIdentity, BTreeMap<AppName, WorkerJudged>>,
    /// Claims that have no effect, for people.
    pub unbound: BTreeMap<SlotId, Vec<String>>,
    /// Files proven stale, by path.
    pub stale_files: BTreeMap<String, StaleFile>,
    /// Directories below which files of each app may be removed.
    pub purge_roots: BTreeMap<AppName, BTreeSet<String>>,
    /// Directories to watch: where the next start takes its code from.
    pub watch_roots: BTreeSet<String>,
}

/// A survey that may still hold.
#[derive(Debug)]
struct Last {
    asked: Asked,
    listed: Arc<discover::Scan>,
    survey: Arc<Survey>,
}

/// The surveyor of one host: eyes with rules.
#[derive(Debug)]
pub struct Surveyor {
    eyes: Eyes,
    hands: Arc<Hands>,
    rules: Arc<Rules>,
    /// Who brought each slot's unit up when it was last seen.
    supervisors: BTreeMap<SlotId, Supervisor>,
    /// How a stale unit would be restarted, or why it cannot be, by the root that this was found for.
    blocks: BTreeMap<ProcessIdentity, Result<String, String>>,
    /// Of the last survey.
    stale_files: BTreeMap<String, StaleFile>,
    purge_roots: BTreeMap<AppName, BTreeSet<String>>,
    /// Announced apps whose units were told by more than their modules: see [`Claims::decided`].
    decided: BTreeSet<Announced>,
    /// The last survey with what it was asked, so that a host on which nothing happens costs next to nothing.
    last: Option<Last>,
}

impl Surveyor {
    /// Makes a surveyor; `decided` is what an earlier one had found out about announced apps.
    pub fn new(eyes: Eyes, hands: Arc<Hands>, rules: Arc<Rules>, decided: BTreeSet<Announced>) -> Self {
        Self {
            eyes,
            hands,
            rules,
            supervisors: BTreeMap::new(),
            blocks: BTreeMap::new(),
            stale_files: BTreeMap::new(),
            purge_roots: BTreeMap::new(),
            decided,
            last: None,
        }
    }

    fn options(&self, app: Option<&AppName>) -> LookOptions {
        let configured = self.rules.apps.values().flat_map(|rules| &rules.roots);
        LookOptions {
            all: false,
            roots: self.rules.roots.iter().chain(configured).cloned().collect(),
            next_root: app.and_then(|app| self.rules.apps.get(app)?.roots.first().cloned()),
        }
    }

    /// Looks at the host.
    ///
    /// # Errors
    /// [`child::Error`] where the reader had no answer.
    pub async fn survey(&mut self, asked: &Asked) -> Result<Arc<Survey>, child::Error> {
        if asked.full {
            self.eyes.recheck();
        }
        let listed = self.eyes.units().await?;
        if let Some(last) = &self.last
            && !asked.full
            && last.asked.is_like(asked)
            && (Arc::ptr_eq(&last.listed, &listed) || last.listed.units == listed.units)
            && last.survey.scan.vacant.is_empty()
            && self.eyes.has_settled()
        {
            return Ok(Arc::clone(&last.survey));
        }
        let known = asked.manifests.iter().chain(asked.probes.values());
        let manifests: Vec<_> = known.map(|known| Arc::clone(&known.manifest)).collect();
        let options = self.options(None);
        self.eyes.look(&listed.units, &options, &manifests, asked.full).await;
        let mut survey = Survey { units: self.within_roots(&listed.units), ..Survey::default() };
        survey.scan.begun_at = asked.begun_at;
        survey.scan.full = asked.full;
        let (claims, decided) = self.claims(&survey.units, &asked.manifests).await;
        self.keep_decided(decided, asked);
        survey.scan.decided.clone_from(&self.decided);
        for app in asked.manifests.iter().map(|known| (&known.app, known.revision, None)).chain(
            asked
                .awaited
                .iter()
                .map(|(app, revision)| (app, *revision, Some("its manifest is not here yet".to_owned()))),
        ) {
            let (name, revision, waiting) = app;
            let view = AppView { revision, files_right: waiting.is_none(), waiting, ..AppView::default() };
            survey.scan.apps.insert(name.clone(), view);
        }
        let units = std::mem::take(&mut survey.units);
        for unit in &units {
            self.judge_unit(unit, claims.get(&unit.slot), asked, &mut survey);
        }
        if asked.full {
            self.blocks.clear();
        }
        self.find_blocks(&units, &mut survey).await;
        survey.scan.others = self.others(&units, &survey);
        survey.scan.probes = self.answer_probes(&units, asked).await;
        survey.scan.numbering = self.numbering(&listed.units, &survey.scan);
        for unit in &units {
            self.supervisors.insert(unit.slot.clone(), unit.supervisor.clone());
        }
        self.find_vacancies(&units, asked, &mut survey).await;
        self.stale_files.clone_from(&survey.stale_files);
        self.purge_roots.clone_from(&survey.purge_roots);
        survey.units = units;
        let survey = Arc::new(survey);
        self.last = Some(Last { asked: asked.clone(), listed, survey: Arc::clone(&survey) });
        Ok(survey)
    }

    /// Which process has which number: all of the host, since a unit that was not read this time has its number still.
    fn numbering(&self, units: &[Unit], scan: &Scan) -> Numbering {
        let others = scan.others.iter().map(|other| &other.view);
        let named = scan.units.iter().chain(others).map(|view| &view.slot).collect();
        discover::numbering(units, &named, &self.rules.boot_id)
    }

    /// Checks whether the unit's code would be imported at its next start.
    pub async fn preflight(&mut self, unit: &Unit, app: Option<&AppName>) -> Preflight {
        let options = self.options(app);
        self.eyes.preflight(unit, &options).await
    }

    /// Returns what configuration says.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Returns what of `files` was proven stale at the last survey, and below which directories it may be removed.
    pub fn purgeable(&self, app: &AppName, files: &BTreeSet<String>) -> (Vec<StaleFile>, BTreeSet<String>) {
        let stale = files.iter().filter_map(|path| self.stale_files.get(path).cloned()).collect();
        let configured = self.rules.apps.get(app).into_iter().flat_map(|rules| rules.roots.iter().cloned());
        let accepted = self.purge_roots.get(app).cloned().unwrap_or_default();
        (stale, configured.chain(accepted).collect())
    }

    /// Returns what was last seen of a process.
    pub fn seen(&self, identity: &ProcessIdentity) -> Option<&Arc<Sight>> {
        self.eyes.seen(identity)
    }

    /// Returns why it is not known what a unit holds, where one of its processes was not read.
    pub fn unread(&self, unit: &Unit) -> Option<String> {
        unit.processes.iter().find_map(|process| {
            let why = match self.eyes.seen(&process.identity) {
                None => "it was not looked at".to_owned(),
                Some(sight) if sight.reading.outcome == Outcome::Gone && process.identity != unit_root(unit) => {
                    return None;
                }
                Some(sight) => sight.obstacle()?,
            };
            Some(format!("process {}: {why}", process.identity.pid))
        })
    }

    fn within_roots(&self, units: &[Unit]) -> Vec<Unit> {
        let roots = &self.rules.roots;
        let is_below =
            |process: &Process| self.eyes.seen(&process.identity).is_some_and(|sight| lies_below(&sight.code, roots));
        let is_within = |unit: &&Unit| roots.is_empty() || unit.processes.iter().any(is_below);
        units.iter().filter(is_within).cloned().collect()
    }

    /// What is announced and whose manifest is not here yet keeps what was decided about it.
    fn keep_decided(&mut self, decided: BTreeSet<Announced>, asked: &Asked) {
        self.decided.retain(|(app, _)| asked.awaited.contains_key(app));
        self.decided.extend(decided);
    }

    async fn claims(
        &mut self,
        units: &[Unit],
        manifests: &[KnownManifest],
    ) -> (BTreeMap<SlotId, BTreeMap<AppName, Claim>>, BTreeSet<Announced>) {
        let mut roots: BTreeMap<String, ProcessIdentity> = BTreeMap::new();
        for unit in units {
            for process in &unit.processes {
                let Some(sight) = self.eyes.seen(&process.identity) else { continue };
                for known in manifests {
                    if let crate::judge::Fit::Yes(placed) =
                        crate::judge::fit(&known.manifest, &sight.reading, &sight.code)
                    {
                        roots.insert(placed.root, process.identity);
                    }
                }
            }
        }
        let directories = self.eyes.directories(&roots).await;
        let seen: Vec<Seen<'_>> = units
            .iter()
            .map(|unit| {
                let sights = unit.processes.iter().filter_map(|process| self.eyes.seen(&process.identity)).collect();
                (unit, sights)
            })
            .collect();
        let claims = Claims {
            rules: &self.rules.apps,
            manifests,
            boot_id: &self.rules.boot_id,
            directories: &directories,
            decided: &self.decided,
        };
        claims.decide(&seen)
    }

    fn judge_unit(&self, unit: &Unit, claims: Option<&BTreeMap<AppName, Claim>>, asked: &Asked, survey: &mut Survey) {
        let (Some(root), Some(claims)) = (unit.root(), claims) else { return };
        let mut apps = BTreeMap::new();
        for known in &asked.manifests {
            let judged = match claims.get(&known.app) {
                None => continue,
                Some(Claim::Unbound(why)) => {
                    survey.unbound.entry(unit.slot.clone()).or_default().push(why.clone());
                    continue;
                }
                Some(Claim::Ambiguous(why)) => UnitJudgement {
                    revision: known.revision,
                    verdict: Verdict::Unknown,
                    cure: Cure::None,
                    because: why.clone(),
                },
                Some(Claim::Bound(placed)) => self.judge_for(unit, known, placed, survey),
            };
            count_app(survey, &known.app, unit, &judged);
            apps.insert(known.app.clone(), judged);
        }
        if apps.is_empty() {
            return;
        }
        let pools = self.pools(unit, apps.keys());
        survey.scan.units.push(UnitView {
            slot: unit.slot.clone(),
            unit: unit.id.clone(),
            root: root.identity,
            pools,
            bystander: unit.is_bystander(),
            apps,
            blocked: None,
        });
    }

    /// Judges every process of a unit for one app: any stale one makes it stale, else any unknown one unknown.
    fn judge_for(&self, unit: &Unit, known: &KnownManifest, placed: &Placed, survey: &mut Survey) -> UnitJudgement {
        let mut verdicts = Vec::new();
        let mut worst: Option<(Verdict, String)> = None;
        let mut cure = Cure::None;
        let mut stale_files = BTreeSet::new();
        let mut files_right = true;
        let mut untracked = 0;
        for process in &unit.processes {
            let judged = match self.eyes.seen(&process.identity) {
                None => WorkerJudged::unknown("it was not looked at"),
                // A child that ended while it was read is no longer part of the unit.
                Some(sight) if sight.reading.outcome == Outcome::Gone && process.identity != unit_root(unit) => {
                    continue;
                }
                Some(sight) => Self::judge_process(sight, known, placed, survey),
            };
            // A process that holds nothing of the app proves nothing and disproves nothing.
            let verdict = judged.verdict.unwrap_or(Verdict::Fresh);
            verdicts.push(verdict);
            cure = stronger(cure, judged.cure);
            files_right &= judged.files_right || judged.verdict == Some(Verdict::Unknown);
            untracked = untracked.max(judged.untracked);
            for file in &judged.stale_files {
                let path = file.path.to_string_lossy().into_owned();
                stale_files.insert(path.clone());
                survey.stale_files.insert(path, file.clone());
            }
            if worst.as_ref().is_none_or(|(known, _)| verdict > *known) {
                let because = match verdict {
                    Verdict::Fresh | Verdict::Untracked => judged.because.clone(),
                    Verdict::Unknown | Verdict::Stale => {
                        format!("process {}: {}", process.identity.pid, judged.because)
                    }
                };
                worst = Some((verdict, because));
            }
            survey.judged.entry(process.identity).or_default().insert(known.app.clone(), judged);
        }
        if let Some(view) = survey.scan.apps.get_mut(&known.app) {
            let counts = !unit.is_bystander();
            view.files_right &= files_right || !counts;
            view.stale_files.extend(stale_files);
            view.untracked = view.untracked.max(untracked);
        }
        UnitJudgement {
            revision: known.revision,
            verdict: sum(verdicts).unwrap_or(Verdict::Unknown),
            cure,
            because: worst.map_or_else(|| "no process of it was seen".to_owned(), |(_, because)| because),
        }
    }

    fn judge_process(sight: &Sight, known: &KnownManifest, placed: &Placed, survey: &mut Survey) -> WorkerJudged {
        if let Some(why) = &sight.code.problem {
            return WorkerJudged::unknown(why.clone());
        }
        // Each process has its own view of which modules are loaded where.
        let own = match crate::judge::fit(&known.manifest, &sight.reading, &sight.code) {
            crate::judge::Fit::Yes(own) => own,
            crate::judge::Fit::No | crate::judge::Fit::Ambiguous(_) => {
                Placed { root: placed.root.clone(), keys: BTreeMap::new() }
            }
        };
        let roots = survey.purge_roots.entry(known.app.clone()).or_default();
        for (path, keys) in &own.keys {
            for module in keys.iter().filter_map(|key| sight.code.modules.get(key)) {
                for next in [&module.next, &module.next_resolved].into_iter().flatten() {
                    if let Some(root) = next.strip_suffix(path.as_str()) {
                        let root = root.trim_end_matches('/').to_owned();
                        survey.watch_roots.insert(root.clone());
                        if let Some(prefix) =
                            sight.reading.interpreter.as_ref().and_then(|found| found.pycache_prefix.as_ref())
                        {
                            roots.insert(format!("{}{root}", prefix.trim_end_matches('/')));
                        }
                        roots.insert(root);
                    }
                }
            }
        }
        against_manifest(&sight.reading, &sight.code, &known.manifest, &own)
    }

    /// A pool that configuration names, else one per app, kind and service.
    fn pools<'a>(&self, unit: &Unit, apps: impl Iterator<Item = &'a AppName>) -> BTreeSet<PoolName> {
        let apps = apps.map(AppName::as_str);
        self.pools_of(unit, apps)
    }

    fn pools_of<'a>(&self, unit: &Unit, apps: impl Iterator<Item = &'a str>) -> BTreeSet<PoolName> {
        let matches = |patterns: &Vec<String>| {
            patterns.iter().any(|pattern| crate::restart::glob::fits(pattern, unit.slot.as_str()))
        };
        let named: BTreeSet<PoolName> =
            self.rules.pools.iter().filter(|(_, patterns)| matches(patterns)).map(|(name, _)| name.clone()).collect();
        if !named.is_empty() {
            return named;
        }
        apps.filter_map(|app| PoolName::new(format!("{app}/{}/{}", unit.kind, unit.service)).ok()).collect()
    }

    /// Says why a stale unit cannot be restarted, where that can be known beforehand.
    async fn find_blocks(&mut self, units: &[Unit], survey: &mut Survey) {
        for view in &mut survey.scan.units {
            let needs_restart = view.apps.values().any(|app| app.verdict == Verdict::Stale && app.cure.is_restart());
            let Some(unit) = units.iter().find(|unit| unit.slot == view.slot) else { continue };
            if !needs_restart || view.bystander {
                continue;
            }
            if let Some(known) = self.blocks.get(&view.root) {
                view.blocked = known.clone().err();
                continue;
            }
            let app = view.apps.iter().find(|(_, judged)| judged.verdict == Verdict::Stale).map(|(app, _)| app);
            let facts = self.facts(unit, survey.judged.get(&view.root));
            let planned = match self.hands.plan(unit, &facts, &self.rules.units).await {
                // It is planned again before anything is touched, and by then it may be ready.
                Err(refusal) if refusal.may_pass(&view.root) => continue,
                Err(refusal) => Err(refusal.to_string()),
                Ok(plan) => match (self.rules.allow.refusal(&plan), self.preflight(unit, app).await) {
                    (Some(why), _) => Err(why.to_owned()),
                    // It is looked at again before anything is touched.
                    (None, Preflight::Unclear) => continue,
                    (None, Preflight::Refused(why)) => Err(format!("it would not start again: {why}")),
                    (None, Preflight::Clear) => Ok(plan.means.to_string()),
                },
            };
            self.blocks.insert(view.root, planned.clone());
            view.blocked = planned.err();
        }
    }

    /// Returns what is known of a unit for planning its restart.
    pub fn facts(&self, unit: &Unit, of_root: Option<&BTreeMap<AppName, WorkerJudged>>) -> UnitFacts {
        let root = unit.root().and_then(|root| self.eyes.seen(&root.identity));
        let mut facts = UnitFacts::of(unit).with_interpreter(root.and_then(|sight| sight.reading.interpreter.as_ref()));
        // A root that was not read shows nothing, and may hold everything.
        let is_read = root.is_some_and(|sight| sight.obstacle().is_none());
        facts.root_holds = of_root.filter(|_| is_read).map(|apps| {
            apps.values()
                .flat_map(|judged| &judged.enums)
                .any(|judged| judged.memory.is_some() || !judged.bindings.is_empty())
        });
        facts
    }
}

impl Eyes {
    /// Returns what is known of directories, each seen by a process: owner, and whether it can be trusted.
    async fn directories(&mut self, roots: &BTreeMap<String, ProcessIdentity>) -> BTreeMap<String, Directory> {
        let mut found = BTreeMap::new();
        for (root, identity) in roots {
            found.insert(root.clone(), self.directory(*identity, root).await);
        }
        found
    }
}

fn unit_root(unit: &Unit) -> ProcessIdentity {
    unit.root()
        .map_or(ProcessIdentity { pid: unstale_protocol::ids::Pid(0), start_ticks: 0, pid_namespace: 0 }, |root| {
            root.identity
        })
}

fn count_app(survey: &mut Survey, app: &AppName, unit: &Unit, judged: &UnitJudgement) {
    let Some(view) = survey.scan.apps.get_mut(app) else { return };
    if unit.is_bystander() {
        view.bystanders += 1;
        view.bystanders_not_fresh += u32::from(judged.verdict != Verdict::Fresh);
    }
}

/// What stands in the way of a cure comes before the cure.
fn stronger(a: Cure, b: Cure) -> Cure {
    a.max(b)
}
