//! HTTP to supervisord, over its Unix socket or its loopback address: one connection for what belongs together, to
//! nobody but the user that supervisord runs as, with bounded answers.

use super::rights;
use crate::procfs;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use unstale_protocol::ids::Pid;

/// Most bytes of one answer that are read.
const ANSWER_MAX_BYTES: usize = 4 << 20;
/// Most bytes of the kernel's table of sockets.
const TABLE_MAX_BYTES: u64 = 4 << 20;

/// Where a supervisord listens, and what it wants to hear first.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) place: Place,
    /// `username:password`.
    pub(crate) credentials: Option<String>,
}

/// A Unix socket, or an address of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Unix(PathBuf),
    Loopback(SocketAddr),
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let credentials = self.credentials.as_ref().map(|_| "[redacted]");
        f.debug_struct("Endpoint").field("place", &self.place).field("credentials", &credentials).finish()
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.place {
            Place::Unix(path) => write!(f, "{}", path.display()),
            Place::Loopback(address) => write!(f, "http://{address}"),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection whose other end is held by the user that it must be.
pub(crate) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: http1::Connection<TokioIo<Box<dyn Stream>>, Full<Bytes>>,
    is_open: bool,
    authorization: Option<String>,
}

impl Connection {
    /// Connects to `endpoint`, which must belong to `uid`. Before that is known nothing is sent.
    ///
    /// # Errors
    /// What went wrong, or whom it belongs to.
    pub(crate) async fn open(endpoint: &Endpoint, uid: u32) -> Result<Self, String> {
        let stream: Box<dyn Stream> = match &endpoint.place {
            Place::Unix(path) => Box::new(rights::connect(path.clone(), uid).await?),
            Place::Loopback(address) => Box::new(connect(*address, uid).await?),
        };
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(words)?;
        let credentials = endpoint.credentials.as_ref();
        let authorization = credentials.map(|credentials| format!("Basic {}", base64(credentials.as_bytes())));
        Ok(Self { sender, driver, is_open: true, authorization })
    }

    /// Posts `body` to `/RPC2` and returns the body of the answer.
    ///
    /// # Errors
    /// What went wrong, in words that name no secret.
    pub(crate) async fn post(&mut self, body: String) -> Result<Vec<u8>, String> {
        let mut request = Request::post("/RPC2")
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "text/xml")
            .header(header::CONTENT_LENGTH, body.len());
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(words)?;
        let Self { sender, driver, is_open, .. } = self;
        let answer = async move {
            sender.ready().await.map_err(words)?;
            read(sender.send_request(request).await.map_err(words)?).await
        };
        tokio::pin!(answer);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                ended = &mut *driver, if *is_open => {
                    *is_open = false;
                    ended.map_err(words)?;
                }
            }
        }
    }
}

async fn read(response: hyper::Response<hyper::body::Incoming>) -> Result<Vec<u8>, String> {
    let status = response.status();
    if status == hyper::StatusCode::UNAUTHORIZED {
        return Err("it wants the username and password of its configuration file".to_owned());
    }
    if !status.is_success() {
        return Err(format!("HTTP status {status}"));
    }
    let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await.map_err(|error| {
        format!("the answer cannot be read whole (at most {ANSWER_MAX_BYTES} bytes are taken): {error}")
    })?;
    Ok(body.to_bytes().to_vec())
}

/// Connects to an address of this machine. The kernel names no peer there, but whoever listens: before and afterwards,
/// so that it was the same.
async fn connect(address: SocketAddr, uid: u32) -> Result<TcpStream, String> {
    let before = listener(address);
    let stream = TcpStream::connect(address).await.map_err(words)?;
    if listener(address) != before {
        return Err("who listens there has just changed".to_owned());
    }
    match before {
        Some((owner, _)) if owner == uid => Ok(stream),
        Some((owner, _)) => Err(format!("it belongs to uid {owner}, not to uid {uid}")),
        None => Err("it is not known whom it belongs to".to_owned()),
    }
}

