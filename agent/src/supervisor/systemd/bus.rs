//! A small D-Bus client: method calls with text arguments, their answers, and one kind of signal.
//!
//! It speaks to a bus and, without one, to a service manager's own socket, whose messages bear a sender that is no
//! unique name. Answers are bounded, and whoever sends them is not trusted. The wire is that of the D-Bus
//! specification, "Message Protocol"; values are read by `zvariant`.

use crate::supervisor::CALL_TIMEOUT;
use serde::Deserialize;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use zvariant::serialized::{Context, Data};
use zvariant::{Endian, OwnedValue, Type};

/// Largest message that is taken, in bytes. All properties of a service are some 30 KB.
const MESSAGE_MAX_BYTES: usize = 4 << 20;
/// Signals kept for [`Bus::signal`]; older ones make way.
const SIGNALS_MAX: usize = 256;
/// How often, and how far apart, a manager is woken that takes no messages yet.
const WAKES_MAX: u32 = 100;
const WAKE_INTERVAL: Duration = Duration::from_millis(50);
/// Where the system bus listens: D-Bus specification, "Well-known Message Bus Instances".
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallError {
    /// Nobody is there, or nobody answers.
    Unreachable(String),
    /// The answer makes no sense.
    Malformed(String),
    /// The answer is an error: its name and its words.
    Refused { name: String, words: String },
}

