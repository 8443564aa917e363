//! One action on one unit, from permit to proof.

use proptest::prelude::*;
use std::time::Duration;
use unstale_protocol::fingerprint::Salt;
use unstale_protocol::ids::{DrainId, Incarnation, Pid, ProcessIdentity, SlotId, Version};
use unstale_protocol::message::{DoneResult, Nonce, Phase, Purpose};
use unstale_protocol::restart::{
    Action, Cleared, Finished, Intent, IntentPhase, Restart, RestartPolicy, Sight, Task, Verified,
};
use unstale_protocol::time::Moment;

#[derive(Clone, Debug)]
enum Input {
    Preflight(bool),
    Stopped(bool),
    Ended,
    Started(bool),
    Held(bool),
    Up(u32),
    Down,
    GaveUp,
    Verified(u8),
    Abort,
    Wait(u64),
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let one = prop_oneof![
        3 => any::<bool>().prop_map(Input::Preflight),
        3 => any::<bool>().prop_map(Input::Stopped),
        3 => Just(Input::Ended),
        2 => any::<bool>().prop_map(Input::Started),
        2 => any::<bool>().prop_map(Input::Held),
        4 => (1_u32..4).prop_map(Input::Up),
        1 => Just(Input::Down),
        1 => Just(Input::GaveUp),
        3 => (0_u8..4).prop_map(Input::Verified),
        1 => Just(Input::Abort),
        4 => (0_u64..40_000).prop_map(Input::Wait),
    ];
    // Most get somewhere: part of what happens when all goes well, and then anything.
    let path = prop::sample::select(vec![0, 0, 1, 2, 3, 4, 5, 6, 6, 6]);
    (path, 0_u64..12_000, prop::collection::vec(one, 0..40)).prop_map(|(steps, span, rest)| {
        let well = [
            Input::Preflight(true),
            Input::Stopped(true),
            Input::Ended,
            Input::Started(true),
            Input::Up(2),
            Input::Wait(span),
        ];
        well.into_iter().take(steps).chain(rest).collect()
    })
}

fn tasks() -> impl Strategy<Value = Task> {
    prop_oneof![
        Just(Task::Restart),
        (any::<Option<u16>>(), any::<bool>())
            .prop_map(|(limit, force)| Task::Drain { deadline_ms: limit.map(u64::from), force }),
        Just(Task::Undrain),
    ]
}

fn identity(pid: u32) -> ProcessIdentity {
    ProcessIdentity { pid: Pid(pid), start_ticks: 7, pid_namespace: 1 }
}

fn intent(task: Task) -> Intent {
    Intent {
        slot: SlotId::new("celery/none/x/0/1").unwrap(),
        identity: identity(1),
        version: Version::default(),
        nonce: Nonce { incarnation: Incarnation { counter: 1, random: Salt([0; 16]) }, at: Moment(0) },
        purpose: Purpose::Drain(DrainId::new("drain-1").unwrap()),
        task,
        phase: IntentPhase::Stopping,
        means: String::new(),
    }
}

/// What happened in one run, in order.
#[derive(Default)]
struct Trace {
    actions: Vec<(Moment, Action)>,
    /// How it ended, and the input that ended it.
    ended_by: Vec<(Finished, Input)>,
    /// When the machine saw the root that it went on to believe, and which.
    up_since: Option<(Moment, u32)>,
    /// That root was seen to be gone before the end.
    died: bool,
}

fn feed(machine: &mut Restart, input: &Input, now: &mut Moment) {
    match input {
        Input::Preflight(good) => {
            let answer = if *good { Ok(Cleared { means: "m".into(), ends_root: true }) } else { Err("no".into()) };
            machine.handle_preflight(answer, *now);
        }
        Input::Stopped(good) => machine.handle_stopped(if *good { Ok(()) } else { Err("no".into()) }, *now),
        Input::Ended => machine.handle_ended(*now),
        Input::Started(good) => machine.handle_started(if *good { Ok(()) } else { Err("no".into()) }, *now),
        Input::Held(good) => machine.handle_held(if *good { Ok(()) } else { Err("no".into()) }, *now),
        Input::Up(pid) => machine.handle_sight(&Sight::Up(identity(*pid)), *now),
        Input::Down => machine.handle_sight(&Sight::Down, *now),
        Input::GaveUp => machine.handle_sight(&Sight::GaveUp("x".into()), *now),
        Input::Verified(0) => machine.handle_verified(Verified::Fresh, *now),
        Input::Verified(1) => machine.handle_verified(Verified::Stale("x".into()), *now),
        Input::Verified(2) => machine.handle_verified(Verified::SourceMovedOn("x".into()), *now),
        Input::Verified(_) => machine.handle_verified(Verified::Unknown("x".into()), *now),
        Input::Abort => machine.handle_abort(*now),
        Input::Wait(span) => {
            *now = now.after(Duration::from_millis(*span));
            machine.handle_timeout(*now);
        }
    }
}

