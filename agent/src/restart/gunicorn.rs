//! How gunicorn takes new code: `HUP` replaces the workers, which import it anew, unless the master holds it.

use super::facts::UnitFacts;
use super::way::{Act, Exit, Way};
use super::{StopSignal, Trap};

/// Tells how a master takes new code.
///
/// A master that holds the class forks it into every new worker, so it must end itself. One that may hold it is
/// taken to hold it.
pub(crate) fn way(facts: &UnitFacts) -> Way {
    let clean = facts.root_holds == Some(false);
    let notes =
        if clean { vec![Trap::ReloadEndsOnBadCode] } else { vec![Trap::HupImportsNothing, Trap::RefusesMeanwhile] };
    Way {
        act: if clean { Act::Reload(StopSignal::Hup) } else { Act::End(StopSignal::Term) },
        drain: Some(StopSignal::Term),
        exit: Exit::Code(0),
        has_tasks: false,
        notes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clean_master_is_told_to_hang_up() {
        for (holds, expected) in [
            (Some(false), Act::Reload(StopSignal::Hup)),
            (Some(true), Act::End(StopSignal::Term)),
            (None, Act::End(StopSignal::Term)),
        ] {
            assert_eq!(way(&UnitFacts { root_holds: holds, ..UnitFacts::default() }).act, expected);
        }
    }
}
