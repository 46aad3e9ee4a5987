//! What others than its owner do with a container: ask how it is, pause it, wait for its end, end
//! it, give it another name, start it again.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read},
    os::fd::OwnedFd,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use vmm::api::{Client, Request, VmState};

use super::{
    Container, ContainerError, Containers, Id, LOCK, Ownership, PauseError, Record, Status, name,
    try_own,
};

/// Marks in its runtime directory a container whose VM is ended in the place of a signal that ends
/// every process.
pub(super) const KILLED: &str = "killed";

/// Marks in its runtime directory a container that a user wants to end: whatever its restart policy
/// says, it is not started again.
pub(super) const STOPPED: &str = "stopped";

/// How long the VM may take to say how it is.
const STATE_TIMEOUT: Duration = Duration::from_millis(500);

/// How often a lock is tried.
const POLL: Duration = Duration::from_millis(10);

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    /// Its status, if anybody saw it.
    pub(crate) code: Option<u8>,
}

impl Record {
    /// Where the VM's control socket is while it runs.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.runtime_dir.join("control")
    }

    /// Where the VM's vsock socket is while it runs.
    pub(crate) fn vsock_socket(&self) -> PathBuf {
        self.runtime_dir.join("vsock")
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.status, Status::Running { .. })
    }

    /// Whether it has ended, for good.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.status, Status::Exited { .. })
    }

    /// Whether it has ended and its owner is about to start it again.
    pub(crate) fn is_restarting(&self) -> bool {
        matches!(self.status, Status::Restarting { .. })
    }

    /// Has its owner not start it again when it ends, or if it has ended.
    pub(crate) fn forbid_restart(&self) {
        // If its owner just removed the directory, it has ended.
        let _ = fs::write(self.runtime_dir.join(STOPPED), "");
    }

    /// Whether it runs and its VM's CPUs stand still. A VM that does not say is about to end.
    pub(crate) fn is_paused(&self) -> bool {
        self.is_running()
            && Client::connect(&self.control_socket(), STATE_TIMEOUT)
                .and_then(|mut vm| vm.request(Request::Status))
                .is_ok_and(|status| status.state == VmState::Paused)
    }

    /// Stops the CPUs of its VM, or lets them go on.
    pub(crate) fn set_paused(&self, paused: bool) -> Result<(), ContainerError> {
        if !self.is_running() {
            return Err(ContainerError::NotRunning(self.name.clone()));
        }
        let request = if paused {
            Request::Pause
        } else {
            Request::Resume
        };
        let set = || -> Result<(), PauseError> {
            let mut vm = Client::connect(&self.control_socket(), super::still::TIMEOUT)?;
            vm.request(request)?;
            Ok(())
        };
        set().map_err(|source| ContainerError::Pause {
            name: self.name.clone(),
            source,
        })?;
        self.tell(if paused { "pause" } else { "unpause" }, &[]);
        Ok(())
    }

    /// Ends its VM at once. Its owner takes that for the work of a signal.
    pub(crate) fn kill_vm(&self) -> Result<(), ContainerError> {
        let Status::Running { vmm } = &self.status else {
            return Ok(());
        };
        // If its owner just removed the directory, it has ended.
        let _ = fs::write(self.runtime_dir.join(KILLED), "");
        vmm.kill().map_err(|source| ContainerError::Kill {
            pid: vmm.pid,
            name: self.name.clone(),
            source,
        })
    }
}

/// Waits for the end of a container; made while it lives.
#[derive(Debug)]
pub(crate) struct Waiting {
    lock: Option<File>,
    path: PathBuf,
    ended: Option<Ending>,
}

impl Waiting {
    /// How it ended, unless it did not until `deadline`.
    pub(crate) fn wait(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<Ending>, ContainerError> {
        let failed = |source| ContainerError::Lock {
            path: self.path.clone(),
            source,
        };
        let Some(lock) = &mut self.lock else {
            return Ok(self.ended);
        };
        match deadline {
            None => lock.lock_shared().map_err(failed)?,
            Some(deadline) => loop {
                match lock.try_lock_shared() {
                    Ok(()) => break,
                    Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                        return Ok(None);
                    }
                    Err(TryLockError::WouldBlock) => thread::sleep(POLL),
                    Err(TryLockError::Error(error)) => return Err(failed(error)),
                }
            },
        }
        let mut text = String::new();
        let read = lock.take(16).read_to_string(&mut text);
        read.map_err(failed)?;
        self.lock = None;
        self.ended = Some(Ending {
            code: text.trim().parse().ok(),
        });
        Ok(self.ended)
    }
}

impl Containers {
    /// Begins to wait for the end of a container.
    pub(crate) fn waiting(&self, record: &Record) -> Result<Waiting, ContainerError> {
        let path = self.store.join(record.id.as_str()).join(LOCK);
        let ended = match record.status {
            Status::Exited { code, .. } => Some(Ending { code }),
            // Nobody has to wait for what does not run, as docker has it.
            Status::Created => Some(Ending { code: Some(0) }),
            Status::Making | Status::Running { .. } | Status::Restarting { .. } => None,
        };
        if ended.is_some() {
            return Ok(Waiting {
                lock: None,
                path,
                ended,
            });
        }
        match OpenOptions::new().read(true).open(&path) {
            Ok(lock) => Ok(Waiting {
                lock: Some(lock),
                path,
                ended: None,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ContainerError::NotFound(record.name.clone()))
            }
            Err(source) => Err(ContainerError::Lock { path, source }),
        }
    }

    /// Where a container's log is.
    pub(crate) fn log_dir(&self, record: &Record) -> PathBuf {
        self.store.join(record.id.as_str())
    }

    /// Gives a container another name.
    pub(crate) fn rename(&self, wanted: &str, new: &str) -> Result<(), ContainerError> {
        name::check(new)?;
        let found = self.find(wanted)?;
        let lock = self.lock()?;
        let records = self.sweep(&lock)?;
        if let Some(record) = records.iter().find(|record| record.name == new) {
            return Err(ContainerError::NameTaken {
                name: new.into(),
                id: record.id.short().into(),
            });
        }
        let current = records.into_iter().find(|record| record.id == found.id);
        let mut record = current.ok_or_else(|| ContainerError::NotFound(wanted.into()))?;
        let old = std::mem::replace(&mut record.name, new.into());
        let path = self.store.join(record.id.as_str());
        record
            .write(&path)
            .map_err(|source| ContainerError::Write { path, source })?;
        record.tell("rename", &[("oldName", &old)]);
        Ok(())
    }

    /// Takes a container that rests, to start it; none if it runs.
    pub(crate) fn reopen(&self, record: &Record) -> Result<Option<Container>, ContainerError> {
        let dir = self.store.join(record.id.as_str());
        let lock = match try_own(&dir)? {
            Ownership::Taken(lock) => lock,
            Ownership::Gone => return Err(ContainerError::NotFound(record.name.clone())),
            Ownership::Held if record.status.rests() => {
                return Err(ContainerError::InUse(record.name.clone()));
            }
            Ownership::Held => return Ok(None),
        };
        // As it is now: somebody may have been faster.
        let record = self.find(record.id.as_str())?;
        Container::reopen(dir, record, lock).map(Some)
    }

    /// Takes over a container that another process of ours has passed on, by its lock.
    pub(crate) fn take(&self, id: &Id, lock: OwnedFd) -> Result<Container, ContainerError> {
        Container::take(self.store.join(id.as_str()), lock)
    }
}