/// What is called.
#[derive(Clone, Copy, Debug)]
pub(super) struct Method<'a> {
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Bus {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    /// Whom messages go to; `None` where there is no bus in between.
    destination: Option<&'static str>,
    /// The unique name on the bus of whom messages go to: whose signals are heard.
    owner: String,
    serial: u32,
    signals: VecDeque<Message>,
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct Body(Data<'static, 'static>);

impl Body {
    /// Reads the body as one `T`.
    ///
    /// # Errors
    /// [`CallError::Malformed`].
    pub(super) fn read<T: for<'d> Deserialize<'d> + Type>(&self) -> Result<T, CallError> {
        self.0.deserialize::<T>().map(|(value, _)| value).map_err(|error| CallError::Malformed(error.to_string()))
    }
}

impl Bus {
    /// Connects to the bus at `address`, or to the system bus, and says hello.
    ///
    /// # Errors
    /// [`CallError::Unreachable`].
    pub(super) async fn connect(address: Option<&str>, destination: &'static str) -> Result<Self, CallError> {
        let path = match address {
            None => PathBuf::from(SYSTEM_BUS),
            Some(address) => socket(address)?,
        };
        let stream = UnixStream::connect(&path).await.map_err(unreachable)?;
        let mut bus = within(Self::greet(stream)).await?;
        let own = "org.freedesktop.DBus";
        bus.destination = Some(own);
        bus.call(Method { path: "/org/freedesktop/DBus", interface: own, member: "Hello" }, &[]).await?;
        bus.destination = Some(destination);
        Ok(bus)
    }

    /// Speaks to whoever holds the other end of `stream`, without a bus.
    ///
    /// # Errors
    /// [`CallError::Unreachable`] where it does not let us in.
    pub(super) async fn direct(stream: UnixStream) -> Result<Self, CallError> {
        let mut bus = within(Self::greet(stream)).await?;
        bus.wake().await?;
        Ok(bus)
    }

    /// Waits until the other end has begun to take messages.
    ///
    /// systemd leaves a message lying that came together with the end of the greeting, until more comes.
    async fn wake(&mut self) -> Result<(), CallError> {
        let ping = Method { path: "/", interface: "org.freedesktop.DBus.Peer", member: "Ping" };
        let first = receive(&mut self.reader);
        tokio::pin!(first);
        for _ in 0..WAKES_MAX {
            self.serial += 1;
            let bytes = encode(self.serial, ping, None, &[])?;
            self.writer.write_all(&bytes).await.map_err(unreachable)?;
            tokio::select! {
                message = &mut first => return message.map(drop),
                () = tokio::time::sleep(WAKE_INTERVAL) => {}
            }
        }
        Err(CallError::Unreachable("it takes no messages".to_owned()))
    }

    async fn greet(stream: UnixStream) -> Result<Self, CallError> {
        let (reader, writer) = stream.into_split();
        let mut bus =
            Self { reader, writer, destination: None, owner: String::new(), serial: 0, signals: VecDeque::new() };
        // The uid as text, in hexadecimal: D-Bus specification, "Authentication Protocol".
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().flat_map(|digit| ['3', char::from(digit)]).collect();
        bus.writer.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes()).await.map_err(unreachable)?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() > 256 {
                return Err(CallError::Malformed("its greeting does not end".to_owned()));
            }
            line.push(bus.reader.read_u8().await.map_err(unreachable)?);
        }
        if !line.starts_with(b"OK") {
            let why = "it does not let this user in".to_owned();
            return Err(CallError::Unreachable(why));
        }
        bus.writer.write_all(b"BEGIN\r\n").await.map_err(unreachable)?;
        Ok(bus)
    }

    /// Asks a bus to send the signals that fit `rule`, and who the one is whose they must be; without a bus they come
    /// anyway, and from nobody else.
    ///
    /// # Errors
    /// [`CallError`].
    pub(super) async fn listen(&mut self, rule: &str) -> Result<(), CallError> {
        let Some(destination) = self.destination.replace("org.freedesktop.DBus") else {
            self.destination = None;
            return Ok(());
        };
        let method = |member| Method { path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus", member };
        let answer = match self.call(method("AddMatch"), &[rule]).await {
            Ok(_) => self.call(method("GetNameOwner"), &[destination]).await,
            Err(error) => Err(error),
        };
        self.destination = Some(destination);
        self.owner = answer?.read()?;
        Ok(())
    }

    /// Calls `method` with text arguments and waits for its answer.
    ///
    /// # Errors
    /// [`CallError`].
    pub(super) async fn call(&mut self, method: Method<'_>, arguments: &[&str]) -> Result<Body, CallError> {
        let wait = async {
            self.serial = self.serial.wrapping_add(1).max(1);
            let bytes = encode(self.serial, method, self.destination, arguments)?;
            self.writer.write_all(&bytes).await.map_err(unreachable)?;
            loop {
                let message = receive(&mut self.reader).await?;
                if message.answers == Some(self.serial) {
                    return message.answer();
                }
                self.keep(message);
            }
        };
        tokio::time::timeout(CALL_TIMEOUT, wait).await.unwrap_or_else(|_| {
            let why = format!("no answer to {} within {} s", method.member, CALL_TIMEOUT.as_secs());
            Err(CallError::Unreachable(why))
        })
    }

    /// Returns the next signal named `member`, kept or new. Waits without a limit.
    ///
    /// # Errors
    /// [`CallError`] where the connection ends.
    pub(super) async fn signal(&mut self, member: &str) -> Result<Body, CallError> {
        loop {
            let message = match self.signals.pop_front() {
                Some(message) => message,
                None => receive(&mut self.reader).await?,
            };
            let is_heard = self.destination.is_none() || (message.sender == self.owner && !self.owner.is_empty());
            if is_heard && message.kind == SIGNAL && message.member == member {
                return Ok(message.body);
            }
        }
    }

    fn keep(&mut self, message: Message) {
        if message.kind == SIGNAL {
            self.signals.push_back(message);
            if self.signals.len() > SIGNALS_MAX {
                self.signals.pop_front();
            }
        }
    }
}

async fn receive(reader: &mut OwnedReadHalf) -> Result<Message, CallError> {
    let mut bytes = vec![0; FIXED];
    reader.read_exact(&mut bytes).await.map_err(unreachable)?;
    let sizes = Sizes::of(&bytes)?;
    bytes.resize(sizes.total()?, 0);
    let rest = bytes.get_mut(FIXED..).unwrap_or_default();
    reader.read_exact(rest).await.map_err(unreachable)?;
    decode(bytes, sizes)
}

