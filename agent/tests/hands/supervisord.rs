//! Celery under supervisord: nothing in hand is lost, and the program always comes back, unless an operator stopped it.

use crate::supervised::Supervisord;
use crate::support::{at, catches_term, eventually, is_alive, signal, unit};
use std::time::Duration;
use unstale_agent::process::{Kind, Supervisor, Unit};
use unstale_agent::restart::{Hands, Hold, Means, Plan, Refusal, StopSignal, Trap, UnitFacts, in_hand};
use unstale_agent::supervisor::{BringsBack, SlotState, program_of};
use unstale_protocol::ids::Pid;

const NAME: &str = "shop:shop";

fn worker(settings: &str) -> String {
    format!(
        "[program:shop]\ncommand=VENV/bin/celery -A app worker -c 2 --without-mingle --without-gossip\ndirectory=HERE\n\
         stopwaitsecs=1\nkillasgroup=true\nstopasgroup=true\nstartsecs=1\nstdout_logfile=HERE/out\n\
         redirect_stderr=true\n{settings}\n"
    )
}

/// A program without Celery that ends in order on `TERM`.
fn plain(settings: &str) -> String {
    format!(
        "[program:shop]\ncommand=VENV/bin/python -c \"import signal,sys,time; \
         signal.signal(15, lambda *_: sys.exit(0)); time.sleep(600)\"\nstartsecs=0\n{settings}\n"
    )
}

/// Waits until the worker takes tasks: its two children wait for them.
async fn ready(supervisord: &Supervisord, root: Pid) -> Unit {
    eventually("the worker is ready", async || {
        let unit = unit(root, Kind::Celery, supervisord.supervisor(NAME));
        (in_hand(&unit, &UnitFacts::of(&unit)).idle.len() == 2).then_some(unit)
    })
    .await
}

async fn planned(unit: &Unit) -> (Hands, Plan, Hold) {
    let hands = Hands::default();
    let plan = hands.plan(unit, &UnitFacts::of(unit), &[]).await.unwrap();
    let hold = Hold::take(unit).unwrap();
    (hands, plan, hold)
}

async fn plain_unit(supervisord: &Supervisord) -> Unit {
    let main = supervisord.up(NAME, None).await;
    catches_term(main).await;
    unit(main, Kind::Beat, supervisord.supervisor(NAME))
}

#[tokio::test]
async fn a_task_in_flight_runs_exactly_once_and_the_worker_comes_back() {
    // `autorestart=unexpected` leaves an orderly end down, and supervisord's own stop would kill after a second.
    let supervisord = Supervisord::start("worker", &worker("")).await;
    let root = supervisord.up(NAME, None).await;
    let unit = ready(&supervisord, root).await;
    let (hands, plan, hold) = planned(&unit).await;
    assert_eq!(plan.means, Means::TermThenStart { signal: StopSignal::Term });
    assert!(plan.notes.contains(&Trap::StopsGroup { program: NAME.to_owned() }), "{:?}", plan.notes);
    assert!(plan.notes.contains(&Trap::ExitStaysDown { setting: "autorestart=unexpected".to_owned() }));
    supervisord.send("a", 4.0);
    supervisord.logged("start a").await;
    let busy = eventually("one child is busy", async || {
        let hand = in_hand(&unit, &UnitFacts::of(&unit));
        (hand.busy.len() == 1).then_some(hand)
    })
    .await;
    assert_eq!((busy.idle.len(), busy.unknown.len()), (1, 0));
    hands.stop(&plan, &hold, at(0)).await.unwrap();
    hands.ended(&plan, &hold).await;
    hands.start(&plan, at(5)).await.unwrap();
    let new = supervisord.up(NAME, Some(root)).await;
    ready(&supervisord, new).await;
    supervisord.send("b", 0.0);
    supervisord.logged("end b").await;
    assert_eq!(supervisord.log(), ["start a", "end a", "start b", "end b"]);
}

#[tokio::test]
async fn a_program_that_comes_back_by_itself_is_let() {
    let supervisord = Supervisord::start("worker", &plain("autorestart=true")).await;
    let unit = plain_unit(&supervisord).await;
    let (hands, plan, hold) = planned(&unit).await;
    assert_eq!(plan.means, Means::TermThenBack { signal: StopSignal::Term });
    hands.stop(&plan, &hold, at(0)).await.unwrap();
    hands.ended(&plan, &hold).await;
    hands.start(&plan, at(1)).await.unwrap();
    supervisord.up(NAME, Some(plan.root.pid)).await;
}

