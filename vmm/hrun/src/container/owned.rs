//! A container that this process owns: its lock is held, and dropping it undoes it.

use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use super::{
    ContainerError, LOCK, Record, Status, VmmIdentity, WritableLayer, bury, layer::LayerError, now,
    open_lock, remove_tree,
};

/// A live container, owned by this process.
#[derive(Debug)]
pub(crate) struct Container {
    dir: PathBuf,
    record: Record,
    /// Held, so that nobody else takes the container for dead.
    _lock: File,
    settled: bool,
}

impl Container {
    /// Makes a container's directories; the store's lock must be held.
    pub(super) fn create(dir: PathBuf, record: Record) -> Result<Self, ContainerError> {
        let create_dir = |path: &Path| {
            DirBuilder::new()
                .mode(0o700)
                .create(path)
                .map_err(|source| ContainerError::CreateDir {
                    path: path.into(),
                    source,
                })
        };
        create_dir(&dir)?;
        let path = dir.join(LOCK);
        let lock = open_lock(&path)
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|source| {
                // Best effort: the error that is returned is the one that matters.
                let _ = fs::remove_dir_all(&dir);
                ContainerError::Lock { path, source }
            })?;
        // From here on dropping it removes everything.
        let container = Self {
            dir,
            record,
            _lock: lock,
            settled: false,
        };
        container.write()?;
        create_dir(&container.record.runtime_dir)?;
        Ok(container)
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Makes its writable layer, on top of the image layer `below`.
    pub(crate) fn create_layer(&self, below: &Path) -> Result<WritableLayer, LayerError> {
        WritableLayer::create(&self.dir, below)
    }

    /// Where the VM's control socket is to be.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.record.runtime_dir.join("control")
    }

    /// Where the VM's vsock socket is to be.
    pub(crate) fn vsock_socket(&self) -> PathBuf {
        self.record.runtime_dir.join("vsock")
    }

    /// Writes down that its VM runs.
    pub(crate) fn running(&mut self, vmm: VmmIdentity) -> Result<(), ContainerError> {
        self.record.status = Status::Running { vmm };
        self.write()
    }

    /// The command has ended and so has the VM: the container stays, stopped, or vanishes if
    /// that was asked for.
    pub(crate) fn settle(mut self, code: u8) -> Result<(), ContainerError> {
        // Either way nothing is left for the drop to do, or it would hide this error.
        self.settled = true;
        if self.record.auto_remove {
            return bury(&self.dir, &self.record);
        }
        self.record.status = Status::Exited {
            code: Some(code),
            finished: now(),
        };
        self.write()?;
        remove_tree(&self.record.runtime_dir)
    }

    /// Ends ownership as `kill -9` does: nothing is undone.
    #[cfg(test)]
    pub(super) fn abandon(mut self) {
        self.settled = true;
    }

    fn write(&self) -> Result<(), ContainerError> {
        self.record
            .write(&self.dir)
            .map_err(|source| ContainerError::Write {
                path: self.dir.clone(),
                source,
            })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !self.settled {
            // On the way out of a failure, which is what will be reported; what cannot be
            // removed now is removed by the next hrun.
            let _ = bury(&self.dir, &self.record);
        }
    }
}
