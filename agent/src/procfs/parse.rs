//! The forms of `/proc`, over bytes.

use unstale_protocol::ids::Pid;

/// What `/proc/PID/stat` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// Field 2, without its parentheses: chosen by the process, at most 15 bytes.
    pub(crate) comm: String,
    /// Field 3: `Z` and `X` are dead.
    pub(crate) state: char,
    /// Field 4.
    pub(crate) parent: Pid,
    /// Field 7 is not 0.
    pub(crate) has_terminal: bool,
    /// Field 22, in clock ticks since boot.
    pub(crate) start_ticks: u64,
    /// Field 28; 0 without the right to read the process.
    pub(crate) stack_start: u64,
}

impl Stat {
    /// Parses the line; the name may hold blanks, parentheses and line ends, so fields count from the last `)`.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let open = bytes.iter().position(|byte| *byte == b'(')?;
        let close = bytes.iter().rposition(|byte| *byte == b')')?;
        let comm = String::from_utf8_lossy(bytes.get(open + 1..close)?).into_owned();
        let rest = std::str::from_utf8(bytes.get(close + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // `fields[0]` is field 3 of the manual.
        let field = |number: usize| fields.get(number - 3).copied();
        let number = |index: usize| field(index)?.parse::<u64>().ok();
        Some(Self {
            comm,
            state: field(3)?.chars().next()?,
            parent: Pid(field(4)?.parse().ok()?),
            has_terminal: field(7)? != "0",
            start_ticks: number(22)?,
            stack_start: number(28)?,
        })
    }

    /// Tells whether the process has ended and only its parent's `wait` is missing.
    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// What `/proc/PID/status` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// Real user id.
    pub(crate) uid: u32,
    /// User id by which its file accesses are checked: the last of `Uid`.
    pub(crate) file_uid: u32,
    /// Group ids by which its file accesses are checked: the last of `Gid`, and `Groups`.
    pub(crate) file_gids: Vec<u32>,
    /// `SigCgt`.
    pub(crate) caught_signals: u64,
    /// The last of `NSpid`: the pid in the innermost namespace.
    pub(crate) inner_pid: u32,
}

impl Status {
    /// Parses the lines; a name with a line end in it is escaped by the kernel and cannot forge one.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let hex = |name: &str| u64::from_str_radix(line(name)?.trim(), 16).ok();
        let numbers = |name: &str| -> Vec<u32> {
            line(name).unwrap_or_default().split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
        };
        let mut file_gids = numbers("Groups");
        file_gids.extend(numbers("Gid").last());
        Some(Self {
            file_uid: *numbers("Uid").last()?,
            file_gids,
            uid: line("Uid")?.split_ascii_whitespace().next()?.parse().ok()?,
            caught_signals: hex("SigCgt")?,
            // Absent on kernels without pid namespaces.
            inner_pid: line("NSpid").or_else(|| line("Pid"))?.split_ascii_whitespace().last()?.parse().ok()?,
        })
    }
}

/// Splits a command line; the zeros that a title leaves behind it are not arguments.
pub(super) fn command(bytes: &[u8], limit: usize) -> Vec<String> {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let Some(bytes) = bytes.get(..end).filter(|bytes| !bytes.is_empty()) else {
        return Vec::new();
    };
    bytes.split(|byte| *byte == 0).take(limit).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Returns the variables that `kept` names, with values of at most `limit` bytes.
pub(super) fn environment(bytes: &[u8], limit: usize, kept: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let pair = |word: &[u8]| {
        let equals = word.iter().position(|byte| *byte == b'=')?;
        let name = std::str::from_utf8(word.get(..equals)?).ok().filter(|name| kept(name))?;
        let value = word.get(equals + 1..).filter(|value| value.len() <= limit)?;
        Some((name.to_owned(), String::from_utf8_lossy(value).into_owned()))
    };
    bytes.split(|byte| *byte == 0).filter_map(pair).take(64).collect()
}

/// Returns the cgroup path: the `0::` line, or the `name=systemd` one where that says nothing.
pub(super) fn cgroup(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let path = |wanted: &str| {
        text.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            (controllers == wanted).then(|| path.to_owned())
        })
    };
    let unified = path("").filter(|path| path != "/");
    unified.or_else(|| path("name=systemd")).unwrap_or_else(|| "/".to_owned())
}

/// Returns the number in `pid:[4026531836]`.
pub(super) fn namespace(text: &str) -> Option<u64> {
    text.split_once('[')?.1.strip_suffix(']')?.parse().ok()
}

