//! virtio-blk (virtio 1.2, section 5.2): a file of the host as a disk of the guest.
//!
//! Requests are carried out one after the other in the device's thread. The file is opened before
//! the process is confined; a read-only one cannot be written to by its descriptor either.

mod disk;
mod request;

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    },
    virtio_ids::VIRTIO_ID_BLOCK,
    virtio_ring::VIRTIO_RING_F_EVENT_IDX,
};
use virtio_queue::{QueueState, QueueT};
use vm_memory::GuestMemoryMmap;

pub use disk::{Disk, DiskError};
pub use request::answer;

use super::{
    ActivateError, ActivationContext, Interrupt, VirtQueue, VirtioDevice, Worker, read_config_space,
};

/// One queue, of as many descriptors as one request of [`SEG_MAX`] segments needs, twice.
const QUEUE_SIZES: [u16; 1] = [128];

/// Most segments of a request, besides its header and its status.
const SEG_MAX: u32 = 32;

/// Largest segment, in bytes. With [`SEG_MAX`] it bounds what one request may ask for, and how
/// long a device may need to come to rest.
const SIZE_MAX: u32 = 256 << 10;

/// A virtio-blk device.
pub struct Blk {
    name: String,
    config: Vec<u8>,
    read_only: bool,
    /// `None` while the worker has it.
    disk: Option<Disk>,
    worker: Option<Worker<Active>>,
}

impl Blk {
    /// A device that shows `disk`.
    #[must_use]
    pub fn new(disk: Disk) -> Self {
        Self {
            name: format!("blk-{}", disk.id()),
            config: config_space(&disk),
            read_only: disk.is_read_only(),
            disk: Some(disk),
            worker: None,
        }
    }

    /// Takes the disk back from the worker, with the state of its queue.
    fn retrieve(&mut self) -> Option<QueueState> {
        let active = self.worker.take()?.stop()?;
        self.disk = Some(active.disk);
        Some(active.requests.queue.state())
    }
}

/// `struct virtio_blk_config` (virtio 1.2, section 5.2.4) as far as the features say something.
fn config_space(disk: &Disk) -> Vec<u8> {
    let mut config = Vec::with_capacity(16);
    config.extend(disk.sectors().to_le_bytes());
    config.extend(SIZE_MAX.to_le_bytes());
    config.extend(SEG_MAX.to_le_bytes());
    config
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let kind = if self.read_only {
            VIRTIO_BLK_F_RO
        } else {
            VIRTIO_BLK_F_FLUSH
        };
        1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << kind
            | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.config, offset, data);
    }

    fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError> {
        let ActivationContext {
            memory,
            features,
            queues,
            interrupt,
            ..
        } = context;
        let [requests] = VirtQueue::exactly(queues)?;
        let mut disk = self.disk.take().ok_or(ActivateError::Unavailable)?;
        // A driver that never flushes expects what it wrote to be safe (section 5.2.6.2).
        disk.set_write_through(features & 1 << VIRTIO_BLK_F_FLUSH == 0);
        self.worker = Some(Worker::spawn(
            &self.name,
            Active {
                disk,
                memory,
                requests,
                interrupt,
            },
        )?);
        Ok(())
    }

    fn reset(&mut self) {
        self.retrieve();
    }

    fn suspend(&mut self) -> Option<Vec<QueueState>> {
        self.retrieve().map(|queue| vec![queue])
    }

    /// The driver has read the capacity and the limits.
    fn identity(&self) -> &[u8] {
        &self.config
    }
}

struct Active {
    disk: Disk,
    memory: GuestMemoryMmap,
    requests: VirtQueue,
    interrupt: Arc<dyn Interrupt>,
}

impl Active {
    /// Answers every request in the queue.
    fn serve(&mut self) -> Result<(), virtio_queue::Error> {
        let queue = &mut self.requests.queue;
        loop {
            queue.disable_notification(&self.memory)?;
            while let Some(chain) = queue.pop_descriptor_chain(&self.memory) {
                let head = chain.head_index();
                let written = answer(&mut self.disk, &self.memory, chain);
                queue.add_used(&self.memory, head, written)?;
                // Somebody waits for this one: it is told before the next is taken up.
                if queue.needs_notification(&self.memory)? {
                    // Fails only when the VM goes away.
                    let _ = self.interrupt.used_buffers();
                }
            }
            if !queue.enable_notification(&self.memory)? {
                return Ok(());
            }
        }
    }
}

impl MutEventSubscriber for Active {
    fn process(&mut self, _events: Events, ops: &mut EventOps) {
        // The counter only says that there is something: losing it loses nothing.
        let _ = self.requests.kick.read();
        if let Err(err) = self.serve() {
            // The rings are broken by the guest: its disk hangs, the host is fine.
            log::warn!("virtio-blk: the driver broke its queue: {err}");
            let _ = ops.remove(Events::empty(&self.requests.kick));
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(err) = ops.add(Events::new(&self.requests.kick, EventSet::IN)) {
            log::error!("virtio-blk: failed to wait for the driver: {err}");
        }
    }
}

#[cfg(test)]
mod tests;
