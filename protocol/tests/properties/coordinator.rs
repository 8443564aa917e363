//! The coordinator, whatever its agents and its people say.

use crate::fleet::{Fleet, Law};
use proptest::prelude::*;
use unstale_protocol::coordinator::{Leadership, MaxUnavailable};
use unstale_protocol::message::{DoneResult, Mode};
use unstale_protocol::verdict::Verdict;

/// What happens next. Numbers of hosts, slots and apps are taken modulo.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// An agent reports.
    Say(usize),
    /// Every agent hears what is desired, and reports.
    Round,
    /// Another agent of the same name and the same life reports.
    SayTwin(usize),
    Ask {
        host: usize,
        first: bool,
        second: bool,
        both: bool,
        old_life: bool,
    },
    /// An agent's report goes out and is late.
    Write(usize),
    /// A report is on its way while an operator speaks of all apps.
    Race {
        host: usize,
        mode: Mode,
    },
    /// The bus delivers something late or once more, counted from the latest.
    Deliver(usize),
    Wait(u64),
    Lease(u64),
    LeaseLost,
    Broadcast {
        app: usize,
        variant: u8,
        canary: bool,
    },
    Mode {
        app: usize,
        mode: Mode,
    },
    Drain {
        host: usize,
        slot: usize,
        force: bool,
    },
    Undrain,
    Forget(usize),
    StateHosts(u32),
    /// The coordinator is killed and started again.
    Restart,
    /// The agents take the permits that they were sent.
    Act,
    /// One of the actions under way ends.
    End(usize, DoneResult),
    /// A unit ends or comes back by itself.
    Die(usize, usize),
    Judge(usize, usize, Verdict),
    Reborn(usize),
    /// An agent no longer hears what is desired, or hears it again.
    Deaf(usize),
    Leave(usize),
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let (host, slot) = (0_usize..3, 0_usize..2);
    let result = prop_oneof![
        4 => Just(DoneResult::Restarted),
        1 => Just(DoneResult::Drained),
        1 => Just(DoneResult::Refused),
        2 => Just(DoneResult::Failed),
        1 => Just(DoneResult::Unproven),
    ];
    let mode = prop_oneof![6 => Just(Mode::Run), 2 => Just(Mode::Pause), 1 => Just(Mode::Abort)];
    let verdict = prop_oneof![3 => Just(Verdict::Fresh), 1 => Just(Verdict::Stale), 1 => Just(Verdict::Unknown)];
    let ask = (host.clone(), any::<bool>(), any::<bool>(), any::<bool>(), prop::bool::weighted(0.05))
        .prop_map(|(host, first, second, both, old_life)| Input::Ask { host, first, second, both, old_life });
    let lease = prop_oneof![1 => 0_u64..40_000, 4 => Just(3_600_000)];
    let one = prop_oneof![
        12 => host.clone().prop_map(Input::Say),
        1 => host.clone().prop_map(Input::SayTwin),
        6 => Just(Input::Round),
        20 => ask,
        4 => host.clone().prop_map(Input::Write),
        8 => prop_oneof![(0_usize..8), (0_usize..200)].prop_map(Input::Deliver),
        8 => (0_u64..9_000).prop_map(Input::Wait),
        2 => (0_u64..100_000).prop_map(Input::Wait),
        4 => lease.prop_map(Input::Lease),
        1 => Just(Input::LeaseLost),
        2 => (0_usize..2, 0_u8..3, prop::bool::weighted(0.3))
            .prop_map(|(app, variant, canary)| Input::Broadcast { app, variant, canary }),
        2 => (0_usize..2, mode.clone()).prop_map(|(app, mode)| Input::Mode { app, mode }),
        4 => (host.clone(), mode).prop_map(|(host, mode)| Input::Race { host, mode }),
        1 => (host.clone(), slot.clone(), any::<bool>()).prop_map(|(host, slot, force)| Input::Drain { host, slot, force }),
        1 => Just(Input::Undrain),
        1 => host.clone().prop_map(Input::Forget),
        1 => (0_u32..4).prop_map(Input::StateHosts),
        1 => Just(Input::Restart),
        12 => Just(Input::Act),
        12 => (0_usize..6, result).prop_map(|(number, result)| Input::End(number, result)),
        1 => (host.clone(), slot.clone()).prop_map(|(host, slot)| Input::Die(host, slot)),
        6 => (host.clone(), slot, verdict).prop_map(|(host, slot, verdict)| Input::Judge(host, slot, verdict)),
        1 => host.clone().prop_map(Input::Reborn),
        1 => host.clone().prop_map(Input::Deaf),
        1 => host.prop_map(Input::Leave),
    ];
    prop::collection::vec(one, 0..150)
}

/// A fleet, and what happens in it. Most begin with both apps announced and every host heard.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a way to begin, and all of them go together")]
struct Story {
    configured: bool,
    foreign: bool,
    begun: bool,
    canary: bool,
    second_reign: bool,
    leased: bool,
    inputs: Vec<Input>,
}

fn stories() -> impl Strategy<Value = Story> {
    let seldom = || prop::bool::weighted(0.3);
    (any::<bool>(), seldom(), prop::bool::weighted(0.8), seldom(), seldom(), prop::bool::weighted(0.3), inputs())
        .prop_map(|(configured, foreign, begun, canary, second_reign, leased, inputs)| Story {
            configured,
            foreign,
            begun,
            canary,
            second_reign,
            leased,
            inputs,
        })
}