/// Returns whose the socket is that listens at `address`, and its inode.
fn listener(address: SocketAddr) -> Option<(u32, u64)> {
    // Those that listen come first. A kernel without IPv6 has no second table.
    ["net/tcp", "net/tcp6"].into_iter().find_map(|name| {
        let table = procfs::read(Pid(std::process::id()), name, TABLE_MAX_BYTES).ok()?;
        listening(&String::from_utf8_lossy(&table), address)
    })
}

/// Finds who listens at `address` in a table of proc(5), `/proc/net/tcp`: number, local address, remote address, state
/// (10 is *listen*), queues, timers, retransmissions, uid, time-out, inode.
fn listening(table: &str, address: SocketAddr) -> Option<(u32, u64)> {
    // Each four bytes as a number in the order of this machine.
    let hex = |bytes: &[u8]| -> String {
        let word = |word: &[u8]| u32::from_ne_bytes(word.try_into().unwrap_or_default());
        bytes.chunks(4).fold(String::new(), |mut text, bytes| {
            write!(text, "{:08X}", word(bytes)).unwrap_or_default();
            text
        })
    };
    let hosts = match address.ip() {
        IpAddr::V4(ip) => {
            vec![hex(&ip.octets()), hex(&[0; 4]), hex(&ip.to_ipv6_mapped().octets()), hex(&[0; 16])]
        }
        IpAddr::V6(ip) => vec![hex(&ip.octets()), hex(&[0; 16])],
    };
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (host, port) = fields.get(1)?.split_once(':')?;
        let fits = fields.get(3) == Some(&"0A")
            && u16::from_str_radix(port, 16) == Ok(address.port())
            && hosts.iter().any(|wanted| wanted == host);
        if fits { Some((fields.get(7)?.parse().ok()?, fields.get(9)?.parse().ok()?)) } else { None }
    })
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let index = usize::try_from(word >> (18 - 6 * place) & 63).unwrap_or_default();
            let letter = ALPHABET.get(index).copied().unwrap_or(b'=');
            text.push(if place <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        // RFC 4648, section 10.
        for (plain, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[tokio::test]
    async fn an_address_is_spoken_to_only_where_the_right_user_listens() {
        let own = rustix::process::geteuid().as_raw();
        for host in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let Ok(server) = tokio::net::TcpListener::bind(host).await else { continue };
            let bound = server.local_addr().unwrap();
            let ip = if host.starts_with("[::1") { bound.ip() } else { IpAddr::from([127, 0, 0, 1]) };
            let address = SocketAddr::new(ip, bound.port());
            assert!(connect(address, own).await.is_ok(), "{host}");
            let why = connect(address, own + 1).await.unwrap_err();
            assert!(why.contains(&format!("belongs to uid {own}")), "{host}: {why}");
        }
    }

    #[test]
    fn who_listens_is_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0200007F:2329 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1501        0 77 1 0 100 0\n\
             1: 0100007F:2329 0100007F:E000 01 00000000:00000000 00:00000000 00000000  1502        0 78 1 0 100 0\n\
             2: 0100007F:2329 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1500        0 79 1 0 100 0\n";
        let check = |address: &str, expected: Option<(u32, u64)>| {
            assert_eq!(listening(table, address.parse().unwrap()), expected, "{address}");
        };
        check("127.0.0.1:9001", Some((1500, 79)));
        check("127.0.0.2:9001", Some((1501, 77)));
        check("127.0.0.3:9001", None);
        check("127.0.0.1:9002", None);
    }

    #[test]
    fn credentials_are_never_printed() {
        let endpoint = Endpoint { place: Place::Unix("/run/s".into()), credentials: Some("user:geheim".to_owned()) };
        assert!(!format!("{endpoint:?} {endpoint}").contains("geheim"));
    }
}
