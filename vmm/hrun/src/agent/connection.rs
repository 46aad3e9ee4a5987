//! Connections to the agent, through the VMM's Unix socket (see `vmm::config::VsockConfig`).
//!
//! Nothing is waited for: what the agent is to read goes right behind the `CONNECT` line, and the
//! VMM's answer is read by whoever reads the connection.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use agent_protocol::{AGENT_PORT, EncodeError, Open, encode};

/// How long the VMM may leave us standing with something to write, where that is not up to the
/// container's process.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest `OK <port>` line.
const MAX_ACKNOWLEDGEMENT: usize = 32;

/// Failure to reach the agent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The VMM's socket does not answer.
    #[error("Failed to connect to the agent through {path}")]
    Socket { path: PathBuf, source: io::Error },
    /// What is to be sent is too long for a frame.
    #[error("Failed to encode a message to the agent")]
    Encode(#[from] EncodeError),
    /// The connection broke.
    #[error("Failed to read from the agent")]
    Read(#[source] io::Error),
    /// The VMM or the agent closed the connection before anything else.
    #[error("The agent did not accept a connection")]
    Refused,
    /// The VMM's answer is none.
    #[error("The VMM's answer to a connection is not understood")]
    Malformed,
}

/// Connects to the agent through the VMM's socket and sends `open`, with `more` right behind it.
pub(crate) fn connect(vsock: &Path, open: &Open, more: &[u8]) -> Result<UnixStream, ConnectError> {
    let mut bytes = format!("CONNECT {AGENT_PORT}\n").into_bytes();
    bytes.extend(encode(open)?);
    bytes.extend_from_slice(more);
    let send = || {
        let mut stream = UnixStream::connect(vsock)?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        stream.write_all(&bytes)?;
        stream.set_write_timeout(None)?;
        Ok(stream)
    };
    send().map_err(|source| ConnectError::Socket {
        path: vsock.into(),
        source,
    })
}

/// Reads the VMM's `OK` line. Gives what came behind it in the same breath.
pub(crate) fn acknowledgement(stream: &mut impl Read) -> Result<Vec<u8>, ConnectError> {
    let mut received = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Err(ConnectError::Refused),
            Ok(length) => received.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(ConnectError::Refused);
            }
            Err(error) => return Err(ConnectError::Read(error)),
        }
        if let Some(rest) = split_acknowledgement(&received)? {
            return Ok(rest.to_vec());
        }
    }
}

/// Finds the `OK` line at the beginning of what was received and gives the rest, once it is
/// complete.
pub(super) fn split_acknowledgement(received: &[u8]) -> Result<Option<&[u8]>, ConnectError> {
    let window = &received[..received.len().min(MAX_ACKNOWLEDGEMENT)];
    match window.iter().position(|byte| *byte == b'\n') {
        Some(end) if window.starts_with(b"OK ") => Ok(Some(&received[end + 1..])),
        None if window.len() < MAX_ACKNOWLEDGEMENT => Ok(None),
        _ => Err(ConnectError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_cut_off_and_nothing_behind_it_is_lost() {
        for (bytes, rest) in [("OK 1\n", ""), ("OK 1073741824\nhello\n", "hello\n")] {
            assert_eq!(
                acknowledgement(&mut bytes.as_bytes()).unwrap(),
                rest.as_bytes()
            );
        }
    }

    #[test]
    fn a_line_in_pieces_is_put_together() {
        struct Trickle<'a>(&'a [u8]);
        impl Read for Trickle<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let one = self.0.len().min(1);
                buffer[..one].copy_from_slice(&self.0[..one]);
                self.0 = &self.0[one..];
                Ok(one)
            }
        }
        assert_eq!(acknowledgement(&mut Trickle(b"OK 7\nx")).unwrap(), b"");
    }

    #[test]
    fn an_early_end_is_a_refusal_and_noise_is_not_understood() {
        assert!(matches!(
            acknowledgement(&mut "OK 12".as_bytes()),
            Err(ConnectError::Refused)
        ));
        assert!(matches!(
            acknowledgement(&mut "NO 12\n".as_bytes()),
            Err(ConnectError::Malformed)
        ));
        assert!(matches!(
            acknowledgement(&mut [b'O'; 64].as_slice()),
            Err(ConnectError::Malformed)
        ));
    }
}
