//! Real interpreters and frameworks: what `unstale inspect` says about processes that run real code.
//!
//! Each test looks only at its own app (`--root`), so that they run side by side. Acting is tested in `fleet`.

use crate::harness::app::{App, Place};
use crate::harness::postgres::Postgres;
use crate::harness::process::{Running, forced_switches};
use crate::harness::python::{Interpreter, interpreters, newest, venv};
use crate::harness::unstale::{answer, array, entry, inspect, pid_of, program, text, unstale, verdicts};
use crate::harness::wait::eventually;
use crate::harness::workers::{celery_command, gunicorn_command, start_alone, wait_for_children, wait_for_web};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Starts `python -m shop.MODULE` and waits for its line in the journal.
fn start_module(place: &Place, app: &App, python: &Path, module: &str) -> Running {
    let command = [python.display().to_string(), "-m".to_owned(), format!("shop.{module}")];
    let running = start_alone(place, app, module, &command);
    app.wait_for_journal(module, 20);
    running
}

/// The one worker of an answer.
#[track_caller]
fn only(answer: &Value) -> &Value {
    let workers = array(answer, "workers");
    assert_eq!(workers.len(), 1, "{answer:#}");
    &workers[0]
}

#[test]
fn a_worker_that_holds_what_its_source_says_is_fresh_on_every_interpreter() {
    for python in interpreters() {
        let place = Place::new();
        let app = App::new(&place, "shop");
        let worker = start_module(&place, &app, &python.path, "plain");
        let answer = inspect(&app.code);
        let seen = only(&answer);
        assert_eq!(pid_of(seen), worker.pid(), "{python:?}");
        assert_eq!(seen["verdict"], "fresh", "{python:?}: {answer:#}");
        assert_eq!(seen["python"], python.release.as_str());
        assert_eq!(answer["schema"], "unstale.inspect/1");
        assert_eq!(answer["summary"]["fresh"], 1);
        let nested = entry(seen, "shop.enums:Order.Status");
        assert_eq!(nested["layers"]["memory"]["members"], json!([["OPEN", 1], ["CLOSED", 2]]));
        let aliased = entry(seen, "shop.enums:CrmType");
        assert_eq!(
            aliased["layers"]["memory"]["members"],
            json!([["HUBSPOT", "HUBSPOT"], ["SALESFORCE", "SALESFORCE"]]),
            "{python:?}"
        );
        assert!(aliased.to_string().contains("SFDC"), "the alias is shown: {aliased:#}");
        entry(seen, "shop.enums:Colour");
    }
}

#[test]
fn a_case_only_edit_with_equal_size_and_time_is_stale_in_memory_and_in_bytecode_on_every_interpreter() {
    for python in interpreters() {
        let place = Place::new();
        let app = App::new(&place, "shop");
        app.compile(&python.path);
        let _worker = start_module(&place, &app, &python.path, "plain");
        app.flip();
        let answer = inspect(&app.code);
        let seen = only(&answer);
        assert_eq!(seen["verdict"], "stale", "{python:?}: {answer:#}");
        let found = entry(seen, "shop.enums:CrmType");
        assert_eq!(found["verdict"], "stale");
        let layers = &found["layers"];
        assert_eq!(layers["memory"]["members"][0], json!(["HUBSPOT", "HUBSPOT"]));
        assert_eq!(layers["bytecode"]["members"][0], json!(["HUBSPOT", "HUBSPOT"]));
        assert_eq!(layers["bytecode"]["stale"], true);
        assert_eq!(text(&layers["bytecode"], "path"), app.bytecode("enums", python.minor()).display().to_string());
        assert_eq!(layers["source"]["members"][0], json!(["HUBSPOT", "hubspot"]));
        assert_ne!(layers["memory"]["fingerprint"], layers["source"]["fingerprint"]);
        assert_eq!(layers["memory"]["fingerprint"], layers["bytecode"]["fingerprint"]);
        assert_eq!(entry(seen, "shop.enums:Order.Status")["verdict"], "fresh");
    }
}

