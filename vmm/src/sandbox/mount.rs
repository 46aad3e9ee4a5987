//! Mounts that have no place yet, by their descriptors, and their way to one.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, mkdirat},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
        fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
    },
};

/// An empty tmpfs, without programs and devices.
///
/// # Errors
///
/// The kernel makes none.
pub fn tmpfs() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "mode", "0755")?;
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, ATTRIBUTES)
}

/// Nothing in a share is a device or a program to the VMM.
pub(super) const ATTRIBUTES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// What is at `path` once more, with all mounts below it if asked.
///
/// # Errors
///
/// Nothing is there, or it cannot be mounted.
pub fn clone_mount(path: &Path, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags)
}

/// Gives a mount its place: `path` below `base`, which is not followed if it is a link itself.
///
/// # Errors
///
/// There is no such place for it.
pub fn attach(mount: impl AsFd, base: impl AsFd, path: &Path) -> rustix::io::Result<()> {
    move_mount(
        mount,
        "",
        base,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// Makes a mount read-only, with all mounts below it if asked.
pub(crate) fn set_read_only(mount: impl AsFd, recursive: bool) -> rustix::io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        ..NO_CHANGE
    };
    change(mount, &attributes, recursive)
}

/// Makes a mount one that can be written.
pub(crate) fn set_writable(mount: impl AsFd) -> rustix::io::Result<()> {
    let attributes = libc::mount_attr {
        attr_clr: libc::MOUNT_ATTR_RDONLY,
        ..NO_CHANGE
    };
    change(mount, &attributes, false)
}

/// Cuts a mount and those below it off from others that show the same: what is mounted or unmounted
/// there has no effect here, nor the other way round.
pub(crate) fn set_private(mount: impl AsFd) -> rustix::io::Result<()> {
    let attributes = libc::mount_attr {
        propagation: libc::MS_PRIVATE,
        ..NO_CHANGE
    };
    change(mount, &attributes, true)
}

const NO_CHANGE: libc::mount_attr = libc::mount_attr {
    attr_set: 0,
    attr_clr: 0,
    propagation: 0,
    userns_fd: 0,
};

fn change(
    mount: impl AsFd,
    attributes: &libc::mount_attr,
    recursive: bool,
) -> rustix::io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor and both pointers are valid for the call, and the size is that of
    // the structure; the kernel only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL))
    }
}

pub(super) fn make_directories(base: impl AsFd, path: &Path) -> rustix::io::Result<()> {
    let mut made = PathBuf::new();
    for part in path {
        made.push(part);
        match mkdirat(&base, &made, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}
