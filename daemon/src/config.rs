//! The configuration file: one TOML file, checked as it is read.
//!
//! A flag exists only for what differs per call and wins over its environment variable, over the file,
//! over the default. `deploy/unstale.toml` names every key with its default; a test holds it to that.
//! Nothing here is merged, included or reloaded.

use crate::bus::address::BusUrl;
use crate::bus::envelope::FleetName;
use crate::cli::Span;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use unstale_agent::restart::UnitConfig;
use unstale_protocol::coordinator::MaxUnavailable;
use unstale_protocol::ids::{AppName, HostName, PoolName};

/// Where the file lies unless `--config` says otherwise.
pub(crate) const DEFAULT_PATH: &str = "/etc/unstale/unstale.toml";
/// Longest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Directory for state; empty for the default of the user that runs it.
    pub(crate) state_dir: PathBuf,
    /// What rests with the coordinator.
    pub(crate) coordinator: Coordinator,
    /// What rests with the agent of this host.
    pub(crate) agent: Agent,
    /// What coordinator and agents talk over.
    pub(crate) bus: Bus,
    /// Where the control API listens.
    pub(crate) http: Http,
    /// Apps by name.
    pub(crate) apps: BTreeMap<AppName, App>,
    /// Pools by name, where the usual ones do not fit.
    pub(crate) pools: BTreeMap<PoolName, Pool>,
    /// What brings units back that no supervisor watches, and their pre-flight.
    pub(crate) units: Vec<UnitConfig>,
}

/// `[coordinator]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Coordinator {
    /// How many units of a pool may be unavailable at once; empty for 1 or 10 %, whichever is larger.
    #[serde(with = "optional")]
    pub(crate) max_unavailable: Option<MaxUnavailable>,
    /// Hosts that must report before anything converges, beside those that were heard.
    pub(crate) expected_hosts: Vec<HostName>,
}

/// `[agent]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Agent {
    /// The host's name; empty for the machine's.
    #[serde(with = "optional")]
    pub(crate) host: Option<HostName>,
    /// What the agent may do on this host.
    pub(crate) allow: Vec<Act>,
    /// Look only at workers whose code lies below one of these; empty for all.
    pub(crate) roots: Vec<PathBuf>,
    /// How often the list of processes is read.
    pub(crate) scan_interval: Span,
    /// How often the memory of every worker is read again.
    pub(crate) read_interval: Span,
    /// How long a unit may take to come back.
    pub(crate) start_timeout: Span,
    /// How long a unit must have been up before it is verified.
    pub(crate) survival_window: Span,
}

/// Something the agent may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Act {
    /// Remove bytecode that is proven stale.
    Purge,
    /// Ask a supervisor to start or stop a unit.
    Supervisor,
    /// Send a signal to a unit's main process.
    Signal,
}

/// `[bus]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Bus {
    /// The transport.
    pub(crate) url: BusUrl,
    /// The fleet's name.
    pub(crate) fleet: FleetName,
    /// The directory of keys; empty for the default of the user that runs it.
    pub(crate) keys: PathBuf,
    /// A file with the broker's password, where the URL has none.
    pub(crate) password_file: PathBuf,
    /// As whom Sentinels are asked, and a file with that password: they have users of their own. Empty for none.
    pub(crate) sentinel_user: String,
    pub(crate) sentinel_password_file: PathBuf,
    /// Certificates of the authority that the broker's certificate comes from; empty for the system's.
    pub(crate) ca_file: PathBuf,
    /// This client's certificate and its key; empty for none.
    pub(crate) cert_file: PathBuf,
    pub(crate) key_file: PathBuf,
}

/// `[http]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Http {
    /// The Unix socket of the control API; empty for the default of the user that runs it.
    pub(crate) socket: PathBuf,
}

/// `[apps.NAME]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct App {
    /// Directories that hold its code on this host: workers with code below them are the app's.
    pub(crate) roots: Vec<PathBuf>,
    /// Users whose workers may claim to be the app's; empty: root, the owner of the app's root, and services.
    pub(crate) users: Vec<String>,
    /// Slots that do not count: they are left out and recorded; `*` stands for any text.
    pub(crate) ignore: Vec<String>,
}

