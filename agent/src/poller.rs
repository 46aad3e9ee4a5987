//! What the agent waits for: one epoll instance, and tokens that say whose event it is.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use agent_protocol::{ContainerId, ProcessId, Stream};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData};
use rustix::io::{self, Errno};
use rustix::time::Timespec;

pub(crate) use rustix::event::epoll::EventFlags;

/// Whose event it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// Somebody connects.
    Listener,
    /// A connection, by its number.
    Connection(u32),
    /// The end of a process.
    Exit(ProcessId),
    /// The end of a hook of a container.
    Hook(ContainerId),
    /// A stream of a process, at one of its two ends.
    Stream(ProcessId, Stream, End),
}

/// The ends of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The pipe or terminal of the process.
    Process,
    /// The connection to the host.
    Host,
}

/// Kinds of tokens: the upper half of their 64 bits. Those of streams count on from `STREAM`.
const LISTENER: u32 = 0;
const CONNECTION: u32 = 1;
const EXIT: u32 = 2;
const HOOK: u32 = 3;
const STREAM: u32 = 4;

const STREAMS: [(Stream, End); 8] = [
    (Stream::Stdin, End::Process),
    (Stream::Stdin, End::Host),
    (Stream::Stdout, End::Process),
    (Stream::Stdout, End::Host),
    (Stream::Stderr, End::Process),
    (Stream::Stderr, End::Host),
    (Stream::Terminal, End::Process),
    (Stream::Terminal, End::Host),
];

impl Token {
    fn encode(self) -> u64 {
        let (kind, id) = match self {
            Token::Listener => (LISTENER, 0),
            Token::Connection(id) => (CONNECTION, id),
            Token::Exit(ProcessId(id)) => (EXIT, id),
            Token::Hook(ContainerId(id)) => (HOOK, id),
            Token::Stream(ProcessId(id), stream, end) => {
                let index = (0..)
                    .zip(STREAMS)
                    .find(|(_, entry)| *entry == (stream, end));
                (STREAM + index.map_or(0, |(index, _)| index), id)
            }
        };
        u64::from(kind) << 32 | u64::from(id)
    }

    fn decode(token: u64) -> Self {
        let [a, b, c, d, kind @ ..] = token.to_le_bytes();
        let (id, kind) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes(kind));
        match kind {
            LISTENER => Token::Listener,
            CONNECTION => Token::Connection(id),
            EXIT => Token::Exit(ProcessId(id)),
            HOOK => Token::Hook(ContainerId(id)),
            _ => {
                let (stream, end) = STREAMS[(kind - STREAM) as usize % STREAMS.len()];
                Token::Stream(ProcessId(id), stream, end)
            }
        }
    }
}

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
}

/// Most events taken at once.
const EVENTS: usize = 16;

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
        })
    }

    /// Changes what is waited for on a descriptor from `old` to `new`, empty for nothing.
    pub(crate) fn update(
        &self,
        fd: impl AsFd,
        token: Token,
        old: EventFlags,
        new: EventFlags,
    ) -> io::Result<()> {
        let data = EventData::new_u64(token.encode());
        if old == new {
            Ok(())
        } else if new.is_empty() {
            epoll::delete(&self.epoll, fd)
        } else if old.is_empty() {
            epoll::add(&self.epoll, fd, data, new)
        } else {
            epoll::modify(&self.epoll, fd, data, new)
        }
    }

    /// Waits for events, at most for `timeout`.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Token>> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut events = Vec::<Event>::with_capacity(EVENTS);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let tokens = events.iter().map(|event| Token::decode(event.data.u64()));
        Ok(tokens.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        let mut tokens = vec![
            Token::Listener,
            Token::Connection(u32::MAX),
            Token::Exit(ProcessId(7)),
        ];
        for (stream, end) in STREAMS {
            tokens.push(Token::Stream(ProcessId(u32::MAX), stream, end));
        }
        for token in tokens {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
