//! One HTTP request to supervisord, over its Unix socket or its loopback address, with bounded answers.

use super::CALL_TIMEOUT;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Most bytes of one answer that are read.
const ANSWER_MAX_BYTES: usize = 4 << 20;

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

/// Posts `body` to `/RPC2` and returns the body of the answer.
///
/// # Errors
/// What went wrong, in words that name no secret.
pub(crate) async fn post(endpoint: &Endpoint, body: String) -> Result<Vec<u8>, String> {
    let work = async {
        let request = request(endpoint, body)?;
        match &endpoint.place {
            Place::Unix(path) => exchange(UnixStream::connect(path).await.map_err(words)?, request).await,
            Place::Loopback(address) => exchange(TcpStream::connect(address).await.map_err(words)?, request).await,
        }
    };
    match tokio::time::timeout(CALL_TIMEOUT, work).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", CALL_TIMEOUT.as_secs())),
    }
}

fn request(endpoint: &Endpoint, body: String) -> Result<Request<Full<Bytes>>, String> {
    let mut request = Request::post("/RPC2")
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "text/xml")
        .header(header::CONTENT_LENGTH, body.len());
    if let Some(credentials) = &endpoint.credentials {
        request = request.header(header::AUTHORIZATION, format!("Basic {}", base64(credentials.as_bytes())));
    }
    request.body(Full::new(Bytes::from(body))).map_err(words)
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Vec<u8>, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(words)?;
    let answer = async move {
        let response = sender.send_request(request).await.map_err(words)?;
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
    };
    tokio::pin!(answer, connection);
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            ended = &mut connection, if open => {
                ended.map_err(words)?;
                open = false;
            }
        }
    }
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

    #[test]
    fn credentials_are_never_printed() {
        let endpoint = Endpoint { place: Place::Unix("/run/s".into()), credentials: Some("user:geheim".to_owned()) };
        assert!(!format!("{endpoint:?} {endpoint}").contains("geheim"));
    }
}
