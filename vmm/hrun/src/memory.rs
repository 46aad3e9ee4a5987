//! How much RAM a VM needs so that its guest sees a given amount.

use vmm::config::PAGE_SIZE;

/// What our guest kernel keeps whatever the size of its RAM (its text and data, the first
/// megabyte, fixed tables), in bytes. It belongs to one build of the kernel: calibrate it with
/// `hrun run --timeline`, which tells what the guest shows.
const FIXED: u64 = 6_778_880;

/// What it keeps for each CPU that there may be, its per-CPU area, in bytes.
const PER_VCPU: u64 = 42 * PAGE_SIZE;

/// RAM is described in sections (`SECTION_SIZE_BITS` of x86-64 is 27), in bytes...
const SECTION: u64 = 128 << 20;

/// ...each with a `struct page` of 64 bytes for every page, whether the section is full or not.
const PER_SECTION: u64 = SECTION / PAGE_SIZE * 64;

/// What a guest that is made bigger may lack more than is known, in bytes.
const SLACK: u64 = 1 << 20;

/// Where RAM makes room for devices, a multiple of the section, in bytes (`vmm::arch`).
const MMIO_GAP: u64 = 3 << 30;

/// The hash tables for directory entries and inodes get a bucket for two and for four pages, of 8
/// bytes: together 12 bytes for two pages...
const PER_BUCKET: u64 = 12;

/// ...of those that were free then: without what only the boot needs, which is free at the end, but
/// with what the tables themselves and the per-CPU areas take.
const FREED_LATER: u64 = 510 * PAGE_SIZE;

/// How finely the kernel counts them, in bytes.
const COUNTED: u64 = 1 << 20;

/// RAM of a VM with up to `max_vcpus` CPUs, in bytes, whose guest is to show `visible` bytes as
/// `MemTotal`.
///
/// `MemTotal` is what the kernel has handed to its page allocator: RAM less what was reserved
/// before. Measured with 64 to 512 MiB and with 1 and 2 CPUs, this is exact
/// to one page.
pub(crate) fn guest_ram_for(visible: u64, max_vcpus: u8) -> u64 {
    let per_cpu = u64::from(max_vcpus) * PER_VCPU;
    // Tables of twice the size may be what makes room for so many.
    let mut buckets = 1;
    let tables = loop {
        let tables = buckets * PER_BUCKET;
        let free = (visible + per_cpu + tables).saturating_sub(FREED_LATER);
        let needed = free.next_multiple_of(COUNTED) / PAGE_SIZE / 2;
        if needed <= buckets {
            break tables;
        }
        buckets *= 2;
    };
    let least = visible + FIXED + per_cpu + tables;
    let least = least.next_multiple_of(PAGE_SIZE);
    // Describing the descriptors may take one more section.
    let mut ram = least;
    loop {
        let needed = least + sections(ram) * PER_SECTION;
        if needed == ram {
            return ram;
        }
        ram = needed;
    }
}

/// RAM that a running guest is given, in bytes, to show `visible` bytes more. It is described by a
/// memory map of its own, at its beginning, and is not missed before it is used: what the guest
/// leaves over for want of exactness costs nothing.
pub(crate) fn growth_for(visible: u64) -> u64 {
    let most = visible + SLACK;
    let sections = most.div_ceil(SECTION - PER_SECTION);
    (sections * PER_SECTION + most).next_multiple_of(PAGE_SIZE)
}

/// Sections that hold this much RAM below and above the gap.
fn sections(ram: u64) -> u64 {
    let low = ram.min(MMIO_GAP);
    low.div_ceil(SECTION) + (ram - low).div_ceil(SECTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_show_what_was_asked_for_to_a_page() {
        // (RAM given, vCPUs, MemTotal shown), measured with Linux 6.12.117 of guest-kernel.
        for (ram, vcpus, visible) in [
            (76_648_448, 1, 67_506_176),
            (145_952_768, 1, 134_610_944),
            (282_464_256, 1, 268_828_672),
            (555_487_232, 1, 537_264_128),
            (282_636_288, 2, 268_828_672),
            (1_101_656_064 + (3 << 19), 4, 1 << 30),
        ] {
            let predicted = guest_ram_for(visible, vcpus);
            assert!(
                predicted.abs_diff(ram) <= PAGE_SIZE,
                "{predicted} for {ram}"
            );
        }
    }

    #[test]
    fn what_is_added_has_room_for_its_memory_map() {
        for visible in [4096, 126 << 20, 768 << 20, 64 << 30] {
            let growth = growth_for(visible);
            let described = growth.div_ceil(SECTION) * PER_SECTION;
            assert!(growth >= visible + described, "{visible}");
            assert!(growth <= visible + described + (4 << 20), "{visible}");
        }
    }

    #[test]
    fn ram_is_whole_pages_and_grows_with_what_is_asked_for() {
        let mut last = 0;
        for visible in [32u64 << 20, (32 << 20) + 1, 256 << 20, 3 << 30, 1 << 39] {
            for vcpus in [1, 2, 32] {
                let ram = guest_ram_for(visible, vcpus);
                assert!(ram.is_multiple_of(PAGE_SIZE));
                assert!(ram > last && ram > visible);
                last = if vcpus == 32 { visible } else { ram };
            }
        }
    }
}