/// `[pools.NAME]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Pool {
    /// Slots in the pool; `*` stands for any text.
    pub(crate) slots: Vec<String>,
    /// How many of its units may be unavailable at once; empty for the coordinator's.
    #[serde(with = "optional")]
    pub(crate) max_unavailable: Option<MaxUnavailable>,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            host: None,
            allow: vec![Act::Purge, Act::Supervisor, Act::Signal],
            roots: Vec::new(),
            scan_interval: Span::seconds(2),
            read_interval: Span::seconds(60),
            start_timeout: Span::seconds(60),
            survival_window: Span::seconds(10),
        }
    }
}

impl Default for Bus {
    fn default() -> Self {
        Self {
            url: BusUrl::Embedded,
            fleet: FleetName::default(),
            keys: PathBuf::new(),
            password_file: PathBuf::new(),
            sentinel_user: String::new(),
            sentinel_password_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
        }
    }
}

/// A value that TOML, which has no null, writes as empty text where it is not set.
mod optional {
    use serde::{
        Deserialize as _, Deserializer, Serialize, Serializer, de::DeserializeOwned, de::IntoDeserializer as _,
    };

    #[expect(clippy::ref_option, reason = "the signature that serde asks for")]
    pub(super) fn serialize<T: Serialize, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => value.serialize(serializer),
            None => serializer.serialize_str(""),
        }
    }

    pub(super) fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() { Ok(None) } else { T::deserialize(text.into_deserializer()).map(Some) }
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file that was named is not there.
    #[error("there is no configuration file `{}`", .0.display())]
    Missing(PathBuf),
    /// The file cannot be read.
    #[error("cannot read the configuration `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is too long to be a configuration, or no regular file.
    #[error("`{}` is no configuration: {why}", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        why: &'static str,
    },
    /// The text is wrong; the message shows where.
    #[error("the configuration `{}` is wrong\n{why}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Line, column and what was expected.
        why: String,
    },
    /// It names programs to run, and somebody else could have written it.
    #[error("the configuration `{}` has `[[units]]`, which name programs to run, but {why}", path.display())]
    Unsafe {
        /// The file.
        path: PathBuf,
        /// Who could have written it.
        why: String,
    },
}

impl ConfigError {
    /// Returns the code that scripts see.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) | Self::Io { .. } | Self::NotAFile { .. } => "config-unreadable",
            Self::Wrong { .. } => "config-wrong",
            Self::Unsafe { .. } => "config-unsafe",
        }
    }

    /// Returns what can be done.
    pub(crate) fn help(&self) -> Option<String> {
        match self {
            Self::Missing(_) => Some("leave --config and UNSTALE_CONFIG out to run with the defaults".to_owned()),
            Self::Unsafe { path, .. } => {
                Some(format!("`chown root {0} && chmod go-w {0}`, or leave `[[units]]` out", path.display()))
            }
            Self::Wrong { .. } => Some("`deploy/unstale.toml` names every key with its default".to_owned()),
            Self::Io { .. } | Self::NotAFile { .. } => None,
        }
    }
}

