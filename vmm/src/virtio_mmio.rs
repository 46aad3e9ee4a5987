//! virtio over MMIO (virtio 1.2, section 4.2): one register window for each device.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use kvm_ioctls::{IoEventAddress, VmFd};
use virtio_bindings::{
    virtio_config::{
        VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
        VIRTIO_F_VERSION_1,
    },
    virtio_mmio::*,
    virtio_ring::VIRTIO_RING_F_EVENT_IDX,
};
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{
    arch::layout::{VIRTIO_MMIO, VIRTIO_MMIO_SIZE},
    devices::{ActivationContext, BackendStateError, Interrupt, VirtQueue, VirtioDevice},
    snapshot::{DeviceState, QueuePosition, TransportState},
};

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"hrun");

/// A device that could not be put on the bus.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// An event descriptor could not be made.
    #[error("Failed to make an event descriptor for a virtio device")]
    EventFd(#[source] io::Error),
    /// KVM did not take an event as interrupt or doorbell.
    #[error("Failed to register the events of a virtio device with KVM")]
    Register(#[source] kvm_ioctls::Error),
    /// The device asks for a queue size that virtio does not know.
    #[error("A virtio device has a queue of {0} entries")]
    QueueSize(u16),
    /// The saved state is of another device.
    #[error("The saved state of virtio device {0} does not fit the device in its place")]
    Misfit(u32),
    /// What the device itself knows cannot be saved or taken up.
    #[error(transparent)]
    Backend(#[from] BackendStateError),
    /// The saved state of a queue is none.
    #[error("The saved state of a virtqueue is invalid")]
    Queue(#[source] virtio_queue::Error),
}

impl TransportError {
    /// Whether it is a saved state that is at fault, not the host.
    #[must_use]
    pub fn is_of_snapshot(&self) -> bool {
        matches!(self, Self::Misfit(_) | Self::Backend(_) | Self::Queue(_))
    }
}

/// The interrupt of a device: a status register and an event that KVM turns into an interrupt.
struct MmioInterrupt {
    status: AtomicU32,
    irq: EventFd,
}

impl MmioInterrupt {
    fn trigger(&self, status: u32) -> io::Result<()> {
        self.status.fetch_or(status, Ordering::SeqCst);
        self.irq.write(1)
    }
}

impl Interrupt for MmioInterrupt {
    fn used_buffers(&self) -> io::Result<()> {
        self.trigger(VIRTIO_MMIO_INT_VRING)
    }
}

/// A virtio device and its registers.
pub struct VirtioMmio {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemoryMmap,
    interrupt: Arc<MmioInterrupt>,
    queues: Vec<Queue>,
    kicks: Vec<EventFd>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    active: bool,
    /// Where the queues stood when the device was suspended: it is to be resumed.
    suspended: Option<Vec<QueueState>>,
}

impl VirtioMmio {
    /// The registers of `device`, which works on `memory`.
    ///
    /// # Errors
    ///
    /// The host has no more event descriptors.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
    ) -> Result<Self, TransportError> {
        let event = || EventFd::new(EFD_NONBLOCK).map_err(TransportError::EventFd);
        let mut queues = Vec::new();
        let mut kicks = Vec::new();
        for &size in device.queue_sizes() {
            queues.push(Queue::new(size).map_err(|_| TransportError::QueueSize(size))?);
            kicks.push(event()?);
        }
        Ok(Self {
            device,
            memory,
            interrupt: Arc::new(MmioInterrupt {
                status: AtomicU32::new(0),
                irq: event()?,
            }),
            queues,
            kicks,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            active: false,
            suspended: None,
        })
    }

    /// The registers of `device` as they were when `state` was taken of another like it. It stands
    /// still until [`VirtioMmio::resume`].
    ///
    /// # Errors
    ///
    /// The state is of another device, or the host has no more event descriptors.
    pub fn restore(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        state: &DeviceState,
    ) -> Result<Self, TransportError> {
        let mut restored = Self::new(device, memory)?;
        let transport = &state.transport;
        let sizes = restored.queues.iter().map(Queue::max_size);
        let saved: Vec<QueueState> = transport.queues.iter().map(|q| (*q).into()).collect();
        if restored.device.device_type() != state.device_type
            || restored.device.identity() != state.identity
            || !sizes.eq(saved.iter().map(|queue| queue.max_size))
            || transport.driver_features & !restored.features() != 0
        {
            return Err(TransportError::Misfit(state.device_type));
        }
        restored.device.restore(&state.backend)?;
        for (queue, saved) in restored.queues.iter_mut().zip(saved) {
            *queue = Queue::try_from(saved).map_err(TransportError::Queue)?;
        }
        restored.status = transport.status;
        restored.device_features_select = transport.device_features_select;
        restored.driver_features_select = transport.driver_features_select;
        restored.driver_features = transport.driver_features;
        restored.queue_select = transport.queue_select;
        let interrupts = transport.interrupt_status;
        restored
            .interrupt
            .status
            .store(interrupts, Ordering::SeqCst);
        restored.suspended = transport
            .active
            .as_ref()
            .map(|active| active.iter().map(|queue| (*queue).into()).collect());
        Ok(restored)
    }

    /// Stops the device where it stands and tells all there is to know of it. vCPUs must be
    /// paused.
    ///
    /// # Errors
    ///
    /// No clone could go on from there. It is stopped all the same.
    pub fn suspend(&mut self) -> Result<DeviceState, TransportError> {
        if self.active {
            self.suspended = self.device.suspend();
            self.active = false;
            if self.suspended.is_none() {
                self.fail("its worker died");
            }
        }
        let positions = |states: Vec<QueueState>| -> Vec<QueuePosition> {
            states.into_iter().map(Into::into).collect()
        };
        Ok(DeviceState {
            device_type: self.device.device_type(),
            identity: self.device.identity().to_vec(),
            backend: self.device.save()?,
            transport: TransportState {
                status: self.status,
                device_features_select: self.device_features_select,
                driver_features_select: self.driver_features_select,
                driver_features: self.driver_features,
                queue_select: self.queue_select,
                interrupt_status: self.interrupt.status.load(Ordering::SeqCst),
                queues: positions(self.queues.iter().map(|queue| queue.state()).collect()),
                active: self.suspended.clone().map(positions),
            },
        })
    }

    /// Lets a suspended or restored device go on. What the driver has put into its queues
    /// meanwhile is taken up, and an interrupt that it may not have seen is repeated.
    pub fn resume(&mut self) {
        let Some(queues) = self.suspended.take() else {
            return;
        };
        match self.try_activate(queues, true) {
            Ok(()) => self.active = true,
            Err(message) => {
                self.fail(&message);
                return;
            }
        }
        for kick in &self.kicks {
            let _ = kick.write(1);
        }
        if self.interrupt.status.load(Ordering::SeqCst) != 0 {
            let _ = self.interrupt.trigger(0);
        }
    }

    /// Lets KVM turn the device's event into interrupt `gsi`, and the guest's writes to the
    /// doorbell of window `index` into events, without an exit to the VMM.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn register(&self, vm: &VmFd, index: usize, gsi: u32) -> Result<(), TransportError> {
        vm.register_irqfd(&self.interrupt.irq, gsi)
            .map_err(TransportError::Register)?;
        let doorbell = IoEventAddress::Mmio(window(index) + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY));
        (0u32..).zip(&self.kicks).try_for_each(|(queue, kick)| {
            vm.register_ioevent(kick, &doorbell, queue)
                .map_err(TransportError::Register)
        })
    }

    fn features(&self) -> u64 {
        self.device.features() | 1 << VIRTIO_F_VERSION_1
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            self.device.read_config(offset, data);
            return;
        }
        data.fill(0);
        if let (Ok(register), Ok(bytes)) = (u32::try_from(offset), <&mut [u8; 4]>::try_from(data)) {
            *bytes = self.read_register(register).to_le_bytes();
        }
    }

    fn read_register(&self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.features(), self.device_features_select),
            VIRTIO_MMIO_QUEUE_NUM_MAX => self
                .selected_queue()
                .map_or(0, |queue| u32::from(queue.max_size())),
            VIRTIO_MMIO_QUEUE_READY => self.selected_queue().map_or(0, |q| u32::from(q.ready())),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status.load(Ordering::SeqCst),
            VIRTIO_MMIO_STATUS => self.status,
            // No device changes its configuration, and none has shared memory (length -1).
            VIRTIO_MMIO_CONFIG_GENERATION => 0,
            VIRTIO_MMIO_SHM_LEN_LOW | VIRTIO_MMIO_SHM_LEN_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(register), Ok(bytes)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) {
            self.write_register(register, u32::from_le_bytes(bytes));
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.accept_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            VIRTIO_MMIO_QUEUE_NUM
            | VIRTIO_MMIO_QUEUE_READY
            | VIRTIO_MMIO_QUEUE_DESC_LOW
            | VIRTIO_MMIO_QUEUE_DESC_HIGH
            | VIRTIO_MMIO_QUEUE_AVAIL_LOW
            | VIRTIO_MMIO_QUEUE_AVAIL_HIGH
            | VIRTIO_MMIO_QUEUE_USED_LOW
            | VIRTIO_MMIO_QUEUE_USED_HIGH => self.configure_queue(register, value),
            // The doorbell rings through KVM; this is the rare write that it let through.
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(kick) = usize::try_from(value).ok().and_then(|i| self.kicks.get(i)) {
                    let _ = kick.write(1);
                }
            }
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.interrupt.status.fetch_and(!value, Ordering::SeqCst);
            }
            VIRTIO_MMIO_STATUS => self.set_status(value),
            _ => {}
        }
    }

    fn selected_queue(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    fn accept_features(&mut self, value: u32) {
        let shift = match self.driver_features_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            let mask = u64::from(u32::MAX) << shift;
            self.driver_features = self.driver_features & !mask | u64::from(value) << shift;
        }
    }

    /// Queues change only while the device is inactive: an active one owns them.
    fn configure_queue(&mut self, register: u32, value: u32) {
        if self.active {
            return;
        }
        let selected = usize::try_from(self.queue_select).ok();
        let Some(queue) = selected.and_then(|index| self.queues.get_mut(index)) else {
            return;
        };
        match register {
            VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value == 1),
            VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let mut value = value | self.status & VIRTIO_CONFIG_S_NEEDS_RESET;
        if value & VIRTIO_CONFIG_S_FEATURES_OK & !self.status != 0 {
            let version_1 = 1 << VIRTIO_F_VERSION_1;
            let unknown = self.driver_features & !self.features() != 0;
            if unknown || self.driver_features & version_1 == 0 {
                value &= !VIRTIO_CONFIG_S_FEATURES_OK;
            }
        }
        self.status = value;
        let ready = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
        if value & ready == ready && !self.active {
            self.activate();
        }
    }

    fn activate(&mut self) {
        // The transport's own queues stay as the driver configured them.
        let queues = self.queues.iter().map(|queue| queue.state()).collect();
        match self.try_activate(queues, false) {
            Ok(()) => self.active = true,
            Err(message) => self.fail(&message),
        }
    }

    /// The device cannot go on: the driver has to reset it.
    fn fail(&mut self, why: &str) {
        log::warn!("virtio device {}: {why}", self.device.device_type());
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        let _ = self.interrupt.trigger(VIRTIO_MMIO_INT_CONFIG);
    }

    fn try_activate(&mut self, states: Vec<QueueState>, resumed: bool) -> Result<(), String> {
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut queues = Vec::new();
        for (state, kick) in states.into_iter().zip(&self.kicks) {
            let state = QueueState {
                event_idx_enabled: event_idx,
                ..state
            };
            let queue = Queue::try_from(state).map_err(|err| err.to_string())?;
            if !queue.is_valid(&self.memory) {
                return Err("the driver left a queue unconfigured or outside of memory".into());
            }
            let kick = kick.try_clone().map_err(|err| err.to_string())?;
            queues.push(VirtQueue { queue, kick });
        }
        let context = ActivationContext {
            memory: self.memory.clone(),
            features: self.driver_features,
            queues,
            interrupt: Arc::clone(&self.interrupt) as Arc<dyn Interrupt>,
            resumed,
        };
        self.device.activate(context).map_err(|err| err.to_string())
    }

    fn reset(&mut self) {
        if self.active {
            self.device.reset();
            self.active = false;
        }
        self.suspended = None;
        for queue in &mut self.queues {
            queue.reset();
        }
        self.status = 0;
        self.driver_features = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
        self.interrupt.status.store(0, Ordering::SeqCst);
    }
}

