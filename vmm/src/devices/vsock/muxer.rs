//! Connects the guest's ports to Unix sockets: takes packets from the guest, gives packets for it,
//! and knows neither queues nor guest memory's layout.
//!
//! Everything a guest can make it hold is bounded: connections by [`MAX_CONNECTIONS`], their data
//! by the windows they announce, RSTs by [`MAX_REPLIES`].

use std::{
    collections::{HashMap, VecDeque},
    ffi::OsString,
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::epoll::EventFlags,
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, connect, socket_with,
    },
};

use super::{
    connection::{Connection, Fate},
    handshake::{Handshake, Progress},
    packet::*,
    reactor::Reactor,
};

/// Most connections at a time, those included that only wait for the host to read.
pub const MAX_CONNECTIONS: usize = 1024;

/// Most host programs at a time that have connected and not said where to. More wait in the
/// listening socket's backlog.
pub(super) const MAX_HANDSHAKES: usize = 64;

/// How long a host program may take to say where it wants to go.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Most RSTs kept for a guest that gives no buffers to put them in.
const MAX_REPLIES: usize = 1024;

/// Our buffer for a connection, in bytes: Linux's own default. A guest that streams hears from us,
/// by an interrupt, once in half a window, so larger is cheaper for it.
pub(super) const WINDOW: u32 = 256 << 10;

/// Our buffer for a connection when [`MAX_WINDOWS`] others have a whole window.
pub(super) const SMALL_WINDOW: u32 = 32 << 10;

/// Most connections with a whole window. With this no guest can make us hold more than 60 MiB.
const MAX_WINDOWS: usize = 128;

/// Our ports for connections from the host: from here up.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// What the reactor calls the listening socket. The timer and the others come after it.
const LISTENER: u64 = 0;
const TIMER: u64 = 1;
const FIRST_ID: u64 = 2;

/// The muxer of one device.
pub struct Muxer {
    guest_cid: u64,
    path: PathBuf,
    listener: UnixListener,
    reactor: Reactor,
    /// The listening socket may have more programs than were accepted.
    may_accept: bool,
    /// Programs of the host have to wait.
    held: bool,
    next_id: u64,
    next_port: u32,
    handshakes: HashMap<u64, Handshake>,
    connections: HashMap<u64, Peer>,
    /// The connections that the guest knows.
    ports: HashMap<Ports, u64>,
    /// Connections with a whole window.
    windows: usize,
    /// Connections that may have a packet for the guest, each at most once.
    ready: VecDeque<u64>,
    replies: VecDeque<Reply>,
    complained: bool,
}

/// A connection, and what the muxer has arranged for it.
struct Peer {
    connection: Connection,
    is_ready: bool,
    /// The reactor reports when the socket takes more.
    awaits_room: bool,
}

/// A RST for a packet that belongs to no connection.
struct Reply {
    host_cid: u64,
    ports: Ports,
    type_: u16,
}