/// Bytes of a header before its fields.
const FIXED: usize = 16;
const CALL: u8 = 1;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// Field codes of the D-Bus specification, "Header Fields".
mod field {
    pub(super) const PATH: u8 = 1;
    pub(super) const INTERFACE: u8 = 2;
    pub(super) const MEMBER: u8 = 3;
    pub(super) const ERROR_NAME: u8 = 4;
    pub(super) const REPLY_SERIAL: u8 = 5;
    pub(super) const DESTINATION: u8 = 6;
    pub(super) const SENDER: u8 = 7;
    pub(super) const SIGNATURE: u8 = 8;
}

#[derive(Debug)]
struct Message {
    kind: u8,
    answers: Option<u32>,
    member: String,
    /// The unique name of who sent it, which the bus fills in; without a bus whatever the other end says.
    sender: String,
    error: String,
    signature: String,
    body: Body,
}

impl Message {
    fn answer(self) -> Result<Body, CallError> {
        if self.kind != ERROR {
            return Ok(self.body);
        }
        let words = if self.signature.starts_with('s') { self.body.read().unwrap_or_default() } else { String::new() };
        Err(CallError::Refused { name: self.error, words })
    }
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    endian: Endian,
    fields: usize,
    body: usize,
}

impl Sizes {
    fn of(fixed: &[u8]) -> Result<Self, CallError> {
        let endian = match fixed.first() {
            Some(b'l') => Endian::Little,
            Some(b'B') => Endian::Big,
            _ => return Err(CallError::Malformed("that is no D-Bus message".to_owned())),
        };
        let number = |place: usize| {
            let bytes: [u8; 4] = fixed.get(place..place + 4)?.try_into().ok()?;
            let number = if endian == Endian::Little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) };
            usize::try_from(number).ok()
        };
        let too_short = || CallError::Malformed("its header is too short".to_owned());
        let (body, fields) = (number(4).ok_or_else(too_short)?, number(12).ok_or_else(too_short)?);
        Ok(Self { endian, fields, body })
    }

    /// Where the body begins: the fields are padded to eight bytes.
    fn head(self) -> usize {
        FIXED.saturating_add(self.fields).checked_next_multiple_of(8).unwrap_or(usize::MAX)
    }

    fn total(self) -> Result<usize, CallError> {
        let total = self.head().saturating_add(self.body);
        if total > MESSAGE_MAX_BYTES {
            return Err(CallError::Malformed(format!(
                "a message of {total} bytes; at most {MESSAGE_MAX_BYTES} are taken"
            )));
        }
        Ok(total)
    }
}

/// Endianness, kind, flags, version, length of the body, serial, fields.
type Header = (u8, u8, u8, u8, u32, u32, Vec<(u8, OwnedValue)>);

fn decode(bytes: Vec<u8>, sizes: Sizes) -> Result<Message, CallError> {
    let malformed = |error: zvariant::Error| CallError::Malformed(error.to_string());
    let context = Context::new_dbus(sizes.endian, 0);
    let kind = bytes.get(1).copied().unwrap_or_default();
    let body = bytes.get(sizes.head()..).unwrap_or_default().to_vec();
    let data = Data::new(bytes, context);
    let (header, _) = data.deserialize::<Header>().map_err(malformed)?;
    let body = Body(Data::new(body, context));
    let mut message = Message {
        kind,
        answers: None,
        member: String::new(),
        sender: String::new(),
        error: String::new(),
        signature: String::new(),
        body,
    };
    for (code, value) in header.6 {
        match code {
            field::REPLY_SERIAL => message.answers = u32::try_from(value).ok(),
            field::MEMBER => message.member = String::try_from(value).unwrap_or_default(),
            field::SENDER => message.sender = String::try_from(value).unwrap_or_default(),
            field::ERROR_NAME => message.error = String::try_from(value).unwrap_or_default(),
            field::SIGNATURE => {
                message.signature =
                    zvariant::Signature::try_from(value).map(|text| text.to_string()).unwrap_or_default();
            }
            _ => {}
        }
    }
    Ok(message)
}

