//! `unstale state dump`: the stores as JSON.

use crate::cli::{StateDumpArgs, Surroundings};
use crate::config::Config;
use crate::report::{self, Exit};
use crate::store::{self, StateDir, StoreError, Which};

pub(super) fn dump(args: &StateDumpArgs, surroundings: &Surroundings) -> anyhow::Result<Exit> {
    let config = Config::read(args.config.config.as_deref())?;
    let path = store::choose_dir(args.state.state_dir.as_deref(), &config, surroundings)?;
    let exists = |which: Which| path.join(which.file_name()).exists();
    if !exists(Which::Coordinator) && !exists(Which::Agent) {
        return Err(StoreError::Missing { path }.into());
    }
    let state = StateDir::take(&path)?;
    let mut all = serde_json::Map::new();
    all.insert("schema".to_owned(), "unstale.state/1".into());
    for (name, which) in [("coordinator", Which::Coordinator), ("agent", Which::Agent)] {
        if exists(which) {
            all.insert(name.to_owned(), state.open(which)?.dump()?);
        }
    }
    report::answer_json(&all);
    Ok(Exit::Clean)
}
