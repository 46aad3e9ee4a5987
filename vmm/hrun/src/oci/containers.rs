//! The containers of an engine: a directory for each below the root that the engine names.
//!
//! ```text
//! ROOT/ID/lock          held by the shim, or by who makes or deletes the container
//!        /state.json    the record
//!        /config.json   what the engine asked for, as it was at create
//! HRUN_STATE/oci/XXXXXXXX/   sockets, where their names are short enough for the kernel
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use oci_spec::runtime::Spec;
use rustix::rand::{GetRandomFlags, getrandom};
use vmm::api::{Client, Request, VmState};

use super::{
    plan,
    record::{Record, State, Status},
};
use crate::{dirs::Dirs, time};

const LOCK: &str = "lock";
const CONFIG: &str = "config.json";

/// Longest identifier, in bytes, as runc has it.
const MAX_ID: usize = 1024;

/// How long the VM may take to say how it is.
const STATE_TIMEOUT: Duration = Duration::from_millis(500);

/// How often a lock is tried.
const POLL: Duration = Duration::from_millis(5);

/// Failure to keep an engine's containers. Engines look for some of these texts, which are runc's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("invalid container ID {0:?}: letters, digits, _, +, - and . are what it may have")]
    Id(String),
    #[error("container {0} does not exist")]
    Missing(String),
    #[error("container with id exists: {0}")]
    Exists(String),
    #[error("Failed to make the directory {path} for the container")]
    MakeDir { path: PathBuf, source: io::Error },
    #[error("Failed to read what is known about the container in {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("Failed to write down the container in {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("Failed to lock the container in {path}")]
    Lock { path: PathBuf, source: io::Error },
    #[error("Failed to remove {path}")]
    Remove { path: PathBuf, source: io::Error },
    #[error("Failed to read random numbers for the container's directory")]
    Random(#[source] io::Error),
}

/// All containers below one root.
#[derive(Debug)]
pub(crate) struct Containers {
    root: PathBuf,
    runtime: PathBuf,
}

/// A container that this process owns. Nothing is undone when it is dropped.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) dir: PathBuf,
    pub(crate) record: Record,
    /// Held, so that nobody else takes the container for stopped.
    pub(crate) lock: File,
}

/// A container as anybody sees it.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) dir: PathBuf,
    pub(crate) record: Record,
    /// Whether somebody owns it.
    pub(crate) alive: bool,
}

impl Containers {
    /// Those below `root`, or where hrun keeps them by itself.
    pub(crate) fn open(dirs: &Dirs, root: Option<&Path>) -> Self {
        Self {
            root: root.map_or_else(|| dirs.state.join("engines"), Path::to_owned),
            runtime: dirs.state.join("oci"),
        }
    }

