//! Views of code: shared by the processes of one look, and kept for the next as long as everything behind them is as it
//! was. Judging the same modules again is most of what a look at a quiet host would cost.

use super::code::Found;
use crate::judge::CodeView;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Everything that a view was made from, beside the interpreter's version, which is part of the query.
#[derive(Debug)]
pub(super) struct Basis {
    /// Modules of the process, by their key in `sys.modules`.
    pub(super) loaded: BTreeMap<String, Found>,
    /// Modules that a manifest names and that are not loaded, by their path.
    pub(super) unloaded: BTreeMap<String, Found>,
    /// Modules that those take names from.
    pub(super) helpers: Vec<Round>,
}

/// One round of looking up what is missing.
#[derive(Debug)]
pub(super) struct Round {
    /// The names that were looked up.
    pub(super) missing: BTreeSet<String>,
    /// What of them was found, or `None` where they could not be looked up.
    pub(super) found: Option<Vec<Found>>,
}

#[derive(Debug)]
struct Kept {
    view: Arc<CodeView>,
    basis: Arc<Basis>,
    /// The look that made sure of it.
    sure_at: u64,
}

/// All views, by what was asked of the process's files.
#[derive(Debug, Default)]
pub(super) struct Views {
    kept: BTreeMap<String, Kept>,
    look: u64,
}

impl Views {
    /// Returns the view that another process was given in this look.
    pub(super) fn shared(&self, query: &str) -> Option<Arc<CodeView>> {
        self.kept.get(query).filter(|kept| kept.sure_at == self.look).map(|kept| Arc::clone(&kept.view))
    }

    /// Returns a view of an earlier look, with what it was made from.
    pub(super) fn earlier(&self, query: &str) -> Option<(Arc<CodeView>, Arc<Basis>)> {
        self.kept.get(query).map(|kept| (Arc::clone(&kept.view), Arc::clone(&kept.basis)))
    }

    /// Keeps a view that this look has made, or made sure of.
    pub(super) fn keep(&mut self, query: String, view: Arc<CodeView>, basis: Arc<Basis>) {
        self.kept.insert(query, Kept { view, basis, sure_at: self.look });
    }

    /// Ends a look; after a full one, forgets what it did not need.
    pub(super) fn end_look(&mut self, full: bool) {
        let look = self.look;
        if full {
            self.kept.retain(|_, kept| kept.sure_at == look);
        }
        self.look = look.saturating_add(1);
    }
}
