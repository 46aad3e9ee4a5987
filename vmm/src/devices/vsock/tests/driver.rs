//! A driver for the device under test: rings in guest memory, kicks and interrupts only where the
//! two sides ask for them, so that a lost one shows as a test that hangs and fails.

use std::{
    io,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicI32, AtomicUsize, Ordering, fence},
    },
    time::Duration,
};

use tempfile::TempDir;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    super::{packet::*, *},
    header::*,
};
use crate::devices::{ActivationContext, Interrupt, VirtQueue};

const RX: usize = 0;
const TX: usize = 1;
pub(super) const EVENT: usize = 2;

/// What Linux's receive buffers are.
const RX_BUFFER: u32 = 4096 + 44;
const RX_BUFFERS: u64 = 0x10_0000;
const TX_BUFFERS: u64 = 0x40_0000;
const EVENT_BUFFERS: u64 = 0x80_0000;
const TX_STRIDE: u64 = 0x1_2000;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

struct Ring {
    base: u64,
    size: u16,
    next_avail: u16,
    last_used: u16,
    kick: EventFd,
}

/// The device, its guest memory, and the guest.
pub(super) struct Driver {
    pub(super) device: Vsock,
    pub(super) socket: PathBuf,
    pub(super) memory: GuestMemoryMmap,
    pub(super) interrupts: Arc<Interrupts>,
    event_idx: bool,
    rings: Vec<Ring>,
    /// Heads of transmit chains that the device has given back.
    tx_free: Vec<u16>,
    /// Take receive buffers back into the ring once they are read.
    pub(super) refill: bool,
    _directory: TempDir,
}

/// Keeps interrupts until the driver looks.
#[derive(Default)]
pub(super) struct Interrupts {
    pending: Mutex<bool>,
    raised: Condvar,
    pub(super) count: AtomicUsize,
    /// Who interrupts: the worker thread.
    worker: AtomicI32,
}

impl Interrupt for Interrupts {
    fn used_buffers(&self) -> io::Result<()> {
        self.worker.store(
            rustix::thread::gettid().as_raw_nonzero().get(),
            Ordering::SeqCst,
        );
        self.count.fetch_add(1, Ordering::SeqCst);
        *self.pending.lock().unwrap() = true;
        self.raised.notify_one();
        Ok(())
    }
}

impl Interrupts {
    /// Waits for an interrupt and takes it. False when none comes in time.
    fn wait(&self, patience: Duration) -> bool {
        let pending = self.pending.lock().unwrap();
        let (mut pending, _) = self
            .raised
            .wait_timeout_while(pending, patience, |pending| !*pending)
            .unwrap();
        std::mem::take(&mut pending)
    }
}

