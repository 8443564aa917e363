//! The command line: what can be asked, with which flags, environment variables and defaults.
//!
//! Definitions only: nothing here acts. `main` parses it, `commands` carries it out. Every
//! environment variable that the program reads is an argument here.

mod args;
mod selector;
mod span;
mod target;

pub(crate) use args::*;
pub(crate) use selector::Selector;
pub(crate) use span::Span;
pub(crate) use target::{AppTarget, CoordinatorAddress, KeyValue};

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit codes:
    0  clean, or converged and verified
    1  drift, stale, or ended with failures
    2  usage, configuration or I/O error
    3  unknown remains, or the time limit passed while still in progress
    4  halted by policy
    5  superseded or aborted
  101  internal error
  130  detached by Ctrl-C, which never cancels a rollout";

const SELECTORS: &str = "\
Selectors (several are joined by `or`):
  host:NAME  unit:ID  slot:ID  pool:NAME  app:NAME  pid:N
";

/// Proves that no worker still runs the old schema.
#[derive(Debug, Parser)]
#[command(name = "unstale", version, after_help = EXIT_CODES, max_term_width = 100, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(flatten)]
    pub(crate) surroundings: Surroundings,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Parses the arguments of this process.
///
/// # Errors
/// What clap found wrong, or a request for help or the version.
pub(crate) fn read() -> Result<Cli, clap::Error> {
    Cli::try_parse()
}

/// What can be asked.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what the Python workers on this host hold, and whether it is what their source says.
    ///
    /// Needs no configuration and no coordinator, and changes nothing. Without the right to read other
    /// users' processes (root, or `CAP_SYS_PTRACE`) it covers your own.
    #[command(after_help = EXIT_CODES)]
    Inspect(InspectArgs),
    /// Run coordinator and agent in one process for this host.
    ///
    /// Needs the right to read the workers (root, or `CAP_SYS_PTRACE`, or the workers' own user) and to
    /// restart them through their supervisor.
    #[command(after_help = EXIT_CODES)]
    Up(UpArgs),
    /// Run the coordinator of a fleet.
    ///
    /// It decides what may be restarted when, and keeps what is desired. It needs no rights on any host. Several may
    /// run: one of them leads.
    #[command(after_help = EXIT_CODES)]
    Coordinator(CoordinatorRoleArgs),
    /// Run the agent of this host, for a fleet.
    ///
    /// Needs the right to read the workers (root, or `CAP_SYS_PTRACE`, or the workers' own user) and to
    /// restart them through their supervisor.
    #[command(after_help = EXIT_CODES)]
    Agent(AgentArgs),
    /// Announce a new schema version and wait until every worker has it: the deploy hook.
    #[command(after_help = EXIT_CODES)]
    Broadcast(BroadcastArgs),
    /// Show where the fleet stands and what blocks it.
    #[command(after_help = EXIT_CODES)]
    Status(StatusArgs),
    /// Tell everything known about one worker, unit or host: evidence, history, next step.
    #[command(after_help = EXIT_CODES)]
    Why(WhyArgs),
    /// Take units out of work: they take no new work, finish what they have, and stay out.
    #[command(before_help = SELECTORS, after_help = EXIT_CODES)]
    Drain(DrainArgs),
    /// Give drained units back.
    #[command(before_help = SELECTORS, after_help = EXIT_CODES)]
    Undrain(UndrainArgs),
    /// Ask for no further restarts in a rollout until it is resumed.
    #[command(after_help = EXIT_CODES)]
    Pause(HandArgs),
    /// Go on with a paused or halted rollout.
    #[command(after_help = EXIT_CODES)]
    Resume(ResumeArgs),
    /// End a rollout; what has not begun to stop is left alone.
    #[command(after_help = EXIT_CODES)]
    Abort(HandArgs),
    /// Forget a host that will not come back: it uses no budget, and nothing waits for it.
    ///
    /// One whose agent reports again is known again.
    #[command(after_help = EXIT_CODES)]
    Forget(ForgetArgs),
    /// Play the whole story on this machine with a real worker, in a minute.
    #[command(after_help = EXIT_CODES)]
    Demo(DemoArgs),
    /// Tell what this host lacks (rights, limits, supervisors) and how to set it.
    #[command(after_help = EXIT_CODES)]
    Doctor(DoctorArgs),
    /// Make, show, enrol and rotate the keys that coordinator and agents sign with.
    #[command(subcommand, after_help = EXIT_CODES)]
    Keys(KeysCommand),
    /// Look into a state directory.
    #[command(subcommand, after_help = EXIT_CODES)]
    State(StateCommand),
}

/// `unstale state …`.
#[derive(Debug, Subcommand)]
pub(crate) enum StateCommand {
    /// Print the store of a coordinator and an agent that do not run now, as JSON.
    #[command(after_help = EXIT_CODES)]
    Dump(StateDumpArgs),
}

