//! Opening files of a process as that process would find them, without following it anywhere else.
//!
//! A path of a target is resolved below the target's own root directory by the kernel (`openat2(2)`), so that
//! an absolute symbolic link in a chroot or container cannot lead to a file of the host. Only the reader
//! calls this; nothing here writes.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use unstale_protocol::ids::ProcessIdentity;

/// Largest file that is read, in bytes.
pub const FILE_MAX_BYTES: u64 = 4 << 20;
/// Longest path that is looked at, in bytes.
const PATH_MAX_BYTES: usize = 4096;
/// Most names of one directory that are looked at.
const DIRECTORY_MAX_ENTRIES: usize = 65_536;
/// How often a path is resolved again when something was renamed meanwhile.
const RESOLVE_ATTEMPTS: usize = 8;
/// `OVERLAYFS_SUPER_MAGIC` of `include/uapi/linux/magic.h`.
const OVERLAY: u64 = 0x794c_7630;

/// Why a target's file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Error {
    /// The process has ended, or its pid belongs to another one now.
    #[error("the process has ended")]
    Gone,
    /// There is no such file, or a part of its path is no directory.
    #[error("{path} does not exist")]
    NotFound {
        /// The path as the target would use it.
        path: String,
    },
    /// The kernel refused.
    #[error("{path} cannot be read: {why}; the agent may need CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE")]
    Denied {
        /// The path as the target would use it.
        path: String,
        /// What the kernel said.
        why: String,
    },
    /// There is no openat2(2), without which no path of another root can be followed safely.
    #[error(
        "the kernel has no openat2, or a filter forbids it: Linux 5.6 or later is needed, and no RestrictSUIDSGID= \
         around the agent"
    )]
    NoOpenat2,
    /// It is a directory, pipe, socket or device.
    #[error("{path} is not a regular file")]
    NotRegular {
        /// The path as the target would use it.
        path: String,
    },
    /// It is larger than what is read.
    #[error("{path} is {bytes} bytes long; at most {FILE_MAX_BYTES} are read")]
    TooLarge {
        /// The path as the target would use it.
        path: String,
        /// How long it is.
        bytes: u64,
    },
    /// It was written to while it was read.
    #[error("{path} changed while it was read")]
    Changed {
        /// The path as the target would use it.
        path: String,
    },
    /// The path is relative, too long or has a zero byte, or leaves the root.
    #[error("{path:?} is not a path that can be looked up: {why}")]
    Path {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// Anything else that the kernel said.
    #[error("{path} cannot be read: {why}")]
    Io {
        /// The path as the target would use it.
        path: String,
        /// What the kernel said.
        why: String,
    },
}

/// What a file is, beside its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Time of last change of content, whole seconds since the epoch.
    pub mtime_s: i64,
    /// Its part below a second, in nanoseconds.
    pub mtime_ns: u32,
    /// Time of last change of content or attributes, in nanoseconds since the epoch.
    pub ctime_ns: i64,
    /// Owner.
    pub uid: u32,
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    /// The path after all symbolic links, as the target sees it.
    pub path_resolved: String,
}

/// A file of a target with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// What it is.
    pub facts: FileFacts,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// What a directory entry is, after symbolic links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link that has yet to be followed, or a type that the file system does not tell.
    Unknown,
    /// Anything else.
    Other,
}

/// The root directory of one process.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    /// The root directory as we see it.
    seen: String,
    /// By whose rights the process opens files.
    uid: u32,
    /// By whose groups' rights it does.
    gids: Vec<u32>,
}

