//! virtio-blk (virtio 1.2, section 5.2): a file of the host as a disk of the guest.
//!
//! Requests are carried out one after the other in the device's thread. The file is opened before
//! the process is confined; a read-only one cannot be written to by its descriptor either.

mod disk;
mod request;

use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    },
    virtio_ids::VIRTIO_ID_BLOCK,
    virtio_ring::VIRTIO_RING_F_EVENT_IDX,
};
use virtio_queue::{DescriptorChain, QueueState};
use vm_memory::GuestMemoryMmap;

pub use disk::{Disk, DiskError};
pub use request::answer;

use super::{
    ActivateError, ActivationContext, VirtioDevice, read_config_space,
    requests::{RequestWorker, Responder},
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
    worker: Option<RequestWorker<Disk>>,
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
    fn retrieve(&mut self) -> Option<Vec<QueueState>> {
        let (disk, queues) = self.worker.take()?.stop()?;
        self.disk = Some(disk);
        Some(queues)
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
        let mut disk = self.disk.take().ok_or(ActivateError::Unavailable)?;
        // A driver that never flushes expects what it wrote to be safe (section 5.2.6.2).
        disk.set_write_through(context.features & 1 << VIRTIO_BLK_F_FLUSH == 0);
        self.worker = Some(RequestWorker::spawn(
            &self.name,
            disk,
            QUEUE_SIZES.len(),
            context,
        )?);
        Ok(())
    }

    fn reset(&mut self) {
        self.retrieve();
    }

    fn suspend(&mut self) -> Option<Vec<QueueState>> {
        self.retrieve()
    }

    /// The driver has read the capacity and the limits.
    fn identity(&self) -> &[u8] {
        &self.config
    }
}

impl Responder for Disk {
    fn answer(
        &mut self,
        memory: &GuestMemoryMmap,
        request: DescriptorChain<&GuestMemoryMmap>,
    ) -> u32 {
        answer(self, memory, request)
    }
}

#[cfg(test)]
mod tests;
