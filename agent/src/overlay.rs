//! A root file system that the guest stacks by itself: an overlayfs of something read-only and of
//! something that takes the changes.
//!
//! Boundary: mounts on a directory that `container` names; runs in the sandbox, whose mount
//! namespace keeps what is mounted here out of sight.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use agent_protocol::{Lower, Upper};
use rustix::fs::{self, Gid, Mode, Uid};
use rustix::mount::{self, MountFlags};

use crate::container::{Place, Result, failed, make_dir, mount_tmpfs};

/// Directories below the staging directory.
const LOWER: &str = "lower";
const UPPER: &str = "upper";

/// Directories of what takes the changes.
const CHANGES: &str = "upper";
const WORK: &str = "work";

/// Mounts the overlay on `target`.
pub(crate) fn mount(place: Place<'_>, lower: &Lower, upper: &Upper, target: &Path) -> Result<()> {
    let lower_at = mount_lower(place, lower)?;
    let (upper_at, options) = mount_upper(place, lower, upper, &lower_at)?;
    let mut data = b"lowerdir=".to_vec();
    data.extend(lower_at.as_os_str().as_bytes());
    for (key, name) in [(",upperdir=", CHANGES), (",workdir=", WORK)] {
        data.extend(key.as_bytes());
        data.extend(upper_at.join(name).as_os_str().as_bytes());
    }
    data.extend(options.as_bytes());
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
        Lower::Share { tag, path } => {
            (place.mount_share)(tag, &at).map_err(failed("mount share", tag))?;
            Ok(at.join(path))
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

/// Gives the directory that holds those of the changes, and what the overlay has to be told.
fn mount_upper(
    place: Place<'_>,
    lower: &Lower,
    upper: &Upper,
    lower_at: &Path,
) -> Result<(PathBuf, &'static str)> {
    let at = place.at(UPPER);
    match upper {
        Upper::Tmpfs { options } => {
            make_dir(&at)?;
            mount_tmpfs(&at, options)?;
            for name in [CHANGES, WORK] {
                make_dir(&at.join(name))?;
            }
            copy_owner_and_mode(lower_at, &at.join(CHANGES))?;
            // What is in memory needs no syncing.
            Ok((at, ",volatile"))
        }
        Upper::Share { tag, path } => {
            // The host's server may not set trusted attributes: overlayfs takes the users' ones.
            let options = ",userxattr";
            if matches!(lower, Lower::Share { tag: lower, .. } if lower == tag) {
                return Ok((place.at(LOWER).join(path), options));
            }
            make_dir(&at)?;
            (place.mount_share)(tag, &at).map_err(failed("mount share", tag))?;
            Ok((at.join(path), options))
        }
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