fn encode(
    serial: u32,
    method: Method<'_>,
    destination: Option<&str>,
    arguments: &[&str],
) -> Result<Vec<u8>, CallError> {
    let mut body = Vec::new();
    arguments.iter().try_for_each(|argument| push_text(&mut body, argument))?;
    let mut fields = Vec::new();
    push_field(&mut fields, field::PATH, 'o', method.path)?;
    push_field(&mut fields, field::INTERFACE, 's', method.interface)?;
    push_field(&mut fields, field::MEMBER, 's', method.member)?;
    if let Some(destination) = destination {
        push_field(&mut fields, field::DESTINATION, 's', destination)?;
    }
    if !arguments.is_empty() {
        align(&mut fields, 8);
        // A signature has a length of one byte.
        let length = u8::try_from(arguments.len()).map_err(too_long)?;
        fields.extend([field::SIGNATURE, 1, b'g', 0, length]);
        fields.extend(arguments.iter().map(|_| b's'));
        fields.push(0);
    }
    let mut bytes = vec![b'l', CALL, 0, 1];
    bytes.extend(u32::try_from(body.len()).map_err(too_long)?.to_le_bytes());
    bytes.extend(serial.to_le_bytes());
    bytes.extend(u32::try_from(fields.len()).map_err(too_long)?.to_le_bytes());
    bytes.extend(fields);
    align(&mut bytes, 8);
    bytes.extend(body);
    Ok(bytes)
}

fn push_field(fields: &mut Vec<u8>, code: u8, kind: char, text: &str) -> Result<(), CallError> {
    align(fields, 8);
    let kind = u8::try_from(u32::from(kind)).map_err(too_long)?;
    fields.extend([code, 1, kind, 0]);
    push_text(fields, text)
}

fn push_text(bytes: &mut Vec<u8>, text: &str) -> Result<(), CallError> {
    align(bytes, 4);
    bytes.extend(u32::try_from(text.len()).map_err(too_long)?.to_le_bytes());
    bytes.extend(text.bytes());
    bytes.push(0);
    Ok(())
}

fn align(bytes: &mut Vec<u8>, step: usize) {
    bytes.resize(bytes.len().next_multiple_of(step), 0);
}

fn too_long(_: std::num::TryFromIntError) -> CallError {
    CallError::Malformed("an argument is too long".to_owned())
}

/// Reads `unix:path=…` or `unix:abstract=…`; the only transports of a bus on this host.
fn socket(address: &str) -> Result<PathBuf, CallError> {
    let options = address.strip_prefix("unix:").unwrap_or_default();
    let path = options.split(',').find_map(|option| option.strip_prefix("path="));
    match path {
        Some(path) if path.starts_with('/') => Ok(Path::new(path).to_owned()),
        _ => Err(CallError::Unreachable(format!("{address:?} is no address of the form unix:path=/…"))),
    }
}

/// Sets a limit to all of `work`: between its steps the other end could take any time.
async fn within<T>(work: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
    let late = || Err(CallError::Unreachable(format!("no answer within {} s", CALL_TIMEOUT.as_secs())));
    tokio::time::timeout(CALL_TIMEOUT, work).await.unwrap_or_else(|_| late())
}

#[expect(clippy::needless_pass_by_value, reason = "the form that `map_err` wants")]
fn unreachable(error: std::io::Error) -> CallError {
    CallError::Unreachable(error.to_string())
}

