//! gunicorn: a reload cures a clean master, and only a restart one that holds the class itself.

use crate::supervised::Supervisord;
use crate::support::{Running, Scratch, at, catches_term, eventually, unit, venv};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use unstale_agent::process::{Kind, Supervisor};
use unstale_agent::restart::{Hands, Hold, Means, Refusal, StopSignal, Trap, UnitFacts};
use unstale_protocol::ids::Pid;

fn app(answer: &str) -> String {
    format!(
        "VALUE = b\"{answer}\"\ndef app(environ, start):\n    start(\"200 OK\", [(\"Content-Length\", str(len(VALUE)))])\n    \
         return [VALUE]\n"
    )
}

/// A port that was free a moment ago.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn ask(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(2))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text.rsplit_once("\r\n\r\n")?.1.to_owned())
}

async fn answers(port: u16, expected: &str) {
    eventually(expected, async || (ask(port).as_deref() == Some(expected)).then_some(())).await;
}

/// Rewrites the module so that every import sees it, whatever the clock's grain.
fn edit(directory: &Path, answer: &str) {
    std::fs::write(directory.join("web.py"), app(answer)).unwrap();
    drop(std::fs::remove_dir_all(directory.join("__pycache__")));
}

fn facts(unit: &unstale_agent::process::Unit, root_holds: bool) -> UnitFacts {
    UnitFacts { root_holds: Some(root_holds), ..UnitFacts::of(unit) }
}

#[tokio::test]
async fn a_clean_master_is_reloaded_and_stays() {
    let scratch = Scratch::new();
    edit(&scratch.path, "old");
    let port = port();
    let mut command = Command::new(venv("worker").join("bin/gunicorn"));
    command.args(["-w", "2", "-b", &format!("127.0.0.1:{port}"), "web:app"]).current_dir(&scratch.path);
    let running = Running::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    answers(port, "old").await;
    edit(&scratch.path, "new");
    let unit = unit(running.pid(), Kind::Gunicorn, Supervisor::None);
    let hands = Hands::default();
    let plan = hands.plan(&unit, &facts(&unit, false), &[]).await.unwrap();
    assert!(plan.means == Means::Hup && !plan.ends_root());
    assert!(plan.notes.contains(&Trap::NobodyIfItEnds) && plan.notes.contains(&Trap::ReloadEndsOnBadCode));
    let hold = Hold::take(&unit).unwrap();
    hands.stop(&plan, &hold, at(0)).await.unwrap();
    hands.ended(&plan, &hold).await;
    assert_eq!(hold.survivors().iter().map(|left| left.pid).collect::<Vec<_>>(), [running.pid()]);
    answers(port, "new").await;
    // A master that holds the class is not cured by that, and without a supervisor by nothing.
    for holds in [Some(true), None] {
        let facts = UnitFacts { root_holds: holds, ..UnitFacts::of(&unit) };
        assert!(matches!(hands.plan(&unit, &facts, &[]).await, Err(Refusal::NothingBringsBack { .. })));
    }
}

#[tokio::test]
async fn a_preloaded_master_is_restarted_because_a_reload_would_cure_nothing() {
    let port = port();
    let program = format!(
        "[program:web]\ncommand=VENV/bin/gunicorn --preload -w 2 -b 127.0.0.1:{port} web:app\ndirectory=HERE/src\n\
         autostart=false\nstartsecs=1\nstdout_logfile=HERE/out\nredirect_stderr=true\n"
    );
    let supervisord = Supervisord::start("worker", &program).await;
    let directory = supervisord.scratch.path.join("src");
    std::fs::create_dir(&directory).unwrap();
    edit(&directory, "old");
    supervisord.operator(&["start", "web:web"]);
    answers(port, "old").await;
    edit(&directory, "new");
    let master: Pid = supervisord.up("web:web", None).await;
    catches_term(master).await;
    let unit = unit(master, Kind::Gunicorn, supervisord.supervisor("web:web"));
    let hands = Hands::default();
    let plan = hands.plan(&unit, &facts(&unit, true), &[]).await.unwrap();
    assert_eq!(plan.means, Means::TermThenStart { signal: StopSignal::Term });
    assert!(plan.notes.contains(&Trap::HupImportsNothing));
    let hold = Hold::take(&unit).unwrap();
    hands.stop(&plan, &hold, at(0)).await.unwrap();
    hands.ended(&plan, &hold).await;
    if plan.ends_root() {
        hands.start(&plan, at(1)).await.unwrap();
    }
    answers(port, "new").await;
    assert!(hold.survivors().is_empty());
}
