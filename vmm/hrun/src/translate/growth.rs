//! VMs that are clones of a template for less memory or fewer CPUs, made bigger.

use agent_protocol::{Action, Growth, MemoryGrowth};
use vmm::{
    arch::layout::{AFTER_GAP, MMIO_GAP},
    config::VmConfig,
};

use crate::{
    memory::{growth_for, guest_ram_for},
    template::Class,
};

/// The same VM as a clone of a template for VMs of class `from`, made bigger.
pub(crate) fn grown(config: VmConfig, from: Class, class: Class) -> VmConfig {
    let more = class.memory.saturating_sub(from.memory);
    let growth = if more == 0 { 0 } else { growth_for(more) };
    VmConfig {
        memory: template_ram(from) + growth,
        ..config
    }
}

/// What makes a clone of the template the VM that was asked for.
pub(crate) fn growth(from: Class, class: Class) -> Action {
    let memory = MemoryGrowth {
        total: class.memory,
        start: AFTER_GAP,
    };
    Action::Grow(Growth {
        cpus: class.cpus.into(),
        memory: (class.memory > from.memory).then_some(memory),
    })
}

/// RAM of a template and of its clones.
pub(super) fn template_ram(class: Class) -> u64 {
    guest_ram_for(class.memory, class.max_cpus())
}

/// Whether clones of templates of this class can have more memory.
pub(crate) fn has_room_to_grow(class: Class) -> bool {
    template_ram(class) <= MMIO_GAP
}
