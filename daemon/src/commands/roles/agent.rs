//! The agent of this host, as a part of a process: its store, its driver, and the pump between that and a bus.

use super::super::parts;
use super::manifests::Kept;
use super::{MESSAGES_MAX, disk, pump};
use crate::bus::ends::AgentEnd;
use crate::bus::envelope::Seal;
use crate::config::{Act, Config};
use crate::store::{StateDir, Which};
use anyhow::Context as _;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use unstale_agent::driver::{self, Allow};
use unstale_agent::eyes::AppRules;
use unstale_agent::supervisor::Reach;
use unstale_agent::survey::{Rules, Survey};
use unstale_protocol::host::HostPolicy;
use unstale_protocol::ids::HostName;
use unstale_protocol::restart::RestartPolicy;

/// An agent that can be started.
pub(in crate::commands) struct AgentPart {
    /// What it knows at its start; may be changed before.
    pub(in crate::commands) config: driver::Config,
    disk: disk::AgentDisk,
    wire: (AgentEnd, Seal),
    manifests: Kept,
    seen: watch::Sender<Arc<Survey>>,
}

impl AgentPart {
    /// Begins a new life of the agent, with what its store remembers. `roots` wins over the configuration.
    ///
    /// # Errors
    /// Where the store cannot be used, or a path cannot be read.
    pub(in crate::commands) fn open(
        config: &Config,
        roots: &[PathBuf],
        host: HostName,
        state: &StateDir,
        wire: (AgentEnd, Seal),
    ) -> anyhow::Result<Self> {
        let disk = disk::AgentDisk::open(state.open(Which::Agent)?)?;
        let config = agent_config(config, roots, host, &disk)?;
        let (seen, _) = watch::channel(Arc::new(Survey::default()));
        Ok(Self { config, disk, wire, manifests: Kept::below(state.path()), seen })
    }

    /// Returns what it sees.
    pub(in crate::commands) fn sights(&self) -> watch::Receiver<Arc<Survey>> {
        self.seen.subscribe()
    }

    /// Starts it. Returns where it can be told something beside what comes from the bus.
    pub(super) fn start(
        self,
        set: &mut JoinSet<anyhow::Result<()>>,
        shutdown: &CancellationToken,
    ) -> mpsc::Sender<driver::Incoming> {
        let Self { config, disk, wire, manifests, seen } = self;
        let (incoming, agent_incoming) = mpsc::channel(MESSAGES_MAX);
        let (agent_outgoing, outgoing) = mpsc::channel(MESSAGES_MAX);
        let told = incoming.clone();
        set.spawn(pump::run(wire, (config.host.clone(), manifests), incoming, outgoing, shutdown.clone()));
        set.spawn(driven(config, disk, agent_incoming, agent_outgoing, seen, shutdown.clone()));
        told
    }
}

fn agent_config(
    config: &Config,
    roots: &[PathBuf],
    host: HostName,
    disk: &disk::AgentDisk,
) -> anyhow::Result<driver::Config> {
    let text = |path: &PathBuf| -> anyhow::Result<String> {
        path.to_str().map(ToOwned::to_owned).with_context(|| format!("`{}` is not UTF-8", path.display()))
    };
    let roots = if roots.is_empty() { &config.agent.roots } else { roots };
    let roots = roots
        .iter()
        .map(|root| text(&root.canonicalize().with_context(|| format!("cannot read --root `{}`", root.display()))?))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut apps = std::collections::BTreeMap::new();
    for (name, app) in &config.apps {
        let rules = AppRules {
            roots: app.roots.iter().map(text).collect::<anyhow::Result<_>>()?,
            users: app.users.clone(),
            ignore: app.ignore.clone(),
        };
        apps.insert(name.clone(), rules);
    }
    let allows = |act: Act| config.agent.allow.contains(&act);
    Ok(driver::Config {
        host,
        incarnation: disk.incarnation(),
        seed: disk.seed(),
        records: disk.records()?,
        policy: HostPolicy {
            restart: RestartPolicy {
                start_timeout: config.agent.start_timeout.duration(),
                survival_window: config.agent.survival_window.duration(),
                ..RestartPolicy::default()
            },
            ..HostPolicy::default()
        },
        rules: Rules {
            apps,
            pools: config.pools.iter().map(|(name, pool)| (name.clone(), pool.slots.clone())).collect(),
            units: config.units.clone(),
            roots,
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .map(|text| text.trim().to_owned())
                .unwrap_or_default(),
            allow: Allow {
                purge: allows(Act::Purge),
                supervisor: allows(Act::Supervisor),
                signal: allows(Act::Signal),
            },
        },
        reach: Reach::default(),
        reader: parts::reader(),
        parser: parts::parser(),
        purger: parts::purger(),
        dry_run: false,
        scan_interval: config.agent.scan_interval.duration(),
        look_interval: config.agent.read_interval.duration(),
    })
}

async fn driven(
    config: driver::Config,
    disk: disk::AgentDisk,
    incoming: mpsc::Receiver<driver::Incoming>,
    outgoing: mpsc::Sender<driver::Outgoing>,
    seen: watch::Sender<Arc<Survey>>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    driver::run(config, Box::new(disk), incoming, outgoing, seen, shutdown).await.context("the agent ended")
}
