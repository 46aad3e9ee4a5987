//! What a VM is made of: one JSON document, plain data, validated before anything is created.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Version of the document. Another one is refused.
pub const VERSION: u32 = 3;

/// Most vCPUs of a VM.
pub const MAX_VCPUS: u8 = 32;

/// Least memory of a VM, in bytes: less does not hold kernel and agent.
pub const MIN_MEMORY: u64 = 32 << 20;

/// Most memory of a VM, in bytes.
pub const MAX_MEMORY: u64 = 1 << 40;

/// Longest virtio-fs tag, in bytes (virtio 1.2, 5.11.4).
pub const MAX_TAG: usize = 36;

/// Longest identifier of a disk, in bytes (virtio 1.2, 5.2.6).
pub const MAX_DISK_ID: usize = 20;

/// The unit in which a disk is counted, in bytes (virtio 1.2, 5.2.4).
pub const SECTOR_SIZE: u64 = 512;

/// Page size of the guest, in bytes: memory sizes are multiples of it.
pub const PAGE_SIZE: u64 = 4096;

/// One VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// [`VERSION`] of this document.
    pub version: u32,
    /// Names the VM in messages and thread names.
    pub name: String,
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// How many a VM may have that goes on from a snapshot of this one, up to [`MAX_VCPUS`]. By
    /// default it has neither more vCPUs nor more memory. What a snapshot says of it counts where a
    /// VM is restored.
    #[serde(default)]
    pub max_vcpus: Option<u8>,
    /// Guest RAM in bytes, a multiple of [`PAGE_SIZE`].
    pub memory: u64,
    /// How it comes to be.
    pub origin: Origin,
    /// Path of the control socket (see [`crate::api`]), made by the VMM.
    pub control: PathBuf,
    /// virtio-vsock device.
    pub vsock: Option<VsockConfig>,
    /// virtio-fs devices, one for each share.
    #[serde(default)]
    pub shares: Vec<ShareConfig>,
    /// virtio-blk devices, in the order in which the guest numbers them.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// File for the guest's boot log, from an emulated serial port. Without it there is no port:
    /// every byte that a guest prints costs two exits.
    #[serde(default)]
    pub console: Option<PathBuf>,
    /// Leave the vCPUs paused until `resume` comes over the control socket.
    #[serde(default)]
    pub start_paused: bool,
    /// Sample where the guest's instruction pointer is and write a profile to this file at exit.
    #[serde(default)]
    pub profile: Option<PathBuf>,
    /// The kernel's symbol table (System.map), for the profile.
    #[serde(default)]
    pub symbols: Option<PathBuf>,
    /// An empty directory into which a snapshot may be written (see [`crate::snapshot`]).
    #[serde(default)]
    pub snapshot: Option<PathBuf>,
}

/// How a VM comes to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Origin {
    /// It boots.
    Boot(BootConfig),
    /// It goes on where the snapshot in this directory was taken, with its memory copied on
    /// write. Kinds of devices must be those of the snapshot. vCPUs and memory may be more: the
    /// guest has to be told of those, and the VM cannot be saved again.
    Restore(PathBuf),
}

/// Kernel, initramfs and command line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// Uncompressed ELF vmlinux for x86-64.
    pub kernel: PathBuf,
    /// Initial root file system, a cpio archive.
    pub initramfs: Option<PathBuf>,
    /// Added to the command line that the VMM makes.
    #[serde(default)]
    pub cmdline: String,
}

/// A virtio-vsock device whose host side is a Unix socket.
///
/// Firecracker's convention: who connects to `socket` and writes `CONNECT <port>\n` reads
/// `OK <host port>\n` and is connected to the guest's port. A guest that connects to host port P
/// reaches who listens on the Unix socket `<socket>_<P>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// Context identifier of the guest: 3 or more.
    pub cid: u32,
    /// Path of the Unix socket, made by the VMM.
    pub socket: PathBuf,
}

