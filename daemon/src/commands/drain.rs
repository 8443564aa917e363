//! `unstale drain` and `undrain`: units out of work by hand, and back.

use super::local::{self, Reach};
use crate::api::{Drain, DrainRequest, DrainStanding, Drains, Status, StatusHost};
use crate::cli::{DrainArgs, LogArgs, Output, Selector, Span, Surroundings, UndrainArgs};
use crate::client::{Client, encoded};
use crate::clock::Clock;
use crate::render;
use crate::render::progress::Progress;
use crate::report::{self, Exit};
use anyhow::bail;
use std::time::Duration;
use unstale_protocol::time::Moment;

/// How often the drains are read again.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Whether something goes on with a drain when the command that asked for it has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Afterwards {
    GoesOn,
    RestsUntilAskedAgain,
}

pub(super) async fn run(args: DrainArgs, log: LogArgs, surroundings: Surroundings) -> anyhow::Result<Exit> {
    match local::reach(&args.coordinator, &args.local, &surroundings).await? {
        Reach::Coordinator(client) => drain(args, log, &client, Afterwards::GoesOn).await,
        Reach::Own(own) => {
            own.with(async |client| drain(args, log, &client, Afterwards::RestsUntilAskedAgain).await).await
        }
    }
}

async fn drain(args: DrainArgs, log: LogArgs, client: &Client, afterwards: Afterwards) -> anyhow::Result<Exit> {
    let ms = |span: Option<Span>| {
        let limit = span.and_then(Span::limit)?;
        u64::try_from(limit.as_millis()).ok()
    };
    let request = DrainRequest {
        selectors: args.selectors,
        deadline_ms: ms(args.deadline),
        force: args.force,
        dry_run: args.dry_run,
    };
    if request.force {
        report::note(match request.deadline_ms {
            None => "--force: goes beyond the budget of the pool, and drains what nothing would bring back",
            Some(_) => {
                "--force: goes beyond the budget of the pool, drains what nothing would bring back, and kills what has not ended at the deadline: what it has in hand is lost"
            }
        });
    }
    let asked: Drains = client.post("/v1/drains", &request).await?;
    if args.detach || args.dry_run {
        print(&asked, args.output.output);
        return Ok(if is_whole(&asked) { Exit::Clean } else { Exit::Unknown });
    }
    let wait = Wait { client, limit: args.timeout.limit(), grace: args.grace.and_then(Span::limit), log, afterwards };
    let (drains, ended) = wait.run(&asked).await?;
    if afterwards == Afterwards::RestsUntilAskedAgain {
        // Else the next drain of another unit would try this one again.
        for drain in drains.drains.iter().filter(|drain| drain.standing == DrainStanding::Failed) {
            let _taken_back: Drains = client.delete(&format!("/v1/drains/{}", encoded(&drain.id))).await?;
        }
    }
    print(&drains, args.output.output);
    Ok(ended.unwrap_or_else(|| exit(&drains)))
}

pub(super) async fn undo(args: UndrainArgs, log: LogArgs, surroundings: Surroundings) -> anyhow::Result<Exit> {
    match local::reach(&args.coordinator, &args.local, &surroundings).await? {
        Reach::Coordinator(client) => undrain(&args, log, &client, Afterwards::GoesOn).await,
        Reach::Own(own) => {
            own.with(async |client| undrain(&args, log, &client, Afterwards::RestsUntilAskedAgain).await).await
        }
    }
}

async fn undrain(args: &UndrainArgs, log: LogArgs, client: &Client, afterwards: Afterwards) -> anyhow::Result<Exit> {
    let status: Status = client.get("/v1/status").await?;
    let chosen: Vec<&Drain> = status.drains.iter().filter(|drain| is_chosen(drain, &args.selectors, &status)).collect();
    if chosen.is_empty() {
        bail!("no drained unit matches; `unstale status` lists them");
    }
    let mut asked = Drains { schema: "unstale.drain/1".to_owned(), ..Drains::default() };
    for drain in chosen {
        let answer: Drains = client.delete(&format!("/v1/drains/{}", encoded(&drain.id))).await?;
        asked.drains.extend(answer.drains);
    }
    let wait = Wait { client, limit: Some(Duration::from_mins(15)), grace: None, log, afterwards };
    let (drains, ended) = wait.run(&asked).await?;
    print(&drains, args.output.output);
    Ok(ended.unwrap_or_else(|| exit(&drains)))
}

