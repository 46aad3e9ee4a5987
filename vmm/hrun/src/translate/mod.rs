//! From a container to a VM: the one place where what was asked for becomes a VM configuration
//! and requests to the agent.

mod actions;
mod growth;
mod root;

use std::path::{Path, PathBuf};

use agent_protocol::{ContainerId, ProcessId};
use rustix::{
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};
use vmm::config::{
    self, BootConfig, CollectionEntry, DiskConfig, Origin, ShareConfig, ShareSource, VmConfig,
    VsockConfig,
};

use crate::{
    container::WritableLayer,
    memory::guest_ram_for,
    oci::{plan::Plan, pod::Role},
    parts::Parts,
    spec::{Process, RunOptions},
    template::Class,
    volumes::{ReadySource, ReadyVolume},
};

pub(crate) use actions::{
    Exec, create_actions, exec_action, random_process, start_actions, transfer_action,
};
pub(crate) use growth::{grown, growth, has_room_to_grow};
pub(crate) use root::directories;

/// The first container of a VM.
pub(crate) const CONTAINER: ContainerId = ContainerId(0);
/// Its first process.
pub(crate) const PROCESS: ProcessId = ProcessId(0);

/// Tag of the share that is the container's root file system.
pub(crate) const ROOT_TAG: &str = "rootfs";

/// What hrun puts into a container's root file system, or mounts over it there: no work of the
/// container's.
pub(crate) const RUNTIME_PATHS: [&str; 6] = [
    "/dev",
    "/proc",
    "/sys",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/machine-id",
];

/// The place of that share among a VM's.
pub(crate) const ROOT_SHARE: usize = 0;

/// Tag of the share that holds the volumes, each under its number.
pub(crate) const VOLUMES_TAG: &str = "volumes";

/// The place of that share among a VM's.
pub(crate) const VOLUMES_SHARE: usize = 1;

/// Serial number of the disk that holds an image.
const IMAGE_DISK: &str = "image";

/// What the guest takes for the size of that disk, in bytes: more than an image has. It learns of
/// it before anybody knows which image it will be.
const IMAGE_DISK_CAPACITY: u64 = 1 << 42;

/// The least context identifier that is not reserved.
pub(crate) const FIRST_CID: u32 = 3;

/// A container whose parts are all there.
#[derive(Debug)]
pub(crate) struct Ready<'a> {
    pub(crate) name: &'a str,
    pub(crate) hostname: &'a str,
    /// Its machine-id(5): 32 hexadecimal digits.
    pub(crate) machine_id: &'a str,
    pub(crate) options: &'a RunOptions,
    pub(crate) process: &'a Process,
    /// The image's layers, topmost first.
    pub(crate) layers: &'a [PathBuf],
    /// The image as an EROFS file, if that is how it gets into the guest.
    pub(crate) disk: Option<&'a Path>,
    pub(crate) writable: &'a WritableLayer,
    pub(crate) volumes: &'a [ReadyVolume],
}

/// Where the VM's sockets and files are to be.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) control: PathBuf,
    pub(crate) vsock: PathBuf,
    /// For the guest's boot log.
    pub(crate) console: Option<PathBuf>,
    /// For a profile of the guest.
    pub(crate) profile: Option<PathBuf>,
}

/// The VM for a container. Whatever the container is, the VM has the same devices, so that a clone
/// of a template can be any container's.
pub(crate) fn vm_config(
    ready: &Ready<'_>,
    parts: &Parts,
    origin: Origin,
    cid: u32,
    places: &Places,
) -> VmConfig {
    let volumes = ready.volumes.iter().enumerate().map(|(index, volume)| {
        let path = match &volume.source {
            ReadySource::Directory(path) | ReadySource::File(path) => path.clone(),
        };
        CollectionEntry {
            name: index.to_string(),
            path,
            read_only: volume.read_only,
        }
    });
    let volumes = ShareConfig {
        source: ShareSource::Collection(volumes.collect()),
        // Others may change what is in them.
        exclusive: false,
        ..empty_share(VOLUMES_TAG)
    };
    VmConfig {
        name: ready.name.into(),
        console: places.console.clone(),
        symbols: places
            .profile
            .as_ref()
            .map(|_| parts.kernel.with_file_name("System.map")),
        profile: places.profile.clone(),
        shares: vec![root::share(ready), volumes],
        disks: vec![image_disk(ready.disk)],
        ..vm(ready.options.class(), origin, cid, places)
    }
}

