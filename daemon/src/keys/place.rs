//! The directory of keys: what is in it, and the four changes that a rotation consists of.
//!
//! `coordinator.key` and `agent.key` are the private keys in use, `ROLE-ID.key` those that are not (yet, or any
//! more); `coordinators.pub` and `agents.pub` are the keyrings. A key made here is enrolled here, too.

use super::{KeyError, KeyId, PrivateKey, PublicKey, Ring, Role};
use crate::cli::Surroundings;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Files that are looked at in one directory.
const FILES_MAX: usize = 1_000;

/// A directory of keys.
#[derive(Clone, Debug)]
pub(crate) struct KeyPlace(PathBuf);

/// What whoever changes the directory holds. Its own file: the others are replaced by each change.
const LOCK: &str = ".lock";

/// What a change of the files, or of who may read them, changes.
pub(crate) type Stamp = Vec<Option<(u64, i64, i64, u64)>>;

impl KeyPlace {
    /// Returns the stated directory, else the usual one of the user.
    ///
    /// # Errors
    /// [`KeyError::NoPlace`].
    pub(crate) fn choose(stated: Option<&Path>, surroundings: &Surroundings) -> Result<Self, KeyError> {
        if let Some(stated) = stated.filter(|path| !path.as_os_str().is_empty()) {
            return Ok(Self(stated.to_owned()));
        }
        if rustix::process::geteuid().is_root() {
            return Ok(Self(PathBuf::from("/etc/unstale/keys")));
        }
        surroundings.config_home().map(|home| Self(home.join("unstale/keys"))).ok_or(KeyError::NoPlace)
    }

