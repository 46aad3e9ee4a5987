//! virtio device backends, and the trait through which a transport drives them.
//!
//! A backend works on guest memory, queues and a notifier, and knows nothing of its transport:
//! virtio-mmio (`virtio_mmio`) is today's.
//!
//! ```text
//!            driver sets DRIVER_OK                 driver writes status 0, or the VM ends
//! inactive ------ activate(ctx) ------> active ------------ reset() ------------> inactive
//!                       ^           a worker thread owns
//!                       |           queues and backend
//!                       `--- again, in ---- | ---- suspend() for a snapshot
//!                            this VM or a clone of it
//! ```

pub mod blk;
pub mod fs;
mod requests;
pub mod rng;
pub mod vsock;
mod worker;

use std::{io, sync::Arc};

use virtio_queue::{Queue, QueueState};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

pub use worker::Worker;

/// A virtio device, seen from its transport.
pub trait VirtioDevice: Send {
    /// Device ID (virtio 1.2, section 5).
    fn device_type(&self) -> u32;

    /// The largest size of each queue: its length is the number of queues. Powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Feature bits offered besides `VIRTIO_F_VERSION_1`, which the transport adds.
    fn features(&self) -> u64;

    /// Reads device configuration space. What lies beyond it reads as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Starts the device on its queues, in a thread of its own.
    ///
    /// # Errors
    ///
    /// The queues are unusable or the host lacks a resource; the device stays inactive and the
    /// transport tells the driver that it needs a reset.
    fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError>;

    /// Stops the device and gives its queues up. Nothing touches guest memory afterwards.
    fn reset(&mut self);

    /// Stops an active device between two requests and tells where it stands in its queues, so
    /// that it can be activated again. `None` if it was inactive or its worker died.
    fn suspend(&mut self) -> Option<Vec<QueueState>>;

    /// What of its configuration the driver has acted on and must find again in a clone.
    fn identity(&self) -> &[u8] {
        &[]
    }

    /// What else of a suspended device the driver must find again in a clone.
    ///
    /// # Errors
    ///
    /// The driver has used the device in a way that no clone could go on from.
    fn save(&self) -> Result<Vec<u8>, BackendStateError> {
        Ok(Vec::new())
    }

    /// Takes up what [`VirtioDevice::save`] told of another device like this, before it is
    /// activated.
    ///
    /// # Errors
    ///
    /// This one cannot go on from there.
    fn restore(&mut self, state: &[u8]) -> Result<(), BackendStateError> {
        if state.is_empty() {
            Ok(())
        } else {
            Err(BackendStateError::new(
                "a device",
                "it keeps nothing".into(),
            ))
        }
    }
}

/// What a device needs to run. It owns this only while it is active.
pub struct ActivationContext {
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// Feature bits that the driver accepted.
    pub features: u64,
    /// One for each of [`VirtioDevice::queue_sizes`], configured by the driver and valid.
    pub queues: Vec<VirtQueue>,
    /// How the device tells the driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// The driver has used the device before it was suspended: what the backend did not keep
    /// since (connections, for one) is to be declared lost.
    pub resumed: bool,
}

/// A virtqueue and the event by which the driver says that it put something in.
pub struct VirtQueue {
    /// Position and addresses of the rings.
    pub queue: Queue,
    /// Signalled when the driver notifies the queue.
    pub kick: EventFd,
}

/// How a device tells its driver that something happened.
pub trait Interrupt: Send + Sync {
    /// The device used buffers of a queue.
    ///
    /// # Errors
    ///
    /// The event could not be written: the VM is going away.
    fn used_buffers(&self) -> io::Result<()>;
}

/// A device that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver set up another number of queues than the device has.
    #[error("Driver set up {got} queues, the device has {expected}")]
    QueueCount {
        /// Queues of the device.
        expected: usize,
        /// Queues of the driver.
        got: usize,
    },
    /// The worker thread could not be made.
    #[error("Failed to start the worker thread {name}")]
    Worker {
        /// Name of the thread.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// An event descriptor could not be made or duplicated.
    #[error("Failed to make an event descriptor")]
    EventFd(#[source] io::Error),
    /// What it works on was lost with a worker that died.
    #[error("The device has lost what it works on")]
    Unavailable,
    /// The backend's own reason.
    #[error("Failed to start the backend")]
    Backend(#[source] io::Error),
}

/// What a backend knows cannot be saved or taken up.
#[derive(Debug, thiserror::Error)]
#[error("Device {device} cannot go on in a clone: {problem}")]
pub struct BackendStateError {
    device: String,
    problem: String,
}

impl BackendStateError {
    fn new(device: &str, problem: String) -> Self {
        Self {
            device: device.into(),
            problem,
        }
    }
}

/// Reads `data` at `offset` of a device's configuration space; what lies beyond it is zero.
pub(crate) fn read_config_space(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| config.get(offset..));
    if let Some(rest) = rest {
        let length = rest.len().min(data.len());
        data[..length].copy_from_slice(&rest[..length]);
    }
}
