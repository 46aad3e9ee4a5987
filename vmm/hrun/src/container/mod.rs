//! Containers on disk: a record and a writable layer for each, and who owns them.
//!
//! ```text
//! HRUN_STORE/containers/.lock        held while names are compared and the dead are swept
//! HRUN_STORE/containers/ID/lock      held by the hrun whose container is alive
//!                         /state.json, /config.json
//!                         /upper, /work
//! HRUN_STATE/containers/SHORT/       sockets of the VM while it runs
//! ```
//!
//! A lock is let go by the kernel when its holder dies, however it dies: a container whose lock
//! is free has no owner, and the next hrun clears up after it. The runtime directory is made
//! after the record that names it and removed before it, so it is never lost. The lock file is the
//! first thing in a container's directory and the last to leave: a directory without one is empty.

mod config;
mod id;
mod layer;
mod life;
mod name;
mod owned;
mod record;
mod still;

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

pub(crate) use config::Config;
pub(crate) use id::Id;
pub(crate) use layer::{LayerError, WritableLayer};
pub(crate) use life::Waiting;
pub(crate) use name::NameError;
pub(crate) use owned::Container;
pub(crate) use record::{NewRecord, Record, Status};
pub(crate) use still::{PauseError, Still};

use crate::dirs::Dirs;
use record::Found;

const LOCK: &str = "lock";
const STORE_LOCK: &str = ".lock";

/// How long `remove --force` waits for the owner of a container whose VM was killed.
const OWNER_TIMEOUT: Duration = Duration::from_secs(15);

/// Failure to keep containers on disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    /// A directory cannot be made.
    #[error("Failed to create directory {path}")]
    CreateDir { path: PathBuf, source: io::Error },
    /// A directory cannot be listed.
    #[error("Failed to list the containers in {path}")]
    List { path: PathBuf, source: io::Error },
    /// A lock cannot be taken.
    #[error("Failed to lock {path}")]
    Lock { path: PathBuf, source: io::Error },
    /// A record cannot be read.
    #[error("Failed to read the record of the container in {path}")]
    Read { path: PathBuf, source: io::Error },
    /// A record cannot be written.
    #[error("Failed to write the record of the container in {path}")]
    Write { path: PathBuf, source: io::Error },
    /// Something of a container cannot be removed.
    #[error("Failed to remove {path}")]
    Remove { path: PathBuf, source: io::Error },
    /// The VM that a dead hrun left behind cannot be ended.
    #[error("Failed to end process {pid}, the VM of container {name}")]
    Kill {
        pid: i32,
        name: String,
        source: io::Error,
    },
    /// The kernel gives no random numbers.
    #[error("Failed to make a container identifier")]
    Random(#[source] io::Error),
    /// The given name cannot be one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The given name belongs to another container.
    #[error("The container name {name:?} is already in use by container {id}")]
    NameTaken { name: String, id: String },
    /// No container is called that.
    #[error("No such container: {0}")]
    NotFound(String),
    /// Several are.
    #[error("Several containers have identifiers beginning with {0}")]
    Ambiguous(String),
    /// A live container cannot be removed.
    #[error("Container {0} is running")]
    Running(String),
    /// A stopped one can do nothing of what running ones can.
    #[error("Container {0} is not running")]
    NotRunning(String),
    /// What is to be known about it is not written down.
    #[error("Container {0} was made by an hrun that did not write down how to start it")]
    NoConfig(String),
    /// A running container does not keep still.
    #[error("Failed to pause container {name}")]
    Pause { name: String, source: PauseError },
    /// Somebody else is at it.
    #[error("Container {0} is in use by another hrun")]
    InUse(String),
}

/// All containers of a store.
#[derive(Debug)]
pub(crate) struct Containers {
    store: PathBuf,
    runtime: PathBuf,
}