impl Config {
    /// Reads the file that was named, else the usual one, else returns the defaults.
    ///
    /// # Errors
    /// [`ConfigError`]; a usual file that is not there is none.
    pub(crate) fn read(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return if named.is_some() { Err(ConfigError::Missing(path.to_owned())) } else { Ok(Self::default()) };
            }
            Err(source) => return Err(ConfigError::Io { path: path.to_owned(), source }),
        };
        Self::read_file(path, file)
    }

    fn read_file(path: &Path, file: File) -> Result<Self, ConfigError> {
        let io = |source| ConfigError::Io { path: path.to_owned(), source };
        // Of the file that was opened, not of whatever bears its name by now.
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(ConfigError::NotAFile { path: path.to_owned(), why: "not a regular file" });
        }
        let mut text = String::new();
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(io)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(ConfigError::NotAFile { path: path.to_owned(), why: "longer than 1 MiB" });
        }
        let config = Self::parse(&text).map_err(|why| ConfigError::Wrong { path: path.to_owned(), why })?;
        if !config.units.is_empty() {
            let own = rustix::process::geteuid().as_raw();
            let why = if metadata.uid() != 0 && metadata.uid() != own {
                Some(format!("it belongs to uid {}", metadata.uid()))
            } else if metadata.mode() & 0o022 != 0 {
                Some("its group or everybody may write to it".to_owned())
            } else {
                None
            };
            if let Some(why) = why {
                return Err(ConfigError::Unsafe { path: path.to_owned(), why });
            }
        }
        Ok(config)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| shown(&error, text))?;
        config.check()?;
        Ok(config)
    }

    /// Checks what the types cannot say.
    fn check(&self) -> Result<(), String> {
        let ranges = [
            ("agent.scan_interval", self.agent.scan_interval, 500, 60_000),
            ("agent.read_interval", self.agent.read_interval, 5_000, 3_600_000),
            ("agent.start_timeout", self.agent.start_timeout, 1_000, 3_600_000),
            ("agent.survival_window", self.agent.survival_window, 1_000, 600_000),
        ];
        for (key, span, least, most) in ranges {
            if !(least..=most).contains(&span.duration().as_millis()) {
                return Err(format!("`{key} = \"{span}\"` is out of range: {least} ms to {most} ms"));
            }
        }
        for (name, app) in &self.apps {
            if app.roots.iter().any(|root| !root.is_absolute()) {
                return Err(format!("`apps.{name}.roots` must be absolute paths"));
            }
        }
        if self.agent.roots.iter().any(|root| !root.is_absolute()) {
            return Err("`agent.roots` must be absolute paths".to_owned());
        }
        for unit in &self.units {
            if unit.slot.is_none() && unit.command.is_empty() {
                return Err("every `[[units]]` needs a `slot` or a `command`".to_owned());
            }
            for (key, words) in [("start", &unit.start), ("preflight", &unit.preflight)] {
                if let Some(program) = words.first().filter(|word| !word.starts_with('/')) {
                    return Err(format!(
                        "`{key}` of `[[units]]` must begin with an absolute path, not with {program:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Says where the file is wrong and how. The line itself is not quoted: it may hold a broker's password.
fn shown(error: &toml::de::Error, text: &str) -> String {
    let message = without_login(error.message());
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else { return message };
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    format!("line {line}, column {column}: {message}")
}

/// Takes out what stands before an `@` in quotes: a URL in the wrong place is repeated with its password.
fn without_login(message: &str) -> String {
    let Some((before, rest)) = message.rsplit_once('@') else { return message.to_owned() };
    // A password may hold quotes and further `@`, so all of it goes from the first quote to the last `@`.
    let kept = before.find(['"', '`']).map_or("", |quote| &before[..=quote]);
    format!("{kept}[redacted]@{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const REFERENCE: &str = include_str!("../../deploy/unstale.toml");

    /// Turns `# key = value` and `# [table]` into the line without the mark, as people do.
    fn uncommented(text: &str) -> String {
        let is_example = |line: &&str| {
            line.starts_with("# [")
                || line.split_once(" = ").is_some_and(|(key, _)| {
                    key.strip_prefix("# ")
                        .is_some_and(|key| key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
                })
        };
        text.lines().map(|line| if is_example(&line) { &line[2..] } else { line }).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_reference_is_the_default() {
        let reference: toml::Table = toml::from_str(REFERENCE).unwrap();
        let mut default = toml::Table::try_from(Config::default()).unwrap();
        // These are empty by default, and their examples are comments.
        for key in ["apps", "pools", "units"] {
            default.remove(key);
        }
        assert_eq!(reference, default);
    }

    #[test]
    fn the_examples_of_the_reference_name_every_key() {
        let text = uncommented(REFERENCE);
        Config::parse(&text).unwrap();
        let table: toml::Table = toml::from_str(&text).unwrap();
        let unit = UnitConfig {
            slot: Some(String::new()),
            user: Some(String::new()),
            directory: Some(PathBuf::new()),
            ..UnitConfig::default()
        };
        let keys = |value: &toml::Value| value.as_table().unwrap().keys().cloned().collect::<Vec<_>>();
        let default = |value: toml::Table| value.keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&table["apps"]["shop"]), default(toml::Table::try_from(App::default()).unwrap()));
        assert_eq!(keys(&table["pools"]["shop-web"]), default(toml::Table::try_from(Pool::default()).unwrap()));
        assert_eq!(keys(&table["units"][0]), default(toml::Table::try_from(unit).unwrap()));
    }

    #[test]
    fn mistakes_are_shown_with_their_line() {
        let check = |text: &str, part: &str| {
            let why = Config::parse(text).unwrap_err();
            assert!(why.contains(part), "{text}: {why}");
        };
        check("[agent]\nscan_intervall = \"2s\"", "scan_intervall");
        check("[agnet]", "agnet");
        check("[agent]\nscan_interval = \"2\"", "not a length of time");
        check("[agent]\nscan_interval = \"0\"", "out of range");
        check("[agent]\nallow = [\"kill\"]", "kill");
        check("[coordinator]\nmax_unavailable = \"0%\"", "not a number of units");
        check("[apps.shop]\nroots = [\"app\"]", "absolute");
        check("[apps.\"a b\"]", "a b");
        check("[[units]]\nstart = [\"/bin/x\"]", "slot");
        check(
            "[[units]]\nslot = \"x\"\nstart = [\"sleep\", \"1\"]",
            "`start` of `[[units]]` must begin with an absolute path, not with \"sleep\"",
        );
        check("[bus]\nurl = \"kafka://x\"", "kafka");
        check("[agent]\nscan_intervall = \"2s\"", "line 2, column 1: ");
        check("# \u{e4}\n[agent]\nallow = [\"purge\", \"kill\"]", "line 3, column ");
    }

    #[test]
    fn mistakes_are_shown_without_a_password() {
        let check = |text: &str, part: &str| {
            let why = Config::parse(text).unwrap_err();
            assert!(why.contains(part) && !why.contains("s3"), "{text}: {why}");
        };
        check("[bus]\nurl = \"redis://u:s3cret@h:notaport\"", "line 2, column 7: a host is written HOST");
        check("[bus]\nurl = \"redis://u:s3cret@h\nfleet = \"x\"", "line 2, ");
        check("[bus]\nurl = redis://u:s3cret@h", "line 2, ");
        check("[bus]\nurll = \"redis://u:s3cret@h\"", "urll");
        check("bus = \"redis://u:s3cret@h\"", "line 1, column 7: invalid type: string \"[redacted]@h\"");
        check("bus = 'redis://u:s3\"cr@et`s3@h'", "[redacted]@h");
        check("[bus]\nfleet = \"redis://u:s3cret@h\"", "line 2, column 9: the name \"[redacted]@h\"");
        check("[bus]\n\"redis://u:s3cret@h\" = \"\"", "unknown field `[redacted]@h`");
    }

    #[test]
    fn a_file_with_commands_must_be_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("unstale.toml");
        std::fs::write(&path, "[[units]]\nslot = \"celery/none/*\"\nstart = [\"/bin/true\"]\n").unwrap();
        let set = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        set(0o644);
        assert!(Config::read(Some(&path)).is_ok());
        for mode in [0o664, 0o646] {
            set(mode);
            assert!(matches!(Config::read(Some(&path)), Err(ConfigError::Unsafe { .. })), "{mode:o}");
        }
        std::fs::write(&path, "[agent]\n").unwrap();
        assert!(Config::read(Some(&path)).is_ok(), "without commands anybody may write it");
    }

    #[test]
    fn a_named_file_must_exist() {
        assert!(matches!(Config::read(Some(Path::new("/nowhere/x.toml"))), Err(ConfigError::Missing(_))));
        assert!(matches!(Config::read(Some(Path::new("/"))), Err(ConfigError::NotAFile { .. })));
    }
}
