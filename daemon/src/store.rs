//! What must survive: a state directory with one store per role, each commit durable before it returns.
//!
//! The directory has mode 0700 and holds `lock`, `coordinator.redb` and `agent.redb`. Values are bytes
//! that their owners encode; nothing here knows what they mean. Files are trusted to be ours, not to be
//! whole: whatever a damaged one does to the library becomes an error.

use crate::report;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError, TableHandle as _};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The format that this version writes and reads.
pub(crate) const FORMAT: u32 = 1;
/// Memory that a store may keep pages in.
const CACHE_BYTES: usize = 1 << 20;
/// How often, and after which pause, the lock is tried again.
const LOCK_TRIES: u32 = 20;
const LOCK_INTERVAL: Duration = Duration::from_millis(50);
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const FORMAT_KEY: &str = "format";

/// Whose store it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// The coordinator's.
    Coordinator,
    /// The agent's.
    Agent,
}

impl Which {
    /// Returns the file's name in the state directory.
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator.redb",
            Self::Agent => "agent.redb",
        }
    }
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Another process uses the directory.
    #[error("the state directory `{}` is in use{}", path.display(), pid.map(|pid| format!(" by process {pid}")).unwrap_or_default())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process that holds it, as far as its lock file says.
        pid: Option<u32>,
    },
    /// The store was written by another version.
    #[error("`{}` has format {found}, this version knows {known}", path.display())]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// What it has.
        found: String,
        /// What this version reads.
        known: u32,
    },
    /// The file is damaged or is no store.
    #[error("`{}` is damaged or not a store: {why}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was wrong.
        why: String,
    },
    /// The directory belongs to somebody else, or others may write to it.
    #[error("the state directory `{}` is not safe: {why}", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The directory is another user's, and this process is root: what root wrote there, its owner could not read.
    #[error("the state directory `{}` belongs to uid {owner}, and this process runs as root (uid 0)", path.display())]
    NotOfRoot {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// The directory or file may not be used.
    #[error("no permission for `{}`", path.display())]
    NoPermission {
        /// The directory or file.
        path: PathBuf,
    },
    /// Nothing more can be written: the file system is full, or a quota is reached.
    #[error("there is no room left to write `{}`", path.display())]
    Full {
        /// The directory or file.
        path: PathBuf,
    },
    /// No directory was given and none can be derived.
    #[error("no state directory: neither HOME nor XDG_STATE_HOME is set")]
    NoDirectory,
    /// There is nothing to look at.
    #[error("there is no state in `{}`", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// Anything else that the system refused.
    #[error("cannot use `{}`", path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::NoPermission { path: path.to_owned() }
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path: path.to_owned() },
            _ => Self::Io { path: path.to_owned(), source },
        }
    }

    /// Returns the code that scripts see.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "state-locked",
            Self::OtherVersion { .. } => "state-other-version",
            Self::Corrupt { .. } => "state-corrupt",
            Self::Unsafe { .. } => "state-unsafe",
            Self::NotOfRoot { .. } | Self::NoPermission { .. } => "state-no-permission",
            Self::Full { .. } => "state-full",
            Self::NoDirectory | Self::Missing { .. } => "state-missing",
            Self::Io { .. } => "state-io",
        }
    }

    /// Returns what can be done.
    pub(crate) fn help(&self) -> Option<String> {
        match self {
            Self::Locked { .. } => {
                Some("use the one that runs, stop it, or give this one its own --state-dir".to_owned())
            }
            Self::OtherVersion { .. } => {
                Some("run the version that wrote it, or start afresh with another --state-dir".to_owned())
            }
            Self::Corrupt { path, .. } => Some(format!(
                "put `{0}` back from a backup, or move it away (`mv {0} {0}.bad`): the next start makes a new one, \
                 rolled-out revisions and drains are then forgotten",
                path.display()
            )),
            Self::Unsafe { path, .. } => {
                Some(format!("make it yours and private (`chmod 700 {}`), or give another --state-dir", path.display()))
            }
            Self::NotOfRoot { owner, .. } => {
                Some(format!("run it as that user (`sudo -u '#{owner}' unstale …`), or give another --state-dir"))
            }
            Self::Full { .. } => Some(
                "make room there and start it again: what was written before is whole, and it goes on there".to_owned(),
            ),
            Self::NoPermission { .. } => Some("run as root, or give a --state-dir that you may write to".to_owned()),
            Self::NoDirectory => Some("give one with --state-dir".to_owned()),
            Self::Missing { .. } => {
                Some("name the directory that `unstale up`, `coordinator` or `agent` uses with --state-dir".to_owned())
            }
            Self::Io { .. } => None,
        }
    }
}

