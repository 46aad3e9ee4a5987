//! A root file system that the guest stacks by itself: an overlayfs of something read-only and of
//! a tmpfs that takes the changes.
//!
//! Not of a share: overlayfs keeps one name of each of its files and asks a FUSE server about that
//! again, so that a file with two names is stale (ESTALE) once the first one is removed.
//!
//! Boundary: mounts on a directory that `container` names; runs in the sandbox, whose mount
//! namespace keeps what is mounted here out of sight.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use agent_protocol::Lower;
use rustix::fs::{self, Gid, Mode, Uid};
use rustix::mount::{self, MountFlags};

use crate::container::{Place, Result, failed, make_dir, mount_tmpfs};

/// Directories below the staging directory.
const LOWER: &str = "lower";
const UPPER: &str = "upper";

/// Directories of the tmpfs.
const CHANGES: &str = "upper";
const WORK: &str = "work";

/// Mounts the overlay on `target`, with a tmpfs of these options for its changes.
pub(crate) fn mount(place: Place<'_>, lower: &Lower, upper: &str, target: &Path) -> Result<()> {
    let lower_at = mount_lower(place, lower)?;
    let upper_at = place.at(UPPER);
    make_dir(&upper_at)?;
    mount_tmpfs(&upper_at, upper)?;
    for name in [CHANGES, WORK] {
        make_dir(&upper_at.join(name))?;
    }
    copy_owner_and_mode(&lower_at, &upper_at.join(CHANGES))?;
    let mut data = b"lowerdir=".to_vec();
    data.extend(lower_at.as_os_str().as_bytes());
    for (key, name) in [(",upperdir=", CHANGES), (",workdir=", WORK)] {
        data.extend(key.as_bytes());
        data.extend(upper_at.join(name).as_os_str().as_bytes());
    }
    // What is in memory needs no syncing.
    data.extend(b",volatile");
    let data = CString::new(data)
        .map_err(|error| failed("mount", "the overlay")(io::Error::from(error)))?;
    mount::mount(
        "overlay",
        target,
        "overlay",
        MountFlags::empty(),
        data.as_c_str(),
    )
    .map_err(failed("mount", "the overlay"))
}

/// Gives the directory in which the lower tree is.
fn mount_lower(place: Place<'_>, lower: &Lower) -> Result<PathBuf> {
    let at = place.at(LOWER);
    make_dir(&at)?;
    match lower {
        Lower::Share { tag } => {
            (place.mount_share)(tag, &at).map_err(failed("mount share", tag))?;
            Ok(at)
        }
        Lower::Disk { number } => {
            let name = disk_name(*number);
            // The disk is mounted over the file system that has its node: nothing is left to do.
            mount::mount("devtmpfs", &at, "devtmpfs", MountFlags::empty(), None)
                .map_err(failed("mount", "devtmpfs"))?;
            mount::mount(at.join(&name), &at, "erofs", MountFlags::RDONLY, None)
                .map_err(failed("mount disk", name))?;
            Ok(at)
        }
    }
}

/// What the kernel calls a disk.
fn disk_name(number: u8) -> String {
    match number {
        0..26 => format!("vd{}", char::from(b'a' + number)),
        _ => format!("disk {number}"),
    }
}

/// The root of an overlay has what its upper directory has.
fn copy_owner_and_mode(from: &Path, to: &Path) -> Result<()> {
    let copy = || {
        let stat = fs::stat(from)?;
        fs::chown(
            to,
            Some(Uid::from_raw(stat.st_uid)),
            Some(Gid::from_raw(stat.st_gid)),
        )?;
        fs::chmod(to, Mode::from_raw_mode(stat.st_mode))
    };
    copy().map_err(failed("prepare", "the overlay's upper directory"))
}
