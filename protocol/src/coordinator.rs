//! The machine for the fleet: the coordinator's mind.
//!
//! It assigns revisions, keeps the desired state, grants permits within budgets and says how far each
//! rollout has come. Nothing frees a permit but the report of the host that holds it.

mod budget;
mod lead;
mod people;
mod probe;
mod record;
mod reports;
mod requests;
mod roster;
mod search;
mod slots;
mod status;
mod tally;

pub use lead::{Leadership, Lease, Reports, Standing};
pub use probe::{PROBES_MAX, ProbeHost, ProbeStatus};
pub use record::{
    Broadcast, DrainRecord, Event, HostRecord, MaxUnavailable, MaxUnavailableError, PermitRecord, Record,
    RolloutRecord, Terms,
};
pub use status::{Counts, DrainStatus, HostStatus, Outcome, RolloutStatus, UnitStatus};

use crate::fingerprint::{Fingerprint, Salt};
use crate::ids::{AppName, DrainId, Epoch, Generation, HostName, PoolName, Revision, Version};
use crate::message::{Ask, Desired, DesiredApp, DesiredDrain, Nonce, PARTIAL, Permit, Report, Want};
use crate::piece::Fetch;
use crate::time::Moment;
use lead::Listening;
use probe::Open;
use requests::Requests;
use search::Search;
use slots::Slots;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tally::Tally;

/// What may differ between deployments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorPolicy {
    /// After a takeover no permit is granted for this long: lease + a permit's life on a network bus, zero on
    /// the embedded one, whose permits die with the incarnation.
    pub takeover_wait: Duration,
    /// A host without a report for this long is silent.
    pub silent_after: Duration,
    /// How long a coordinator that knew no hosts says nothing final.
    pub first_wait: Duration,
    /// How long a host's picture must have held still before unknown units count as final.
    pub settle_wait: Duration,
    /// Hosts that are expected by configuration.
    pub expected_hosts: BTreeSet<HostName>,
    /// Budgets of named pools.
    pub pools: BTreeMap<PoolName, MaxUnavailable>,
    /// The budget of all other pools.
    pub max_unavailable: MaxUnavailable,
    /// How old a request may be when it is granted.
    pub ask_lifetime: Duration,
    /// Least pause before the desired state is published again for a host that lags behind.
    pub republish_interval: Duration,
    /// A dry run that nobody has asked about for this long is over.
    pub probe_lifetime: Duration,
    /// Grant drains only: no rollout goes on.
    pub drains_only: bool,
    /// Whether others can lead the same fleet.
    pub leadership: Leadership,
    /// Whom the bus brings reports, where others can lead.
    pub reports: Reports,
    /// Drawn at the start of this life where others can lead: it tells two reigns of one number apart.
    pub life: Salt,
    /// The host on which it runs, as others are told.
    pub host: Option<HostName>,
}

impl Default for CoordinatorPolicy {
    fn default() -> Self {
        Self {
            takeover_wait: Duration::from_secs(30),
            silent_after: Duration::from_mins(3),
            first_wait: Duration::from_secs(70),
            settle_wait: Duration::from_secs(15),
            expected_hosts: BTreeSet::new(),
            pools: BTreeMap::new(),
            max_unavailable: MaxUnavailable::DEFAULT,
            ask_lifetime: Duration::from_secs(16),
            republish_interval: Duration::from_secs(5),
            probe_lifetime: Duration::from_secs(15),
            drains_only: false,
            leadership: Leadership::Sole,
            reports: Reports::ToAll,
            life: Salt::default(),
            host: None,
        }
    }
}

/// What the driver is to do next, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write these to disk, with one fsync, before doing what follows.
    Store(Vec<Record>),
    /// Publish the desired state.
    Publish(Desired),
    /// Send the permit to its host.
    Grant(Permit),
    /// Look for the manifest of this digest where the bus keeps it.
    LookUp(Fingerprint),
    /// Ask a host for a piece of a manifest.
    Fetch(Fetch),
    /// Write the text of this manifest to disk: its digest was compared.
    Keep(Fingerprint, String),
}

/// What became of a broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The revision it has.
    pub revision: Revision,
    /// Whether that revision existed before.
    pub is_same: bool,
}

