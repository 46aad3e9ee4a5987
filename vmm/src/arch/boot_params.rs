//! The zero page: how the kernel learns of its memory, its command line and its initramfs.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{CMDLINE, CMDLINE_MAX, EBDA, HIGH_RAM, ZERO_PAGE};

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448; // "HdrS"
/// Boot protocol 2.12, the first with a 64-bit entry point.
const PROTOCOL: u16 = 0x020c;
/// No loader with a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;
const LOADED_HIGH: u8 = 1;
const E820_RAM: u32 = 1;

/// An initramfs in guest memory.
#[derive(Debug, Clone, Copy)]
pub struct Initramfs {
    /// Where it begins.
    pub address: GuestAddress,
    /// Its length in bytes.
    pub size: u32,
}

/// Writes the zero page and the command line.
///
/// # Errors
///
/// The guest has no memory there.
///
/// # Panics
///
/// `cmdline` is longer than [`CMDLINE_MAX`]: the builder checks it.
pub fn write(
    memory: &GuestMemoryMmap,
    cmdline: &str,
    initramfs: Option<Initramfs>,
    ram: &[(GuestAddress, u64)],
) -> Result<(), GuestMemoryError> {
    assert!(
        cmdline.len() < CMDLINE_MAX,
        "the builder checks the command line's length"
    );
    memory.write_slice(cmdline.as_bytes(), CMDLINE)?;
    memory.write_obj(0u8, GuestAddress(CMDLINE.0 + cmdline.len() as u64))?;

    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.version = PROTOCOL;
    params.hdr.type_of_loader = UNDEFINED_LOADER;
    params.hdr.loadflags = LOADED_HIGH;
    params.hdr.cmd_line_ptr = u32::try_from(CMDLINE.0).expect("the command line lies low");
    params.hdr.cmdline_size = u32::try_from(CMDLINE_MAX - 1).expect("a constant of 2 KiB");
    if let Some(initramfs) = initramfs {
        params.hdr.ramdisk_image =
            u32::try_from(initramfs.address.0).expect("the loader keeps it below 4 GiB");
        params.hdr.ramdisk_size = initramfs.size;
    }
    let mut entries = e820(ram);
    params.e820_entries = u8::try_from(entries.len()).expect("three entries at most");
    entries.resize(params.e820_table.len(), boot_e820_entry::default());
    params.e820_table.copy_from_slice(&entries);
    memory.write_obj(params, ZERO_PAGE)
}

/// The memory map: everything but the BIOS area, in which the MP table lies.
fn e820(ram: &[(GuestAddress, u64)]) -> Vec<boot_e820_entry> {
    let usable = |addr, size| boot_e820_entry {
        addr,
        size,
        type_: E820_RAM,
    };
    let mut entries = vec![usable(0, EBDA.0)];
    for &(start, size) in ram {
        let begin = start.0.max(HIGH_RAM.0);
        entries.push(usable(begin, start.0 + size - begin));
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::layout;

    #[test]
    fn memory_map_hides_only_the_bios_area() {
        let memory = 4 << 30;
        let entries = e820(&layout::ram(memory));
        let total: u64 = entries.iter().map(|entry| entry.size).sum();
        assert_eq!(total, memory - (HIGH_RAM.0 - EBDA.0));
        assert_eq!({ entries[1].addr }, HIGH_RAM.0);
        assert_eq!({ entries[2].addr }, layout::AFTER_GAP);
    }
}
