//! What a host program says before it is connected: `CONNECT <port>\n`.

use std::{
    os::{fd::AsFd, unix::net::UnixStream},
    time::Instant,
};

use rustix::{
    io::Errno,
    net::{RecvFlags, recv},
};

/// Longest line: `CONNECT 4294967295\n`, and room for a carriage return.
const MAX_LINE: usize = 20;

/// A host program that has not said yet where it wants to go.
pub(super) struct Handshake {
    stream: UnixStream,
    line: Vec<u8>,
    pub(super) deadline: Instant,
}

/// How far a handshake is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The line is not complete.
    Waiting,
    /// It is: connect to this port of the guest. What follows the line is still in the socket.
    Connect(u32),
    /// It never will be.
    Refused,
}

impl Handshake {
    pub(super) fn new(stream: UnixStream, deadline: Instant) -> Self {
        Self {
            stream,
            line: Vec::with_capacity(MAX_LINE),
            deadline,
        }
    }

    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Reads up to the end of the line and not a byte further.
    pub(super) fn read(&mut self) -> Progress {
        loop {
            let mut ahead = [0; MAX_LINE];
            let room = MAX_LINE - self.line.len();
            let peeked = match self.receive(&mut ahead[..room], RecvFlags::PEEK) {
                Ok(0) => return Progress::Refused,
                Ok(length) => length,
                Err(Errno::AGAIN) => return Progress::Waiting,
                Err(Errno::INTR) => continue,
                Err(_) => return Progress::Refused,
            };
            let end = ahead[..peeked].iter().position(|&byte| byte == b'\n');
            let take = end.map_or(peeked, |end| end + 1);
            // The bytes are there: nobody else reads this socket.
            if self.receive(&mut ahead[..take], RecvFlags::empty()) != Ok(take) {
                return Progress::Refused;
            }
            self.line.extend_from_slice(&ahead[..take]);
            if end.is_some() {
                return parse(&self.line).map_or(Progress::Refused, Progress::Connect);
            }
            if self.line.len() == MAX_LINE {
                return Progress::Refused;
            }
        }
    }

    fn receive(&self, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
        let (_, length) = recv(self.stream.as_fd(), buffer, flags | RecvFlags::DONTWAIT)?;
        Ok(length)
    }
}

/// The port in a whole line: decimal digits and nothing else.
fn parse(line: &[u8]) -> Option<u32> {
    let port = line.strip_prefix(b"CONNECT ")?.strip_suffix(b"\n")?;
    let port = port.strip_suffix(b"\r").unwrap_or(port);
    if !port.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(port).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn pair() -> (UnixStream, Handshake) {
        let (client, server) = UnixStream::pair().unwrap();
        (client, Handshake::new(server, Instant::now()))
    }

    #[test]
    fn only_a_decimal_port_is_a_line() {
        assert_eq!(parse(b"CONNECT 52\n"), Some(52));
        assert_eq!(parse(b"CONNECT 52\r\n"), Some(52));
        assert_eq!(parse(b"CONNECT 4294967295\n"), Some(u32::MAX));
        for line in [
            &b"CONNECT 4294967296\n"[..],
            b"CONNECT \n",
            b"CONNECT +1\n",
            b"CONNECT -1\n",
            b"CONNECT 1 \n",
            b"CONNECT  1\n",
            b"connect 1\n",
            b"CONNECT\n",
            b"\n",
            b"CONNECT \xff\n",
        ] {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn leaves_in_the_socket_what_follows_the_line() {
        let (mut client, mut handshake) = pair();
        client.write_all(b"CONNECT 7\nhello\n").unwrap();
        assert_eq!(handshake.read(), Progress::Connect(7));
        drop(client);
        let mut rest = String::new();
        handshake.into_stream().read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "hello\n");
    }

    #[test]
    fn a_line_may_come_in_pieces() {
        let (mut client, mut handshake) = pair();
        assert_eq!(handshake.read(), Progress::Waiting);
        for byte in b"CONNECT 12" {
            client.write_all(&[*byte]).unwrap();
            assert_eq!(handshake.read(), Progress::Waiting);
        }
        client.write_all(b"\n").unwrap();
        assert_eq!(handshake.read(), Progress::Connect(12));
    }

    #[test]
    fn long_lines_and_early_ends_are_refused() {
        let (mut client, mut handshake) = pair();
        client
            .write_all(b"CONNECT 0000000000000000000000001\n")
            .unwrap();
        assert_eq!(handshake.read(), Progress::Refused);

        let (mut client, mut handshake) = pair();
        client.write_all(b"CONNECT 1").unwrap();
        drop(client);
        assert_eq!(handshake.read(), Progress::Refused);
    }
}
