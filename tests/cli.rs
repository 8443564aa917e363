//! What a user sees: exit codes, messages and remedies, bad input above all.

use crate::harness::app::{App, Place};
use crate::harness::process::Running;
use crate::harness::python::newest;
use crate::harness::unstale::{Up, answer, array, inspect, program, text, unstale};
use crate::harness::workers::start_alone;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

fn plain(place: &Place, app: &App, more: &[&str]) -> Running {
    let mut command = vec![newest().path.display().to_string(), "-m".to_owned(), "shop.plain".to_owned()];
    command.extend(more.iter().map(|&argument| argument.to_owned()));
    let running = start_alone(place, app, "plain", &command);
    app.wait_for_journal("plain", 20);
    running
}

#[test]
fn no_python_below_a_root_is_said_and_exits_with_0() {
    let place = Place::new();
    let root = place.path().display().to_string();
    let said = unstale(["inspect", "--root", &root]).expect(0);
    assert!(format!("{}{}", said.stdout, said.stderr).to_lowercase().contains("no python"), "{said:?}");
}

#[test]
fn a_pid_that_does_not_exist_is_named() {
    // Above the largest number that a kernel gives (PID_MAX_LIMIT, 2^22).
    let said = unstale(["inspect", "--pid", "4999999"]);
    assert!([2, 3].contains(&said.code), "{said:?}");
    assert!(format!("{}{}", said.stdout, said.stderr).contains("4999999"), "{said:?}");
}

#[test]
fn a_pid_that_is_no_python_is_named_and_never_fresh() {
    let place = Place::new();
    let sleeper = Running::start(Command::new("sleep").arg("60"), &place.join("log"));
    let pid = sleeper.pid().to_string();
    let said = unstale(["inspect", "--pid", &pid]);
    assert!([2, 3].contains(&said.code), "{said:?}");
    assert!(format!("{}{}", said.stdout, said.stderr).contains(&pid), "{said:?}");
}

#[test]
fn what_calls_itself_python_and_cannot_be_read_is_unknown_and_named() {
    let place = Place::new();
    let check = |name: &str, because: &str| {
        let program = place.join(name);
        fs::copy("/bin/sleep", &program).expect("a program");
        let running = Running::start(Command::new(&program).arg("60"), &place.join("log"));
        let said = unstale(["inspect", "--pid", &running.pid().to_string()]).expect(3);
        assert!(said.stdout.contains(because), "{said:?}");
    };
    check("pypy3.10", "not supported: PyPy");
    check("python3.14", "no known CPython runtime in \"python3.14\"");
}

#[test]
fn a_process_of_another_user_is_unknown_without_rights_and_the_remedy_is_named() {
    assert!(rustix::process::geteuid().is_root(), "this test drops its rights, so it needs root: run tests/run");
    let place = Place::new();
    let app = App::new(&place, "shop");
    let worker = plain(&place, &app, &[]);
    // The copy is one that another user may execute, wherever the original lies.
    let copy = place.join("unstale");
    fs::copy(program().get_program(), &copy).expect("a copy of the program");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]).arg(&copy);
    command.args(["inspect", "--pid", &worker.pid().to_string()]).current_dir(place.path());
    let said = answer(command).expect(3);
    let both = format!("{}{}", said.stdout, said.stderr);
    assert!(both.contains("sudo") || both.contains("CAP_SYS_PTRACE"), "{said:?}");
}

#[test]
fn escape_sequences_in_a_command_line_never_reach_the_terminal() {
    let place = Place::new();
    let app = App::new(&place, "shop");
    let _worker = plain(&place, &app, &["\u{1b}[31mred\u{1b}]0;title\u{7}", "--db-password=hunter2"]);
    app.flip();
    let root = app.code.display().to_string();
    for arguments in [vec!["inspect", "--root", &root], vec!["inspect", "--root", &root, "--output", "json"]] {
        let said = unstale(arguments).expect(1);
        for output in [&said.stdout, &said.stderr] {
            assert!(!output.contains('\u{1b}') && !output.contains('\u{7}'), "{output:?}");
            assert!(!output.contains("hunter2"), "{output}");
        }
    }
    assert!(inspect(&app.code).to_string().contains("red"));
}

#[test]
fn a_wrong_flag_exits_with_2_and_says_what_would_be_right() {
    let said = unstale(["inspect", "--rot", "/"]).expect(2);
    assert!(said.stderr.contains("--root"), "{said:?}");
    assert_eq!(said.stdout, "");
}

#[test]
fn without_a_coordinator_a_broadcast_exits_with_2_and_names_the_socket() {
    let place = Place::new();
    let app = App::new(&place, "shop");
    let mut command = program();
    let socket = place.join("none.sock");
    command.args(["broadcast", "--app", "shop", "--coordinator", &format!("unix:{}", socket.display())]).arg(&app.code);
    let said = answer(command).expect(2);
    assert!(said.stderr.contains("none.sock") && said.stderr.contains("unstale up"), "{said:?}");
}

fn up_on(place: &Place, state: &Path, socket: &Path) -> Command {
    let mut command = program();
    command.arg("up").arg("--state-dir").arg(state).arg("--socket").arg(socket).arg("--root").arg(place.path());
    command
}

#[test]
fn a_second_up_on_the_same_state_is_refused() {
    let place = Place::new();
    let up = Up::start(&place);
    let said = answer(up_on(&place, &up.state, &place.join("other.sock"))).expect(2);
    assert!(said.stderr.contains(&up.state.display().to_string()), "{said:?}");
    up.run(["status"]).expect_running();
}

