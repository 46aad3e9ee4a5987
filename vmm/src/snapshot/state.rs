//! What a state file holds: plain data, and nothing of the host's own.

use kvm_bindings::{kvm_clock_data, kvm_irqchip};
use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;

use super::MemoryMap;
use crate::{api::HostKind, arch::vcpu_state::VcpuState};

/// A VM at a moment in which nothing of it runs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Version of the VMM that wrote it: another one may have other devices.
    pub vmm: String,
    /// The kind of host that its kernel was told to expect.
    pub host_kind: HostKind,
    /// Guest RAM, in bytes.
    pub memory: u64,
    /// Where that is not zero.
    pub memory_map: MemoryMap,
    /// How many vCPUs its kernel is prepared for.
    pub max_vcpus: u8,
    /// vCPUs in the order of their numbers.
    pub vcpus: Vec<VcpuState>,
    /// PIC master, PIC slave and IOAPIC.
    pub irqchips: Vec<kvm_irqchip>,
    /// kvmclock.
    pub clock: kvm_clock_data,
    /// Devices in the order of their windows.
    pub devices: Vec<DeviceState>,
}

/// A virtio device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Device ID (virtio 1.2, section 5).
    pub device_type: u32,
    /// Its configuration space, if that must be the same again.
    pub identity: Vec<u8>,
    /// What else its backend must know again, in a form of its own.
    pub backend: Vec<u8>,
    /// Its registers.
    pub transport: TransportState,
}

/// Registers of a virtio-mmio device (virtio 1.2, section 4.2.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// `Status`.
    pub status: u32,
    /// `DeviceFeaturesSel`.
    pub device_features_select: u32,
    /// `DriverFeaturesSel`.
    pub driver_features_select: u32,
    /// What the driver accepted.
    pub driver_features: u64,
    /// `QueueSel`.
    pub queue_select: u32,
    /// `InterruptStatus`.
    pub interrupt_status: u32,
    /// The queues as the driver configured them.
    pub queues: Vec<QueuePosition>,
    /// The same queues where the device stands in them, if it is active.
    pub active: Option<Vec<QueuePosition>>,
}

/// A virtqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePosition {
    max_size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx_enabled: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl From<QueueState> for QueuePosition {
    fn from(state: QueueState) -> Self {
        Self {
            max_size: state.max_size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx_enabled,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }
}

impl From<QueuePosition> for QueueState {
    fn from(position: QueuePosition) -> Self {
        Self {
            max_size: position.max_size,
            next_avail: position.next_avail,
            next_used: position.next_used,
            event_idx_enabled: position.event_idx_enabled,
            size: position.size,
            ready: position.ready,
            desc_table: position.desc_table,
            avail_ring: position.avail_ring,
            used_ring: position.used_ring,
        }
    }
}