/// Why an operator's word was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such app, or no rollout of it.
    #[error("there is no rollout of {0}")]
    NoRollout(AppName),
    /// The revision is not the current one.
    #[error("{0}@{1} is not the current revision; {0}@{2} is")]
    NotCurrent(AppName, Revision, Revision),
    /// The rollout was aborted; only a new broadcast begins another.
    #[error("{0}@{1} was aborted; broadcast again to begin a new revision")]
    Aborted(AppName, Revision),
    /// There is no such drain.
    #[error("there is no drain {0}")]
    NoDrain(DrainId),
    /// There is no such host.
    #[error("no host of the name {0} is known")]
    NoHost(HostName),
    /// It was never heard, and is expected because configuration names it: nothing that is said here would last.
    #[error("{0} has not reported: it is expected because `[coordinator] expected_hosts` names it")]
    Configured(HostName),
    /// Another coordinator leads, or nobody does: the host of whoever led last, where it is known.
    #[error("this coordinator stands by: {}", led_by(.0.as_ref()))]
    NotLeader(Option<HostName>),
    /// So many dry runs are under way.
    #[error("{PROBES_MAX} dry runs are under way already")]
    TooManyProbes,
}

fn led_by(leader: Option<&HostName>) -> String {
    leader.map_or_else(|| "it does not lead the fleet".to_owned(), |host| format!("the one on {host} leads the fleet"))
}

#[derive(Debug, Default)]
struct Host {
    record: HostRecord,
    /// The last report of this coordinator's life.
    report: Option<Arc<Report>>,
    heard_at: Option<Moment>,
    /// How long the bus had brought reports here by then.
    heard_after: Duration,
    /// Since when its report has said the same.
    still_since: Option<Moment>,
    /// The reign that it was last heard to follow.
    heard_in: Option<Epoch>,
    /// When a second agent of this name was heard last, until it has fallen silent.
    twin_at: Option<Moment>,
    /// The counter of a life below the known one that has reported since: late words, or an agent that lost its state.
    outnumbered: Option<u64>,
    /// Apps that it had converged on when they were announced again, until a look has answered that.
    looks_again: BTreeMap<AppName, Revision>,
}

impl Host {
    /// One of which nothing is known, not even that it has nothing.
    fn unheard() -> Self {
        let record = HostRecord { apps: Some(BTreeSet::new()), ..HostRecord::default() };
        Self { record, ..Self::default() }
    }

    /// Tells whether two agents answer to this name.
    fn is_doubled(&self) -> bool {
        self.twin_at.is_some()
    }

    /// Tells whether it has said in this life of the coordinator what is up there: a new agent first has to look.
    fn has_spoken(&self) -> bool {
        self.report.as_ref().is_some_and(|report| report.scanned)
    }

    /// Tells whether anything was under way there when it was last heard.
    fn is_acting(&self) -> bool {
        self.report.as_ref().is_some_and(|report| report.slots.iter().any(|slot| slot.phase.is_acting()))
    }
}

#[derive(Clone, Debug)]
struct Pending {
    nonce: Nonce,
    version: Version,
    want: Want,
    received_at: Moment,
}

/// The mind of the coordinator.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is something that is known or not, whatever the others are")]
pub struct Coordinator {
    policy: CoordinatorPolicy,
    started_at: Moment,
    standing: Standing,
    /// The number of the reign comes with the lease.
    is_numbered: bool,
    /// The highest version seen anywhere; above `version` where what it says is not known here.
    seen: Version,
    /// Who wrote the state that `version` names.
    author: Salt,
    /// The host of the other coordinator that wrote the newest state found on the bus.
    led_on: Option<HostName>,
    /// Not all that was desired before this reign may be known.
    partial: bool,
    /// The newest state of somebody else's that was taken over: whoever wrote it may have granted what this disk lacks.
    adopted: Version,
    /// The newest state of its own that the bus held or a host followed. What is above that was only reserved, and does
    /// not outrank what another has published meanwhile.
    asserted: Version,
    /// Drains that people took back in this reign.
    released: BTreeSet<DrainId>,
    /// How many hosts another coordinator expected; none where it did not know, or nothing was found of it.
    hosts_elsewhere: Option<u32>,
    /// Something that another coordinator desired was learned in this life.
    has_adopted: bool,
    /// Revisions of apps that hosts have followed and that are above those known here.
    highest_revisions: BTreeMap<AppName, Revision>,
    listening: Listening,
    /// When the epoch was last raised: at the start, and above any later reign that comes to light.
    reign_at: Moment,
    /// Every host has had the time to speak in this reign.
    all_had_turn: bool,
    /// This life began with a list of hosts that was whole, or has compared its length.
    knew_hosts: bool,
    /// The next life may take the hosts on the disk for all there are.
    all_hosts: bool,
    version: Version,
    rollouts: BTreeMap<AppName, BTreeMap<Revision, RolloutRecord>>,
    drains: BTreeMap<DrainId, DrainRecord>,
    next_drain: u64,
    /// Dry runs; they end with this reign, or when nobody asks about them any more.
    probes: BTreeMap<String, Open>,
    next_probe: u64,
    permits: Slots<PermitRecord>,
    hosts: BTreeMap<HostName, Host>,
    requests: Requests,
    tally: Tally,
    /// Whether anything could be granted when it was last decided.
    could_grant: bool,
    /// The disk lost the list of hosts: no grants until an operator says how many there are.
    lost_hosts: bool,
    /// How many hosts an operator said the fleet has.
    stated_hosts: Option<u32>,
    /// Those that had left by then.
    left_when_stated: BTreeSet<HostName>,
    /// When the desired state was last published.
    published_at: Moment,
    /// When it was last decided what may be granted.
    reviewed_at: Moment,
    /// Manifests that are on disk; `None` where that was not told.
    held: Option<BTreeSet<Fingerprint>>,
    /// Those that are not, and are looked for.
    searches: BTreeMap<Fingerprint, Search>,
    actions: VecDeque<Action>,
}