/// A file that is a disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Its serial number: 1 to [`MAX_DISK_ID`] printable ASCII characters, unique in the VM.
    pub id: String,
    /// The file with its content. Without one there are zeros only.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Refuse every change: the file is opened for reading only.
    pub read_only: bool,
    /// How large the guest takes a read-only disk for, in bytes, a multiple of [`SECTOR_SIZE`]:
    /// behind the end of the file there are zeros. So clones of a VM may have different files in
    /// the same place. By default the disk is as large as its file.
    #[serde(default)]
    pub capacity: Option<u64>,
}

/// A directory shared with the guest by virtio-fs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// Mount tag, 1 to [`MAX_TAG`] bytes, unique in the VM.
    pub tag: String,
    /// What is shared.
    pub source: ShareSource,
    /// Refuse every change on the host's side, whatever the guest mounts it as.
    pub read_only: bool,
    /// Nobody but this guest changes what is shared: it may cache as long as it likes.
    #[serde(default)]
    pub exclusive: bool,
    /// Files that are written before the guest sees the share, which must not be read-only.
    #[serde(default)]
    pub files: Vec<SharedFile>,
    /// Directories that are made before the guest sees the share unless they exist: absolute
    /// paths in it, which must not be read-only.
    #[serde(default)]
    pub directories: Vec<PathBuf>,
}

/// A file that the VMM writes into a share before the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedFile {
    /// Absolute path in the share. Symbolic links are followed as the guest would, and missing
    /// directories are made.
    pub path: PathBuf,
    /// Its content.
    pub content: String,
    /// Its permission bits.
    pub mode: u32,
}

/// What a share shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ShareSource {
    /// A directory of the host.
    Directory(PathBuf),
    /// A directory of the share's own, holding these entries of the host's and nothing else.
    Collection(Vec<CollectionEntry>),
    /// An overlayfs, mounted by the VMM in its own mount namespace: it vanishes with the VMM.
    Overlay {
        /// Read-only layers, the topmost first.
        lower: Vec<PathBuf>,
        /// Takes the changes. Without it (and `work`) the overlay is read-only.
        upper: Option<PathBuf>,
        /// Overlayfs's work directory: empty, on the file system of `upper`.
        work: Option<PathBuf>,
    },
}

/// A file or directory of the host in a [`ShareSource::Collection`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectionEntry {
    /// Its name in the share.
    pub name: String,
    /// The file or directory on the host.
    pub path: PathBuf,
    /// Refuse every change to it.
    pub read_only: bool,
}