    /// Returns the directory.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn current(&self, role: &Role) -> PathBuf {
        self.0.join(format!("{}.key", role.word()))
    }

    fn spare(&self, role: &Role, id: &KeyId) -> PathBuf {
        self.0.join(format!("{}-{id}.key", role.word()))
    }

    /// Returns the keyring of the coordinators.
    pub(crate) fn coordinators(&self) -> PathBuf {
        self.0.join("coordinators.pub")
    }

    /// Returns the keyring of the agents.
    pub(crate) fn agents(&self) -> PathBuf {
        self.0.join("agents.pub")
    }

    fn ring_of(&self, role: &Role) -> PathBuf {
        match role {
            Role::Coordinator => self.coordinators(),
            Role::Agent(_) => self.agents(),
        }
    }

    /// Reads the private key in use for a role.
    ///
    /// # Errors
    /// [`KeyError`]; a key of another role or host is one.
    pub(crate) fn own(&self, role: &Role) -> Result<PrivateKey, KeyError> {
        let path = self.current(role);
        let key = PrivateKey::read(&path).map_err(|error| match error {
            KeyError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                let make = match role {
                    Role::Coordinator => format!("unstale keys new coordinator --keys {}", self.0.display()),
                    Role::Agent(host) => format!("unstale keys new agent --host {host} --keys {}", self.0.display()),
                };
                KeyError::Missing { path: path.clone(), make }
            }
            error => error,
        })?;
        if key.role() == role {
            Ok(key)
        } else {
            Err(KeyError::WrongRole { path, found: key.role().clone(), wanted: role.clone() })
        }
    }

    /// Reads the keyring of the coordinators.
    ///
    /// # Errors
    /// [`KeyError`].
    pub(crate) fn read_coordinators(&self) -> Result<Ring, KeyError> {
        Ring::read(&self.coordinators(), "coordinator")
    }

    /// Reads the keyring of the agents.
    ///
    /// # Errors
    /// [`KeyError`].
    pub(crate) fn read_agents(&self) -> Result<Ring, KeyError> {
        Ring::read(&self.agents(), "agent")
    }

    /// Makes a key and enrols it here. The first of its role is in use at once, a later one when it is told to be.
    /// Tells whether it is in use.
    ///
    /// # Errors
    /// [`KeyError`].
    pub(crate) fn make(&self, role: &Role) -> Result<(PublicKey, bool), KeyError> {
        self.create()?;
        let _lock = self.lock()?;
        let key = PrivateKey::generate(role.clone())
            .map_err(|source| KeyError::Io { path: "/dev/urandom".into(), source })?;
        let public = key.public();
        self.add(&public)?;
        let current = self.current(role);
        let is_first = !current.try_exists().map_err(|source| KeyError::Io { path: current.clone(), source })?;
        key.write(&if is_first { current } else { self.spare(role, &public.id()) })?;
        Ok((public, is_first))
    }

    /// Adds a public key to the keyring of its role; tells whether it is new.
    ///
    /// # Errors
    /// [`KeyError`].
    pub(crate) fn enrol(&self, key: &PublicKey) -> Result<bool, KeyError> {
        self.create()?;
        let _lock = self.lock()?;
        self.add(key)
    }

    fn create(&self) -> Result<(), KeyError> {
        // Only the directory itself is private: what lies beside it may be for others, such as the coordinator's user.
        let parents = self.0.parent().map_or(Ok(()), fs::create_dir_all);
        parents.map_err(|source| KeyError::Io { path: self.0.clone(), source })?;
        let created = DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        created.map_err(|source| KeyError::Io { path: self.0.clone(), source })
    }

    /// Waits until nobody else changes the directory, who otherwise would write back what was read before; for as long as
    /// the file is open. None where there is no directory: then there is nothing to change.
    fn lock(&self) -> Result<Option<File>, KeyError> {
        let path = self.0.join(LOCK);
        // For writing: NFS locks no other files.
        let file = match OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(KeyError::Io { path, source }),
        };
        match rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive)) {
            Ok(()) => Ok(Some(file)),
            Err(error) => Err(KeyError::Io { path, source: error.into() }),
        }
    }

    /// Adds a key while the lock is held.
    fn add(&self, key: &PublicKey) -> Result<bool, KeyError> {
        let path = self.ring_of(&key.role);
        let mut ring = Ring::read(&path, key.role.word())?;
        let is_new = ring.add(key.clone());
        ring.write(&path)?;
        Ok(is_new)
    }

    /// Puts a private key that is not in use in the place of the one that is.
    ///
    /// # Errors
    /// [`KeyError`].
    pub(crate) fn put_to_use(&self, id: &KeyId) -> Result<PublicKey, KeyError> {
        let _lock = self.lock()?;
        let privates = self.privates()?;
        let find =
            |is_current| privates.iter().find(|(_, key, current)| *current == is_current && key.public().id() == *id);
        if let Some((_, key, _)) = find(true) {
            return Ok(key.public());
        }
        let Some((path, key, _)) = find(false) else {
            return Err(KeyError::NoSuchKey { id: id.clone(), path: self.0.clone() });
        };
        let io = |source| KeyError::Io { path: path.clone(), source };
        let current = self.current(key.role());
        if let Ok(old) = PrivateKey::read(&current) {
            // A second name first: whatever happens, no key is lost and one is in use.
            fs::hard_link(&current, self.spare(old.role(), &old.public().id())).map_err(io)?;
        }
        fs::rename(path, &current).map_err(io)?;
        Ok(key.public())
    }

    /// Removes a key from the keyrings, and its private half where it is here and not in use.
    ///
    /// # Errors
    /// [`KeyError`].
    pub(crate) fn remove(&self, id: &KeyId) -> Result<(), KeyError> {
        let _lock = self.lock()?;
        let mut found = false;
        for (path, key, is_current) in self.privates()? {
            if key.public().id() != *id {
                continue;
            }
            if is_current {
                return Err(KeyError::InUse(id.clone()));
            }
            fs::remove_file(&path).map_err(|source| KeyError::Io { path, source })?;
            found = true;
        }
        for (path, mut ring) in [(self.coordinators(), self.read_coordinators()?), (self.agents(), self.read_agents()?)]
        {
            if ring.remove(id) {
                ring.write(&path)?;
                found = true;
            }
        }
        if found { Ok(()) } else { Err(KeyError::NoSuchKey { id: id.clone(), path: self.0.clone() }) }
    }

    /// Returns all private keys, with their files and whether they are in use.
    ///
    /// # Errors
    /// [`KeyError`].
    pub(crate) fn privates(&self) -> Result<Vec<(PathBuf, PrivateKey, bool)>, KeyError> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(KeyError::Io { path: self.0.clone(), source }),
        };
        let mut paths: Vec<PathBuf> = entries
            .take(FILES_MAX)
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "key"))
            .collect();
        paths.sort();
        let mut keys = Vec::new();
        for path in paths {
            let key = PrivateKey::read(&path)?;
            let is_current = path == self.current(key.role());
            keys.push((path, key, is_current));
        }
        Ok(keys)
    }

    /// Returns what changes whenever one of the files does that a role reads, or its owner or mode: what could not be read
    /// for these is read once they are right. Any change of a file changes its ctime (inode(7)).
    pub(crate) fn stamp(&self, role: &Role) -> Stamp {
        [self.current(role), self.coordinators(), self.agents()]
            .iter()
            .map(|path| {
                let metadata = fs::metadata(path).ok()?;
                Some((metadata.ino(), metadata.ctime(), metadata.ctime_nsec(), metadata.size()))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use unstale_protocol::ids::HostName;

    fn place() -> (tempfile::TempDir, KeyPlace) {
        let directory = tempfile::tempdir().unwrap();
        let place = KeyPlace(directory.path().join("keys"));
        (directory, place)
    }

    fn agent(name: &str) -> Role {
        Role::Agent(HostName::new(name).unwrap())
    }

    #[test]
    fn the_first_key_is_in_use_and_enrolled_at_once() {
        let (_directory, place) = place();
        let (key, is_in_use) = place.make(&Role::Coordinator).unwrap();
        assert!(is_in_use);
        assert_eq!(place.own(&Role::Coordinator).unwrap().public(), key);
        assert_eq!(place.read_coordinators().unwrap().find(&key.id()), Some(&key));
    }

    #[test]
    fn only_the_directory_of_the_keys_is_private_and_not_those_above_it() {
        let directory = tempfile::tempdir().unwrap();
        let usual = directory.path().join("usual");
        fs::create_dir(&usual).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        for enrolled in [false, true] {
            let above = directory.path().join(format!("{enrolled}/unstale"));
            let place = KeyPlace(above.join("keys"));
            if enrolled {
                place.enrol(&PrivateKey::generate(Role::Coordinator).unwrap().public()).unwrap();
            } else {
                place.make(&Role::Coordinator).unwrap();
            }
            let modes = [place.path(), &above, above.parent().unwrap()].map(mode);
            assert_eq!(modes, [0o700, mode(&usual), mode(&usual)]);
        }
        assert_ne!(mode(&usual), 0o700, "this test needs a umask that lets others in");
    }

    #[test]
    fn a_rotation_loses_no_key_until_it_is_told_to() {
        let (_directory, place) = place();
        let (old, _) = place.make(&Role::Coordinator).unwrap();
        let before = place.stamp(&Role::Coordinator);
        let (new, is_in_use) = place.make(&Role::Coordinator).unwrap();
        assert!(!is_in_use);
        assert_eq!(place.own(&Role::Coordinator).unwrap().public(), old);
        assert!(matches!(place.remove(&old.id()), Err(KeyError::InUse(_))));
        assert_eq!(place.put_to_use(&new.id()).unwrap(), new);
        assert_eq!(place.put_to_use(&new.id()).unwrap(), new, "twice is once");
        assert_eq!(place.own(&Role::Coordinator).unwrap().public(), new);
        assert_eq!(place.privates().unwrap().len(), 2);
        place.remove(&old.id()).unwrap();
        assert!(place.read_coordinators().unwrap().find(&old.id()).is_none());
        assert!(matches!(place.remove(&old.id()), Err(KeyError::NoSuchKey { .. })));
        assert_ne!(before, place.stamp(&Role::Coordinator));
    }

    #[test]
    fn a_file_whose_mode_changes_is_read_again() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_directory, place) = place();
        place.make(&Role::Coordinator).unwrap();
        let path = place.current(&Role::Coordinator);
        let mut mode = 0o600;
        let before = place.stamp(&Role::Coordinator);
        assert_eq!(place.stamp(&Role::Coordinator), before);
        // The clock of the file system has steps: it may stand where it stood.
        for _ in 0..1_000_000 {
            mode ^= 0o040;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            if place.stamp(&Role::Coordinator) != before {
                return;
            }
        }
        panic!("{before:?}");
    }

    #[test]
    fn keys_that_are_enrolled_at_once_are_all_there() {
        let (_directory, place) = place();
        let enrol = |thread: usize| {
            for number in 0..8 {
                let key = PrivateKey::generate(agent(&format!("web-{thread}-{number}"))).unwrap();
                assert!(place.enrol(&key.public()).unwrap());
            }
        };
        std::thread::scope(|scope| {
            for thread in 0..8 {
                scope.spawn(move || enrol(thread));
            }
        });
        assert_eq!(place.read_agents().unwrap().keys().count(), 64);
    }

    #[test]
    fn where_there_is_no_directory_there_is_no_key() {
        let (_directory, place) = place();
        let id = PrivateKey::generate(Role::Coordinator).unwrap().public().id();
        assert!(matches!(place.put_to_use(&id), Err(KeyError::NoSuchKey { .. })));
        assert!(matches!(place.remove(&id), Err(KeyError::NoSuchKey { .. })));
        assert!(!place.path().exists());
    }

    #[test]
    fn a_key_of_another_host_or_role_is_not_used() {
        let (_directory, place) = place();
        let missing = place.own(&agent("web-1")).unwrap_err();
        assert!(missing.help().unwrap().contains("keys new agent --host web-1"), "{missing}");
        place.make(&agent("web-1")).unwrap();
        assert!(matches!(place.own(&agent("web-2")), Err(KeyError::WrongRole { .. })));
        fs::rename(place.0.join("agent.key"), place.0.join("coordinator.key")).unwrap();
        assert!(matches!(place.own(&Role::Coordinator), Err(KeyError::WrongRole { .. })));
    }
}
