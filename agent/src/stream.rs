//! A standard stream of a process: bytes between its pipe or terminal and a connection of the host.
//!
//! Bytes of pipes are spliced, so they never enter the agent; a terminal's go through a page. Each
//! direction holds back its source while its sink is full, so nothing grows without bound.
//!
//! Boundary: moves bytes when the poller says so. When a stream is over is its process's business.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent_protocol::{ProcessId, Stream};
use rustix::io::{Errno, Result};
use rustix::net::{RecvFlags, SendFlags};
use rustix::pipe::{SpliceFlags, splice};
use rustix::termios::{self, LocalModes, SpecialCodeIndex};

use crate::poller::{End, EventFlags, Poller, Token};

/// Most bytes that one splice hands to a connection. With its header this still fits 32 KiB, the
/// largest piece of memory that the kernel's allocator finds without fail.
const TO_HOST: usize = 28 << 10;

/// Most bytes that one splice takes from a connection: the kernel sets pages aside for all of them
/// before it looks how many there are.
const FROM_HOST: usize = 16 << 10;

/// Bytes that a terminal's direction holds.
const PAGE: usize = 4096;

/// What a direction waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    ForSource,
    ForSink,
    /// It is over.
    Never,
}

/// A descriptor and what the poller watches it for.
#[derive(Debug)]
struct Watched {
    fd: OwnedFd,
    flags: EventFlags,
}

/// One standard stream of one process.
#[derive(Debug)]
pub(crate) struct Channel {
    process: ProcessId,
    stream: Stream,
    /// The agent's end of the pipe, or the terminal's master. None once it is closed.
    local: Option<Watched>,
    /// The connection. None once it is closed.
    host: Option<Watched>,
    output: Waits,
    input: Waits,
    /// Taken from a terminal, not yet taken by the host.
    output_held: Vec<u8>,
    /// Taken from the host, not yet taken by the process.
    input_held: Vec<u8>,
}

impl Channel {
    /// A channel between a process's pipe or terminal and a connection, from which `early` bytes
    /// (at most a page) were read already.
    pub(crate) fn new(
        process: ProcessId,
        stream: Stream,
        local: OwnedFd,
        host: OwnedFd,
        early: Vec<u8>,
    ) -> Self {
        let watched = |fd| {
            Some(Watched {
                fd,
                flags: EventFlags::empty(),
            })
        };
        let direction = |exists, held: &[u8]| match exists {
            false => Waits::Never,
            true if held.is_empty() => Waits::ForSource,
            true => Waits::ForSink,
        };
        Self {
            process,
            stream,
            local: watched(local),
            host: watched(host),
            output: direction(stream != Stream::Stdin, &[]),
            input: direction(matches!(stream, Stream::Stdin | Stream::Terminal), &early),
            output_held: Vec::new(),
            input_held: early,
        }
    }

    pub(crate) fn stream(&self) -> Stream {
        self.stream
    }

    /// Whether bytes may still flow to the host.
    pub(crate) fn has_output(&self) -> bool {
        self.output != Waits::Never
    }