/// The disk that every VM has, with an image or empty.
fn image_disk(path: Option<&Path>) -> DiskConfig {
    DiskConfig {
        id: IMAGE_DISK.into(),
        path: path.map(Path::to_owned),
        read_only: true,
        capacity: Some(IMAGE_DISK_CAPACITY),
    }
}

/// The VM of which a template is made: nobody's as yet.
pub(crate) fn template_config(class: Class, parts: &Parts, places: &Places) -> VmConfig {
    let exclusive = |tag| ShareConfig {
        exclusive: true,
        ..empty_share(tag)
    };
    VmConfig {
        name: "template".into(),
        shares: vec![exclusive(ROOT_TAG), empty_share(VOLUMES_TAG)],
        disks: vec![image_disk(None)],
        max_vcpus: Some(class.max_cpus()),
        memory: growth::template_ram(class),
        ..vm(class, boot(parts), FIRST_CID, places)
    }
}

/// How a VM boots from these parts.
pub(crate) fn boot(parts: &Parts) -> Origin {
    Origin::Boot(BootConfig {
        kernel: parts.kernel.clone(),
        initramfs: Some(parts.initramfs.clone()),
        cmdline: String::new(),
    })
}

fn vm(class: Class, origin: Origin, cid: u32, places: &Places) -> VmConfig {
    VmConfig {
        version: config::VERSION,
        name: String::new(),
        vcpus: class.cpus,
        max_vcpus: None,
        memory: match origin {
            Origin::Boot(_) => guest_ram_for(class.memory, class.cpus),
            Origin::Restore(_) => growth::template_ram(class),
        },
        origin,
        control: places.control.clone(),
        vsock: Some(VsockConfig {
            cid,
            socket: places.vsock.clone(),
        }),
        shares: Vec::new(),
        disks: Vec::new(),
        console: None,
        start_paused: false,
        profile: None,
        symbols: None,
        snapshot: None,
    }
}

fn empty_share(tag: &str) -> ShareConfig {
    ShareConfig {
        tag: tag.into(),
        source: ShareSource::Collection(Vec::new()),
        read_only: false,
        exclusive: false,
        files: Vec::new(),
        directories: Vec::new(),
    }
}

/// The VM for a bundle of an engine.
pub(crate) fn bundle_vm(
    name: &str,
    plan: &Plan,
    origin: Origin,
    cid: u32,
    places: &Places,
) -> VmConfig {
    let root = match &plan.role {
        Role::Sandbox => ShareConfig {
            // There is to be room for others.
            source: ShareSource::Collection(vec![CollectionEntry {
                name: plan.role.root().1,
                path: plan.root.clone(),
                read_only: false,
            }]),
            exclusive: true,
            ..empty_share(ROOT_TAG)
        },
        Role::Alone | Role::Member(_) => ShareConfig {
            source: ShareSource::Directory(plan.root.clone()),
            exclusive: true,
            directories: plan.directories.clone(),
            ..empty_share(ROOT_TAG)
        },
    };
    let volumes = ShareConfig {
        source: ShareSource::Collection(plan.volumes.clone()),
        ..empty_share(VOLUMES_TAG)
    };
    VmConfig {
        name: name.into(),
        shares: vec![root, volumes],
        disks: vec![image_disk(None)],
        ..vm(plan.class, origin, cid, places)
    }
}

/// A context identifier that no other VM of this host is likely to have: of the 2^31 that are
/// plain addresses, one at random.
///
/// # Errors
///
/// The kernel gives no random numbers.
pub(crate) fn random_cid() -> Result<u32, Errno> {
    let mut bytes = [0; 4];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok((u32::from_ne_bytes(bytes) >> 1).max(FIRST_CID))
}

#[cfg(test)]
mod tests;
