//! supervisord's configuration file: where it listens, and what its interface does not tell (`autorestart`).
//!
//! The grammar is that of Python's `configparser` as supervisord uses it: sections, `key = value` or
//! `key: value`, comments behind ` ;`, continued lines indented, `%(…)s` expanded. Never executed, bounded, and read
//! with the rights of that supervisord: whoever names a file in it must not learn more than he could read himself.

use super::http::{Endpoint, Place};
use super::rights::{Opens, Rights, apart};
use crate::procfs;
use crate::restart::glob;
use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use unstale_protocol::ids::Pid;

/// Most that is read of one configuration, all its files together.
const CONFIG_MAX_BYTES: u64 = 1 << 20;
/// Most included files that are read.
const FILES_MAX: usize = 64;
/// Most patterns of included files.
const PATTERNS_MAX: usize = 64;
/// Longest value with what stands for its variables, in bytes; more of it is cut off.
const VALUE_MAX_BYTES: usize = 64 << 10;
/// Most bytes of an environment that are looked at.
const ENVIRONMENT_MAX_BYTES: u64 = 1 << 20;

/// `autorestart` of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AutoRestart {
    Always,
    Unexpected,
    Never,
}

/// Settings of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) autorestart: AutoRestart,
    pub(crate) exit_codes: Vec<i32>,
    pub(crate) stops_group: bool,
    pub(crate) environment: String,
    /// `directory`, as it stands in the file.
    pub(crate) directory: Option<String>,
}

/// What a configuration says.
#[derive(Debug, Default)]
pub(crate) struct Config {
    sections: BTreeMap<String, BTreeMap<String, String>>,
    programs: BTreeMap<String, Settings>,
    /// Directory of the file, for `%(here)s`.
    here: String,
    environment: BTreeMap<String, String>,
    /// Prefix of every path: the root of a supervisord that has its own mount namespace.
    root: Option<PathBuf>,
    /// What could not be read.
    pub(crate) problems: Vec<String>,
    /// The user that the supervisord runs as, and with whose rights all of it was read.
    pub(crate) uid: u32,
}

/// Reads the file `path` of the supervisord with pid `pid`, and what it includes, as that process could.
///
/// # Errors
/// Why the file itself cannot be read. An included file that cannot is a [`Config::problems`] entry.
pub(crate) async fn load(pid: Pid, path: &str) -> Result<Config, String> {
    let rights = Rights::of(pid)?;
    let path = PathBuf::from(path);
    apart(rights.uid, move || read_all(pid, &path, &rights)).await?
}

fn read_all(pid: Pid, path: &Path, rights: &Rights) -> Result<Config, String> {
    let mut config = Config {
        here: path.parent().map(|parent| parent.display().to_string()).unwrap_or_default(),
        environment: environment(pid),
        root: other_root(pid),
        uid: rights.uid,
        ..Config::default()
    };
    let opens = rights.take()?;
    let mut room = CONFIG_MAX_BYTES;
    let text = config.read(path, opens, &mut room)?;
    parse(&text, &mut config.sections);
    for file in config.included() {
        match config.read(&file, opens, &mut room) {
            Ok(text) => parse(&text, &mut config.sections),
            Err(why) => config.problems.push(why),
        }
    }
    config.programs = programs(&config.sections);
    // Its number may have a new owner by now, and what was read of that one is nobody's business.
    if Rights::of(pid)? != *rights {
        return Err(format!("process {pid} has just changed its rights"));
    }
    Ok(config)
}

impl Config {
    /// Tells where supervisord listens: its Unix socket, else its loopback address.
    pub(crate) fn endpoint(&self) -> Option<Endpoint> {
        let section = |name: &str| self.sections.get(name);
        if let Some(server) = section("unix_http_server")
            && let Some(file) = server.get("file")
        {
            let file = self.expand(file);
            let path = if file.starts_with('/') { PathBuf::from(file) } else { Path::new(&self.here).join(file) };
            return Some(Endpoint { place: Place::Unix(self.outside(&path)), credentials: self.credentials(server) });
        }
        let server = section("inet_http_server")?;
        let address = loopback(&self.expand(server.get("port")?))?;
        Some(Endpoint { place: Place::Loopback(address), credentials: self.credentials(server) })
    }

    /// Returns the settings of the process `name` of `group`.
    pub(crate) fn program(&self, group: &str, name: &str) -> Option<&Settings> {
        if let Some(settings) = self.programs.get(group) {
            return Some(settings);
        }
        let members = self.sections.get(&format!("group:{group}"))?.get("programs")?;
        let fits = |program: &&str| name == *program || name.starts_with(program);
        let program = members.split(',').map(str::trim).filter(fits).max_by_key(|program| program.len())?;
        self.programs.get(program)
    }

    /// Returns the directory that the process `name` of `group` is started in, where one is set.
    pub(crate) fn directory(&self, group: &str, name: &str) -> Option<String> {
        Some(self.expand(self.program(group, name)?.directory.as_ref()?))
    }