/// `unstale keys …`.
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a key for the coordinator or for an agent, and print its public line.
    ///
    /// The first key of a role is in use at once. A further one is only kept, for a rotation: enrol it everywhere,
    /// then `use` it here, then `remove` the old one everywhere. No process needs a restart for any of these.
    #[command(after_help = EXIT_CODES)]
    New(KeysNewArgs),
    /// Show the keys of a directory.
    #[command(after_help = EXIT_CODES)]
    Show(KeysShowArgs),
    /// Believe a key: an agent's at the coordinator, the coordinator's for an agent.
    #[command(after_help = EXIT_CODES)]
    Enrol(KeysEnrolArgs),
    /// Sign with another key that was made here.
    #[command(after_help = EXIT_CODES)]
    Use(KeysIdArgs),
    /// Believe a key no longer, and delete its private half where it is here.
    #[command(after_help = EXIT_CODES)]
    Remove(KeysIdArgs),
}

impl Command {
    /// Returns the form of the answer that was asked for; text for commands that have none.
    pub(crate) fn output(&self) -> Output {
        match self {
            Self::Inspect(args) => args.output.output,
            Self::Broadcast(args) => args.output.output,
            Self::Status(args) => args.output.output,
            Self::Why(args) => args.output.output,
            Self::Drain(args) => args.output.output,
            Self::Undrain(args) => args.output.output,
            Self::Pause(args) | Self::Abort(args) => args.output.output,
            Self::Resume(args) => args.hand.output.output,
            Self::Forget(args) => args.output.output,
            Self::Doctor(args) => args.output.output,
            Self::Keys(KeysCommand::Show(args)) => args.output.output,
            Self::State(StateCommand::Dump(_)) | Self::Keys(_) => Output::Text,
            Self::Up(_) | Self::Coordinator(_) | Self::Agent(_) | Self::Demo(_) => Output::Text,
        }
    }
}

impl Command {
    /// Tells whether a person waits for the end of it, who wants to see the answer and not each step.
    pub(crate) fn is_watched(&self) -> Watched {
        match self {
            Self::Up(_) | Self::Coordinator(_) | Self::Agent(_) => Watched::ByNobody,
            _ => Watched::ByCaller,
        }
    }
}

/// Who reads what a command says while it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// It runs for long, and its log is all there is.
    ByNobody,
    /// Somebody waits for its answer.
    ByCaller,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON object with a `schema`.
    Json,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OutputArgs {
    /// Form of the answer on stdout.
    #[arg(long, value_enum, default_value_t, value_name = "FORM", env = "UNSTALE_OUTPUT", hide_env_values = true)]
    pub(crate) output: Output,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What is logged, and how anything is printed. Logs go to stderr.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct LogArgs {
    /// Log more; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Log errors only, and show no progress.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Form of log lines.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORM",
        env = "UNSTALE_LOG_FORMAT",
        hide_env_values = true
    )]
    pub(crate) log_format: LogFormat,
    /// Print without colours; so does a non-empty `NO_COLOR`.
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
}

/// Directories that the surroundings name: XDG Base Directory Specification 0.8.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Surroundings {
    #[arg(long = "__runtime-dir", env = "XDG_RUNTIME_DIR", hide = true, global = true)]
    runtime_dir: Option<PathBuf>,
    #[arg(long = "__state-home", env = "XDG_STATE_HOME", hide = true, global = true)]
    state_home: Option<PathBuf>,
    #[arg(long = "__cache-home", env = "XDG_CACHE_HOME", hide = true, global = true)]
    cache_home: Option<PathBuf>,
    #[arg(long = "__config-home", env = "XDG_CONFIG_HOME", hide = true, global = true)]
    config_home: Option<PathBuf>,
    #[arg(long = "__home", env = "HOME", hide = true, global = true)]
    home: Option<PathBuf>,
}

impl Surroundings {
    /// Returns `$XDG_RUNTIME_DIR`, where it is set to an absolute path.
    pub(crate) fn runtime_dir(&self) -> Option<PathBuf> {
        self.runtime_dir.clone().filter(|dir| dir.is_absolute())
    }

    /// Returns `$XDG_STATE_HOME`, else `~/.local/state`.
    pub(crate) fn state_home(&self) -> Option<PathBuf> {
        self.under(self.state_home.as_ref(), ".local/state")
    }

    /// Returns `$XDG_CACHE_HOME`, else `~/.cache`.
    pub(crate) fn cache_home(&self) -> Option<PathBuf> {
        self.under(self.cache_home.as_ref(), ".cache")
    }

    /// Returns `$XDG_CONFIG_HOME`, else `~/.config`.
    pub(crate) fn config_home(&self) -> Option<PathBuf> {
        self.under(self.config_home.as_ref(), ".config")
    }

    fn under(&self, stated: Option<&PathBuf>, fallback: &str) -> Option<PathBuf> {
        let usual = || self.home.as_ref().filter(|home| home.is_absolute()).map(|home| home.join(fallback));
        stated.filter(|dir| dir.is_absolute()).cloned().or_else(usual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_of_the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_lists_the_exit_codes() {
        for command in Cli::command().get_subcommands_mut().filter(|command| !command.is_hide_set()) {
            let help = command.render_long_help().to_string();
            assert!(help.contains("superseded or aborted"), "{}", command.get_name());
        }
    }

    #[test]
    fn relative_directories_of_the_surroundings_are_ignored() {
        let surroundings = Surroundings {
            runtime_dir: Some("run".into()),
            state_home: Some("".into()),
            home: Some("/home/shop".into()),
            cache_home: None,
            config_home: None,
        };
        assert_eq!(surroundings.runtime_dir(), None);
        assert_eq!(surroundings.state_home(), Some("/home/shop/.local/state".into()));
    }
}
