//! New file systems of the guest's kernel, mounted nowhere as yet.
//!
//! Boundary: mechanism only; what the kernel does not know, it refuses.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use agent_protocol::Attributes;
use rustix::mount::{
    self, FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, fsconfig_create,
    fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

/// A file system as mount(2) describes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewFileSystem<'a> {
    pub(crate) kind: &'a str,
    pub(crate) name: &'a str,
    pub(crate) options: &'a str,
}

impl NewFileSystem<'_> {
    /// A mount of it, attached nowhere; its root directory has this mode if one is given.
    pub(crate) fn mount(self, attributes: Attributes, mode: Option<u32>) -> io::Result<OwnedFd> {
        let context = fsopen(self.kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        if !self.name.is_empty() {
            fsconfig_set_string(&context, "source", self.name)?;
        }
        configure(&context, self.options)?;
        if let Some(mode) = mode {
            fsconfig_set_string(&context, "mode", format!("{mode:o}"))?;
        }
        fsconfig_create(&context)?;
        let bits = u32::try_from(attributes.set).map_err(|_| io::ErrorKind::InvalidInput)?;
        let attributes = MountAttrFlags::from_bits_retain(bits);
        Ok(fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            attributes,
        )?)
    }
}

/// Gives the file system that is mounted at `place` other options.
pub(crate) fn reconfigure(place: BorrowedFd<'_>, options: &str) -> io::Result<()> {
    let flags = FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC;
    let context = mount::fspick(place, "", flags)?;
    configure(&context, options)?;
    Ok(fsconfig_reconfigure(&context)?)
}

fn configure(context: &OwnedFd, options: &str) -> io::Result<()> {
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(context, key, value)?,
            None => fsconfig_set_flag(context, option)?,
        }
    }
    Ok(())
}

/// Whether options say something of this name.
pub(crate) fn names(options: &str, name: &str) -> bool {
    options
        .split(',')
        .any(|option| option.split('=').next() == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_known_by_their_names() {
        assert!(names("size=1m,mode=700", "mode"));
        assert!(names("ro", "ro"));
        assert!(!names("size=1m,nomode=1", "mode") && !names("", "mode"));
    }
}
