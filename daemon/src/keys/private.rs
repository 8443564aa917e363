//! A private key and its file: readable by its owner alone, or not at all.

use super::{ALGORITHM, BASE64, KeyError, PublicKey, Role, parts};
use base64::Engine as _;
use ed25519_dalek::{Signer as _, SigningKey};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// What a private key begins with, so that it is never taken for a public one.
pub(super) const MARK: &str = "private:";
/// Longest key file.
const FILE_MAX_BYTES: u64 = 4096;

/// A key that signs.
#[derive(Clone)]
pub(crate) struct PrivateKey {
    role: Role,
    key: SigningKey,
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrivateKey").field("role", &self.role).field("key", &"[redacted]").finish()
    }
}

impl PrivateKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// Where the kernel gives no random numbers.
    pub(crate) fn generate(role: Role) -> io::Result<Self> {
        let mut seed = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut seed)?;
        Ok(Self { role, key: SigningKey::from_bytes(&seed) })
    }

    /// Returns the half that is handed out.
    pub(crate) fn public(&self) -> PublicKey {
        PublicKey { role: self.role.clone(), key: self.key.verifying_key() }
    }

    /// Returns whom it speaks for.
    pub(crate) fn role(&self) -> &Role {
        &self.role
    }

    /// Signs a message.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }

    /// Returns the text of its file.
    pub(super) fn text(&self) -> String {
        format!("{MARK}{}:{ALGORITHM}:{}\n", self.role, BASE64.encode(self.key.as_bytes()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.trim().strip_prefix(MARK) else {
            let is_public = text.trim().parse::<PublicKey>().is_ok();
            return Err(
                if is_public { "it is a public key, a private one is needed" } else { "not a private key" }.into()
            );
        };
        let (role, seed) = parts(rest)?;
        Ok(Self { role, key: SigningKey::from_bytes(&seed) })
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`KeyError`], above all where anybody but its owner could read it.
    pub(crate) fn read(path: &Path) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        // Of the file that was opened, not of whatever bears its name by now.
        let metadata = file.metadata().map_err(io)?;
        let own = rustix::process::geteuid().as_raw();
        let unsafe_because = |why: String, fix: String| KeyError::Unsafe { path: path.to_owned(), why, fix };
        if !metadata.is_file() {
            return Err(KeyError::Wrong { path: path.to_owned(), line: None, why: "not a regular file".into() });
        }
        if metadata.mode() & 0o077 != 0 {
            let why = format!("a private key is for its owner alone, and its mode is {:03o}", metadata.mode() & 0o777);
            return Err(unsafe_because(why, format!("chmod 600 {}", path.display())));
        }
        if metadata.uid() != own && metadata.uid() != 0 {
            let why = format!("it belongs to uid {}", metadata.uid());
            return Err(unsafe_because(why, format!("chown {own} {}", path.display())));
        }
        let mut text = String::new();
        file.take(FILE_MAX_BYTES).read_to_string(&mut text).map_err(io)?;
        Self::parse(&text).map_err(|why| KeyError::Wrong { path: path.to_owned(), line: None, why })
    }

    /// Writes the file anew; there must be none.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub(super) fn write(&self, path: &Path) -> Result<(), KeyError> {
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(self.text().as_bytes())?;
            file.sync_all()
        };
        write().map_err(|source| KeyError::Io { path: path.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_private_key_is_read_only_where_nobody_else_can() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("coordinator.key");
        let key = PrivateKey::generate(Role::Coordinator).unwrap();
        key.write(&path).unwrap();
        assert_eq!(PrivateKey::read(&path).unwrap().public(), key.public());
        for mode in [0o640, 0o604, 0o660] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(PrivateKey::read(&path), Err(KeyError::Unsafe { .. })), "{mode:o}");
        }
        assert!(key.write(&path).is_err(), "a key is never overwritten");
    }

    #[test]
    fn what_is_no_private_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.key");
        let public = PrivateKey::generate(Role::Coordinator).unwrap().public();
        for (text, part) in
            [(public.to_string(), "public"), ("song".into(), "not a private key"), (String::new(), "not")]
        {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            let error = PrivateKey::read(&path).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(PrivateKey::read(directory.path()).is_err());
    }

    #[test]
    fn a_private_key_does_not_print_itself() {
        let key = PrivateKey::generate(Role::Coordinator).unwrap();
        let seed = BASE64.encode(key.key.as_bytes());
        assert!(!format!("{key:?}").contains(&seed));
    }
}
