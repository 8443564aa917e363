//! Frames: four bytes of length, least significant first, then that many bytes of JSON.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Why there is no frame.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The other end is gone.
    #[error("the pipe ended")]
    Ended,
    /// The frame is longer than this direction allows.
    #[error("a frame of {bytes} bytes is longer than the {limit} allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

/// Returns the length that four bytes announce, if it is at most `limit`.
pub(crate) fn length(header: [u8; 4], limit: usize) -> Result<usize, Error> {
    let bytes = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    if bytes > limit { Err(Error::TooLong { bytes, limit }) } else { Ok(bytes) }
}

/// Returns the four bytes that announce `bytes`, if that is at most `limit`.
pub(crate) fn header(bytes: usize, limit: usize) -> Result<[u8; 4], Error> {
    match u32::try_from(bytes) {
        Ok(length) if bytes <= limit => Ok(length.to_le_bytes()),
        _ => Err(Error::TooLong { bytes, limit }),
    }
}

/// Writes one frame.
pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), body: &[u8]) -> Result<(), Error> {
    let header = header(body.len(), super::REQUEST_MAX_BYTES)?;
    to.write_all(&header).await.map_err(|_| Error::Ended)?;
    to.write_all(body).await.map_err(|_| Error::Ended)?;
    to.flush().await.map_err(|_| Error::Ended)
}

/// Reads one frame of at most `limit` bytes; memory grows with what arrives, not with what is announced.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin), limit: usize) -> Result<Vec<u8>, Error> {
    let mut announced = [0; 4];
    from.read_exact(&mut announced).await.map_err(|_| Error::Ended)?;
    let length = length(announced, limit)?;
    let mut body = Vec::with_capacity(length.min(1 << 16));
    let bound = u64::try_from(length).unwrap_or(u64::MAX);
    from.take(bound).read_to_end(&mut body).await.map_err(|_| Error::Ended)?;
    if body.len() == length { Ok(body) } else { Err(Error::Ended) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: &Result<&[u8], Error>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let read = runtime.block_on(async { read(&mut &bytes[..], 8).await });
        assert_eq!(read.as_deref(), expected.as_deref(), "{bytes:?}");
    }

    #[test]
    fn a_frame_is_its_length_and_its_bytes() {
        check(b"\x02\0\0\0{}", &Ok(b"{}"));
        check(b"\0\0\0\0", &Ok(b""));
    }

    #[test]
    fn a_frame_that_ends_early_or_is_too_long_is_refused() {
        check(b"", &Err(Error::Ended));
        check(b"\x02\0\0", &Err(Error::Ended));
        check(b"\x02\0\0\0{", &Err(Error::Ended));
        check(b"\x09\x00\x00\x00123456789", &Err(Error::TooLong { bytes: 9, limit: 8 }));
        check(b"\xff\xff\xff\xff", &Err(Error::TooLong { bytes: 0xffff_ffff, limit: 8 }));
    }
}
