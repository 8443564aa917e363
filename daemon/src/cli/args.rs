//! The flags of each command.

use super::{AppTarget, CoordinatorAddress, KeyValue, OutputArgs, Selector, Span};
use crate::bus::address::Secret;
use crate::bus::envelope::FleetName;
use crate::keys::KeyId;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use unstale_protocol::coordinator::MaxUnavailable;
use unstale_protocol::ids::{AppName, HostName};

/// Where the coordinator listens.
#[derive(Clone, Debug, Args)]
pub(crate) struct CoordinatorArgs {
    /// Where the coordinator listens: `unix:PATH`. Default: `$XDG_RUNTIME_DIR/unstale/coordinator.sock`,
    /// else `/run/unstale/coordinator.sock`.
    #[arg(long, value_name = "ADDRESS", env = "UNSTALE_COORDINATOR")]
    pub(crate) coordinator: Option<CoordinatorAddress>,
}

/// Where state lives.
#[derive(Clone, Debug, Args)]
pub(crate) struct StateDirArgs {
    /// Directory for state. Default: `/var/lib/unstale` for root, else `$XDG_STATE_HOME/unstale` or
    /// `~/.local/state/unstale`.
    #[arg(long, value_name = "DIR", env = "UNSTALE_STATE_DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// The configuration file.
#[derive(Clone, Debug, Args)]
pub(crate) struct ConfigArgs {
    /// Configuration file. Default: `/etc/unstale/unstale.toml` where it exists.
    #[arg(long, value_name = "FILE", env = "UNSTALE_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

/// Which workers are looked at.
#[derive(Clone, Debug, Args)]
pub(crate) struct RootArgs {
    /// Look only at workers whose code lies below DIR. May be repeated.
    #[arg(long = "root", value_name = "DIR", env = "UNSTALE_ROOT")]
    pub(crate) roots: Vec<PathBuf>,
}

/// By this host's own hands.
#[derive(Clone, Debug, Args)]
pub(crate) struct LocalArgs {
    /// Do it by this host's own hands where no coordinator listens. What was drained is remembered in the state
    /// directory, for `undrain --local` or a later `unstale up`; no rollout goes on meanwhile. Refused where something
    /// else holds that directory.
    #[arg(long)]
    pub(crate) local: bool,
    #[command(flatten)]
    pub(crate) state: StateDirArgs,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

/// `unstale inspect`.
#[derive(Clone, Debug, Args)]
pub(crate) struct InspectArgs {
    /// Look only at this process. May be repeated.
    #[arg(long = "pid", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) pids: Vec<u32>,
    #[command(flatten)]
    pub(crate) roots: RootArgs,
    /// Also show enums of the standard library and of installed packages.
    #[arg(long)]
    pub(crate) all: bool,
    /// Also show bytecode and bindings of fresh enums, and the database where --database names one.
    #[arg(long)]
    pub(crate) all_layers: bool,
    /// With --all-layers: also show the labels that this PostgreSQL database has. They never make a worker stale.
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    pub(crate) database: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Where the control API listens.
#[derive(Clone, Debug, Args)]
pub(crate) struct SocketArgs {
    /// Where the control API listens. Default: `/run/unstale/coordinator.sock` for root, else
    /// `$XDG_RUNTIME_DIR/unstale/coordinator.sock`.
    #[arg(long, value_name = "PATH", env = "UNSTALE_SOCKET")]
    pub(crate) socket: Option<PathBuf>,
}

/// `unstale up`.
#[derive(Clone, Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) state: StateDirArgs,
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(flatten)]
    pub(crate) roots: RootArgs,
}

/// Where keys lie.
#[derive(Clone, Debug, Args)]
pub(crate) struct KeysDirArgs {
    /// Directory of keys. Default: `/etc/unstale/keys` for root, else `$XDG_CONFIG_HOME/unstale/keys` or
    /// `~/.config/unstale/keys`.
    #[arg(long, value_name = "DIR", env = "UNSTALE_KEYS")]
    pub(crate) keys: Option<PathBuf>,
}

/// What all of `unstale keys` has.
#[derive(Clone, Debug, Args)]
pub(crate) struct KeysArgs {
    #[command(flatten)]
    pub(crate) keys: KeysDirArgs,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

/// Whom a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyRole {
    /// The fleet's coordinator.
    Coordinator,
    /// The agent of one host.
    Agent,
}

/// `unstale keys new`.
#[derive(Clone, Debug, Args)]
pub(crate) struct KeysNewArgs {
    /// Whom the key is for.
    #[arg(value_enum, value_name = "ROLE")]
    pub(crate) role: KeyRole,
    /// The agent's host. Default: this machine's name.
    #[arg(long, value_name = "NAME", env = "UNSTALE_HOST")]
    pub(crate) host: Option<HostName>,
    #[command(flatten)]
    pub(crate) place: KeysArgs,
}

/// `unstale keys show`.
#[derive(Clone, Debug, Args)]
pub(crate) struct KeysShowArgs {
    /// Print only the public lines of the keys that are in use here.
    #[arg(long)]
    pub(crate) public: bool,
    #[command(flatten)]
    pub(crate) place: KeysArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `unstale keys enrol`.
#[derive(Clone, Debug, Args)]
pub(crate) struct KeysEnrolArgs {
    /// Public keys as `unstale keys new` and `unstale keys show --public` print them; `-` reads them from the input.
    #[arg(value_name = "LINE", required = true)]
    pub(crate) lines: Vec<String>,
    #[command(flatten)]
    pub(crate) place: KeysArgs,
}

/// `unstale keys use` and `unstale keys remove`.
#[derive(Clone, Debug, Args)]
pub(crate) struct KeysIdArgs {
    /// The key, as `unstale keys show` names it.
    #[arg(value_name = "ID")]
    pub(crate) id: KeyId,
    #[command(flatten)]
    pub(crate) place: KeysArgs,
}

/// What a URL of a bus should not say, from the environment.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct BusPasswords {
    /// The password on the bus, where the URL has none.
    #[arg(long = "__bus-password", env = "UNSTALE_BUS_PASSWORD", hide = true, hide_env_values = true)]
    pub(crate) broker: Option<Secret>,
    /// The password of the Sentinels, which have users of their own.
    #[arg(long = "__sentinel-password", env = "UNSTALE_SENTINEL_PASSWORD", hide = true, hide_env_values = true)]
    pub(crate) sentinels: Option<Secret>,
}

/// The bus of a fleet, and who speaks on it.
#[derive(Clone, Debug, Args)]
pub(crate) struct BusArgs {
    /// What coordinator and agents talk over: `redis://`, `rediss://` (TLS), `redis+sentinel://HOST,HOST/MASTER`,
    /// `amqp://`, `amqps://` (TLS).
    #[arg(long, value_name = "URL", env = "UNSTALE_BUS", hide_env_values = true)]
    pub(crate) bus: Option<Secret>,
    #[command(flatten)]
    pub(crate) passwords: BusPasswords,
    /// The fleet's name, with which everything on the bus begins. Default: `default`.
    #[arg(long, value_name = "NAME", env = "UNSTALE_FLEET")]
    pub(crate) fleet: Option<FleetName>,
    /// Sign nothing and believe everybody who reaches the bus: for a laptop.
    #[arg(long)]
    pub(crate) insecure_bus: bool,
    /// Exit with 2 where the bus cannot be used at the start, instead of waiting for it.
    #[arg(long)]
    pub(crate) fail_fast: bool,
    #[command(flatten)]
    pub(crate) keys: KeysDirArgs,
}

/// `unstale coordinator`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CoordinatorRoleArgs {
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// Let no rollout converge before N hosts have reported, where its broadcast names no number.
    #[arg(long, value_name = "N")]
    pub(crate) expect_hosts: Option<u32>,
    #[command(flatten)]
    pub(crate) state: StateDirArgs,
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

/// `unstale agent`.
#[derive(Clone, Debug, Args)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// This host's name on the bus. Default: the machine's name.
    #[arg(long, value_name = "NAME", env = "UNSTALE_HOST")]
    pub(crate) host: Option<HostName>,
    #[command(flatten)]
    pub(crate) state: StateDirArgs,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(flatten)]
    pub(crate) roots: RootArgs,
}

