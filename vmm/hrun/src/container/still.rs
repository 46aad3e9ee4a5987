//! A container that keeps still while somebody reads what it wrote: its lock is held, or its VM
//! paused.

use std::{
    fs::{OpenOptions, TryLockError},
    io,
    path::PathBuf,
    time::Duration,
};

use vmm::api::{Client, ClientError, Request, VmState};

use super::{ContainerError, Containers, LOCK, Record, Status};
use crate::signals::Signals;

/// How long the VM may take to stop its CPUs.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// A container's writable layer, which nobody removes; nor does the container write there, if that
/// was asked for.
#[derive(Debug)]
pub(crate) struct Still {
    /// overlayfs's upper directory.
    pub(crate) upper: PathBuf,
    _lock: Option<std::fs::File>,
    _pause: Option<Pause>,
}

/// Failure to pause a container.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PauseError {
    #[error("Failed to catch signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Vm(#[from] ClientError),
}

/// A VM whose CPUs stand still. Dropping it lets them go on, unless they stood still before.
#[derive(Debug)]
struct Pause {
    vm: Option<Client>,
    /// Caught: only `kill -9` leaves a container paused.
    _signals: Signals,
}

impl Pause {
    fn begin(control: &std::path::Path) -> Result<Self, PauseError> {
        let signals = Signals::catch().map_err(PauseError::Signals)?;
        let mut vm = Client::connect(control, TIMEOUT)?;
        let paused = vm.request(Request::Status)?.state == VmState::Paused;
        if !paused {
            vm.request(Request::Pause)?;
        }
        Ok(Self {
            vm: (!paused).then_some(vm),
            _signals: signals,
        })
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        // A VM that does not answer has ended: nothing of it goes on.
        if let Some(vm) = &mut self.vm {
            let _ = vm.request(Request::Resume);
        }
    }
}

impl Containers {
    /// Keeps a container from being removed, and with `pause` a running one from writing.
    pub(crate) fn still(&self, record: &Record, pause: bool) -> Result<Still, ContainerError> {
        let dir = self.store.join(record.id.as_str());
        let path = dir.join(LOCK);
        let failed = |source| ContainerError::Lock {
            path: path.clone(),
            source,
        };
        let lock = match OpenOptions::new().read(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ContainerError::NotFound(record.name.clone()));
            }
            opened => opened.map_err(failed)?,
        };
        let upper = dir.join("upper");
        match lock.try_lock_shared() {
            Ok(()) => Ok(Still {
                upper,
                _lock: Some(lock),
                _pause: None,
            }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
            Err(TryLockError::WouldBlock) if matches!(record.status, Status::Running { .. }) => {
                let control = record.runtime_dir.join("control");
                let begin = || Pause::begin(&control);
                let pause = pause.then(begin).transpose();
                Ok(Still {
                    upper,
                    _lock: None,
                    _pause: pause.map_err(|source| ContainerError::Pause {
                        name: record.name.clone(),
                        source,
                    })?,
                })
            }
            Err(TryLockError::WouldBlock) => Err(ContainerError::InUse(record.name.clone())),
        }
    }
}