/// A configuration that cannot be a VM.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The document is no configuration.
    #[error("Failed to parse the VM configuration")]
    Parse(#[source] serde_json::Error),
    /// The document is of another version.
    #[error("VM configuration has version {0}, this hrun-vmm reads version {VERSION}")]
    Version(u32),
    /// One field has a value that cannot be.
    #[error("VM configuration: {field} {problem}")]
    Field {
        /// Where in the document.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

fn field(field: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Field {
        field: field.into(),
        problem: problem.into(),
    }
}

impl VmConfig {
    /// Reads and validates a document.
    ///
    /// # Errors
    ///
    /// It is no JSON of this shape and version, or a value is out of range; the message names it.
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        // The version first: a document of another version may well have other fields.
        let Versioned { version } = serde_json::from_slice(json).map_err(ConfigError::Parse)?;
        if version != VERSION {
            return Err(ConfigError::Version(version));
        }
        let config: Self = serde_json::from_slice(json).map_err(ConfigError::Parse)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks everything that can be checked without touching the host.
    ///
    /// # Errors
    ///
    /// The first value found that cannot be, by field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.version != VERSION {
            return Err(ConfigError::Version(self.version));
        }
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return Err(field(
                "vcpus",
                format!("is {}, must be 1 to {MAX_VCPUS}", self.vcpus),
            ));
        }
        if let Some(max) = self.max_vcpus
            && !(self.vcpus..=MAX_VCPUS).contains(&max)
        {
            return Err(field(
                "max_vcpus",
                format!("is {max}, must be {} to {MAX_VCPUS}", self.vcpus),
            ));
        }
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&self.memory) {
            return Err(field(
                "memory",
                format!(
                    "is {} bytes, must be {MIN_MEMORY} to {MAX_MEMORY}",
                    self.memory
                ),
            ));
        }
        if !self.memory.is_multiple_of(PAGE_SIZE) {
            return Err(field(
                "memory",
                format!("must be a multiple of {PAGE_SIZE} bytes"),
            ));
        }
        self.origin.validate()?;
        socket_path("control", &self.control)?;
        if let Some(vsock) = &self.vsock {
            if vsock.cid < 3 || vsock.cid == u32::MAX {
                return Err(field(
                    "vsock.cid",
                    format!("is {}, must be 3 or more", vsock.cid),
                ));
            }
            socket_path("vsock.socket", &vsock.socket)?;
        }
        for (name, path) in [
            ("console", &self.console),
            ("profile", &self.profile),
            ("symbols", &self.symbols),
            ("snapshot", &self.snapshot),
        ] {
            path.iter().try_for_each(|path| absolute(name, path))?;
        }
        for (index, share) in self.shares.iter().enumerate() {
            let at = |name: &str| format!("shares[{index}].{name}");
            if share.tag.is_empty() || share.tag.len() > MAX_TAG || share.tag.contains('\0') {
                return Err(field(at("tag"), format!("must have 1 to {MAX_TAG} bytes")));
            }
            if self.shares[..index]
                .iter()
                .any(|other| other.tag == share.tag)
            {
                return Err(field(at("tag"), format!("repeats {:?}", share.tag)));
            }
            share.source.validate(&at("source"), share.read_only)?;
            share.validate_content(&at("files"), &at("directories"))?;
        }
        for (index, disk) in self.disks.iter().enumerate() {
            let at = |name: &str| format!("disks[{index}].{name}");
            disk.validate(at)?;
            if self.disks[..index].iter().any(|other| other.id == disk.id) {
                return Err(field(at("id"), format!("repeats {:?}", disk.id)));
            }
        }
        Ok(())
    }
}

impl Origin {
    fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Origin::Restore(path) => absolute("origin.restore", path),
            Origin::Boot(boot) => {
                absolute("origin.boot.kernel", &boot.kernel)?;
                if let Some(path) = &boot.initramfs {
                    absolute("origin.boot.initramfs", path)?;
                }
                if boot.cmdline.bytes().all(|b| (b' '..=b'~').contains(&b)) {
                    Ok(())
                } else {
                    Err(field("origin.boot.cmdline", "must be printable ASCII"))
                }
            }
        }
    }
}

impl DiskConfig {
    fn validate(&self, at: impl Fn(&str) -> String) -> Result<(), ConfigError> {
        let printable = self.id.bytes().all(|byte| byte.is_ascii_graphic());
        if self.id.is_empty() || self.id.len() > MAX_DISK_ID || !printable {
            let problem = format!("must have 1 to {MAX_DISK_ID} printable characters");
            return Err(field(at("id"), problem));
        }
        match (&self.path, self.capacity) {
            (Some(path), _) => absolute(&at("path"), path)?,
            (None, Some(_)) if self.read_only => {}
            (None, _) => {
                let problem = "is missing, so the disk must be read_only and have a capacity";
                return Err(field(at("path"), problem));
            }
        }
        match self.capacity {
            Some(_) if !self.read_only => {
                Err(field(at("capacity"), "is for disks that are read_only"))
            }
            Some(bytes) if !bytes.is_multiple_of(SECTOR_SIZE) => {
                let problem = format!("must be a multiple of {SECTOR_SIZE} bytes");
                Err(field(at("capacity"), problem))
            }
            _ => Ok(()),
        }
    }
}

