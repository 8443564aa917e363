//! A hold on the processes of a unit: pidfds, opened first and compared with what was inspected afterwards.
//!
//! A pid may be given to a stranger at any time; a pidfd never is. A process that ends stays visible in its pidfd
//! until the hold is dropped.

use super::{StopSignal, proc};
use crate::discover::serves_its_parent;
use crate::process::Unit;
use crate::procfs;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use unstale_protocol::ids::{Pid, ProcessIdentity};

/// Why a unit cannot be held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// The unit has no root.
    #[error("the unit has no processes")]
    Empty,
    /// The root has ended, or its pid is another process now.
    #[error("process {0} is not the one that was inspected any more")]
    Changed(Pid),
    /// The kernel refused.
    #[error("process {pid} cannot be held: {why}")]
    Kernel {
        /// Which.
        pid: Pid,
        /// What it said.
        why: String,
    },
}

/// Pidfds of a unit: its root first.
#[derive(Debug)]
pub struct Hold {
    root: ProcessIdentity,
    held: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    identity: ProcessIdentity,
    fd: AsyncFd<OwnedFd>,
}

impl Hold {
    /// Takes hold of every process of `unit`, and of those that its root has forked since.
    ///
    /// Needs a tokio runtime with IO.
    ///
    /// # Errors
    /// [`HoldError::Changed`] where the root is not the one that was inspected. Other members that have ended
    /// meanwhile are left out: pools replace their children.
    pub fn take(unit: &Unit) -> Result<Self, HoldError> {
        let root = unit.root().ok_or(HoldError::Empty)?.identity;
        let mut identities: Vec<ProcessIdentity> = unit.processes.iter().map(|process| process.identity).collect();
        let known: BTreeSet<Pid> = identities.iter().map(|identity| identity.pid).collect();
        // Only forks of the same program: a command that a task has started may outlive the unit for good.
        let program = proc::executable(root.pid);
        let forked = proc::descendants(root.pid)
            .into_iter()
            .filter(|child| !known.contains(&child.pid))
            .filter(|child| program.is_some() && proc::executable(child.pid) == program);
        identities.extend(forked);
        let hold = Self::again(&identities)?;
        if hold.held.first().map(|held| held.identity) == Some(root) {
            Ok(hold)
        } else {
            Err(HoldError::Changed(root.pid))
        }
    }

    /// Takes hold again of processes written down before: [`Hold::identities`]. Those that have ended are left out.
    ///
    /// # Errors
    /// [`HoldError`] where the list is empty or the kernel refuses.
    pub fn again(identities: &[ProcessIdentity]) -> Result<Self, HoldError> {
        let root = *identities.first().ok_or(HoldError::Empty)?;
        let mut held = Vec::new();
        for identity in identities {
            if let Some(fd) = open(identity)? {
                held.push(Held { identity: *identity, fd });
            }
        }
        Ok(Self { root, held })
    }

    /// Returns who was held, root first.
    pub fn identities(&self) -> Vec<ProcessIdentity> {
        let others = self.held.iter().map(|held| held.identity).filter(|identity| *identity != self.root);
        std::iter::once(self.root).chain(others).collect()
    }

    /// Waits until every process has ended. Without a limit, and safe to cancel.
    pub async fn ended(&self) {
        for held in &self.held {
            wait(held).await;
        }
    }

    /// Waits until the root has ended. Without a limit, and safe to cancel.
    pub async fn root_ended(&self) {
        if let Some(root) = self.root_held() {
            wait(root).await;
        }
    }

    /// Waits until every process but the root and its helpers has ended: what a reload replaces.
    pub async fn children_ended(&self) {
        for held in self.held.iter().filter(|held| held.identity != self.root) {
            // Looked at now, not when it was held: a tracker whose own parent has ended ends too.
            if !self.serves_the_root(held.identity.pid) {
                wait(held).await;
            }
        }
    }

    /// Tells whether `pid` is a tracker or a fork server of the root, which lives as long as the root does. Where the
    /// pid is a stranger's by now, the one that was held has ended, and either answer is right.
    fn serves_the_root(&self, pid: Pid) -> bool {
        proc::stat(pid).is_some_and(|stat| stat.parent == self.root.pid)
            && procfs::command(pid).is_ok_and(|command| serves_its_parent(&command))
    }

    /// Returns who has not ended yet.
    pub fn survivors(&self) -> Vec<ProcessIdentity> {
        self.held.iter().filter(|held| !has_ended(held)).map(|held| held.identity).collect()
    }

    /// Sends `signal` to the root, and to nobody else.
    ///
    /// # Errors
    /// [`HoldError::Changed`] where it has ended, [`HoldError::Kernel`] where the kernel refuses.
    pub(crate) fn signal_root(&self, signal: StopSignal) -> Result<(), HoldError> {
        let signal = match signal {
            StopSignal::Term => Signal::TERM,
            StopSignal::Int => Signal::INT,
            StopSignal::Hup => Signal::HUP,
        };
        let root = self.root_held().ok_or(HoldError::Changed(self.root.pid))?;
        send(root, signal)
    }