/// Proof that the store's lock is held.
struct StoreLock(#[expect(dead_code, reason = "held, not used")] File);

impl Containers {
    /// Opens the store, making its directories if they are missing.
    pub(crate) fn open(dirs: &Dirs) -> Result<Self, ContainerError> {
        let containers = Self {
            store: dirs.store.join("containers"),
            runtime: dirs.state.join("containers"),
        };
        for path in [&containers.store, &containers.runtime] {
            create_private_dir_all(path)?;
        }
        Ok(containers)
    }

    /// All containers, after clearing up after the dead.
    pub(crate) fn list(&self) -> Result<Vec<Record>, ContainerError> {
        let lock = self.lock()?;
        self.sweep(&lock)
    }

    /// Makes a container and its directories. It vanishes again when it is dropped, unless it
    /// was settled.
    pub(crate) fn create(
        &self,
        new: NewRecord,
        name: Option<&str>,
    ) -> Result<Container, ContainerError> {
        name.map(name::check).transpose()?;
        let lock = self.lock()?;
        let records = self.sweep(&lock)?;
        let random = |error: rustix::io::Errno| ContainerError::Random(error.into());
        let name = match name {
            None => name::generate(|name| records.iter().any(|record| record.name == name))
                .map_err(random)?,
            Some(name) => match records.iter().find(|record| record.name == name) {
                None => name.to_owned(),
                Some(record) => {
                    return Err(ContainerError::NameTaken {
                        name: name.into(),
                        id: record.id.short().into(),
                    });
                }
            },
        };
        let id = Id::random().map_err(random)?;
        let runtime_dir = self.runtime.join(id.short());
        let dir = self.store.join(id.as_str());
        let record = Record::new(new, id, name, runtime_dir, now());
        let container = Container::create(dir, record)?;
        container.record().tell("create", &[]);
        Ok(container)
    }

    /// Finds a container by its name, its identifier or the beginning of that.
    pub(crate) fn find(&self, wanted: &str) -> Result<Record, ContainerError> {
        let records = self.list()?;
        if let Some(record) = records.iter().find(|record| record.name == wanted) {
            return Ok(record.clone());
        }
        let mut matching = records
            .into_iter()
            .filter(|record| !wanted.is_empty() && record.id.as_str().starts_with(wanted));
        match (matching.next(), matching.next()) {
            (Some(record), None) => Ok(record),
            (None, _) => Err(ContainerError::NotFound(wanted.into())),
            (Some(_), Some(_)) => Err(ContainerError::Ambiguous(wanted.into())),
        }
    }

    /// Removes a container and its writable layer; with `force`, a running one too.
    pub(crate) fn remove(&self, record: &Record, force: bool) -> Result<(), ContainerError> {
        let dir = self.store.join(record.id.as_str());
        match try_own(&dir)? {
            Ownership::Gone => Ok(()),
            Ownership::Taken(_lock) => bury(&dir, record),
            Ownership::Held if force => match take_over(&dir, record)? {
                Some(_lock) => bury(&dir, record),
                None => Ok(()),
            },
            Ownership::Held if record.status.rests() => {
                Err(ContainerError::InUse(record.name.clone()))
            }
            Ownership::Held => Err(ContainerError::Running(record.name.clone())),
        }
    }

    /// Locks the store for the moment in which names are compared and given.
    fn lock(&self) -> Result<StoreLock, ContainerError> {
        let path = self.store.join(STORE_LOCK);
        open_lock(&path)
            .and_then(|file| file.lock().map(|()| StoreLock(file)))
            .map_err(|source| ContainerError::Lock { path, source })
    }

    /// Reads all records, and clears up after containers whose owner is dead.
    fn sweep(&self, _lock: &StoreLock) -> Result<Vec<Record>, ContainerError> {
        let list = |source| ContainerError::List {
            path: self.store.clone(),
            source,
        };
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.store).map_err(list)? {
            let dir = entry.map_err(list)?.path();
            let is_container = dir
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| Id::try_from(name.to_owned()).is_ok());
            if is_container {
                records.extend(sweep_one(&dir)?);
            }
        }
        records.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        Ok(records)
    }
}

/// Reads one container's record; what a dead owner left behind is put right first.
fn sweep_one(dir: &Path) -> Result<Option<Record>, ContainerError> {
    let found = read(dir)?;
    if let Found::Record(record) = &found
        && record.status.rests()
    {
        return Ok(Some(record.as_ref().clone()));
    }
    let lock = match try_own(dir)? {
        Ownership::Taken(lock) => lock,
        Ownership::Held => {
            return Ok(match found {
                Found::Record(record) => Some(*record),
                Found::Nothing | Found::Unreadable => None,
            });
        }
        Ownership::Gone => {
            // Empty, or its owner is about to remove it himself.
            let _ = fs::remove_dir(dir);
            return Ok(None);
        }
    };
    // Between the first look and the lock its owner may have written its last words.
    let left = match read(dir)? {
        Found::Unreadable => None,
        Found::Nothing => {
            remove_container(dir)?;
            None
        }
        Found::Record(record) => match record.status {
            Status::Exited { .. } | Status::Created => Some(*record),
            Status::Running { .. } | Status::Restarting { .. } if !record.auto_remove => {
                Some(mark_lost(dir, *record)?)
            }
            Status::Running { .. } | Status::Restarting { .. } | Status::Making => {
                bury(dir, &record)?;
                None
            }
        },
    };
    drop(lock);
    Ok(left)
}

