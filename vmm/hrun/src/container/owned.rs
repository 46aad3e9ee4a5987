//! A container that this process owns: its lock is held, and dropping it undoes what was done with
//! it.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
};

use super::{
    Config, ContainerError, LOCK, Record, STORE_LOCK, Status, WritableLayer, bury, end,
    layer::LayerError,
    life::{KILLED, STOPPED},
    now, open_lock,
    record::Found,
    remove_tree,
};
use crate::{
    log::{Log, LogOptions},
    process::ProcessIdentity,
    watch::Changes,
};

/// A live container, owned by this process.
#[derive(Debug)]
pub(crate) struct Container {
    dir: PathBuf,
    record: Record,
    /// Held, so that nobody else takes the container for dead.
    lock: File,
    /// How it was when it rested before: a start that fails leaves it as it was.
    before: Option<Status>,
    settled: bool,
}

impl Container {
    /// Makes a container's directories; the store's lock must be held.
    pub(super) fn create(dir: PathBuf, record: Record) -> Result<Self, ContainerError> {
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
            lock,
            before: None,
            settled: false,
        };
        container.write_locked()?;
        create_dir(&container.record.runtime_dir)?;
        Ok(container)
    }

    /// One that rests and is to be started; `lock` is its lock, held.
    pub(super) fn reopen(
        dir: PathBuf,
        record: Record,
        mut lock: File,
    ) -> Result<Self, ContainerError> {
        // How it ended counts no more.
        let mut forget = || {
            lock.set_len(0)?;
            lock.rewind()
        };
        forget().map_err(|source| ContainerError::Lock {
            path: dir.join(LOCK),
            source,
        })?;
        remove_tree(&record.runtime_dir)?;
        create_dir(&record.runtime_dir)?;
        Ok(Self {
            dir,
            before: Some(record.status.clone()),
            record,
            lock,
            settled: false,
        })
    }

    /// One that another process of ours has made and passed on, by its lock.
    pub(super) fn take(dir: PathBuf, lock: OwnedFd) -> Result<Self, ContainerError> {
        let read = |source| ContainerError::Read {
            path: dir.clone(),
            source,
        };
        let mut record = match Record::read(&dir).map_err(read)? {
            Found::Record(record) => *record,
            Found::Nothing | Found::Unreadable => {
                return Err(read(io::ErrorKind::NotFound.into()));
            }
        };
        let before = record.status.rests().then(|| record.status.clone());
        record.restarts = 0;
        Ok(Self {
            dir,
            record,
            lock: lock.into(),
            before,
            settled: false,
        })
    }

    /// Leaves it as it is, to be started later.
    pub(crate) fn rest(mut self) -> Result<(), ContainerError> {
        remove_tree(&self.record.runtime_dir)?;
        self.record.status = Status::Created;
        self.write()?;
        self.settled = true;
        Ok(())
    }

    /// Passes it on: who holds this descriptor owns it.
    pub(crate) fn pass_on(mut self) -> Result<OwnedFd, ContainerError> {
        let lock = self.lock.as_fd().try_clone_to_owned();
        let lock = lock.map_err(|source| ContainerError::Lock {
            path: self.dir.join(LOCK),
            source,
        })?;
        self.settled = true;
        Ok(lock)
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Writes down what it is to be.
    pub(crate) fn configure(&self, config: &Config) -> Result<(), ContainerError> {
        config
            .write(&self.dir, !self.record.auto_remove)
            .map_err(|source| ContainerError::Write {
                path: self.dir.clone(),
                source,
            })
    }

    /// Its writable layer, on top of the image layer `below`.
    pub(crate) fn layer(&self, below: &Path) -> Result<WritableLayer, LayerError> {
        WritableLayer::of(&self.dir, below)
    }

    /// Its log, to be written.
    pub(crate) fn log(&self, options: LogOptions) -> io::Result<Log> {
        Log::open(&self.dir, options)
    }

    /// Where the VM's control socket is to be.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.record.runtime_dir.join("control")
    }

    /// Where the VM's vsock socket is to be.
    pub(crate) fn vsock_socket(&self) -> PathBuf {
        self.record.runtime_dir.join("vsock")
    }

    /// Whether somebody ended its VM because a signal had to end the container.
    pub(crate) fn was_killed(&self) -> bool {
        self.record.runtime_dir.join(KILLED).exists()
    }

    /// Whether a user wants it to end, whatever its restart policy says.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.record.runtime_dir.join(STOPPED).exists()
    }

    /// Watches out for a user who wants it to end.
    pub(crate) fn watch(&self) -> io::Result<Changes> {
        Changes::of(&self.record.runtime_dir)
    }

    /// Its VM is gone and it is about to be started again: writes that down, and makes room for the
    /// sockets of another VM. From now on a start that fails leaves it ended, with this status.
    pub(crate) fn restarting(&mut self, code: u8) -> Result<(), ContainerError> {
        let finished = now();
        self.record.status = Status::Restarting { code, finished };
        self.record.restarts = self.record.restarts.saturating_add(1);
        self.before = Some(Status::Exited {
            code: Some(code),
            finished,
        });
        for path in [self.control_socket(), self.vsock_socket()] {
            remove_tree(&path)?;
        }
        remove_tree(&self.record.runtime_dir.join(KILLED))?;
        self.tell_end(code);
        self.write()
    }

    /// Writes down that its VM runs.
    pub(crate) fn running(&mut self, vmm: ProcessIdentity) -> Result<(), ContainerError> {
        self.record.started = Some(now());
        self.record.stopped = false;
        self.record.error = None;
        self.record.owner = i32::try_from(std::process::id()).ok();
        self.record.status = Status::Running { vmm };
        self.write()
    }

    /// It could not be started again; to be written down with what becomes of it now.
    pub(crate) fn note_failure(&mut self, error: String) {
        self.record.error = Some(error);
    }

    /// The command has ended and so has the VM: the container stays, stopped, or vanishes if
    /// that was asked for.
    pub(crate) fn settle(mut self, code: u8) -> Result<(), ContainerError> {
        // Either way nothing is left for the drop to do, or it would hide this error.
        self.settled = true;
        // Who waits for the end holds the file open: there it reads how it was, whatever becomes
        // of the container. Who cannot read it knows as much as before.
        let _ = self.lock.write_all(format!("{code}\n").as_bytes());
        self.tell_end(code);
        if self.record.auto_remove {
            return bury(&self.dir, &self.record);
        }
        self.record.stopped = self.is_unwanted();
        self.record.status = Status::Exited {
            code: Some(code),
            finished: now(),
        };
        self.write()?;
        remove_tree(&self.record.runtime_dir)
    }

    fn tell_end(&self, code: u8) {
        self.record.tell("die", &[("exitCode", &code.to_string())]);
    }

    /// Ends ownership as `kill -9` does: nothing is undone.
    #[cfg(test)]
    pub(super) fn abandon(mut self) {
        self.settled = true;
    }

    /// Writes the record, with the name that it has by now: whoever gave it another holds the
    /// store's lock meanwhile.
    fn write(&mut self) -> Result<(), ContainerError> {
        let path = self.dir.with_file_name(STORE_LOCK);
        let _lock = open_lock(&path)
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|source| ContainerError::Lock { path, source })?;
        if let Ok(Found::Record(record)) = Record::read(&self.dir) {
            self.record.name = record.name;
        }
        self.write_locked()
    }

    fn write_locked(&self) -> Result<(), ContainerError> {
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
        if self.settled {
            return;
        }
        // On the way out of a failure, which is what will be reported; what cannot be undone now
        // is undone by the next hrun.
        let _ = match self.before.take() {
            None => bury(&self.dir, &self.record),
            Some(before) => end(&self.record).and_then(|()| {
                self.record.status = before;
                self.write()
            }),
        };
    }
}

fn create_dir(path: &Path) -> Result<(), ContainerError> {
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(|source| ContainerError::CreateDir {
            path: path.into(),
            source,
        })
}
