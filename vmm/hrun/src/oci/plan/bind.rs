//! Where a bind mount's content comes from: a file or directory of the host goes through a share,
//! and what the guest has of its own takes the place of the host's.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{major, minor, statfs};

use super::{
    linux,
    refused::{Refused, value},
};

/// linux/magic.h
const PROC: i64 = 0x9fa0;
const SYSFS: i64 = 0x6265_6572;
const CGROUP2: i64 = 0x6367_7270;
const CGROUP: i64 = 0x27_e0eb;
const MQUEUE: i64 = 0x1980_0202;
const DEVPTS: i64 = 0x1cd1;
const TMPFS: i64 = 0x0102_1994;

/// A source that can be bound.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// A file or directory of the host, without symbolic links in its path.
    Host(PathBuf),
    /// A device that the guest has as well, by its path in the container.
    Guest(String),
}

/// Looks at a source.
pub(super) fn look(property: &str, source: &Path) -> Result<Bound, Refused> {
    let failed = |error| Refused::Source {
        property: property.into(),
        path: source.into(),
        source: error,
    };
    let real = source.canonicalize().map_err(failed)?;
    let metadata = fs::metadata(&real).map_err(failed)?;
    let kind = metadata.file_type();
    let refuse = |reason: &str| Err(value(property, source.to_string_lossy(), reason));
    if kind.is_dir() || kind.is_file() {
        if real.to_str().is_none() {
            return refuse("its path is no valid UTF-8");
        }
        return Ok(Bound::Host(real));
    }
    if kind.is_char_device() {
        let numbers = (major(metadata.rdev()), minor(metadata.rdev()));
        return match linux::guest_device(numbers.0.into(), numbers.1.into()) {
            Some(name) => Ok(Bound::Guest(format!("/dev/{name}"))),
            None => refuse("a device of the host is nothing in a guest"),
        };
    }
    if kind.is_socket() {
        return refuse("a socket of the host leads nowhere in a guest");
    }
    if kind.is_block_device() {
        return refuse("a disk of the host is nothing in a guest");
    }
    refuse("a named pipe of the host leads nowhere in a guest")
}

/// Whether the host's directory is of the kind that the agent has mounted in this place: then the
/// guest's own is what is meant.
pub(super) fn is_like_the_guests(target: &str, source: &Path) -> bool {
    let Ok(stat) = statfs(source) else {
        return false;
    };
    match target {
        "/proc" => stat.f_type == PROC,
        "/sys" => stat.f_type == SYSFS,
        // With version 1 there is a tmpfs of directories.
        "/sys/fs/cgroup" => matches!(stat.f_type, CGROUP2 | CGROUP | TMPFS),
        "/dev/mqueue" => stat.f_type == MQUEUE,
        "/dev/pts" => stat.f_type == DEVPTS,
        _ => false,
    }
}

/// How large the tmpfs is that is mounted at `source`, in bytes; None if there is none.
pub(super) fn tmpfs_size(property: &str, source: &Path) -> Result<Option<u64>, Refused> {
    let stat = statfs(source).map_err(|error| Refused::Source {
        property: property.into(),
        path: source.into(),
        source: io::Error::from(error),
    })?;
    let block = u64::try_from(stat.f_bsize).unwrap_or(0);
    let size = Some(stat.f_blocks.saturating_mul(block)).filter(|size| *size > 0);
    Ok(size.filter(|_| stat.f_type == TMPFS))
}