impl Driver {
    /// A device that no driver has activated.
    pub(super) fn inactive() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("vsock");
        let device = Vsock::new(GUEST_CID, &socket).unwrap();
        Self {
            device,
            socket,
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap(),
            interrupts: Arc::default(),
            event_idx: true,
            rings: Vec::new(),
            tx_free: Vec::new(),
            refill: true,
            _directory: directory,
        }
    }

    pub(super) fn new() -> Self {
        let mut driver = Self::inactive();
        driver.activate(true);
        driver
    }

    /// Sets the queues up as Linux does, and activates the device.
    pub(super) fn activate(&mut self, event_idx: bool) {
        self.event_idx = event_idx;
        self.rings.clear();
        let mut queues = Vec::new();
        for (index, &size) in QUEUE_SIZES.iter().enumerate() {
            let base = 0x1_0000 * (index as u64 + 1);
            self.memory
                .write_slice(&[0; 0x3000], GuestAddress(base))
                .unwrap();
            let kick = EventFd::new(EFD_NONBLOCK).unwrap();
            let mut queue = Queue::new(size).unwrap();
            queue.set_desc_table_address(Some(base as u32), Some(0));
            queue.set_avail_ring_address(Some(base as u32 + 0x1000), Some(0));
            queue.set_used_ring_address(Some(base as u32 + 0x2000), Some(0));
            queue.set_ready(true);
            assert!(queue.is_valid(&self.memory));
            queues.push(VirtQueue {
                queue,
                kick: kick.try_clone().unwrap(),
            });
            self.rings.push(Ring {
                base,
                size,
                next_avail: 0,
                last_used: 0,
                kick,
            });
        }
        self.tx_free = (0..QUEUE_SIZES[TX]).step_by(2).collect();
        let features = if event_idx {
            1 << VIRTIO_RING_F_EVENT_IDX
        } else {
            0
        };
        self.device
            .activate(ActivationContext {
                memory: self.memory.clone(),
                features,
                queues,
                interrupt: self.interrupts.clone(),
                resumed: false,
            })
            .unwrap();
        for slot in 0..QUEUE_SIZES[RX] {
            let address = RX_BUFFERS + u64::from(slot) * 0x2000;
            self.describe(RX, slot, address, RX_BUFFER, VRING_DESC_F_WRITE, 0);
            self.offer(RX, slot);
        }
        self.kick(RX, 0);
    }

    /// Offers buffers for events, which Linux does when it starts.
    pub(super) fn offer_event_buffers(&mut self) {
        for slot in 0..QUEUE_SIZES[EVENT] {
            let address = EVENT_BUFFERS + u64::from(slot) * 8;
            self.describe(EVENT, slot, address, 4, VRING_DESC_F_WRITE, 0);
            self.offer(EVENT, slot);
        }
        self.kick(EVENT, 0);
    }

    /// The next event, and the head of its buffer.
    pub(super) fn take_event(&mut self) -> Option<(u16, u32)> {
        let (head, length) = self.take_used(EVENT)?;
        assert_eq!(length, 4);
        let address = GuestAddress(EVENT_BUFFERS + u64::from(head) * 8);
        Some((head, self.memory.read_obj(address).unwrap()))
    }

    /// Suspends the device and activates it again where it stood.
    pub(super) fn suspend_and_resume(&mut self) {
        let queues = self
            .device
            .suspend()
            .unwrap()
            .into_iter()
            .zip(&self.rings)
            .map(|(state, ring)| VirtQueue {
                queue: Queue::try_from(state).unwrap(),
                kick: ring.kick.try_clone().unwrap(),
            })
            .collect();
        self.device
            .activate(ActivationContext {
                memory: self.memory.clone(),
                features: 1 << VIRTIO_RING_F_EVENT_IDX,
                queues,
                interrupt: self.interrupts.clone(),
                resumed: true,
            })
            .unwrap();
    }

    /// Connects a host program to the device's socket.
    pub(super) fn client(&self) -> UnixStream {
        let client = UnixStream::connect(&self.socket).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client
    }

    pub(super) fn describe(
        &self,
        ring: usize,
        index: u16,
        address: u64,
        length: u32,
        flags: u32,
        next: u16,
    ) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&length.to_le_bytes());
        raw[12..14].copy_from_slice(&(flags as u16).to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        let slot = self.rings[ring].base + u64::from(index) * 16;
        self.memory.write_slice(&raw, GuestAddress(slot)).unwrap();
    }

    /// Puts a chain into an available ring without a kick.
    pub(super) fn offer(&mut self, ring: usize, head: u16) {
        let ring = &mut self.rings[ring];
        let avail = ring.base + 0x1000;
        let slot = avail + 4 + u64::from(ring.next_avail % ring.size) * 2;
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        ring.next_avail = ring.next_avail.wrapping_add(1);
        fence(Ordering::SeqCst);
        self.memory
            .store(ring.next_avail, GuestAddress(avail + 2), Ordering::Release)
            .unwrap();
    }

    /// Kicks if the device wants to hear of what was offered since the ring was at `old`.
    pub(super) fn kick(&mut self, ring: usize, old: u16) {
        let ring = &self.rings[ring];
        let used = ring.base + 0x2000;
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = used + 4 + u64::from(ring.size) * 8;
            let event: u16 = self
                .memory
                .load(GuestAddress(event), Ordering::SeqCst)
                .unwrap();
            let new = ring.next_avail;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            let flags: u16 = self
                .memory
                .load(GuestAddress(used), Ordering::SeqCst)
                .unwrap();
            u32::from(flags) & VRING_USED_F_NO_NOTIFY == 0
        };
        if wanted {
            ring.kick.write(1).unwrap();
        }
    }

    pub(super) fn force_kick(&self, ring: usize) {
        self.rings[ring].kick.write(1).unwrap();
    }

    pub(super) fn avail_index(&self, ring: usize) -> u16 {
        self.rings[ring].next_avail
    }

    pub(super) fn set_avail_index(&mut self, ring: usize, index: u16) {
        self.rings[ring].next_avail = index;
        let address = self.rings[ring].base + 0x1002;
        self.memory.write_obj(index, GuestAddress(address)).unwrap();
    }

    /// The next used chain of a ring: its head and length.
    fn take_used(&mut self, ring: usize) -> Option<(u16, u32)> {
        let ring = &mut self.rings[ring];
        let used = ring.base + 0x2000;
        let index: u16 = self
            .memory
            .load(GuestAddress(used + 2), Ordering::Acquire)
            .unwrap();
        if index == ring.last_used {
            return None;
        }
        let slot = used + 4 + u64::from(ring.last_used % ring.size) * 8;
        let [head, length]: [u32; 2] = self.memory.read_obj(GuestAddress(slot)).unwrap();
        ring.last_used = ring.last_used.wrapping_add(1);
        Some((u16::try_from(head).unwrap(), length))
    }

    /// Asks for an interrupt at the next used chain of a ring.
    fn expect_used(&self, ring: usize) {
        let ring = &self.rings[ring];
        let event = ring.base + 0x1000 + 4 + u64::from(ring.size) * 2;
        self.memory
            .store(ring.last_used, GuestAddress(event), Ordering::SeqCst)
            .unwrap();
        fence(Ordering::SeqCst);
    }

    /// A used chain of a ring, for which it waits for an interrupt. `None` when it takes too long.
    pub(super) fn wait_used(&mut self, ring: usize, patience: Duration) -> Option<(u16, u32)> {
        loop {
            if let Some(used) = self.take_used(ring) {
                return Some(used);
            }
            self.expect_used(RX);
            self.expect_used(TX);
            if let Some(used) = self.take_used(ring) {
                return Some(used);
            }
            if !self.interrupts.wait(patience) {
                return None;
            }
            // As vring_interrupt() does for every queue of the device.
            if ring != TX {
                self.reclaim();
            }
        }
    }

    fn reclaim(&mut self) {
        while let Some((head, _)) = self.take_used(TX) {
            self.tx_free.push(head);
        }
    }

    /// Sends a packet, header and payload in a descriptor each, as Linux does.
    pub(super) fn send(&mut self, mut header: Header, payload: &[u8]) {
        header.len = payload.len() as u32;
        self.send_raw(&header.bytes(), payload);
    }

    pub(super) fn send_raw(&mut self, header: &[u8], payload: &[u8]) {
        while self.tx_free.is_empty() {
            let (head, _) = self.wait_used(TX, PATIENCE).expect("device is stuck");
            self.tx_free.push(head);
        }
        let head = self.tx_free.pop().unwrap();
        let address = TX_BUFFERS + u64::from(head / 2) * TX_STRIDE;
        self.memory
            .write_slice(header, GuestAddress(address))
            .unwrap();
        let length = header.len() as u32;
        if payload.is_empty() {
            self.describe(TX, head, address, length, 0, 0);
        } else {
            let data = address + 0x100;
            self.memory
                .write_slice(payload, GuestAddress(data))
                .unwrap();
            self.describe(TX, head, address, length, VRING_DESC_F_NEXT, head + 1);
            self.describe(TX, head + 1, data, payload.len() as u32, 0, 0);
        }
        let old = self.rings[TX].next_avail;
        self.offer(TX, head);
        self.kick(TX, old);
    }

    /// The next packet from the device, if one comes in time.
    pub(super) fn poll(&mut self, patience: Duration) -> Option<(Header, Vec<u8>)> {
        let (head, length) = self.wait_used(RX, patience)?;
        assert!((44..=RX_BUFFER).contains(&length), "used length {length}");
        let address = RX_BUFFERS + u64::from(head) * 0x2000;
        let mut bytes = vec![0; length as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        if self.refill {
            let old = self.rings[RX].next_avail;
            self.offer(RX, head);
            self.kick(RX, old);
        }
        let header = Header::parse(&packet_in(&mut bytes).unwrap());
        assert_eq!(header.len, length - 44);
        Some((header, bytes.split_off(44)))
    }

    pub(super) fn receive(&mut self) -> (Header, Vec<u8>) {
        self.poll(PATIENCE).expect("no packet from the device")
    }

    /// The next packet, which must be of this operation.
    pub(super) fn expect(&mut self, op: u16) -> Header {
        let (header, _) = self.receive();
        assert_eq!(header.op, op, "{header:?}");
        header
    }

    pub(super) fn expect_silence(&mut self) {
        let packet = self.poll(Duration::from_millis(100));
        assert_eq!(packet.map(|(header, _)| header), None);
    }

    /// Establishes a connection from a host program to the guest's port.
    pub(super) fn connect(&mut self, port: u32) -> (UnixStream, Ports) {
        let mut client = self.client();
        let line = format!("CONNECT {port}\n");
        io::Write::write_all(&mut client, line.as_bytes()).unwrap();
        let request = self.expect(VIRTIO_VSOCK_OP_REQUEST);
        let ports = request.ports();
        assert_eq!(ports.guest, port);
        self.send(Header::from_guest(ports, VIRTIO_VSOCK_OP_RESPONSE), &[]);
        let answer = read_line(&mut client);
        assert_eq!(answer, format!("OK {}\n", ports.host));
        (client, ports)
    }
}

impl Driver {
    /// CPU time that the worker uses in 300 ms, in ticks of 10 ms. It must have interrupted before.
    pub(super) fn worker_ticks(&self) -> u64 {
        let worker = self.interrupts.worker.load(Ordering::SeqCst);
        assert_ne!(worker, 0);
        let ticks = || {
            let stat = std::fs::read_to_string(format!("/proc/self/task/{worker}/stat")).unwrap();
            let fields = stat.rsplit_once(')').unwrap().1;
            let fields: Vec<&str> = fields.split_whitespace().collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        let before = ticks();
        std::thread::sleep(Duration::from_millis(300));
        ticks() - before
    }
}

/// Reads up to a newline and no further.
pub(super) fn read_line(stream: &mut impl io::Read) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") && stream.read(&mut byte).unwrap() == 1 {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}