fn is_chosen(drain: &Drain, selectors: &[Selector], status: &Status) -> bool {
    let slot = || {
        let host = status.hosts.iter().find(|host| host.host == drain.host)?;
        host.slots.iter().find(|slot| slot.slot == drain.slot)
    };
    selectors.iter().any(|selector| match selector {
        Selector::Host(name) => drain.host == name.as_str(),
        Selector::Slot(id) => drain.slot == id.as_str(),
        Selector::Unit(id) => slot().is_some_and(|slot| slot.unit.as_deref() == Some(id.as_str())),
        Selector::Pid(pid) => slot().is_some_and(|slot| slot.pid == Some(pid.0)),
        Selector::App(name) => slot().is_some_and(|slot| slot.apps.contains(name)),
        Selector::Pool(name) => slot().is_some_and(|slot| slot.pools.contains(name)),
    })
}

/// Waiting for drains.
#[derive(Clone, Copy, Debug)]
struct Wait<'a> {
    client: &'a Client,
    limit: Option<Duration>,
    grace: Option<Duration>,
    log: LogArgs,
    afterwards: Afterwards,
}

impl Wait<'_> {
    /// Waits until every drain that was asked for has ended. A wait that ends first says how. Units that are not done
    /// after `grace` are called slow, once.
    async fn run(self, asked: &Drains) -> anyhow::Result<(Drains, Option<Exit>)> {
        let Self { client, limit, grace, log, afterwards } = self;
        let ids: Vec<&str> = asked.drains.iter().map(|drain| drain.id.as_str()).collect();
        let mut progress =
            Progress::start(log, &format!("waiting for {}", render::count(u32::try_from(ids.len())?, "unit")));
        let mut drains = asked.clone();
        let clock = Clock::start();
        let mut slow_at = grace.map(|grace| Moment::default().after(grace));
        let watch = async {
            loop {
                if drains.drains.iter().all(|drain| drain.standing.is_end()) {
                    return Ok::<(), crate::client::ClientError>(());
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
                // What was asked for is on the coordinator's disk: one that is being restarted goes on with it.
                let status: Status = client.get_once_back("/v1/status").await?;
                for drain in &mut drains.drains {
                    match status.drains.iter().find(|now| now.id == drain.id) {
                        Some(now) => drain.clone_from(now),
                        // What is given back is no longer listed as a drain.
                        None if drain.standing == DrainStanding::Returning => look_for_return(drain, &status),
                        None => {}
                    }
                }
                if slow_at.is_some_and(|at| clock.now() >= at) {
                    slow_at = None;
                    for drain in drains.drains.iter().filter(|drain| !drain.standing.is_end()) {
                        progress.say(&render::plain(&format!("{} is slow: {}", drain.slot, drain.because)));
                    }
                }
                if let Some(open) = drains.drains.iter().find(|drain| render::status::is_open(drain.standing)) {
                    let because = if open.because.is_empty() { String::new() } else { format!(": {}", open.because) };
                    let text = format!("{} {}{because}", open.slot, open.standing.words());
                    progress.show(&render::plain(&text));
                }
            }
        };
        let limit = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            result = watch => {
                result?;
                None
            }
            () = limit => Some(Exit::Unknown),
            _ = tokio::signal::ctrl_c() => Some(Exit::Detached),
        };
        progress.finish();
        let cause = match ended {
            Some(Exit::Unknown) => "The time limit passed",
            Some(Exit::Detached) => "Interrupted",
            _ => return Ok((drains, ended)),
        };
        report::note(&match afterwards {
            Afterwards::GoesOn => format!("{cause}; the drain goes on: `unstale status` shows it."),
            Afterwards::RestsUntilAskedAgain => format!(
                "{cause}, and nobody watches over it now: the same command again, or `unstale up`, goes on where it stands."
            ),
        });
        Ok((drains, ended))
    }
}

/// A unit is back once it is up; a slot that its host no longer names holds no announced app any more. A coordinator that
/// was just started has not heard of any.
fn look_for_return(drain: &mut Drain, status: &Status) {
    let is_heard = |host: &&StatusHost| host.host == drain.host && host.scanned && host.standing != "unheard";
    let Some(host) = status.hosts.iter().find(is_heard) else { return };
    let Some(slot) = host.slots.iter().find(|slot| slot.slot == drain.slot) else {
        drain.standing = DrainStanding::Returned;
        return;
    };
    drain.because.clone_from(&slot.because);
    match slot.phase.as_str() {
        "up" => {
            drain.standing = DrainStanding::Returned;
            // What the slot says now is its verdict.
            drain.because.clear();
        }
        "failed" | "gone" => drain.standing = DrainStanding::Failed,
        _ => {}
    }
}

