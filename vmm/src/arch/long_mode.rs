//! A vCPU at the 64-bit entry point: GDT, identity page tables and registers.
//!
//! The Linux/x86 64-bit boot protocol asks for long mode, paging with an identity map of the
//! kernel, flat segments `__BOOT_CS` (0x10) and `__BOOT_DS` (0x18), interrupts off, and the zero
//! page in RSI.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{GDT, PAGE_TABLES};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;

const PTE_PRESENT: u64 = 1;
const PTE_WRITABLE: u64 = 1 << 1;
const PTE_HUGE: u64 = 1 << 7;
const TABLE_SIZE: u64 = 0x1000;
const ENTRIES: u64 = 512;

/// Flat descriptors: null, null, `__BOOT_CS`, `__BOOT_DS`, task state.
const DESCRIPTORS: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x008f_8b00_0000_ffff,
];
const BOOT_CS: u16 = 2 * 8;
const BOOT_DS: u16 = 3 * 8;
const BOOT_TSS: u16 = 4 * 8;

/// Where [`write_tables`] writes, as (address, bytes).
pub const TABLES: [(GuestAddress, usize); 4] = [
    (GDT, DESCRIPTORS.len() * 8),
    (PAGE_TABLES, 8),
    (GuestAddress(PAGE_TABLES.0 + TABLE_SIZE), 8),
    (GuestAddress(PAGE_TABLES.0 + 2 * TABLE_SIZE), 0x1000),
];

/// Writes the GDT and page tables that map the first GiB to itself.
///
/// # Errors
///
/// The guest has no memory there.
pub fn write_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let gdt: Vec<u8> = DESCRIPTORS
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect();
    memory.write_slice(&gdt, GDT)?;

    let pml4 = PAGE_TABLES.0;
    let (pdpt, directory) = (pml4 + TABLE_SIZE, pml4 + 2 * TABLE_SIZE);
    let link = PTE_PRESENT | PTE_WRITABLE;
    memory.write_obj(pdpt | link, GuestAddress(pml4))?;
    memory.write_obj(directory | link, GuestAddress(pdpt))?;
    let pages: Vec<u8> = (0..ENTRIES)
        .flat_map(|index| (index << 21 | link | PTE_HUGE).to_le_bytes())
        .collect();
    memory.write_slice(&pages, GuestAddress(directory))
}

/// Special registers for long mode on the tables of [`write_tables`].
pub fn set_sregs(sregs: &mut kvm_sregs) {
    let code = segment(BOOT_CS, 0xb, true);
    let data = segment(BOOT_DS, 0x3, false);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        s: 0,
        db: 0,
        ..segment(BOOT_TSS, 0xb, false)
    };
    sregs.gdt.base = GDT.0;
    sregs.gdt.limit = u16::try_from(DESCRIPTORS.len() * 8 - 1).expect("the GDT has five entries");
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = PAGE_TABLES.0;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
}

/// General registers that enter the kernel at `entry` with its zero page.
#[must_use]
pub fn regs(entry: GuestAddress, zero_page: GuestAddress) -> kvm_regs {
    kvm_regs {
        rflags: RFLAGS_RESERVED,
        rip: entry.0,
        rsi: zero_page.0,
        ..Default::default()
    }
}

fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}
