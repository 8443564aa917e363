//! `unstale keys`: making, showing, enrolling, rotating keys.

use crate::cli::{KeyRole, KeysArgs, KeysCommand, Output, Surroundings};
use crate::config::Config;
use crate::host;
use crate::keys::{KeyError, KeyPlace, PublicKey, Role};
use crate::render;
use crate::report::{self, Exit};
use anyhow::Context as _;
use serde::Serialize;
use std::io::Read as _;

/// Longest text that `enrol -` reads.
const INPUT_MAX_BYTES: u64 = 8 << 20;

/// `unstale.keys/1`.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    pub(crate) schema: &'static str,
    /// The directory.
    pub(crate) directory: String,
    pub(crate) keys: Vec<ShownKey>,
}

/// One key.
#[derive(Debug, Serialize)]
pub(crate) struct ShownKey {
    pub(crate) id: String,
    /// `coordinator`, `agent`.
    pub(crate) role: &'static str,
    /// An agent's host.
    pub(crate) host: Option<String>,
    /// The line to enrol.
    pub(crate) public: String,
    /// It may speak, as far as this directory goes.
    pub(crate) enrolled: bool,
    /// Its private half is here.
    pub(crate) private: bool,
    /// It signs.
    pub(crate) in_use: bool,
}

pub(super) fn run(command: KeysCommand, surroundings: &Surroundings) -> anyhow::Result<Exit> {
    match command {
        KeysCommand::New(args) => {
            let (place, config) = find(&args.place, surroundings)?;
            let role = match args.role {
                KeyRole::Coordinator => Role::Coordinator,
                KeyRole::Agent => Role::Agent(
                    args.host
                        .or(config.agent.host)
                        .or_else(host::bus_name)
                        .context("this machine's name cannot stand on the bus: name the host with --host")?,
                ),
            };
            let (key, is_in_use) = place.make(&role)?;
            report::answer(&format!("{key}\n"));
            let others = match role {
                Role::Coordinator => "for every agent",
                Role::Agent(_) => "at the coordinator",
            };
            report::note(&format!("enrol it {others}: `unstale keys enrol {key}`"));
            if !is_in_use {
                report::note(&format!("then put it to use here: `unstale keys use {}`", key.id()));
            }
        }
        KeysCommand::Show(args) => {
            let (place, _) = find(&args.place, surroundings)?;
            show(&place, args.public, args.output.output)?;
        }
        KeysCommand::Enrol(args) => {
            let (place, _) = find(&args.place, surroundings)?;
            for line in lines(&args.lines)? {
                let key: PublicKey = line.parse().map_err(KeyError::NotAKey)?;
                let words = if place.enrol(&key)? { "enrolled" } else { "was enrolled before" };
                report::note(&format!("{words}: {} of {}", key.id(), key.role));
            }
        }
        KeysCommand::Use(args) => {
            let (place, _) = find(&args.place, surroundings)?;
            let key = place.put_to_use(&args.id)?;
            report::note(&format!("in use: {} of {}", key.id(), key.role));
        }
        KeysCommand::Remove(args) => {
            let (place, _) = find(&args.place, surroundings)?;
            place.remove(&args.id)?;
            report::note(&format!("removed: {}", args.id));
        }
    }
    Ok(Exit::Clean)
}

fn find(args: &KeysArgs, surroundings: &Surroundings) -> anyhow::Result<(KeyPlace, Config)> {
    let config = Config::read(args.config.config.as_deref())?;
    let stated = args.keys.keys.as_deref().or(Some(&config.bus.keys));
    Ok((KeyPlace::choose(stated, surroundings)?, config))
}

/// Returns the lines that were given, or where one is `-` those of the standard input.
fn lines(given: &[String]) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for line in given {
        if line == "-" {
            let mut text = String::new();
            std::io::stdin().take(INPUT_MAX_BYTES).read_to_string(&mut text).context("cannot read the input")?;
            let is_key = |line: &&str| !line.trim().is_empty() && !line.starts_with('#');
            all.extend(text.lines().filter(is_key).map(str::to_owned));
        } else {
            all.push(line.clone());
        }
    }
    Ok(all)
}

fn show(place: &KeyPlace, only_public: bool, form: Output) -> anyhow::Result<()> {
    let (coordinators, agents) = (place.read_coordinators()?, place.read_agents()?);
    let privates = place.privates()?;
    if only_public {
        for (_, key, _) in privates.iter().filter(|(_, _, is_in_use)| *is_in_use) {
            report::answer(&format!("{}\n", key.public()));
        }
        return Ok(());
    }
    let shown = |key: &PublicKey, enrolled: bool| {
        let half = privates.iter().find(|(_, private, _)| private.public() == *key);
        ShownKey {
            id: key.id().to_string(),
            role: key.role.word(),
            host: match &key.role {
                Role::Coordinator => None,
                Role::Agent(host) => Some(host.to_string()),
            },
            public: key.to_string(),
            enrolled,
            private: half.is_some(),
            in_use: half.is_some_and(|(_, _, is_in_use)| *is_in_use),
        }
    };
    let mut keys: Vec<ShownKey> = coordinators.keys().chain(agents.keys()).map(|key| shown(key, true)).collect();
    for (_, private, _) in &privates {
        let key = private.public();
        if coordinators.find(&key.id()).or(agents.find(&key.id())).is_none() {
            keys.push(shown(&key, false));
        }
    }
    let shown = Shown { schema: "unstale.keys/1", directory: place.path().display().to_string(), keys };
    match form {
        Output::Json => report::answer_json(&shown),
        Output::Text => report::answer(&render::keys::text(&shown)),
    }
    Ok(())
}
