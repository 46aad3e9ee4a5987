//! What CPUID tells the guest: the host's answers, with this VM's topology.
//!
//! On software KVM the guest's user mode runs CPUID natively and sees the host's answers anyway;
//! what must be hidden there is hidden by the kernel command line (see [`crate::host_kind`]).

use kvm_bindings::CpuId;

const LEAF_FEATURES: u32 = 0x1;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;

const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Adapts what KVM supports to vCPU `id` of `vcpus`, each a core of its own in one package.
pub fn adapt(cpuid: &mut CpuId, id: u8, vcpus: u8) {
    let (id, vcpus) = (u32::from(id), u32::from(vcpus));
    let id_bits = vcpus.next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            LEAF_FEATURES => {
                entry.ecx |= ECX_TSC_DEADLINE | ECX_HYPERVISOR;
                entry.ebx = entry.ebx & 0xffff | (1 << id_bits) << 16 | id << 24;
                entry.edx = if vcpus > 1 {
                    entry.edx | EDX_HTT
                } else {
                    entry.edx & !EDX_HTT
                };
            }
            LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => {
                let (shift, count, level) = match entry.index {
                    0 => (0, 1, LEVEL_SMT),
                    1 => (id_bits, vcpus, LEVEL_CORE),
                    _ => (0, 0, 0),
                };
                (entry.eax, entry.ebx) = (shift, count);
                entry.ecx = entry.index & 0xff | level << 8;
                entry.edx = id;
            }
            LEAF_AMD_SIZES => entry.ecx = entry.ecx & !0xf0ff | id_bits << 12 | (vcpus - 1),
            LEAF_AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
            _ => {}
        }
    }
}
