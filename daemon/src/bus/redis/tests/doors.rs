//! The ways in: TLS with authorities and certificates, and Sentinels that are asked where the server is.

use super::*;

/// Makes an authority and a certificate of it for 127.0.0.1.
fn certificates(dir: &std::path::Path) {
    let make = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(dir).output().expect("openssl");
        assert!(output.status.success(), "{output:?}");
    };
    for (name, subject) in [("ca", "/CN=authority"), ("other", "/CN=somebody")] {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
        make(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            subject,
            "-keyout",
            &key,
            "-out",
            &certificate,
        ]);
    }
    std::fs::write(dir.join("extensions"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    make(&[
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=redis",
        "-keyout",
        "redis.key",
        "-out",
        "redis.csr",
    ]);
    make(&[
        "x509",
        "-req",
        "-in",
        "redis.csr",
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        "extensions",
        "-out",
        "redis.crt",
    ]);
}

#[tokio::test]
async fn a_server_with_tls_is_believed_by_its_authority_and_asks_for_a_certificate() {
    // The one thing that the program does before everything else.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let file = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let tls_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::start(&[
        "--tls-port",
        &tls_port.to_string(),
        "--tls-cert-file",
        &path("redis.crt"),
        "--tls-key-file",
        &path("redis.key"),
        "--tls-ca-cert-file",
        &path("ca.crt"),
    ])
    .await;
    let access = |authority: &str, identity: bool| Access {
        url: url(&format!("rediss://unstale-agent:a0@127.0.0.1:{tls_port}")),
        authority: Some(file(authority)),
        identity: identity.then(|| (file("redis.crt"), file("redis.key"))),
        fail_fast: false,
    };
    let said = async |access: Access| {
        access.connect("test", Duration::ZERO).await.map(drop).map_err(|ended| ended.to_string())
    };
    assert_eq!(said(access("ca.crt", true)).await, Ok(()));
    assert!(said(access("other.crt", true)).await.unwrap_err().contains("UnknownIssuer"));
    assert!(said(access("ca.crt", false)).await.is_err(), "it asks for a certificate");
    drop(server);
}

/// A Sentinel that watches over a server, which it calls `shop`.
struct Sentinel {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Sentinel {
    fn start(server: &Server, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor shop 127.0.0.1 {} 1\n{more}\n",
            dir.path().display(),
            server.port
        );
        std::fs::write(dir.path().join("sentinel.conf"), config).unwrap();
        let mut command = Command::new("redis-server");
        command.arg(dir.path().join("sentinel.conf")).arg("--sentinel").stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: command.spawn().unwrap(), port, _dir: dir }
    }

    /// The way of an agent to the server of this name, by a Sentinel that is not there and by this one.
    fn to(&self, name: &str, for_sentinels: Login) -> Access {
        let text = format!("redis+sentinel://unstale-agent:a0@127.0.0.1:1,127.0.0.1:{}/{name}", self.port);
        let url = RedisUrl { for_sentinels, ..url(&text) };
        Access { url, authority: None, identity: None, fail_fast: false }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Waits until an agent says that no Sentinel helped it, for a reason with these words.
async fn finds_no_way(agent: &mut AgentEnd, words: &str) {
    hears(agent, words, |message| match message {
        ToAgent::Link(Link::Down(why)) => (why.contains("no Sentinel") && why.contains(words)).then_some(()),
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn sentinels_are_asked_where_the_server_is() {
    let server = Server::start(&["--requirepass", "admin"]).await;
    let sentinel = Sentinel::start(&server, "");
    let mut set = JoinSet::new();
    let mut agent = start_agent(&mut set, sentinel.to("shop", Login::default()), 1);
    is_up(&mut agent).await;
    let mut lost = start_agent(&mut set, sentinel.to("other", Login::default()), 2);
    finds_no_way(&mut lost, "knows no server of the name other").await;
}

#[tokio::test]
async fn sentinels_with_a_password_of_their_own_are_asked_with_it() {
    let server = Server::start(&["--requirepass", "admin"]).await;
    let sentinel = Sentinel::start(&server, "requirepass s3ntinel");
    let mut set = JoinSet::new();
    let with = |password: &str| Login { username: None, password: Some(Secret(password.to_owned())) };
    let mut agent = start_agent(&mut set, sentinel.to("shop", with("s3ntinel")), 1);
    is_up(&mut agent).await;
    let mut wrong = start_agent(&mut set, sentinel.to("shop", with("a0")), 2);
    finds_no_way(&mut wrong, "refuses user or password").await;
    let mut without = start_agent(&mut set, sentinel.to("shop", Login::default()), 3);
    finds_no_way(&mut without, "`sentinel_password_file`").await;
}