/// `unstale broadcast`.
#[derive(Clone, Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that stands alone")]
pub(crate) struct BroadcastArgs {
    /// The app that is announced.
    #[arg(long, value_name = "NAME", env = "UNSTALE_APP")]
    pub(crate) app: AppName,
    /// Directories that hold the app's source.
    #[arg(value_name = "PATH", default_value = ".")]
    pub(crate) paths: Vec<PathBuf>,
    /// Check first that this PostgreSQL database knows every label that the code would send.
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    pub(crate) database: Option<String>,
    /// How long to wait: `90s`, `15m`, `0` for ever. The rollout goes on afterwards.
    #[arg(long, value_name = "TIME", default_value = "15m", env = "UNSTALE_TIMEOUT")]
    pub(crate) timeout: Span,
    /// Announce and leave; come back with `unstale status APP@REV --watch`.
    #[arg(long)]
    pub(crate) detach: bool,
    /// Go on although the check before it found errors.
    #[arg(long)]
    pub(crate) force: bool,
    /// Restart N units per pool first and go on once they are verified.
    #[arg(long, value_name = "N")]
    pub(crate) canary: Option<u32>,
    /// How many units of a pool may be unavailable at once: `N` or `N%`. Default: 1 or 10 %, whichever is larger.
    #[arg(long, value_name = "N|N%")]
    pub(crate) max_unavailable: Option<MaxUnavailable>,
    /// Count a fleet without hosts or units as converged.
    #[arg(long)]
    pub(crate) allow_empty: bool,
    /// Converge without hosts that are silent.
    #[arg(long)]
    pub(crate) ignore_silent: bool,
    /// Let plain Python processes on a terminal count too.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Do not converge before N hosts have reported.
    #[arg(long, value_name = "N")]
    pub(crate) expect_hosts: Option<u32>,
    /// Ask every host what it would do, and do nothing: which units would be restarted and how, which files would be
    /// removed, what cannot be restarted and why. Exits with 0 where everything stale could be cured, 1 where
    /// something could not, 3 where something is unknown.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Why, for the record.
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// A note for the record. May be repeated.
    #[arg(long, value_name = "K=V")]
    pub(crate) meta: Vec<KeyValue>,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `unstale status`.
#[derive(Clone, Debug, Args)]
pub(crate) struct StatusArgs {
    /// Only this app, or this revision of it, or what these selectors choose.
    #[arg(value_name = "APP[@REV]|SELECTOR")]
    pub(crate) targets: Vec<String>,
    /// Follow a rollout to its end, and exit as `broadcast` would.
    #[arg(long)]
    pub(crate) watch: bool,
    /// How long to follow: `90s`, `15m`, `0` for ever.
    #[arg(long, value_name = "TIME", default_value = "15m", env = "UNSTALE_TIMEOUT")]
    pub(crate) timeout: Span,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `unstale why`.
#[derive(Clone, Debug, Args)]
pub(crate) struct WhyArgs {
    /// A selector, or a bare process number, or a unit as it is shown: `pid:4711`, `4711`, `celery:4711`.
    #[arg(value_name = "TARGET")]
    pub(crate) target: Selector,
    /// Look by oneself where no coordinator listens: at this host, now.
    #[arg(long)]
    pub(crate) local: bool,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `unstale drain`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DrainArgs {
    /// What to drain.
    #[arg(value_name = "SELECTOR", required = true)]
    pub(crate) selectors: Vec<Selector>,
    /// How long to wait: `90s`, `15m`, `0` for ever. The drain goes on afterwards.
    #[arg(long, value_name = "TIME", default_value = "15m", env = "UNSTALE_TIMEOUT")]
    pub(crate) timeout: Span,
    /// Time to finish before a unit is called slow.
    #[arg(long, value_name = "TIME")]
    pub(crate) grace: Option<Span>,
    /// When the drain gives up. Default: never, the task in hand is named.
    #[arg(long, value_name = "TIME")]
    pub(crate) deadline: Option<Span>,
    /// Go beyond the budget, drain what nothing would bring back, and kill at the deadline.
    #[arg(long)]
    pub(crate) force: bool,
    /// Ask for it and leave.
    #[arg(long, conflicts_with = "local")]
    pub(crate) detach: bool,
    /// Say what would be drained, do nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) local: LocalArgs,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `unstale undrain`.
#[derive(Clone, Debug, Args)]
pub(crate) struct UndrainArgs {
    /// What to give back.
    #[arg(value_name = "SELECTOR", required = true)]
    pub(crate) selectors: Vec<Selector>,
    #[command(flatten)]
    pub(crate) local: LocalArgs,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `unstale pause` and `unstale abort`.
#[derive(Clone, Debug, Args)]
pub(crate) struct HandArgs {
    /// The rollout; may be left out where there is only one.
    #[arg(value_name = "APP[@REV]")]
    pub(crate) target: Option<AppTarget>,
    /// Why, for the record.
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `unstale resume`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    pub(crate) hand: HandArgs,
    /// Go on knowing that the fleet has N hosts.
    #[arg(long, value_name = "N")]
    pub(crate) hosts: Option<u32>,
    /// Go on beside units that stay down: `N` or `N%`.
    #[arg(long, value_name = "N|N%")]
    pub(crate) max_unavailable: Option<MaxUnavailable>,
}

/// `unstale forget`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ForgetArgs {
    /// The host: `host:NAME`.
    #[arg(value_name = "host:NAME")]
    pub(crate) target: Selector,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `unstale demo`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DemoArgs {
    /// Play it on three hosts, each with an agent and a worker, over a private Redis.
    #[arg(long)]
    pub(crate) fleet: bool,
    /// Use this virtual environment, which has celery, sqlalchemy and supervisor, instead of a private one.
    #[arg(long, value_name = "DIR", env = "UNSTALE_DEMO_VENV")]
    pub(crate) venv: Option<PathBuf>,
    /// The Python that a private virtual environment is made with.
    #[arg(long, value_name = "PROGRAM", default_value = "python3", env = "UNSTALE_DEMO_PYTHON")]
    pub(crate) python: PathBuf,
    /// The Redis or Valkey server of `--fleet`.
    #[arg(long, value_name = "PROGRAM", default_value = "redis-server", env = "UNSTALE_DEMO_REDIS")]
    pub(crate) redis: PathBuf,
}

/// `unstale doctor`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Also look at this bus, with the coordinator's user: `redis://…`, `amqp://…`. Default: the one in `[bus]`.
    #[arg(long, value_name = "URL", env = "UNSTALE_BUS", hide_env_values = true)]
    pub(crate) bus: Option<Secret>,
    #[command(flatten)]
    pub(crate) passwords: BusPasswords,
    #[command(flatten)]
    pub(crate) state: StateDirArgs,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(flatten)]
    pub(crate) coordinator: CoordinatorArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `unstale state dump`.
#[derive(Clone, Debug, Args)]
pub(crate) struct StateDumpArgs {
    #[command(flatten)]
    pub(crate) state: StateDirArgs,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}