#[tokio::test]
async fn a_wrapper_that_ends_late_does_not_leave_the_program_down() {
    // Asked at once, supervisord says ALREADY_STARTED; a moment later the shell exits 0 and nobody starts it again.
    let wrapped = "[program:shop]\nstartsecs=0\ncommand=sh -c \"VENV/bin/python HERE/sleeper.py; sleep 1; true\"\n";
    let supervisord = Supervisord::start("worker", &format!("{wrapped}autostart=false\n")).await;
    let script = "import signal,sys,time\nsignal.signal(15, lambda *_: sys.exit(0))\ntime.sleep(600)\n";
    supervisord.scratch.write("sleeper.py", script);
    supervisord.operator(&["start", NAME]);
    let shell = supervisord.up(NAME, None).await;
    let root = eventually("python below the shell", async || {
        supervisord.running.below().into_iter().find(|pid| *pid != shell)
    })
    .await;
    catches_term(root).await;
    let unit = unit(root, Kind::Beat, supervisord.supervisor(NAME));
    let (hands, plan, hold) = planned(&unit).await;
    assert!(plan.notes.contains(&Trap::Wrapper { pid: shell.0 }));
    hands.stop(&plan, &hold, at(0)).await.unwrap();
    hands.ended(&plan, &hold).await;
    hands.start(&plan, at(1)).await.unwrap();
    supervisord.up(NAME, Some(shell)).await;
    assert!(!is_alive(root), "no orphan stays");
}

#[tokio::test]
async fn a_program_is_found_by_the_parent_chain_also_below_a_wrapper() {
    let wrapped = "[program:shop]\nstartsecs=0\ncommand=sh -c \"sleep 600; true\"\n[group:g]\nprograms=shop\n";
    let supervisord = Supervisord::start("worker", wrapped).await;
    let shell = supervisord.up("g:shop", None).await;
    let sleeper =
        eventually("the sleeper", async || supervisord.running.below().into_iter().find(|pid| *pid != shell)).await;
    let (pid, config) = (supervisord.running.pid(), supervisord.config());
    assert_eq!(program_of(pid, &config, &[sleeper, shell, pid]).await.as_deref(), Ok("g:shop"));
    assert!(program_of(pid, &config, &[sleeper]).await.is_err());
}

#[tokio::test]
async fn an_operators_stop_is_never_undone() {
    let supervisord = Supervisord::start("worker", &plain("autorestart=true")).await;
    let unit = plain_unit(&supervisord).await;
    let (hands, plan, hold) = planned(&unit).await;
    supervisord.operator(&["stop", NAME]);
    hold.ended().await;
    let refused = hands.start(&plan, at(1)).await.unwrap_err();
    assert!(refused.to_string().contains("stopped by somebody else"), "{refused}");
    assert_eq!(supervisord.state(NAME).await, SlotState::Stopped);
}

#[tokio::test]
async fn a_drained_program_stays_down_until_it_is_given_back() {
    let supervisord = Supervisord::start("worker", &plain("autorestart=true")).await;
    let unit = plain_unit(&supervisord).await;
    let (hands, plan, hold) = planned(&unit).await;
    assert!(plan.can_be_given_back());
    hands.drain(&plan, &hold).unwrap();
    hold.root_ended().await;
    hands.hold_down(&plan).await.unwrap();
    // Longer than supervisord takes to bring a program back.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(hands.state(&plan).await, SlotState::Stopped);
    hands.hold_down(&plan).await.unwrap();
    hands.release(&plan, at(9)).await.unwrap();
    supervisord.up(NAME, None).await;
    hands.release(&plan, at(10)).await.unwrap();
}

#[tokio::test]
async fn a_crash_loop_and_its_end_are_noticed() {
    let supervisord = Supervisord::start("worker", &plain("startretries=2\nautostart=false")).await;
    assert_eq!(supervisord.state(NAME).await, SlotState::Stopped);
    let broken = "[program:broken]\ncommand=VENV/bin/python -c \"import nonexistent\"\nstartretries=2\nstartsecs=1\n";
    let supervisord = Supervisord::start("worker", broken).await;
    eventually("it keeps crashing", async || {
        matches!(supervisord.state("broken:broken").await, SlotState::Crashing { .. }).then_some(())
    })
    .await;
    let why = eventually("supervisord gives up", async || match supervisord.state("broken:broken").await {
        SlotState::GaveUp { why } => Some(why),
        _ => None,
    })
    .await;
    assert!(why.contains("FATAL"), "{why}");
}

