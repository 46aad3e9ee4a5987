//! virtio-rng (virtio 1.2, section 5.4): the host's randomness for the guest.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::{virtio_ids::VIRTIO_ID_RNG, virtio_ring::VIRTIO_RING_F_EVENT_IDX};
use virtio_queue::{DescriptorChain, QueueState, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::{ActivateError, ActivationContext, Interrupt, VirtQueue, VirtioDevice, Worker};

/// The kernel asks for a cache line at a time.
const QUEUE_SIZES: [u16; 1] = [8];
/// Most bytes for one request: a guest that wants more asks again.
const MAX_REQUEST: usize = 4096;

/// A virtio-rng device.
#[derive(Default)]
pub struct Rng {
    worker: Option<Worker<Active>>,
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
        let ActivationContext {
            memory,
            queues,
            interrupt,
            ..
        } = context;
        let [requests] = VirtQueue::exactly(queues)?;
        self.worker = Some(Worker::spawn(
            "virtio-rng",
            Active {
                memory,
                requests,
                interrupt,
            },
        )?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }

    fn suspend(&mut self) -> Option<Vec<QueueState>> {
        let active = self.worker.take()?.stop()?;
        Some(vec![active.requests.queue.state()])
    }
}

struct Active {
    memory: GuestMemoryMmap,
    requests: VirtQueue,
    interrupt: Arc<dyn Interrupt>,
}

impl Active {
    /// Fills every buffer that the driver offers.
    fn fill(&mut self) -> Result<(), virtio_queue::Error> {
        let queue = &mut self.requests.queue;
        loop {
            queue.disable_notification(&self.memory)?;
            while let Some(chain) = queue.pop_descriptor_chain(&self.memory) {
                let head = chain.head_index();
                let written = fill_chain(&self.memory, chain);
                queue.add_used(&self.memory, head, written)?;
            }
            if !queue.enable_notification(&self.memory)? {
                break;
            }
        }
        if queue.needs_notification(&self.memory)? {
            // Fails only when the VM goes away.
            let _ = self.interrupt.used_buffers();
        }
        Ok(())
    }
}

/// Writes random bytes into the device-writable part of a request; says how many.
fn fill_chain(memory: &GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) -> u32 {
    let mut written = 0;
    for descriptor in chain.writable() {
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

impl MutEventSubscriber for Active {
    fn process(&mut self, _events: Events, ops: &mut EventOps) {
        // The counter only says that there is something: losing it loses nothing.
        let _ = self.requests.kick.read();
        if let Err(err) = self.fill() {
            // The rings are broken by the guest: it gets no more randomness, the host is fine.
            log::warn!("virtio-rng: the driver broke its queue: {err}");
            let _ = ops.remove(Events::empty(&self.requests.kick));
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(err) = ops.add(Events::new(&self.requests.kick, EventSet::IN)) {
            log::error!("virtio-rng: failed to wait for the driver: {err}");
        }
    }
}
