//! Restraint: what must not be restarted, halts the rollout, or has no effect at all.

use crate::harness::app::{App, Place};
use crate::harness::postgres::Postgres;
use crate::harness::process::is_running;
use crate::harness::python::{newest, venv};
use crate::harness::unstale::{QUICK, Up, array};
use crate::harness::workers::{Program, Supervisord, celery_command, start_alone};

use super::{Shop, Unkept};

#[test]
fn a_worker_that_nothing_would_bring_back_is_left_alone_and_the_rollout_says_so() {
    let Unkept { worker, app, place, .. } = &Unkept::start();
    let up = Up::start(place);
    app.flip();
    let said = up.broadcast("shop", &app.code, &[]).expect(1);
    let result = said.json();
    assert_eq!(result["outcome"], "failed", "{result:#}");
    assert!(result.to_string().contains("cannot restart"), "{result:#}");
    assert!(is_running(worker.pid()));
    assert!(!worker.log().contains("shutdown"), "{}", worker.log());
}

#[test]
fn code_that_fails_at_import_halts_the_rollout_and_leaves_the_next_unit_running() {
    let place = Place::new();
    let venv = venv(&newest(), "worker");
    let app = App::new(&place, "shop");
    let command = celery_command(&venv, 1);
    // One group is one pool: of two units, one may be unavailable.
    let programs = [Program::new("first", &app, command.clone()), Program::new("second", &app, command)];
    let supervisord = Supervisord::start_group(&place, &venv, Some("shop"), &programs);
    let old: Vec<u32> = ["shop:first", "shop:second"].iter().map(|name| supervisord.wait_for_pid(name)).collect();
    for name in ["shop:first", "shop:second"] {
        supervisord.wait_until_ready(name, 1);
    }
    let up = Up::start(&place);
    app.flip();
    app.edit(
        "tasks.py",
        "from shop.queue import app\n",
        "from shop.queue import app\n\nraise RuntimeError('new code')\n",
    );
    let said = up.broadcast("shop", &app.code, &[]).expect(4);
    let result = said.json();
    assert_eq!(result["outcome"], "halted", "{result:#}");
    assert_eq!(result["units"]["failed"], 1, "{result:#}");
    let left: Vec<bool> = old.iter().map(|pid| is_running(*pid)).collect();
    assert_eq!(left.iter().filter(|running| **running).count(), 1, "{left:?}");
}

#[test]
fn a_syntax_error_in_any_loaded_module_restarts_nothing_until_it_is_mended_and_broadcast_again() {
    let shop = Shop::start(&["autorestart=true"]);
    let old = shop.main();
    shop.app.flip();
    shop.app.edit("journal.py", "def note(", "def note((");
    let said = shop.up.broadcast("shop", &shop.app.code, &[]).expect(1);
    assert!(format!("{}{}", said.stdout, said.stderr).contains("journal.py"), "{said:?}");
    assert_eq!(shop.main(), old);
    // Answered by a look of its own, not by what the last one found.
    shop.app.edit("journal.py", "def note((", "def note(");
    let said = shop.broadcast(&[]);
    assert_eq!(said["outcome"], "converged", "{said:#}");
    assert_ne!(shop.main(), old);
}

#[test]
fn a_unit_whose_preflight_command_fails_is_left_running_and_the_reason_is_told() {
    let shop = Shop::start_with(
        &["autorestart=true"],
        &format!(
            "{QUICK}[[units]]\nslot = \"celery/*\"\npreflight = [\"/bin/sh\", \"-c\", \"echo no shop today >&2; exit 7\"]\n"
        ),
    );
    let old = shop.main();
    shop.app.flip();
    let said = shop.up.broadcast("shop", &shop.app.code, &[]);
    let told = format!("{}{}", said.stdout, said.stderr);
    assert!(told.contains("exit status: 7: no shop today"), "{said:?}");
    assert_eq!(shop.main(), old);
}

