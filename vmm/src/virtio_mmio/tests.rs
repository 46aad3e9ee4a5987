use vm_memory::GuestAddress;

use super::*;
use crate::devices::ActivateError;

const FEATURE: u64 = 1 << 5;
const READY: u32 = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

/// A device that says what happens to it.
struct Recorder {
    log: Arc<Mutex<Vec<String>>>,
    queues: Vec<QueueState>,
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
        let verb = if context.resumed {
            "resume"
        } else {
            "activate"
        };
        self.log.lock().unwrap().push(format!("{verb} {sizes:?}"));
        self.queues = context.queues.iter().map(|q| q.queue.state()).collect();
        Ok(())
    }

    fn reset(&mut self) {
        self.log.lock().unwrap().push("reset".into());
    }

    fn suspend(&mut self) -> Option<Vec<QueueState>> {
        self.log.lock().unwrap().push("suspend".into());
        // As if a request had been served in each queue.
        let served = |queue: &QueueState| QueueState {
            next_avail: queue.next_avail + 1,
            next_used: queue.next_used + 1,
            ..*queue
        };
        Some(self.queues.iter().map(served).collect())
    }
}

fn device() -> (VirtioMmio, Arc<Mutex<Vec<String>>>) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let (recorder, log) = recorder();
    (VirtioMmio::new(recorder, memory).unwrap(), log)
}

fn recorder() -> (Box<Recorder>, Arc<Mutex<Vec<String>>>) {
    let log = Arc::new(Mutex::new(Vec::new()));
    let recorder = Recorder {
        log: Arc::clone(&log),
        queues: Vec::new(),
    };
    (Box::new(recorder), log)
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

fn running() -> (VirtioMmio, Arc<Mutex<Vec<String>>>) {
    let (mut device, log) = device();
    negotiate(&mut device, FEATURE | 1 << VIRTIO_F_VERSION_1);
    set_up_queues(&mut device);
    set(&mut device, VIRTIO_MMIO_STATUS, READY);
    (device, log)
}

#[test]
fn a_suspended_device_goes_on_where_it_stood() {
    let (mut device, log) = running();
    for times in 1..3 {
        let state = device.suspend().unwrap();
        let active: Vec<QueueState> = state
            .transport
            .active
            .unwrap()
            .into_iter()
            .map(Into::into)
            .collect();
        assert_eq!(active[0].next_avail, times);
        // Suspended twice is suspended once.
        assert_eq!(device.suspend().unwrap().transport.active.unwrap().len(), 2);
        device.resume();
        device.resume();
    }
    let log = log.lock().unwrap();
    let again = ["suspend", "resume [8, 8]"];
    assert_eq!(*log, [&["activate [8, 8]"][..], &again, &again].concat());
}

#[test]
fn a_clone_of_a_device_has_its_registers_and_is_told_what_it_missed() {
    let (mut original, _) = running();
    original.interrupt.trigger(VIRTIO_MMIO_INT_VRING).unwrap();
    let state = original.suspend().unwrap();
    let memory = original.memory.clone();

    let (recorder, log) = recorder();
    let mut clone = VirtioMmio::restore(recorder, memory, &state).unwrap();
    assert!(log.lock().unwrap().is_empty(), "nothing runs before resume");
    clone.resume();
    assert_eq!(*log.lock().unwrap(), ["resume [8, 8]"]);
    assert_eq!(get(&clone, VIRTIO_MMIO_STATUS), READY);
    assert_eq!(get(&clone, VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    assert_eq!(clone.interrupt.irq.read().unwrap(), 1, "repeated");
    assert!(clone.kicks.iter().all(|kick| kick.read().unwrap() == 1));
    let suspended = clone.suspend().unwrap();
    assert_eq!(suspended, original.suspend().unwrap().served_once_more());
}

impl DeviceState {
    fn served_once_more(mut self) -> Self {
        for queue in self.transport.active.iter_mut().flatten() {
            let state = QueueState::from(*queue);
            *queue = QueueState {
                next_avail: state.next_avail + 1,
                next_used: state.next_used + 1,
                ..state
            }
            .into();
        }
        self
    }
}

#[test]
fn a_device_that_was_never_active_stays_so() {
    let (mut original, _) = device();
    let state = original.suspend().unwrap();
    assert_eq!(state.transport.active, None);
    let (recorder, log) = recorder();
    let mut clone = VirtioMmio::restore(recorder, original.memory.clone(), &state).unwrap();
    clone.resume();
    assert!(log.lock().unwrap().is_empty());
}

#[test]
fn the_state_of_another_device_is_refused() {
    type Spoil = fn(&mut DeviceState);
    let cases: [Spoil; 6] = [
        |state| state.backend.push(1),
        |state| state.device_type = 43,
        |state| state.identity.push(1),
        |state| state.transport.queues.truncate(1),
        |state| state.transport.driver_features |= 1 << 6,
        |state| {
            let queue = QueueState {
                max_size: 4,
                ..state.transport.queues[0].into()
            };
            state.transport.queues[0] = queue.into();
        },
    ];
    for spoil in cases {
        let (mut original, _) = running();
        let mut state = original.suspend().unwrap();
        spoil(&mut state);
        let restored = VirtioMmio::restore(recorder().0, original.memory.clone(), &state);
        assert!(restored.is_err());
    }
}
