//! An image as one read-only EROFS file, for a disk of a VM.
//!
//! Made by mkfs.erofs(1) when it is first asked for, from the layers as overlayfs merges them:
//! whiteouts and opaque directories are applied, owners, modes, times and extended attributes are
//! kept. The overlay is mounted in a mount namespace of the maker's own, so that no crash leaves
//! it behind.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use rustix::fs::{CWD, FlockOperation};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
};
use rustix::thread::UnshareFlags;

use super::{Store, StoreError, Workspace, lock_file};
use crate::{Digest, Image, ImageUse};

/// The tool, and the Debian package that has it.
const MKFS: &str = "mkfs.erofs";
const PACKAGE: &str = "erofs-utils";

/// Why an image could not be made an EROFS file.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// mkfs.erofs is not installed.
    #[error("{MKFS} is missing, which makes the disk of an image: install the package {PACKAGE}")]
    NoMkfs,
    /// It failed.
    #[error("{MKFS} failed on image {image}: {message}")]
    Mkfs {
        /// The image's id.
        image: Digest,
        /// What it said.
        message: String,
    },
    /// The layers could not be mounted on each other.
    #[error("Failed to merge the layers of image {image}")]
    Merge {
        /// The image's id.
        image: Digest,
        /// Why.
        source: io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// The EROFS file of `image`, which is made if there is none yet. It is read-only and stays in
    /// place as long as the image is in use.
    pub fn erofs(&self, image: &Image, _in_use: &ImageUse) -> Result<PathBuf, ErofsError> {
        let path = self.erofs_path(&image.id);
        if path.exists() {
            return Ok(path);
        }
        let directory = self.erofs_directory();
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => {
                return Err(self.failed("create", &directory, err).into());
            }
            _ => {}
        }
        // One at a time: two that want the same image must not make it twice.
        let _making = lock_file(&directory.join(LOCK), FlockOperation::LockExclusive)
            .map_err(|err| self.failed("lock", &directory, err))?;
        if path.exists() {
            return Ok(path);
        }
        let workspace = {
            let _lock = self.lock(FlockOperation::LockShared)?;
            self.new_workspace()?
        };
        let made = self.make_erofs(image, &workspace)?;
        let publish = || {
            let file = File::open(&made)?;
            file.set_permissions(fs::Permissions::from_mode(0o400))?;
            file.sync_all()?;
            fs::rename(&made, &path)?;
            File::open(&directory)?.sync_all()
        };
        publish().map_err(|err| self.failed("write", &path, err))?;
        Ok(path)
    }

    /// Makes the file in the workspace.
    fn make_erofs(&self, image: &Image, workspace: &Workspace) -> Result<PathBuf, ErofsError> {
        let target = workspace.path().join("image.erofs");
        let merged = workspace.path().join("merged");
        let empty = workspace.path().join("empty");
        for directory in [&merged, &empty] {
            workspace
                .make_directory(directory)
                .map_err(|err| self.failed("create", directory, err))?;
        }
        // Overlayfs wants two layers at least, and an image may have one.
        let lower: Vec<&Path> = image
            .layers
            .iter()
            .map(PathBuf::as_path)
            .chain([empty.as_path()])
            .collect();
        let merge_failed = |source: Errno| ErofsError::Merge {
            image: image.id.clone(),
            source: source.into(),
        };
        // A mount namespace belongs to a thread: this one's ends with it.
        let output = thread::scope(|scope| {
            let make = || {
                mount_merged(&lower, &merged).map_err(merge_failed)?;
                run_mkfs(&target, &merged).map_err(|err| match err.kind() {
                    io::ErrorKind::NotFound => ErofsError::NoMkfs,
                    _ => self.failed("run mkfs.erofs for", &target, err).into(),
                })
            };
            thread::Builder::new()
                .name("mkfs-erofs".to_owned())
                .spawn_scoped(scope, make)
                .map_err(|err| self.failed("start a thread for", &target, err))?
                .join()
                .expect("making a file system does not panic")
        })?;
        if output.status.success() {
            return Ok(target);
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if is_full_message(&message) {
            let full = io::Error::from(io::ErrorKind::StorageFull);
            return Err(self.failed("write", &target, full).into());
        }
        Err(ErofsError::Mkfs {
            image: image.id.clone(),
            message: if message.is_empty() {
                output.status.to_string()
            } else {
                message
            },
        })
    }

    pub(super) fn erofs_directory(&self) -> PathBuf {
        self.root.join("erofs")
    }

    pub(super) fn erofs_path(&self, id: &Digest) -> PathBuf {
        self.erofs_directory().join(id.digest())
    }

    /// Bytes of the image's EROFS file, if there is one.
    pub(super) fn erofs_bytes(&self, id: &Digest) -> u64 {
        fs::metadata(self.erofs_path(id)).map_or(0, |metadata| metadata.len())
    }
}

/// Held by who makes a file; no image has this for its id.
pub(super) const LOCK: &str = "lock";

/// Mounts the layers on each other, topmost first, where only this thread sees it.
fn mount_merged(lower: &[&Path], target: &Path) -> rustix::io::Result<()> {
    #[expect(
        deprecated,
        reason = "unsafe for FILES, which takes descriptors from a thread; NEWNS takes none"
    )]
    rustix::thread::unshare(UnshareFlags::NEWNS)?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let mount = |one_by_one: bool| {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        if one_by_one {
            for layer in lower {
                fsconfig_set_string(context.as_fd(), "lowerdir+", *layer)?;
            }
        } else {
            let names: Vec<_> = lower.iter().map(|layer| escape(layer)).collect();
            fsconfig_set_string(context.as_fd(), "lowerdir", names.join(":"))?;
        }
        fsconfig_create(context.as_fd())?;
        fsmount(
            context.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV,
        )
    };
    // Linux 6.5 learned "lowerdir+"; before, the whole list is one string of at most 255 bytes.
    let mounted = match mount(true) {
        Err(Errno::INVAL) => mount(false)?,
        done => done?,
    };
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mounted, "", CWD, target, flags)
}

/// A layer's path as it stands in the list of `lowerdir`.
fn escape(layer: &Path) -> String {
    layer
        .to_string_lossy()
        .replace('\\', "\\\\")
        .replace(':', "\\:")
}

/// Without compression and without a fixed time: a program that is mapped is read as it is, and
/// files keep their times.
fn run_mkfs(target: &Path, source: &Path) -> io::Result<std::process::Output> {
    Command::new(MKFS)
        .arg("--quiet")
        .arg(target)
        .arg(source)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
}

/// The tool has no exit status for it.
fn is_full_message(message: &str) -> bool {
    message.contains("No space left on device") || message.contains("Disk quota exceeded")
}
