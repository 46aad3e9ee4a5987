//! Everything that KVM knows about a vCPU, taken out and put back.

use kvm_bindings::{
    Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

/// Time stamp counter.
pub const MSR_IA32_TSC: u32 = 0x10;

/// A vCPU that stands still.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    /// What the guest was told to be the CPU: a vCPU with the same CPUID takes the rest.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debugregs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl VcpuState {
    /// Where its time stamp counter stood.
    #[must_use]
    pub fn tsc(&self) -> Option<u64> {
        let tsc = self.msrs.iter().find(|msr| msr.index == MSR_IA32_TSC);
        tsc.map(|msr| msr.data)
    }
}

/// A call that failed, and why.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A KVM call.
    #[error("Failed to {call}")]
    Kvm {
        /// Which.
        call: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// A model-specific register.
    #[error("KVM does not take the value {value:#x} for MSR {index:#x}")]
    Msr {
        /// Which.
        index: u32,
        /// What it was to be.
        value: u64,
    },
}

fn failed(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Kvm { call, source }
}

/// Takes the state of a vCPU that has left KVM_RUN for good: an exit that is half done would be
/// completed by the next KVM_RUN only.
///
/// # Errors
///
/// KVM refuses.
pub fn save(kvm: &Kvm, vcpu: &VcpuFd, cpuid: &[kvm_cpuid_entry2]) -> Result<VcpuState, StateError> {
    // KVM may change what it gives as a result of reading the multiprocessing state: it is first
    // (Documentation/virt/kvm/api.rst, KVM_GET_MP_STATE).
    let mp_state = vcpu.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
    Ok(VcpuState {
        mp_state,
        cpuid: cpuid.to_vec(),
        regs: vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?,
        sregs: vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?,
        xsave: vcpu.get_xsave().map_err(failed("KVM_GET_XSAVE"))?,
        xcrs: vcpu.get_xcrs().map_err(failed("KVM_GET_XCRS"))?,
        debugregs: vcpu.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?,
        lapic: vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?,
        msrs: get_msrs(kvm, vcpu)?,
        events: vcpu
            .get_vcpu_events()
            .map_err(failed("KVM_GET_VCPU_EVENTS"))?,
    })
}

/// Gives a vCPU that has this CPUID the rest of the state.
///
/// # Errors
///
/// KVM refuses a part of it.
pub fn restore(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), StateError> {
    vcpu.set_mp_state(state.mp_state)
        .map_err(failed("KVM_SET_MP_STATE"))?;
    vcpu.set_regs(&state.regs).map_err(failed("KVM_SET_REGS"))?;
    vcpu.set_sregs(&state.sregs)
        .map_err(failed("KVM_SET_SREGS"))?;
    // XCR0 says which parts of the XSAVE area count.
    vcpu.set_xcrs(&state.xcrs).map_err(failed("KVM_SET_XCRS"))?;
    // SAFETY: the state has the layout of KVM_SET_XSAVE, which reads 4096 bytes unless the process
    // has asked for features whose state is larger, which this one never does.
    unsafe { vcpu.set_xsave(&state.xsave) }.map_err(failed("KVM_SET_XSAVE"))?;
    vcpu.set_debug_regs(&state.debugregs)
        .map_err(failed("KVM_SET_DEBUGREGS"))?;
    // The timer's mode is in the LAPIC, its deadline in an MSR: that comes after it.
    vcpu.set_lapic(&state.lapic)
        .map_err(failed("KVM_SET_LAPIC"))?;
    set_msrs(vcpu, &state.msrs)?;
    vcpu.set_vcpu_events(&state.events)
        .map_err(failed("KVM_SET_VCPU_EVENTS"))
}

/// Reads all MSRs that KVM says are worth saving.
fn get_msrs(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>, StateError> {
    let list = kvm
        .get_msr_index_list()
        .map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
    let mut saved = Vec::new();
    let mut left = list.as_slice();
    while !left.is_empty() {
        let entries: Vec<_> = left.iter().map(|&index| entry(index, 0)).collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| StateError::Kvm {
            call: "KVM_GET_MSRS",
            source: kvm_ioctls::Error::new(libc::E2BIG),
        })?;
        let read = vcpu.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
        saved.extend_from_slice(&msrs.as_slice()[..read]);
        // It stops at one that this vCPU does not have: nothing to save.
        left = left.get(read + 1..).unwrap_or_default();
    }
    Ok(saved)
}

fn set_msrs(vcpu: &VcpuFd, saved: &[kvm_msr_entry]) -> Result<(), StateError> {
    let mut left = saved;
    while !left.is_empty() {
        let msrs = Msrs::from_entries(left).map_err(|_| StateError::Kvm {
            call: "KVM_SET_MSRS",
            source: kvm_ioctls::Error::new(libc::E2BIG),
        })?;
        let written = vcpu.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
        let Some(refused) = left.get(written) else {
            return Ok(());
        };
        // One that cannot be written is no harm if it has its value already.
        if current(vcpu, refused.index) != Some(refused.data) {
            return Err(StateError::Msr {
                index: refused.index,
                value: refused.data,
            });
        }
        left = &left[written + 1..];
    }
    Ok(())
}

fn current(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    let mut msrs = Msrs::from_entries(&[entry(index, 0)]).ok()?;
    match vcpu.get_msrs(&mut msrs) {
        Ok(1) => Some(msrs.as_slice()[0].data),
        _ => None,
    }
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    }
}
