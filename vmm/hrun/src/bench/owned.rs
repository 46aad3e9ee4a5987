//! What a benchmark has outside of its process: directories and control groups. Each is locked by
//! the benchmark that it belongs to, so that the next one knows what a killed one left behind.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use tempfile::TempDir;

/// What names of directories begin with, in directories of hrun's.
const PREFIX: &str = "bench-";

/// A directory of this benchmark's, removed with it.
#[derive(Debug)]
pub(super) struct Directory {
    // Dropped first: what nobody owns is there no more.
    directory: TempDir,
    _lock: File,
}

impl Directory {
    /// Makes one in `parent`, and removes those that killed benchmarks left there.
    pub(super) fn new(parent: &Path) -> io::Result<Self> {
        fs::create_dir_all(parent)?;
        for (path, _lock) in abandoned(parent, PREFIX) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_dir_all(path);
        }
        loop {
            let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
            if let Some(lock) = own(directory.path())? {
                return Ok(Self {
                    directory,
                    _lock: lock,
                });
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Makes a directory this process's own for as long as the lock is held. None if somebody else has
/// it, or took it for a killed benchmark's and removed it.
pub(super) fn own(path: &Path) -> io::Result<Option<File>> {
    let locked = File::open(path).and_then(|file| {
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let is_there = fs::metadata(path)?.ino() == file.metadata()?.ino();
        Ok(is_there.then_some(file))
    });
    match locked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::WOULDBLOCK.raw_os_error()) => Ok(None),
        locked => locked,
    }
}

/// The directories in `parent` with this prefix that belong to nobody, locked.
pub(super) fn abandoned(parent: &Path, prefix: &str) -> Vec<(PathBuf, File)> {
    let named = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.starts_with(prefix));
    fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| named(&entry.file_name()))
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| Some((entry.path(), own(&entry.path()).ok()??)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_belongs_to_nobody_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let mine = Directory::new(parent.path()).unwrap();
        for left in ["bench-left/below", "other"] {
            fs::create_dir_all(parent.path().join(left)).unwrap();
        }
        let next = Directory::new(parent.path()).unwrap();
        assert!(!parent.path().join("bench-left").exists());
        assert!(mine.path().exists() && next.path().exists());
        assert!(parent.path().join("other").exists());
        drop((mine, next));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