/// Plays a bus to one who says hello and asks for one property: the answer is this text, or never comes.
#[cfg(test)]
pub(super) async fn serve(listener: tokio::net::UnixListener, property: Option<&str>) {
    let (stream, _) = listener.accept().await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(reader.read_u8().await.unwrap());
    }
    writer.write_all(b"OK 0123456789abcdef0123456789abcdef\r\n").await.unwrap();
    reader.read_exact(&mut [0; b"BEGIN\r\n".len()]).await.unwrap();
    for serial in 1_u32.. {
        let Ok(asked) = receive(&mut reader).await else { return };
        let mut body = Vec::new();
        let signature = match (asked.member.as_str(), property) {
            ("Hello", _) => "s",
            ("Get", Some(_)) => "v",
            _ => std::future::pending().await,
        };
        if signature == "v" {
            body.extend([1, b's', 0]);
        }
        push_text(&mut body, property.unwrap_or_default()).unwrap();
        let mut fields = vec![field::REPLY_SERIAL, 1, b'u', 0];
        fields.extend(serial.to_le_bytes());
        fields.extend([field::SIGNATURE, 1, b'g', 0, 1]);
        fields.extend(signature.bytes());
        fields.push(0);
        let mut bytes = vec![b'l', 2, 0, 1];
        bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        bytes.extend(serial.to_le_bytes());
        bytes.extend(u32::try_from(fields.len()).unwrap().to_le_bytes());
        bytes.extend(fields);
        align(&mut bytes, 8);
        bytes.extend(body);
        writer.write_all(&bytes).await.unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> Result<Message, CallError> {
        let sizes = Sizes::of(bytes)?;
        sizes.total()?;
        decode(bytes.to_vec(), sizes)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let method = Method { path: "/a", interface: "b.c", member: "Member" };
        for arguments in [&[][..], &["x"], &["shop.service", "replace"]] {
            let message = decoded(&encode(7, method, Some("d.e"), arguments).unwrap()).unwrap();
            assert_eq!((message.member.as_str(), message.kind, message.answers), ("Member", CALL, None));
            if let [first, second] = arguments {
                assert_eq!(message.body.read::<(String, String)>(), Ok(((*first).to_owned(), (*second).to_owned())));
            }
        }
    }

    /// A signal `JobRemoved` whose body is `text`.
    fn signal(sender: &str, text: &str) -> Vec<u8> {
        let (mut fields, mut body) = (Vec::new(), Vec::new());
        push_text(&mut body, text).unwrap();
        push_field(&mut fields, field::PATH, 'o', "/a").unwrap();
        push_field(&mut fields, field::INTERFACE, 's', "b.c").unwrap();
        push_field(&mut fields, field::MEMBER, 's', "JobRemoved").unwrap();
        push_field(&mut fields, field::SENDER, 's', sender).unwrap();
        align(&mut fields, 8);
        fields.extend([field::SIGNATURE, 1, b'g', 0, 1, b's', 0]);
        let mut bytes = vec![b'l', SIGNAL, 0, 1];
        bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(u32::try_from(fields.len()).unwrap().to_le_bytes());
        bytes.extend(fields);
        align(&mut bytes, 8);
        bytes.extend(body);
        bytes
    }

    #[tokio::test]
    async fn on_a_bus_only_the_managers_own_signals_are_heard() {
        let check = async |destination: Option<&'static str>, owner: &str, expected: Option<&str>| {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let (reader, writer) = ours.into_split();
            let (owner, signals) = (owner.to_owned(), VecDeque::new());
            let mut bus = Bus { reader, writer, destination, owner, serial: 0, signals };
            for (sender, text) in [(":1.66", "forged"), (":1.2", "true")] {
                theirs.write_all(&signal(sender, text)).await.unwrap();
            }
            drop(theirs);
            let heard = bus.signal("JobRemoved").await.ok().map(|body| body.read::<String>().unwrap());
            assert_eq!(heard.as_deref(), expected, "{destination:?}");
        };
        check(Some("org.freedesktop.systemd1"), ":1.2", Some("true")).await;
        // Where nobody owns the name nobody is heard.
        check(Some("org.freedesktop.systemd1"), "", None).await;
        check(None, "", Some("forged")).await;
    }

    #[test]
    fn damaged_messages_are_errors_and_never_a_panic() {
        let method = Method { path: "/a", interface: "b.c", member: "Member" };
        let good = encode(7, method, Some("d.e"), &["x", "y"]).unwrap();
        for end in 0..good.len() {
            drop(decoded(&good[..end]));
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[end] ^= flip;
                if let Ok(message) = decoded(&bad) {
                    drop(message.body.read::<(String, String)>());
                }
            }
        }
        let huge = [b'l', 2, 0, 1, 0xff, 0xff, 0xff, 0x7f, 1, 0, 0, 0, 0, 0, 0, 0];
        assert!(matches!(decoded(&huge), Err(CallError::Malformed(_))));
    }

    #[test]
    fn only_sockets_of_this_host_are_addresses() {
        assert_eq!(socket("unix:path=/run/b,guid=1"), Ok(PathBuf::from("/run/b")));
        for address in ["tcp:host=h", "unix:path=rel", "unix:", ""] {
            assert!(socket(address).is_err(), "{address}");
        }
    }
}
