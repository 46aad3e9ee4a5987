//! What a container must not see, must not write, and finds set: masked and read-only paths and
//! kernel parameters of the OCI specification.
//!
//! Paths are looked up in the container's root by descriptors, before anything runs in it: whatever
//! an image has in their place leads nowhere else.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{self, MountFlags, OpenTreeFlags};
use rustix::process;

use crate::container::{ContainerError, Devices, attach, failed, is_dir};
use crate::{paths, sys};

/// Confines a container that is put together in `root`; runs in the sandbox.
pub(crate) fn apply(
    root: BorrowedFd<'_>,
    devices: &Devices,
    spec: &agent_protocol::Container,
) -> Result<(), ContainerError> {
    for (name, value) in &spec.sysctls {
        set(devices.proc.as_fd(), name, value).map_err(failed("set the kernel parameter", name))?;
    }
    for path in &spec.readonly_paths {
        unless_missing(make_read_only(root, path)).map_err(failed("make read-only", path))?;
    }
    for path in &spec.masked_paths {
        unless_missing(mask(root, devices, path)).map_err(failed("mask", path))?;
    }
    Ok(())
}

/// What is not there needs no confinement.
fn unless_missing(result: Result<(), ConfineError>) -> io::Result<()> {
    match result {
        Err(ConfineError::Missing) | Ok(()) => Ok(()),
        Err(ConfineError::System(error)) => Err(error),
    }
}

enum ConfineError {
    Missing,
    System(io::Error),
}

impl<E: Into<io::Error>> From<E> for ConfineError {
    fn from(error: E) -> Self {
        Self::System(error.into())
    }
}

fn find(root: BorrowedFd<'_>, path: &str) -> Result<std::os::fd::OwnedFd, ConfineError> {
    paths::open(root, path).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => ConfineError::Missing,
        _ => error.into(),
    })
}

fn mask(root: BorrowedFd<'_>, devices: &Devices, path: &str) -> Result<(), ConfineError> {
    let target = find(root, path)?;
    if is_dir(target.as_fd()).map_err(io::Error::other)? {
        // mount(2) wants a path, and this is the one that nothing can redirect.
        process::fchdir(&target)?;
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        mount::mount(
            "tmpfs",
            ".",
            "tmpfs",
            flags,
            Some(c"nr_blocks=1,nr_inodes=1"),
        )?;
        return Ok(());
    }
    let null = clone_of(devices.null.as_fd())?;
    attach(null.as_fd(), Path::new(""), target.as_fd(), path).map_err(io::Error::other)?;
    Ok(())
}

fn make_read_only(root: BorrowedFd<'_>, path: &str) -> Result<(), ConfineError> {
    let target = find(root, path)?;
    let tree = clone_of(target.as_fd())?;
    sys::mount_read_only(tree.as_fd(), c"", true)?;
    attach(tree.as_fd(), Path::new(""), target.as_fd(), path).map_err(io::Error::other)?;
    Ok(())
}

/// A mount of what is at `place` and below, attached nowhere.
pub(crate) fn clone_of(place: BorrowedFd<'_>) -> rustix::io::Result<std::os::fd::OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    mount::open_tree(place, "", flags)
}

/// Sets a kernel parameter by its name as sysctl(8) has it: with dots for slashes, or with slashes.
fn set(proc: BorrowedFd<'_>, name: &str, value: &str) -> io::Result<()> {
    let path = match name.find(['.', '/']).map(|first| &name[first..=first]) {
        // Dots in names are written as slashes then, as in net.ipv4.conf.eth0/1.forwarding.
        Some(".") => name
            .chars()
            .map(|letter| match letter {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    };
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Errno::INVAL.into());
    }
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let file = fs::openat2(proc, format!("sys/{path}"), flags, Mode::empty(), resolve)?;
    rustix::io::write(file, value.as_bytes())?;
    Ok(())
}
