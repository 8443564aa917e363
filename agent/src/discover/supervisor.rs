//! Who brings a unit back: the nearest supervisor in its chain of parents, else the service of its cgroup.

use super::command::{self, Nature};
use super::units::{Family, Known, Link, Unnamed, kind_of};
use crate::process::Supervisor;
use unstale_protocol::ids::{Pid, ProcessIdentity};

/// Programs that keep a process running, or are the first process of a container, by the name the kernel keeps.
const KEEPERS: [(&str, &str); 8] = [
    ("runsv", "runit"),
    ("s6-supervise", "s6"),
    ("supervise", "daemontools"),
    ("tini", "tini"),
    ("docker-init", "tini"),
    ("dumb-init", "dumb-init"),
    ("catatonit", "catatonit"),
    ("start-stop-daem", "start-stop-daemon"),
];

/// Returns who brings back the unit whose root is `root`, and the program whose name is yet to be asked.
pub(super) fn of(family: &Family<'_>, root: &Known) -> (Supervisor, Option<Unnamed>) {
    // The child of the supervisor in the chain: the process that it knows.
    let mut started = root.facts.identity;
    let mut started_environment = Some(root);
    for link in family.ancestors(root) {
        match link {
            Link::Python(parent) => match parent.nature {
                Nature::Keeper("supervisord") => {
                    return supervisord(family, parent, root, started, started_environment);
                }
                Nature::Keeper(name) => return (other(name), None),
                // Somebody else's main started it, and may or may not do so again.
                Nature::Worker(_) | Nature::Offspring => {
                    return (other(&format!("{}:{}", kind_of(parent), parent.facts.identity.pid)), None);
                }
            },
            Link::Other(pid, parent) => {
                if let Some((_, name)) = KEEPERS.iter().find(|(comm, _)| *comm == parent.comm) {
                    // An init of a container brings nothing back, but says that this is one.
                    return (other(name), None);
                }
                started = ProcessIdentity { pid, start_ticks: 0, pid_namespace: 0 };
                started_environment = None;
            }
        }
    }
    if is_container(root) {
        return (other("container"), None);
    }
    (systemd(&root.facts.cgroup).unwrap_or(Supervisor::None), None)
}

fn other(name: &str) -> Supervisor {
    Supervisor::Other { name: name.to_owned() }
}

fn supervisord(
    family: &Family<'_>,
    daemon: &Known,
    root: &Known,
    started: ProcessIdentity,
    started_as: Option<&Known>,
) -> (Supervisor, Option<Unnamed>) {
    let pid = daemon.facts.identity.pid;
    let config = configuration(daemon);
    let named = family
        .programs
        .iter()
        .find(|(identity, _)| identity.pid == started.pid && (started.start_ticks == 0 || **identity == started))
        .map(|(_, name)| name.clone());
    let named = named.or_else(|| program_of(root)).or_else(|| started_as.and_then(program_of));
    let (name, unnamed) = match named {
        Some(name) => (name, None),
        None => (format!("?:{}", started.pid), Some(Unnamed { supervisord: pid, config: config.clone(), started })),
    };
    (Supervisor::Supervisord { name, pid, config }, unnamed)
}

/// Returns `GROUP:PROGRAM` from the environment that supervisord gives to what it starts.
fn program_of(known: &Known) -> Option<String> {
    let value = |name: &str| {
        known.facts.environment.iter().find(|(variable, _)| variable == name).map(|(_, value)| value.as_str())
    };
    let (group, program) = (value("SUPERVISOR_GROUP_NAME")?, value("SUPERVISOR_PROCESS_NAME")?);
    (!group.is_empty() && !program.is_empty()).then(|| format!("{group}:{program}"))
}

/// Returns the configuration file of a supervisord, absolute as it sees it; empty where nothing tells.
fn configuration(daemon: &Known) -> String {
    let facts = &daemon.facts;
    match command::supervisord_option(&daemon.first_command) {
        Some(path) => crate::lookup::absolute(facts.cwd.as_deref(), path),
        None => facts.supervisord_config.clone().unwrap_or_default(),
    }
}

/// Returns the service that this program itself runs in.
pub(crate) fn own() -> Option<Supervisor> {
    systemd(&crate::procfs::cgroup(Pid(std::process::id())))
}

/// Returns the service of a cgroup path: its last component that ends in `.service`; a user's own manager is
/// named before it. Units that hold many unrelated processes (`user@UID.service` itself) are no service.
fn systemd(cgroup: &str) -> Option<Supervisor> {
    let parts: Vec<&str> = cgroup.split('/').collect();
    let at = parts.iter().rposition(|part| part.ends_with(".service"))?;
    let name = parts.get(at).copied()?;
    if user_manager(name).is_some() {
        return None;
    }
    let user = parts.iter().take(at).find_map(|part| user_manager(part));
    Some(Supervisor::Systemd { name: name.to_owned(), user })
}

fn user_manager(part: &str) -> Option<u32> {
    part.strip_prefix("user@")?.strip_suffix(".service")?.parse().ok()
}

/// Tells whether a process lives in a container: by its cgroup, or as the first process of a pid namespace.
fn is_container(root: &Known) -> bool {
    let parts: Vec<&str> = root.facts.cgroup.split('/').filter(|part| !part.is_empty()).collect();
    let is_hex = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let scoped = |part: &str| {
        ["docker-", "cri-containerd-", "crio-", "libpod-"]
            .iter()
            .any(|prefix| part.strip_prefix(prefix).is_some_and(|rest| is_hex(rest.trim_end_matches(".scope"))))
    };
    let service = parts.iter().rposition(|part| part.ends_with(".service")).map_or(0, |at| at + 1);
    parts.iter().skip(service).any(|part| is_hex(part) || scoped(part) || part.starts_with("kubepods"))
        || root.facts.inner_pid == Pid(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cgroup: &str, expected: Option<(&str, Option<u32>)>) {
        let expected = expected.map(|(name, user)| Supervisor::Systemd { name: name.to_owned(), user });
        assert_eq!(systemd(cgroup), expected, "{cgroup}");
    }

    #[test]
    fn the_service_is_the_last_component_that_is_one() {
        check("/system.slice/x.service", Some(("x.service", None)));
        check("/shop.slice/tpl@b-1.service", Some(("tpl@b-1.service", None)));
        check("/system.slice/tpl@x\\x2dy.service", Some(("tpl@x\\x2dy.service", None)));
        check("/system.slice/dg.service/sub", Some(("dg.service", None)));
        check("/user.slice/user-1500.slice/user@1500.service/app.slice/uw.service", Some(("uw.service", Some(1500))));
        check("/user.slice/user-1500.slice/user@1500.service/app.slice/vte.scope", None);
        check("/user.slice/user-1500.slice/session-1.scope", None);
        check("/", None);
        check("", None);
    }
}
