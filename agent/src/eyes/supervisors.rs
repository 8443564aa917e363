//! What supervisors say of what they started: names of programs, directories. Asked sparingly; who does not answer is
//! not asked at every look.

use crate::discover::Unnamed;
use crate::process::Supervisor;
use crate::supervisor::{self, Late, Reach};
use std::collections::BTreeMap;
use unstale_protocol::ids::{Pid, ProcessIdentity};

/// For how many looks a supervisord is left alone at most that did not name what it started.
const LOOKS_MAX: u32 = 32;

/// A supervisord: its pid and its configuration file.
type Server = (Pid, String);

/// A supervisord that was asked for names in vain.
#[derive(Clone, Copy, Debug, Default)]
struct Vain {
    times: u32,
    /// How many looks it is left alone for.
    looks_left: u32,
    /// It did not answer in time.
    is_late: bool,
}

/// What was heard of supervisors.
#[derive(Debug, Default)]
pub(super) struct Supervisors {
    reach: Reach,
    /// The directory that each one starts its unit in, or why that is not known; asked anew at each full look.
    directories: BTreeMap<Supervisor, Result<Option<String>, String>>,
    vain: BTreeMap<Server, Vain>,
}

impl Supervisors {
    /// Names what only a supervisord can name; each of them is asked once for all that it started.
    pub(super) async fn names(&mut self, unnamed: &[Unnamed]) -> Vec<(ProcessIdentity, String)> {
        let mut servers: BTreeMap<Server, Vec<ProcessIdentity>> = BTreeMap::new();
        for unnamed in unnamed {
            let server = (unnamed.supervisord, unnamed.config.clone());
            servers.entry(server).or_default().push(unnamed.started);
        }
        self.vain.retain(|server, _| servers.contains_key(server));
        let mut names = Vec::new();
        for (server, started) in servers {
            if let Some(vain) = self.vain.get_mut(&server).filter(|vain| vain.looks_left > 0) {
                vain.looks_left -= 1;
                continue;
            }
            let heard = supervisor::programs(&self.reach, server.0, &server.1).await;
            let is_late = heard.is_err();
            let programs = heard.ok().and_then(Result::ok).unwrap_or_default();
            let mut is_vain = false;
            for process in started {
                match programs.get(&process.pid) {
                    Some(name) => names.push((process, name.clone())),
                    None => is_vain = true,
                }
            }
            if is_vain {
                let vain = self.vain.entry(server).or_default();
                let looks_left = 1_u32.checked_shl(vain.times).unwrap_or(LOOKS_MAX).min(LOOKS_MAX);
                *vain = Vain { times: vain.times.saturating_add(1), looks_left, is_late };
            } else {
                self.vain.remove(&server);
            }
        }
        names
    }

    /// Returns the directory that a supervisor starts its unit in, where it says one.
    ///
    /// # Errors
    /// Why that is not known: it did not answer in time.
    pub(super) async fn directory(&mut self, supervisor: &Supervisor) -> Result<Option<String>, String> {
        if let Some(known) = self.directories.get(supervisor) {
            return known.clone();
        }
        let asked = match self.unheard(supervisor) {
            Some(why) => Err(why),
            None => supervisor::directory(&self.reach, supervisor).await,
        };
        let directory = asked.map_err(|Late(why)| format!("where its supervisor starts it is not known: {why}"));
        self.directories.insert(supervisor.clone(), directory.clone());
        directory
    }

    /// Says why it is not known which program of its supervisord something is: there was no answer in time.
    fn unheard(&self, supervisor: &Supervisor) -> Option<Late> {
        let Supervisor::Supervisord { name, pid, config } = supervisor else { return None };
        let is_unnamed = name.starts_with("?:");
        let vain = self.vain.get(&(*pid, config.clone())).filter(|vain| is_unnamed && vain.is_late);
        vain.map(|_| Late(format!("supervisord (pid {pid}) did not say in time which program it is")))
    }

    /// Lets directories be asked for anew.
    pub(super) fn forget_directories(&mut self) {
        self.directories.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn unnamed(config: &std::path::Path, started: u32) -> Unnamed {
        let started = ProcessIdentity { pid: Pid(started), start_ticks: 1, pid_namespace: 0 };
        Unnamed { supervisord: Pid(std::process::id()), config: config.display().to_string(), started }
    }

    #[tokio::test]
    async fn supervisords_that_never_answer_cost_a_look_little_and_not_every_look() {
        let directory = tempfile::tempdir().unwrap();
        let mut asked = Vec::new();
        let mut sockets = Vec::new();
        for number in 0..20 {
            let socket = directory.path().join(format!("{number}.sock"));
            let config = directory.path().join(format!("{number}.conf"));
            std::fs::write(&config, format!("[unix_http_server]\nfile={}\n", socket.display())).unwrap();
            asked.extend((0..50).map(|child| unnamed(&config, 100_000 + child)));
            // It takes connections, and says nothing.
            sockets.push(tokio::net::UnixListener::bind(socket).unwrap());
        }
        let mut supervisors = Supervisors::default();
        let within = async |supervisors: &mut Supervisors, seconds: u64| {
            let names = supervisors.names(&asked);
            tokio::time::timeout(Duration::from_secs(seconds), names).await.expect("a bounded look")
        };
        assert!(within(&mut supervisors, 9).await.is_empty());
        assert!(within(&mut supervisors, 1).await.is_empty());
        assert_eq!(supervisors.vain.len(), 20);
        // What could not be asked is not known.
        let config = directory.path().join("0.conf").display().to_string();
        let supervisor = Supervisor::Supervisord { name: "?:100000".to_owned(), pid: Pid(std::process::id()), config };
        let directory = supervisors.directory(&supervisor).await;
        assert!(directory.as_ref().is_err_and(|why| why.contains("in time")), "{directory:?}");
        within(&mut supervisors, 1).await;
        supervisors.names(&[]).await;
        assert!(supervisors.vain.is_empty(), "who has ended is forgotten");
    }
}