impl Muxer {
    /// A muxer for the guest `guest_cid` that serves `listener`; the guest's connections to port P
    /// go to the Unix socket `<path>_<P>`.
    ///
    /// # Errors
    ///
    /// An epoll instance or a timer could not be made, or the listener is no socket.
    pub fn new(guest_cid: u32, listener: UnixListener, path: &Path) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let reactor = Reactor::new(TIMER)?;
        reactor.watch(LISTENER, &listener)?;
        Ok(Self {
            guest_cid: u64::from(guest_cid),
            path: path.into(),
            listener,
            reactor,
            may_accept: true,
            held: false,
            next_id: FIRST_ID,
            next_port: FIRST_HOST_PORT,
            handshakes: HashMap::new(),
            connections: HashMap::new(),
            ports: HashMap::new(),
            windows: 0,
            ready: VecDeque::new(),
            replies: VecDeque::new(),
            complained: false,
        })
    }

    /// Number of connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Bytes from the guest that no socket has taken yet.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.connections
            .values()
            .map(|peer| peer.connection.buffered())
            .sum()
    }

    /// Takes a packet from the guest.
    pub fn receive(&mut self, packet: &Packet<'_>) {
        if packet.src_cid() != self.guest_cid {
            // Nobody to answer: the guest does not listen to this address.
            self.complain("packet from somebody else's CID");
            return;
        }
        if packet.dst_cid() != VMADDR_CID_HOST || packet.type_() != VIRTIO_VSOCK_TYPE_STREAM {
            self.refuse(packet);
            return;
        }
        let ports = Ports {
            host: packet.dst_port(),
            guest: packet.src_port(),
        };
        match self.ports.get(&ports).copied() {
            Some(id) => {
                if let Some(peer) = self.connections.get_mut(&id) {
                    let fate = peer.connection.receive(packet);
                    self.settle(id, fate);
                }
            }
            None if packet.op() == VIRTIO_VSOCK_OP_REQUEST => self.open(ports, packet),
            None => self.refuse(packet),
        }
    }

    /// Whether there may be packets for the guest.
    #[must_use]
    pub fn has_packets(&self) -> bool {
        !self.replies.is_empty() || !self.ready.is_empty()
    }

    /// Fills in a packet for the guest, which should have room for payload. False if there was
    /// nothing to send after all.
    pub fn deliver(&mut self, packet: &mut Packet<'_>) -> bool {
        if let Some(reply) = self.replies.pop_front() {
            address(packet, self.guest_cid, reply.ports, VIRTIO_VSOCK_OP_RST);
            packet.set_src_cid(reply.host_cid).set_type(reply.type_);
            return true;
        }
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else {
                break;
            };
            let Some(peer) = self.connections.get_mut(&id) else {
                continue;
            };
            peer.is_ready = false;
            let delivered = peer.connection.deliver(packet, self.guest_cid);
            self.settle(id, Fate::Live);
            if delivered {
                return true;
            }
        }
        false
    }

    /// Serves the sockets that have something to say, and the deadlines. To be called when the
    /// muxer's own descriptor is readable.
    pub fn dispatch(&mut self) {
        let Ok(events) = self.reactor.poll() else {
            self.complain("epoll instance lost");
            return;
        };
        for (id, flags) in events {
            match id {
                LISTENER => self.may_accept = true,
                TIMER => self.expire(Instant::now()),
                id => self.socket_event(id, flags),
            }
        }
        self.accept();
    }

    /// Gives up on everybody whose deadline is past.
    pub(super) fn expire(&mut self, now: Instant) {
        self.handshakes
            .retain(|_, handshake| handshake.deadline > now);
        let late: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, peer)| {
                peer.connection
                    .deadline
                    .is_some_and(|deadline| deadline <= now)
            })
            .map(|(&id, _)| id)
            .collect();
        for id in late {
            self.settle(id, Fate::Dead);
        }
        let waiting = self
            .connections
            .values()
            .any(|peer| peer.connection.deadline.is_some());
        if waiting || !self.handshakes.is_empty() {
            self.reactor.arm_timer();
        }
    }

    fn socket_event(&mut self, id: u64, flags: EventFlags) {
        if let Some(peer) = self.connections.get_mut(&id) {
            let fate = peer.connection.host_event(flags);
            self.settle(id, fate);
        } else {
            self.shake_hands(id);
        }
    }

    /// Lets programs of the host wait, or no longer.
    pub(super) fn hold(&mut self, held: bool) {
        self.held = held;
        self.accept();
    }

    /// Accepts host programs while there are any, and room for them.
    fn accept(&mut self) {
        while !self.held && self.may_accept && self.handshakes.len() < MAX_HANDSHAKES {
            match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(stream) => self.greet(stream.into()),
                Err(Errno::AGAIN) => self.may_accept = false,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(err) => {
                    // Out of descriptors, probably: another event will be the next occasion.
                    log::warn!("Failed to accept a connection to the vsock socket: {err}");
                    self.reactor.arm_timer();
                    return;
                }
            }
        }
    }

    fn greet(&mut self, stream: UnixStream) {
        let id = self.new_id();
        if let Err(err) = self.reactor.watch(id, &stream) {
            log::warn!("Failed to watch a connection to the vsock socket: {err}");
            return;
        }
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        self.handshakes.insert(id, Handshake::new(stream, deadline));
        self.reactor.arm_timer();
        self.shake_hands(id);
    }

    fn shake_hands(&mut self, id: u64) {
        let Some(handshake) = self.handshakes.get_mut(&id) else {
            return;
        };
        let guest_port = match handshake.read() {
            Progress::Waiting => return,
            Progress::Connect(port) => Some(port),
            Progress::Refused => None,
        };
        let Some(handshake) = self.handshakes.remove(&id) else {
            return;
        };
        let Some(guest_port) = guest_port else {
            log::debug!("Host program did not say CONNECT and a port to the vsock socket");
            return;
        };
        if self.connections.len() >= MAX_CONNECTIONS {
            log::warn!("Too many vsock connections: refused one to port {guest_port}");
            return;
        }
        let ports = self.free_ports(guest_port);
        let stream = handshake.into_stream();
        let connection = Connection::request(stream, ports, self.next_window());
        self.insert(id, connection);
    }

    /// Ports for a connection from the host. There are fewer connections than ports.
    fn free_ports(&mut self, guest: u32) -> Ports {
        loop {
            let host = self.next_port;
            self.next_port = host.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            let ports = Ports { host, guest };
            if !self.ports.contains_key(&ports) {
                return ports;
            }
        }
    }

    /// Connects the guest to a host program.
    fn open(&mut self, ports: Ports, request: &Packet<'_>) {
        if self.connections.len() >= MAX_CONNECTIONS {
            self.complain("too many connections");
            self.refuse(request);
            return;
        }
        let stream = match self.connect(ports.host) {
            Ok(stream) => stream,
            Err(err) => {
                log::debug!(
                    "Failed to connect the guest to host port {}: {err}",
                    ports.host
                );
                self.refuse(request);
                return;
            }
        };
        let id = self.new_id();
        if let Err(err) = self.reactor.watch(id, &stream) {
            log::warn!("Failed to watch host port {}: {err}", ports.host);
            self.refuse(request);
            return;
        }
        let connection = Connection::accept(stream, ports, self.next_window(), request);
        self.insert(id, connection);
    }

    /// Connects to the Unix socket of a host port: at once or not at all.
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(path)?;
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        connect(&socket, &address)?;
        Ok(socket.into())
    }

    fn new_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn next_window(&self) -> u32 {
        if self.windows < MAX_WINDOWS {
            WINDOW
        } else {
            SMALL_WINDOW
        }
    }

    fn insert(&mut self, id: u64, connection: Connection) {
        self.ports.insert(connection.ports, id);
        self.windows += usize::from(connection.window() == WINDOW);
        let peer = Peer {
            connection,
            is_ready: false,
            awaits_room: false,
        };
        self.connections.insert(id, peer);
        self.settle(id, Fate::Live);
    }

    /// Does what a connection's fate demands.
    fn settle(&mut self, id: u64, fate: Fate) {
        let Some(peer) = self.connections.get_mut(&id) else {
            return;
        };
        let ports = peer.connection.ports;
        match fate {
            Fate::Live => self.arrange(id),
            Fate::GuestLeft { reply } => {
                let fate = peer.connection.drain();
                self.ports.remove(&ports);
                if reply {
                    self.reset(ports);
                }
                if fate == Fate::Live {
                    self.arrange(id);
                } else {
                    self.remove(id);
                }
            }
            Fate::Violation(what) => {
                self.complain(what);
                self.reset(ports);
                self.remove(id);
            }
            Fate::Dead => {
                self.reset(ports);
                self.remove(id);
            }
            Fate::Done => self.remove(id),
        }
    }

    /// Arranges that a connection is served when it should be.
    fn arrange(&mut self, id: u64) {
        let Some(peer) = self.connections.get_mut(&id) else {
            return;
        };
        if !peer.is_ready && peer.connection.has_packet() {
            peer.is_ready = true;
            self.ready.push_back(id);
        }
        let has_deadline = peer.connection.deadline.is_some();
        let awaits_room = peer.connection.wants_to_write();
        if awaits_room != peer.awaits_room {
            peer.awaits_room = awaits_room;
            let watched = self.reactor.watch_room(id, &peer.connection, awaits_room);
            if let Err(err) = watched {
                log::warn!("Failed to watch a vsock connection: {err}");
                self.settle(id, Fate::Dead);
                return;
            }
        }
        if has_deadline {
            self.reactor.arm_timer();
        }
    }

    fn remove(&mut self, id: u64) {
        let Some(peer) = self.connections.remove(&id) else {
            return;
        };
        // The ports may be another connection's by now.
        if self.ports.get(&peer.connection.ports) == Some(&id) {
            self.ports.remove(&peer.connection.ports);
        }
        self.windows -= usize::from(peer.connection.window() == WINDOW);
    }

    /// Answers a packet that cannot be served by a RST, unless it is one.
    fn refuse(&mut self, packet: &Packet<'_>) {
        if packet.op() != VIRTIO_VSOCK_OP_RST {
            self.reply(Reply {
                host_cid: packet.dst_cid(),
                ports: Ports {
                    host: packet.dst_port(),
                    guest: packet.src_port(),
                },
                type_: packet.type_(),
            });
        }
    }

    fn reset(&mut self, ports: Ports) {
        self.reply(Reply {
            host_cid: VMADDR_CID_HOST,
            ports,
            type_: VIRTIO_VSOCK_TYPE_STREAM,
        });
    }

    fn reply(&mut self, reply: Reply) {
        if self.replies.len() < MAX_REPLIES {
            self.replies.push_back(reply);
        } else {
            self.complain("no buffers for RSTs");
        }
    }

    /// Logs that the guest misbehaves. Once: it could go on for ever.
    pub(super) fn complain(&mut self, what: &str) {
        if !self.complained {
            self.complained = true;
            log::warn!("Guest's vsock driver misbehaves: {what} (logged once)");
        }
    }
}

impl AsRawFd for Muxer {
    fn as_raw_fd(&self) -> RawFd {
        self.reactor.as_raw_fd()
    }
}
