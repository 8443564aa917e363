//! The verdict on one enum of one worker: the table of the design, first line that fits.
//!
//! Callers read the layers and say what they found; nothing here looks at a definition itself.

use serde::{Deserialize, Serialize};

/// What can be said of an enum, a worker, a unit or a host. Unknown is never counted as fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Proven to hold what is wanted.
    Fresh,
    /// Cannot be judged by nature; outside verdicts. Never a worker's or a unit's.
    Untracked,
    /// Not proven either way.
    Unknown,
    /// Proven to hold something else.
    Stale,
}

impl Verdict {
    /// Returns the word as JSON has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Untracked => "untracked",
            Self::Unknown => "unknown",
            Self::Stale => "stale",
        }
    }
}

/// What would make a stale enum fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cure {
    /// Nothing is needed.
    None,
    /// Remove stale bytecode; the process may stay.
    Purge,
    /// Restart the unit.
    Restart,
    /// Remove stale bytecode, then restart the unit.
    PurgeThenRestart,
    /// A restart would load the wrong source again: wait until the files have arrived.
    WaitForSource,
    /// The source lies in an immutable image: only a deploy helps.
    Deploy,
}

impl Cure {
    /// Tells whether the unit has to be restarted, now that everything else is right.
    pub fn is_restart(self) -> bool {
        matches!(self, Self::Restart | Self::PurgeThenRestart)
    }

    /// Tells whether bytecode has to be purged.
    pub fn is_purge(self) -> bool {
        matches!(self, Self::Purge | Self::PurgeThenRestart)
    }
}

/// What memory says of the enum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The read was complete and the enum is not there.
    NotLoaded,
    /// Definition and bindings equal the wanted ones.
    Equal,
    /// Something differs; the text says what, for people.
    Different(String),
    /// It is loaded, but cannot be judged by nature; the text says why.
    Untracked(String),
    /// Nothing can be said; the text names the missing right, version or ambiguity.
    Unknown(String),
}

/// What the source that would be imported at the next start says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// It equals what is wanted.
    Right,
    /// It differs, is gone, or cannot be read; the text says which.
    NotRight(String),
    /// As `NotRight`, and it lies in an immutable image.
    Immutable(String),
}

/// What the bytecode says that this interpreter would use for that source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bytecode {
    /// There is none, CPython would not accept it, or it equals the source.
    Right,
    /// CPython would accept it although it differs from the source.
    Wrong,
    /// It would be accepted and cannot be decoded; the text says why.
    Unknown(String),
}

/// The layers of one enum, as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers {
    /// In the live process.
    pub memory: Memory,
    /// At the next start.
    pub source: Source,
    /// For that source.
    pub bytecode: Bytecode,
}

/// A verdict with what it rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// What would cure it.
    pub cure: Cure,
    /// What it rests on, as it stands after the word *because*.
    pub because: String,
}

impl Judgement {
    fn new(verdict: Verdict, cure: Cure, because: impl Into<String>) -> Self {
        Self { verdict, cure, because: because.into() }
    }
}

