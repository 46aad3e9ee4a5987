//! Frames: a 32-bit little-endian length, then that many bytes of postcard.

use serde::{Serialize, de::DeserializeOwned};

/// Longest frame body, in bytes. A frame that says it is longer is refused unread, so no peer can
/// make the other allocate more.
pub const MAX_FRAME: usize = 4 << 20;

const PREFIX: usize = size_of::<u32>();

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
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, DecodeError> {
        let pending = &self.buffer[self.consumed..];
        let Some((prefix, rest)) = pending.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > MAX_FRAME {
            return Err(DecodeError::TooLong(length));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let (message, trailing) =
            postcard::take_from_bytes(body).map_err(DecodeError::Deserialize)?;
        if !trailing.is_empty() {
            return Err(DecodeError::Trailing(trailing.len()));
        }
        self.consumed += PREFIX + length;
        Ok(Some(message))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Open, ProcessId, Stream};

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
}