impl ShareConfig {
    fn validate_content(&self, files: &str, directories: &str) -> Result<(), ConfigError> {
        for (at, paths) in [
            (files, self.files.iter().map(|file| &file.path).collect()),
            (directories, self.directories.iter().collect::<Vec<_>>()),
        ] {
            if self.read_only && !paths.is_empty() {
                return Err(field(at, "cannot be in a share that is read_only"));
            }
            for path in paths {
                absolute(at, path)?;
                if path.components().any(|part| part == Component::ParentDir) {
                    return Err(field(at, format!("{} leads upwards", path.display())));
                }
            }
        }
        Ok(())
    }
}

impl ShareSource {
    fn validate(&self, at: &str, share_read_only: bool) -> Result<(), ConfigError> {
        match self {
            ShareSource::Directory(path) => absolute(at, path),
            ShareSource::Collection(entries) => {
                for (index, CollectionEntry { name, path, .. }) in entries.iter().enumerate() {
                    let at = format!("{at}[{index}]");
                    let is_name = !matches!(name.as_str(), "" | "." | "..");
                    if !is_name || name.contains(['/', '\0']) {
                        let problem = format!("{name:?} is no file name");
                        return Err(field(format!("{at}.name"), problem));
                    }
                    if entries[..index].iter().any(|other| other.name == *name) {
                        return Err(field(format!("{at}.name"), format!("repeats {name:?}")));
                    }
                    absolute(&at, path)?;
                }
                Ok(())
            }
            ShareSource::Overlay { lower, upper, work } => {
                if lower.is_empty() {
                    return Err(field(format!("{at}.lower"), "is empty"));
                }
                if upper.is_some() != work.is_some() {
                    return Err(field(at, "needs both upper and work or neither"));
                }
                if upper.is_none() && !share_read_only {
                    return Err(field(
                        at,
                        "has no upper directory, so the share must be read_only",
                    ));
                }
                lower
                    .iter()
                    .chain(upper)
                    .chain(work)
                    .try_for_each(|path| absolute(at, path))
            }
        }
    }
}

fn absolute(at: &str, path: &Path) -> Result<(), ConfigError> {
    if path.is_absolute() {
        Ok(())
    } else {
        Err(field(
            at,
            format!("{} must be an absolute path", path.display()),
        ))
    }
}

/// Length of `sockaddr_un.sun_path` less the terminating zero and the `_<port>` that
/// [`VsockConfig`] appends.
const MAX_SOCKET_PATH: usize = 107 - "_4294967295".len();

