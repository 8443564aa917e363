//! A keyring: the public keys of one role, one line each.

use super::{KeyError, KeyId, PublicKey};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Longest keyring: 10,000 hosts with two keys each, and room.
const FILE_MAX_BYTES: u64 = 8 << 20;
const HEAD: &str = "# Public keys, one a line. Written by `unstale keys`; may be written by other tools, too.\n";

/// The public keys of one role by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ring(BTreeMap<KeyId, PublicKey>);

impl Ring {
    /// Reads a keyring; one that is not there is empty.
    ///
    /// # Errors
    /// [`KeyError`]: where others could write to it, or a line is no key of this role.
    pub(crate) fn read(path: &Path, role: &'static str) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io { path: path.to_owned(), source };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(io(error)),
        };
        let metadata = file.metadata().map_err(io)?;
        let own = rustix::process::geteuid().as_raw();
        let wrong = |line, why: String| KeyError::Wrong { path: path.to_owned(), line, why };
        if !metadata.is_file() {
            return Err(wrong(None, "not a regular file".to_owned()));
        }
        if metadata.mode() & 0o022 != 0 || (metadata.uid() != own && metadata.uid() != 0) {
            return Err(KeyError::Unsafe {
                path: path.to_owned(),
                why: "somebody else may write to it, and so say whom to believe".to_owned(),
                fix: format!("chown {own} {0} && chmod go-w {0}", path.display()),
            });
        }
        let mut text = String::new();
        file.take(FILE_MAX_BYTES + 1).read_to_string(&mut text).map_err(io)?;
        if text.len() as u64 > FILE_MAX_BYTES {
            return Err(wrong(None, format!("longer than {FILE_MAX_BYTES} bytes")));
        }
        let mut ring = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key: PublicKey = line.parse().map_err(|why| wrong(Some(number), why))?;
            if key.role.word() != role {
                let why = format!("a key of {}, this file is for those of {role}s", key.role);
                return Err(wrong(Some(number), why));
            }
            ring.add(key);
        }
        Ok(ring)
    }

    /// Writes it in place of the file that is there.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub(super) fn write(&self, path: &Path) -> Result<(), KeyError> {
        let temporary = path.with_extension("new");
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&temporary)?;
            let lines = self.keys().fold(String::new(), |lines, key| lines + &key.to_string() + "\n");
            file.write_all(HEAD.as_bytes())?;
            file.write_all(lines.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        };
        write().map_err(|source| KeyError::Io { path: path.to_owned(), source })
    }

    /// Adds a key; tells whether it is new.
    pub(crate) fn add(&mut self, key: PublicKey) -> bool {
        self.0.insert(key.id(), key).is_none()
    }

    /// Removes a key; tells whether it was there.
    pub(super) fn remove(&mut self, id: &KeyId) -> bool {
        self.0.remove(id).is_some()
    }

    /// Returns the key with this id.
    pub(crate) fn find(&self, id: &KeyId) -> Option<&PublicKey> {
        self.0.get(id)
    }

    /// Returns all keys, those of one host beside each other.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &PublicKey> {
        let mut keys: Vec<&PublicKey> = self.0.values().collect();
        keys.sort_by(|a, b| a.role.cmp(&b.role));
        keys.into_iter()
    }

    /// Tells whether nobody is enrolled.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{PrivateKey, Role};
    use std::os::unix::fs::PermissionsExt as _;
    use unstale_protocol::ids::HostName;

    fn key(host: &str) -> PublicKey {
        PrivateKey::generate(Role::Agent(HostName::new(host).unwrap())).unwrap().public()
    }

    #[test]
    fn a_keyring_comes_back_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agents.pub");
        assert!(Ring::read(&path, "agent").unwrap().is_empty());
        let mut ring = Ring::default();
        let (first, second) = (key("web-1"), key("web-2"));
        assert!(ring.add(second.clone()) && ring.add(first.clone()) && !ring.add(first.clone()));
        ring.write(&path).unwrap();
        let read = Ring::read(&path, "agent").unwrap();
        assert_eq!(read, ring);
        assert_eq!(read.keys().collect::<Vec<_>>(), [&first, &second]);
        assert_eq!(read.find(&second.id()), Some(&second));
    }

    #[test]
    fn a_keyring_that_others_may_write_to_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agents.pub");
        Ring::default().write(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        assert!(matches!(Ring::read(&path, "agent"), Err(KeyError::Unsafe { .. })));
    }

    #[test]
    fn a_line_that_is_wrong_is_named_by_its_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("coordinators.pub");
        for text in ["\n# x\nsong\n".to_owned(), format!("\n\n{}\n", key("web-1"))] {
            fs::write(&path, text).unwrap();
            let error = Ring::read(&path, "coordinator").unwrap_err();
            assert!(error.to_string().contains("line 3"), "{error}");
        }
    }
}
