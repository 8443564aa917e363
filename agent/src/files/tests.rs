//! Files of this very process, and of made-up ones.

use super::*;

fn own() -> Root {
    let pid = unstale_protocol::ids::Pid(std::process::id());
    Root::of(crate::procfs::identity(pid).expect("identity")).expect("root")
}

#[test]
fn a_regular_file_is_read_with_its_facts() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("enums.py");
    std::fs::write(&path, "A = 1\n").expect("written");
    let link = dir.path().join("link.py");
    std::os::unix::fs::symlink("enums.py", &link).expect("linked");
    let fetched = own().fetch(link.to_str().expect("text")).expect("read");
    assert_eq!((fetched.bytes.as_slice(), fetched.facts.size), (&b"A = 1\n"[..], 6));
    assert_eq!(fetched.facts.path_resolved, path.to_str().expect("text"));
}

#[test]
fn what_is_no_regular_file_is_refused_without_hanging() {
    let dir = tempfile::tempdir().expect("directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    rustix::fs::mknodat(CWD, path("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("pipe");
    let socket = std::os::unix::net::UnixListener::bind(path("socket")).expect("socket");
    for name in ["pipe", "socket", ""] {
        let refused = own().fetch(&path(name));
        assert!(matches!(refused, Err(Error::NotRegular { .. })), "{name}: {refused:?}");
    }
    assert!(matches!(own().fetch("/dev/zero"), Err(Error::NotRegular { .. })));
    drop(socket);
}

#[test]
fn a_large_file_is_refused() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("large.py");
    File::create(&path).and_then(|file| file.set_len(FILE_MAX_BYTES + 1)).expect("made");
    let refused = own().fetch(path.to_str().expect("text"));
    assert!(matches!(refused, Err(Error::TooLarge { bytes, .. }) if bytes == FILE_MAX_BYTES + 1), "{refused:?}");
}

#[test]
fn a_path_must_be_absolute_and_exist() {
    assert!(matches!(own().fetch("etc/passwd"), Err(Error::Path { .. })));
    assert!(matches!(own().fetch("/a\0b"), Err(Error::Path { .. })));
    assert!(matches!(own().fetch("/no/such/file"), Err(Error::NotFound { .. })));
    assert!(matches!(own().fetch(&format!("/{}", "x/".repeat(4000))), Err(Error::Path { .. })));
}

#[test]
fn a_file_that_the_process_may_not_read_is_not_read_for_it() {
    fn check(uid: u32, gids: &[u32], mode: u32, expected: bool) {
        let file = tempfile::tempfile().expect("file");
        let mut stat = fstat(&file).expect("stat");
        (stat.st_uid, stat.st_gid, stat.st_mode) = (1000, 100, mode);
        let root = Root { uid, gids: gids.to_vec(), ..own() };
        assert_eq!(root.may_read(&stat), expected, "{uid} {gids:?} {mode:o}");
    }
    check(1000, &[], 0o600, true);
    check(1001, &[100], 0o640, true);
    check(1001, &[5, 6], 0o640, false);
    check(1001, &[], 0o644, true);
    // The first class that fits decides, even where a later one would allow more.
    check(1000, &[100], 0o044, false);
    check(1001, &[100], 0o604, false);
    check(0, &[], 0o000, true);
}

#[test]
fn another_start_time_is_another_process() {
    let pid = unstale_protocol::ids::Pid(std::process::id());
    let mut identity = crate::procfs::identity(pid).expect("identity");
    identity.start_ticks += 1;
    assert_eq!(Root::of(identity).map(|_| ()), Err(Error::Gone));
}