    /// Makes a container's directories.
    pub(crate) fn create(&self, id: &str, bundle: &Path) -> Result<Owned, StoreError> {
        check_id(id)?;
        let make = |path: &Path, source| StoreError::MakeDir {
            path: path.into(),
            source,
        };
        let mut private = DirBuilder::new();
        private.mode(0o700);
        private
            .recursive(true)
            .create(&self.root)
            .map_err(|error| make(&self.root, error))?;
        private
            .create(&self.runtime)
            .map_err(|error| make(&self.runtime, error))?;
        private.recursive(false);
        let mut bytes = [0; 8];
        getrandom(&mut bytes, GetRandomFlags::empty())
            .map_err(|error| StoreError::Random(error.into()))?;
        let short = format!("{:016x}", u64::from_ne_bytes(bytes));
        let runtime_dir = self.runtime.join(short);
        let dir = self.root.join(id);
        private.create(&dir).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => StoreError::Exists(id.into()),
            _ => make(&dir, error),
        })?;
        let record = Record::new(id.into(), bundle.into(), runtime_dir, time::now_ns());
        let owned = open_lock(&dir, true)
            .and_then(|lock| {
                lock.lock()?;
                Ok(lock)
            })
            .map_err(|source| StoreError::Lock {
                path: dir.clone(),
                source,
            })
            .map(|lock| Owned {
                dir: dir.clone(),
                record,
                lock,
            });
        let made = owned.and_then(|owned| {
            // The record first: it names the directory that must not be lost.
            owned.write()?;
            let runtime_dir = &owned.record.runtime_dir;
            private
                .create(runtime_dir)
                .map_err(|error| make(runtime_dir, error))?;
            Ok(owned)
        });
        if made.is_err() {
            // The error that is returned is the one that matters.
            let _ = fs::remove_dir_all(&dir);
        }
        made
    }

    /// Finds a container.
    pub(crate) fn find(&self, id: &str) -> Result<Seen, StoreError> {
        check_id(id)?;
        let dir = self.root.join(id);
        if !dir.is_dir() {
            return Err(StoreError::Missing(id.into()));
        }
        let alive = is_held(&dir)?;
        // After that: its owner writes down how it ended before it lets go.
        let record = read(&dir)?;
        let record = match record {
            Some(record) => record,
            // Its maker was killed before it could write anything.
            None => Record::new(id.into(), PathBuf::new(), PathBuf::new(), 0),
        };
        Ok(Seen { dir, record, alive })
    }

    /// Whether there is a container of this name.
    pub(crate) fn has(&self, id: &str) -> bool {
        check_id(id).is_ok() && Record::exists(&self.root.join(id))
    }

    /// Takes over a container that another process of ours has passed on, by its lock.
    pub(crate) fn take(&self, id: &str, lock: File) -> Result<Owned, StoreError> {
        let dir = self.root.join(id);
        let record = read(&dir)?.ok_or_else(|| StoreError::Missing(id.into()))?;
        Ok(Owned { dir, record, lock })
    }

    /// All containers, the oldest first.
    pub(crate) fn list(&self) -> Result<Vec<Seen>, StoreError> {
        let failed = |source| StoreError::Read {
            path: self.root.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let Some(id) = name.to_str().filter(|id| check_id(id).is_ok()) else {
                continue;
            };
            match self.find(id) {
                Ok(seen) => all.push(seen),
                Err(StoreError::Missing(_)) => {}
                Err(error) => return Err(error),
            }
        }
        all.sort_by(|a, b| {
            let (a, b) = (&a.record, &b.record);
            (a.created_ns, &a.id).cmp(&(b.created_ns, &b.id))
        });
        Ok(all)
    }
}

impl Owned {
    pub(crate) fn write(&self) -> Result<(), StoreError> {
        let write = self.record.write(&self.dir);
        write.map_err(|source| StoreError::Write {
            path: self.dir.clone(),
            source,
        })
    }

    /// Keeps what the engine asked for.
    pub(crate) fn write_config(&self, json: &[u8]) -> Result<(), StoreError> {
        fs::write(self.dir.join(CONFIG), json).map_err(|source| StoreError::Write {
            path: self.dir.clone(),
            source,
        })
    }

    pub(crate) fn config(&self) -> Result<Spec, StoreError> {
        config(&self.dir)
    }

    /// Removes everything of the container. The lock is the last to go.
    pub(crate) fn remove(self) -> Result<(), StoreError> {
        remove_tree(&self.record.runtime_dir)?;
        // Without its record it is nobody's, should this be interrupted.
        remove_tree(&self.dir)
    }
}

impl Seen {
    pub(crate) fn config(&self) -> Result<Spec, StoreError> {
        config(&self.dir)
    }

    /// How it is, whatever its record says.
    pub(crate) fn status(&self) -> Status {
        match self.record.status {
            Status::Stopped(code) => Status::Stopped(code),
            status if self.alive => status,
            // Its shim was killed.
            _ => Status::Stopped(137),
        }
    }

