//! State directory, socket and supervisors: are they there, and whose are they?

use super::{Finding, read};
use crate::cli::{DoctorArgs, Surroundings};
use crate::client::{self, Client, ClientError};
use crate::config::Config;
use crate::store::{self, StateDir, StoreError};
use std::path::{Path, PathBuf};

pub(super) async fn look(args: &DoctorArgs, config: &Config, surroundings: &Surroundings) -> Vec<Finding> {
    vec![
        state(store::choose_dir(args.state.state_dir.as_deref(), config, surroundings)),
        coordinator(
            Client::find(&args.coordinator, surroundings).await.map(|_| ()),
            &client::places(&args.coordinator, surroundings),
        ),
        systemd(Path::new("/run/systemd/system").exists(), Path::new("/run/dbus/system_bus_socket").exists()),
        supervisord(),
    ]
}

fn state(path: Result<PathBuf, StoreError>) -> Finding {
    const WHAT: &str = "state directory";
    let taken = path.and_then(|path| if path.exists() { StateDir::take(&path).map(|_| path) } else { Ok(path) });
    match taken {
        Ok(path) if path.exists() => Finding::good(WHAT, format!("`{}`", path.display())),
        Ok(path) => {
            let parent = path.ancestors().find(|parent| parent.exists()).unwrap_or(Path::new("/")).to_owned();
            match rustix::fs::access(&parent, rustix::fs::Access::WRITE_OK) {
                Ok(()) => Finding::good(WHAT, format!("`{}` will be made", path.display())),
                Err(error) => Finding::missing(
                    WHAT,
                    format!("`{}` cannot be made: `{}`: {error}", path.display(), parent.display()),
                    "run as root, or give a --state-dir that you may write to",
                ),
            }
        }
        Err(StoreError::Locked { path, pid: Some(pid) }) => {
            Finding::good(WHAT, format!("`{}`, in use by process {pid}", path.display()))
        }
        Err(error) => Finding::missing(WHAT, error.to_string(), error.help().unwrap_or_default()),
    }
}

fn coordinator(found: Result<(), ClientError>, places: &[PathBuf]) -> Finding {
    const WHAT: &str = "coordinator";
    match found {
        Ok(()) => Finding::good(WHAT, "answers"),
        Err(ClientError::NobodyListens { .. }) => {
            let places: Vec<String> = places.iter().map(|path| format!("`{}`", path.display())).collect();
            Finding::note(
                WHAT,
                format!("none listens on {}", places.join(" or ")),
                "`unstale up` starts one for this host, `unstale coordinator` one for a fleet; `unstale inspect` needs none",
            )
        }
        Err(error) => Finding::missing(WHAT, error.to_string(), error.help().unwrap_or_default()),
    }
}

/// `sd_booted(3)`.
fn systemd(is_booted: bool, has_bus: bool) -> Finding {
    const WHAT: &str = "systemd";
    match (is_booted, has_bus) {
        (true, true) => Finding::good(WHAT, "runs, and its bus is there"),
        (true, false) => Finding::missing(
            WHAT,
            "runs, but /run/dbus/system_bus_socket is not there: its units cannot be restarted",
            "start `dbus.socket`, or mount the socket into the container",
        ),
        (false, _) => Finding::good(WHAT, "does not run here; nothing is asked of it"),
    }
}

fn supervisord() -> Finding {
    const WHAT: &str = "supervisord";
    let is_supervisord = |pid: &str| {
        // Its command line, words separated by zero bytes: an interpreter, the program, its arguments.
        let command = read(&format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split('\0').take(2).any(|word| Path::new(word).file_name().is_some_and(|name| name == "supervisord"))
    };
    let pids: Vec<String> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|pid| is_supervisord(pid))
        .collect();
    if pids.is_empty() {
        return Finding::good(WHAT, "does not run here; nothing is asked of it");
    }
    Finding::good(
        WHAT,
        format!(
            "runs (pid {}); its programs need a `[unix_http_server]` or `[inet_http_server]` section",
            pids.join(", ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::super::Standing;
    use super::*;

    #[test]
    fn a_directory_that_will_be_made_is_left_unmade() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        assert_eq!(state(Ok(path.clone())).standing, Standing::Good);
        assert!(!path.exists());
    }

    #[test]
    fn a_manager_without_its_bus_is_missing_something() {
        assert_eq!(systemd(true, false).standing, Standing::Missing);
        assert_eq!(systemd(true, true).standing, Standing::Good);
        assert_eq!(systemd(false, false).standing, Standing::Good);
    }
}