fn run(story: &Story) -> Fleet {
    let leadership = if story.leased { Leadership::Leased } else { Leadership::Sole };
    let mut fleet = Fleet::new(story.configured, story.foreign, leadership);
    if story.begun {
        fleet.feed(&Input::Lease(3_600_000));
        fleet.feed(&Input::Broadcast { app: 0, variant: 0, canary: story.canary });
        fleet.feed(&Input::Broadcast { app: 1, variant: 0, canary: false });
        let heard = if story.foreign { 2 } else { 3 };
        (0..heard).for_each(|host| fleet.feed(&Input::Say(host)));
        if story.second_reign {
            fleet.feed(&Input::Restart);
            fleet.feed(&Input::Lease(3_600_000));
            (0..heard).for_each(|host| fleet.feed(&Input::Say(host)));
        }
        fleet.feed(&Input::Wait(31_000));
    }
    for input in &story.inputs {
        fleet.feed(input);
    }
    fleet
}

fn keeps(story: &Story, law: Law) -> Result<(), TestCaseError> {
    crate::unbroken(&run(story).broken, &law)
}

proptest! {
    #![proptest_config(crate::config(300))]

    #[test]
    fn what_leaves_is_on_disk_before(story in stories()) {
        keeps(&story, Law::DiskFirst)?;
    }

    #[test]
    fn a_permit_answers_a_request_of_the_last_16_s_for_the_state_that_is_desired_now(story in stories()) {
        keeps(&story, Law::YoungRequest)?;
    }

    #[test]
    fn a_permit_goes_to_the_one_agent_of_its_name_that_was_heard_in_this_reign(story in stories()) {
        keeps(&story, Law::RightAgent)?;
    }

    #[test]
    fn a_new_reign_waits_before_its_first_permit(story in stories()) {
        keeps(&story, Law::Takeover)?;
    }

    #[test]
    fn nothing_is_granted_outside_the_lease(story in stories()) {
        keeps(&story, Law::Lease)?;
    }

    #[test]
    fn a_lost_list_of_hosts_stops_all_permits_until_its_length_is_stated(story in stories()) {
        keeps(&story, Law::LostFleet)?;
    }

    #[test]
    fn no_permit_goes_beyond_the_budget_of_any_pool_of_the_unit(story in stories()) {
        keeps(&story, Law::Budget)?;
    }

    #[test]
    fn the_rest_of_a_pool_waits_for_the_canary(story in stories()) {
        keeps(&story, Law::Canary)?;
    }

    #[test]
    fn only_current_revisions_that_run_are_granted(story in stories()) {
        keeps(&story, Law::Mode)?;
    }

    #[test]
    fn a_permit_is_freed_by_its_hosts_report_and_by_nothing_else(story in stories()) {
        keeps(&story, Law::Freed)?;
    }

    #[test]
    fn a_report_counts_once_and_none_counts_that_is_older_or_of_a_second_agent(story in stories()) {
        keeps(&story, Law::Heard)?;
    }

    #[test]
    fn what_may_be_granted_is_granted(story in stories()) {
        keeps(&story, Law::Withheld)?;
    }

    #[test]
    fn what_is_desired_changes_for_the_app_that_was_spoken_of_and_never_goes_back(story in stories()) {
        keeps(&story, Law::Desired)?;
    }

    #[test]
    fn converged_is_said_when_everything_is_proven_and_only_then(story in stories()) {
        keeps(&story, Law::Verdict)?;
    }

    #[test]
    fn a_silent_host_is_named(story in stories()) {
        keeps(&story, Law::Named)?;
    }

    #[test]
    fn the_driver_is_never_called_at_once_again(story in stories()) {
        keeps(&story, Law::Spin)?;
    }
}

/// What a story seldom comes to is told on purpose.
fn told(begun: bool, inputs: Vec<Input>) -> Fleet {
    let story =
        Story { configured: false, foreign: false, begun, canary: false, second_reign: false, leased: false, inputs };
    run(&story)
}

#[test]
fn where_nobody_holds_the_app_nothing_is_proven() {
    let announced = Input::Broadcast { app: 0, variant: 0, canary: false };
    let fleet = told(false, vec![announced, Input::Wait(69_000), Input::Wait(2_000), Input::Wait(60_000)]);
    assert_eq!(fleet.broken, []);
}

#[test]
fn a_fleet_with_a_silent_host_is_not_proven() {
    let fresh = (0..6).map(|number| Input::Judge(number / 2, number % 2, Verdict::Fresh));
    let heard = [Input::Round, Input::Wait(100_000), Input::Say(1), Input::Say(2)];
    let silence = [Input::Wait(79_000), Input::Wait(2_000)];
    let fleet = told(true, fresh.chain(heard).chain(silence).collect());
    assert_eq!(fleet.broken, []);
}

#[test]
fn of_several_units_one_always_stays() {
    let of = |limit: &str, total| limit.parse::<MaxUnavailable>().unwrap().of(total);
    assert_eq!([0, 1, 2, 3, 9].map(|total| of("3", total)), [1, 1, 1, 2, 3]);
    assert_eq!([0, 1, 2, 3, 9].map(|total| of("100%", total)), [1, 1, 1, 2, 8]);
    assert_eq!([1, 9, 10, 39].map(|total| of("10%", total)), [1, 1, 1, 3]);
}

#[test]
fn the_stories_are_worth_telling() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let granted: u32 = (0..100).map(|_| run(&stories().new_tree(&mut runner).unwrap().current()).granted).sum();
    assert!(granted > 120, "only {granted} permits in 100 stories");
}
