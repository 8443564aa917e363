//! Pidfds: nobody but the process that was inspected is ever signalled.

use crate::support::{Running, catches_term, is_alive, unit};
use std::process::Command;
use std::time::Duration;
use unstale_agent::process::{Kind, Supervisor};
use unstale_agent::restart::{Hold, HoldError};

const HANDLER: &str = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(0))\nwhile True: time.sleep(60)";

fn sleeper() -> Running {
    Running::start(Command::new("python3").args(["-c", HANDLER]))
}

#[tokio::test]
async fn a_process_with_another_start_time_is_never_held() {
    let stranger = sleeper();
    let mut unit = unit(stranger.pid(), Kind::Python, Supervisor::None);
    assert!(Hold::take(&unit).is_ok());
    unit.processes[0].identity.start_ticks += 1;
    assert_eq!(Hold::take(&unit).err(), Some(HoldError::Changed(stranger.pid())));
    let hold = Hold::again(&[unit.processes[0].identity]).unwrap();
    assert!(hold.survivors().is_empty(), "a stranger counts as the end of the one that was meant");
    assert!(is_alive(stranger.pid()));
}

#[tokio::test]
async fn the_end_of_every_process_is_waited_for() {
    let script = "import os, signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(0))\n\
                  child = os.fork()\nif child == 0:\n    signal.signal(15, lambda *_: (time.sleep(1), os._exit(0)))\n\
                  while True: time.sleep(60)";
    let parent = Running::start(Command::new("python3").args(["-c", script]));
    catches_term(parent.pid()).await;
    crate::support::eventually("it has a child", async || parent.below().first().copied()).await;
    let child = parent.below()[0];
    catches_term(child).await;
    let hold = Hold::take(&unit(parent.pid(), Kind::Python, Supervisor::None)).unwrap();
    assert_eq!(hold.identities().len(), 2);
    assert!(tokio::time::timeout(Duration::from_millis(200), hold.ended()).await.is_err(), "both run");
    crate::support::signal(parent.pid(), rustix::process::Signal::TERM);
    hold.root_ended().await;
    assert_eq!(hold.survivors().iter().map(|left| left.pid).collect::<Vec<_>>(), [child]);
    crate::support::signal(child, rustix::process::Signal::TERM);
    tokio::time::timeout(Duration::from_secs(10), hold.ended()).await.unwrap();
    assert!(hold.survivors().is_empty());
}

#[tokio::test]
async fn a_child_forked_after_the_inspection_is_held_too() {
    let script = "import os, signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(0))\n\
                  os.fork()\nwhile True: time.sleep(60)";
    let parent = Running::start(Command::new("python3").args(["-c", script]));
    // `python3` may be a script that looks for the interpreter, with children of its own.
    catches_term(parent.pid()).await;
    crate::support::eventually("it has a child", async || parent.below().first().copied()).await;
    let mut unit = unit(parent.pid(), Kind::Python, Supervisor::None);
    unit.processes.truncate(1);
    assert_eq!(Hold::take(&unit).unwrap().identities().len(), 2);
}