#[test]
fn a_worker_that_dies_again_and_again_after_its_restart_is_noticed() {
    let shop = Shop::start_with(&["autorestart=true", "startretries=100"], "");
    shop.app.flip();
    // Imports well, is up for a moment, and ends: `done` for a supervisor, not for us.
    shop.app.edit(
        "tasks.py",
        "from shop.queue import app\n",
        "from shop.queue import app\n\nimport threading\n\nthreading.Timer(3, os._exit, [1]).start()\n",
    );
    let said = shop.up.broadcast("shop", &shop.app.code, &[]).expect(4);
    let result = said.json();
    assert_eq!(result["outcome"], "halted", "{result:#}");
    assert_eq!(result["units"]["failed"], 1, "{result:#}");
}

#[test]
fn labels_that_the_database_lacks_are_refused_and_force_goes_on() {
    let shop = Shop::start(&["autorestart=true"]);
    let postgres = Postgres::start(&shop.place);
    postgres.sql("CREATE TYPE crm_type AS ENUM ('hubspot', 'salesforce')");
    shop.app.flip();
    shop.app.send_values();
    let url = postgres.url();
    let said = shop.up.broadcast("shop", &shop.app.code, &["--database", &url]).expect(1);
    assert_eq!(said.json()["outcome"], "refused", "{said:?}");
    assert!(format!("{}{}", said.stdout, said.stderr).contains("SALESFORCE"), "{said:?}");
    let said = shop.up.broadcast("shop", &shop.app.code, &["--database", &url, "--force"]).expect(0);
    assert_eq!(said.json()["outcome"], "converged", "{said:?}");
    postgres.sql("ALTER TYPE crm_type ADD VALUE 'SALESFORCE'");
    let said = shop.up.broadcast("shop", &shop.app.code, &["--database", &url]).expect(0);
    assert_eq!(said.json()["units"]["restarted"], 0, "{said:?}");
}

#[test]
fn an_app_that_claims_a_name_it_may_not_is_listed_and_has_no_effect() {
    assert!(rustix::process::geteuid().is_root(), "this test runs a worker as another user: run tests/run");
    let place = Place::new();
    let app = App::new(&place, "shop");
    let stranger = App::new(&place, "stranger");
    app.compile(&newest().path);
    let copied = place.join("stranger/data");
    let command = vec![
        "/usr/bin/setpriv".to_owned(),
        "--reuid=nobody".to_owned(),
        "--regid=nogroup".to_owned(),
        "--clear-groups".to_owned(),
        "--".to_owned(),
        "/usr/bin/env".to_owned(),
        "UNSTALE_APP=shop".to_owned(),
        "/usr/bin/python3".to_owned(),
        "-m".to_owned(),
        "shop.plain".to_owned(),
    ];
    std::os::unix::fs::chown(&copied, Some(65534), Some(65534)).expect("its owner");
    let worker = start_alone(&place, &stranger, "stranger", &command);
    stranger.wait_for_journal("plain", 20);
    let up = Up::start(&place);
    app.flip();
    let said = up.broadcast("shop", &app.code, &[]).expect(3);
    assert_eq!(said.json()["outcome"], "incomplete", "no worker of the app: {said:?}");
    assert!(is_running(worker.pid()));
    let unit = format!("python:{}", worker.pid());
    let claim = "claims shop: user nobody may not";
    let status = up.run(["status", "--output", "json"]).json();
    let others = array(&status["hosts"][0], "others");
    let listed = others.iter().find(|other| other["unit"] == unit.as_str());
    assert_eq!(listed.map(|other| &other["claims"][0]), Some(&claim.into()), "{status:#}");
    for asked in [["status", "shop"], ["why", &unit]] {
        let said = up.run(asked).expect(0);
        assert!(said.stdout.contains(&unit) && said.stdout.contains(claim), "{said:?}");
    }
}