fn print(drains: &Drains, form: Output) {
    match form {
        Output::Json => report::answer_json(drains),
        Output::Text => report::answer(&render::drain::text(drains)),
    }
}

fn exit(drains: &Drains) -> Exit {
    if drains.drains.iter().any(|drain| drain.standing == DrainStanding::Failed) {
        return Exit::Stale;
    }
    if is_whole(drains) { Exit::Clean } else { Exit::Unknown }
}

/// Tells whether these are all that was asked for: where nothing was taken out of work, or not everything could be,
/// nothing is proven.
fn is_whole(drains: &Drains) -> bool {
    !drains.drains.is_empty() && drains.unseen.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{CoordinatorArgs, LogFormat};
    use crate::control::{self, Command};
    use crate::http::{Listener, serve};
    use std::path::Path;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    fn drain(standing: DrainStanding) -> Drain {
        let drain =
            serde_json::json!({"id": "drain-1", "host": "web-1", "slot": "celery/none/1", "standing": standing});
        serde_json::from_value(drain).unwrap()
    }

    fn host(scanned: bool, phase: Option<&str>) -> StatusHost {
        let slot =
            |phase| serde_json::json!({"slot": "celery/none/1", "verdict": "fresh", "phase": phase, "because": ""});
        let host = serde_json::json!({
            "host": "web-1", "standing": "reporting", "scanned": scanned, "apps": {},
            "slots": phase.map(slot).into_iter().collect::<Vec<_>>(),
        });
        serde_json::from_value(host).unwrap()
    }

    /// Runs a coordinator that says this of the drain, for one answer.
    async fn answer_once(socket: &Path, standing: DrainStanding) {
        let (asker, mut desk) = control::channel();
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let listener = Listener::bind(socket).unwrap();
        desk.is_ready.send_replace(true);
        let server = tasks.spawn(serve(listener, asker, tasks.clone(), shutdown.clone()));
        let Some(Command::Status(answer)) = desk.commands.recv().await else { panic!("status is asked for") };
        answer.send(Ok(Status { drains: vec![drain(standing)], ..Status::default() })).unwrap();
        // So that the answer leaves.
        tokio::time::sleep(Duration::from_millis(200)).await;
        shutdown.cancel();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_wait_for_a_drain_outlasts_a_coordinator_that_is_restarted() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("c.sock");
        // The client looks for a listener first.
        let listener = Listener::bind(&socket).unwrap();
        let place = CoordinatorArgs { coordinator: Some(format!("unix:{}", socket.display()).parse().unwrap()) };
        let client = Client::find(&place, &Surroundings::default()).await.unwrap();
        drop(listener);
        let log = LogArgs { verbose: 0, quiet: true, log_format: LogFormat::Text, no_color: true };
        let wait = Wait { client: &client, limit: None, grace: None, log, afterwards: Afterwards::GoesOn };
        let asked = Drains { drains: vec![drain(DrainStanding::Waiting)], ..Drains::default() };
        let coordinators = async {
            answer_once(&socket, DrainStanding::Draining).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            answer_once(&socket, DrainStanding::Drained).await;
        };
        let (waited, ()) = tokio::join!(wait.run(&asked), coordinators);
        let (drains, ended) = waited.unwrap();
        assert_eq!((drains.drains[0].standing, ended), (DrainStanding::Drained, None));
    }

    #[test]
    fn what_a_coordinator_has_not_heard_of_yet_is_not_given_back() {
        let standing = |hosts: Vec<StatusHost>| {
            let mut returning = drain(DrainStanding::Returning);
            look_for_return(&mut returning, &Status { hosts, ..Status::default() });
            returning.standing
        };
        assert_eq!(standing(vec![]), DrainStanding::Returning);
        assert_eq!(standing(vec![host(false, None)]), DrainStanding::Returning);
        assert_eq!(standing(vec![host(true, Some("drained"))]), DrainStanding::Returning);
        assert_eq!(standing(vec![host(true, Some("up"))]), DrainStanding::Returned);
        assert_eq!(standing(vec![host(true, None)]), DrainStanding::Returned);
    }
}
