//! The MP table: how a kernel without ACPI learns of its CPUs and its IOAPIC.
//!
//! Intel MultiProcessor Specification 1.4, chapter 4. The table lies where the extended BIOS data
//! area would be, which the kernel searches for it.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{EBDA, IOAPIC, LOCAL_APIC};

const SPEC_REVISION: u8 = 4;
const APIC_VERSION: u8 = 0x14;
const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURE_FPU: u32 = 1;
const CPU_FEATURE_APIC: u32 = 1 << 9;
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const ALL_APICS: u8 = 0xff;

/// Writes the table for `vcpus` CPUs and those up to `max_vcpus` that may come later, whose APIC
/// IDs are 0 to `max_vcpus - 1`, and the interrupts of devices. Only pins with a device are listed:
/// each costs the kernel 15,000 instructions.
///
/// # Errors
///
/// The guest has no memory there.
pub fn write(
    memory: &GuestMemoryMmap,
    vcpus: u8,
    max_vcpus: u8,
    irqs: Range<u32>,
) -> Result<(), GuestMemoryError> {
    let header = u32::try_from(EBDA.0).expect("the table lies low") + 16;
    memory.write_slice(&floating_pointer(header), EBDA)?;
    memory.write_slice(
        &table(vcpus, max_vcpus, irqs),
        GuestAddress(u64::from(header)),
    )
}

fn floating_pointer(table: u32) -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    bytes.extend(table.to_le_bytes());
    bytes.extend([1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut bytes, 10);
    bytes
}

fn table(vcpus: u8, max_vcpus: u8, irqs: Range<u32>) -> Vec<u8> {
    let ioapic = max_vcpus;
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for id in 0..max_vcpus {
        let enabled = if id < vcpus { CPU_ENABLED } else { 0 };
        let boot = if id == 0 { CPU_BOOT } else { 0 };
        let mut cpu = vec![0, id, APIC_VERSION, enabled | boot];
        cpu.extend(CPU_SIGNATURE.to_le_bytes());
        cpu.extend((CPU_FEATURE_FPU | CPU_FEATURE_APIC).to_le_bytes());
        cpu.extend([0; 8]);
        entries.push(cpu);
    }
    entries.push(b"\x01\x00ISA   ".to_vec());
    let mut io = vec![2, ioapic, APIC_VERSION, 1];
    io.extend(IOAPIC.to_le_bytes());
    entries.push(io);
    // Every pin is edge-triggered and active-high, as is the ISA bus: flags 0 conform to it.
    for irq in irqs {
        let irq = u8::try_from(irq).expect("an IOAPIC has 24 pins");
        entries.push(vec![3, INT, 0, 0, 0, irq, ioapic, irq]);
    }
    entries.push(vec![4, EXT_INT, 0, 0, 0, 0, 0, 0]);
    entries.push(vec![4, NMI, 0, 0, 0, 0, ALL_APICS, 1]);

    let count = u16::try_from(entries.len()).expect("at most 32 CPUs and 29 others");
    let body = entries.concat();
    let mut bytes = b"PCMP".to_vec();
    let length = u16::try_from(44 + body.len()).expect("at most 44 + 32 * 20 + 29 * 8 bytes");
    bytes.extend(length.to_le_bytes());
    bytes.extend([SPEC_REVISION, 0]);
    bytes.extend(b"HRUN    HRUN        ");
    bytes.extend([0; 6]);
    bytes.extend(count.to_le_bytes());
    bytes.extend(LOCAL_APIC.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    set_checksum(&mut bytes, 7);
    bytes
}

/// Makes all bytes add up to zero.
fn set_checksum(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[at] = sum.wrapping_neg();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::layout::{FIRST_IRQ, HIGH_RAM, LAST_IRQ};

    #[test]
    fn tables_add_up_to_zero_and_fit_below_the_bios() {
        for vcpus in [1, 2, crate::config::MAX_VCPUS] {
            let table = table(1, vcpus, FIRST_IRQ..LAST_IRQ + 1);
            let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum(&table), 0);
            assert_eq!(sum(&floating_pointer(0x9_fc10)), 0);
            assert_eq!(
                table[4..6],
                u16::try_from(table.len()).unwrap().to_le_bytes()
            );
            assert!(EBDA.0 + 16 + (table.len() as u64) < HIGH_RAM.0);
            assert!(
                table.len() + 16 < 1024,
                "the kernel searches the first KiB of the area"
            );
        }
    }
    #[test]
    fn cpus_that_may_come_later_are_listed_as_disabled() {
        let table = table(1, 3, FIRST_IRQ..FIRST_IRQ);
        let flags: Vec<u8> = table[44..].chunks(20).take(3).map(|cpu| cpu[3]).collect();
        assert_eq!(flags, [CPU_ENABLED | CPU_BOOT, 0, 0]);
    }
}
