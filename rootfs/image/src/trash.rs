//! Deletes trees of any depth with a constant number of descriptors and no recursion.
//!
//! An archive can nest directories deeper than descriptors, stack or `PATH_MAX` allow a recursive
//! deletion to follow. So every directory found is first moved to one flat directory, the trash,
//! and emptied there.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

/// A directory whose contents nobody else touches, on the file system of what it deletes.
pub(crate) struct Trash {
    directory: OwnedFd,
    /// Directories in the trash are numbered.
    next: u64,
}

impl Trash {
    /// Uses `directory`, which is empty.
    pub(crate) fn new(directory: OwnedFd) -> Self {
        Self { directory, next: 0 }
    }

    /// Deletes what `parent` has as `name`, whatever it is. `name` is one component.
    pub(crate) fn discard(&mut self, parent: impl AsFd, name: &CStr) -> io::Result<()> {
        let mut emptied = self.next;
        self.take(parent, name)?;
        while emptied < self.next {
            self.empty(emptied)?;
            emptied += 1;
        }
        Ok(())
    }

    /// Deletes a file, moves a directory.
    fn take(&mut self, parent: impl AsFd, name: &CStr) -> io::Result<()> {
        match unlinkat(&parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                renameat(&parent, name, &self.directory, self.next.to_string())?;
                self.next += 1;
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn empty(&mut self, number: u64) -> io::Result<()> {
        let name = number.to_string();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(&self.directory, &name, flags, Mode::empty())?;
        loop {
            for entry in Dir::read_from(&directory)? {
                let entry = entry?;
                let name = entry.file_name();
                if name != c"." && name != c".." {
                    self.take(&directory, name)?;
                }
            }
            match unlinkat(&self.directory, &name, AtFlags::REMOVEDIR) {
                // A file system may skip entries of a directory that changes while it is read.
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                other => return Ok(other?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::mkdirat;
    use std::fs;
    use std::path::Path;

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn a_tree_deeper_than_paths_and_descriptors_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("trash")).unwrap();
        let root = open(dir.path());
        let mut at = root.try_clone().unwrap();
        for _ in 0..5000 {
            mkdirat(&at, "deep", Mode::RWXU).unwrap();
            at = openat(
                &at,
                "deep",
                OFlags::RDONLY | OFlags::DIRECTORY,
                Mode::empty(),
            )
            .unwrap();
        }
        drop(at);
        Trash::new(open(&dir.path().join("trash")))
            .discard(&root, c"deep")
            .unwrap();
        assert!(!dir.path().join("deep").exists());
        assert_eq!(fs::read_dir(dir.path().join("trash")).unwrap().count(), 0);
    }

    #[test]
    fn symlinks_are_deleted_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["trash", "kept", "gone"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("kept/file"), "x").unwrap();
        std::os::unix::fs::symlink("../kept", dir.path().join("gone/link")).unwrap();
        let mut trash = Trash::new(open(&dir.path().join("trash")));
        trash.discard(open(dir.path()), c"gone").unwrap();
        assert!(dir.path().join("kept/file").exists());
        assert!(!dir.path().join("gone").exists());
    }
}
