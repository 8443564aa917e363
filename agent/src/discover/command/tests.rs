//! Recorded command lines and what they are.

use super::*;

fn words(line: &str) -> Vec<String> {
    line.split('|').map(str::to_owned).collect()
}

fn check(line: &str, expected: Nature) {
    assert_eq!(recognise(&words(line)), expected, "{line}");
}

#[test]
fn workers_are_told_by_script_module_and_title() {
    use Kind::*;
    let py = "/srv/venv/bin/python";
    for (line, kind) in [
        ("PY|/srv/venv/bin/celery|-A|shop|worker|-c|4", Celery),
        ("PY|/srv/venv/bin/celery|--app=shop|-b|redis://h|worker", Celery),
        ("PY|/srv/venv/bin/celery|worker|-A|shop", Celery),
        ("PY|-m|celery|-A|shop|worker|-n|m1@host|--executable=PY", Celery),
        ("PY|-u|-Xdev|-W|ignore|-mcelery|-A|shop|worker", Celery),
        ("PY|-OOum|celery|-A|shop|worker", Celery),
        ("[celeryd: w1@box:MainProcess] -active- (-A app worker -c 2)", Celery),
        ("[celeryd: w1@box:ForkPoolWorker-1]", Celery),
        ("PY|/srv/venv/bin/celery|-A|shop|beat|-l|info", Beat),
        ("[celery beat]", Beat),
        ("PY|/srv/venv/bin/celery|-A|shop|flower|--port=5555", Flower),
        ("PY|/srv/venv/bin/celery|-A|shop|inspect|ping", Python),
        ("PY|/srv/venv/bin/celery|-A|shop|shell", Python),
        ("PY|/srv/venv/bin/celery|multi|start|m1", Python),
        ("PY|/srv/venv/bin/gunicorn|-w|4|web:app", Gunicorn),
        ("PY|-m|gunicorn|web:app", Gunicorn),
        ("gunicorn: master [web:app]", Gunicorn),
        ("gunicorn: worker [web:app.2]", Gunicorn),
        ("PY|/srv/venv/bin/uvicorn|web:app|--workers|2", Uvicorn),
        ("PY|-m|uvicorn|web:app", Uvicorn),
        ("/srv/venv/bin/uwsgi|--ini|web.ini", Uwsgi),
        ("/usr/bin/uwsgi-core|--ini|web.ini", Uwsgi),
        ("uWSGI worker 1", Uwsgi),
        ("PY|/srv/venv/bin/hypercorn|web:app", Hypercorn),
        ("PY|/srv/venv/bin/granian|--interface|asgi|web:asgi", Granian),
        ("granian asgi 127.0.0.1:8000 web:asgi worker-1", Granian),
        ("PY|/srv/venv/bin/daphne|web.asgi:application", Daphne),
        ("PY|/srv/venv/bin/waitress-serve|web:app", Waitress),
        ("PY|/srv/venv/bin/rq|worker|high", Rq),
        ("PY|/srv/venv/bin/rq|-u|redis://h|worker", Rq),
        ("PY|/srv/venv/bin/rq|worker-pool|-n|2", Rq),
        ("PY|/srv/venv/bin/rq|info", Python),
        ("rq:worker:abc: Listening on high", Rq),
        ("PY|manage.py|rqworker", Rq),
        ("PY|/srv/venv/bin/dramatiq|shop.tasks|-p|2", Dramatiq),
        ("PY|-m|dramatiq|shop.tasks", Dramatiq),
        ("PY|/srv/venv/bin/huey_consumer|shop.huey", Huey),
        ("PY|-m|huey.bin.huey_consumer|shop.huey", Huey),
        ("PY|manage.py|run_huey", Huey),
        ("PY|/srv/venv/bin/arq|shop.WorkerSettings", Arq),
        ("PY|/srv/venv/bin/taskiq|worker|shop:broker", Taskiq),
        ("PY|worker.py", Python),
        ("PY|manage.py|runserver", Python),
        ("PY|-c|import time", Python),
        ("PY|-m|shop.run", Python),
        ("PY|-m|shop.celery|worker", Python),
        ("PY|celery.py|worker", Python),
        ("PY", Python),
        ("PY|-", Python),
        ("PY|-m", Python),
        ("my own title", Python),
    ] {
        check(&line.replace("PY", py), Nature::Worker(kind));
    }
}

#[test]
fn helpers_of_multiprocessing_belong_to_their_parent() {
    for line in [
        "python|-c|from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=7, pipe_handle=9)|--multiprocessing-fork",
        "python|-B|-c|from multiprocessing.resource_tracker import main;main(6)",
        "python|-c|from multiprocessing.forkserver import main; main(3, 4, [])",
        "python|-m|joblib.externals.loky.backend.popen_loky_posix|--process-name|x",
    ] {
        check(line, Nature::Offspring);
    }
}

#[test]
fn trackers_and_fork_servers_are_told_from_workers() {
    let serves = |line: &str| {
        let words: Vec<String> = line.split('|').map(str::to_owned).collect();
        serves_its_parent(&words)
    };
    for line in [
        "python|-c|from multiprocessing.resource_tracker import main;main(6)",
        "python|-B|-c|from multiprocessing.semaphore_tracker import main;main(6)",
        "python|-c|from multiprocessing.forkserver import main; main(3, 4, [])",
        "python|-c|from billiard.semaphore_tracker import main;main(6)",
        "python|-c|from joblib.externals.loky.backend.resource_tracker import main; main(6, False)",
    ] {
        assert!(serves(line), "{line}");
    }
    for line in [
        "python|-c|from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=7)|--multiprocessing-fork",
        "python|-c|from shop.resource_tracker import main;main()",
        "python|-m|multiprocessing.resource_tracker",
        "python",
        "",
    ] {
        assert!(!serves(line), "{line}");
    }
}

