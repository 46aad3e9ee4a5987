//! One stream between a Unix socket and a port of the guest: its life, both directions' ends, and
//! what of the guest's data the socket has not taken.
//!
//! ```text
//! host connects:  Requesting -- RESPONSE --> Established --+
//! guest connects: -------------------------> Established --+-- guest is gone --> Draining --> dropped
//! ```
//!
//! Each direction ends on its own. An end of file from the host becomes SHUTDOWN(SEND), a host that
//! reads no more becomes SHUTDOWN(RCV); the guest's SHUTDOWN(SEND) becomes an end of file once
//! everything before it is written. What the guest sent before it left is still delivered, however
//! long the host takes to read it.

use std::{
    collections::VecDeque,
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, epoll::EventFlags, poll},
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

use super::{credit::Credit, packet::*};

/// How long a guest may take to answer a REQUEST. Long: the kernel of a guest on an emulating host
/// may be busy, or the VM paused.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a guest may take to forget a connection whose host side is gone. When it is over, it
/// gets a RST, which costs it no data that it has received.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Most input thrown away when a socket is closed: more than a Unix socket holds by default.
const MAX_DISCARD: usize = 1 << 20;

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Live,
    /// The guest is gone; `reply` says whether it waits for a RST. The host gets the rest.
    GuestLeft { reply: bool },
    /// The guest broke the protocol, in this way: RST, and nothing more for the host.
    Violation(&'static str),
    /// It cannot go on: RST, and nothing more for the host.
    Dead,
    /// Nobody is left who wants anything.
    Done,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// The guest has not answered our REQUEST.
    Requesting,
    Established,
    /// The guest is gone, the host has not read everything.
    Draining,
}

/// A connection.
pub(super) struct Connection {
    pub(super) ports: Ports,
    /// When the guest's time is over, if it has to do something.
    pub(super) deadline: Option<Instant>,
    stream: UnixStream,
    phase: Phase,
    credit: Credit,
    /// From the guest, not taken by the socket. Never longer than our window.
    backlog: VecDeque<u8>,
    /// REQUEST or RESPONSE, while it is still to be sent.
    greeting: Option<u16>,
    /// The guest asked for our account.
    credit_asked: bool,
    /// The socket may have something for us.
    readable: bool,
    /// The socket's end of file was read.
    host_ended: bool,
    /// The socket takes no more.
    host_deaf: bool,
    /// The guest sends no more.
    guest_ended: bool,
    /// The guest receives no more.
    guest_deaf: bool,
    /// SHUTDOWN flags that the guest has seen.
    shutdown_sent: u32,
}

impl Connection {
    /// A host program's connection to a port of the guest: asks the guest.
    pub(super) fn request(stream: UnixStream, ports: Ports, window: u32) -> Self {
        let mut connection = Self::new(stream, ports, window, Phase::Requesting);
        connection.greeting = Some(VIRTIO_VSOCK_OP_REQUEST);
        connection.deadline = Some(Instant::now() + REQUEST_TIMEOUT);
        // What the program sent behind its CONNECT line is in the socket already.
        connection.readable = true;
        connection
    }

    /// The guest's connection to a host program, as asked for in its REQUEST.
    pub(super) fn accept(
        stream: UnixStream,
        ports: Ports,
        window: u32,
        request: &Packet<'_>,
    ) -> Self {
        let mut connection = Self::new(stream, ports, window, Phase::Established);
        connection.greeting = Some(VIRTIO_VSOCK_OP_RESPONSE);
        connection.credit.hear(request);
        connection
    }

    fn new(stream: UnixStream, ports: Ports, window: u32, phase: Phase) -> Self {
        Self {
            ports,
            deadline: None,
            stream,
            phase,
            credit: Credit::new(window),
            backlog: VecDeque::new(),
            greeting: None,
            credit_asked: false,
            readable: false,
            host_ended: false,
            host_deaf: false,
            guest_ended: false,
            guest_deaf: false,
            shutdown_sent: 0,
        }
    }

    pub(super) fn window(&self) -> u32 {
        self.credit.window()
    }

    /// Bytes of the guest's that the socket has not taken.
    pub(super) fn buffered(&self) -> usize {
        self.backlog.len()
    }

    /// Takes a packet from the guest.
    pub(super) fn receive(&mut self, packet: &Packet<'_>) -> Fate {
        self.credit.hear(packet);
        match (&self.phase, packet.op()) {
            (_, VIRTIO_VSOCK_OP_RST) => Fate::GuestLeft { reply: false },
            (Phase::Requesting, VIRTIO_VSOCK_OP_RESPONSE) if self.greeting.is_none() => {
                self.establish()
            }
            (Phase::Established, VIRTIO_VSOCK_OP_RW) => self.receive_data(packet),
            (Phase::Established, VIRTIO_VSOCK_OP_SHUTDOWN) => self.receive_shutdown(packet.flags()),
            (Phase::Established, VIRTIO_VSOCK_OP_CREDIT_UPDATE) => Fate::Live,
            (Phase::Established, VIRTIO_VSOCK_OP_CREDIT_REQUEST) => {
                self.credit_asked = true;
                Fate::Live
            }
            _ => Fate::Violation("operation does not fit the connection's state"),
        }
    }