/// A state directory that this process holds.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// Released by the kernel when the file is closed, whatever ends the process.
    _lock: File,
}

impl StateDir {
    /// Makes the directory where it is missing, checks it, and takes its lock.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::Unsafe`], [`StoreError::NotOfRoot`], [`StoreError::NoPermission`] or
    /// [`StoreError::Io`].
    pub(crate) fn take(path: &Path) -> Result<Self, StoreError> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| StoreError::io(path, error))?;
        let metadata = fs::metadata(path).map_err(|error| StoreError::io(path, error))?;
        check_owner(path, metadata.uid(), rustix::process::geteuid().as_raw())?;
        if metadata.mode() & 0o022 != 0 {
            return Err(StoreError::Unsafe { path: path.to_owned(), why: "others may write to it".to_owned() });
        }
        if metadata.mode() & 0o077 != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))
                .map_err(|error| StoreError::io(path, error))?;
        }
        let lock = Self::lock(path)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    fn lock(directory: &Path) -> Result<File, StoreError> {
        let path = directory.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(|error| StoreError::io(&path, error))?;
        match Self::patiently(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The holder may be about to write: then the message goes without its number.
                let pid = (&file).take(20).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(StoreError::Locked { path: directory.to_owned(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(StoreError::io(&path, error)),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(|error| StoreError::io(&path, error))?;
        Ok(file)
    }

    /// Takes the lock; a holder that was killed just now is still on its way out and gets a moment to be gone.
    #[expect(clippy::disallowed_methods, reason = "nothing runs yet that a moment of sleep could hold up")]
    fn patiently(file: &File) -> Result<(), TryLockError> {
        for _ in 0..LOCK_TRIES {
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_INTERVAL),
                result => return result,
            }
        }
        file.try_lock()
    }

    /// Opens a store of the directory, making it where it is missing.
    ///
    /// # Errors
    /// [`StoreError::OtherVersion`], [`StoreError::Corrupt`] or what the system refused.
    pub(crate) fn open(&self, which: Which) -> Result<Store, StoreError> {
        Store::open_file(self.path.join(which.file_name()))
    }

    /// Returns the directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Checks that the directory of `owner` is one for `own`, the user that this process runs as.
fn check_owner(path: &Path, owner: u32, own: u32) -> Result<(), StoreError> {
    let path = path.to_owned();
    match (owner, own) {
        _ if owner == own => Ok(()),
        (_, 0) => Err(StoreError::NotOfRoot { path, owner }),
        (0, _) => Err(StoreError::NoPermission { path }),
        _ => {
            let why = format!("it belongs to uid {owner}, this process runs as {own}");
            Err(StoreError::Unsafe { path, why })
        }
    }
}

/// Returns the directory that is used where none is given.
///
/// # Errors
/// [`StoreError::NoDirectory`] where neither `HOME` nor `XDG_STATE_HOME` says where.
fn default_dir(state_home: Option<PathBuf>) -> Result<PathBuf, StoreError> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/unstale"));
    }
    state_home.map(|home| home.join("unstale")).ok_or(StoreError::NoDirectory)
}

/// Returns the state directory: the flag or its environment variable, else the file, else the default.
///
/// # Errors
/// [`StoreError::NoDirectory`].
pub(crate) fn choose_dir(
    flag: Option<&Path>,
    config: &crate::config::Config,
    surroundings: &crate::cli::Surroundings,
) -> Result<PathBuf, StoreError> {
    let stated = flag.or_else(|| Some(config.state_dir.as_path()).filter(|path| !path.as_os_str().is_empty()));
    stated.map_or_else(|| default_dir(surroundings.state_home()), |path| Ok(path.to_owned()))
}

/// One change of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The table, made where it is missing.
    pub(crate) table: String,
    /// The row.
    pub(crate) key: String,
    /// What it holds from now on; `None` removes it.
    pub(crate) value: Option<Vec<u8>>,
}

/// A role's durable tables.
#[derive(Debug)]
pub(crate) struct Store {
    database: Database,
    path: PathBuf,
}