    /// The terminal's master.
    pub(crate) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        match self.stream {
            Stream::Terminal => self.local.as_ref().map(|local| local.fd.as_fd()),
            _ => None,
        }
    }

    /// Tells the poller what this channel waits for.
    pub(crate) fn watch(&mut self, poller: &Poller) -> Result<()> {
        let flags = |input: bool, output: bool| {
            let mut flags = EventFlags::empty();
            flags.set(EventFlags::IN, input);
            flags.set(EventFlags::OUT, output);
            flags
        };
        let (input, output) = (self.input, self.output);
        let ends = [
            (
                End::Process,
                &mut self.local,
                flags(output == Waits::ForSource, input == Waits::ForSink),
            ),
            (
                End::Host,
                &mut self.host,
                flags(input == Waits::ForSource, output == Waits::ForSink),
            ),
        ];
        for (end, watched, wanted) in ends {
            if let Some(watched) = watched {
                let token = Token::Stream(self.process, self.stream, end);
                poller.update(&watched.fd, token, watched.flags, wanted)?;
                watched.flags = wanted;
            }
        }
        Ok(())
    }

    /// Moves bytes after an event at one end.
    pub(crate) fn advance(&mut self, end: End) {
        let (source, sink) = (Waits::ForSource, Waits::ForSink);
        match end {
            End::Process if self.output == source => self.move_output(),
            End::Host if self.output == sink => self.move_output(),
            _ => {}
        }
        match end {
            End::Host if self.input == source => self.move_input(),
            End::Process if self.input == sink => self.move_input(),
            _ => {}
        }
        self.close_what_is_over();
    }

    /// The process is gone: nothing flows to it any more.
    pub(crate) fn end_input(&mut self) {
        self.input = Waits::Never;
        self.close_what_is_over();
    }

    /// The process is gone, but others still hold its pipe or terminal open: unless the host is
    /// behind with reading, that is the end.
    pub(crate) fn cut_output(&mut self) {
        if self.output == Waits::ForSource {
            self.output = Waits::Never;
            self.close_what_is_over();
        }
    }

    fn move_output(&mut self) {
        let (Some(local), Some(host)) = (&self.local, &self.host) else {
            self.output = Waits::Never;
            return;
        };
        let was = self.output;
        self.output = if self.stream == Stream::Terminal {
            copy(
                &mut self.output_held,
                |buffer| rustix::io::read(&local.fd, buffer),
                |bytes| rustix::net::send(&host.fd, bytes, SEND),
            )
        } else {
            splice_all(was, &local.fd, &host.fd, TO_HOST)
        };
    }

    fn move_input(&mut self) {
        let (Some(local), Some(host)) = (&self.local, &self.host) else {
            self.input = Waits::Never;
            return;
        };
        let was = self.input;
        let copied = self.stream == Stream::Terminal || !self.input_held.is_empty();
        self.input = if copied {
            copy(
                &mut self.input_held,
                |buffer| rustix::net::recv(&host.fd, buffer, RecvFlags::DONTWAIT).map(|(n, _)| n),
                // A pipe that the poller calls writable takes a page at once.
                |bytes| rustix::io::write(&local.fd, bytes),
            )
        } else {
            splice_all(was, &host.fd, &local.fd, FROM_HOST)
        };
        if self.input == Waits::Never && self.stream == Stream::Terminal {
            type_end_of_file(local.fd.as_fd());
        }
    }

    fn close_what_is_over(&mut self) {
        if self.input != Waits::Never {
            if self.stream == Stream::Terminal && self.output == Waits::Never {
                // Nobody sees any more what the terminal would answer.
                self.input = Waits::Never;
            } else {
                return;
            }
        }
        if self.output == Waits::Never {
            // Closing is the end of file to the process, and to the host.
            self.host = None;
            if self.stream != Stream::Terminal {
                self.local = None;
            }
        }
    }
}

const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// How often one event may splice as much as can be, before others get their turn.
const ROUNDS: usize = 8;

/// Splices while there seems to be more: less than `count` is all there was.
fn splice_all(was: Waits, from: &OwnedFd, to: &OwnedFd, count: usize) -> Waits {
    let mut waits = was;
    for _ in 0..ROUNDS {
        let moved = splice(from, None, to, None, count, SpliceFlags::NONBLOCK);
        waits = after(waits, moved);
        if moved != Ok(count) {
            break;
        }
    }
    waits
}

/// What to wait for after an attempt that was made because of what was waited for.
fn after(was: Waits, moved: Result<usize>) -> Waits {
    match moved {
        Ok(0) => Waits::Never,
        Ok(_) => Waits::ForSource,
        // The end that was waited for is ready, so it is the other one that is not.
        Err(Errno::AGAIN) if was == Waits::ForSource => Waits::ForSink,
        Err(Errno::AGAIN) => Waits::ForSource,
        // Memory is short at the moment: the poller will say so again.
        Err(Errno::INTR | Errno::NOMEM | Errno::NOBUFS) => was,
        // The source is broken (a terminal without anybody at it is) or nobody reads the sink.
        Err(_) => Waits::Never,
    }
}

/// Moves bytes through `held`: reads if it is empty, then writes.
fn copy(
    held: &mut Vec<u8>,
    read: impl FnOnce(&mut [u8]) -> Result<usize>,
    write: impl FnOnce(&[u8]) -> Result<usize>,
) -> Waits {
    if held.is_empty() {
        let mut buffer = [0; PAGE];
        match read(&mut buffer) {
            Ok(0) => return Waits::Never,
            Ok(count) => held.extend_from_slice(&buffer[..count]),
            Err(Errno::AGAIN | Errno::INTR) => return Waits::ForSource,
            Err(_) => return Waits::Never,
        }
    }
    match write(held) {
        Ok(count) => {
            held.drain(..count.min(held.len()));
        }
        Err(Errno::AGAIN | Errno::INTR | Errno::NOMEM | Errno::NOBUFS) => {}
        Err(_) => return Waits::Never,
    }
    if held.is_empty() {
        Waits::ForSource
    } else {
        Waits::ForSink
    }
}

/// What a person does who has no more input: type the end-of-file character.
fn type_end_of_file(master: BorrowedFd<'_>) {
    if let Ok(attributes) = termios::tcgetattr(master)
        && attributes.local_modes.contains(LocalModes::ICANON)
    {
        let character = attributes.special_codes[SpecialCodeIndex::VEOF];
        // A terminal that takes no more input has nobody who waits for its end.
        let _ = rustix::io::write(master, &[character]);
    }
}