#[test]
fn inspect_exits_with_1_for_stale_and_with_0_for_fresh_and_shows_the_members_side_by_side() {
    let place = Place::new();
    let app = App::new(&place, "shop");
    let _worker = start_module(&place, &app, &newest().path, "plain");
    let root = app.code.display().to_string();
    unstale(["inspect", "--root", &root]).expect(0);
    app.flip();
    let answer = unstale(["inspect", "--root", &root]).expect(1);
    assert!(answer.stdout.contains(r#"HUBSPOT = "HUBSPOT"  ->  "hubspot""#), "{}", answer.stdout);
}

/// Edits one thing under a running worker; the enum of this name must turn stale, the others stay fresh.
fn check_edit(from: &str, to: &str, stale: &str) {
    let place = Place::new();
    let app = App::new(&place, "shop");
    let _worker = start_module(&place, &app, &newest().path, "plain");
    app.edit("enums.py", from, to);
    let answer = inspect(&app.code);
    for name in ["shop.enums:CrmType", "shop.enums:Order.Status", "shop.enums:Colour"] {
        let expected = if name == stale { "stale" } else { "fresh" };
        assert_eq!(entry(only(&answer), name)["verdict"], expected, "{from:?} -> {to:?}: {answer:#}");
    }
}

#[test]
fn a_change_of_any_part_of_a_definition_is_found_and_nothing_else_turns_stale() {
    check_edit("CLOSED = 2", "CLOSED = 3", "shop.enums:Order.Status");
    check_edit("SFDC = \"SALESFORCE\"", "SFDC = \"HUBSPOT\"", "shop.enums:CrmType");
    check_edit("    SFDC = \"SALESFORCE\"\n", "", "shop.enums:CrmType");
    check_edit("    HUBSPOT = ", "    PIPEDRIVE = \"p\"\n    HUBSPOT = ", "shop.enums:CrmType");
    check_edit("    BLUE = enum.auto()", "    GREEN = enum.auto()\n    BLUE = enum.auto()", "shop.enums:Colour");
}

#[test]
fn a_touched_or_reformatted_source_leaves_a_worker_fresh() {
    let place = Place::new();
    let app = App::new(&place, "shop");
    let _worker = start_module(&place, &app, &newest().path, "plain");
    app.touch("enums.py");
    assert_eq!(only(&inspect(&app.code))["verdict"], "fresh");
    app.edit("enums.py", r#"HUBSPOT = "HUBSPOT""#, r"HUBSPOT = ('HUB' 'SPOT')  # the same");
    assert_eq!(only(&inspect(&app.code))["verdict"], "fresh");
}

#[test]
fn a_values_callable_added_without_a_change_to_the_class_is_a_stale_binding() {
    for requirements in ["worker", "sqlalchemy14"] {
        let place = Place::new();
        let venv = venv(&newest(), requirements);
        let app = App::new(&place, "shop");
        let _worker = start_module(&place, &app, &venv.join("bin/python"), "bound");
        let before = inspect(&app.code);
        assert_eq!(only(&before)["verdict"], "fresh", "{requirements}: {before:#}");
        app.send_values();
        // Names and values are equal in this class: nothing is sent that was not sent before.
        let equal = inspect(&app.code);
        assert_eq!(only(&equal)["verdict"], "fresh", "{requirements}: {equal:#}");
    }
    for requirements in ["worker", "sqlalchemy14"] {
        let place = Place::new();
        let venv = venv(&newest(), requirements);
        let app = App::new(&place, "shop");
        app.edit("enums.py", r#"HUBSPOT = "HUBSPOT""#, r#"HUBSPOT = "hubspot""#);
        let _worker = start_module(&place, &app, &venv.join("bin/python"), "bound");
        app.send_values();
        let after = inspect(&app.code);
        let found = entry(only(&after), "shop.enums:CrmType");
        assert_eq!(found["layers"]["memory"]["members"], found["layers"]["source"]["members"], "{requirements}");
        let binding = &array(found, "bindings")[0];
        assert_eq!(binding["column"], "shop.models:Connection.crm_type", "{requirements}: {after:#}");
        assert_eq!(binding["memory"], json!(["HUBSPOT", "SALESFORCE"]));
        assert_eq!(binding["source"], json!(["hubspot", "SALESFORCE"]));
        assert_eq!(binding["verdict"], "stale");
        assert_eq!(only(&after)["verdict"], "stale");
    }
}

#[test]
fn a_child_forked_after_the_edit_is_as_stale_as_its_parent() {
    let place = Place::new();
    let venv = venv(&newest(), "worker");
    let python = venv.join("bin/python");
    let app = App::new(&place, "shop");
    let mut command = celery_command(&venv, 1);
    command.push("--max-tasks-per-child=1".to_owned());
    let worker = start_alone(&place, &app, "worker", &command);
    worker.wait_for_log("ready.", 30);
    let before = wait_for_children(worker.pid(), 1);
    app.edit("enums.py", r#"HUBSPOT = "HUBSPOT""#, r#"HUBSPOT = "hubspot""#);
    app.open_door("one");
    app.send(&python, "one");
    assert!(app.wait_for_journal("end one", 20).ends_with("HUBSPOT"));
    let after = eventually("another child", 20, || wait_for_children(worker.pid(), 1), |seen| *seen != before);
    let answer = inspect(&app.code);
    let seen = verdicts(&answer);
    assert_eq!(seen.len(), 2, "{answer:#}");
    for pid in [worker.pid(), after[0]] {
        assert!(seen.contains(&(pid, "stale".to_owned())), "{pid} in {seen:?}");
    }
}

#[test]
fn main_and_children_of_celery_and_gunicorn_form_one_unit() {
    let place = Place::new();
    let venv = venv(&newest(), "worker");
    let app = App::new(&place, "shop");
    let celery = start_alone(&place, &app, "celery", &celery_command(&venv, 2));
    let socket = place.join("web.sock");
    let gunicorn = start_alone(&place, &app, "gunicorn", &gunicorn_command(&venv, &socket, &["--preload"]));
    celery.wait_for_log("ready.", 30);
    wait_for_web(&socket);
    wait_for_children(celery.pid(), 2);
    wait_for_children(gunicorn.pid(), 2);
    let answer = eventually("six workers", 20, || inspect(&app.code), |seen| array(seen, "workers").len() == 6);
    for (kind, main) in [("celery", &celery), ("gunicorn", &gunicorn)] {
        let unit: Vec<&Value> = array(&answer, "workers").iter().filter(|worker| worker["kind"] == kind).collect();
        assert_eq!(unit.len(), 3, "{answer:#}");
        for worker in unit {
            assert_eq!(text(worker, "unit"), format!("{kind}:{}", main.pid()));
            assert_eq!(text(worker, "role"), if pid_of(worker) == main.pid() { "main" } else { "child" });
            assert!(text(worker, "slot").starts_with(&format!("{kind}/none/")), "{worker:#}");
            assert_eq!(worker["verdict"], "fresh");
        }
    }
}

#[test]
fn a_master_that_does_not_preload_holds_no_enum_and_its_workers_do() {
    let place = Place::new();
    let venv = venv(&newest(), "worker");
    let app = App::new(&place, "shop");
    let socket = place.join("web.sock");
    let gunicorn = start_alone(&place, &app, "gunicorn", &gunicorn_command(&venv, &socket, &[]));
    wait_for_web(&socket);
    let workers = wait_for_children(gunicorn.pid(), 2);
    let all_are = |answer: &Value, verdict: &str| {
        workers.iter().all(|pid| verdicts(answer).contains(&(*pid, verdict.to_owned())))
    };
    // Both have imported the app: a worker that imports it after the edit would be fresh.
    eventually("both workers are fresh", 30, || inspect(&app.code), |seen| all_are(seen, "fresh"));
    app.edit("enums.py", r#"HUBSPOT = "HUBSPOT""#, r#"HUBSPOT = "hubspot""#);
    let answer = eventually("both workers are read", 20, || inspect(&app.code), |seen| all_are(seen, "stale"));
    assert!(!verdicts(&answer).contains(&(gunicorn.pid(), "stale".to_owned())), "{answer:#}");
}

#[test]
fn a_worker_with_a_rewritten_title_is_recognised_and_read() {
    let place = Place::new();
    let venv = venv(&newest(), "titled");
    let app = App::new(&place, "shop");
    let worker = start_alone(&place, &app, "worker", &celery_command(&venv, 1));
    worker.wait_for_log("ready.", 30);
    wait_for_children(worker.pid(), 1);
    let title = fs::read_to_string(format!("/proc/{}/cmdline", worker.pid())).expect("its title");
    assert!(title.starts_with("[celeryd"), "{title:?}");
    app.flip();
    let answer = inspect(&app.code);
    assert_eq!(verdicts(&answer).len(), 2, "{answer:#}");
    for worker in array(&answer, "workers") {
        assert_eq!(worker["kind"], "celery", "{answer:#}");
        assert_eq!(worker["verdict"], "stale", "{answer:#}");
    }
}

#[test]
fn a_link_swapped_under_a_running_worker_compares_it_with_the_new_release() {
    let place = Place::new();
    let old = App::new(&place, "releases/6");
    let new = App::new(&place, "releases/7");
    new.flip();
    let link = place.join("current");
    symlink(&old.code, &link).expect("a link");
    let app = old.at(link.clone());
    let worker = start_module(&place, &app, &newest().path, "plain");
    assert_eq!(only(&inspect(&place.path()))["verdict"], "fresh");
    fs::remove_file(&link).expect("the link");
    symlink(&new.code, &link).expect("a link");
    let answer = inspect(&place.path());
    let seen = only(&answer);
    assert_eq!(pid_of(seen), worker.pid());
    assert_eq!(seen["verdict"], "stale", "{answer:#}");
    let source = text(&entry(seen, "shop.enums:CrmType")["layers"]["source"], "path");
    assert!(!source.contains("releases/6"), "{source}");
}

#[test]
fn two_apps_with_the_same_module_names_are_judged_by_their_own_source() {
    let place = Place::new();
    let (one, two) = (App::new(&place, "one"), App::new(&place, "two"));
    let python = newest().path;
    let first = start_module(&place, &one, &python, "plain");
    let second = start_module(&place, &two, &python, "plain");
    one.flip();
    let mut seen = verdicts(&inspect(&place.path()));
    seen.sort();
    let mut expected = vec![(first.pid(), "stale".to_owned()), (second.pid(), "fresh".to_owned())];
    expected.sort();
    assert_eq!(seen, expected);
}

#[test]
fn a_source_that_cannot_be_parsed_is_unknown_and_named() {
    let place = Place::new();
    let app = App::new(&place, "shop");
    let _worker = start_module(&place, &app, &newest().path, "plain");
    app.edit("enums.py", "class CrmType(", "class CrmType((");
    let root = app.code.display().to_string();
    let answer = unstale(["inspect", "--output", "json", "--root", &root]);
    assert_ne!(answer.code, 0, "{}", answer.stdout);
    assert!(answer.stdout.contains("enums.py"), "{}", answer.stdout);
    assert_ne!(only(&answer.json())["verdict"], "fresh");
}

#[test]
fn a_source_that_vanished_is_not_fresh() {
    let place = Place::new();
    let app = App::new(&place, "shop");
    let _worker = start_module(&place, &app, &newest().path, "plain");
    fs::remove_file(app.source("enums.py")).expect("the source");
    let answer = inspect(&app.code);
    assert_ne!(only(&answer)["verdict"], "fresh", "{answer:#}");
    assert!(answer.to_string().contains("its source is gone"), "{answer:#}");
}

#[test]
fn damaged_bytecode_is_no_obstacle() {
    let python = newest();
    for what in ["truncated", "random", "empty"] {
        let place = Place::new();
        let app = App::new(&place, "shop");
        app.compile(&python.path);
        let _worker = start_module(&place, &app, &python.path, "plain");
        let path = app.bytecode("enums", python.minor());
        let bytes = fs::read(&path).expect("bytecode");
        let damaged = match what {
            "truncated" => bytes[..bytes.len() / 2].to_vec(),
            "random" => bytes[..16].iter().copied().chain((0..=250_u8).map(|i| i.wrapping_mul(167))).collect(),
            _ => Vec::new(),
        };
        fs::write(&path, damaged).expect("bytecode");
        let root = app.code.display().to_string();
        let answer = unstale(["inspect", "--output", "json", "--root", &root]);
        assert!([0, 1, 3].contains(&answer.code), "{what}: {answer:?}");
        only(&answer.json());
    }
}

#[test]
fn reading_forces_no_context_switch_on_a_sleeping_worker_and_leaves_its_memory_alone() {
    let place = Place::new();
    let app = App::new(&place, "shop");
    let worker = start_module(&place, &app, &newest().path, "plain");
    let private = || -> Vec<String> {
        fs::read_to_string(format!("/proc/{}/smaps_rollup", worker.pid()))
            .expect("its memory")
            .lines()
            .filter(|line| line.starts_with("Private_Dirty"))
            .map(str::to_owned)
            .collect()
    };
    let before = (forced_switches(worker.pid()), private());
    for _ in 0..5 {
        inspect(&app.code);
    }
    assert_eq!((forced_switches(worker.pid()), private()), before);
}

#[test]
fn a_python_on_a_terminal_is_listed_as_a_bystander() {
    let place = Place::new();
    let app = App::new(&place, "shop");
    let Interpreter { path, .. } = newest();
    // script(1) gives its command a terminal of its own.
    let command = [
        "/usr/bin/script".to_owned(),
        "--quiet".to_owned(),
        "--command".to_owned(),
        format!("{} -m shop.plain", path.display()),
        "/dev/null".to_owned(),
    ];
    let _terminal = start_alone(&place, &app, "terminal", &command);
    app.wait_for_journal("plain", 20);
    app.flip();
    let answer = inspect(&app.code);
    assert_eq!(only(&answer)["verdict"], "stale", "{answer:#}");
    assert!(answer.to_string().contains("bystander"), "{answer:#}");
}

#[test]
fn all_layers_show_the_labels_of_the_database_which_never_make_a_worker_stale() {
    let place = Place::new();
    let venv = venv(&newest(), "worker");
    let app = App::new(&place, "shop");
    let _worker = start_module(&place, &app, &venv.join("bin/python"), "bound");
    let postgres = Postgres::start(&place);
    // The column sends names; this database has never heard of one of them.
    postgres.sql("CREATE TYPE crm_type AS ENUM ('HUBSPOT', 'other')");
    let root = place.path().display().to_string();
    let seen = unstale(["inspect", "--all-layers", "--output", "json", "--root", &root, "--database", &postgres.url()]);
    let seen = seen.expect(0).json();
    let crm = entry(&array(&seen, "workers")[0], "shop.enums:CrmType");
    assert_eq!(crm["layers"]["database"]["labels"], json!(["HUBSPOT", "other"]), "{seen:#}");
    assert_eq!(crm["layers"]["database"]["type"], "public.crm_type", "{seen:#}");
    assert_eq!(crm["bindings"][0]["database"], json!(["HUBSPOT", "other"]), "{seen:#}");
    assert_eq!(crm["verdict"], "fresh", "{seen:#}");
    let mut command = program();
    command.args(["inspect", "--all-layers", "--root", &root]).env("DATABASE_URL", postgres.url());
    let told = answer(command).expect(0);
    assert!(told.stdout.contains(r#"the database lacks "SALESFORCE""#), "{told:?}");
    // A database that is not there hides nothing else.
    let nowhere = format!("postgresql://shop@localhost/shop?host={}", place.join("nowhere").display());
    let told = unstale(["inspect", "--all-layers", "--root", &root, "--database", &nowhere]).expect(0);
    assert!(told.stderr.contains("the database is left out"), "{told:?}");
    assert!(told.stdout.contains("shop.enums:CrmType"), "{told:?}");
}
