//! How much RAM a VM needs so that its guest sees a given amount.

use vmm::config::PAGE_SIZE;

/// What the guest kernel keeps for itself whatever the size of its RAM: its text and data, the
/// first megabyte, and fixed tables, in bytes.
const FIXED: u64 = 12 << 20;

/// What it keeps for each CPU (the per-CPU areas), in bytes.
const PER_VCPU: u64 = 192 << 10;

/// Bytes of RAM of which one is not counted: a `struct page` of 64 bytes describes 4096.
const PAGE_TABLE_RATIO: u64 = 64;

/// RAM of a VM, in bytes, whose guest is to show `visible` bytes as `MemTotal`.
///
/// `MemTotal` is what the kernel has handed to its page allocator: RAM less what was reserved
/// before. That is linear in good approximation: a fixed part, one for each CPU, and the page
/// descriptors in proportion to RAM:
///
/// ```text
/// visible = ram - ram / 64 - FIXED - vcpus * PER_VCPU
/// ```
///
/// The constants belong to our guest kernel; `Hello::memory_total` tells what it truly shows.
pub(crate) fn guest_ram_for(visible: u64, vcpus: u8) -> u64 {
    let kept = FIXED + u64::from(vcpus) * PER_VCPU;
    let ram = u128::from(visible + kept) * u128::from(PAGE_TABLE_RATIO)
        / u128::from(PAGE_TABLE_RATIO - 1);
    let ram = u64::try_from(ram).unwrap_or(u64::MAX - PAGE_SIZE);
    ram.next_multiple_of(PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_whole_pages_and_grows_with_what_is_asked_for() {
        let mut last = 0;
        for visible in [32u64 << 20, 256 << 20, 1 << 30, 64 << 30] {
            for vcpus in [1, 2, 32] {
                let ram = guest_ram_for(visible, vcpus);
                assert!(ram.is_multiple_of(PAGE_SIZE));
                assert!(ram > last);
                last = ram;
                let kept = ram / PAGE_TABLE_RATIO + FIXED + u64::from(vcpus) * PER_VCPU;
                assert!((ram - kept).abs_diff(visible) <= 2 * PAGE_SIZE);
            }
        }
    }
}
