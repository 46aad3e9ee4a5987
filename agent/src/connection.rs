//! A connection of the host: its greeting, and if it is a control connection, frames both ways.
//!
//! Boundary: bytes and frames. What a request means is known to `agent`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent_protocol::{
    ContainerId, DecodeError, Decoder, Event, Hello, MAX_FRAME, Open, Process, ProcessId, Request,
    Stream, Transfer,
};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::log;
use crate::poller::{EventFlags, Poller, Token};
use crate::process;

/// Most bytes read before a greeting is complete; what is behind it in them fits a pipe.
const GREETING: usize = 4096;

/// Most bytes of events that a host may leave unread.
const MAX_OUTGOING: usize = 1 << 20;

/// Failure of a connection, which is closed then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("Failed to read from the host")]
    Read(#[source] Errno),
    #[error("Failed to write to the host")]
    Write(#[source] Errno),
    #[error("Failed to understand the host")]
    Decode(#[from] DecodeError),
    #[error("The host reads no events")]
    Unread,
    #[error("The host sends more than its requests allow")]
    Flood,
    #[error("Failed to watch a connection")]
    Watch(#[source] Errno),
}

/// What reading brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Bytes,
    Nothing,
    /// The host closed its side.
    End,
}

/// A request to start a process that waits for its streams.
#[derive(Debug)]
pub(crate) struct Starting {
    pub(crate) request: u32,
    pub(crate) what: What,
}

/// What is to run.
#[derive(Debug)]
pub(crate) enum What {
    /// A program.
    Process(Box<Process>),
    /// The agent's archiver.
    Transfer(Box<Transfer>),
}

impl What {
    pub(crate) const fn id(&self) -> ProcessId {
        match self {
            Self::Process(process) => process.id,
            Self::Transfer(transfer) => transfer.id,
        }
    }

    pub(crate) const fn container(&self) -> ContainerId {
        match self {
            Self::Process(process) => process.container,
            Self::Transfer(transfer) => transfer.container,
        }
    }

    /// The streams that the host has to connect.
    pub(crate) const fn streams(&self) -> &'static [Stream] {
        let stdio = match self {
            Self::Process(process) => process.stdio,
            Self::Transfer(transfer) => transfer.stdio(),
        };
        process::streams(stdio)
    }
}

/// A connection that is greeting, or controls.
#[derive(Debug)]
pub(crate) struct Connection {
    id: u32,
    socket: OwnedFd,
    flags: EventFlags,
    decoder: Decoder,
    outgoing: Vec<u8>,
    /// It has sent `Open::Control`.
    pub(crate) controls: bool,
    /// Holds back the requests behind it.
    pub(crate) starting: Option<Starting>,
}

impl Connection {
    pub(crate) fn new(id: u32, socket: OwnedFd) -> Self {
        Self {
            id,
            socket,
            flags: EventFlags::empty(),
            decoder: Decoder::new(),
            outgoing: Vec::new(),
            controls: false,
            starting: None,
        }
    }

    /// Reads once what has arrived.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<Read, ConnectionError> {
        let buffer = if self.controls {
            // While a start waits, what is behind it waits here.
            if self.decoder.buffered() > MAX_FRAME + buffer.len() {
                return Err(ConnectionError::Flood);
            }
            buffer
        } else {
            let length = buffer.len().min(GREETING);
            &mut buffer[..length]
        };
        match rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => Ok(Read::End),
            Ok((count, _)) => {
                self.decoder.feed(&buffer[..count]);
                Ok(Read::Bytes)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(Read::Nothing),
            Err(Errno::CONNRESET) => Ok(Read::End),
            Err(error) => Err(ConnectionError::Read(error)),
        }
    }

    /// The greeting, if it has arrived.
    pub(crate) fn open(&mut self) -> Result<Option<Open>, ConnectionError> {
        let open = self.decoder.next_open()?;
        if open.is_none() && self.decoder.buffered() >= GREETING {
            return Err(ConnectionError::Flood);
        }
        Ok(open)
    }

    /// The next request, if it has arrived and none holds it back.
    pub(crate) fn request(&mut self) -> Result<Option<Request>, ConnectionError> {
        if self.starting.is_some() {
            return Ok(None);
        }
        Ok(self.decoder.next()?)
    }

    /// The connection itself and what was read behind its greeting.
    pub(crate) fn into_stream(self) -> (OwnedFd, Vec<u8>) {
        (self.socket, self.decoder.into_rest())
    }

    pub(crate) fn greet(&mut self, hello: &Hello) {
        self.send(hello);
    }

    pub(crate) fn tell(&mut self, event: &Event) {
        self.send(event);
    }

    fn send(&mut self, message: &impl serde::Serialize) {
        match agent_protocol::encode(message) {
            Ok(frame) => self.outgoing.extend_from_slice(&frame),
            Err(error) => log::warn(format_args!("Failed to encode an event: {error}")),
        }
    }

    /// Writes what was told, as far as the host takes it.
    pub(crate) fn flush(&mut self) -> Result<(), ConnectionError> {
        while !self.outgoing.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, &self.outgoing, flags) {
                Ok(count) => {
                    self.outgoing.drain(..count.min(self.outgoing.len()));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.outgoing.len() > MAX_OUTGOING => {
                    return Err(ConnectionError::Unread);
                }
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(ConnectionError::Write(error)),
            }
        }
        Ok(())
    }

    /// Tells the poller what this connection waits for.
    pub(crate) fn watch(&mut self, poller: &Poller) -> Result<(), ConnectionError> {
        let mut wanted = EventFlags::IN;
        wanted.set(EventFlags::OUT, !self.outgoing.is_empty());
        poller
            .update(&self.socket, Token::Connection(self.id), self.flags, wanted)
            .map_err(ConnectionError::Watch)?;
        self.flags = wanted;
        Ok(())
    }

    /// Takes it off the poller, before it becomes a stream.
    pub(crate) fn unwatch(&mut self, poller: &Poller) -> Result<(), ConnectionError> {
        let token = Token::Connection(self.id);
        poller
            .update(&self.socket, token, self.flags, EventFlags::empty())
            .map_err(ConnectionError::Watch)?;
        self.flags = EventFlags::empty();
        Ok(())
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
