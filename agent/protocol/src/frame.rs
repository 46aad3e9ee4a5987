//! Frames: a 32-bit little-endian length, then that many bytes of postcard.

use serde::{Serialize, de::DeserializeOwned};

use crate::{Hello, Open, VERSION};

/// Longest frame body, in bytes. A frame that says it is longer is refused unread, so no peer can
/// make the other allocate more.
pub const MAX_FRAME: usize = 4 << 20;

const PREFIX: usize = size_of::<u32>();

/// Largest number that is taken for a version of this protocol: what is larger is no greeting.
const MAX_VERSION: u32 = 999;

/// Index of [`Open::Control`] on the wire, in this and every version.
const OPEN_CONTROL: u32 = 0;

/// Failure to make a frame.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The message does not fit a frame.
    #[error("Message of {0} bytes is longer than a frame may be ({MAX_FRAME} bytes)")]
    TooLong(usize),
    /// The message cannot be serialized.
    #[error("Failed to serialize a message")]
    Serialize(#[source] postcard::Error),
}

/// Failure to read a frame. The connection cannot be used after it.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The length prefix is beyond [`MAX_FRAME`].
    #[error("Frame of {0} bytes announced, more than the {MAX_FRAME} allowed")]
    TooLong(usize),
    /// The body is no message of the expected type.
    #[error("Frame holds no valid message")]
    Deserialize(#[source] postcard::Error),
    /// The peer greets in another version of the protocol.
    #[error("Peer speaks version {0} of the agent protocol, this side version {VERSION}")]
    Version(u32),
    /// Bytes are left over behind the message.
    #[error("Frame holds {0} bytes behind its message")]
    Trailing(usize),
}

/// Makes the frame of a message.
///
/// # Errors
///
/// The message is longer than [`MAX_FRAME`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, EncodeError> {
    let mut frame =
        postcard::to_extend(message, vec![0; PREFIX]).map_err(EncodeError::Serialize)?;
    let length = frame.len() - PREFIX;
    match u32::try_from(length) {
        Ok(prefix) if length <= MAX_FRAME => {
            frame[..PREFIX].copy_from_slice(&prefix.to_le_bytes());
            Ok(frame)
        }
        _ => Err(EncodeError::TooLong(length)),
    }
}

/// Takes a stream of bytes apart into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    consumed: usize,
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes that arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next message, if all of it has arrived.
    ///
    /// # Errors
    ///
    /// The frame is too long or does not hold exactly one message of type `T`.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator could not choose the type of each message"
    )]
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, DecodeError> {
        let Some(body) = self.body()? else {
            return Ok(None);
        };
        let (message, trailing) =
            postcard::take_from_bytes(body).map_err(DecodeError::Deserialize)?;
        if !trailing.is_empty() {
            return Err(DecodeError::Trailing(trailing.len()));
        }
        self.consumed += PREFIX + body.len();
        Ok(Some(message))
    }

    /// Takes the agent's greeting: [`next`](Self::next) for [`Hello`], except that another version
    /// is named as such, whatever follows its first field.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Version`], or as `next`.
    pub fn next_hello(&mut self) -> Result<Option<Hello>, DecodeError> {
        if let Some(body) = self.body()? {
            let (version, _) = postcard::take_from_bytes(body).map_err(DecodeError::Deserialize)?;
            check_version(version)?;
        }
        self.next()
    }

    /// Takes the host's first frame: [`next`](Self::next) for [`Open`], except that another
    /// version is named as such, whatever follows it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Version`], or as `next`.
    pub fn next_open(&mut self) -> Result<Option<Open>, DecodeError> {
        if let Some(body) = self.body()?
            && let Ok(((OPEN_CONTROL, version), _)) = postcard::take_from_bytes::<(u32, u32)>(body)
        {
            check_version(version)?;
        }
        self.next()
    }

    /// The body of the frame that is next, if all of it has arrived.
    fn body(&self) -> Result<Option<&[u8]>, DecodeError> {
        let pending = &self.buffer[self.consumed..];
        let Some((prefix, rest)) = pending.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > MAX_FRAME {
            return Err(DecodeError::TooLong(length));
        }
        Ok(rest.get(..length))
    }

    /// How many bytes were fed and not taken yet.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.consumed
    }

    /// The bytes that were fed and not taken: what arrived behind the first frame of a stream.
    #[must_use]
    pub fn into_rest(mut self) -> Vec<u8> {
        self.buffer.drain(..self.consumed);
        self.buffer
    }

    /// How many bytes the next frame still lacks: exactly this many may be read from a connection
    /// on which raw bytes follow the frame.
    #[must_use]
    pub fn missing(&self) -> usize {
        let pending = &self.buffer[self.consumed..];
        match pending.split_first_chunk::<PREFIX>() {
            None => PREFIX - pending.len(),
            Some((prefix, rest)) => (u32::from_le_bytes(*prefix) as usize)
                .min(MAX_FRAME)
                .saturating_sub(rest.len()),
        }
    }
}

