//! Paths that a user names: what they say by themselves, and what they lead to in a root.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, readlinkat, statat,
};
use rustix::io::Errno;

/// For names of users: links are followed, as if the root were the whole file system.
pub(crate) const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
/// For names that others made up: links are not followed.
pub(crate) const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);
pub(crate) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// How many links may lead to a place, as in the kernel.
const MAX_LINKS: usize = 40;

/// A path taken apart as docker does it: `..` goes back by text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Components joined by single slashes; empty for the root.
    pub(crate) path: Vec<u8>,
    /// It ends like the name of a directory.
    pub(crate) is_directory: bool,
    /// It means what is in a directory rather than the directory.
    pub(crate) is_contents: bool,
}

impl Place {
    pub(crate) fn new(raw: &[u8]) -> Self {
        let mut parts = Vec::new();
        for part in raw.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let end = raw.rsplit(|byte| *byte == b'/').next();
        Self {
            path: parts.join(&b'/'),
            is_directory: parts.is_empty() || matches!(end, Some(b"" | b"." | b"..")),
            is_contents: parts.is_empty() || end == Some(b"."),
        }
    }

    /// The last component, empty for the root.
    pub(crate) fn name(&self) -> &[u8] {
        self.path.rsplit(|byte| *byte == b'/').next().unwrap_or(b"")
    }
}

/// What a path leads to: a name in a directory, or the directory itself.
#[derive(Debug)]
pub(crate) struct Spot {
    pub(crate) directory: OwnedFd,
    /// How the directory is reached from the root.
    pub(crate) path: Vec<u8>,
    pub(crate) name: Option<CString>,
}

impl Spot {
    /// Follows `path` in `root`, to the last link only if asked. What it ends at may be missing,
    /// but not the directory in which that is missing.
    pub(crate) fn find(root: BorrowedFd<'_>, path: &[u8], follow: bool) -> Result<Self, Errno> {
        let mut path = path.to_vec();
        for _ in 0..MAX_LINKS {
            let (parent, name) = split(&path)?;
            let spot = Self {
                directory: open(root, parent, DIRECTORY, IN_ROOT)?,
                path: parent.to_vec(),
                name,
            };
            let Some(name) = spot.name.as_ref().filter(|_| follow) else {
                return Ok(spot);
            };
            let target = match readlinkat(&spot.directory, name, Vec::new()) {
                Ok(target) => target.into_bytes(),
                Err(Errno::INVAL | Errno::NOENT) => return Ok(spot),
                Err(error) => return Err(error),
            };
            path = if target.starts_with(b"/") {
                target
            } else {
                crate::join(&spot.path, &target)
            };
        }
        Err(Errno::LOOP)
    }

    /// What is there, if anything is.
    pub(crate) fn stat(&self) -> Result<Option<Stat>, Errno> {
        let stat = match &self.name {
            Some(name) => statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW),
            None => rustix::fs::fstat(&self.directory),
        };
        match stat {
            Err(Errno::NOENT) => Ok(None),
            stat => stat.map(Some),
        }
    }

    /// Opens the directory that is there.
    pub(crate) fn open_directory(&self) -> Result<OwnedFd, Errno> {
        let name = self.name.as_ref().map_or(&b"."[..], |name| name.to_bytes());
        open(self.directory.as_fd(), name, DIRECTORY, BENEATH)
    }
}

/// The directory and the name in it; no name where the end of a path can only be a directory.
fn split(path: &[u8]) -> Result<(&[u8], Option<CString>), Errno> {
    let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&path[..0], path),
    };
    if matches!(name, b"" | b"." | b"..") {
        return Ok((path, None));
    }
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    Ok((parent, Some(name)))
}

/// Opens `path`, empty for `from` itself.
pub(crate) fn open(
    from: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    how: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    // The kernel gives up with EAGAIN if something was renamed meanwhile, anywhere on the machine.
    const ATTEMPTS: usize = 1000;
    let path = if path.is_empty() { b"." } else { path };
    for _ in 0..ATTEMPTS {
        match openat2(from, path, flags, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

pub(crate) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(raw: &str) -> (String, bool, bool) {
        let place = Place::new(raw.as_bytes());
        let path = String::from_utf8(place.path).unwrap();
        (path, place.is_directory, place.is_contents)
    }

    #[test]
    fn the_end_of_a_path_says_what_is_meant() {
        for (raw, path, is_directory, is_contents) in [
            ("/a/b", "a/b", false, false),
            ("a//./b/", "a/b", true, false),
            ("/a/.", "a", true, true),
            ("/a/../../b", "b", false, false),
            ("/a/b/..", "a", true, false),
            ("/", "", true, true),
            (".", "", true, true),
            ("/..", "", true, true),
        ] {
            assert_eq!(
                place(raw),
                (path.into(), is_directory, is_contents),
                "{raw}"
            );
        }
        assert_eq!(Place::new(b"/a/b/.").name(), b"b");
        assert_eq!(Place::new(b"/").name(), b"");
    }
}