fn run(task: Task, recovered: Option<IntentPhase>, inputs: &[Input]) -> Trace {
    let mut now = Moment(0);
    let mut intent = intent(task);
    let mut machine = match recovered {
        None => Restart::new(intent, RestartPolicy::default(), now),
        Some(phase) => {
            intent.phase = phase;
            Restart::recover(intent, true, RestartPolicy::default(), now)
        }
    };
    let mut trace = Trace::default();
    drain(&mut machine, &mut trace, now);
    for input in inputs {
        match (machine.phase(), input, trace.up_since) {
            _ if !trace.ended_by.is_empty() => {}
            (Phase::Starting, Input::Up(pid), None) => trace.up_since = Some((now, *pid)),
            (Phase::Surviving | Phase::Verifying, Input::Up(pid), Some((_, root))) => trace.died |= *pid != root,
            (Phase::Surviving | Phase::Verifying, Input::Down | Input::GaveUp, Some(_)) => trace.died = true,
            _ => {}
        }
        let is_sight = matches!(input, Input::Up(_));
        feed(&mut machine, input, &mut now);
        if is_sight && machine.phase() == Phase::Starting {
            // It was the old root: nothing to believe yet.
            trace.up_since = None;
        }
        let before = trace.actions.len();
        drain(&mut machine, &mut trace, now);
        if let Some((_, Action::Finish(end))) = trace.actions.get(before..).and_then(<[_]>::last) {
            trace.ended_by.push((end.clone(), input.clone()));
        }
        if matches!(input, Input::Wait(_)) {
            assert!(machine.poll_timeout().is_none_or(|at| at > now), "the driver would spin");
        }
    }
    trace
}

fn drain(machine: &mut Restart, trace: &mut Trace, now: Moment) {
    while let Some(action) = machine.poll_action() {
        trace.actions.push((now, action));
    }
}

fn finished(trace: &Trace) -> Vec<&Finished> {
    trace
        .actions
        .iter()
        .filter_map(|(_, action)| if let Action::Finish(end) = action { Some(end) } else { None })
        .collect()
}

