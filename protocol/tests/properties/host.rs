//! The agent's mind, whatever its host and its coordinator do.

use crate::site::{Law, Site};
use proptest::prelude::*;
use unstale_protocol::message::Mode;

/// What is wrong with a permit.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Twist {
    Nothing,
    Host,
    Life,
    Future,
    Version,
    Root,
    Slot,
    Purpose,
    Must,
}

/// What happens next. Numbers of slots and apps are taken modulo.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// The coordinator announces the next revision of an app.
    Announce(usize),
    Mode(usize, Mode),
    Drain(usize),
    Undrain,
    /// The coordinator begins a new reign.
    Reign,
    /// A desired state arrives, counted from the newest.
    Hear(usize),
    /// A coordinator that was replaced still talks.
    HearReplaced,
    /// The files of an app become what is wanted, perhaps with stale bytecode beside them.
    Source(usize, bool),
    Scan {
        full: bool,
        /// How long before its end it was begun, in milliseconds.
        late: u64,
    },
    /// A permit arrives that answers one of the last requests.
    Permit {
        slot: usize,
        back: usize,
        twist: Twist,
    },
    /// What was asked of the hands is done, well or not.
    Answer(usize, bool),
    /// Whatever is next on a slot where all goes well.
    Advance(usize),
    /// A unit ends.
    End(usize),
    /// Its supervisor brings it back.
    Back(usize),
    /// It comes back with what it held before.
    BackOld(usize),
    /// Its supervisor lists it no more, or again.
    List(usize),
    /// Its memory cannot be read any more, or can be again.
    Hide(usize),
    Purged(bool),
    Wait(u64),
    Connect,
    /// The agent is killed and started again.
    Kill,
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let (slot, app) = (0_usize..2, 0_usize..2);
    let mode = prop_oneof![4 => Just(Mode::Run), 1 => Just(Mode::Pause), 1 => Just(Mode::Halt), 1 => Just(Mode::Abort)];
    let twist = prop_oneof![
        16 => Just(Twist::Nothing),
        1 => Just(Twist::Host),
        1 => Just(Twist::Life),
        1 => Just(Twist::Future),
        1 => Just(Twist::Version),
        1 => Just(Twist::Root),
        1 => Just(Twist::Slot),
        1 => Just(Twist::Purpose),
        1 => Just(Twist::Must),
    ];
    let back = prop_oneof![4 => Just(0_usize), 1 => 0_usize..5];
    let late = prop_oneof![2 => Just(0_u64), 1 => 0_u64..4_000];
    let well = prop::bool::weighted(0.9);
    let permit =
        (slot.clone(), back.clone(), twist).prop_map(|(slot, back, twist)| Input::Permit { slot, back, twist });
    let one = prop_oneof![
        2 => app.clone().prop_map(Input::Announce),
        2 => (app.clone(), mode).prop_map(|(app, mode)| Input::Mode(app, mode)),
        1 => slot.clone().prop_map(Input::Drain),
        1 => Just(Input::Undrain),
        1 => Just(Input::Reign),
        12 => back.prop_map(Input::Hear),
        1 => Just(Input::HearReplaced),
        8 => (app, prop::bool::weighted(0.3)).prop_map(|(app, dirty)| Input::Source(app, dirty)),
        24 => (prop::bool::weighted(0.8), late).prop_map(|(full, late)| Input::Scan { full, late }),
        16 => permit,
        8 => (slot.clone(), well).prop_map(|(slot, well)| Input::Answer(slot, well)),
        50 => slot.clone().prop_map(Input::Advance),
        4 => slot.clone().prop_map(Input::End),
        6 => slot.clone().prop_map(Input::Back),
        4 => slot.clone().prop_map(Input::BackOld),
        1 => slot.clone().prop_map(Input::List),
        1 => slot.prop_map(Input::Hide),
        4 => well.prop_map(Input::Purged),
        8 => (0_u64..3_000).prop_map(Input::Wait),
        12 => (0_u64..14_000).prop_map(Input::Wait),
        1 => (0_u64..90_000).prop_map(Input::Wait),
        1 => Just(Input::Connect),
        1 => Just(Input::Kill),
    ];
    prop::collection::vec(one, 0..250)
}

/// Most begin with an app announced and its files here.
fn stories() -> impl Strategy<Value = Vec<Input>> {
    let begin = [
        Input::Scan { full: true, late: 0 },
        Input::Announce(0),
        Input::Announce(1),
        Input::Hear(0),
        Input::Source(0, false),
        Input::Source(1, false),
        Input::Scan { full: true, late: 0 },
    ];
    (prop::bool::weighted(0.8), inputs()).prop_map(move |(begun, inputs)| {
        let begin = if begun { begin.to_vec() } else { Vec::new() };
        begin.into_iter().chain(inputs).collect()
    })
}

fn run(story: &[Input]) -> Site {
    let mut site = Site::new();
    for input in story {
        site.feed(input);
    }
    site
}

fn keeps(story: &[Input], law: Law) -> Result<(), TestCaseError> {
    crate::unbroken(&run(story).broken, &law)
}

proptest! {
    #![proptest_config(crate::config(300))]

    #[test]
    fn an_action_begins_only_with_a_permit_for_what_is_wanted_now(story in stories()) {
        keeps(&story, Law::Permit)?;
    }

    #[test]
    fn what_is_desired_never_goes_back_and_a_refusal_is_said(story in stories()) {
        keeps(&story, Law::Order)?;
    }

    #[test]
    fn nothing_is_purged_under_pause_and_abort(story in stories()) {
        keeps(&story, Law::Purge)?;
    }

    #[test]
    fn only_what_is_proven_stale_and_would_be_cured_is_asked_for(story in stories()) {
        keeps(&story, Law::Ask)?;
    }

    #[test]
    fn what_failed_is_not_tried_again_in_the_same_attempt(story in stories()) {
        keeps(&story, Law::Retry)?;
    }

    #[test]
    fn abort_wins_before_the_stop_and_cancels_nothing_else(story in stories()) {
        keeps(&story, Law::Abort)?;
    }

    #[test]
    fn no_process_is_stopped_twice(story in stories()) {
        keeps(&story, Law::StopOnce)?;
    }

    #[test]
    fn what_is_about_to_be_done_is_on_disk(story in stories()) {
        keeps(&story, Law::DiskFirst)?;
    }

    #[test]
    fn a_host_is_proven_by_two_looks_at_its_files_and_fresh_units(story in stories()) {
        keeps(&story, Law::Proven)?;
    }

    #[test]
    fn a_drained_slot_stays_drained_until_it_is_given_back(story in stories()) {
        keeps(&story, Law::Drained)?;
    }

    #[test]
    fn pools_count_what_is_away(story in stories()) {
        keeps(&story, Law::Pools)?;
    }

    #[test]
    fn what_we_stopped_is_never_gone(story in stories()) {
        keeps(&story, Law::Gone)?;
    }

    #[test]
    fn reports_are_numbered_within_a_life(story in stories()) {
        keeps(&story, Law::Sequence)?;
    }

    #[test]
    fn the_driver_is_never_called_at_once_again(story in stories()) {
        keeps(&story, Law::Spin)?;
    }
}

#[test]
fn the_stories_are_worth_telling() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let restarted: u32 = (0..100).map(|_| run(&stories().new_tree(&mut runner).unwrap().current()).restarted).sum();
    assert!(restarted > 20, "only {restarted} restarts in 100 stories");
}
