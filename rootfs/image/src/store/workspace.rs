//! Directories in `tmp/` for work in progress, and the end of those that crashed commands left.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::{Store, StoreError, erofs, is_full};
use crate::trash::Trash;

/// A directory in `tmp/` that belongs to this process; removed with its contents on drop.
pub(crate) struct Workspace {
    path: PathBuf,
    /// Locked: tells other processes that the owner is alive.
    directory: File,
    trash: PathBuf,
}

impl Workspace {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A place on the same file system for what is to be deleted; empty, for one user at a time.
    pub(crate) fn trash(&self) -> io::Result<Trash> {
        Ok(Trash::new(File::open(&self.trash)?.into()))
    }

    /// Writes everything on the store's file system to the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.directory)?)
    }

    /// Takes over `path`, unless a living process owns it.
    fn claim(path: PathBuf) -> io::Result<Option<Self>> {
        let directory = match File::open(&path) {
            Ok(directory) => directory,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(err),
        };
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            other => other?,
        }
        let trash = tempfile::Builder::new()
            .prefix("trash-")
            .tempdir_in(&path)?
            .keep();
        Ok(Some(Self {
            path,
            directory,
            trash,
        }))
    }

    /// Makes the directory `path`, which is directly in the workspace, without what a failed
    /// attempt may have left there.
    pub(crate) fn make_directory(&self, path: &Path) -> io::Result<()> {
        let create = || DirBuilder::new().mode(0o700).create(path);
        match create() {
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {
                let name = path.file_name().unwrap_or_default();
                self.trash()?
                    .discard(&self.directory, &CString::new(name.as_bytes())?)?;
                create()
            }
            other => other,
        }
    }

    fn delete(&self) -> io::Result<()> {
        let mut trash = self.trash()?;
        let directory: OwnedFd = self.directory.try_clone()?.into();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.path() != self.trash {
                let name = CString::new(entry.file_name().as_bytes())?;
                trash.discard(&directory, &name)?;
            }
        }
        fs::remove_dir(&self.trash)?;
        fs::remove_dir(&self.path)
    }
}

/// Deletes what it can of the workspace `path`, which nobody has and whose files are no one's.
fn make_room(path: &Path) {
    let Ok(directory) = File::open(path) else {
        return;
    };
    if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
        // A tree that is too deep for this waits for the next command that has room.
        let _ = fs::remove_dir_all(path);
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // What cannot be deleted now is a leftover for the next command.
        let _ = self.delete();
    }
}

impl Store {
    /// Makes a workspace. The caller holds the store's lock, so that nobody takes it for a
    /// leftover before it is flocked.
    pub(super) fn new_workspace(&self) -> Result<Workspace, StoreError> {
        let tmp = self.tmp_path();
        let make = || {
            let path = tempfile::Builder::new()
                .prefix("w")
                .tempdir_in(&tmp)?
                .keep();
            match Workspace::claim(path.clone()) {
                Ok(Some(workspace)) => Ok(workspace),
                Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
                Err(err) => {
                    // Full with the first of its two directories.
                    let _ = fs::remove_dir(&path);
                    Err(err)
                }
            }
        };
        make().map_err(|err| self.failed("make a working directory in", &tmp, err))
    }

    /// Removes what crashed commands left: their workspaces, and what they renamed into place
    /// without naming it in the index.
    pub(super) fn clear_leftovers(&self) -> Result<(), StoreError> {
        let tmp = self.tmp_path();
        let read = || fs::read_dir(&tmp).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        // The usual case costs no lock.
        if read()
            .map_err(|err| self.failed("read", &tmp, err))?
            .is_empty()
        {
            return Ok(());
        }
        let lock = self.lock(rustix::fs::FlockOperation::LockExclusive)?;
        let mut dead = Vec::new();
        let mut made_room = false;
        for entry in read().map_err(|err| self.failed("read", &tmp, err))? {
            let path = entry.path();
            match Workspace::claim(path) {
                Ok(Some(workspace)) => dead.push(workspace),
                Ok(None) => {}
                // There is no room to clear up, but some to be had by it.
                Err(err) if is_full(&err) => {
                    make_room(&entry.path());
                    made_room = true;
                }
                Err(err) => return Err(self.failed("clear", &tmp, err)),
            }
        }
        if dead.is_empty() && made_room {
            dead.extend(self.new_workspace().ok());
        }
        if let Some(workspace) = dead.first() {
            self.set_orphans_aside(&self.read_index()?, workspace)?;
        }
        drop(lock);
        // The workspaces are deleted here, without the lock.
        drop(dead);
        Ok(())
    }

    /// Moves blobs, layers and EROFS files that `index` does not name into `workspace`, to be deleted with it.
    /// The caller holds the store's lock.
    pub(super) fn set_orphans_aside(
        &self,
        index: &crate::index::Index,
        workspace: &Workspace,
    ) -> Result<(), StoreError> {
        let blobs = index.blobs();
        self.set_aside(&self.blobs_path(), "blobs", workspace, |name| {
            blobs.contains(name)
        })?;
        self.set_aside(&self.layers_path(), "layers", workspace, |name| {
            index.layers.contains_key(name)
        })?;
        self.set_aside(&self.erofs_directory(), "erofs", workspace, |name| {
            name == erofs::LOCK || index.images.iter().any(|image| image.id.digest() == name)
        })
    }

    /// Deletes blobs and layers that `index` does not name where they are: on a full disk there may
    /// be no place to move them to. The caller holds the store's lock.
    pub(super) fn delete_orphans(&self, index: &crate::index::Index) -> Result<(), StoreError> {
        let blobs = index.blobs();
        let delete = |directory: &Path, keep: &dyn Fn(&str) -> bool| {
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                if entry.file_name().to_str().is_some_and(keep) {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    // What is too deep for this waits for a command that has room.
                    let _ = fs::remove_dir_all(entry.path());
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        let path = self.blobs_path();
        delete(&path, &|name| blobs.contains(name))
            .map_err(|err| self.failed("clear", &path, err))?;
        let path = self.layers_path();
        delete(&path, &|name| index.layers.contains_key(name))
            .map_err(|err| self.failed("clear", &path, err))
    }

    fn set_aside(
        &self,
        directory: &Path,
        kind: &str,
        workspace: &Workspace,
        keep: impl Fn(&str) -> bool,
    ) -> Result<(), StoreError> {
        // Directly there: on a full disk no directory can be made.
        let aside = |name: &OsStr| {
            let mut aside = OsString::from(format!("orphan-{kind}-"));
            aside.push(name);
            workspace.path().join(aside)
        };
        let run = || {
            let entries = match fs::read_dir(directory) {
                // A store has some directories only when they are first needed.
                Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            };
            for entry in entries {
                let name = entry?.file_name();
                if !name.to_str().is_some_and(&keep) {
                    fs::rename(directory.join(&name), aside(&name))?;
                }
            }
            Ok(())
        };
        run().map_err(|err| self.failed("clear", directory, err))
    }
}