fn read(dir: &Path) -> Result<Found, ContainerError> {
    match Record::read(dir) {
        // Its owner removed it while we were on the way.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(Found::Nothing),
        read => read.map_err(|source| ContainerError::Read {
            path: dir.into(),
            source,
        }),
    }
}

/// The container's owner died: ends its VM and writes down that nobody saw how it ended, unless
/// somebody did.
fn mark_lost(dir: &Path, mut record: Record) -> Result<Record, ContainerError> {
    end(&record)?;
    record.status = match record.status {
        Status::Restarting { code, finished } => Status::Exited {
            code: Some(code),
            finished,
        },
        _ => Status::Exited {
            code: None,
            finished: now(),
        },
    };
    record.write(dir).map_err(|source| ContainerError::Write {
        path: dir.into(),
        source,
    })?;
    record.tell("die", &[]);
    Ok(record)
}

/// Removes everything of a container; its lock must be held. The record goes before the layer:
/// should this be interrupted, what is left is recognised as garbage.
fn bury(dir: &Path, record: &Record) -> Result<(), ContainerError> {
    end(record)?;
    Record::erase(dir).map_err(|source| ContainerError::Remove {
        path: dir.into(),
        source,
    })?;
    remove_container(dir)?;
    record.tell("destroy", &[]);
    Ok(())
}

/// Removes a container's directory, its lock file last.
fn remove_container(dir: &Path) -> Result<(), ContainerError> {
    let remove = |path: &Path, source| ContainerError::Remove {
        path: path.into(),
        source,
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(remove(dir, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| remove(dir, error))?;
        if entry.file_name() != LOCK {
            remove_tree(&entry.path())?;
        }
    }
    remove_tree(&dir.join(LOCK))?;
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(remove(dir, error)),
        _ => Ok(()),
    }
}

/// Ends the VM of a container and removes its runtime directory.
fn end(record: &Record) -> Result<(), ContainerError> {
    if let Status::Running { vmm } = &record.status {
        vmm.kill().map_err(|source| ContainerError::Kill {
            pid: vmm.pid,
            name: record.name.clone(),
            source,
        })?;
    }
    remove_tree(&record.runtime_dir)
}

/// Ends the VM of a live container and waits until its owner has let go of it; `None` if the
/// owner removed it.
fn take_over(dir: &Path, record: &Record) -> Result<Option<File>, ContainerError> {
    record.forbid_restart();
    record.kill_vm()?;
    let deadline = Instant::now() + OWNER_TIMEOUT;
    loop {
        match try_own(dir)? {
            Ownership::Taken(lock) => return Ok(Some(lock)),
            Ownership::Gone => return Ok(None),
            Ownership::Held if Instant::now() > deadline => {
                return Err(ContainerError::Running(record.name.clone()));
            }
            Ownership::Held => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Whose a container is.
enum Ownership {
    /// Ours from now on.
    Taken(File),
    /// A live process's.
    Held,
    /// Nobody's: there is no such container any more.
    Gone,
}

/// Takes the lock of a container if nobody holds it.
fn try_own(dir: &Path) -> Result<Ownership, ContainerError> {
    let path = dir.join(LOCK);
    let file = match OpenOptions::new().write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ownership::Gone),
        Err(source) => return Err(ContainerError::Lock { path, source }),
    };
    match file.try_lock() {
        Ok(()) => Ok(Ownership::Taken(file)),
        Err(TryLockError::WouldBlock) => Ok(Ownership::Held),
        Err(TryLockError::Error(source)) => Err(ContainerError::Lock { path, source }),
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Removes a file or a directory with all that is in it; it may be gone already.
fn remove_tree(path: &Path) -> Result<(), ContainerError> {
    let removed = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        removed => removed,
    };
    match removed {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ContainerError::Remove {
            path: path.into(),
            source,
        }),
        _ => Ok(()),
    }
}

fn create_private_dir_all(path: &Path) -> Result<(), ContainerError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| ContainerError::CreateDir {
            path: path.into(),
            source,
        })
}

/// Seconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod tests;
