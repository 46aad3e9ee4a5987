//! A VM from a snapshot: everything but what differs from clone to clone.
//!
//! [`Loaded`] has KVM's side of the VM, its memory and its vCPUs. It has no thread, no device and
//! no share, so a pool can keep it until it is known what it is for.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kvm_bindings::{kvm_clock_data, kvm_cpuid_entry2};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::{
    api::HostKind,
    arch::layout::{self, PAGE_DESCRIPTOR_SIZE},
    builder::{BuildError, Vm},
    config::{PAGE_SIZE, VmConfig},
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
    /// How many vCPUs its kernel is prepared for.
    pub max_vcpus: u8,
    /// Whether it has vCPUs or memory that the saved VM did not have.
    pub grown: bool,
    memory: u64,
}

/// vCPUs and memory of a VM.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// How many.
    pub vcpus: u8,
    /// In bytes.
    pub memory: u64,
}

impl Loaded {
    /// Restores the snapshot in `directory`, with more vCPUs and memory if `size` says so.
    ///
    /// # Errors
    ///
    /// It is damaged, of another VMM or host, cannot have the size, or KVM refuses it.
    pub fn load(
        directory: &Path,
        size: Option<Size>,
        timeline: &Timeline,
    ) -> Result<Self, RestoreError> {
        let snapshot = snapshot::read(directory)?;
        timeline.reached("snapshot read");
        let saved = Size {
            vcpus: u8::try_from(snapshot.vcpus.len()).unwrap_or(u8::MAX),
            memory: snapshot.memory,
        };
        let size = size.unwrap_or(saved);
        let max_vcpus = snapshot.max_vcpus.max(saved.vcpus);
        let growth = check_growth(directory, saved, max_vcpus, size)?;
        let memory = snapshot::map_memory(directory, &snapshot, growth)?;
        if let Some(growth) = growth {
            describe(&memory, growth).map_err(|problem| misfit(directory, problem.into()))?;
        }
        let vm = Vm::new(memory).map_err(|source| RestoreError::Vm {
            path: directory.into(),
            source: Box::new(source),
        })?;
        timeline.reached("KVM ready");
        let vcpu_failed = |source| RestoreError::Vcpu {
            path: directory.into(),
            source,
        };
        let mut vcpus = (0..size.vcpus)
            .map(|id| Vcpu::new(&vm.kvm, &vm.fd, id, max_vcpus))
            .collect::<Result<Vec<_>, _>>()
            .map_err(vcpu_failed)?;
        check_host(directory, &snapshot, &vm, &mut vcpus)?;
        timeline.reached("host probed");
        vcpus
            .iter()
            .zip(&snapshot.vcpus)
            .try_for_each(|(vcpu, state)| vcpu.restore(state))
            .map_err(vcpu_failed)?;
        // `check_host` found a first one.
        let tsc = snapshot.vcpus[0].tsc();
        vcpus[snapshot.vcpus.len()..]
            .iter()
            .try_for_each(|vcpu| vcpu.wait_for_start(tsc))
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
            max_vcpus,
            grown: growth.is_some() || size.vcpus > saved.vcpus,
            memory: size.memory,
        })
    }

    /// Checks that this is the VM that `config` describes.
    ///
    /// # Errors
    ///
    /// It has other vCPUs, another memory or another number of devices, or is to be saved though
    /// it was made bigger.
    pub fn check(&self, config: &VmConfig) -> Result<(), RestoreError> {
        if self.grown && config.snapshot.is_some() {
            let problem = "with more vCPUs or memory it cannot be saved again".into();
            return Err(misfit(&self.directory, problem));
        }
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

/// Checks that what was `saved` can have this size; gives where it has more memory, if it does.
fn check_growth(
    directory: &Path,
    saved: Size,
    max_vcpus: u8,
    size: Size,
) -> Result<Option<(GuestAddress, u64)>, RestoreError> {
    if !(saved.vcpus..=max_vcpus).contains(&size.vcpus) {
        let problem = format!(
            "it has {} vCPUs and may have {max_vcpus}, {} are asked for",
            saved.vcpus, size.vcpus
        );
        return Err(misfit(directory, problem));
    }
    let growth = layout::growth(saved.memory, size.memory);
    if growth.is_none() && size.memory != saved.memory {
        let problem = format!(
            "its memory of {} bytes cannot become one of {} bytes",
            saved.memory, size.memory
        );
        return Err(misfit(directory, problem));
    }
    Ok(growth)
}

/// Writes the map of the memory that is added at the beginning of it: a description of each page, as
/// the kernel has left it for a fresh one. A guest that is interpreted needs microseconds a page for
/// that.
fn describe(
    memory: &GuestMemoryMmap,
    (start, length): (GuestAddress, u64),
) -> Result<(), &'static str> {
    const CHUNK: usize = 64 << 10;
    let mut fresh = [0; PAGE_DESCRIPTOR_SIZE];
    let read = memory.read_slice(&mut fresh, layout::PAGE_DESCRIPTOR);
    if read.is_err() || fresh == [0; PAGE_DESCRIPTOR_SIZE] {
        return Err("its kernel does not take more memory");
    }
    let chunk = fresh.repeat(CHUNK / PAGE_DESCRIPTOR_SIZE);
    let map = length / PAGE_SIZE * PAGE_DESCRIPTOR_SIZE as u64;
    for at in (0..map).step_by(CHUNK) {
        let length = usize::try_from(map - at).map_or(CHUNK, |rest| rest.min(CHUNK));
        memory
            .write_slice(&chunk[..length], GuestAddress(start.0 + at))
            .map_err(|_| "the memory that is added cannot be written")?;
    }
    Ok(())
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
    let (Some(first), Some(saved)) = (vcpus.first_mut(), snapshot.vcpus.first()) else {
        return Err(misfit(directory, "it has no vCPU".into()));
    };
    if let Some(leaf) = differing_leaf(first.cpuid(), &saved.cpuid) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn grow(saved: (u8, u64), max_vcpus: u8, size: (u8, u64)) -> Result<bool, String> {
        let size_of = |(vcpus, memory)| Size { vcpus, memory };
        check_growth(Path::new("/t"), size_of(saved), max_vcpus, size_of(size))
            .map(|growth| growth.is_some())
            .map_err(|err| err.to_string())
    }

    #[test]
    fn a_snapshot_grows_to_what_its_kernel_is_prepared_for() {
        assert_eq!(grow((1, 1 << 30), 4, (1, 1 << 30)), Ok(false));
        assert_eq!(grow((1, 1 << 30), 4, (4, 1 << 30)), Ok(false));
        assert_eq!(grow((1, 1 << 30), 4, (2, 2 << 30)), Ok(true));
        let refused = grow((1, 1 << 30), 4, (5, 1 << 30)).unwrap_err();
        assert!(
            refused.contains("has 1 vCPUs and may have 4, 5"),
            "{refused}"
        );
    }

    #[test]
    fn each_page_that_is_added_is_described_as_the_kernel_wants_it() {
        const PAGES: u64 = 5000;
        let growth = (GuestAddress(1 << 32), PAGES * PAGE_SIZE);
        let low = (GuestAddress(0), 0x1_0000);
        let high = (growth.0, usize::try_from(growth.1).unwrap());
        let memory = GuestMemoryMmap::from_ranges(&[low, high]).unwrap();
        let refused = describe(&memory, growth).unwrap_err();
        assert_eq!(refused, "its kernel does not take more memory");

        let fresh: [u8; PAGE_DESCRIPTOR_SIZE] = std::array::from_fn(|at| at.to_le_bytes()[0]);
        memory.write_slice(&fresh, layout::PAGE_DESCRIPTOR).unwrap();
        describe(&memory, growth).unwrap();
        let size = PAGE_DESCRIPTOR_SIZE as u64;
        for page in [0, 1, 1023, 1024, PAGES - 1] {
            let mut written = [0; PAGE_DESCRIPTOR_SIZE];
            let at = GuestAddress(growth.0.0 + page * size);
            memory.read_slice(&mut written, at).unwrap();
            assert_eq!(written, fresh, "{page}");
        }
        let behind = GuestAddress(growth.0.0 + PAGES * size);
        assert_eq!(memory.read_obj::<u64>(behind).unwrap(), 0);
    }

    #[test]
    fn a_snapshot_neither_shrinks_nor_grows_where_it_has_memory_already() {
        for (saved, size) in [
            ((2, 1 << 30), (1, 1 << 30)),
            ((1, 1 << 30), (1, 1 << 29)),
            ((1, 4 << 30), (1, 5 << 30)),
        ] {
            let refused = grow(saved, 4, size).unwrap_err();
            assert!(
                refused.starts_with("Snapshot /t cannot be restored"),
                "{refused}"
            );
        }
    }
}
