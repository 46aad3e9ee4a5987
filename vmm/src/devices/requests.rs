//! The worker of a device whose queues hold requests: each is answered, one after the other.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_queue::{DescriptorChain, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;

use super::{ActivateError, ActivationContext, Interrupt, VirtQueue, Worker};

/// What answers the requests of a device.
pub(super) trait Responder: Send + 'static {
    /// Carries a request out; says how many bytes of its device-writable part were written.
    fn answer(
        &mut self,
        memory: &GuestMemoryMmap,
        request: DescriptorChain<&GuestMemoryMmap>,
    ) -> u32;
}

/// A thread that answers requests until it is stopped. Dropping it stops it.
pub(super) struct RequestWorker<B>(Worker<Requests<B>>);

impl<B: Responder> RequestWorker<B> {
    /// Starts it on a device's queues, which are this many.
    ///
    /// # Errors
    ///
    /// The driver set up another number of queues, or the thread could not be made.
    pub(super) fn spawn(
        name: &str,
        backend: B,
        queues: usize,
        context: ActivationContext,
    ) -> Result<Self, ActivateError> {
        if context.queues.len() != queues {
            return Err(ActivateError::QueueCount {
                expected: queues,
                got: context.queues.len(),
            });
        }
        let requests = Requests {
            name: name.into(),
            backend,
            memory: context.memory,
            queues: context.queues,
            interrupt: context.interrupt,
        };
        Worker::spawn(name, requests).map(Self)
    }
}

impl<B> RequestWorker<B> {
    /// Stops it between two requests; gives the backend and where it stands in its queues. `None`
    /// if it died.
    pub(super) fn stop(self) -> Option<(B, Vec<QueueState>)> {
        let requests = self.0.stop()?;
        let states = requests.queues.iter().map(|queue| queue.queue.state());
        Some((requests.backend, states.collect()))
    }
}

struct Requests<B> {
    name: String,
    backend: B,
    memory: GuestMemoryMmap,
    queues: Vec<VirtQueue>,
    interrupt: Arc<dyn Interrupt>,
}

impl<B: Responder> Requests<B> {
    /// Answers every request in a queue.
    fn serve(&mut self, index: usize) -> Result<(), virtio_queue::Error> {
        let queue = &mut self.queues[index].queue;
        loop {
            queue.disable_notification(&self.memory)?;
            while let Some(chain) = queue.pop_descriptor_chain(&self.memory) {
                let head = chain.head_index();
                let written = self.backend.answer(&self.memory, chain);
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

impl<B: Responder> MutEventSubscriber for Requests<B> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let index = events.data() as usize;
        // The counter only says that there is something: losing it loses nothing.
        let _ = self.queues[index].kick.read();
        if let Err(err) = self.serve(index) {
            // The rings are broken by the guest: its device hangs, the host is fine.
            log::warn!("{}: the driver broke a queue: {err}", self.name);
            let _ = ops.remove(Events::empty(&self.queues[index].kick));
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (index, queue) in (0u32..).zip(&self.queues) {
            if let Err(err) = ops.add(Events::with_data(&queue.kick, index, EventSet::IN)) {
                log::error!("{}: failed to wait for the driver: {err}", self.name);
            }
        }
    }
}
