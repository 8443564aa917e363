//! How Celery ends: `TERM` to the main process, and nothing else.
//!
//! `HUP` ends a worker that was started with `-m` and turns a stop into a restart; `QUIT` loses tasks; a signal to a
//! child or to all loses the tasks in hand.

use super::facts::{Pool, UnitFacts};
use super::hand::InHand;
use super::way::{Act, Exit, Way};
use super::{Refusal, StopSignal, Trap};

/// Tells how a worker, `hand` of which was just looked at, is ended.
///
/// # Errors
/// [`Refusal`] where `TERM` would lose a running task.
pub(crate) fn way(facts: &UnitFacts, hand: &InHand) -> Result<Way, Refusal> {
    if let Some(value) = &facts.remap_sigterm {
        let place = "in its environment".to_owned();
        return Err(Refusal::RemapSigterm { value: value.clone(), place });
    }
    let mut notes = Vec::new();
    let pool = facts.pool();
    let version = facts.celery_version.as_deref();
    if pool == Pool::Solo && version.is_none_or(aborts_solo) && !hand.is_idle() {
        let state = if hand.busy.is_empty() { "cannot be seen to be idle" } else { "is busy" };
        let version = version.unwrap_or("of an unknown version").to_owned();
        return Err(Refusal::BusySolo { version, state: state.to_owned() });
    }
    if matches!(pool, Pool::Threads | Pool::Gevent | Pool::Eventlet) {
        notes.push(Trap::PrefetchFirst);
    }
    if !facts.environment_known {
        notes.push(Trap::RemapHidden);
    }
    if facts.by_module() {
        notes.push(Trap::HupEndsModule);
    }
    Ok(Way {
        act: Act::End(StopSignal::Term),
        drain: Some(StopSignal::Term),
        exit: Exit::Code(0),
        has_tasks: true,
        notes,
    })
}

/// Celery before 5.3 aborts the task of a solo worker on `TERM`; measured in 5.2.7, finished by 5.4 and 5.6.
fn aborts_solo(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (5, 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use unstale_protocol::ids::Pid;

    fn solo(version: &str) -> UnitFacts {
        UnitFacts {
            pool: Some(Pool::Solo),
            celery_version: Some(version.to_owned()),
            environment_known: true,
            ..UnitFacts::default()
        }
    }

    #[test]
    fn a_busy_solo_worker_of_old_is_left_alone() {
        let busy = InHand { busy: vec![Pid(7)], ..InHand::default() };
        let unseen = InHand { unknown: vec![Pid(7)], ..InHand::default() };
        let idle = InHand { idle: vec![Pid(7)], ..InHand::default() };
        assert!(matches!(way(&solo("5.2.7"), &busy), Err(Refusal::BusySolo { .. })));
        assert!(matches!(way(&solo("5.2.7"), &unseen), Err(Refusal::BusySolo { .. })));
        assert!(way(&solo("5.2.7"), &idle).is_ok());
        assert!(way(&solo("5.4.0"), &busy).is_ok());
    }

    #[test]
    fn a_remapped_term_is_refused_and_a_hidden_environment_noted() {
        let mut facts = UnitFacts { remap_sigterm: Some("SIGQUIT".to_owned()), ..UnitFacts::default() };
        assert!(matches!(way(&facts, &InHand::default()), Err(Refusal::RemapSigterm { .. })));
        facts.remap_sigterm = None;
        assert!(way(&facts, &InHand::default()).unwrap().notes.contains(&Trap::RemapHidden));
    }

    #[test]
    fn a_worker_is_never_told_to_hang_up() {
        for line in [&["python", "-m", "celery"][..], &["python", "/venv/bin/celery"]] {
            let facts =
                UnitFacts { argv: line.iter().map(|word| (*word).to_owned()).collect(), ..UnitFacts::default() };
            let way = way(&facts, &InHand::default()).unwrap();
            assert_eq!((way.act, way.drain), (Act::End(StopSignal::Term), Some(StopSignal::Term)));
            assert_eq!(way.notes.contains(&Trap::HupEndsModule), line.contains(&"-m"));
        }
    }
}