impl Coordinator {
    /// Starts with what the disk remembers. Where nobody else can lead that is a new reign: a higher epoch, the same
    /// desired state. Where others can, it stands by until [`Coordinator::handle_lease`].
    pub fn new(policy: CoordinatorPolicy, records: Vec<Record>, now: Moment) -> Self {
        let mut machine = Self {
            started_at: now,
            standing: match policy.leadership {
                Leadership::Sole => Standing::Sole,
                Leadership::Leased => Standing::Standby,
            },
            is_numbered: false,
            seen: Version::default(),
            author: policy.life,
            led_on: None,
            partial: false,
            adopted: Version::default(),
            asserted: Version::default(),
            released: BTreeSet::new(),
            hosts_elsewhere: None,
            has_adopted: false,
            highest_revisions: BTreeMap::new(),
            listening: Listening::default(),
            policy,
            reign_at: now,
            all_had_turn: false,
            knew_hosts: false,
            all_hosts: false,
            version: Version::default(),
            rollouts: BTreeMap::new(),
            drains: BTreeMap::new(),
            next_drain: 1,
            probes: BTreeMap::new(),
            next_probe: 1,
            permits: Slots::default(),
            hosts: BTreeMap::new(),
            requests: Requests::default(),
            tally: Tally::default(),
            could_grant: false,
            lost_hosts: false,
            stated_hosts: None,
            left_when_stated: BTreeSet::new(),
            published_at: now,
            reviewed_at: now,
            held: None,
            searches: BTreeMap::new(),
            actions: VecDeque::new(),
        };
        for record in records {
            machine.remember(record);
        }
        machine.knew_hosts = machine.all_hosts && !machine.hosts.is_empty();
        machine.seen = machine.version;
        if machine.standing == Standing::Sole {
            machine.listening.is_connected = true;
            machine.listen(now);
            machine.reign(machine.version.epoch.next(), now);
        }
        machine
    }

    fn remember(&mut self, record: Record) {
        match record {
            Record::Reign { epoch, generation, lost_hosts, all_hosts, author, partial, adopted, asserted } => {
                self.version = self.version.max(Version { epoch, generation });
                (self.adopted, self.asserted) = (adopted.unwrap_or(self.version), asserted.unwrap_or(self.version));
                (self.lost_hosts, self.all_hosts) = (lost_hosts, all_hosts.unwrap_or(true));
                (self.author, self.partial) = (author, partial);
            }
            Record::Rollout(app, rollout) => {
                self.rollouts.entry(app).or_default().insert(rollout.revision, rollout);
            }
            Record::Drain(id, record) => {
                let number = id.as_str().rsplit('-').next().and_then(|text| text.parse().ok()).unwrap_or(0);
                self.next_drain = self.next_drain.max(number + 1);
                match record {
                    Some(record) => self.drains.insert(id, record),
                    None => self.drains.remove(&id),
                };
            }
            Record::Permit(host, slot, record) => {
                match record {
                    Some(record) => self.permits.insert(host, slot, record),
                    None => self.permits.remove(&host, &slot),
                };
            }
            Record::Host(name, record) => {
                match record {
                    Some(record) => self.hosts.insert(name, Host { record, ..Host::default() }),
                    None => self.hosts.remove(&name),
                };
            }
            Record::Event(_) => {}
        }
    }

