//! virtio-rng (virtio 1.2, section 5.4): the host's randomness for the guest.

use virtio_bindings::{virtio_ids::VIRTIO_ID_RNG, virtio_ring::VIRTIO_RING_F_EVENT_IDX};
use virtio_queue::{DescriptorChain, QueueState};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::{
    ActivateError, ActivationContext, VirtioDevice,
    requests::{RequestWorker, Responder},
};

/// The kernel asks for a cache line at a time.
const QUEUE_SIZES: [u16; 1] = [8];
/// Most bytes for one request: a guest that wants more asks again.
const MAX_REQUEST: usize = 4096;

/// A virtio-rng device.
#[derive(Default)]
pub struct Rng {
    worker: Option<RequestWorker<Randomness>>,
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError> {
        let worker = RequestWorker::spawn("virtio-rng", Randomness, QUEUE_SIZES.len(), context)?;
        self.worker = Some(worker);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }

    fn suspend(&mut self) -> Option<Vec<QueueState>> {
        let (_, queues) = self.worker.take()?.stop()?;
        Some(queues)
    }
}

/// Whatever is asked for, it is random.
struct Randomness;

impl Responder for Randomness {
    /// Writes random bytes into the device-writable part of a request.
    fn answer(
        &mut self,
        memory: &GuestMemoryMmap,
        request: DescriptorChain<&GuestMemoryMmap>,
    ) -> u32 {
        let mut written = 0;
        for descriptor in request.writable() {
            let length = (descriptor.len() as usize).min(MAX_REQUEST - written);
            let mut bytes = vec![0; length];
            let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
            if filled != Ok(length) || memory.write_slice(&bytes, descriptor.addr()).is_err() {
                break;
            }
            written += length;
        }
        u32::try_from(written).expect("a request is at most MAX_REQUEST bytes")
    }
}
