//! What a container is asked to be. The wire form is pinned with that of the messages.

use serde::{Deserialize, Serialize};

use crate::ContainerId;

/// A container: what its processes share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The host's number for it.
    pub id: ContainerId,
    /// Its root file system.
    pub root: Mount,
    /// Host name, at most 64 bytes.
    pub hostname: String,
    /// NIS domain name, at most 64 bytes; empty for none.
    pub domainname: String,
    /// The most capabilities that a process in it may have, as bits (capability.h of the kernel).
    pub capabilities: u64,
    /// Kernel parameters to set, as sysctl(8) names them, with their values.
    pub sysctls: Vec<(String, String)>,
    /// What nobody in it shall see: files seem empty, as do directories. What is not there is passed
    /// over.
    pub masked_paths: Vec<String>,
    /// What nobody in it shall write. What is not there is passed over.
    pub readonly_paths: Vec<String>,
    /// Further mounts in order, on top of the usual ones (`/proc`, `/sys`, `/dev`, `/dev/pts`,
    /// `/dev/shm`, `/dev/mqueue`, `/sys/fs/cgroup`), which the agent makes by itself.
    pub mounts: Vec<Mount>,
    /// Files that the host wants to exist with this content, such as `/etc/hostname`.
    pub files: Vec<File>,
    /// Device nodes to be made once everything is mounted, besides the usual ones.
    pub devices: Vec<Device>,
    /// Files of the container's cgroup in the guest (cgroups(7), version 2), with what to write
    /// into them. Their controllers are switched on.
    pub cgroup: Vec<(String, String)>,
    /// Make the root file system read-only once everything is mounted.
    pub read_only: bool,
    /// How mounts in the root file system are to spread in the guest; they do not by default.
    pub propagation: Option<Propagation>,
    /// Namespaces of other containers that it is to be in, at most one of a kind. All others are its
    /// own, but for the network, of which the guest has one.
    pub joined: Vec<Joined>,
}

impl Container {
    /// Whose namespace of this kind it is to be in, if it is not to have its own.
    #[must_use]
    pub fn joins(&self, namespace: Namespace) -> Option<ContainerId> {
        let mut joined = self.joined.iter();
        joined
            .find(|joined| joined.namespace == namespace)
            .map(|joined| joined.container)
    }
}

/// A namespace of another container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// What is shared.
    pub namespace: Namespace,
    /// With whom: a container that is there.
    pub container: ContainerId,
}

/// Kinds of namespaces that containers of one VM can share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Namespace {
    /// Shared memory, semaphores and message queues.
    Ipc,
    /// Host name and domain name, which stay as they are.
    Uts,
    /// Processes. The container ends with its first process all the same.
    Pid,
}

/// A mount in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted.
    pub source: Source,
    /// Where: absolute, in the container. Ignored for the root file system. Missing directories
    /// are made; symbolic links are resolved inside the container's root and never leave it.
    pub target: String,
    /// What it permits.
    pub attributes: Attributes,
    /// The same for it and all mounts below it, first.
    pub recursive: Attributes,
    /// How mounts in it spread in the guest; they do not by default.
    pub propagation: Option<Propagation>,
}

impl Mount {
    /// With nothing out of the ordinary.
    #[must_use]
    pub fn new(source: Source, target: impl Into<String>) -> Self {
        Self {
            source,
            target: target.into(),
            attributes: Attributes::NONE,
            recursive: Attributes::NONE,
            propagation: None,
        }
    }

    /// With nothing in it that can be written.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self {
            recursive: Attributes::READ_ONLY,
            ..self
        }
    }
}

/// Attributes of a mount, as bits (`MOUNT_ATTR_*` of linux/mount.h).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Those that it is to have.
    pub set: u64,
    /// Those that it is not to have.
    pub clear: u64,
}

impl Attributes {
    /// Nothing is changed.
    pub const NONE: Self = Self { set: 0, clear: 0 };
    /// Nobody can write.
    pub const READ_ONLY: Self = Self { set: 1, clear: 0 };
}

/// How mounts spread, as bits of mount(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Propagation {
    /// `MS_SHARED`, `MS_PRIVATE`, `MS_SLAVE` or `MS_UNBINDABLE`.
    pub kind: u64,
    /// For all mounts below as well.
    pub recursive: bool,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Absolute path in the container, resolved inside its root. A node that is there is replaced.
    pub path: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Its permission bits.
    pub mode: u32,
    /// Who owns it.
    pub uid: u32,
    /// Whose group it is of.
    pub gid: u32,
}

/// Kinds of device nodes, with the numbers of what is behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// A character device.
    Character {
        /// Of its driver.
        major: u32,
        /// Of the device among the driver's.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Of its driver.
        major: u32,
        /// Of the device among the driver's.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// Where a mount's content comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A virtio-fs share.
    Share {
        /// Its virtio-fs tag.
        tag: String,
        /// Path below the share's root, empty for the root itself; it may name a single file.
        path: String,
    },
    /// A new file system of the guest's kernel.
    FileSystem {
        /// Its type, such as `tmpfs`.
        kind: String,
        /// What `/proc/mounts` shows as its source.
        name: String,
        /// Data for `mount(2)`, such as `size=64m,mode=1777`.
        options: String,
        /// Put what is there already into it.
        copy_up: bool,
    },
    /// What is mounted there already, by the agent or before.
    Present {
        /// New options of its file system, as for `mount(2)`; empty to leave them.
        options: String,
    },
    /// What the container has in another place, such as a device node.
    Container {
        /// Absolute path in the container, resolved inside its root.
        path: String,
    },
    /// An overlayfs of the guest's own, whose changes are in a new tmpfs. For a root file system
    /// only.
    Overlay {
        /// What it shows before anything is changed.
        lower: Lower,
        /// Data for `mount(2)` of the tmpfs.
        upper: String,
    },
    /// What another container has in this place, such as `/dev/shm`.
    Joined {
        /// The other container.
        container: ContainerId,
        /// Absolute path in it, resolved inside its root.
        path: String,
    },
}

impl Source {
    /// What is at `path` in a share.
    #[must_use]
    pub fn share(tag: impl Into<String>, path: impl Into<String>) -> Self {
        Self::Share {
            tag: tag.into(),
            path: path.into(),
        }
    }

    /// A new tmpfs with these options.
    #[must_use]
    pub fn tmpfs(options: impl Into<String>) -> Self {
        Self::FileSystem {
            kind: "tmpfs".into(),
            name: "tmpfs".into(),
            options: options.into(),
            copy_up: false,
        }
    }
}

/// What is read-only below an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lower {
    /// A virtio-fs share.
    Share {
        /// Its virtio-fs tag.
        tag: String,
    },
    /// An EROFS on a disk.
    Disk {
        /// Which of the VM's disks, counted from 0.
        number: u8,
    },
}

/// A small file in the container, made when the container is set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Absolute path in the container, resolved inside its root.
    pub path: String,
    /// Its content.
    pub content: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}
