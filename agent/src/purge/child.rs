//! The purging child: one request on standard input, one answer on standard output.

use super::{Mode, Outcome, Refused, StaleFile, below};
use rustix::fs::{AtFlags, FileType, Mode as Bits, OFlags, ResolveFlags, fstat, openat2, statat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Most bytes of a request that are read.
const REQUEST_MAX_BYTES: u64 = 64 << 20;

/// What the child is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The files.
    pub files: Vec<StaleFile>,
    /// The accepted roots.
    pub roots: Vec<PathBuf>,
    /// What to do.
    pub mode: Mode,
}

/// What it answers: one outcome for each file of the request, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// One for each file.
    pub outcomes: Vec<Outcome>,
}

/// Serves one request: the whole life of the purging child.
///
/// # Errors
/// What could not be read, understood or written.
pub fn serve(input: impl Read, mut output: impl Write) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    input.take(REQUEST_MAX_BYTES).read_to_end(&mut bytes)?;
    let request: Request = serde_json::from_slice(&bytes)?;
    let answer = Answer { outcomes: request.files.iter().map(|file| purge(file, &request)).collect() };
    serde_json::to_writer(&mut output, &answer)?;
    output.flush()
}

/// Finds the owner of the directory that holds `file`, on the same guarded way that the child takes.
pub(super) fn owner(file: &StaleFile, roots: &[PathBuf]) -> Result<(u32, u32), Outcome> {
    let (directory, _) = directory(file, roots)?;
    let stat = fstat(&directory).map_err(refused)?;
    Ok((stat.st_uid, stat.st_gid))
}

fn purge(file: &StaleFile, request: &Request) -> Outcome {
    match try_purge(file, request) {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

fn try_purge(file: &StaleFile, request: &Request) -> Result<Outcome, Outcome> {
    let (directory, name) = directory(file, &request.roots)?;
    let stat = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(refused)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Outcome::Refused { why: Refused::NotAFile });
    }
    let ctime_ns = i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec);
    let same = stat.st_dev == file.dev
        && stat.st_ino == file.ino
        && u64::try_from(stat.st_size).is_ok_and(|size| size == file.size)
        && ctime_ns == file.ctime_ns;
    if !same {
        return Err(Outcome::Refused { why: Refused::Changed });
    }
    if request.mode == Mode::DryRun {
        return Ok(Outcome::WouldPurge);
    }
    // Between the look and this call the name may be given to another entry of this same directory, which its owner
    // could remove anyway: the child has no other rights than the owner's.
    unlinkat(&directory, name, AtFlags::empty()).map_err(refused)?;
    Ok(Outcome::Purged)
}

/// Opens the directory that holds `file`, without following a link below the root.
fn directory<'a>(file: &'a StaleFile, roots: &'a [PathBuf]) -> Result<(OwnedFd, &'a Path), Outcome> {
    let outside = || Outcome::Refused { why: Refused::OutsideRoots };
    let (root, rest) = below(&file.path, roots).ok_or_else(outside)?;
    let name = rest.file_name().map(Path::new).ok_or_else(outside)?;
    let parent = rest.parent().unwrap_or(Path::new(""));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Bits::empty()).map_err(|error| match error {
        // What has no root has no files.
        Errno::NOENT => Outcome::Gone,
        error => Outcome::Refused { why: Refused::Root(error.to_string()) },
    })?;
    check_root(&root)?;
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    // `EAGAIN`: somebody renames on the way right now, and the kernel cannot rule out an escape.
    let mut opened = Err(Errno::AGAIN);
    for _ in 0..16 {
        opened = openat2(root.as_fd(), parent, flags, Bits::empty(), resolve);
        if opened.as_ref().err() != Some(&Errno::AGAIN) {
            break;
        }
    }
    Ok((opened.map_err(refused)?, name))
}

/// Where anybody may write, anybody may put files that look stale.
fn check_root(root: &OwnedFd) -> Result<(), Outcome> {
    const OTHERS_WRITE: u32 = 0o002;
    const STICKY: u32 = 0o1000;
    let mode = fstat(root).map_err(refused)?.st_mode;
    if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
        return Err(Outcome::Refused { why: Refused::RootIsOpen });
    }
    Ok(())
}

fn refused(error: Errno) -> Outcome {
    let why = match error {
        Errno::NOENT => return Outcome::Gone,
        // openat2(2): a link, another file system, or `..` on the way.
        Errno::LOOP | Errno::XDEV => Refused::Link,
        // A file where a directory was.
        Errno::NOTDIR => Refused::Changed,
        Errno::ROFS => Refused::ReadOnly,
        Errno::PERM => Refused::Immutable,
        Errno::ACCESS => Refused::Denied,
        error => Refused::Kernel(error.to_string()),
    };
    Outcome::Refused { why }
}
