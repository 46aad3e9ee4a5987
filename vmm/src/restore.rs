//! A VM from a snapshot: everything but what differs from clone to clone.
//!
//! [`Loaded`] has KVM's side of the VM, its memory and its vCPUs. It has no thread, no device and
//! no share, so a pool can keep it until it is known what it is for.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kvm_bindings::{kvm_clock_data, kvm_cpuid_entry2};

use crate::{
    api::HostKind,
    builder::{BuildError, Vm},
    config::VmConfig,
    host_kind::{self, ProbeError},
    snapshot::{self, DeviceState, Snapshot, SnapshotError},
    timeline::Timeline,
    vcpu::{Vcpu, VcpuError},
    virtio_mmio::TransportError,
};

/// A snapshot that cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The snapshot itself is refused.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// KVM's side of the VM cannot be made.
    #[error("Failed to make the VM of snapshot {path}")]
    Vm {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: Box<BuildError>,
    },
    /// A vCPU does not take its state.
    #[error("Failed to restore snapshot {path}")]
    Vcpu {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: VcpuError,
    },
    /// A device does not take its state.
    #[error("Snapshot {path} cannot be restored here")]
    Device {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: TransportError,
    },
    /// The kind of host cannot be found out.
    #[error("Failed to find out whether snapshot {path} fits this kind of KVM")]
    Probe {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: ProbeError,
    },
    /// KVM does not take the state of the VM.
    #[error("Failed to {call} for snapshot {path}")]
    Kvm {
        /// The call.
        call: &'static str,
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: kvm_ioctls::Error,
    },
}

/// A VM whose memory and vCPUs are as they were in a snapshot.
pub struct Loaded {
    /// Of the snapshot.
    pub directory: PathBuf,
    /// KVM's side and the memory.
    pub vm: Vm,
    /// Its vCPUs, without threads.
    pub vcpus: Vec<Vcpu>,
    /// The kind of host it runs on.
    pub host_kind: HostKind,
    /// What the devices are to be.
    pub devices: Vec<DeviceState>,
    /// The host's wall clock when the guest's clocks were set, in nanoseconds since the Unix
    /// epoch.
    pub clocks_set_ns: u64,
    memory: u64,
}

impl Loaded {
    /// Restores the snapshot in `directory`.
    ///
    /// # Errors
    ///
    /// It is damaged, of another VMM or host, or KVM refuses it.
    pub fn load(directory: &Path, timeline: &Timeline) -> Result<Self, RestoreError> {
        let snapshot = snapshot::read(directory)?;
        timeline.reached("snapshot read");
        let memory = snapshot::map_memory(directory, &snapshot)?;
        let vm = Vm::new(memory).map_err(|source| RestoreError::Vm {
            path: directory.into(),
            source: Box::new(source),
        })?;
        timeline.reached("KVM ready");
        let vcpu_failed = |source| RestoreError::Vcpu {
            path: directory.into(),
            source,
        };
        let count = u8::try_from(snapshot.vcpus.len()).unwrap_or(u8::MAX);
        let mut vcpus = (0..count)
            .map(|id| Vcpu::new(&vm.kvm, &vm.fd, id, count))
            .collect::<Result<Vec<_>, _>>()
            .map_err(vcpu_failed)?;
        check_host(directory, &snapshot, &vm, &mut vcpus)?;
        timeline.reached("host probed");
        vcpus
            .iter()
            .zip(&snapshot.vcpus)
            .try_for_each(|(vcpu, state)| vcpu.restore(state))
            .map_err(vcpu_failed)?;
        let failed = |call| {
            move |source| RestoreError::Kvm {
                call,
                path: directory.into(),
                source,
            }
        };
        for chip in &snapshot.irqchips {
            vm.fd.set_irqchip(chip).map_err(failed("KVM_SET_IRQCHIP"))?;
        }
        // The guest's clocks go on from where they stood: no time has passed for them.
        let clock = kvm_clock_data {
            clock: snapshot.clock.clock,
            ..kvm_clock_data::default()
        };
        vm.fd.set_clock(&clock).map_err(failed("KVM_SET_CLOCK"))?;
        let clocks_set = SystemTime::now().duration_since(UNIX_EPOCH);
        timeline.reached("vCPUs restored");
        Ok(Self {
            directory: directory.into(),
            vm,
            vcpus,
            host_kind: snapshot.host_kind,
            devices: snapshot.devices,
            clocks_set_ns: clocks_set.map_or(0, nanoseconds),
            memory: snapshot.memory,
        })
    }

    /// Checks that this is the VM that `config` describes.
    ///
    /// # Errors
    ///
    /// It has other vCPUs, another memory or another number of devices.
    pub fn check(&self, config: &VmConfig) -> Result<(), RestoreError> {
        // vsock, rng, shares, disks.
        let devices =
            usize::from(config.vsock.is_some()) + 1 + config.shares.len() + config.disks.len();
        for (what, saved, asked) in [
            ("vCPUs", self.vcpus.len() as u64, u64::from(config.vcpus)),
            ("bytes of memory", self.memory, config.memory),
            ("devices", self.devices.len() as u64, devices as u64),
        ] {
            if saved != asked {
                let problem = format!("it has {saved} {what}, {asked} are asked for");
                return Err(misfit(&self.directory, problem));
            }
        }
        Ok(())
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn misfit(directory: &Path, problem: String) -> RestoreError {
    RestoreError::Snapshot(SnapshotError::Misfit {
        path: directory.into(),
        problem,
    })
}

/// Checks that the guest finds the VMM, the CPU and the kind of host that it knows.
fn check_host(
    directory: &Path,
    snapshot: &Snapshot,
    vm: &Vm,
    vcpus: &mut [Vcpu],
) -> Result<(), RestoreError> {
    let own = env!("CARGO_PKG_VERSION");
    if snapshot.vmm != own {
        let problem = format!("hrun-vmm {} wrote it, this is {own}", snapshot.vmm);
        return Err(misfit(directory, problem));
    }
    let Some(first) = vcpus.first_mut() else {
        return Err(misfit(directory, "it has no vCPU".into()));
    };
    if let Some(leaf) = differing_leaf(first.cpuid(), &snapshot.vcpus[0].cpuid) {
        let problem = format!("this host has other CPU features (CPUID leaf {leaf})");
        return Err(misfit(directory, problem));
    }
    let kind =
        host_kind::probe_restored(first, &vm.memory).map_err(|source| RestoreError::Probe {
            path: directory.into(),
            source,
        })?;
    if kind != snapshot.host_kind {
        let problem = format!(
            "it was taken on {} KVM, this is {kind} KVM",
            snapshot.host_kind
        );
        return Err(misfit(directory, problem));
    }
    Ok(())
}

/// The first CPUID leaf in which two vCPUs differ.
fn differing_leaf(ours: &[kvm_cpuid_entry2], saved: &[kvm_cpuid_entry2]) -> Option<String> {
    let content = |entry: &kvm_cpuid_entry2| {
        (
            (entry.function, entry.index),
            [entry.eax, entry.ebx, entry.ecx, entry.edx],
        )
    };
    let different = ours
        .iter()
        .zip(saved)
        .find(|(ours, saved)| content(ours) != content(saved))
        .map(|(ours, _)| ours);
    let surplus = || {
        let longer = if ours.len() > saved.len() {
            ours
        } else {
            saved
        };
        longer.get(ours.len().min(saved.len()))
    };
    different
        .or_else(surplus)
        .map(|entry| format!("{:#x}.{}", entry.function, entry.index))
}