    /// In the words of the specification.
    pub(crate) fn word(&self) -> &'static str {
        self.status().word(self.is_paused())
    }

    /// What an engine is told about it.
    pub(crate) fn state(&self) -> State<'_> {
        self.record.state(self.word())
    }

    /// Whether it stands still: the VM's CPUs do, or, in a pod, the container in the guest. A VM that
    /// does not say is about to end.
    pub(crate) fn is_paused(&self) -> bool {
        if self.record.role.is_of_pod() {
            return self.status() == Status::Running && self.record.frozen_mark().exists();
        }
        self.status() == Status::Running
            && Client::connect(&self.record.control_socket(), STATE_TIMEOUT)
                .and_then(|mut vm| vm.request(Request::Status))
                .is_ok_and(|status| status.state == VmState::Paused)
    }

    /// Waits until nobody owns it, and owns it then; none if that does not come by `deadline`.
    pub(crate) fn own(&self, deadline: Instant) -> Result<Option<Owned>, StoreError> {
        let failed = |source| StoreError::Lock {
            path: self.dir.clone(),
            source,
        };
        let lock = open_lock(&self.dir, true).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Missing(self.record.id.clone()),
            _ => failed(error),
        })?;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Ok(None),
                Err(TryLockError::WouldBlock) => thread::sleep(POLL),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
        Ok(Some(Owned {
            dir: self.dir.clone(),
            record: read(&self.dir)?.unwrap_or_else(|| self.record.clone()),
            lock,
        }))
    }
}

fn config(dir: &Path) -> Result<Spec, StoreError> {
    let failed = |source| StoreError::Read {
        path: dir.join(CONFIG),
        source,
    };
    let json = fs::read(dir.join(CONFIG)).map_err(failed)?;
    let spec = plan::read::spec(&json).map(|(spec, _)| spec);
    spec.map_err(|error| failed(error.into()))
}

fn read(dir: &Path) -> Result<Option<Record>, StoreError> {
    Record::read(dir).map_err(|source| StoreError::Read {
        path: dir.into(),
        source,
    })
}

/// Identifiers become names of directories: what runc takes, and no way out of the root.
fn check_id(id: &str) -> Result<(), StoreError> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    let is_id = !id.is_empty() && id.len() <= MAX_ID && id.chars().all(is_fine);
    if is_id && id != "." && id != ".." {
        Ok(())
    } else {
        Err(StoreError::Id(id.into()))
    }
}

/// Whether somebody owns the container in this directory.
fn is_held(dir: &Path) -> Result<bool, StoreError> {
    let failed = |source| StoreError::Lock {
        path: dir.into(),
        source,
    };
    let lock = match open_lock(dir, false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        lock => lock.map_err(failed)?,
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn open_lock(dir: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(create && dir.is_dir())
        .truncate(false)
        .mode(0o600)
        .open(dir.join(LOCK))
}

fn remove_tree(path: &Path) -> Result<(), StoreError> {
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError::Remove {
            path: path.into(),
            source,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn containers(dir: &tempfile::TempDir) -> Containers {
        let dirs = Dirs::new(dir.path().join("run"), dir.path().join("lib"));
        Containers::open(&dirs, Some(&dir.path().join("root")))
    }

    #[test]
    fn identifiers_stay_in_the_root() {
        for id in ["a", "A-1_b+c.d", &"x".repeat(64)] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "a/b", "/", "a b", "ä", &"x".repeat(1025)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }

    #[test]
    fn a_container_is_alive_as_long_as_its_lock_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let all = containers(&dir);
        let mut owned = all.create("web", Path::new("/b")).unwrap();
        assert!(matches!(
            all.create("web", Path::new("/b")),
            Err(StoreError::Exists(_))
        ));
        owned.record.status = Status::Running;
        owned.write().unwrap();
        let seen = all.find("web").unwrap();
        assert_eq!((seen.alive, seen.word()), (true, "running"));
        assert!(seen.own(Instant::now()).unwrap().is_none());
        // As by kill -9.
        drop(owned);
        let seen = all.find("web").unwrap();
        assert_eq!((seen.alive, seen.status()), (false, Status::Stopped(137)));
        let owned = seen.own(Instant::now()).unwrap().unwrap();
        owned.remove().unwrap();
        assert!(matches!(all.find("web"), Err(StoreError::Missing(_))));
        assert!(all.list().unwrap().is_empty());
        assert_eq!(fs::read_dir(dir.path().join("run/oci")).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_without_a_record_can_be_removed() {
        let dir = tempfile::tempdir().unwrap();
        let all = containers(&dir);
        fs::create_dir_all(dir.path().join("root/half")).unwrap();
        let seen = all.find("half").unwrap();
        assert_eq!(seen.word(), "stopped");
        seen.own(Instant::now()).unwrap().unwrap().remove().unwrap();
        assert!(!dir.path().join("root/half").exists());
    }
}