proptest! {
    #![proptest_config(crate::config(400))]

    #[test]
    fn a_unit_is_told_to_stop_at_most_once(task in tasks(), inputs in inputs()) {
        let trace = run(task, None, &inputs);
        let stops = trace.actions.iter().filter(|(_, action)| *action == Action::Stop).count();
        prop_assert!(stops <= 1);
    }

    #[test]
    fn an_agent_that_was_killed_never_repeats_a_stop(task in tasks(), phase in 0_u8..4, inputs in inputs()) {
        let phase = match phase {
            0 => IntentPhase::Stopping,
            1 => IntentPhase::Stopped,
            2 => IntentPhase::Starting,
            _ => IntentPhase::HoldingDown,
        };
        let trace = run(task, Some(phase), &inputs);
        prop_assert!(!trace.actions.iter().any(|(_, action)| *action == Action::Stop));
    }

    #[test]
    fn the_intent_is_on_disk_before_the_stop_and_before_the_start(task in tasks(), inputs in inputs()) {
        let trace = run(task, None, &inputs);
        for (index, (_, action)) in trace.actions.iter().enumerate() {
            let wanted = match action {
                Action::Stop => IntentPhase::Stopping,
                Action::Start => IntentPhase::Starting,
                Action::HoldDown => IntentPhase::HoldingDown,
                _ => continue,
            };
            let before = index.checked_sub(1).map(|index| &trace.actions[index].1);
            let is_written = matches!(before, Some(Action::Persist(intent)) if intent.phase == wanted);
            prop_assert!(is_written, "{action:?} after {before:?}");
        }
    }

    #[test]
    fn nothing_is_killed_but_at_a_stated_deadline_with_force(task in tasks(), inputs in inputs()) {
        let trace = run(task.clone(), None, &inputs);
        let sent = trace.actions.iter().find(|(_, action)| *action == Action::AwaitEnd).map(|(at, _)| *at);
        for (at, _) in trace.actions.iter().filter(|(_, action)| *action == Action::Kill) {
            let Task::Drain { deadline_ms: Some(limit), force: true } = task else {
                return Err(TestCaseError::fail(format!("killed in {task:?}")));
            };
            prop_assert!(*at >= sent.unwrap().after(Duration::from_millis(limit)));
        }
    }

    #[test]
    fn nothing_is_called_restarted_that_was_not_read_again_after_the_survival_window(inputs in inputs()) {
        let trace = run(Task::Restart, None, &inputs);
        for (end, input) in trace.ended_by.iter().filter(|(end, _)| end.result == DoneResult::Restarted) {
            prop_assert!(matches!(input, Input::Verified(0)), "{end:?} after {input:?}");
            let verify = trace.actions.iter().find(|(_, action)| *action == Action::Verify).map(|(at, _)| *at);
            let survived = verify.unwrap().since(trace.up_since.unwrap().0);
            prop_assert!(survived >= RestartPolicy::default().survival_window);
        }
    }

    #[test]
    fn a_unit_that_died_within_the_survival_window_is_not_called_restarted(inputs in inputs()) {
        let trace = run(Task::Restart, None, &inputs);
        prop_assert!(!trace.died || finished(&trace).into_iter().all(|end| end.result != DoneResult::Restarted));
    }

    #[test]
    fn an_action_ends_at_most_once_and_does_nothing_after(task in tasks(), inputs in inputs()) {
        let trace = run(task, None, &inputs);
        let end = trace.actions.iter().position(|(_, action)| matches!(action, Action::Finish(_)));
        prop_assert!(end.is_none_or(|end| end + 1 == trace.actions.len()));
    }

    #[test]
    fn what_was_called_back_was_never_touched(task in tasks(), inputs in inputs()) {
        let trace = run(task, None, &inputs);
        for end in finished(&trace).into_iter().filter(|end| end.result == DoneResult::Cancelled) {
            prop_assert!(!end.down);
            let is_touched = trace.actions.iter().any(|(_, action)| matches!(action, Action::Stop | Action::Start));
            prop_assert!(!is_touched);
        }
    }

    #[test]
    fn only_what_is_proven_bad_has_failed(task in tasks(), inputs in inputs()) {
        let trace = run(task, None, &inputs);
        // Of all that reading can say, only stale is bad.
        for (end, input) in trace.ended_by.iter().filter(|(end, _)| end.result == DoneResult::Failed) {
            prop_assert!(!matches!(input, Input::Verified(said) if *said != 1), "{end:?} after {input:?}");
        }
    }

    #[test]
    fn a_root_that_did_not_change_is_not_a_restart(inputs in inputs()) {
        // Every sight is of the root that was judged: it never ended.
        let same: Vec<_> = inputs.into_iter().map(|input| if let Input::Up(_) = input { Input::Up(1) } else { input }).collect();
        let trace = run(Task::Restart, None, &same);
        prop_assert!(finished(&trace).into_iter().all(|end| end.result != DoneResult::Restarted));
    }
}

#[test]
fn a_root_that_is_older_than_the_one_that_ended_is_not_its_new_life() {
    let older = ProcessIdentity { start_ticks: 6, ..identity(2) };
    let mut now = Moment(0);
    let mut machine = Restart::new(intent(Task::Restart), RestartPolicy::default(), now);
    for input in [Input::Preflight(true), Input::Stopped(true), Input::Ended, Input::Started(true)] {
        feed(&mut machine, &input, &mut now);
    }
    machine.handle_sight(&Sight::Up(older), now);
    assert_eq!(machine.phase(), Phase::Starting);
    machine.handle_sight(&Sight::Up(identity(2)), now);
    assert_eq!(machine.phase(), Phase::Surviving);
    // After a boot of the machine start times begin anew.
    let intent = Intent { phase: IntentPhase::Starting, ..intent(Task::Restart) };
    let mut machine = Restart::recover(intent, true, RestartPolicy::default(), now);
    machine.handle_sight(&Sight::Up(older), now);
    assert_eq!(machine.phase(), Phase::Surviving);
}
