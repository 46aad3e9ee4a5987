//! Tells the two kinds of KVM apart by running guest kernel code, and knows what follows.
//!
//! A module's name or a CPU flag would tell what a host looks like; running a few instructions
//! at CPL 0 tells how it behaves. On software KVM they are interpreted: `popcnt` ends in
//! KVM_EXIT_INTERNAL_ERROR, or, should the interpreter learn it, a loop takes far too long.
//! The probe runs on the VM's own first vCPU before its boot, so it costs no VM of its own.

use std::{
    io,
    time::{Duration, Instant},
};

use kvm_ioctls::VcpuExit;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::{
    api::HostKind,
    arch::long_mode,
    vcpu::{Vcpu, VcpuError},
};

/// Where the probe's code lies; the kernel overwrites it later.
const CODE: GuestAddress = GuestAddress(0x10_0000);
/// A port that no device has.
const PORT: u8 = 0xf4;
/// Runs of the loop; the shortest counts, so that a busy host does not look like a slow guest.
const RUNS: u32 = 3;
/// 1000 rounds of the loop take 2 us natively and at least 400 us interpreted.
const NATIVE_AT_MOST: Duration = Duration::from_micros(150);

/// `popcnt eax, eax; out PORT, al; mov ecx, 1000; 1: dec ecx; jnz 1b; out PORT, al; hlt`
const PROBE: [u8; 18] = [
    0xf3, 0x0f, 0xb8, 0xc0, // popcnt eax, eax
    0xe6, PORT, // out PORT, al
    0xb9, 0xe8, 0x03, 0x00, 0x00, // mov ecx, 1000
    0xff, 0xc9, // dec ecx
    0x75, 0xfc, // jnz -4
    0xe6, PORT, // out PORT, al
    0xf4, // hlt
];

/// Makes our kernel hide from itself what the interpreter does not know (cmpxchg16b, clac, stac,
/// xsave, popcnt) or runs byte by byte (rep stosb, rep movsb), and leave out what it cannot do:
/// see guest-kernel/patches.
///
/// Its clock source is kvmclock: the TSC there is the host's own, of which neither a snapshot nor a
/// host that was restarted knows anything.
///
/// The other words make it do less: changes of mounts wait for RCU, and not for the next tick but for
/// an expedited grace period; kernel memory is not charged to cgroups, as the VM bounds it. Measured
/// with a tick of 100 ms instead of 50: a start takes 14 % less CPU time.
const SOFTWARE_CMDLINE: &str = "emulated_kernel clocksource=kvm-clock no-kvmapf \
    rcupdate.rcu_expedited=1 cgroup_disable=memory";

/// Failure to find out.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The guest has no memory where the probe needs it.
    #[error("Failed to write the host probe into guest memory")]
    Memory(#[source] GuestMemoryError),
    /// A vCPU register could not be set.
    #[error("Failed to prepare the vCPU for the host probe")]
    Vcpu(#[source] VcpuError),
    /// KVM did not run the probe.
    #[error("Failed to run the host probe")]
    Run(#[source] kvm_ioctls::Error),
    /// The probe ended in a way that neither kind of host is known for.
    #[error("The host probe ended unexpectedly: {0}")]
    Unexpected(String),
}

impl HostKind {
    /// What a kernel needs on its command line on such a host, beyond what every host needs.
    #[must_use]
    pub fn cmdline(self) -> &'static str {
        match self {
            HostKind::Hardware => "",
            HostKind::Software => SOFTWARE_CMDLINE,
        }
    }
}

/// Finds out on a vCPU that has not been started, and leaves its events as they were; registers
/// must be set anew.
///
/// # Errors
///
/// KVM fails in a way that neither kind of host is known for.
pub fn probe(vcpu: &mut Vcpu, memory: &GuestMemoryMmap) -> Result<HostKind, ProbeError> {
    long_mode::write_tables(memory).map_err(ProbeError::Memory)?;
    memory
        .write_slice(&PROBE, CODE)
        .map_err(ProbeError::Memory)?;
    let events = vcpu.fd().get_vcpu_events().map_err(ProbeError::Run)?;
    let mut fastest = Duration::MAX;
    let mut kind = None;
    for _ in 0..RUNS {
        vcpu.enter(CODE, GuestAddress(0))
            .map_err(ProbeError::Vcpu)?;
        if !run_to_out(vcpu)? {
            kind = Some(HostKind::Software);
            break;
        }
        let start = Instant::now();
        if !run_to_out(vcpu)? {
            return Err(ProbeError::Unexpected("it failed in its loop".into()));
        }
        fastest = fastest.min(start.elapsed());
    }
    // An emulation failure leaves #UD pending for the guest.
    vcpu.fd()
        .set_vcpu_events(&events)
        .map_err(ProbeError::Run)?;
    memory
        .write_slice(&[0; PROBE.len()], CODE)
        .map_err(ProbeError::Memory)?;
    Ok(kind.unwrap_or(if fastest <= NATIVE_AT_MOST {
        HostKind::Hardware
    } else {
        HostKind::Software
    }))
}

/// Finds out on a vCPU of a VM whose memory belongs to a kernel already, and leaves that as it was.
///
/// # Errors
///
/// As [`probe`].
pub fn probe_restored(vcpu: &mut Vcpu, memory: &GuestMemoryMmap) -> Result<HostKind, ProbeError> {
    let spots = long_mode::TABLES
        .into_iter()
        .chain([(CODE, PROBE.len())])
        .map(|(at, length)| {
            let mut bytes = vec![0; length];
            memory.read_slice(&mut bytes, at).map(|()| (at, bytes))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(ProbeError::Memory)?;
    let kind = probe(vcpu, memory)?;
    for (at, bytes) in spots {
        memory.write_slice(&bytes, at).map_err(ProbeError::Memory)?;
    }
    Ok(kind)
}

/// Runs the probe to its next `out`; false if KVM cannot run it.
fn run_to_out(vcpu: &mut Vcpu) -> Result<bool, ProbeError> {
    loop {
        match vcpu.fd().run() {
            Ok(VcpuExit::IoOut(port, _)) if port == u16::from(PORT) => return Ok(true),
            Ok(VcpuExit::InternalError) => return Ok(false),
            Ok(other) => return Err(ProbeError::Unexpected(format!("{other:?}"))),
            Err(err) if err.errno() == libc::EINTR || err.errno() == libc::EAGAIN => {}
            Err(err) => return Err(ProbeError::Run(err)),
        }
    }
}

/// Finds out with a VM made for it alone.
///
/// # Errors
///
/// KVM is not usable; the source says why.
pub fn probe_host() -> Result<HostKind, crate::builder::BuildError> {
    use crate::builder::{BuildError, Vm};
    let memory =
        GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 2 << 20)]).map_err(|err| {
            BuildError::Memory {
                size: 2 << 20,
                source: io::Error::other(err),
            }
        })?;
    let vm = Vm::new(memory)?;
    let mut vcpu = Vcpu::new(&vm.kvm, &vm.fd, 0, 1).map_err(BuildError::Vcpu)?;
    probe(&mut vcpu, &vm.memory).map_err(BuildError::Probe)
}
