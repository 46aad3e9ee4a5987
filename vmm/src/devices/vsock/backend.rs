//! The active device: moves packets between the queues and the muxer, in the worker thread.
//!
//! Interrupts and exits are what a guest pays for, so there are few of them. The driver's kicks of
//! the receive queue are wanted only when packets wait for buffers. Used transmit buffers are not
//! worth an interrupt of their own: the driver merely frees them, so they wait for one that is due
//! anyway, for half of the queue, or for [`TX_SIGNAL_DELAY`].

use std::{
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::{
    event::Timespec,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create,
        timerfd_settime,
    },
};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::{
    QUEUE_COUNT,
    muxer::Muxer,
    packet::{HEADER_SIZE, empty_packet, read_packet},
};
use crate::devices::{ActivateError, Interrupt, VirtQueue};

/// Names of the events.
const RX_KICK: u32 = 0;
const TX_KICK: u32 = 1;
const HOST: u32 = 2;
const TX_SIGNAL: u32 = 3;
const EVENT_KICK: u32 = 4;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`: the `id` of a `struct virtio_vsock_event`, its only field.
const VIRTIO_VSOCK_EVENT_TRANSPORT_RESET: u32 = 0;
const EVENT_SIZE: u32 = 4;

/// How long the driver may wait to get transmit buffers back that it does not need.
const TX_SIGNAL_DELAY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Most passes over the queues before the worker looks for a stop and at the host again.
const MAX_PASSES: u32 = 16;

/// The device's side of its three queues.
pub(super) struct Backend {
    memory: GuestMemoryMmap,
    interrupt: Arc<dyn Interrupt>,
    muxer: Muxer,
    rx: Port,
    tx: Port,
    /// Holds the driver's buffers for events, of which there is one: the reset of the transport.
    event: Port,
    /// The driver is to be told that all its connections are gone and its CID may be another.
    must_reset: bool,
    /// It was told, and has filled its event queue so far only: it has not dealt with that yet.
    unacknowledged: Option<u16>,
    /// Packets wait for the driver's next kick of the receive queue.
    rx_starved: bool,
    tx_timer: OwnedFd,
    tx_timer_armed: bool,
    /// Used transmit descriptors that the driver was not told of.
    tx_unsignalled: u16,
    scratch: Vec<u8>,
}

/// A queue in use.
struct Port {
    queue: VirtQueue,
    /// The driver corrupted it. It rests until the driver resets the device.
    broken: bool,
    /// Buffers were used and the driver was not told.
    unsignalled: bool,
}

type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap>;

impl Port {
    fn new(queue: VirtQueue) -> Self {
        Self {
            queue,
            broken: false,
            unsignalled: false,
        }
    }

    /// Takes what a fallible queue operation gave, or retires the queue.
    fn check<T>(&mut self, result: Result<T, virtio_queue::Error>) -> Option<T> {
        result
            .inspect_err(|err| {
                log::error!("Driver corrupted a vsock queue, which rests until a reset: {err}");
                self.broken = true;
            })
            .ok()
    }

    fn pop<'a>(&mut self, memory: &'a GuestMemoryMmap) -> Option<Chain<'a>> {
        if self.broken {
            return None;
        }
        let next = self
            .queue
            .queue
            .iter(memory)
            .map(|mut chains| chains.next());
        self.check(next).flatten()
    }

    /// Gives a chain back. One that lies outside the queue cannot be: it never was in it.
    fn push(&mut self, memory: &GuestMemoryMmap, head: u16, length: u32) {
        if head >= self.queue.queue.size() {
            return;
        }
        let added = self.queue.queue.add_used(memory, head, length);
        self.unsignalled |= self.check(added).is_some();
    }

    fn disable_kicks(&mut self, memory: &GuestMemoryMmap) {
        let disabled = self.queue.queue.disable_notification(memory);
        self.check(disabled);
    }

    /// Asks the driver for kicks. True if it has put something in meanwhile.
    fn enable_kicks(&mut self, memory: &GuestMemoryMmap) -> bool {
        if self.broken {
            return false;
        }
        let enabled = self.queue.queue.enable_notification(memory);
        self.check(enabled).unwrap_or(false)
    }

    /// Asks the driver for a kick when it puts something in behind what is there already, which
    /// stays. Says where that ends.
    fn await_more(&mut self, memory: &GuestMemoryMmap) -> Option<u16> {
        let end = self.end(memory)?;
        let queue = &mut self.queue.queue;
        let next = queue.next_avail();
        queue.set_next_avail(end);
        let enabled = queue.enable_notification(memory);
        queue.set_next_avail(next);
        self.check(enabled).map(|_| end)
    }

    /// How far the driver has filled the queue.
    fn end(&mut self, memory: &GuestMemoryMmap) -> Option<u16> {
        let end = self.queue.queue.avail_idx(memory, Ordering::Acquire);
        self.check(end).map(|end| end.0)
    }

    /// Whether the driver wants to hear of what was used since the last time.
    fn needs_signal(&mut self, memory: &GuestMemoryMmap) -> bool {
        if !self.unsignalled || self.broken {
            return false;
        }
        self.unsignalled = false;
        let needed = self.queue.queue.needs_notification(memory);
        self.check(needed).unwrap_or(true)
    }

    fn take_kick(&self) {
        // Nothing to read is nothing to take: the queue is looked at in any case.
        let _ = self.queue.kick.read();
    }
}

impl Backend {
    /// A backend on the queues of an activated device.
    pub(super) fn new(
        memory: GuestMemoryMmap,
        interrupt: Arc<dyn Interrupt>,
        queues: Vec<VirtQueue>,
        muxer: Muxer,
        resumed: bool,
    ) -> Result<Self, ActivateError> {
        let got = queues.len();
        let [rx, tx, event] = <[VirtQueue; QUEUE_COUNT]>::try_from(queues).map_err(|_| {
            ActivateError::QueueCount {
                expected: QUEUE_COUNT,
                got,
            }
        })?;
        let tx_timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )
        .map_err(|err| ActivateError::EventFd(err.into()))?;
        Ok(Self {
            memory,
            interrupt,
            muxer,
            rx: Port::new(rx),
            tx: Port::new(tx),
            event: Port::new(event),
            must_reset: resumed,
            unacknowledged: None,
            rx_starved: false,
            tx_timer,
            tx_timer_armed: false,
            tx_unsignalled: 0,
            scratch: Vec::new(),
        })
    }

    /// Where the device stands in its queues.
    pub(super) fn positions(&self) -> Vec<QueueState> {
        [&self.rx, &self.tx, &self.event]
            .map(|port| port.queue.queue.state())
            .to_vec()
    }

    /// Tells the driver that the transport was reset (virtio 1.2, 5.10.6.8): it drops its
    /// connections and reads its CID again. Nobody new may connect before it has done so, as that
    /// connection would be dropped too: it says so by putting the event's buffer in again.
    fn reset_transport(&mut self) {
        let Some(chain) = self.event.pop(&self.memory) else {
            log::warn!("Guest's vsock driver has no buffer for the event of a reset");
            return;
        };
        let head = chain.head_index();
        let told = chain.writable().next().is_some_and(|descriptor| {
            let event = VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.to_le_bytes();
            descriptor.len() as usize >= event.len()
                && self.memory.write_slice(&event, descriptor.addr()).is_ok()
        });
        if !told {
            self.muxer
                .complain("event buffer without room for an event");
        }
        let length = if told { EVENT_SIZE } else { 0 };
        self.unacknowledged = self.event.await_more(&self.memory).filter(|_| told);
        self.event.push(&self.memory, head, length);
        self.muxer.hold(self.unacknowledged.is_some());
        if self.event.needs_signal(&self.memory)
            && let Err(err) = self.interrupt.used_buffers()
        {
            log::warn!("Failed to interrupt the vsock driver: {err}");
        }
    }

    /// Moves everything that can move.
    fn run(&mut self) {
        for pass in 1..=MAX_PASSES {
            let (taken, more_to_take) = self.take();
            let (given, more_to_give) = self.give();
            self.signal();
            if !more_to_take && !more_to_give {
                return;
            }
            // Others have their turn, then we go on. Not if the driver only pretends that there
            // is something.
            if pass == MAX_PASSES && (taken > 0 || given > 0) {
                let _ = self.tx.queue.kick.write(1);
            }
        }
    }

    /// Gives the muxer what is in the transmit queue. Returns how many packets that were, and
    /// whether there are more.
    fn take(&mut self) -> (u16, bool) {
        let size = self.tx.queue.queue.size();
        self.tx.disable_kicks(&self.memory);
        for taken in 0..size {
            let Some(chain) = self.tx.pop(&self.memory) else {
                return (taken, self.tx.enable_kicks(&self.memory));
            };
            let head = chain.head_index();
            let descriptors = u16::try_from(chain.clone().count()).unwrap_or(u16::MAX);
            let muxer = &mut self.muxer;
            let read = read_packet(&self.memory, chain, &mut self.scratch, |packet| {
                muxer.receive(packet);
            });
            if read.is_err() {
                self.muxer.complain("transmit buffer without a packet");
            }
            self.tx.push(&self.memory, head, 0);
            self.tx_unsignalled = self.tx_unsignalled.saturating_add(descriptors.max(1));
        }
        (size, true)
    }

    /// Fills the receive queue with the muxer's packets. Returns how many buffers that took, and
    /// whether there are more of both.
    fn give(&mut self) -> (u16, bool) {
        let size = self.rx.queue.queue.size();
        let mut given = 0;
        while self.muxer.has_packets() {
            if given == size {
                return (given, true);
            }
            let Some(chain) = self.rx.pop(&self.memory) else {
                self.rx_starved = true;
                return (given, self.rx.enable_kicks(&self.memory));
            };
            if self.rx_starved {
                self.rx_starved = false;
                self.rx.disable_kicks(&self.memory);
            }
            let head = chain.head_index();
            let used = match empty_packet(&self.memory, chain) {
                Ok(mut packet) => {
                    if !self.muxer.deliver(&mut packet) {
                        self.rx.queue.queue.go_to_previous_position();
                        return (given, false);
                    }
                    used_length(packet.len())
                }
                Err(_) => {
                    self.muxer
                        .complain("receive buffer without room for a packet");
                    0
                }
            };
            self.rx.push(&self.memory, head, used);
            given += 1;
        }
        (given, false)
    }

    /// Interrupts the driver if it should know of what was used.
    fn signal(&mut self) {
        // One interrupt serves all queues of a device: used transmit buffers ride along.
        let by_the_way = self.rx.needs_signal(&self.memory);
        if by_the_way || self.tx_unsignalled >= self.tx.queue.queue.size() / 2 {
            self.signal_tx(by_the_way);
        } else if self.tx_unsignalled > 0 && !self.tx_timer_armed {
            let once = Itimerspec {
                it_interval: Timespec::default(),
                it_value: TX_SIGNAL_DELAY,
            };
            let set = timerfd_settime(&self.tx_timer, TimerfdTimerFlags::empty(), &once);
            self.tx_timer_armed = set.is_ok();
            if set.is_err() {
                self.signal_tx(false);
            }
        }
    }

    fn signal_tx(&mut self, by_the_way: bool) {
        self.tx_unsignalled = 0;
        let needed = self.tx.needs_signal(&self.memory);
        if (needed || by_the_way)
            && let Err(err) = self.interrupt.used_buffers()
        {
            log::warn!("Failed to interrupt the vsock driver: {err}");
        }
    }
}

/// Bytes written into a receive buffer.
fn used_length(payload: u32) -> u32 {
    u32::try_from(HEADER_SIZE).map_or(payload, |header| header + payload)
}

impl MutEventSubscriber for Backend {
    fn init(&mut self, ops: &mut EventOps) {
        let added = [
            Events::with_data(&self.rx.queue.kick, RX_KICK, EventSet::IN),
            Events::with_data(&self.tx.queue.kick, TX_KICK, EventSet::IN),
            Events::with_data(&self.muxer, HOST, EventSet::IN),
            Events::with_data(&self.tx_timer, TX_SIGNAL, EventSet::IN),
            Events::with_data(&self.event.queue.kick, EVENT_KICK, EventSet::IN),
        ]
        .into_iter()
        .try_for_each(|event| ops.add(event));
        if let Err(err) = added {
            log::error!("Failed to watch the vsock device's events: {err:?}");
            return;
        }
        self.rx.disable_kicks(&self.memory);
        if std::mem::take(&mut self.must_reset) {
            self.event.take_kick();
            self.reset_transport();
        } else {
            // The driver puts its event buffers in once and never hears of them.
            self.event.disable_kicks(&self.memory);
        }
        self.run();
    }

    fn process(&mut self, events: Events, _: &mut EventOps) {
        match events.data() {
            RX_KICK => self.rx.take_kick(),
            TX_KICK => self.tx.take_kick(),
            HOST => self.muxer.dispatch(),
            EVENT_KICK => {
                self.event.take_kick();
                // Another kick may have been on its way before.
                if self.unacknowledged != self.event.end(&self.memory) {
                    self.unacknowledged = None;
                    self.event.disable_kicks(&self.memory);
                    self.muxer.hold(false);
                }
            }
            _ => {
                let mut expirations = [0; 8];
                let _ = rustix::io::read(&self.tx_timer, &mut expirations);
                self.tx_timer_armed = false;
                if self.tx_unsignalled > 0 {
                    self.signal_tx(false);
                }
            }
        }
        self.run();
    }
}
