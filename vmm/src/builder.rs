//! The recipe of a VM.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use linux_loader::loader::{KernelLoader, elf::Elf};
use vm_memory::{
    Address, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
    ReadVolatile,
};

use crate::{
    api::HostKind,
    arch::{
        boot_params::{self, Initramfs},
        layout, long_mode, mptable,
    },
    config::{BootConfig, Origin, PAGE_SIZE, ShareSource, VmConfig},
    devices::{
        VirtioDevice,
        blk::{Blk, Disk, DiskError},
        fs::{Fs, Sharing},
        rng::Rng,
        vsock::{Vsock, VsockError},
    },
    end::End,
    host_kind::{self, ProbeError},
    ports::{PVPANIC, Ports},
    profile::Profile,
    restore::{Loaded, RestoreError, Size},
    sandbox::{self, SandboxError},
    snapshot::{self, DeviceState, MemoryMap, Snapshot, SnapshotError},
    timeline::Timeline,
    vcpu::{Buses, Vcpu, VcpuError, Vcpus},
    virtio_mmio::{TransportError, VirtioMmio, VirtioMmioBus, window},
};

/// Failure to build a VM.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// /dev/kvm cannot be opened.
    #[error("Failed to open /dev/kvm")]
    OpenKvm(#[source] kvm_ioctls::Error),
    /// The host's KVM is too old or too small.
    #[error("KVM on this host lacks {0:?}")]
    Capability(Cap),
    /// A KVM call failed.
    #[error("Failed to {call}")]
    Kvm {
        /// The call.
        call: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// Guest memory cannot be had.
    #[error("Failed to allocate {size} bytes of guest memory")]
    Memory {
        /// How much.
        size: u64,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be opened.
    #[error("Failed to open {what} {path}")]
    Open {
        /// What it is for.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel cannot be loaded.
    #[error("Failed to load kernel {path}: it must be an uncompressed ELF vmlinux for x86-64")]
    Kernel {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: linux_loader::loader::Error,
    },
    /// The initramfs does not fit the guest's memory.
    #[error("Initramfs {path} has {size} bytes: too large for the memory of the guest")]
    InitramfsSize {
        /// Its path.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// A snapshot cannot be restored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The snapshot that was loaded is not the one that is asked for.
    #[error("Snapshot {0} was loaded, the configuration asks for another one")]
    OtherSnapshot(PathBuf),
    /// A place for a snapshot cannot be made.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The initramfs cannot be read.
    #[error("Failed to read initramfs {path}")]
    Initramfs {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: vm_memory::VolatileMemoryError,
    },
    /// The kernel command line is too long.
    #[error("Kernel command line has {0} bytes, it may have {max}", max = layout::CMDLINE_MAX - 1)]
    Cmdline(usize),
    /// More devices than interrupts.
    #[error("The VM has {0} devices, it may have {max}", max = layout::MAX_DEVICES)]
    TooManyDevices(usize),
    /// A table could not be written into guest memory.
    #[error("Failed to write the boot tables into guest memory")]
    Tables(#[source] GuestMemoryError),
    /// An event descriptor could not be made.
    #[error("Failed to make an event descriptor")]
    EventFd(#[source] io::Error),
    /// The process cannot be confined.
    #[error("Failed to confine the VMM")]
    Sandbox(#[source] SandboxError),
    /// The vsock device cannot be made.
    #[error("Failed to make the vsock device")]
    Vsock(#[source] VsockError),
    /// A virtio-fs device cannot be made.
    #[error("Failed to make the virtio-fs device {tag:?}")]
    Fs {
        /// Its tag.
        tag: String,
        /// Why.
        source: io::Error,
    },
    /// A disk cannot be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A device stands where no clone could go on.
    #[error("Failed to save the state of a device")]
    Suspend(#[source] TransportError),
    /// A device cannot be put on the bus.
    #[error("Failed to attach a device")]
    Attach(#[source] TransportError),
    /// A vCPU cannot be made.
    #[error("Failed to make a vCPU")]
    Vcpu(#[source] VcpuError),
    /// The kind of host cannot be found out.
    #[error("Failed to find out what kind of KVM this is")]
    Probe(#[source] ProbeError),
}

/// The kernel's symbol table for [`profile`](crate::profile) reports; empty if it is missing.
#[must_use]
pub fn system_map(config: &VmConfig) -> String {
    let path = config.symbols.as_ref().filter(|_| config.profile.is_some());
    path.and_then(|path| fs::read_to_string(path).ok())
        .unwrap_or_default()
}

/// A VM without vCPUs: KVM's side of it and its memory.
pub struct Vm {
    /// KVM itself.
    pub kvm: Kvm,
    /// The VM.
    pub fd: VmFd,
    /// Guest memory.
    pub memory: GuestMemoryMmap,
}

impl Vm {
    /// Makes a VM with this memory and an interrupt controller.
    ///
    /// # Errors
    ///
    /// /dev/kvm is missing, forbidden or lacks something.
    pub fn new(memory: GuestMemoryMmap) -> Result<Self, BuildError> {
        let failed = |call| move |source| BuildError::Kvm { call, source };
        let kvm = Kvm::new().map_err(BuildError::OpenKvm)?;
        for cap in [
            Cap::Irqchip,
            Cap::Irqfd,
            Cap::Ioeventfd,
            Cap::UserMemory,
            Cap::ImmediateExit,
        ] {
            if !kvm.check_extension(cap) {
                return Err(BuildError::Capability(cap));
            }
        }
        let fd = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        // Memory before everything else: on software KVM a slot costs 0.07 ms now and 7 ms once
        // there is an interrupt controller.
        for (slot, region) in (0u32..).zip(memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped for as long as `memory` lives, which this VM owns.
            unsafe { fd.set_user_memory_region(slot) }
                .map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        }
        fd.set_tss_address(layout::KVM_TSS)
            .map_err(failed("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
        Ok(Self { kvm, fd, memory })
    }
}

/// A VM that was built: its vCPUs are paused, at their first instruction or where a snapshot was
/// taken.
pub struct Built {
    /// The vCPUs. Dropped first: they use all the rest.
    pub vcpus: Vcpus,
    /// KVM's side and the memory.
    pub vm: Vm,
    /// The kind of host it runs on.
    pub host_kind: HostKind,
    /// How many vCPUs its kernel is prepared for.
    pub max_vcpus: u8,
    /// Where a snapshot goes, if there is to be one.
    pub snapshot: Option<snapshot::Writer>,
    /// See [`Loaded::clocks_set_ns`].
    pub clocks_set_ns: Option<u64>,
}

impl Built {
    /// Writes a snapshot of the VM, whose vCPUs are paused, and leaves it as it is but for its
    /// vsock connections, which are closed.
    ///
    /// # Errors
    ///
    /// KVM refuses to tell the state, or it cannot be written.
    pub fn snapshot(&self, writer: snapshot::Writer) -> Result<(), BuildError> {
        let failed = |call| move |source| BuildError::Kvm { call, source };
        // Devices first: they interrupt vCPUs.
        let devices = self.vcpus.buses().mmio.suspend();
        let devices = devices.map_err(BuildError::Suspend);
        let saved = devices.and_then(|devices| self.save(devices, failed));
        let saved = saved.and_then(|snapshot| {
            let finish = |memory_map| Snapshot {
                memory_map,
                ..snapshot
            };
            Ok(writer.write(&self.vm.memory, finish)?)
        });
        self.vcpus.buses().mmio.resume();
        saved
    }

    fn save<F>(
        &self,
        devices: Vec<DeviceState>,
        failed: impl Fn(&'static str) -> F,
    ) -> Result<Snapshot, BuildError>
    where
        F: FnOnce(kvm_ioctls::Error) -> BuildError,
    {
        let irqchips = [
            KVM_IRQCHIP_PIC_MASTER,
            KVM_IRQCHIP_PIC_SLAVE,
            KVM_IRQCHIP_IOAPIC,
        ]
        .into_iter()
        .map(|chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..kvm_irqchip::default()
            };
            let read = self.vm.fd.get_irqchip(&mut chip);
            read.map(|()| chip).map_err(failed("KVM_GET_IRQCHIP"))
        })
        .collect::<Result<_, _>>()?;
        Ok(Snapshot {
            vmm: env!("CARGO_PKG_VERSION").into(),
            host_kind: self.host_kind,
            memory: self.vm.memory.iter().map(|region| region.len()).sum(),
            memory_map: MemoryMap::default(),
            max_vcpus: self.max_vcpus,
            vcpus: self.vcpus.save(&self.vm.kvm).map_err(BuildError::Vcpu)?,
            irqchips,
            clock: self.vm.fd.get_clock().map_err(failed("KVM_GET_CLOCK"))?,
            devices,
        })
    }
}

/// Builds the VM that `config` describes, from `loaded` if the snapshot is loaded already. The
/// process is confined to what the VM needs when this returns; it must have only one thread when
/// it is called.
///
/// # Errors
///
/// Something is missing or refused; everything made so far is undone.
pub fn build(
    config: &VmConfig,
    loaded: Option<Loaded>,
    end: &Arc<End>,
    timeline: &Timeline,
) -> Result<Built, BuildError> {
    let console = config.console.as_deref().map(create_console).transpose()?;
    let snapshot = config.snapshot.as_deref();
    let snapshot = snapshot.map(snapshot::Writer::create).transpose()?;
    let Machine {
        vm,
        vcpus,
        host_kind,
        max_vcpus,
        bus,
        clocks_set_ns,
    } = match (&config.origin, loaded) {
        (Origin::Boot(boot), None) => boot_machine(config, boot, timeline)?,
        (Origin::Restore(directory), None) => {
            let size = Size {
                vcpus: config.vcpus,
                memory: config.memory,
            };
            let loaded = Loaded::load(directory, Some(size), timeline)?;
            restore_machine(config, loaded, timeline)?
        }
        (Origin::Restore(directory), Some(loaded)) if loaded.directory == *directory => {
            restore_machine(config, loaded, timeline)?
        }
        (_, Some(loaded)) => return Err(BuildError::OtherSnapshot(loaded.directory)),
    };
    let buses = Buses {
        ports: Ports::new(console, Arc::clone(end)),
        mmio: bus,
    };
    let profile = config
        .profile
        .as_ref()
        .map(|_| Profile::new(vm.memory.clone()));
    let vcpus = Vcpus::spawn(vcpus, buses, Arc::clone(end), profile).map_err(BuildError::Vcpu)?;
    vcpus.buses().mmio.resume();
    timeline.reached("vCPUs ready");
    Ok(Built {
        vcpus,
        vm,
        host_kind,
        max_vcpus,
        snapshot,
        clocks_set_ns,
    })
}

/// A VM before its threads.
struct Machine {
    vm: Vm,
    vcpus: Vec<Vcpu>,
    host_kind: HostKind,
    max_vcpus: u8,
    bus: VirtioMmioBus,
    clocks_set_ns: Option<u64>,
}

/// A machine that boots.
fn boot_machine(
    config: &VmConfig,
    boot: &BootConfig,
    timeline: &Timeline,
) -> Result<Machine, BuildError> {
    let kernel = open("kernel", &boot.kernel)?;
    let initramfs = boot.initramfs.as_deref();
    let initramfs = initramfs.map(|path| open("initramfs", path)).transpose()?;
    let memory = allocate_memory(config.memory)?;
    let vm = Vm::new(memory)?;
    timeline.reached("KVM ready");

    let disks = open_disks(config)?;
    confine(config)?;
    timeline.reached("shares mounted");
    let devices = make_devices(config, disks)?;

    let max_vcpus = config.max_vcpus.unwrap_or(config.vcpus);
    let mut vcpus = (0..config.vcpus)
        .map(|id| Vcpu::new(&vm.kvm, &vm.fd, id, max_vcpus))
        .collect::<Result<Vec<_>, _>>()
        .map_err(BuildError::Vcpu)?;
    let host_kind = host_kind::probe(&mut vcpus[0], &vm.memory).map_err(BuildError::Probe)?;
    timeline.reached("host probed");

    let entry = load_kernel(&vm.memory, kernel, boot)?;
    let initramfs = match (initramfs, &boot.initramfs) {
        (Some(file), Some(path)) => Some(load_initramfs(&vm.memory, file, path)?),
        _ => None,
    };
    timeline.reached("kernel loaded");

    let cmdline = cmdline(config, host_kind, devices.len())?;
    let bus = attach(&vm, devices, VirtioMmio::new)?;
    let count = u32::try_from(bus.len()).expect("devices have interrupts of their own");
    let irqs = layout::FIRST_IRQ..layout::FIRST_IRQ + count;
    long_mode::write_tables(&vm.memory)
        .and_then(|()| mptable::write(&vm.memory, config.vcpus, max_vcpus, irqs))
        .and_then(|()| {
            boot_params::write(&vm.memory, &cmdline, initramfs, &layout::ram(config.memory))
        })
        .map_err(BuildError::Tables)?;
    for vcpu in &vcpus {
        vcpu.set_boot_state(entry, layout::ZERO_PAGE)
            .map_err(BuildError::Vcpu)?;
    }
    Ok(Machine {
        vm,
        vcpus,
        host_kind,
        max_vcpus,
        bus,
        clocks_set_ns: None,
    })
}

/// A machine that goes on where a snapshot was taken.
fn restore_machine(
    config: &VmConfig,
    loaded: Loaded,
    timeline: &Timeline,
) -> Result<Machine, BuildError> {
    loaded.check(config)?;
    let disks = open_disks(config)?;
    confine(config)?;
    timeline.reached("shares mounted");
    let devices = make_devices(config, disks)?;
    let mut states = loaded.devices.iter();
    let restored = attach(&loaded.vm, devices, |device, memory| {
        let state = states.next().expect("as many devices as were checked");
        VirtioMmio::restore(device, memory, state)
    });
    let bus = restored.map_err(|err| match err {
        BuildError::Attach(source) if source.is_of_snapshot() => {
            BuildError::Restore(RestoreError::Device {
                path: loaded.directory.clone(),
                source,
            })
        }
        err => err,
    })?;
    Ok(Machine {
        vm: loaded.vm,
        vcpus: loaded.vcpus,
        host_kind: loaded.host_kind,
        max_vcpus: loaded.max_vcpus,
        bus,
        clocks_set_ns: Some(loaded.clocks_set_ns),
    })
}

fn open(what: &'static str, path: &Path) -> Result<File, BuildError> {
    File::open(path).map_err(|source| BuildError::Open {
        what,
        path: path.into(),
        source,
    })
}

fn create_console(path: &Path) -> Result<File, BuildError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| BuildError::Open {
            what: "console",
            path: path.into(),
            source,
        })
}

fn allocate_memory(size: u64) -> Result<GuestMemoryMmap, BuildError> {
    let failed = |source| BuildError::Memory { size, source };
    let ranges = layout::ram(size)
        .into_iter()
        .map(|(start, length)| Ok((start, usize::try_from(length).map_err(io::Error::other)?)))
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed)?;
    GuestMemoryMmap::from_ranges(&ranges).map_err(|err| failed(io::Error::other(err)))
}

/// Confines the process to what the VM needs; the new root is assembled over the directory of the
/// control socket, of which the process needs no more than the open socket.
fn confine(config: &VmConfig) -> Result<(), BuildError> {
    let sockets = config
        .vsock
        .as_ref()
        .and_then(|vsock| vsock.socket.parent());
    let mount_point = config.control.parent().unwrap_or(Path::new("/"));
    sandbox::enter(mount_point, sockets.as_slice(), &config.shares).map_err(BuildError::Sandbox)
}

type Devices = Vec<Box<dyn VirtioDevice>>;

/// Opens the disks while their files can be reached.
fn open_disks(config: &VmConfig) -> Result<Vec<Disk>, DiskError> {
    config.disks.iter().map(Disk::open).collect()
}

/// The devices, in the order of their windows.
fn make_devices(config: &VmConfig, disks: Vec<Disk>) -> Result<Devices, BuildError> {
    let mut devices = Devices::new();
    if let Some(vsock) = &config.vsock {
        let device = Vsock::new(vsock.cid, &vsock.socket).map_err(BuildError::Vsock)?;
        devices.push(Box::new(device));
    }
    devices.push(Box::new(Rng::default()));
    for (index, share) in config.shares.iter().enumerate() {
        let sharing = if share.exclusive && matches!(share.source, ShareSource::Collection(_)) {
            Sharing::Entries
        } else if share.exclusive {
            Sharing::Exclusive
        } else {
            Sharing::Shared
        };
        let to_be_saved = config.snapshot.is_some() && share.exclusive;
        let root = sandbox::share(index);
        let device =
            Fs::new(&share.tag, &root, sharing, to_be_saved).map_err(|source| BuildError::Fs {
                tag: share.tag.clone(),
                source,
            })?;
        devices.push(Box::new(device));
    }
    for disk in disks {
        devices.push(Box::new(Blk::new(disk)));
    }
    if devices.len() > layout::MAX_DEVICES {
        return Err(BuildError::TooManyDevices(devices.len()));
    }
    Ok(devices)
}

/// Puts the devices on a bus, each behind the transport that `transport` makes for it.
fn attach(
    vm: &Vm,
    devices: Devices,
    mut transport: impl FnMut(
        Box<dyn VirtioDevice>,
        GuestMemoryMmap,
    ) -> Result<VirtioMmio, TransportError>,
) -> Result<VirtioMmioBus, BuildError> {
    let mut bus = VirtioMmioBus::default();
    for (gsi, device) in (layout::FIRST_IRQ..).zip(devices) {
        let device = transport(device, vm.memory.clone()).map_err(BuildError::Attach)?;
        device
            .register(&vm.fd, bus.len(), gsi)
            .map_err(BuildError::Attach)?;
        bus.push(device);
    }
    Ok(bus)
}

fn load_kernel(
    memory: &GuestMemoryMmap,
    mut kernel: File,
    boot: &BootConfig,
) -> Result<GuestAddress, BuildError> {
    Elf::load(memory, None, &mut kernel, Some(layout::HIGH_RAM))
        .map(|loaded| loaded.kernel_load)
        .map_err(|source| BuildError::Kernel {
            path: boot.kernel.clone(),
            source,
        })
}

/// Puts the initramfs at the end of the memory below the gap, where the kernel expects it least
/// in its way.
fn load_initramfs(
    memory: &GuestMemoryMmap,
    mut file: File,
    path: &Path,
) -> Result<Initramfs, BuildError> {
    let size = file
        .metadata()
        .map_err(|source| BuildError::Open {
            what: "initramfs",
            path: path.into(),
            source,
        })?
        .len();
    let too_large = || BuildError::InitramfsSize {
        path: path.into(),
        size,
    };
    let region = memory.find_region(layout::HIGH_RAM).ok_or_else(too_large)?;
    let address = (region.len() / 2)
        .checked_sub(size)
        .map(|_| GuestAddress((region.len() - size) / PAGE_SIZE * PAGE_SIZE))
        .ok_or_else(too_large)?;
    let length = usize::try_from(size).map_err(|_| too_large())?;
    let mut slice = region
        .get_slice(vm_memory::MemoryRegionAddress(address.0), length)
        .map_err(|_| too_large())?;
    file.read_exact_volatile(&mut slice)
        .map_err(|source| BuildError::Initramfs {
            path: path.into(),
            source,
        })?;
    Ok(Initramfs {
        address,
        size: u32::try_from(size).map_err(|_| too_large())?,
    })
}

/// The kernel command line: what every host needs, what this kind needs, the devices, and what
/// the configuration adds.
///
/// # Errors
///
/// It is longer than a kernel takes.
pub fn cmdline(config: &VmConfig, kind: HostKind, devices: usize) -> Result<String, BuildError> {
    // What the words do, and those that are ours, is told in guest-kernel/README.md.
    let mut words = vec![
        "panic=-1 reboot=k".to_owned(),
        format!("pvpanic={PVPANIC:#x}"),
        "nolegacy swiotlb=noforce rootfstype=ramfs rdinit=/init".to_owned(),
    ];
    words.push(if config.console.is_some() {
        "earlyprintk=serial,ttyS0,115200,keep loglevel=7".into()
    } else {
        "quiet logstore=5".into()
    });
    words.push(kind.cmdline().into());
    if config.max_vcpus.is_some() {
        words.push(format!("growmap={:#x}", layout::PAGE_DESCRIPTOR.0));
        if kind == HostKind::Hardware {
            // Or the kernel takes out what only several CPUs need, to put it back later.
            words.push("noreplace-smp".into());
        }
    }
    for (index, gsi) in (0..devices).zip(layout::FIRST_IRQ..) {
        let (size, at) = (layout::VIRTIO_MMIO_SIZE, window(index));
        words.push(format!("virtio_mmio.device={size}@{at:#x}:{gsi}"));
    }
    if let Origin::Boot(boot) = &config.origin {
        words.push(boot.cmdline.clone());
    }
    words.retain(|word| !word.is_empty());
    let cmdline = words.join(" ");
    if cmdline.len() < layout::CMDLINE_MAX {
        Ok(cmdline)
    } else {
        Err(BuildError::Cmdline(cmdline.len()))
    }
}
