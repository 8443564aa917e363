//! How the other kinds take new code, and which of them end without losing work.

use super::facts::UnitFacts;
use super::way::{Act, Exit, Way};
use super::{Refusal, StopSignal, Trap};
use crate::process::{Kind, Unit};

/// `SIGTERM` as a number, for exits.
const TERM: i32 = 15;

/// Tells how a unit of a kind other than Celery worker and gunicorn is handled.
///
/// # Errors
/// [`Refusal::EndsByItself`] where a restart would change nothing.
pub(crate) fn way(unit: &Unit, facts: &UnitFacts) -> Result<Way, Refusal> {
    let term = Way {
        act: Act::End(StopSignal::Term),
        drain: Some(StopSignal::Term),
        exit: Exit::Code(0),
        has_tasks: false,
        notes: Vec::new(),
    };
    // Without a child there is nothing that a reload would replace.
    let clean_parent = facts.root_holds == Some(false) && unit.processes.len() > 1;
    let reload = |way: Way| {
        let mut notes = way.notes;
        notes.push(Trap::ReloadEndsOnBadCode);
        Way { act: Act::Reload(StopSignal::Hup), notes, ..way }
    };
    let with = |note: Trap| Way { notes: vec![note], ..term.clone() };
    Ok(match unit.kind {
        Kind::Celery | Kind::Gunicorn | Kind::Beat | Kind::Flower | Kind::Python => term,
        Kind::Uvicorn if clean_parent => Way { act: Act::Reload(StopSignal::Hup), ..term },
        // It lets the signal end it once its requests are answered.
        Kind::Uvicorn => Way { exit: Exit::Signal(TERM), ..with(Trap::RefusesMeanwhile) },
        // Its master executes itself, so it imports anew whatever it holds. `TERM` may be a reload too.
        Kind::Uwsgi => Way { drain: None, ..reload(term) },
        Kind::Hypercorn if clean_parent => reload(term),
        Kind::Hypercorn | Kind::Daphne => with(Trap::CutsRequests),
        Kind::Granian if clean_parent => reload(term),
        Kind::Granian => with(Trap::RefusesMeanwhile),
        // `TERM` cuts its requests, `INT` lets them finish.
        Kind::Waitress => {
            Way { act: Act::End(StopSignal::Int), drain: Some(StopSignal::Int), ..with(Trap::RefusesMeanwhile) }
        }
        Kind::Rq if facts.root_holds == Some(false) => return Err(Refusal::EndsByItself),
        Kind::Rq => Way { has_tasks: true, ..term },
        // Both execute themselves in place, and drain before.
        Kind::Dramatiq => Way { has_tasks: true, ..reload(term) },
        Kind::Huey => Way { drain: Some(huey_drain(facts)), has_tasks: true, ..reload(term) },
        Kind::Arq => Way { has_tasks: true, ..with(Trap::RepeatsJobs) },
        Kind::Taskiq if clean_parent => Way { has_tasks: true, ..reload(term) },
        Kind::Taskiq => Way { has_tasks: true, ..term },
    })
}

/// Huey ends in order on `INT` and at once on `TERM`, and the other way round with `-g TERM`.
fn huey_drain(facts: &UnitFacts) -> StopSignal {
    match facts.option(&["-g"]).as_deref() {
        Some("TERM" | "SIGTERM") => StopSignal::Term,
        _ => StopSignal::Int,
    }
}