    fn establish(&mut self) -> Fate {
        let answer = format!("OK {}\n", self.ports.host);
        // A few bytes always fit: they are the first in this direction. A program that is gone
        // already may have left data, which the guest still gets.
        if send(&self.stream, answer.as_bytes(), SendFlags::NOSIGNAL) != Ok(answer.len()) {
            self.stop_writing();
        }
        self.phase = Phase::Established;
        self.deadline = None;
        Fate::Live
    }

    fn receive_data(&mut self, packet: &Packet<'_>) -> Fate {
        let Some(data) = payload(packet) else {
            return Fate::Violation("payload is not all there");
        };
        let Some(data) = data else {
            return Fate::Live;
        };
        if self.guest_ended {
            return Fate::Violation("data after SHUTDOWN");
        }
        if !self.credit.receive(packet.len()) {
            return Fate::Violation("more data than credit");
        }
        let mut written = 0;
        if self.backlog.is_empty() && !self.host_deaf {
            written = self.write_through(&data);
        }
        if self.host_deaf {
            written = data.len();
        } else if let Ok(rest) = data.offset(written) {
            self.keep(&rest);
        }
        self.credit.forward(bytes(written));
        Fate::Live
    }

    /// Writes guest memory to the socket, as far as it takes it.
    fn write_through(&mut self, data: &VolatileSlice<'_>) -> usize {
        let mut written = 0;
        while let Ok(rest) = data.offset(written)
            && !rest.is_empty()
        {
            match send_slice(self.stream.as_fd(), &rest) {
                Ok(length) => written += length,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.stop_writing();
                    break;
                }
            }
        }
        written
    }

    /// Copies guest memory into the backlog.
    fn keep(&mut self, data: &VolatileSlice<'_>) {
        if self.backlog.is_empty() {
            let window = usize::try_from(self.credit.window()).unwrap_or(usize::MAX);
            self.backlog.reserve_exact(window);
        }
        let mut chunk = [0; 4096];
        let mut offset = 0;
        while let Ok(rest) = data.offset(offset)
            && !rest.is_empty()
        {
            let length = rest.copy_to(&mut chunk[..]);
            self.backlog.extend(&chunk[..length]);
            offset += length;
        }
    }

    fn receive_shutdown(&mut self, flags: u32) -> Fate {
        if flags & VIRTIO_VSOCK_SHUTDOWN_SEND != 0 && !self.guest_ended {
            self.guest_ended = true;
            if self.backlog.is_empty() {
                self.shutdown(Shutdown::Write);
            }
        }
        if flags & VIRTIO_VSOCK_SHUTDOWN_RCV != 0 && !self.guest_deaf {
            self.guest_deaf = true;
            self.shutdown(Shutdown::Read);
        }
        if self.guest_ended && self.guest_deaf {
            Fate::GuestLeft { reply: true }
        } else {
            Fate::Live
        }
    }

    /// The guest is gone: only what it sent before still matters.
    pub(super) fn drain(&mut self) -> Fate {
        self.phase = Phase::Draining;
        self.deadline = None;
        self.greeting = None;
        self.shutdown(Shutdown::Read);
        self.flush()
    }

    /// Takes what epoll says about the socket.
    pub(super) fn host_event(&mut self, flags: EventFlags) -> Fate {
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR)
        {
            self.readable = true;
        }
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            // Both directions are shut: what we may still read is in the socket already.
            self.stop_writing();
            if self.guest_deaf {
                self.host_ended = true;
            }
        }
        self.flush()
    }

    /// Writes as much of the backlog as the socket takes.
    fn flush(&mut self) -> Fate {
        while !self.backlog.is_empty() {
            match send(
                &self.stream,
                self.backlog.as_slices().0,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(length) => {
                    self.backlog.drain(..length);
                    self.credit.forward(bytes(length));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Fate::Live,
                Err(_) => self.stop_writing(),
            }
        }
        self.backlog = VecDeque::new();
        if self.phase == Phase::Draining {
            return Fate::Done;
        }
        if self.guest_ended {
            self.shutdown(Shutdown::Write);
        }
        Fate::Live
    }

    /// The host reads no more: what the guest sends from now on goes nowhere.
    fn stop_writing(&mut self) {
        self.host_deaf = true;
        self.credit.forward(bytes(self.backlog.len()));
        self.backlog = VecDeque::new();
    }

    fn shutdown(&self, how: Shutdown) {
        // Fails only when the peer is gone, which epoll reports.
        let _ = self.stream.shutdown(how);
    }

    /// Whether epoll shall say when the socket takes more.
    pub(super) fn wants_to_write(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether [`Self::deliver`] is worth a try.
    pub(super) fn has_packet(&self) -> bool {
        match self.phase {
            Phase::Requesting => self.greeting.is_some(),
            Phase::Established => {
                self.greeting.is_some()
                    || self.may_read()
                    || self.shutdown_flags() != self.shutdown_sent
                    || self.is_credit_due()
            }
            Phase::Draining => false,
        }
    }

    fn may_read(&self) -> bool {
        self.readable && !self.host_ended && !self.guest_deaf && self.credit.to_send() > 0
    }

    fn is_credit_due(&self) -> bool {
        self.credit_asked || (!self.guest_ended && self.credit.is_update_due())
    }

    fn shutdown_flags(&self) -> u32 {
        let mut flags = 0;
        if self.host_ended {
            flags |= VIRTIO_VSOCK_SHUTDOWN_SEND;
        }
        if self.host_deaf {
            flags |= VIRTIO_VSOCK_SHUTDOWN_RCV;
        }
        flags
    }

    /// Fills in a packet for the guest. False if there was nothing after all.
    pub(super) fn deliver(&mut self, packet: &mut Packet<'_>, guest_cid: u64) -> bool {
        let Some(op) = self.next_op(packet) else {
            return false;
        };
        let (op, length, flags) = op;
        address(packet, guest_cid, self.ports, op);
        packet.set_len(length).set_flags(flags);
        self.credit.tell(packet);
        self.credit_asked = false;
        true
    }

    /// Operation, payload length and flags of the next packet, its payload read already.
    fn next_op(&mut self, packet: &Packet<'_>) -> Option<(u16, u32, u32)> {
        if let Some(op) = self.greeting.take() {
            return Some((op, 0, 0));
        }
        if self.phase != Phase::Established {
            return None;
        }
        if self.may_read()
            && let Some(length) = self.read(packet)
        {
            return Some((VIRTIO_VSOCK_OP_RW, length, 0));
        }
        let flags = self.shutdown_flags();
        if flags != self.shutdown_sent {
            self.shutdown_sent = flags;
            if flags == SHUTDOWN_BOTH {
                self.deadline = Some(Instant::now() + CLOSE_TIMEOUT);
            }
            return Some((VIRTIO_VSOCK_OP_SHUTDOWN, 0, flags));
        }
        self.is_credit_due()
            .then_some((VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, 0))
    }

    /// Reads the socket straight into a packet's payload.
    fn read(&mut self, packet: &Packet<'_>) -> Option<u32> {
        let room = room(packet)?;
        let credit = usize::try_from(self.credit.to_send()).unwrap_or(usize::MAX);
        let mut target = room.subslice(0, room.len().min(credit)).ok()?;
        loop {
            match self.stream.as_fd().read_volatile(&mut target) {
                Ok(0) => self.end_of_file(),
                Ok(length) => {
                    let length = bytes(length);
                    self.credit.send(length);
                    return Some(length);
                }
                Err(VolatileMemoryError::IOError(err)) => match Errno::from_io_error(&err) {
                    Some(Errno::INTR) => continue,
                    Some(Errno::AGAIN) => self.readable = false,
                    // Reset by a peer that had not read everything: nothing comes any more.
                    _ => self.end_of_file(),
                },
                Err(_) => self.host_ended = true,
            }
            return None;
        }
    }

    /// The host sends no more. Most often it is gone altogether, of which epoll may tell later:
    /// asking now saves the guest a second SHUTDOWN.
    fn end_of_file(&mut self) {
        self.host_ended = true;
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        let polled = poll(&mut fds, Some(&Timespec::default()));
        if polled.is_ok() && fds[0].revents().contains(PollFlags::HUP) {
            self.stop_writing();
        }
    }

    /// Throws away what the socket holds for us. A socket that is closed with unread input gives
    /// its peer ECONNRESET instead of an end of file.
    fn discard_input(&self) {
        let mut chunk = [0; 16 << 10];
        let mut discarded = 0;
        while discarded < MAX_DISCARD {
            match recv(&self.stream, &mut chunk, RecvFlags::DONTWAIT) {
                Ok((_, length)) if length > 0 => discarded += length,
                Err(Errno::INTR) => {}
                _ => return,
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shutdown(Shutdown::Both);
        self.discard_input();
    }
}

/// A length that came from a packet's own, and so fits.
fn bytes(length: usize) -> u32 {
    u32::try_from(length).expect("windows and payloads are far below 4 GiB")
}

/// Sends guest memory. Never raises SIGPIPE, never waits.
fn send_slice(socket: BorrowedFd<'_>, data: &VolatileSlice<'_>) -> Result<usize, Errno> {
    let guard = data.ptr_guard();
    // SAFETY: the slice is valid for reads of its length, of which the guard keeps hold; the
    // kernel only reads it, so it does not matter that the guest may write it meanwhile. The
    // descriptor is open as long as it is borrowed.
    let sent = unsafe {
        libc::send(
            socket.as_raw_fd(),
            guard.as_ptr().cast(),
            data.len(),
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(sent)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}