/// Returns `btime` of `/proc/stat`, in seconds since the epoch.
pub(super) fn boot_time(bytes: &[u8]) -> Option<u64> {
    String::from_utf8_lossy(bytes).lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

/// Tells whether a Python library is among the mapped files.
pub(super) fn maps_python(bytes: &[u8]) -> bool {
    bytes.split(|byte| *byte == b'\n').any(|line| {
        let path = line.iter().position(|byte| *byte == b'/').and_then(|at| line.get(at..)).unwrap_or_default();
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let starts = |prefix: &[u8]| name.starts_with(prefix);
        (starts(b"libpython") || starts(b"libpypy")) && name.windows(3).any(|window| window == b".so")
    })
}

/// Returns `path`, given as we see it, as a process with the root directory `root` sees it.
pub(super) fn inside(root: &str, path: &str) -> String {
    if root == "/" {
        return path.to_owned();
    }
    match path.strip_prefix(root) {
        Some("") => "/".to_owned(),
        Some(rest) if rest.starts_with('/') => rest.to_owned(),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAIL: &str = "S 1 10 10 34816 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 9 9 9 1 1 140722 0";

    #[test]
    fn a_name_with_parentheses_and_blanks_does_not_shift_fields() {
        for name in ["python", "a b", "x) R 0 0 0 (y", "((", "))", "\n", ""] {
            let stat = Stat::parse(format!("10 ({name}) {TAIL}").as_bytes()).expect(name);
            assert_eq!((stat.comm.as_str(), stat.state, stat.parent), (name, 'S', Pid(1)));
            assert_eq!((stat.start_ticks, stat.stack_start, stat.has_terminal), (777, 140_722, true));
        }
    }

    #[test]
    fn a_zombie_is_dead() {
        for (state, dead) in [('R', false), ('S', false), ('T', false), ('Z', true), ('X', true), ('x', true)] {
            let line = format!("10 (a) {}", TAIL.replacen('S', &state.to_string(), 1));
            assert_eq!(Stat::parse(line.as_bytes()).expect("stat").is_dead(), dead, "{state}");
        }
    }

    #[test]
    fn a_broken_stat_line_is_refused() {
        for line in ["", "10", "10 (x", "10 x)", ")(", "10 (x) S", "10 (x) S a b c"] {
            assert_eq!(Stat::parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn status_has_its_fields_wherever_they_stand() {
        let text = "Name:\tx\\nUid:\t0\nPid:\t7\nUid:\t1000\t0\t0\t5\nGid:\t1\t1\t1\t2\nGroups:\t7 8 \nNSpid:\t7\t1\nSigCgt:\t0000000000004002\nCapPrm:\tff\n";
        let status = Status::parse(text.as_bytes()).expect("status");
        assert_eq!((status.uid, status.inner_pid, status.caught_signals), (1000, 1, 0x4002));
        assert_eq!((status.file_uid, status.file_gids), (5, vec![7, 8, 2]));
        assert_eq!(Status::parse(b"Name:\tx\n"), None);
    }

    #[test]
    fn the_zeros_behind_a_title_are_no_arguments() {
        assert_eq!(command(b"python\0-m\0app\0", 9), ["python", "-m", "app"]);
        assert_eq!(command(b"python\0\0x\0", 9), ["python", "", "x"]);
        assert_eq!(command(b"[celeryd: w1]\0\0\0\0\0", 9), ["[celeryd: w1]"]);
        assert_eq!(command(b"\0\0\0", 9), Vec::<String>::new());
        assert_eq!(command(b"a\0b\0c\0", 2), ["a", "b"]);
    }

    #[test]
    fn only_named_variables_are_kept() {
        let bytes = b"PWD=/srv\0SECRET=x\0=\0NOVALUE\0PWD2=y\0";
        assert_eq!(environment(bytes, 10, |name| name == "PWD"), [("PWD".to_owned(), "/srv".to_owned())]);
        assert_eq!(environment(b"PWD=/long/path", 3, |_| true), []);
    }

    #[test]
    fn the_cgroup_is_the_unified_one_or_that_of_systemd() {
        assert_eq!(cgroup(b"0::/system.slice/x.service\n"), "/system.slice/x.service");
        assert_eq!(cgroup(b"9:name=systemd:/a.service\n4:memory:/b\n0::/\n"), "/a.service");
        assert_eq!(cgroup(b"1:cpu:/\n"), "/");
        assert_eq!(cgroup(b"0::/a:b/c.service\n"), "/a:b/c.service");
    }

    #[test]
    fn an_embedded_interpreter_shows_in_the_maps() {
        let line = b"7f0 r-xp 0 08:01 1 /usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0\n";
        assert!(maps_python(line));
        assert!(!maps_python(b"7f0 r-xp 0 08:01 1 /usr/lib/libc.so.6\n7f0 rw-p 0 0 0 [heap]\n"));
        assert!(!maps_python(b"7f0 r-xp 0 08:01 1 /usr/lib/libpython-notes.txt\n"));
    }

    #[test]
    fn paths_are_given_as_the_target_sees_them() {
        assert_eq!(inside("/", "/srv/a"), "/srv/a");
        assert_eq!(inside("/jail", "/jail/srv"), "/srv");
        assert_eq!(inside("/jail", "/jail"), "/");
        assert_eq!(inside("/jail", "/jailor"), "/jailor");
    }
}