#[test]
fn supervisors_are_no_workers() {
    check("python|/usr/bin/supervisord|-n|-c|/etc/s.conf", Nature::Keeper("supervisord"));
    check("/usr/bin/python3|-m|supervisor.supervisord", Nature::Keeper("supervisord"));
    check("python|/usr/bin/circusd|c.ini", Nature::Keeper("circus"));
    check("circusd", Nature::Keeper("circus"));
    check("python|/usr/bin/honcho|start", Nature::Keeper("honcho"));
    check("uwsgi|--emperor|/etc/uwsgi", Nature::Keeper("uwsgi-emperor"));
    check("python|/usr/bin/supervisorctl|status", Nature::Worker(Kind::Python));
}

#[test]
fn hostile_command_lines_are_just_python() {
    for line in ["", "|", "||||", "-", "python|--|x", "python|-X", "python|-c", "\u{0}", "[", " ", "python|\u{202e}|-m"]
    {
        check(line, Nature::Worker(Kind::Python));
    }
    assert_eq!(recognise(&[]), Nature::Worker(Kind::Python));
    let long = vec!["-".repeat(5000); 500];
    assert_eq!(recognise(&long), Nature::Worker(Kind::Python));
}

#[test]
fn the_app_is_named_by_its_entry_point() {
    fn check(line: &str, expected: &[&str]) {
        assert_eq!(app_packages(&words(line)), expected, "{line}");
    }
    check("python|/v/bin/celery|-A|shop.celery:app|worker", &["shop"]);
    check("python|/v/bin/celery|--app=shop|worker", &["shop"]);
    check("python|-m|celery|-Ashop.app|beat", &["shop"]);
    check("[celeryd: w1@box:MainProcess] -active- (-A shop.app worker -c 2)", &["shop"]);
    check("[celeryd: w1@box:ForkPoolWorker-1]", &[]);
    check("python|/v/bin/gunicorn|-b|localhost:8000|-k|gevent|web.wsgi:app", &["web"]);
    check("python|/v/bin/gunicorn|-k|gevent|web.wsgi", &["web"]);
    check("python|/v/bin/gunicorn|--bind=unix:/run/x.sock|web.wsgi:make()", &["web"]);
    check("gunicorn: master [web:app]", &["web"]);
    check("python|/v/bin/uvicorn|web.main:app|--host|0.0.0.0", &["web"]);
    check("uwsgi|--module|web.wsgi:app", &["web"]);
    check("uwsgi|-w|web.wsgi", &["web"]);
    check("python|/v/bin/dramatiq|shop.tasks|-p|2", &["shop"]);
    check("python|/v/bin/arq|shop.WorkerSettings", &["shop"]);
    check("python|-m|pkg.mod|x", &["pkg"]);
    check("python|/srv/worker.py", &[]);
    check("python|/v/bin/rq|worker|high", &[]);
    check("python|/v/bin/celery|-A|../evil|worker", &[]);
    check("", &[]);
}

#[test]
fn a_supervisord_has_its_configuration_where_its_manual_says() {
    let given = words("python|/v/bin/supervisord|-n|-c|conf/s.conf");
    assert_eq!(supervisord_option(&given), Some("conf/s.conf"));
    assert_eq!(supervisord_option(&words("python|/v/bin/supervisord|--configuration=/s.conf")), Some("/s.conf"));
    assert_eq!(supervisord_places(&given, Some("/srv")), None);
    assert_eq!(supervisord_places(&words("python|-c|x"), Some("/srv")), None);
    assert_eq!(
        supervisord_places(&words("python|/v/bin/supervisord|-n"), Some("/srv")).expect("places"),
        [
            "/v/etc/supervisord.conf",
            "/v/supervisord.conf",
            "/srv/supervisord.conf",
            "/srv/etc/supervisord.conf",
            "/etc/supervisord.conf",
            "/etc/supervisor/supervisord.conf"
        ]
    );
}

#[test]
fn a_title_does_not_change_what_a_worker_is_called() {
    fn check(kind: Kind, before: &str, after: &str) {
        let label = label(kind, &words(before));
        assert!(label.is_some(), "{before}");
        assert_eq!(label, super::label(kind, &words(after)), "{before} and {after}");
    }
    let title = "[celeryd: w1@box:MainProcess] -active- (-A shop worker -c 1)";
    check(Kind::Celery, "python|/v/bin/celery|-A|shop|worker|-c|1", title);
    check(Kind::Celery, "python|-m|celery|-A|shop|worker|-c|1", title);
    check(Kind::Gunicorn, "python|/v/bin/gunicorn|-w|4|web:app", "gunicorn: master [web:app]");
    check(Kind::Gunicorn, "python|/v/bin/gunicorn|--name=shop|web:app", "gunicorn: master [shop.2]");
    assert_eq!(label(Kind::Python, &words("python|x.py")), None);
    assert_eq!(label(Kind::Celery, &words("[celeryd: )(")), None);
}