impl Store {
    fn open_file(path: PathBuf) -> Result<Self, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(|error| StoreError::io(&path, error))?;
        let opened = report::contained(|| {
            Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(FileBackend::new(file)?)
        });
        let database = match opened {
            Ok(Ok(database)) => database,
            Ok(Err(redb::DatabaseError::UpgradeRequired(found))) => {
                let found = format!("of an older library ({found})");
                return Err(StoreError::OtherVersion { path, found, known: FORMAT });
            }
            Ok(Err(redb::DatabaseError::DatabaseAlreadyOpen)) => return Err(StoreError::Locked { path, pid: None }),
            Ok(Err(error)) => return Err(Self::refused(&path, error.into())),
            Err(why) => return Err(StoreError::Corrupt { path, why }),
        };
        let store = Self { database, path };
        store.check_format()?;
        Ok(store)
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let found = self.contained(|| {
            let transaction = self.database.begin_read()?;
            if transaction.list_tables()?.next().is_none() {
                return Ok(None);
            }
            let found = match transaction.open_table(META) {
                Ok(table) => table.get(FORMAT_KEY)?.map(|value| value.value().to_vec()),
                Err(TableError::TableDoesNotExist(_)) => None,
                Err(error) => return Err(error.into()),
            };
            Ok(Some(found.unwrap_or_default()))
        })?;
        match found {
            None => self.commit(&[Change {
                table: "meta".to_owned(),
                key: FORMAT_KEY.to_owned(),
                value: Some(FORMAT.to_be_bytes().to_vec()),
            }]),
            Some(bytes) if bytes == FORMAT.to_be_bytes() => Ok(()),
            Some(bytes) => {
                let found = match <[u8; 4]>::try_from(bytes.as_slice()) {
                    Ok(number) => u32::from_be_bytes(number).to_string(),
                    Err(_) => "none".to_owned(),
                };
                Err(StoreError::OtherVersion { path: self.path.clone(), found, known: FORMAT })
            }
        }
    }

    /// Makes all changes, or none, and returns once they are on disk.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] or [`StoreError::Io`]; nothing has changed then.
    pub(crate) fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.contained(|| {
            let transaction = self.database.begin_write()?;
            for change in changes {
                let mut table = transaction.open_table(TableDefinition::<&str, &[u8]>::new(&change.table))?;
                match &change.value {
                    Some(value) => drop(table.insert(change.key.as_str(), value.as_slice())?),
                    None => drop(table.remove(change.key.as_str())?),
                }
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// Reads a whole table; one that was never written is empty.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] or [`StoreError::Io`].
    pub(crate) fn load(&self, table: &str) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
        self.contained(|| {
            let transaction = self.database.begin_read()?;
            let table = match transaction.open_table(TableDefinition::<&str, &[u8]>::new(table)) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => return Ok(BTreeMap::new()),
                Err(error) => return Err(error.into()),
            };
            let mut rows = BTreeMap::new();
            for row in table.iter()? {
                let (key, value) = row?;
                rows.insert(key.value().to_owned(), value.value().to_vec());
            }
            Ok(rows)
        })
    }

    /// Returns everything as JSON: tables by name, rows by key; values that are no JSON as text in hexadecimal.
    ///
    /// # Errors
    /// As [`Store::load`].
    pub(crate) fn dump(&self) -> Result<serde_json::Value, StoreError> {
        let names: Vec<String> = self.contained(|| {
            let transaction = self.database.begin_read()?;
            Ok(transaction.list_tables()?.map(|table| table.name().to_owned()).collect())
        })?;
        let mut tables = serde_json::Map::new();
        for name in names {
            let rows = self.load(&name)?.into_iter();
            let rows = rows.map(|(key, value)| (key, show(&value))).collect();
            tables.insert(name, serde_json::Value::Object(rows));
        }
        Ok(serde_json::Value::Object(tables))
    }

    /// Returns the error for a row that makes no sense to its owner.
    pub(crate) fn corrupt(&self, why: &str) -> StoreError {
        StoreError::Corrupt { path: self.path.clone(), why: why.to_owned() }
    }

    fn contained<T>(&self, run: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, StoreError> {
        match report::contained(run) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Self::refused(&self.path, error)),
            Err(why) => Err(StoreError::Corrupt { path: self.path.clone(), why }),
        }
    }

    fn refused(path: &Path, error: redb::Error) -> StoreError {
        match error {
            redb::Error::Io(source) => match source.kind() {
                // What the library says of a file that is not one of its own.
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    StoreError::Corrupt { path: path.to_owned(), why: source.to_string() }
                }
                _ => StoreError::io(path, source),
            },
            error => StoreError::Corrupt { path: path.to_owned(), why: error.to_string() },
        }
    }
}