    /// Kills every process that is left, root first; tells how many that were.
    ///
    /// # Errors
    /// [`HoldError::Kernel`] where the kernel refuses.
    pub(crate) fn kill(&self) -> Result<usize, HoldError> {
        let mut killed = 0;
        for held in self.held.iter().filter(|held| !has_ended(held)) {
            match send(held, Signal::KILL) {
                Ok(()) => killed += 1,
                Err(HoldError::Changed(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(killed)
    }

    fn root_held(&self) -> Option<&Held> {
        self.held.iter().find(|held| held.identity == self.root)
    }
}

/// Opens the pidfd of `identity`, then compares; `None` where it has ended or is somebody else now.
fn open(identity: &ProcessIdentity) -> Result<Option<AsyncFd<OwnedFd>>, HoldError> {
    let pid = identity.pid;
    let kernel = |why: String| HoldError::Kernel { pid, why };
    let number = i32::try_from(pid.0).ok().and_then(rustix::process::Pid::from_raw);
    let Some(number) = number else { return Err(kernel("that is no process number".to_owned())) };
    let fd = match pidfd_open(number, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(kernel(error.to_string())),
    };
    // In this order: what the pidfd holds cannot change any more, so an equal start time now proves who it is.
    if !proc::is_alive(identity) {
        return Ok(None);
    }
    Ok(Some(register(fd).map_err(|error| kernel(error.to_string()))?))
}

#[expect(
    deprecated,
    reason = "its successor is unsafe; an `OwnedFd` never changes its descriptor, which is all that one asks"
)]
fn register(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

fn send(held: &Held, signal: Signal) -> Result<(), HoldError> {
    let pid = held.identity.pid;
    match pidfd_send_signal(held.fd.get_ref(), signal) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::SRCH) => Err(HoldError::Changed(pid)),
        Err(error) => Err(HoldError::Kernel { pid, why: error.to_string() }),
    }
}

/// A pidfd becomes readable when its process ends: `pidfd_open(2)`.
async fn wait(held: &Held) {
    while !has_ended(held) {
        match held.fd.readable().await {
            Ok(mut guard) if !has_ended(held) => guard.clear_ready(),
            Ok(_) => {}
            // The runtime is shutting down: nobody will hear the answer.
            Err(_) => std::future::pending().await,
        }
    }
}

fn has_ended(held: &Held) -> bool {
    let mut fds = [PollFd::new(held.fd.get_ref(), PollFlags::IN)];
    let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&zero)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    /// Starts two workers by the method that is named. For each line it is sent it ends one, and says so.
    const PARENT: &str = "import multiprocessing, os, sys, time
if __name__ == '__main__':
    context = multiprocessing.get_context(sys.argv[1])
    workers = [context.Process(target=time.sleep, args=(600,)) for _ in range(2)]
    for worker in workers: worker.start()
    print(os.getpid(), flush=True)
    for worker in workers:
        sys.stdin.readline()
        worker.kill()
        worker.join()
        print('ended', flush=True)
    sys.stdin.readline()
";

    struct Parent {
        child: Child,
        output: BufReader<std::process::ChildStdout>,
        root: ProcessIdentity,
    }

    impl Parent {
        fn start(script: &std::path::Path, method: &str) -> Self {
            let mut command = Command::new("python3");
            command.arg(script).arg(method).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut output = BufReader::new(child.stdout.take().unwrap());
            // Not the child's own: `python3` may be a script that looks for the interpreter.
            let mut line = String::new();
            output.read_line(&mut line).unwrap();
            let root = proc::identify(Pid(line.trim().parse().unwrap())).unwrap();
            Self { child, output, root }
        }

        fn end_a_worker(&mut self) {
            self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
            let mut line = String::new();
            self.output.read_line(&mut line).unwrap();
            assert_eq!(line, "ended\n");
        }
    }

    impl Drop for Parent {
        fn drop(&mut self) {
            // It ends its workers, and its helpers see it end.
            drop(self.child.stdin.take());
            self.child.wait().ok();
        }
    }

    async fn within<T>(limit: Duration, what: impl Future<Output = T>) -> bool {
        tokio::time::timeout(limit, what).await.is_ok()
    }

    #[tokio::test]
    async fn a_reload_waits_for_workers_and_not_for_the_helpers_of_a_parent_that_stays() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("parent.py");
        std::fs::write(&script, PARENT).unwrap();
        let (long, moment) = (Duration::from_secs(30), Duration::from_millis(100));
        // Beside two workers and the root: a tracker, and a fork server in the second case.
        for (method, count) in [("spawn", 4), ("forkserver", 5)] {
            let mut parent = Parent::start(&script, method);
            let mut tree = vec![parent.root];
            tree.extend(proc::descendants(parent.root.pid));
            assert_eq!(tree.len(), count, "{method}");
            let hold = Hold::again(&tree).unwrap();
            parent.end_a_worker();
            assert!(!within(moment, hold.children_ended()).await, "{method}: a worker is left");
            parent.end_a_worker();
            assert!(within(long, hold.children_ended()).await, "{method}: {:?}", hold.survivors());
            assert!(!within(moment, hold.ended()).await, "{method}: the root and its helpers are up");
            drop(parent);
            assert!(within(long, hold.ended()).await, "{method}: {:?}", hold.survivors());
        }
    }
}
