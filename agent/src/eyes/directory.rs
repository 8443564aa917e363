//! Whether a directory of an app can be trusted.

use super::Eyes;
use super::claims::Directory;
use unstale_protocol::ids::ProcessIdentity;

const WORLD_WRITABLE: u32 = 0o002;
const STICKY: u32 = 0o1000;

impl Eyes {
    /// Looks at a directory and its parents as the process sees them.
    pub(crate) async fn directory(&mut self, identity: ProcessIdentity, root: &str) -> Directory {
        let mut paths = vec![root.to_owned()];
        let mut rest = root;
        while let Some((parent, _)) = rest.rsplit_once('/') {
            paths.push(if parent.is_empty() { "/".to_owned() } else { parent.to_owned() });
            rest = parent;
        }
        let Ok(stats) = self.reader.turn().await.stat(identity, &paths).await else {
            return Directory { owner: None, distrust: Some(format!("{root} cannot be looked at")) };
        };
        let mut directory = Directory::default();
        for (index, (path, facts)) in paths.iter().zip(stats).enumerate() {
            match facts {
                Ok(facts) => {
                    if index == 0 {
                        directory.owner = Some(facts.uid);
                    }
                    // Anybody may add a file there, but with the sticky bit nobody replaces another's.
                    let is_open = facts.mode & WORLD_WRITABLE != 0 && facts.mode & STICKY == 0;
                    if is_open {
                        directory.distrust = Some(format!("{path} is world-writable"));
                    }
                }
                Err(error) => directory.distrust = Some(format!("{path} cannot be looked at: {error}")),
            }
        }
        directory
    }
}
