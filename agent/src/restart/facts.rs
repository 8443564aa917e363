//! What is known of a unit from its memory and from procfs, beyond the unit itself.

use crate::process::Unit;
use crate::reading::Interpreter;
use serde::{Deserialize, Serialize};

/// How a Celery worker runs its tasks: `-P`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// Child processes; the default.
    Prefork,
    /// In the main process itself.
    Solo,
    /// Threads.
    Threads,
    /// Green threads.
    Gevent,
    /// Green threads.
    Eventlet,
}

/// What the caller knows of a unit. Where something is not known the careful way is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitFacts {
    /// The command line: `sys.argv` of the root where it was read, else that of procfs.
    pub argv: Vec<String>,
    /// `sys.orig_argv` of the root, where it was read.
    pub orig_argv: Vec<String>,
    /// Whether the root itself holds a stale class: then its children must not be all that is replaced.
    pub root_holds: Option<bool>,
    /// `celery.__version__`, where known.
    pub celery_version: Option<String>,
    /// Celery's pool, where known better than from the command line.
    pub pool: Option<Pool>,
    /// `REMAP_SIGTERM`, where it is set.
    pub remap_sigterm: Option<String>,
    /// Whether the environment could be seen at all.
    pub environment_known: bool,
    /// Whether a title has overwritten the command line.
    pub titled: bool,
}

impl UnitFacts {
    /// Gathers what procfs alone says of `unit`. Memory can correct it.
    pub fn of(unit: &Unit) -> Self {
        let Some(root) = unit.root() else { return Self::default() };
        let remap = root.environment.iter().find(|(name, _)| name == "REMAP_SIGTERM");
        Self {
            argv: root.command.clone(),
            remap_sigterm: remap.map(|(_, value)| value.clone()).filter(|value| !value.is_empty()),
            environment_known: root.denied.is_none() && (!root.titled || !root.environment.is_empty()),
            titled: root.titled,
            ..Self::default()
        }
    }

    /// Adds what the root's interpreter says, where its memory was read.
    #[must_use]
    pub fn with_interpreter(mut self, interpreter: Option<&Interpreter>) -> Self {
        if let Some(interpreter) = interpreter {
            self.argv.clone_from(&interpreter.argv);
            self.orig_argv.clone_from(&interpreter.orig_argv);
            self.celery_version.clone_from(&interpreter.celery);
        }
        self
    }

    /// Returns Celery's pool: as told, else as the command line says, else prefork.
    pub fn pool(&self) -> Pool {
        self.pool.or_else(|| self.option(&["-P", "--pool"]).and_then(|name| pool(&name))).unwrap_or(Pool::Prefork)
    }

    /// Returns the value of the first of `names` on the command line: `-P solo`, `-Psolo`, `--pool=solo`.
    pub(crate) fn option(&self, names: &[&str]) -> Option<String> {
        let mut words = self.command().iter().flat_map(|word| word.split_whitespace());
        while let Some(word) = words.next() {
            for name in names {
                let Some(rest) = word.strip_prefix(name) else { continue };
                if rest.is_empty() {
                    return words.next().map(|value| value.trim_end_matches(')').to_owned());
                }
                let short = !name.starts_with("--");
                if let Some(value) = rest.strip_prefix('=').or(short.then_some(rest)) {
                    return Some(value.trim_end_matches(')').to_owned());
                }
            }
        }
        None
    }

    /// Tells whether the interpreter was started with `-m`.
    pub(crate) fn by_module(&self) -> bool {
        self.command().iter().skip(1).take_while(|word| word.starts_with('-')).any(|word| word == "-m")
    }

    fn command(&self) -> &[String] {
        if self.orig_argv.is_empty() { &self.argv } else { &self.orig_argv }
    }
}

fn pool(name: &str) -> Option<Pool> {
    match name {
        "prefork" | "processes" => Some(Pool::Prefork),
        "solo" => Some(Pool::Solo),
        "threads" => Some(Pool::Threads),
        "gevent" => Some(Pool::Gevent),
        "eventlet" => Some(Pool::Eventlet),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(line: &str) -> UnitFacts {
        UnitFacts { argv: line.split('|').map(str::to_owned).collect(), ..UnitFacts::default() }
    }

    #[test]
    fn the_pool_is_read_from_every_form_of_the_command_line() {
        for (line, expected) in [
            ("py|celery|worker", Pool::Prefork),
            ("py|celery|worker|-P|solo", Pool::Solo),
            ("py|celery|worker|-Psolo", Pool::Solo),
            ("py|celery|worker|--pool=threads", Pool::Threads),
            ("py|celery|worker|--pool|gevent", Pool::Gevent),
            ("[celeryd: w@box:MainProcess] -active- (worker -P solo)", Pool::Solo),
            ("py|celery|worker|--pool-x=solo|-P", Pool::Prefork),
        ] {
            assert_eq!(facts(line).pool(), expected, "{line}");
        }
    }

    #[test]
    fn a_module_start_is_told_from_a_script() {
        assert!(facts("python|-B|-m|celery|-A|app").by_module());
        assert!(!facts("python|/venv/bin/celery|-m").by_module());
    }
}