#[test]
fn a_socket_in_use_is_refused() {
    let place = Place::new();
    let socket = place.join("busy.sock");
    let _listener = UnixListener::bind(&socket).expect("a socket");
    let said = answer(up_on(&place, &place.join("state"), &socket)).expect(2);
    assert!(said.stderr.contains("busy.sock"), "{said:?}");
}

#[test]
fn a_socket_left_behind_by_a_killed_process_is_taken_over() {
    let place = Place::new();
    drop(UnixListener::bind(place.join("up.sock")).expect("a socket"));
    let up = Up::start(&place);
    up.run(["status"]).expect_running();
}

#[test]
fn a_state_directory_that_is_corrupt_is_refused_and_left_as_it_is() {
    let place = Place::new();
    let state = place.join("state");
    let up = Up::start(&place);
    drop(up);
    for name in ["coordinator.redb", "agent.redb"] {
        let path = state.join(name);
        let sound = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        fs::write(&path, vec![0x5a; 4096]).expect("the store");
        let said = answer(up_on(&place, &state, &place.join("up.sock"))).expect(2);
        assert!(said.stderr.contains(name), "{said:?}");
        assert_eq!(fs::read(&path).expect("the store"), vec![0x5a; 4096]);
        fs::write(&path, sound).expect("the store");
    }
}

#[test]
fn every_command_that_answers_names_its_exit_codes_in_its_help() {
    let commands = [
        "inspect",
        "up",
        "broadcast",
        "status",
        "why",
        "drain",
        "undrain",
        "pause",
        "resume",
        "abort",
        "demo",
        "doctor",
    ];
    for command in commands {
        let said = unstale([command, "--help"]).expect(0);
        assert!(said.stdout.to_lowercase().contains("exit code"), "{command}: {}", said.stdout);
    }
}

#[test]
fn doctor_says_what_this_host_lacks_and_answers_in_json() {
    let said = unstale(["doctor", "--output", "json"]);
    assert!([0, 1, 3].contains(&said.code), "{said:?}");
    assert_eq!(text(&said.json(), "schema"), "unstale.doctor/1");
}

#[test]
fn a_selector_that_fits_nothing_is_refused() {
    let place = Place::new();
    let up = Up::start(&place);
    let said = up.run(["drain", "pid:4999999"]);
    assert_ne!(said.code, 0, "{said:?}");
    let said = up.run(["drain", "nonsense"]).expect(2);
    assert!(said.stderr.contains("host:") && said.stderr.contains("unit:"), "{said:?}");
}

#[test]
fn zero_workers_prove_nothing() {
    let place = Place::new();
    let app = App::new(&place, "shop");
    let up = Up::start(&place);
    let said = up.broadcast("shop", &app.code, &[]).expect(3);
    assert_eq!(said.json()["outcome"], "incomplete", "{said:?}");
    let said = up.broadcast("shop", &app.code, &["--allow-empty"]).expect(0);
    assert_eq!(said.json()["outcome"], "converged", "{said:?}");
}

#[test]
fn a_wide_open_look_at_the_host_ends_and_counts_what_it_leaves_out() {
    let said = unstale(["inspect", "--output", "json"]);
    assert!([0, 1, 3].contains(&said.code), "{said:?}");
    let answer = said.json();
    assert!(answer["summary"]["workers"].is_u64(), "{answer:#}");
    let listed = u64::try_from(array(&answer, "workers").len()).expect("a count");
    assert!(answer["summary"]["workers"].as_u64().is_some_and(|counted| counted >= listed), "{answer:#}");
}

#[test]
fn keys_are_made_enrolled_rotated_and_removed() {
    let place = Place::new();
    let dir = |name: &str| place.join(name).display().to_string();
    let keys = |name: &str, arguments: &[&str]| {
        let directory = dir(name);
        unstale(["keys"].iter().chain(arguments).copied().chain(["--keys", &directory]))
    };
    let id = |name: &str, number: usize| {
        text(&array(&keys(name, &["show", "--output", "json"]).json(), "keys")[number], "id")
    };

    let agent = keys("agent", &["new", "agent", "--host", "web-3"]).expect(0).stdout;
    assert!(agent.starts_with("agent:web-3:ed25519:"), "{agent}");
    let old = keys("coordinator", &["new", "coordinator"]).expect(0).stdout;
    keys("coordinator", &["enrol", agent.trim()]).expect(0);
    keys("agent", &["enrol", old.trim()]).expect(0);
    assert_eq!(keys("agent", &["show", "--public"]).expect(0).stdout, agent);

    let old_id = id("coordinator", 0);
    let new = keys("coordinator", &["new", "coordinator"]).expect(0);
    assert!(new.stderr.contains("keys use "), "{new:?}");
    keys("coordinator", &["remove", &old_id]).expect(2);
    let shown = keys("coordinator", &["show", "--output", "json"]).json();
    let spare = array(&shown, "keys").iter().find(|key| key["in_use"] == false && key["private"] == true).expect("it");
    keys("coordinator", &["use", &text(spare, "id")]).expect(0);
    assert_eq!(keys("coordinator", &["show", "--public"]).expect(0).stdout, new.stdout);
    keys("coordinator", &["remove", &old_id]).expect(0);
    keys("coordinator", &["remove", &old_id]).expect(2);

    let not_a_key = keys("agent", &["enrol", "song"]).expect(2);
    assert!(not_a_key.stderr.contains("coordinator:ed25519:"), "{not_a_key:?}");
}