#[tokio::test]
async fn a_worker_whose_term_is_remapped_is_left_alone() {
    let supervisord = Supervisord::start("worker", &worker("environment=REMAP_SIGTERM=\"SIGQUIT\"")).await;
    let root = supervisord.up(NAME, None).await;
    let unit = ready(&supervisord, root).await;
    let hands = Hands::default();
    let seen = hands.plan(&unit, &UnitFacts::of(&unit), &[]).await;
    assert!(matches!(seen, Err(Refusal::RemapSigterm { .. })), "{seen:?}");
    // A title hides the environment, but not the supervisor's configuration.
    let blind = UnitFacts { remap_sigterm: None, environment_known: false, ..UnitFacts::of(&unit) };
    assert!(matches!(hands.plan(&unit, &blind, &[]).await, Err(Refusal::RemapSigterm { .. })));
    assert!(is_alive(root));
}

#[tokio::test]
async fn a_titled_worker_is_restarted_by_its_supervisor_and_the_blanks_are_named() {
    let supervisord = Supervisord::start("titled", &worker("")).await;
    let root = supervisord.up(NAME, None).await;
    let unit = ready(&supervisord, root).await;
    assert!(unit.processes[0].titled, "{:?}", unit.processes[0].command);
    let (hands, plan, hold) = planned(&unit).await;
    assert!(plan.notes.contains(&Trap::TitleHides) && plan.notes.contains(&Trap::RemapHidden), "{:?}", plan.notes);
    hands.stop(&plan, &hold, at(0)).await.unwrap();
    hands.ended(&plan, &hold).await;
    hands.start(&plan, at(1)).await.unwrap();
    supervisord.up(NAME, Some(root)).await;
}

#[tokio::test]
async fn a_unit_that_its_supervisor_does_not_watch_is_left_alone() {
    let supervisord = Supervisord::start("worker", &plain("")).await;
    plain_unit(&supervisord).await;
    let mut stranger = std::process::Command::new("python3");
    stranger.args(["-c", "import signal,sys,time; signal.signal(15, lambda *_: sys.exit(0)); time.sleep(600)"]);
    let stranger = crate::support::Running::start(&mut stranger);
    catches_term(stranger.pid()).await;
    let unit = unit(stranger.pid(), Kind::Beat, supervisord.supervisor(NAME));
    let plan = Hands::default().plan(&unit, &UnitFacts::of(&unit), &[]).await;
    assert!(matches!(plan, Err(Refusal::NotTheMain { .. })), "{plan:?}");
}

#[tokio::test]
async fn another_supervisord_on_the_same_socket_is_told_nothing() {
    let supervisord = Supervisord::start("worker", &plain("")).await;
    let unit = plain_unit(&supervisord).await;
    let impostor = Pid(std::process::id());
    let supervisor = Supervisor::Supervisord { name: NAME.to_owned(), pid: impostor, config: supervisord.config() };
    let unit = Unit { supervisor, ..unit };
    let plan = Hands::default().plan(&unit, &UnitFacts::of(&unit), &[]).await;
    assert!(matches!(&plan, Err(Refusal::Supervisor { why }) if why.contains("another supervisord")), "{plan:?}");
}

#[tokio::test]
async fn a_supervisord_that_is_gone_or_stuck_is_a_refusal_in_bounded_time() {
    let supervisord = Supervisord::start("worker", &plain("")).await;
    let unit = plain_unit(&supervisord).await;
    signal(supervisord.running.pid(), rustix::process::Signal::STOP);
    let plan = Hands::default().plan(&unit, &UnitFacts::of(&unit), &[]).await;
    signal(supervisord.running.pid(), rustix::process::Signal::CONT);
    assert!(matches!(&plan, Err(Refusal::Supervisor { why }) if why.contains("no answer")), "{plan:?}");
    std::fs::remove_file(supervisord.scratch.path.join("s.sock")).unwrap();
    let plan = Hands::default().plan(&unit, &UnitFacts::of(&unit), &[]).await;
    assert!(matches!(plan, Err(Refusal::Supervisor { .. })), "{plan:?}");
}

#[tokio::test]
async fn a_plan_and_a_hold_outlive_the_agent() {
    let supervisord = Supervisord::start("worker", &plain("")).await;
    let unit = plain_unit(&supervisord).await;
    let (hands, plan, hold) = planned(&unit).await;
    let stored = serde_json::to_string(&(&plan, hold.identities())).unwrap();
    hands.stop(&plan, &hold, at(0)).await.unwrap();
    drop((hands, plan, hold));
    // Killed between stop and start: another agent finds the plan on disk.
    let (plan, identities): (Plan, Vec<_>) = serde_json::from_str(&stored).unwrap();
    assert_eq!(plan.back, BringsBack::WhenAsked);
    let hold = Hold::again(&identities).unwrap();
    hold.ended().await;
    Hands::default().start(&plan, at(0)).await.unwrap();
    supervisord.up(NAME, Some(plan.root.pid)).await;
}