fn show(value: &[u8]) -> serde_json::Value {
    serde_json::from_slice(value).unwrap_or_else(|_| {
        let hex = value.iter().fold(String::from("hex:"), |mut text, byte| {
            // Writing to a String cannot fail.
            write!(text, "{byte:02x}").unwrap_or_default();
            text
        });
        serde_json::Value::String(hex)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(table: &str, key: &str, value: &str) -> Change {
        Change { table: table.into(), key: key.into(), value: Some(value.into()) }
    }

    fn taken() -> (tempfile::TempDir, StateDir) {
        let parent = tempfile::tempdir().unwrap();
        let state = StateDir::take(&parent.path().join("state")).unwrap();
        (parent, state)
    }

    #[test]
    fn what_was_committed_is_there_after_opening_again() {
        let (_parent, state) = taken();
        let store = state.open(Which::Coordinator).unwrap();
        store.commit(&[put("rollouts", "shop@1", "{}"), put("epoch", "now", "7")]).unwrap();
        let remove = Change { table: "rollouts".into(), key: "shop@1".into(), value: None };
        store.commit(&[put("rollouts", "shop@2", "[]"), remove]).unwrap();
        drop(store);
        let store = state.open(Which::Coordinator).unwrap();
        assert_eq!(store.load("rollouts").unwrap(), BTreeMap::from([("shop@2".into(), b"[]".to_vec())]));
        assert_eq!(store.load("never").unwrap(), BTreeMap::new());
    }

    #[test]
    fn both_roles_share_a_directory_and_not_a_store() {
        let (_parent, state) = taken();
        let coordinator = state.open(Which::Coordinator).unwrap();
        let agent = state.open(Which::Agent).unwrap();
        coordinator.commit(&[put("t", "k", "1")]).unwrap();
        assert!(agent.load("t").unwrap().is_empty());
    }

    #[test]
    fn a_second_holder_is_told_who_the_first_one_is() {
        let (_parent, state) = taken();
        match StateDir::take(state.path()) {
            Err(StoreError::Locked { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_store_of_another_version_is_refused_and_left_alone() {
        let (_parent, state) = taken();
        let store = state.open(Which::Agent).unwrap();
        let newer = Change { table: "meta".into(), key: "format".into(), value: Some(9u32.to_be_bytes().to_vec()) };
        store.commit(&[newer]).unwrap();
        drop(store);
        match state.open(Which::Agent) {
            Err(StoreError::OtherVersion { found, known, .. }) => assert_eq!((found.as_str(), known), ("9", FORMAT)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn damaged_files_are_errors_and_never_panics() {
        let check = |what: &str, damage: &dyn Fn(Vec<u8>) -> Vec<u8>| {
            let (_parent, state) = taken();
            let store = state.open(Which::Coordinator).unwrap();
            let rows: Vec<_> = (0..2_000).map(|row| put("rows", &row.to_string(), &"x".repeat(200))).collect();
            store.commit(&rows).unwrap();
            drop(store);
            let path = state.path().join("coordinator.redb");
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, damage(bytes)).unwrap();
            let result = state.open(Which::Coordinator).and_then(|store| store.load("rows"));
            assert!(
                matches!(result, Err(StoreError::Corrupt { .. } | StoreError::OtherVersion { .. })),
                "{what}: {result:?}"
            );
        };
        check("garbage", &|bytes| vec![0xa5; bytes.len()]);
        check("short garbage", &|_| b"not a store".to_vec());
        check("text", &|_| b"hello ".repeat(10_000));
        check("truncated", &|bytes| bytes[..bytes.len() / 3].to_vec());
        check("truncated header", &|bytes| bytes[..100].to_vec());
        check("pages overwritten", &|mut bytes| {
            let len = bytes.len();
            bytes[4096..len].fill(0xff);
            bytes
        });
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(StateDir::take(parent.path()), Err(StoreError::Unsafe { .. })));
    }

    #[test]
    fn a_directory_of_another_user_is_refused_with_what_to_do() {
        let check = |owner: u32, own: u32, said: &str, hint: &str| {
            let error = check_owner(Path::new("/var/lib/unstale"), owner, own).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
            assert!(error.help().unwrap().contains(hint), "{:?}", error.help());
        };
        check(998, 0, "belongs to uid 998, and this process runs as root (uid 0)", "`sudo -u '#998' unstale …`");
        check(0, 998, "no permission", "run as root");
        check(997, 998, "belongs to uid 997, this process runs as 998", "another --state-dir");
        check_owner(Path::new("/var/lib/unstale"), 998, 998).unwrap();
    }

    #[test]
    fn the_directory_is_private() {
        let (_parent, state) = taken();
        state.open(Which::Agent).unwrap();
        assert_eq!(fs::metadata(state.path()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(state.path().join("agent.redb")).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_dump_shows_json_as_json() {
        let (_parent, state) = taken();
        let store = state.open(Which::Agent).unwrap();
        store.commit(&[put("t", "a", r#"{"x":1}"#), put("t", "b", "\u{1}")]).unwrap();
        let dump = store.dump().unwrap();
        assert_eq!(dump["t"], serde_json::json!({"a": {"x": 1}, "b": "hex:01"}));
    }
}
