//! What the VMM process can reach of its host: its shares, its sockets, and nothing else.
//!
//! The process gets a mount namespace of its own whose root holds only
//!
//! | path | what |
//! |---|---|
//! | `/shares/N` | root of share N, read-only in the kernel's eyes if the share is |
//! | `/proc/self` | the process itself, through which virtio-fs opens files again |
//! | directories of the sockets | under their own names, for connections that the guest opens |
//!
//! Whatever is mounted here vanishes with the process, however it ends.

mod content;
pub(crate) mod mount;
mod overlay;

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, openat, readlink},
    io::Errno,
    mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount},
    process::{chdir, pivot_root},
    thread::{CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities},
};

use self::{
    content::fill,
    mount::{make_directories, set_read_only},
};
use crate::config::{ShareConfig, ShareSource};

pub use self::mount::{attach, clone_mount, tmpfs};
pub use self::overlay::overlay;

/// Failure to confine the process.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A step that concerns no share failed.
    #[error("Failed to {step}")]
    Step {
        /// What was attempted.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The files that a share is to hold cannot be written.
    #[error("Failed to write the files that share {tag:?} is to hold")]
    Fill {
        /// Its tag.
        tag: String,
        /// Why.
        source: io::Error,
    },
    /// A share's source cannot be mounted.
    #[error("Failed to share {path} as {tag:?}")]
    Share {
        /// Its tag.
        tag: String,
        /// What was to be shared.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn step(step: &'static str) -> impl FnOnce(Errno) -> SandboxError {
    move |source| SandboxError::Step {
        step,
        source: source.into(),
    }
}

/// The root of share `index`, once the process is confined.
#[must_use]
pub fn share(index: usize) -> PathBuf {
    Path::new("/shares").join(index.to_string())
}

/// Confines the process to `shares` and to the directories `sockets`, and gives up every
/// capability that serving files does not need. The new root file system is assembled on
/// `mount_point`, a directory whose content the process does not need under another name.
///
/// # Errors
///
/// The process lacks CAP_SYS_ADMIN, or something cannot be mounted: then it must end.
pub fn enter(
    mount_point: &Path,
    sockets: &[&Path],
    shares: &[ShareConfig],
) -> Result<(), SandboxError> {
    // SAFETY: the process has one thread as yet, and no descriptor or path of it depends on
    // the namespace being shared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(step("make a mount namespace"))?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(step("make all mounts private"))?;
    assemble(mount_point, sockets, shares)?;
    pivot(mount_point)?;
    drop_capabilities()
}

fn assemble(
    mount_point: &Path,
    sockets: &[&Path],
    shares: &[ShareConfig],
) -> Result<(), SandboxError> {
    // Sources first: the new root may hide them.
    // Not by our number: that is another one in /proc if our PID namespace is not its own.
    let own = readlink("/proc/self", Vec::new()).map_err(step("find itself in /proc"))?;
    let own = Path::new("/proc").join(OsStr::from_bytes(own.as_bytes()));
    let kept = [(Path::new("/proc/self"), own.as_path())]
        .into_iter()
        .chain(sockets.iter().map(|path| (*path, *path)))
        .map(|(to, from)| Ok((to, clone_mount(from, false)?)))
        .collect::<rustix::io::Result<Vec<_>>>()
        .map_err(step("find the directories that are kept"))?;
    let roots = shares
        .iter()
        .map(share_root)
        .collect::<Result<Vec<_>, _>>()?;

    let base = tmpfs().map_err(step("make a root file system"))?;
    attach(base.as_fd(), CWD, mount_point).map_err(step("mount a root file system"))?;
    for (path, directory) in kept {
        let relative = path.strip_prefix("/").unwrap_or(path);
        make_directories(base.as_fd(), relative)
            .and_then(|()| attach(directory.as_fd(), base.as_fd(), relative))
            .map_err(step("mount a directory that is kept"))?;
    }
    for (index, (root, config)) in roots.iter().zip(shares).enumerate() {
        let path = share(index);
        place(root, base.as_fd(), path.strip_prefix("/").unwrap_or(&path))
            .map_err(step("mount a share"))?;
        if let ShareRoot::Mount(mount) = root {
            fill(config, mount.as_fd()).map_err(|source| SandboxError::Fill {
                tag: config.tag.clone(),
                source: source.into(),
            })?;
        }
    }
    set_read_only(base.as_fd(), false).map_err(step("make the root file system read-only"))
}

/// Makes the root file system on `mount_point` the only one.
fn pivot(mount_point: &Path) -> Result<(), SandboxError> {
    chdir(mount_point).map_err(step("enter the root file system"))?;
    pivot_root(".", ".").map_err(step("pivot to the root file system"))?;
    // The old root lies over the new one now.
    unmount(".", UnmountFlags::DETACH).map_err(step("leave the host's file system"))?;
    chdir("/").map_err(step("enter the root file system"))
}

fn drop_capabilities() -> Result<(), SandboxError> {
    let kept = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    set_capabilities(None, sets).map_err(step("drop capabilities"))
}

/// Root of a share, before it has its place.
enum ShareRoot {
    Mount(OwnedFd),
    /// Files and directories, to be mounted on these names in a directory of its own.
    Collection(Vec<(String, OwnedFd)>),
}

fn share_root(share: &ShareConfig) -> Result<ShareRoot, SandboxError> {
    let failed = |path: &Path| {
        let (tag, path) = (share.tag.clone(), path.to_owned());
        move |source: rustix::io::Errno| SandboxError::Share {
            tag,
            path,
            source: source.into(),
        }
    };
    let bind = |path: &Path, read_only: bool| {
        clone_mount(path, true).and_then(|mount| {
            if read_only {
                set_read_only(mount.as_fd(), true)?;
            }
            Ok(mount)
        })
    };
    match &share.source {
        ShareSource::Directory(path) => {
            openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
                .and_then(|_| bind(path, share.read_only))
                .map(ShareRoot::Mount)
                .map_err(failed(path))
        }
        ShareSource::Collection(entries) => entries
            .iter()
            .map(|entry| {
                bind(&entry.path, share.read_only || entry.read_only)
                    .map(|mount| (entry.name.clone(), mount))
                    .map_err(failed(&entry.path))
            })
            .collect::<Result<_, _>>()
            .map(ShareRoot::Collection),
        // Overlayfs does not take a single layer and nothing to write to; nor is there a need.
        ShareSource::Overlay {
            lower, upper: None, ..
        } if lower.len() == 1 => bind(&lower[0], true)
            .map(ShareRoot::Mount)
            .map_err(failed(&lower[0])),
        ShareSource::Overlay { lower, upper, work } => {
            let upper = upper.as_deref().zip(work.as_deref());
            overlay(lower, upper, share.read_only, &[])
                .map(ShareRoot::Mount)
                .map_err(failed(upper.map_or(lower[0].as_path(), |(upper, _)| upper)))
        }
    }
}

fn place(root: &ShareRoot, base: impl AsFd, path: &Path) -> rustix::io::Result<()> {
    make_directories(base.as_fd(), path)?;
    match root {
        ShareRoot::Mount(mount) => attach(mount.as_fd(), base, path),
        ShareRoot::Collection(entries) => entries.iter().try_for_each(|(name, mount)| {
            let path = path.join(name);
            if FileType::from_raw_mode(fstat(mount)?.st_mode) == FileType::Directory {
                mkdirat(&base, &path, Mode::RUSR | Mode::XUSR)?;
            } else {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                openat(&base, &path, flags, Mode::RUSR)?;
            }
            attach(mount.as_fd(), base.as_fd(), &path)
        }),
    }
}

#[cfg(test)]
mod tests;