impl Root {
    /// Opens the root directory of the process that `identity` names.
    ///
    /// # Errors
    /// [`Error::Gone`] where it has ended, [`Error::Denied`] where its root may not be looked at.
    pub(crate) fn of(identity: ProcessIdentity) -> Result<Self, Error> {
        let pid = i32::try_from(identity.pid.0).ok().and_then(rustix::process::Pid::from_raw).ok_or(Error::Gone)?;
        let path = format!("/proc/{}/root", identity.pid);
        let holder = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| told(&path, error))?;
        let fd = openat(CWD, &path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| if error == Errno::NOENT { Error::Gone } else { told(&path, error) })?;
        let stat = crate::procfs::stat(identity.pid).map_err(|_| Error::Gone)?;
        let status = crate::procfs::status(identity.pid).map_err(|_| Error::Gone)?;
        // The descriptor above is that of our process only if the pid was its own all the time: the pidfd, taken
        // first, is of the process that has the right start time and still lives.
        if stat.start_ticks != identity.start_ticks || has_ended(&holder) {
            return Err(Error::Gone);
        }
        let seen = own_link(&fd).unwrap_or_else(|| "/".to_owned());
        let root = Self { fd, seen, uid: status.file_uid, gids: status.file_gids };
        // Once here: further on, what cannot be opened counts as not there.
        match root.open("/", OFlags::PATH) {
            Err(Error::NoOpenat2) => Err(Error::NoOpenat2),
            _ => Ok(root),
        }
    }

    fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Error> {
        check_path(path)?;
        let flags = flags | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut last = Errno::AGAIN;
        for _ in 0..RESOLVE_ATTEMPTS {
            match openat2(&self.fd, path, flags, Mode::empty(), resolve) {
                // A rename elsewhere made the kernel give up on `..`; openat2(2) says to try again.
                Err(error @ (Errno::AGAIN | Errno::INTR)) => last = error,
                Err(error) => return Err(told(path, error)),
                Ok(fd) => return Ok(fd),
            }
        }
        Err(told(path, last))
    }

    /// Returns what is at `path`, a directory included, without opening it for reading.
    ///
    /// # Errors
    /// [`Error`] where it cannot be reached.
    pub(crate) fn facts(&self, path: &str) -> Result<FileFacts, Error> {
        let fd = self.open(path, OFlags::PATH)?;
        let stat = fstat(&fd).map_err(|error| told(path, error))?;
        Ok(self.describe(&fd, &stat, path))
    }

    /// Reads the regular file at `path`.
    ///
    /// # Errors
    /// [`Error`], a variant per thing that can be wrong with it.
    pub(crate) fn fetch(&self, path: &str) -> Result<Fetched, Error> {
        // Looked at before it is opened: opening a pipe or a device can have effects.
        let place = self.open(path, OFlags::PATH)?;
        let expected = fstat(&place).map_err(|error| told(path, error))?;
        check_regular(path, &expected)?;
        let file = self.open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let before = fstat(&file).map_err(|error| told(path, error))?;
        let length = check_regular(path, &before)?;
        if !self.may_read(&before) {
            // With our rights a link planted beside the source would show what its owner may not see.
            return Err(Error::Denied { path: path.to_owned(), why: "the process itself may not read it".to_owned() });
        }
        let mut file = File::from(file);
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        (&mut file).take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| io(path, &error))?;
        let after = fstat(&file).map_err(|error| told(path, error))?;
        let facts = self.describe(&file, &after, path);
        let same = facts == self.describe(&file, &before, path);
        if !same || u64::try_from(bytes.len()).ok() != Some(facts.size) {
            return Err(Error::Changed { path: path.to_owned() });
        }
        Ok(Fetched { facts, bytes })
    }

    /// Lists the names of the directory at `path`.
    ///
    /// # Errors
    /// [`Error`] where it is none, cannot be read, or has too many names.
    pub(crate) fn list(&self, path: &str) -> Result<BTreeMap<String, Entry>, Error> {
        let fd = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK)?;
        let directory = rustix::fs::Dir::read_from(&fd).map_err(|error| told(path, error))?;
        let mut entries = BTreeMap::new();
        for entry in directory {
            let entry = entry.map_err(|error| told(path, error))?;
            if entries.len() >= DIRECTORY_MAX_ENTRIES {
                let why = format!("it has more than {DIRECTORY_MAX_ENTRIES} entries");
                return Err(Error::Io { path: path.to_owned(), why });
            }
            // A name that is not UTF-8 cannot be a module's.
            if let Ok(name) = entry.file_name().to_str() {
                entries.insert(name.to_owned(), entry_of(entry.file_type()));
            }
        }
        Ok(entries)
    }

    /// Tells what is at `path` after symbolic links; `None` where nothing is, or it cannot be reached.
    pub(crate) fn entry(&self, path: &str) -> Option<Entry> {
        let fd = self.open(path, OFlags::PATH).ok()?;
        let stat = fstat(&fd).ok()?;
        Some(entry_of(FileType::from_raw_mode(stat.st_mode)))
    }

    /// Tells whether `path` lies on an overlay, as the layers of a container image do.
    pub(crate) fn is_overlay(&self, path: &str) -> bool {
        // Through a pathless open: fstatfs works on it, whatever the file is.
        let Ok(fd) = self.open(path, OFlags::PATH) else { return false };
        rustix::fs::fstatfs(&fd).is_ok_and(|stat| u64::try_from(stat.f_type).ok() == Some(OVERLAY))
    }

    /// Tells whether the process may read a file by its mode, the way `generic_permission` of the kernel decides;
    /// an access list that says more is not looked at.
    fn may_read(&self, stat: &Stat) -> bool {
        let shift = if stat.st_uid == self.uid {
            6
        } else if self.gids.contains(&stat.st_gid) {
            3
        } else {
            0
        };
        self.uid == 0 || stat.st_mode >> shift & 4 != 0
    }

    fn describe(&self, fd: &impl AsFd, stat: &Stat, path: &str) -> FileFacts {
        let seen = own_link(fd).unwrap_or_else(|| path.to_owned());
        let path_resolved = match seen.strip_prefix(&self.seen) {
            _ if self.seen == "/" => seen,
            Some(rest) if rest.starts_with('/') => rest.to_owned(),
            Some("") => "/".to_owned(),
            _ => seen,
        };
        FileFacts {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_s: stat.st_mtime,
            mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            ctime_ns: stat
                .st_ctime
                .saturating_mul(1_000_000_000)
                .saturating_add(i64::try_from(stat.st_ctime_nsec).unwrap_or(0)),
            uid: stat.st_uid,
            mode: stat.st_mode,
            path_resolved,
        }
    }
}

