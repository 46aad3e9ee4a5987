//! The guest's physical address space.
//!
//! | from | what |
//! |---|---|
//! | 0x0500 | GDT of the first vCPU |
//! | 0x7000 | zero page (`struct boot_params`) |
//! | 0x8000 | how the kernel describes a fresh page, for memory that comes later |
//! | 0x9000 | page tables of the first vCPU |
//! | 0x2_0000 | kernel command line |
//! | 0x9_fc00 | MP table, in the place of the extended BIOS data area |
//! | 0x10_0000 | RAM for the kernel, up to [`MMIO_GAP`] |
//! | 0xd000_0000 | virtio-mmio devices, a page each |
//! | 0xfec0_0000 | IOAPIC, local APICs, KVM's own pages |
//! | 0x1_0000_0000 | the rest of the RAM, or that which a restored VM has in addition |
//!
//! The kernel's part of it is the Linux/x86 boot protocol (Documentation/arch/x86/boot.rst).

use vm_memory::GuestAddress;

/// Global descriptor table of the first vCPU.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// `struct boot_params`.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Where the kernel leaves its description of a page that nobody has used (its `struct page`), if it
/// is asked to by the command line.
pub const PAGE_DESCRIPTOR: GuestAddress = GuestAddress(0x8000);
/// Size of that description, in bytes.
pub const PAGE_DESCRIPTOR_SIZE: usize = 64;
/// Top page table; the lower ones follow it.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// Kernel command line.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Longest kernel command line with its terminating zero, in bytes: x86's `COMMAND_LINE_SIZE`.
pub const CMDLINE_MAX: usize = 2048;
/// End of the conventional memory that the kernel may use.
pub const EBDA: GuestAddress = GuestAddress(0x9_fc00);
/// Where memory above the BIOS area begins.
pub const HIGH_RAM: GuestAddress = GuestAddress(0x10_0000);

/// Start of the hole in the RAM that leaves 32-bit space to devices.
pub const MMIO_GAP: u64 = 0xc000_0000;
/// Where the RAM goes on behind the hole.
pub const AFTER_GAP: u64 = 1 << 32;

/// First virtio-mmio device.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Size of a virtio-mmio device's window, in bytes.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;

/// IOAPIC of KVM's in-kernel interrupt controller.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages for KVM's task state segment on hosts without unrestricted guests.
pub const KVM_TSS: usize = 0xfffb_d000;

/// First GSI for devices. Below it the kernel expects the PC's own (timer, keyboard, serial).
pub const FIRST_IRQ: u32 = 5;
/// Last pin of the IOAPIC.
pub const LAST_IRQ: u32 = 23;
/// Most virtio-mmio devices of a VM: each has an interrupt of its own.
pub const MAX_DEVICES: usize = (LAST_IRQ - FIRST_IRQ + 1) as usize;

/// The ranges of RAM, as (start, length) in bytes, for a guest with this much memory.
#[must_use]
pub fn ram(memory: u64) -> Vec<(GuestAddress, u64)> {
    let low = memory.min(MMIO_GAP);
    let mut ranges = vec![(GuestAddress(0), low)];
    if memory > low {
        ranges.push((GuestAddress(AFTER_GAP), memory - low));
    }
    ranges
}

/// Where a VM that was saved with `saved` bytes of RAM has the rest of its `memory` bytes, as
/// (start, length): above the hole, if the saved RAM does not go that far.
#[must_use]
pub fn growth(saved: u64, memory: u64) -> Option<(GuestAddress, u64)> {
    let length = memory.checked_sub(saved).filter(|length| *length > 0)?;
    (saved <= MMIO_GAP).then_some((GuestAddress(AFTER_GAP), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_gap_and_adds_up() {
        assert_eq!(ram(128 << 20), [(GuestAddress(0), 128 << 20)]);
        let ranges = ram(5 << 30);
        assert_eq!(ranges[0], (GuestAddress(0), MMIO_GAP));
        assert_eq!(ranges[1].0, GuestAddress(AFTER_GAP));
        assert_eq!(ranges.iter().map(|range| range.1).sum::<u64>(), 5 << 30);
    }

    #[test]
    fn ram_grows_above_the_gap_if_there_is_none_yet() {
        let behind = (GuestAddress(AFTER_GAP), 1 << 30);
        assert_eq!(growth(1 << 30, 2 << 30), Some(behind));
        assert_eq!(growth(MMIO_GAP, MMIO_GAP + (1 << 30)), Some(behind));
        assert_eq!(growth(4 << 30, 5 << 30), None);
        assert_eq!(growth(1 << 30, 1 << 30), None);
        assert_eq!(growth(2 << 30, 1 << 30), None);
    }
}
