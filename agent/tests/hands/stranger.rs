//! A stranger who plays supervisord: nothing of root's is read for him, said to him, or told to root's own by him.

use crate::supervised::Supervisord;
use crate::support::{Running, Scratch, at, catches_term, eventually, unit};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::Command;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use unstale_agent::process::{Kind, Supervisor};
use unstale_agent::restart::{Hands, Plan, UnitFacts};
use unstale_agent::supervisor::{Reach, SlotState, state};

const UID: u32 = 1500;
const NAME: &str = "shop:shop";

/// Answers as supervisord does, writes down what it hears, and once it is asked for its state leaves a link to the
/// socket that its argument names in its place.
const FAKE: &str = r#"
import os, socket, sys, xmlrpc.client
os.chdir(sys.argv[1])
server = socket.socket(socket.AF_UNIX)
server.bind("s.sock")
server.listen(16)
program = dict(group="shop", name="shop", state=0, pid=0, statename="STOPPED", description="", spawnerr="")
def request(peer):
    head = b""
    while b"\r\n\r\n" not in head:
        more = peer.recv(65536)
        if not more: return None
        head += more
    head, body = head.split(b"\r\n\r\n", 1)
    length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")][0]
    while len(body) < int(length.split(b":")[1]): body += peer.recv(65536)
    with open("heard", "ab") as heard: heard.write(head + b"\n" + body + b"\n")
    return xmlrpc.client.loads(body)[1]
while True:
    peer, _ = server.accept()
    while method := request(peer):
        last = method == "supervisor.getState"
        value = {"supervisor.getPID": os.getpid(), "supervisor.getAllProcessInfo": [program],
                 "supervisor.getState": {"statename": "RUNNING"}}.get(method, True)
        body = xmlrpc.client.dumps((value,), methodresponse=True).encode()
        if last:
            os.rename("s.sock", "old.sock")
            os.symlink(sys.argv[2], "s.sock")
        end = b"Connection: close\r\n" if last else b""
        peer.sendall(b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n" % (end, len(body)) + body)
        if last: break
    peer.close()
"#;

struct Stranger {
    running: Running,
    scratch: Scratch,
}

impl Stranger {
    async fn start(config: &str, real: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let scratch = Scratch::new();
        std::fs::set_permissions(&scratch.path, PermissionsExt::from_mode(0o755)).unwrap();
        let here = scratch.path.join("his");
        std::fs::create_dir(&here).unwrap();
        chown(&here, Some(UID), Some(UID)).unwrap();
        let path = here.display().to_string();
        for (name, text) in [("his/fake.py", FAKE), ("his/s.conf", &config.replace("HERE", &path))] {
            chown(scratch.write(name, text), Some(UID), Some(UID)).unwrap();
        }
        let uid = UID.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "/usr/bin/python3"]);
        command.arg(here.join("fake.py")).arg(&here).arg(real);
        let stranger = Self { running: Running::start(&mut command), scratch };
        eventually("the stranger listens", async || here.join("s.sock").exists().then_some(())).await;
        stranger
    }

    fn supervisor(&self, config: &str) -> Supervisor {
        let config = self.scratch.path.join("his").join(config).display().to_string();
        Supervisor::Supervisord { name: NAME.to_owned(), pid: self.running.pid(), config }
    }

    fn heard(&self) -> String {
        self.scratch.read("his/heard").to_ascii_lowercase()
    }
}

#[tokio::test]
async fn a_configuration_is_read_with_the_rights_of_the_supervisord_that_it_is_of() {
    let secret = Scratch::new();
    let path = secret.write("root.conf", "[unix_http_server]\nusername=root\npassword=secret\n");
    std::fs::set_permissions(&secret.path, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let config = format!("[include]\nfiles = {} HERE/z.ini\n", path.display());
    let stranger = Stranger::start(&config, "/nowhere").await;
    stranger.scratch.write("his/z.ini", "[unix_http_server]\nfile=%(here)s/s.sock\n");
    assert_eq!(state(&Reach::default(), &stranger.supervisor("s.conf")).await, SlotState::Stopped);
    let heard = stranger.heard();
    assert!(heard.contains("supervisor.getpid") && !heard.contains("authorization"), "{heard}");
    // What he may read himself is read.
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    state(&Reach::default(), &stranger.supervisor("s.conf")).await;
    assert!(stranger.heard().contains("authorization"));
}

#[tokio::test]
async fn a_manager_that_greets_byte_by_byte_is_not_waited_for() {
    let scratch = Scratch::new();
    let socket = scratch.write("0/systemd/private", "");
    std::fs::remove_file(&socket).unwrap();
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let drip = async {
        let mut peers = tokio::task::JoinSet::new();
        while let Ok((mut peer, _)) = listener.accept().await {
            peers.spawn(async move {
                while peer.write_all(b"O").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            });
        }
    };
    let reach = Reach { user_runtime: scratch.path.clone(), ..Reach::default() };
    let asked = async {
        for _ in 0..100 {
            let name = "x.service".to_owned();
            let seen = state(&reach, &Supervisor::Systemd { name, user: Some(0) }).await;
            assert!(matches!(seen, SlotState::Unreachable { .. }), "{seen:?}");
        }
    };
    let asked = async { tokio::time::timeout(Duration::from_secs(9), asked).await };
    let in_time = tokio::select! { in_time = asked => in_time, () = drip => panic!("nobody connects any more") };
    assert!(in_time.is_ok(), "a hundred questions have a bounded time");
}

#[tokio::test]
async fn a_socket_that_belongs_to_another_user_than_its_supervisord_is_not_spoken_to() {
    let real = Supervisord::start("worker", "[program:shop]\ncommand=sleep 600\nautostart=false\n").await;
    let config = "[unix_http_server]\nfile=HERE/link.sock\nusername=u\npassword=p\n";
    let stranger = Stranger::start(config, "/nowhere").await;
    symlink(real.scratch.path.join("s.sock"), stranger.scratch.path.join("his/link.sock")).unwrap();
    let seen = state(&Reach::default(), &stranger.supervisor("s.conf")).await;
    assert!(matches!(&seen, SlotState::Unreachable { why } if why.contains("belongs to uid 0")), "{seen:?}");
}

#[tokio::test]
async fn an_order_goes_to_whoever_said_who_he_is_and_to_nobody_else() {
    let program = "[program:shop]\ncommand=VENV/bin/python -c \"import signal,sys,time; \
                   signal.signal(15, lambda *_: sys.exit(0)); time.sleep(600)\"\nstartsecs=0\n";
    let real = Supervisord::start("worker", program).await;
    let main = real.up(NAME, None).await;
    catches_term(main).await;
    let unit = unit(main, Kind::Beat, real.supervisor(NAME));
    let hands = Hands::default();
    let plan = hands.plan(&unit, &UnitFacts::of(&unit), &[]).await.unwrap();
    real.operator(&["stop", NAME]);
    assert_eq!(real.state(NAME).await, SlotState::Stopped);
    let config = "[unix_http_server]\nfile=HERE/s.sock\nusername=u\npassword=p\n";
    let socket = real.scratch.path.join("s.sock").display().to_string();
    let stranger = Stranger::start(config, &socket).await;
    let plan = Plan { supervisor: stranger.supervisor("s.conf"), ..plan };
    assert!(hands.release(&plan, at(1)).await.is_err());
    assert!(stranger.heard().contains("supervisor.getstate"), "{}", stranger.heard());
    assert_eq!(real.state(NAME).await, SlotState::Stopped, "root's own was told nothing");
}