fn check_version(version: u32) -> Result<(), DecodeError> {
    if version == VERSION {
        Ok(())
    } else if (1..=MAX_VERSION).contains(&version) {
        Err(DecodeError::Version(version))
    } else {
        Err(DecodeError::Deserialize(
            postcard::Error::DeserializeBadEncoding,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ProcessId, Stream};

    #[test]
    fn a_message_arrives_whatever_the_chunks() {
        let message = Open::Stream {
            process: ProcessId(300),
            stream: Stream::Stderr,
        };
        let frame = encode(&message).unwrap();
        for size in 1..=frame.len() {
            let mut decoder = Decoder::new();
            let mut got = Vec::new();
            for chunk in frame.repeat(3).chunks(size) {
                decoder.feed(chunk);
                while let Some(open) = decoder.next::<Open>().unwrap() {
                    got.push(open);
                }
            }
            assert_eq!(got, vec![message.clone(); 3]);
        }
    }

    #[test]
    fn missing_never_reaches_beyond_the_frame() {
        let frame = encode(&Open::Control { version: 1 }).unwrap();
        let mut bytes = frame.iter().copied().chain([0xff; 8]);
        let mut decoder = Decoder::new();
        let mut read = 0;
        while decoder.missing() > 0 {
            let chunk: Vec<u8> = bytes.by_ref().take(decoder.missing()).collect();
            read += chunk.len();
            decoder.feed(&chunk);
        }
        assert_eq!(read, frame.len());
        assert!(decoder.next::<Open>().unwrap().is_some());
    }

    #[test]
    fn an_overlong_frame_is_refused_unread() {
        let mut decoder = Decoder::new();
        decoder.feed(&u32::MAX.to_le_bytes());
        assert!(matches!(
            decoder.next::<Open>(),
            Err(DecodeError::TooLong(_))
        ));
        assert!(matches!(
            encode(&vec![0u8; MAX_FRAME + 1]),
            Err(EncodeError::TooLong(_))
        ));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut frame = encode(&Open::Control { version: 1 }).unwrap();
        frame.push(0);
        let length = u32::try_from(frame.len() - PREFIX).unwrap();
        frame[..PREFIX].copy_from_slice(&length.to_le_bytes());
        let mut decoder = Decoder::new();
        decoder.feed(&frame);
        assert!(matches!(
            decoder.next::<Open>(),
            Err(DecodeError::Trailing(1))
        ));
    }

    fn decoder(body: &[u8]) -> Decoder {
        let mut decoder = Decoder::new();
        decoder.feed(&u32::try_from(body.len()).unwrap().to_le_bytes());
        decoder.feed(body);
        decoder
    }

    #[test]
    fn another_version_is_named_whatever_follows_it() {
        for rest in [&b""[..], b"\xff\xff\xff", b"0123456789"] {
            let hello = [&[99][..], rest].concat();
            assert!(matches!(
                decoder(&hello).next_hello(),
                Err(DecodeError::Version(99))
            ));
            let open = [&[0, 99][..], rest].concat();
            assert!(matches!(
                decoder(&open).next_open(),
                Err(DecodeError::Version(99))
            ));
        }
    }

    #[test]
    fn garbage_is_not_taken_for_a_version() {
        for body in [&b""[..], b"\0\0\0", b"\xff\xff\xff\xff\x0f", b"\xff"] {
            assert!(matches!(
                decoder(body).next_hello(),
                Err(DecodeError::Deserialize(_))
            ));
        }
        for body in [&b""[..], b"\0\0", b"\x07\x07", b"\0\xff\xff\xff\xff\x0f"] {
            assert!(matches!(
                decoder(body).next_open(),
                Err(DecodeError::Deserialize(_))
            ));
        }
    }

    #[test]
    fn a_greeting_of_this_version_is_read_whole() {
        let open = Open::Control { version: VERSION };
        let mut decoder = Decoder::new();
        decoder.feed(&encode(&open).unwrap());
        assert_eq!(decoder.next_open().unwrap(), Some(open));
        assert_eq!(decoder.next_open().unwrap(), None);
    }

    #[test]
    fn bytes_behind_the_first_frame_are_kept() {
        let open = Open::Stream {
            process: ProcessId(1),
            stream: Stream::Stdin,
        };
        let mut decoder = Decoder::new();
        decoder.feed(&encode(&open).unwrap());
        decoder.feed(b"hello");
        assert_eq!(decoder.next_open().unwrap(), Some(open));
        assert_eq!(decoder.buffered(), 5);
        assert_eq!(decoder.into_rest(), b"hello");
    }
}