    fn credentials(&self, server: &BTreeMap<String, String>) -> Option<String> {
        let name = server.get("username").filter(|name| !name.is_empty())?;
        let password = server.get("password").map(|password| self.expand(password)).unwrap_or_default();
        Some(format!("{}:{password}", self.expand(name)))
    }

    /// Expands `%(here)s` and `%(ENV_NAME)s`; what else there is stays as it stands.
    fn expand(&self, text: &str) -> String {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("%(") {
            expanded.push_str(before);
            let Some((name, behind)) = after.split_once(")s") else {
                // Nor does any that comes behind it end.
                expanded.push_str("%(");
                rest = after;
                break;
            };
            let value = match name.strip_prefix("ENV_") {
                Some(variable) => self.environment.get(variable),
                None => (name == "here").then_some(&self.here),
            };
            match value {
                Some(value) => expanded.push_str(value),
                None => expanded.extend(["%(", name, ")s"]),
            }
            rest = behind;
            if expanded.len() > VALUE_MAX_BYTES {
                expanded.truncate(expanded.floor_char_boundary(VALUE_MAX_BYTES));
                return expanded;
            }
        }
        expanded.push_str(rest);
        expanded
    }

    fn included(&self) -> Vec<PathBuf> {
        let Some(files) = self.sections.get("include").and_then(|include| include.get("files")) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for pattern in self.expand(files).split_whitespace().take(PATTERNS_MAX) {
            let pattern = Path::new(&self.here).join(pattern);
            let root = self.root.clone().unwrap_or_default();
            for path in glob::files(&self.outside(&pattern), FILES_MAX) {
                let inside =
                    path.strip_prefix(&root).map_or_else(|_| path.clone(), |inside| Path::new("/").join(inside));
                found.push(if self.root.is_some() { inside } else { path });
            }
        }
        found.truncate(FILES_MAX);
        found
    }

    fn outside(&self, path: &Path) -> PathBuf {
        match &self.root {
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_owned(),
        }
    }

