//! Which extended attributes a layer may set.

use std::os::fd::BorrowedFd;

use rustix::fs::{XattrFlags, fsetxattr};
use rustix::io::Errno;

use crate::tree::TreeError;

/// ext4 has one block for all attributes of a file; no block is smaller than this.
const FITS_EVERYWHERE: usize = 512;
const TOO_LARGE: &str = "it has an extended attribute too large for the file system";

pub(super) enum Outcome {
    Set,
    LeftOut(&'static str),
}

/// Sets an attribute that describes the file to its user. Those that steer overlayfs or the
/// host's security modules are not the image's to set.
pub(super) fn set(file: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> Result<Outcome, TreeError> {
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return Ok(Outcome::LeftOut("it belongs to overlayfs"));
    }
    if name.starts_with(b"security.") && name != b"security.capability" {
        return Ok(Outcome::LeftOut(
            "it belongs to the host's security modules",
        ));
    }
    match fsetxattr(file, name, value, XattrFlags::empty()) {
        Ok(()) => Ok(Outcome::Set),
        Err(Errno::NOTSUP) => Ok(Outcome::LeftOut("the file system does not take it")),
        Err(Errno::TOOBIG | Errno::RANGE) => Err(TreeError::Refused(TOO_LARGE)),
        // ext4 says so of one that does not fit, and it would be taken for a full disk.
        Err(Errno::NOSPC) if value.len() > FITS_EVERYWHERE => Err(TreeError::Refused(TOO_LARGE)),
        Err(Errno::INVAL | Errno::PERM) => Ok(Outcome::LeftOut("the kernel refuses it")),
        Err(err) => Err(TreeError::System("set extended attributes of", err.into())),
    }
}
