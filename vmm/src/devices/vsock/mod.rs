//! virtio-vsock (virtio 1.2, section 5.10): sockets between the guest and programs of the host,
//! by way of Unix sockets.
//!
//! ```text
//!  guest port <--> queues <--> Backend <--> Muxer <--> Connection <--> Unix socket <--> program
//!                  `-------- worker thread, while the device is active -------'
//! ```
//!
//! Firecracker's convention for the host's side: a program that connects to the device's socket
//! and writes `CONNECT <port>\n` reads `OK <host port>\n` when the guest accepts, and an end of
//! file when it does not; what it writes behind its line arrives either way of timing. A guest that
//! connects to port P of the host reaches who listens on `<socket>_<P>`. The listening socket lives
//! as long as the device: who connects before a driver is there waits.

mod backend;
mod connection;
mod credit;
mod handshake;
mod muxer;
mod packet;
mod reactor;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, fchmod},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};
use virtio_bindings::{virtio_ids::VIRTIO_ID_VSOCK, virtio_ring::VIRTIO_RING_F_EVENT_IDX};
use virtio_queue::{QueueState, QueueT};

use self::backend::Backend;
pub use self::{
    muxer::{MAX_CONNECTIONS, Muxer},
    packet::{HEADER_SIZE, Packet, packet_in},
};
use super::{ActivateError, ActivationContext, VirtioDevice, Worker, read_config_space};

const QUEUE_COUNT: usize = 3;

/// rx, tx and event. The driver fills all of rx with buffers of 4 KiB when it starts, instruction
/// by instruction on an emulating host, and again when half of them are used up: 128 last from the
/// boot of a template until a clone of it has started its container. A packet to us takes two
/// entries. Linux has eight event buffers.
const QUEUE_SIZES: [u16; QUEUE_COUNT] = [128, 128, 8];

/// Host programs that may wait for the driver.
const BACKLOG: i32 = 128;

/// A vsock device that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The listening socket could not be made.
    #[error("Failed to listen on the vsock socket {path}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The vsock device of a VM.
pub struct Vsock {
    cid: u32,
    socket: ListeningSocket,
    worker: Option<Worker<Backend>>,
}

/// A Unix socket and its file, which it takes along when it goes.
struct ListeningSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl Vsock {
    /// A device whose guest has the context identifier `cid`, listening on `socket` at once, for
    /// this user's programs only.
    ///
    /// # Errors
    ///
    /// The socket cannot be made: something is there already, or its directory is not.
    pub fn new(cid: u32, socket: &Path) -> Result<Self, VsockError> {
        let socket = ListeningSocket::new(socket).map_err(|source| VsockError::Listen {
            path: socket.into(),
            source,
        })?;
        Ok(Self {
            cid,
            socket,
            worker: None,
        })
    }

    fn muxer(&self) -> io::Result<Muxer> {
        let listener = self.socket.listener.try_clone()?;
        Muxer::new(self.cid, listener, &self.socket.path)
    }
}

impl ListeningSocket {
    fn new(path: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        // A socket's file gets the socket's own mode: there is no moment in which it is wider.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        bind(&socket, &address)?;
        let socket = Self {
            listener: socket.into(),
            path: path.into(),
        };
        listen(&socket.listener, BACKLOG)?;
        Ok(socket)
    }
}

impl Drop for ListeningSocket {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_file(&self.path) {
            log::warn!("Failed to remove {}: {err}", self.path.display());
        }
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// Without indirect descriptors: Linux would allocate and free a table for each packet that it
    /// sends, and two of 128 entries are cheaper.
    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError> {
        self.reset();
        let ActivationContext {
            memory,
            features,
            mut queues,
            interrupt,
            resumed,
        } = context;
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        for queue in &mut queues {
            queue.queue.set_event_idx(event_idx);
        }
        let muxer = self.muxer().map_err(ActivateError::Backend)?;
        let backend = Backend::new(memory, interrupt, queues, muxer, resumed)?;
        self.worker = Some(Worker::spawn("vsock", backend)?);
        Ok(())
    }

    /// Closes all connections. The listening socket stays, and the next driver serves who waits.
    fn reset(&mut self) {
        drop(self.worker.take());
    }

    /// All connections are closed; the driver learns of it when the device is activated again.
    fn suspend(&mut self) -> Option<Vec<QueueState>> {
        Some(self.worker.take()?.stop()?.positions())
    }
}
