//! A live process on Linux: `process_vm_readv`, or `/proc/PID/mem`.
//!
//! Neither needs the process to stop. `process_vm_readv` un-shares copy-on-write pages that it reads
//! (since Linux 5.19); `/proc/PID/mem` does not, but takes one call for each range.

use super::Error;
use super::source::{Copied, Fault, Mapping, Source, Span};
use crate::procfs::{self, Stat};
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use rustix::io::Errno as Refusal;
use std::fs::File;
use std::io::{ErrorKind, IoSliceMut, Read};
use std::os::unix::fs::FileExt;
use unstale_protocol::ids::{Pid, ProcessIdentity};

/// The memory of a live process.
#[derive(Debug)]
pub struct LinuxProcess {
    pid: Pid,
    mem: Option<File>,
}

/// A process that is what its identity says.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) source: LinuxProcess,
    pub(crate) parent: Pid,
}

/// Opens a process after checking its start time.
pub(crate) fn open(identity: ProcessIdentity, through_mem: bool) -> Result<Opened, Error> {
    let stat = stat(identity.pid)?.filter(|stat| stat.start_ticks == identity.start_ticks).ok_or(Error::Gone)?;
    let source = LinuxProcess::new(identity.pid, through_mem)?;
    Ok(Opened { source, parent: stat.parent })
}

/// Tells whether the process is still the one that it was.
pub(crate) fn is_same(identity: ProcessIdentity) -> bool {
    matches!(stat(identity.pid), Ok(Some(stat)) if stat.start_ticks == identity.start_ticks)
}

/// Reads what is known of a process; `None` where it has ended.
fn stat(pid: Pid) -> Result<Option<Stat>, Error> {
    match procfs::stat(pid) {
        Ok(stat) => Ok(Some(stat).filter(|stat| !stat.is_dead())),
        Err(procfs::Error::Gone(_) | procfs::Error::Form { .. }) => Ok(None),
        Err(procfs::Error::Refused { why: Refusal::ACCESS | Refusal::PERM, .. }) => Err(Fault::Denied.into()),
        Err(error @ procfs::Error::Refused { .. }) => Err(Fault::Other(error.to_string()).into()),
    }
}

fn read_text(path: &str, most: u64) -> Result<String, Fault> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)) {
        Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => Err(fault(&error, path)),
    }
}

fn fault(error: &std::io::Error, path: &str) -> Fault {
    match error.kind() {
        ErrorKind::NotFound => Fault::Gone,
        ErrorKind::PermissionDenied => Fault::Denied,
        _ if error.raw_os_error() == Some(Errno::ESRCH as i32) => Fault::Gone,
        _ => Fault::Other(format!("{path}: {error}")),
    }
}

impl LinuxProcess {
    /// Opens the memory of a process.
    ///
    /// # Errors
    /// `/proc/PID/mem` was asked for and cannot be opened.
    pub fn new(pid: Pid, through_mem: bool) -> Result<Self, Fault> {
        let path = format!("/proc/{pid}/mem");
        let mem = if through_mem { Some(File::open(&path).map_err(|error| fault(&error, &path))?) } else { None };
        Ok(Self { pid, mem })
    }

    /// Tells whether each range takes a call of its own.
    pub(crate) fn reads_one_by_one(&self) -> bool {
        self.mem.is_some()
    }
}

impl Source for LinuxProcess {
    fn read(&self, spans: &[Span], buffer: &mut [u8]) -> Result<Copied, Fault> {
        match &self.mem {
            Some(mem) => Ok(through_mem(mem, spans, buffer)),
            None => through_readv(self.pid, spans, buffer),
        }
    }

    fn mappings(&self) -> Result<Vec<Mapping>, Fault> {
        let text = read_text(&format!("/proc/{}/maps", self.pid), procfs::MAPS_MAX_BYTES)?;
        if text.is_empty() {
            // A kernel thread, or one that has just given up its memory.
            return Err(Fault::Gone);
        }
        Ok(text.lines().filter_map(parse_mapping).collect())
    }
}

fn through_readv(pid: Pid, spans: &[Span], buffer: &mut [u8]) -> Result<Copied, Fault> {
    let remote: Option<Vec<RemoteIoVec>> =
        spans.iter().map(|span| Some(RemoteIoVec { base: usize::try_from(span.start).ok()?, len: span.len })).collect();
    let (Some(remote), Ok(raw)) = (remote, i32::try_from(pid.0)) else {
        return Err(Fault::Other("address beyond this machine's".to_owned()));
    };
    match process_vm_readv(nix::unistd::Pid::from_raw(raw), &mut [IoSliceMut::new(buffer)], &remote) {
        Ok(bytes) => Ok(Copied { bytes, calls: 1 }),
        Err(Errno::EFAULT) => Ok(Copied { bytes: 0, calls: 1 }),
        Err(Errno::EPERM | Errno::EACCES) => Err(Fault::Denied),
        Err(Errno::ESRCH) => Err(Fault::Gone),
        Err(error) => Err(Fault::Other(format!("process_vm_readv: {error}"))),
    }
}

fn through_mem(mem: &File, spans: &[Span], buffer: &mut [u8]) -> Copied {
    let mut copied = Copied::default();
    let mut rest = buffer;
    for span in spans {
        let (now, later) = rest.split_at_mut(span.len.min(rest.len()));
        let mut done = 0;
        while let Some(part @ [_, ..]) = now.get_mut(done..) {
            copied.calls = copied.calls.saturating_add(1);
            match mem.read_at(part, span.start.saturating_add(done as u64)) {
                Ok(0) | Err(_) => {
                    copied.bytes += done;
                    return copied;
                }
                Ok(bytes) => done += bytes,
            }
        }
        copied.bytes += done;
        rest = later;
    }
    copied
}

/// Reads a line of `/proc/PID/maps`: `start-end perms offset dev inode path`.
fn parse_mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let rights = fields.next()?;
    let offset = fields.next()?;
    let path = fields.nth(2).unwrap_or_default().trim_start();
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    Some(Mapping {
        start: number(start)?,
        end: number(end)?,
        writable: rights.contains('w'),
        offset: number(offset)?,
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_read() {
        let found = parse_mapping("7f12a000-7f12c000 rw-p 0001f000 08:01 123  /a dir/libpython3.11.so.1.0 (deleted)");
        let want = Mapping {
            start: 0x7f12_a000,
            end: 0x7f12_c000,
            writable: true,
            offset: 0x1f000,
            path: "/a dir/libpython3.11.so.1.0 (deleted)".to_owned(),
        };
        assert_eq!(found, Some(want));
        assert_eq!(parse_mapping("7f12a000-7f12c000 r--p 0 00:00 0").map(|mapping| mapping.path), Some(String::new()));
        assert_eq!(parse_mapping("nonsense"), None);
    }
}
