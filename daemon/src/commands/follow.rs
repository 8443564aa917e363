//! Waiting for a rollout: its events as they happen, until it ends, time runs out or Ctrl-C.
//!
//! The wait changes nothing: a caller that goes away leaves the rollout as it is.

use crate::api::{BroadcastAccepted, Outcome, Rollout};
use crate::cli::{AppTarget, LogArgs};
use crate::client::{Client, ClientError};
use crate::clock::Clock;
use crate::render;
use crate::render::progress::{self, Progress};
use crate::report::Exit;
use std::time::Duration;
use unstale_protocol::time::Moment;

/// How often the counts are read while nothing happens.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// How long units wait for source before it is said what is there instead.
const SOURCES_AFTER: Duration = Duration::from_secs(10);

/// What is waited for, and how long.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    pub(super) client: &'a Client,
    pub(super) target: &'a AppTarget,
    /// What a broadcast was answered; `None` to follow a rollout over its whole life.
    pub(super) accepted: Option<&'a BroadcastAccepted>,
    /// Without a limit where `None`.
    pub(super) limit: Option<Duration>,
    pub(super) log: LogArgs,
    /// Started with the command.
    pub(super) clock: Clock,
}

impl Wait<'_> {
    /// Waits for the end; returns how the rollout stands when the wait ends, for whatever reason.
    ///
    /// # Errors
    /// [`ClientError`], once the coordinator has not come back within half a minute.
    pub(super) async fn run(self) -> Result<Rollout, ClientError> {
        let mut progress = Progress::start(self.log, &format!("waiting for {}", self.target));
        let result = self.follow(&mut progress).await;
        progress.finish();
        result
    }

    async fn follow(&self, progress: &mut Progress) -> Result<Rollout, ClientError> {
        let limit = async {
            match self.limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        let interrupt = async {
            if tokio::signal::ctrl_c().await.is_err() {
                // Without a handler the signal ends the process, which detaches all the same.
                std::future::pending::<()>().await;
            }
        };
        tokio::pin!(limit, interrupt);
        let mut after = self.accepted.map_or(0, |accepted| accepted.after);
        let mut last = self.look().await?;
        let mut has_told = false;
        loop {
            progress.show(&progress::line(&last));
            self.tell_sources(&last, &mut has_told, progress);
            if last.outcome.is_end() {
                return Ok(last);
            }
            tokio::select! {
                looked = self.next(&mut after, progress) => last = looked?,
                () = &mut limit => return Ok(Rollout { outcome: Outcome::Timeout, ..self.look().await? }),
                () = &mut interrupt => return Ok(Rollout { outcome: Outcome::Detached, ..last }),
            }
        }
    }

    /// Says once, after a while of waiting for source, what the source on each host is.
    fn tell_sources(&self, rollout: &Rollout, has_told: &mut bool, progress: &Progress) {
        let waited = self.clock.now().since(Moment::default());
        if *has_told || rollout.units.waiting == 0 || rollout.sources.is_empty() || waited < SOURCES_AFTER {
            return;
        }
        *has_told = true;
        for (source, hosts) in &rollout.sources {
            let hosts = render::count(*hosts, "host");
            progress.say(&format!("  {hosts} still with {}", render::plain(source)));
        }
    }

    /// Waits for the next events, or for a while, and looks again.
    async fn next(&self, after: &mut u64, progress: &Progress) -> Result<Rollout, ClientError> {
        let path = format!("{}/events?after={after}", self.path());
        let read = async {
            let mut events = self.client.events(&path).await?;
            while let Some(event) = events.next().await? {
                *after = event.number;
                progress.happened(&event);
            }
            Ok::<(), ClientError>(())
        };
        if tokio::time::timeout(LOOK_INTERVAL, read).await.is_ok() {
            // The stream ended: so has the rollout, or the coordinator. A short pause keeps a loop from spinning.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        self.look().await
    }

    /// Reads the counts; a coordinator that is being restarted is waited for.
    async fn look(&self) -> Result<Rollout, ClientError> {
        Ok(self.counted(self.client.get_once_back(&self.path()).await?))
    }

    /// Leaves what happened since the call.
    fn counted(&self, mut rollout: Rollout) -> Rollout {
        if let Some(accepted) = self.accepted {
            let elapsed = self.clock.now().since(Moment::default());
            rollout.count_from(&accepted.baseline, u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        }
        rollout
    }

    fn path(&self) -> String {
        super::abort::path(self.target)
    }
}

/// Returns the exit code of a rollout that ended, or of a wait that did.
pub(super) fn exit(outcome: Outcome) -> Exit {
    match outcome {
        Outcome::Converged => Exit::Clean,
        Outcome::Failed | Outcome::Refused => Exit::Stale,
        Outcome::Incomplete | Outcome::Timeout | Outcome::InProgress | Outcome::Paused => Exit::Unknown,
        Outcome::Halted => Exit::Halted,
        Outcome::Superseded | Outcome::Aborted => Exit::Aborted,
        Outcome::Detached => Exit::Detached,
    }
}
