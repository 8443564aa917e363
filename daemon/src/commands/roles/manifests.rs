//! Manifests on the agent's disk: an agent that is started again judges also where nobody on the bus has them any more,
//! as after a takeover by a coordinator with another disk.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use unstale_protocol::fingerprint::Fingerprint;
use unstale_protocol::manifest::MANIFEST_MAX_BYTES;

/// Most manifests that are kept; the ones that were written first go.
const KEPT_MAX: usize = 16;

/// A directory with a file for each manifest, which is named by its digest. What cannot be read or written is as good as
/// not there: the bus is asked.
#[derive(Debug)]
pub(super) struct Kept(PathBuf);

impl Kept {
    /// Those in the state directory `state`.
    pub(super) fn below(state: &Path) -> Self {
        Self(state.join("manifests"))
    }

    /// Returns the text of a manifest, where it is there and is what its name says.
    pub(super) fn read(&self, digest: Fingerprint) -> Option<String> {
        let file = File::open(self.path(digest)).ok()?;
        let mut text = String::new();
        file.take(MANIFEST_MAX_BYTES as u64 + 1).read_to_string(&mut text).ok()?;
        (Fingerprint::of_bytes(text.as_bytes()) == digest).then_some(text)
    }

    /// Keeps the text of a manifest.
    pub(super) fn write(&self, digest: Fingerprint, text: &str) {
        let path = self.path(digest);
        if path.exists() {
            return;
        }
        let draft = self.0.join("new");
        let written = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .and_then(|()| fs::write(&draft, text))
            .and_then(|()| fs::rename(&draft, path));
        match written {
            Ok(()) => self.forget_oldest(),
            Err(error) => tracing::warn!(%error, directory = %self.0.display(), "a manifest cannot be kept"),
        }
    }

    fn forget_oldest(&self) {
        let Ok(entries) = fs::read_dir(&self.0) else { return };
        let age = |entry: fs::DirEntry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()));
        let mut files: Vec<(SystemTime, PathBuf)> = entries.flatten().filter_map(age).collect();
        files.sort();
        for (_, path) in files.iter().take(files.len().saturating_sub(KEPT_MAX)) {
            // Whatever stands in the way stands there at the next one, too.
            fs::remove_file(path).unwrap_or_default();
        }
    }

    fn path(&self, digest: Fingerprint) -> PathBuf {
        self.0.join(digest.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_its_name_says_or_nothing() {
        let state = tempfile::tempdir().unwrap();
        let kept = Kept::below(state.path());
        let digest = Fingerprint::of_bytes(b"{}");
        assert_eq!(kept.read(digest), None);
        kept.write(digest, "{}");
        assert_eq!(kept.read(digest).as_deref(), Some("{}"));
        fs::write(kept.path(digest), "[]").unwrap();
        assert_eq!(kept.read(digest), None);
        fs::write(kept.path(digest), [0xff; 9]).unwrap();
        assert_eq!(kept.read(digest), None);
    }

    #[test]
    fn the_newest_are_kept() {
        let state = tempfile::tempdir().unwrap();
        let kept = Kept::below(state.path());
        let digests: Vec<Fingerprint> = (0..KEPT_MAX + 3)
            .map(|number| {
                let text = number.to_string();
                let digest = Fingerprint::of_bytes(text.as_bytes());
                kept.write(digest, &text);
                // Files of one moment have no order.
                let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64 + 1);
                File::options().write(true).open(kept.path(digest)).unwrap().set_modified(at).unwrap();
                digest
            })
            .collect();
        let there: Vec<bool> = digests.iter().map(|digest| kept.read(*digest).is_some()).collect();
        assert_eq!(there.iter().filter(|is_there| **is_there).count(), KEPT_MAX);
        assert!(there[there.len() - 1] && !there[0]);
    }
}