    /// Reads a file, of as many bytes as there is `room` for.
    fn read(&self, path: &Path, opens: Opens, room: &mut u64) -> Result<String, String> {
        let words = |why: String| format!("{}: {why}", path.display());
        let file = opens.open(&self.outside(path)).map_err(words)?;
        let mut bytes = Vec::new();
        file.take(*room + 1).read_to_end(&mut bytes).map_err(|error| words(error.to_string()))?;
        let length = bytes.len() as u64;
        *room = room.checked_sub(length).ok_or_else(|| {
            words(format!(
                "with it the configuration is larger than {CONFIG_MAX_BYTES} bytes, which is all that is read"
            ))
        })?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn environment(pid: Pid) -> BTreeMap<String, String> {
    let bytes = procfs::read(pid, "environ", ENVIRONMENT_MAX_BYTES).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.split('\0').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// Returns the root of a process that has another mount namespace than ours.
fn other_root(pid: Pid) -> Option<PathBuf> {
    let theirs = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?;
    let ours = std::fs::read_link("/proc/self/ns/mnt").ok()?;
    (theirs != ours).then(|| PathBuf::from(format!("/proc/{pid}/root")))
}

fn parse(text: &str, sections: &mut BTreeMap<String, BTreeMap<String, String>>) {
    let mut section = String::new();
    let mut key = String::new();
    for line in text.lines() {
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with([';', '#']) {
            continue;
        }
        let bare = without_comment(bare);
        if line.starts_with([' ', '\t']) && !key.is_empty() {
            if let Some(value) = sections.get_mut(&section).and_then(|keys| keys.get_mut(&key)) {
                value.push('\n');
                value.push_str(bare);
            }
            continue;
        }
        if let Some(name) = bare.strip_prefix('[').and_then(|name| name.split_once(']')) {
            name.0.clone_into(&mut section);
            key.clear();
            sections.entry(section.clone()).or_default();
            continue;
        }
        let Some(place) = bare.find(['=', ':']) else { continue };
        let (name, value) = bare.split_at(place);
        key = name.trim().to_ascii_lowercase();
        let value = value.get(1..).unwrap_or_default().trim();
        sections.entry(section.clone()).or_default().insert(key.clone(), value.to_owned());
    }
}

/// Cuts a comment off: `;` or `#` behind a blank.
fn without_comment(line: &str) -> &str {
    let mut previous = ' ';
    for (place, letter) in line.char_indices() {
        if matches!(letter, ';' | '#') && previous.is_whitespace() && place > 0 {
            return line.get(..place).unwrap_or(line).trim_end();
        }
        previous = letter;
    }
    line
}

fn programs(sections: &BTreeMap<String, BTreeMap<String, String>>) -> BTreeMap<String, Settings> {
    let mut programs = BTreeMap::new();
    for (section, keys) in sections {
        let Some((kind, name)) = section.split_once(':') else { continue };
        if !matches!(kind, "program" | "fcgi-program" | "eventlistener") {
            continue;
        }
        let truthy = |key: &str| keys.get(key).is_some_and(|value| is_true(value));
        let autorestart = match keys.get("autorestart").map(|value| value.trim().to_ascii_lowercase()) {
            None => AutoRestart::Unexpected,
            Some(value) if value == "unexpected" => AutoRestart::Unexpected,
            Some(value) if is_true(&value) => AutoRestart::Always,
            Some(_) => AutoRestart::Never,
        };
        let codes = keys.get("exitcodes").map_or("0", String::as_str);
        let settings = Settings {
            autorestart,
            exit_codes: codes.split(',').filter_map(|code| code.trim().parse().ok()).collect(),
            stops_group: truthy("stopasgroup") || truthy("killasgroup"),
            environment: keys.get("environment").cloned().unwrap_or_default(),
            directory: keys.get("directory").cloned(),
        };
        programs.insert(name.trim().to_owned(), settings);
    }
    programs
}

fn is_true(text: &str) -> bool {
    matches!(text.trim().to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "1" | "t" | "y")
}

/// Reads `9001`, `:9001`, `*:9001` or `127.0.0.1:9001`; an address of another machine is none.
fn loopback(port: &str) -> Option<SocketAddr> {
    let (host, port) = port.rsplit_once(':').unwrap_or(("", port));
    let port = port.trim().parse().ok()?;
    let address = match host.trim() {
        "" | "*" | "0.0.0.0" | "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        other => other.parse().ok()?,
    };
    address.is_loopback().then(|| SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let mut config = Config { here: "/etc/super".to_owned(), ..Config::default() };
        config.environment.insert("RUN".to_owned(), "/run/s".to_owned());
        parse(text, &mut config.sections);
        config.programs = programs(&config.sections);
        config
    }

    #[test]
    fn the_socket_and_its_credentials_are_found() {
        let text = "[unix_http_server]\nfile = %(ENV_RUN)s/s.sock ; the socket\nusername=u\npassword = p%(here)s\n";
        let endpoint = config(text).endpoint().unwrap();
        assert_eq!(endpoint.place, Place::Unix("/run/s/s.sock".into()));
        assert_eq!(endpoint.credentials.as_deref(), Some("u:p/etc/super"));
    }

    #[test]
    fn a_network_server_is_used_on_loopback_only() {
        let check =
            |port: &str| config(&format!("[inet_http_server]\nport={port}\n")).endpoint().map(|e| e.to_string());
        assert_eq!(check("*:9001").as_deref(), Some("http://127.0.0.1:9001"));
        assert_eq!(check("9001").as_deref(), Some("http://127.0.0.1:9001"));
        for elsewhere in ["10.0.0.7:9001", "example.org:80", "9001x", ""] {
            assert_eq!(check(elsewhere), None, "{elsewhere}");
        }
    }

    #[test]
    fn what_brings_a_program_back_is_read() {
        let text = "[program:a]\nautorestart=true\n[program:b]\nexitcodes=0,2\n[program:c]\nautorestart = false\n\
                    stopasgroup=true\n[program:d]\ncommand=x\n  --more=1\nautorestart : unexpected ; c\n\
                    [group:g]\nprograms=c,d\n";
        let config = config(text);
        let check = |group: &str, name: &str| config.program(group, name).map(|settings| settings.autorestart);
        assert_eq!(check("a", "a"), Some(AutoRestart::Always));
        assert_eq!(check("b", "b_01"), Some(AutoRestart::Unexpected));
        assert_eq!(check("g", "c_00"), Some(AutoRestart::Never));
        assert_eq!(check("g", "d"), Some(AutoRestart::Unexpected));
        assert_eq!(check("h", "d"), None);
        assert_eq!(config.program("b", "b").map(|s| s.exit_codes.clone()), Some(vec![0, 2]));
        assert!(config.program("g", "c").is_some_and(|settings| settings.stops_group));
    }

    #[test]
    fn what_is_expanded_stays_bounded() {
        let mut config = config(&format!("[unix_http_server]\nfile=/{}\n", "%(ENV_LONG)s".repeat(100_000)));
        config.environment.insert("LONG".to_owned(), "\u{e9}".repeat(50_000));
        let Some(Endpoint { place: Place::Unix(path), .. }) = config.endpoint() else { panic!("no socket") };
        assert!(path.as_os_str().len() <= VALUE_MAX_BYTES);
    }

    #[test]
    fn text_that_is_no_configuration_is_nothing() {
        for text in ["", "=", "[", "]\n[]\n=x\n:", "%(", "  x\n y", "[include]\nfiles=%("] {
            let config = config(text);
            assert_eq!(config.endpoint(), None);
            assert!(config.included().is_empty() || text.contains("include"));
        }
    }
}
