//! How one kind of unit takes new code and how it ends, before anybody is asked who brings it back.

use super::{StopSignal, Trap};

/// What makes a unit import its code again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// The root stays, or executes itself; its children are replaced.
    Reload(StopSignal),
    /// The root ends and is started again.
    End(StopSignal),
}

/// What a supervisor sees when the unit has ended in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It exits with this code.
    Code(i32),
    /// The signal ends it after its work is done.
    Signal(i32),
}

/// How one kind of unit is handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    /// What makes it import its code again.
    pub(crate) act: Act,
    /// What lets it finish and end; `None` where only its supervisor's stop does.
    pub(crate) drain: Option<StopSignal>,
    /// How that end looks.
    pub(crate) exit: Exit,
    /// Whether it runs tasks that a signal to its children would lose.
    pub(crate) has_tasks: bool,
    /// What is worth a word.
    pub(crate) notes: Vec<Trap>,
}
