//! What an owner sends to a watcher, in docker's form: a kind, three zeros, a length, bytes. The
//! boundary: no I/O here.

/// Longest content of a frame, in bytes: more than the relay ever has in its hands.
const MAX: usize = 1 << 20;
const HEADER: usize = 8;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Docker's numbers.
    Stdout = 1,
    Stderr = 2,
    /// Our own: the process has ended with the status that is the only byte.
    Exit = 3,
}

/// Bytes that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The container's owner speaks another language: is it an hrun of another version?")]
pub(crate) struct NoFrame;

/// Says that the watcher is one from now on.
pub(super) const WELCOME: [u8; HEADER] = [Kind::Stdout as u8, 0, 0, 0, 0, 0, 0, 0];

pub(super) fn encode(kind: Kind, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("the relay's chunks are short");
    let mut frame = Vec::with_capacity(HEADER + content.len());
    frame.extend_from_slice(&[kind as u8, 0, 0, 0]);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(content);
    frame
}

/// Puts frames together from pieces.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    received: Vec<u8>,
}

impl Decoder {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// The next frame, once it is complete.
    pub(super) fn next(&mut self) -> Result<Option<(Kind, Vec<u8>)>, NoFrame> {
        let Some((header, rest)) = self.received.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [kind, 0, 0, 0, length @ ..] = header else {
            return Err(NoFrame);
        };
        let kind = match kind {
            1 => Kind::Stdout,
            2 => Kind::Stderr,
            3 => Kind::Exit,
            _ => return Err(NoFrame),
        };
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| NoFrame)?;
        if length > MAX {
            return Err(NoFrame);
        }
        let Some(content) = rest.get(..length) else {
            return Ok(None);
        };
        let content = content.to_vec();
        self.received.drain(..HEADER + length);
        Ok(Some((kind, content)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_dockers_form() {
        assert_eq!(
            encode(Kind::Stderr, b"ab"),
            [2, 0, 0, 0, 0, 0, 0, 2, b'a', b'b']
        );
    }

    #[test]
    fn frames_in_pieces_are_put_together_in_their_order() {
        let mut bytes = encode(Kind::Stdout, b"hello");
        bytes.extend(encode(Kind::Stdout, b""));
        bytes.extend(encode(Kind::Exit, &[7]));
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for byte in bytes {
            decoder.push(&[byte]);
            while let Some(frame) = decoder.next().unwrap() {
                frames.push(frame);
            }
        }
        assert_eq!(
            frames,
            [
                (Kind::Stdout, b"hello".to_vec()),
                (Kind::Stdout, Vec::new()),
                (Kind::Exit, vec![7]),
            ]
        );
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [
            [9, 0, 0, 0, 0, 0, 0, 1],
            [1, 0, 1, 0, 0, 0, 0, 1],
            [1, 0, 0, 0, 255, 0, 0, 0],
        ] {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            assert_eq!(decoder.next(), Err(NoFrame), "{bytes:?}");
        }
    }
}
