//! The Unix socket that the control API listens on.
//!
//! It is made under another name with its mode and then moved into place, so nobody can connect to a socket
//! of a wider mode, and a socket that a dead process left behind is replaced in one step.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// Longest path of a Unix socket, in bytes: `sun_path` of unix(7) without its final zero.
const PATH_MAX_BYTES: usize = 107;

/// Why the socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// Somebody listens there.
    #[error("another process{} already listens on `{}`", pid.map(|pid| format!(" ({pid})")).unwrap_or_default(), path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// Who listens, where the kernel tells.
        pid: Option<i32>,
    },
    /// Something else has that name.
    #[error("`{}` exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The path is longer than the kernel allows.
    #[error("the socket's path `{}` is longer than {PATH_MAX_BYTES} bytes", .0.display())]
    TooLong(PathBuf),
    /// The directory may not be written to.
    #[error("no permission for the socket `{}`", .0.display())]
    NoPermission(PathBuf),
    /// Neither a flag nor the surroundings say where.
    #[error("no path for the socket: XDG_RUNTIME_DIR is not set")]
    NoPath,
    /// Anything else that the system refused.
    #[error("cannot listen on `{}`", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl SocketError {
    /// Returns the code that scripts see.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "socket-in-use",
            Self::NotASocket(_) => "socket-not-a-socket",
            Self::TooLong(_) => "socket-path-too-long",
            Self::NoPermission(_) => "socket-no-permission",
            Self::NoPath => "socket-no-path",
            Self::Io { .. } => "socket-io",
        }
    }

    /// Returns what can be done.
    pub(crate) fn help(&self) -> Option<String> {
        match self {
            Self::InUse { .. } => Some("use the one that runs, stop it, or give this one its own --socket".to_owned()),
            Self::NotASocket(path) => Some(format!("move `{}` away, or give another --socket", path.display())),
            Self::TooLong(_) => Some("give a shorter --socket".to_owned()),
            Self::NoPermission(_) => Some("run as root, or give a --socket in a directory of yours".to_owned()),
            Self::NoPath => Some("give one with --socket".to_owned()),
            Self::Io { .. } => None,
        }
    }
}

/// A socket that is listened on; its file is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: StdListener,
    file: SocketFile,
}

/// The name of a socket in the file system.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whoever starts next replaces a file that is left behind.
        std::fs::remove_file(&self.0).unwrap_or_default();
    }
}

impl Listener {
    /// Listens on `path`, making its directory where it is missing.
    ///
    /// # Errors
    /// [`SocketError`].
    pub(crate) fn bind(path: &Path) -> Result<Self, SocketError> {
        let io = |source: io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                SocketError::NoPermission(path.to_owned())
            }
            _ => SocketError::Io { path: path.to_owned(), source },
        };
        let draft = draft(path);
        if draft.as_os_str().len() > PATH_MAX_BYTES {
            return Err(SocketError::TooLong(path.to_owned()));
        }
        if let Some(parent) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(io)?;
        }
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
            Ok(_) => match StdStream::connect(path) {
                Ok(stream) => {
                    let pid =
                        rustix::net::sockopt::socket_peercred(&stream).ok().map(|peer| peer.pid.as_raw_nonzero().get());
                    return Err(SocketError::InUse { path: path.to_owned(), pid });
                }
                // A full backlog is a sign of life, too.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(SocketError::InUse { path: path.to_owned(), pid: None });
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(io(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
        }
        let socket = StdListener::bind(&draft).map_err(io)?;
        let draft_file = SocketFile(draft.clone());
        std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
        socket.set_nonblocking(true).map_err(io)?;
        std::fs::rename(&draft, path).map_err(io)?;
        // Its name is another one now, and nothing is left to remove under the old one.
        drop(draft_file);
        Ok(Self { socket, file: SocketFile(path.to_owned()) })
    }

    /// Returns the socket for the runtime, and the guard of its file.
    pub(super) fn into_parts(self) -> io::Result<(UnixListener, SocketFile)> {
        Ok((UnixListener::from_std(self.socket)?, self.file))
    }
}

/// A name beside `path` that only this process uses.
fn draft(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn the_socket_is_private_and_removed_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/coordinator.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_socket_of_a_dead_process_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.sock");
        drop(StdListener::bind(&path).unwrap());
        assert!(path.exists());
        let _listener = Listener::bind(&path).unwrap();
        assert!(StdStream::connect(&path).is_ok());
    }

    #[test]
    fn a_socket_of_a_living_process_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.sock");
        let _first = Listener::bind(&path).unwrap();
        match Listener::bind(&path) {
            Err(SocketError::InUse { pid, .. }) => assert_eq!(pid, i32::try_from(std::process::id()).ok()),
            other => panic!("{other:?}"),
        }
        assert!(StdStream::connect(&path).is_ok());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_path_that_is_too_long_is_refused() {
        let path = Path::new("/tmp").join("x".repeat(120));
        assert!(matches!(Listener::bind(&path), Err(SocketError::TooLong(_))));
    }
}