/// Returns the path of our own descriptor as the kernel tells it.
fn own_link(fd: &impl AsFd) -> Option<String> {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let target = rustix::fs::readlinkat(CWD, &link, Vec::new()).ok()?;
    target.into_string().ok().filter(|path| path.starts_with('/'))
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    !matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

fn check_path(path: &str) -> Result<(), Error> {
    let why = if !path.starts_with('/') {
        "it is not absolute"
    } else if path.len() > PATH_MAX_BYTES {
        "it is too long"
    } else if path.contains('\0') {
        "it has a zero byte"
    } else {
        return Ok(());
    };
    let shown = path.chars().take(200).collect();
    Err(Error::Path { path: shown, why: why.to_owned() })
}

fn check_regular(path: &str, stat: &Stat) -> Result<u64, Error> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::NotRegular { path: path.to_owned() });
    }
    match u64::try_from(stat.st_size) {
        Ok(bytes) if bytes <= FILE_MAX_BYTES => Ok(bytes),
        size => Err(Error::TooLarge { path: path.to_owned(), bytes: size.unwrap_or(u64::MAX) }),
    }
}

fn entry_of(kind: FileType) -> Entry {
    match kind {
        FileType::RegularFile => Entry::File,
        FileType::Directory => Entry::Directory,
        FileType::Symlink | FileType::Unknown => Entry::Unknown,
        _ => Entry::Other,
    }
}

fn told(path: &str, error: Errno) -> Error {
    let path = path.to_owned();
    match error {
        Errno::SRCH => Error::Gone,
        Errno::NOENT | Errno::NOTDIR => Error::NotFound { path },
        Errno::ACCESS | Errno::PERM => Error::Denied { path, why: error.to_string() },
        Errno::XDEV | Errno::LOOP => Error::Path { path, why: error.to_string() },
        Errno::NOSYS => Error::NoOpenat2,
        // A socket, or a device without a driver.
        Errno::NXIO | Errno::NODEV => Error::NotRegular { path },
        _ => Error::Io { path, why: error.to_string() },
    }
}

fn io(path: &str, error: &std::io::Error) -> Error {
    match Errno::from_io_error(error) {
        Some(errno) => told(path, errno),
        None => Error::Io { path: path.to_owned(), why: error.to_string() },
    }
}

/// Returns the facts of a directory that only we know by a link of `/proc`, such as a target's `cwd`.
pub(crate) fn link_facts(path: &str) -> Option<(u64, u64)> {
    let stat = rustix::fs::statat(CWD, path, AtFlags::empty()).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests;
