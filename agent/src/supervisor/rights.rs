//! As whom a supervisor's files are read and its sockets asked. Paths and what lies there are those of a process that
//! may belong to anybody: through us nobody reads or tells more than by himself.

use crate::procfs;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, oneshot};
use unstale_protocol::ids::Pid;

/// How many paths of one user are followed at once; more wait.
const AT_ONCE_MAX: usize = 4;

/// Turns at following paths, by the user whose they are. Of the process: its threads are.
static TURNS: Mutex<BTreeMap<u32, Arc<Semaphore>>> = Mutex::new(BTreeMap::new());

/// The rights that a process has over files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rights {
    pub(super) uid: u32,
    /// Its groups, its own one last.
    groups: Vec<u32>,
}

/// What may be opened once the rights were taken.
#[derive(Clone, Copy, Debug)]
pub(super) enum Opens {
    /// What the kernel allows.
    Allowed,
    /// Where this program cannot take another user's rights: what everybody may read, of root or of that user.
    Public { uid: u32 },
}

impl Rights {
    /// Returns the rights of the process `pid`.
    ///
    /// # Errors
    /// Where it has ended, or has those of more than one user.
    pub(super) fn of(pid: Pid) -> Result<Self, String> {
        let status = procfs::status(pid).map_err(|error| error.to_string())?;
        if status.uid != status.file_uid {
            return Err(format!("process {pid} has the rights of two users, {} and {}", status.uid, status.file_uid));
        }
        Ok(Self { uid: status.uid, groups: status.file_gids })
    }

    /// Gives these rights over files, and no others, to the calling thread. It must end afterwards.
    pub(super) fn take(&self) -> Result<Opens, String> {
        let own = rustix::process::geteuid();
        if own.as_raw() == self.uid {
            return Ok(Opens::Allowed);
        }
        if !own.is_root() {
            return Ok(Opens::Public { uid: self.uid });
        }
        let groups: Vec<_> = self.groups.iter().map(|gid| rustix::fs::Gid::from_raw(*gid)).collect();
        rustix::thread::set_thread_groups(&groups).map_err(|error| self.refused(&error))?;
        let group = nix::unistd::Gid::from_raw(self.groups.last().copied().unwrap_or(self.uid));
        nix::unistd::setfsgid(group);
        // The kernel takes root's rights over files away with it: capabilities(7), "Effect of user ID changes".
        let user = nix::unistd::Uid::from_raw(self.uid);
        nix::unistd::setfsuid(user);
        // Neither says whether it worked; a second call returns what the first one has set.
        if nix::unistd::setfsuid(user) != user || nix::unistd::setfsgid(group) != group {
            return Err(self.refused(&"not permitted"));
        }
        Ok(Opens::Allowed)
    }

    fn refused(&self, why: &dyn std::fmt::Display) -> String {
        format!("the rights of uid {} over files cannot be taken: {why}", self.uid)
    }
}

impl Opens {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// What the kernel says, or that it is no regular file, or that it may not be read for somebody else.
    pub(super) fn open(self, path: &Path) -> Result<File, String> {
        use rustix::fs::{Mode, OFlags};
        // Non-blocking, so that a pipe under that name cannot hold us up.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|error| error.to_string())?);
        let metadata = file.metadata().map_err(|error| error.to_string())?;
        if !metadata.is_file() {
            return Err("it is not a regular file".to_owned());
        }
        match self {
            Self::Public { uid } if metadata.mode() & 0o004 == 0 || ![0, uid].contains(&metadata.uid()) => {
                Err(format!("it is not readable by everybody, or belongs neither to root nor to uid {uid}"))
            }
            Self::Allowed | Self::Public { .. } => Ok(file),
        }
    }
}

/// Follows paths of the user `uid` in a thread of its own: they may lead to a file system that never answers.
///
/// # Errors
/// Where no thread can be started.
pub(super) async fn apart<T: Send + 'static>(uid: u32, work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let turns = {
        let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever has a turn, or waits for one, holds it too.
        turns.retain(|_, turns| Arc::strong_count(turns) > 1);
        Arc::clone(turns.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE_MAX))))
    };
    let turn = turns.acquire_owned().await.map_err(|error| error.to_string())?;
    let (done, answer) = oneshot::channel();
    let work = move || {
        let answer = work();
        drop(turn);
        // Where nobody waits any more it is too late.
        done.send(answer).ok();
    };
    std::thread::Builder::new().name("paths".to_owned()).spawn(work).map_err(|error| error.to_string())?;
    answer.await.map_err(|error| error.to_string())
}

/// Connects to the socket at `path`. What answers there is only spoken to where it belongs to `uid`.
///
/// # Errors
/// What the kernel says, or whom it belongs to.
pub(super) async fn connect(path: PathBuf, uid: u32) -> Result<UnixStream, String> {
    let stream = apart(uid, move || dial(&path)).await?.map_err(|error| error.to_string())?;
    let stream = UnixStream::from_std(stream).map_err(|error| error.to_string())?;
    // A path may lead anywhere, and elsewhere the next time: what counts is who holds the other end.
    let peer = stream.peer_cred().map_err(|error| error.to_string())?;
    match peer.uid() {
        owner if owner == uid => Ok(stream),
        owner => Err(format!("it belongs to uid {owner}, not to uid {uid}")),
    }
}

fn dial(path: &Path) -> std::io::Result<std::os::unix::net::UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &address)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown};

    #[tokio::test]
    async fn nothing_is_read_for_a_user_that_he_could_not_read_himself() {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let check = async |name: &str, owner: (u32, u32), mode: u32, expected: bool| {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "text").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            chown(&path, Some(owner.0), Some(owner.1)).unwrap();
            let rights = Rights { uid: 1500, groups: vec![1600, 1500] };
            let link = directory.path().join(format!("{}.link", name.replace('/', "-")));
            std::os::unix::fs::symlink(&path, &link).unwrap();
            for path in [path, link] {
                let rights = rights.clone();
                let opened = apart(1500, move || rights.take().unwrap().open(&path).is_ok()).await.unwrap();
                assert_eq!(opened, expected, "{name}");
            }
        };
        check("own", (1500, 0), 0o600, true).await;
        check("public", (0, 0), 0o644, true).await;
        check("group", (0, 1600), 0o640, true).await;
        check("roots", (0, 0), 0o600, false).await;
        check("other", (1501, 1501), 0o640, false).await;
        std::fs::create_dir(directory.path().join("closed")).unwrap();
        std::fs::set_permissions(directory.path().join("closed"), std::fs::Permissions::from_mode(0o700)).unwrap();
        check("closed/public", (0, 0), 0o644, false).await;
        // The thread's rights were its own.
        assert!(std::fs::read(directory.path().join("roots")).is_ok());
    }

    #[tokio::test]
    async fn where_rights_cannot_be_taken_only_what_everybody_may_read_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::fs::write(&path, "text").unwrap();
        let check = |owner: u32, mode: u32, expected: bool| {
            chown(&path, Some(owner), None).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Opens::Public { uid: 1500 }.open(&path).is_ok(), expected, "{owner} {mode:o}");
        };
        check(0, 0o644, true);
        check(1500, 0o644, true);
        check(1500, 0o640, false);
        check(1501, 0o644, false);
    }
}