fn socket_path(at: &str, path: &Path) -> Result<(), ConfigError> {
    absolute(at, path)?;
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        return Err(field(
            at,
            format!(
                "{} has {length} bytes, a Unix socket's path may have {MAX_SOCKET_PATH}: \
                 set HRUN_STATE to a shorter directory",
                path.display()
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VmConfig {
        VmConfig {
            version: VERSION,
            name: "test".into(),
            vcpus: 1,
            max_vcpus: None,
            memory: 128 << 20,
            origin: boot(BootConfig::default()),
            control: "/run/vm/control.sock".into(),
            vsock: Some(VsockConfig {
                cid: 3,
                socket: "/run/vm/vsock.sock".into(),
            }),
            shares: vec![ShareConfig {
                tag: "rootfs".into(),
                source: ShareSource::Overlay {
                    lower: vec!["/layer".into()],
                    upper: Some("/upper".into()),
                    work: Some("/work".into()),
                },
                read_only: false,
                exclusive: true,
                files: vec![SharedFile {
                    path: "/etc/hostname".into(),
                    content: "box\n".into(),
                    mode: 0o644,
                }],
                directories: vec!["/proc".into()],
            }],
            disks: vec![DiskConfig {
                id: "image".into(),
                path: Some("/image.erofs".into()),
                read_only: true,
                capacity: Some(1 << 30),
            }],
            console: None,
            start_paused: false,
            profile: None,
            symbols: None,
            snapshot: None,
        }
    }

    fn boot(boot: BootConfig) -> Origin {
        Origin::Boot(BootConfig {
            kernel: "/vmlinux".into(),
            ..boot
        })
    }

    #[test]
    fn a_document_survives_the_way_through_json() {
        let json = serde_json::to_vec(&config()).unwrap();
        assert_eq!(VmConfig::from_json(&json).unwrap(), config());
    }

    #[test]
    fn another_version_is_named_even_if_its_fields_differ() {
        let err = VmConfig::from_json(br#"{"version": 9, "wings": 2}"#).unwrap_err();
        assert!(matches!(err, ConfigError::Version(9)), "{err}");
    }

    #[test]
    fn values_that_cannot_be_are_refused_by_field() {
        type Spoil = fn(&mut VmConfig);
        let cases: [(&str, Spoil); 26] = [
            ("vcpus", |c| c.vcpus = 0),
            ("vcpus", |c| c.vcpus = MAX_VCPUS + 1),
            ("memory", |c| c.memory = MIN_MEMORY - PAGE_SIZE),
            ("memory", |c| c.memory += 1),
            ("origin.boot.kernel", |c| {
                c.origin = Origin::Boot(BootConfig::default());
            }),
            ("origin.boot.cmdline", |c| {
                c.origin = boot(BootConfig {
                    cmdline: "a\nb".into(),
                    ..BootConfig::default()
                });
            }),
            ("origin.restore", |c| {
                c.origin = Origin::Restore("here".into());
            }),
            ("shares[0].files", |c| {
                c.shares[0].files[0].path = "/a/../../b".into();
            }),
            ("shares[0].directories", |c| {
                c.shares[0].directories[0] = "proc".into();
            }),
            ("shares[0].files", |c| c.shares[0].read_only = true),
            ("shares[0].source[1].name", |c| {
                let entry = CollectionEntry {
                    name: "a".into(),
                    path: "/a".into(),
                    read_only: false,
                };
                c.shares[0].source = ShareSource::Collection(vec![entry.clone(), entry]);
            }),
            ("control", |c| {
                c.control = format!("/{}", "x".repeat(100)).into();
            }),
            ("vsock.cid", |c| c.vsock.as_mut().unwrap().cid = 2),
            ("disks[0].id", |c| c.disks[0].id = String::new()),
            ("disks[0].id", |c| {
                c.disks[0].id = "x".repeat(MAX_DISK_ID + 1);
            }),
            ("disks[1].id", |c| c.disks.push(c.disks[0].clone())),
            ("disks[0].path", |c| c.disks[0].path = Some("here".into())),
            ("disks[0].path", |c| {
                (c.disks[0].path, c.disks[0].capacity) = (None, None);
            }),
            ("disks[0].capacity", |c| c.disks[0].read_only = false),
            ("disks[0].capacity", |c| c.disks[0].capacity = Some(513)),
            ("shares[1].tag", |c| c.shares.push(c.shares[0].clone())),
            ("shares[0].tag", |c| {
                c.shares[0].tag = "t".repeat(MAX_TAG + 1);
            }),
            ("shares[0].source.lower", |c| {
                c.shares[0].source = ShareSource::Overlay {
                    lower: vec![],
                    upper: None,
                    work: None,
                };
            }),
            ("shares[0].source", |c| {
                c.shares[0].source = ShareSource::Overlay {
                    lower: vec!["/a".into()],
                    upper: None,
                    work: None,
                };
            }),
            ("shares[0].source", |c| {
                c.shares[0].source = ShareSource::Directory("a".into());
            }),
            ("shares[0].source[0].name", |c| {
                c.shares[0].source = ShareSource::Collection(vec![CollectionEntry {
                    name: "..".into(),
                    path: "/etc".into(),
                    read_only: true,
                }]);
            }),
        ];
        config().validate().unwrap();
        for (name, spoil) in cases {
            let mut config = config();
            spoil(&mut config);
            match config.validate() {
                Err(ConfigError::Field { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