/// Judges one enum: the first line of the design's table that fits.
pub fn judge(layers: &Layers) -> Judgement {
    let restart = match layers.bytecode {
        Bytecode::Wrong => Cure::PurgeThenRestart,
        Bytecode::Right | Bytecode::Unknown(_) => Cure::Restart,
    };
    match (&layers.memory, &layers.source, &layers.bytecode) {
        (Memory::Unknown(why), ..) => Judgement::new(Verdict::Unknown, Cure::None, why),
        (Memory::Untracked(why), ..) => Judgement::new(Verdict::Untracked, Cure::None, why),
        (Memory::Equal, _, Bytecode::Wrong) => Judgement::new(
            Verdict::Fresh,
            Cure::Purge,
            "memory equals what is wanted; its bytecode does not and would come back at the next start",
        ),
        (Memory::Equal, ..) => Judgement::new(Verdict::Fresh, Cure::None, "memory equals what is wanted"),
        (Memory::Different(what), Source::Right, Bytecode::Unknown(why)) => {
            Judgement::new(Verdict::Stale, restart, format!("{what}; its bytecode could not be judged: {why}"))
        }
        (Memory::Different(what), Source::Right, Bytecode::Wrong) => {
            Judgement::new(Verdict::Stale, restart, format!("{what}; its bytecode is stale too"))
        }
        (Memory::Different(what), Source::Right, Bytecode::Right) => Judgement::new(Verdict::Stale, restart, what),
        (Memory::Different(what), Source::NotRight(why), _) => {
            Judgement::new(Verdict::Stale, Cure::WaitForSource, format!("{what}; waiting for source: {why}"))
        }
        (Memory::Different(what), Source::Immutable(why), _) => {
            Judgement::new(Verdict::Stale, Cure::Deploy, format!("{what}; needs deploy: {why}"))
        }
        (Memory::NotLoaded, Source::NotRight(why), _) => {
            Judgement::new(Verdict::Stale, Cure::WaitForSource, format!("not loaded; waiting for source: {why}"))
        }
        (Memory::NotLoaded, Source::Immutable(why), _) => {
            Judgement::new(Verdict::Stale, Cure::Deploy, format!("not loaded; needs deploy: {why}"))
        }
        (Memory::NotLoaded, Source::Right, Bytecode::Wrong) => {
            Judgement::new(Verdict::Stale, Cure::Purge, "not loaded, and its bytecode is stale")
        }
        (Memory::NotLoaded, Source::Right, Bytecode::Unknown(why)) => Judgement::new(
            Verdict::Unknown,
            Cure::None,
            format!("not loaded, and its bytecode could not be judged: {why}"),
        ),
        (Memory::NotLoaded, Source::Right, Bytecode::Right) => {
            Judgement::new(Verdict::Fresh, Cure::None, "not loaded, and its source is right")
        }
    }
}

/// Adds verdicts up: any stale one wins, then any unknown one; untracked ones count for nothing.
///
/// Returns `None` where nothing was judged, which proves nothing.
pub fn sum(verdicts: impl IntoIterator<Item = Verdict>) -> Option<Verdict> {
    verdicts.into_iter().filter(|verdict| *verdict != Verdict::Untracked).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(memory: Memory, source: Source, bytecode: Bytecode, verdict: Verdict, cure: Cure) {
        let layers = Layers { memory, source, bytecode };
        let judgement = judge(&layers);
        assert_eq!((judgement.verdict, judgement.cure), (verdict, cure), "{layers:?}: {}", judgement.because);
    }

    #[test]
    fn every_line_of_the_table_holds() {
        let text = String::new;
        let different = || Memory::Different(text());
        check(Memory::Unknown(text()), Source::Right, Bytecode::Right, Verdict::Unknown, Cure::None);
        check(Memory::Equal, Source::Right, Bytecode::Right, Verdict::Fresh, Cure::None);
        check(Memory::Equal, Source::NotRight(text()), Bytecode::Wrong, Verdict::Fresh, Cure::Purge);
        check(different(), Source::Right, Bytecode::Right, Verdict::Stale, Cure::Restart);
        check(different(), Source::Right, Bytecode::Wrong, Verdict::Stale, Cure::PurgeThenRestart);
        check(different(), Source::NotRight(text()), Bytecode::Wrong, Verdict::Stale, Cure::WaitForSource);
        check(different(), Source::Immutable(text()), Bytecode::Right, Verdict::Stale, Cure::Deploy);
        check(Memory::NotLoaded, Source::Right, Bytecode::Right, Verdict::Fresh, Cure::None);
        check(Memory::NotLoaded, Source::Right, Bytecode::Wrong, Verdict::Stale, Cure::Purge);
        check(Memory::NotLoaded, Source::NotRight(text()), Bytecode::Right, Verdict::Stale, Cure::WaitForSource);
        check(Memory::NotLoaded, Source::Right, Bytecode::Unknown(text()), Verdict::Unknown, Cure::None);
    }

    #[test]
    fn unknown_is_never_counted_as_fresh() {
        use Verdict::{Fresh, Stale, Unknown, Untracked};
        assert_eq!(sum([Fresh, Unknown, Fresh]), Some(Unknown));
        assert_eq!(sum([Unknown, Stale]), Some(Stale));
        assert_eq!(sum([Untracked, Fresh]), Some(Fresh));
        assert_eq!(sum([Untracked]), None);
    }
}