impl Drop for VirtioMmio {
    fn drop(&mut self) {
        self.reset();
    }
}

/// All virtio-mmio devices of a VM, in their windows.
#[derive(Default)]
pub struct VirtioMmioBus {
    devices: Vec<Mutex<VirtioMmio>>,
}

impl VirtioMmioBus {
    /// Puts a device into the next window.
    pub fn push(&mut self, device: VirtioMmio) {
        self.devices.push(Mutex::new(device));
    }

    /// Stops all devices; vCPUs must be paused.
    ///
    /// # Errors
    ///
    /// No clone could go on from where one of them stands. Some may be stopped already.
    pub fn suspend(&self) -> Result<Vec<DeviceState>, TransportError> {
        self.devices
            .iter()
            .map(|device| lock(device).suspend())
            .collect()
    }

    /// Lets all devices go on.
    pub fn resume(&self) {
        for device in &self.devices {
            lock(device).resume();
        }
    }

    /// Number of devices.
    #[must_use]
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// The guest read from `address`. Where nothing is, it reads ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.at(address) {
            Some((device, offset)) => {
                lock(device).read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// The guest wrote to `address`.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.at(address) {
            lock(device).write(offset, data);
        }
    }

    fn at(&self, address: u64) -> Option<(&Mutex<VirtioMmio>, u64)> {
        let offset = address.checked_sub(VIRTIO_MMIO)?;
        let device = self
            .devices
            .get(usize::try_from(offset / VIRTIO_MMIO_SIZE).ok()?)?;
        Some((device, offset % VIRTIO_MMIO_SIZE))
    }
}

fn lock(device: &Mutex<VirtioMmio>) -> MutexGuard<'_, VirtioMmio> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the registers of device `index` begin.
#[must_use]
pub fn window(index: usize) -> u64 {
    VIRTIO_MMIO + index as u64 * VIRTIO_MMIO_SIZE
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => low(value),
        1 => high(value),
        _ => 0,
    }
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).expect("the upper half is masked out")
}

fn high(value: u64) -> u32 {
    low(value >> 32)
}

#[cfg(test)]
mod tests;