    /// Raises the epoch and asserts the desired state under it. No host has been heard in the new reign yet.
    fn reign(&mut self, epoch: Epoch, now: Moment) {
        self.reign_at = now;
        self.all_had_turn = false;
        let last = self.version.generation.max(self.seen.generation);
        self.version = Version { epoch, generation: last.next() };
        self.author = self.policy.life;
        self.requests.clear();
        self.count_all_again();
        self.released.clear();
        self.publish(vec![]);
    }

    /// Writes the new desired state down and publishes it. The version must have been raised.
    fn publish(&mut self, mut records: Vec<Record>) {
        records.push(self.reign_record());
        self.actions.push_back(Action::Store(records));
        self.actions.push_back(Action::Publish(self.desired()));
    }

    fn reign_record(&self) -> Record {
        let Version { epoch, generation } = self.version;
        Record::Reign {
            epoch,
            generation,
            lost_hosts: self.lost_hosts,
            all_hosts: Some(self.all_hosts),
            author: self.author,
            partial: self.partial,
            adopted: Some(self.adopted),
            asserted: Some(self.asserted),
        }
    }

    fn next_generation(&mut self) -> Generation {
        self.version.generation = self.version.generation.next();
        self.version.generation
    }

    /// Publishes the desired state again, for a host that has not taken it in or a bus that lost it; at most every few
    /// seconds.
    fn publish_again(&mut self, now: Moment) {
        if self.standing != Standing::Standby && now.since(self.published_at) >= self.policy.republish_interval {
            self.published_at = now;
            self.actions.push_back(Action::Publish(self.desired()));
        }
    }

    /// Returns the desired state as it stands.
    pub fn desired(&self) -> Desired {
        let apps = self
            .rollouts
            .iter()
            .filter_map(|(app, revisions)| {
                let rollout = revisions.values().next_back()?;
                let desired = DesiredApp {
                    revision: rollout.revision,
                    mode: rollout.mode,
                    manifest: rollout.manifest,
                    attempt: rollout.attempt,
                    fingerprint: Some(rollout.fingerprint),
                    terms: Some(rollout.terms.clone()),
                };
                Some((app.clone(), desired))
            })
            .collect();
        let drains = self
            .drains
            .iter()
            .map(|(id, drain)| DesiredDrain {
                id: id.clone(),
                host: drain.host.clone(),
                slot: drain.slot.clone(),
                deadline_ms: drain.deadline_ms,
                force: drain.force,
            })
            .collect();
        Desired {
            epoch: self.version.epoch,
            generation: self.version.generation,
            apps,
            drains,
            probes: self.desired_probes(),
            author: self.author,
            partial: self.partial,
            hosts: (!self.lost_hosts).then(|| self.expected_count()),
            leader: self.policy.host.clone(),
            must: if self.partial { vec![PARTIAL.to_owned()] } else { Vec::new() },
        }
    }

    /// Takes a request for permits.
    pub fn handle_ask(&mut self, ask: Ask, now: Moment) {
        self.expire(now);
        let Ask { host, nonce, version, mut wants } = ask;
        if self.standing == Standing::Standby || version != self.version {
            wants.clear();
        }
        let wanted = wants.into_iter().map(|want| Pending { nonce, version, want, received_at: now });
        self.requests.replace(&host, wanted);
        self.review(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Moment) {
        self.expire(now);
        self.complete(now);
        self.trust_hosts(now);
        self.end_forgotten_probes(now);
        self.review(now);
    }

    /// Returns the next action.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns when [`Coordinator::handle_timeout`] wants to be called: when granting becomes possible, the
    /// lease ends, a dry run is forgotten or a manifest is looked for. Later than the last `now`, for a request that waits for room must not keep the driver busy.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let wait = self.reign_at.after(self.policy.takeover_wait);
        let granting = (!self.requests.is_empty() && wait > self.reviewed_at).then_some(wait);
        let lease = match self.standing {
            Standing::Leading { until } => Some(until),
            Standing::Sole | Standing::Standby => None,
        };
        let end = self.partial_end();
        let knows = (self.partial && self.standing != Standing::Standby && end > self.reviewed_at).then_some(end);
        granting.into_iter().chain(self.probe_end()).chain(lease).chain(knows).chain(self.search_due()).min()
    }

    /// Returns the newest desired state's version.
    pub fn version(&self) -> Version {
        self.version
    }
}

fn event(what: &str, app: &AppName, revision: Revision, because: &str) -> Record {
    Record::Event(Event {
        app: Some(app.clone()),
        revision: Some(revision),
        host: None,
        slot: None,
        what: what.to_owned(),
        because: because.to_owned(),
    })
}
