//! virtio over MMIO (virtio 1.2, section 4.2): one register window for each device.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
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
    devices::{ActivationContext, Interrupt, VirtQueue, VirtioDevice},
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
        })
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
        match self.try_activate() {
            Ok(()) => self.active = true,
            Err(message) => {
                log::warn!("virtio device {}: {message}", self.device.device_type());
                self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
                let _ = self.interrupt.trigger(VIRTIO_MMIO_INT_CONFIG);
            }
        }
    }

    fn try_activate(&mut self) -> Result<(), String> {
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut queues = Vec::new();
        for (source, kick) in self.queues.iter().zip(&self.kicks) {
            if !source.is_valid(&self.memory) {
                return Err("the driver left a queue unconfigured or outside of memory".into());
            }
            // The transport's own queue stays as the driver configured it.
            let state = QueueState {
                event_idx_enabled: event_idx,
                ..source.state()
            };
            let queue = Queue::try_from(state).map_err(|err| err.to_string())?;
            let kick = kick.try_clone().map_err(|err| err.to_string())?;
            queues.push(VirtQueue { queue, kick });
        }
        let context = ActivationContext {
            memory: self.memory.clone(),
            features: self.driver_features,
            queues,
            interrupt: Arc::clone(&self.interrupt) as Arc<dyn Interrupt>,
        };
        self.device.activate(context).map_err(|err| err.to_string())
    }

    fn reset(&mut self) {
        if self.active {
            self.device.reset();
            self.active = false;
        }
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
                device
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// The guest wrote to `address`.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.at(address) {
            device
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .write(offset, data);
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
mod tests {
    use vm_memory::GuestAddress;

    use super::*;
    use crate::devices::ActivateError;

    const FEATURE: u64 = 1 << 5;
    const READY: u32 = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

    /// A device that says what happens to it.
    struct Recorder {
        log: Arc<Mutex<Vec<String>>>,
    }

    impl VirtioDevice for Recorder {
        fn device_type(&self) -> u32 {
            42
        }

        fn queue_sizes(&self) -> &[u16] {
            &[16, 8]
        }

        fn features(&self) -> u64 {
            FEATURE
        }

        fn read_config(&self, offset: u64, data: &mut [u8]) {
            crate::devices::read_config_space(b"config", offset, data);
        }

        fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError> {
            let sizes: Vec<_> = context
                .queues
                .iter()
                .map(|queue| queue.queue.size())
                .collect();
            self.log.lock().unwrap().push(format!("activate {sizes:?}"));
            Ok(())
        }

        fn reset(&mut self) {
            self.log.lock().unwrap().push("reset".into());
        }
    }

    fn device() -> (VirtioMmio, Arc<Mutex<Vec<String>>>) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let device = Box::new(Recorder {
            log: Arc::clone(&log),
        });
        (VirtioMmio::new(device, memory).unwrap(), log)
    }

    fn get(device: &VirtioMmio, register: u32) -> u32 {
        let mut data = [0; 4];
        device.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn set(device: &mut VirtioMmio, register: u32, value: u32) {
        device.write(register.into(), &value.to_le_bytes());
    }

    fn negotiate(device: &mut VirtioMmio, features: u64) {
        for (select, value) in [(0, low(features)), (1, high(features))] {
            set(device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            set(device, VIRTIO_MMIO_DRIVER_FEATURES, value);
        }
        set(device, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_FEATURES_OK);
    }

    fn set_up_queues(device: &mut VirtioMmio) {
        for (index, size, at) in [(0, 8, 0x1000), (1, 8, 0x4000)] {
            set(device, VIRTIO_MMIO_QUEUE_SEL, index);
            set(device, VIRTIO_MMIO_QUEUE_NUM, size);
            set(device, VIRTIO_MMIO_QUEUE_DESC_LOW, at);
            set(device, VIRTIO_MMIO_QUEUE_AVAIL_LOW, at + 0x1000);
            set(device, VIRTIO_MMIO_QUEUE_USED_LOW, at + 0x2000);
            set(device, VIRTIO_MMIO_QUEUE_READY, 1);
        }
    }

    #[test]
    fn a_driver_finds_the_device_and_activates_it_once() {
        let (mut device, log) = device();
        assert_eq!(get(&device, VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
        assert_eq!(get(&device, VIRTIO_MMIO_DEVICE_ID), 42);
        negotiate(&mut device, FEATURE | 1 << VIRTIO_F_VERSION_1);
        set_up_queues(&mut device);
        set(&mut device, VIRTIO_MMIO_STATUS, READY);
        set(&mut device, VIRTIO_MMIO_STATUS, READY);
        assert_eq!(*log.lock().unwrap(), ["activate [8, 8]"]);
        set(&mut device, VIRTIO_MMIO_STATUS, 0);
        assert_eq!(*log.lock().unwrap(), ["activate [8, 8]", "reset"]);
        assert_eq!(get(&device, VIRTIO_MMIO_STATUS), 0);
    }

    #[test]
    fn features_that_were_not_offered_are_refused() {
        for features in [FEATURE, 1 << 6 | 1 << VIRTIO_F_VERSION_1] {
            let (mut device, _) = device();
            negotiate(&mut device, features);
            assert_eq!(
                get(&device, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_FEATURES_OK,
                0
            );
        }
    }

    #[test]
    fn queues_outside_of_memory_ask_for_a_reset() {
        let (mut device, log) = device();
        negotiate(&mut device, 1 << VIRTIO_F_VERSION_1);
        set_up_queues(&mut device);
        set(&mut device, VIRTIO_MMIO_QUEUE_USED_HIGH, 1);
        set(&mut device, VIRTIO_MMIO_STATUS, READY);
        assert!(log.lock().unwrap().is_empty());
        let status = get(&device, VIRTIO_MMIO_STATUS);
        assert_eq!(
            status & VIRTIO_CONFIG_S_NEEDS_RESET,
            VIRTIO_CONFIG_S_NEEDS_RESET
        );
        assert_eq!(
            get(&device, VIRTIO_MMIO_INTERRUPT_STATUS),
            VIRTIO_MMIO_INT_CONFIG
        );
        set(
            &mut device,
            VIRTIO_MMIO_INTERRUPT_ACK,
            VIRTIO_MMIO_INT_CONFIG,
        );
        assert_eq!(get(&device, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    }

    #[test]
    fn odd_accesses_harm_nothing() {
        let (mut device, _) = device();
        for size in [0, 1, 2, 3, 8] {
            for offset in [0, 3, 0x34, 0x50, 0xfc, 0x100, 0x105, 0x106, 0xfff, u64::MAX] {
                device.write(offset, &vec![0xff; size]);
                device.read(offset, &mut vec![0; size]);
            }
        }
        set(&mut device, VIRTIO_MMIO_QUEUE_SEL, u32::MAX);
        assert_eq!(get(&device, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        set(&mut device, VIRTIO_MMIO_QUEUE_NUM, 3);
        set(&mut device, VIRTIO_MMIO_QUEUE_NOTIFY, 77);
        let mut config = [0; 4];
        device.read(0x104, &mut config);
        assert_eq!(config, *b"ig\0\0");
    }
}
