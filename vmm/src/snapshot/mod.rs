//! A VM on disk: a directory with a state file and a memory file, from which any number of VMs
//! can go on.
//!
//! ```text
//! DIR/state     header | postcard of Snapshot
//! DIR/memory    guest RAM, region after region; pages of zeros are holes
//!
//! header        magic "HRUNSNAP" | format version, u32 | length of what follows, u64 | its SHA-256
//! ```
//!
//! Numbers of the header are little-endian. Each restore checks the whole state file. The memory
//! file is large and mapped, never read through: whoever keeps snapshots checks it once with
//! [`verify_memory`] and from then on by its [`Identity`].

mod memory;
mod state;

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vm_memory::GuestAddress;

pub use memory::MemoryMap;
pub use state::{DeviceState, QueuePosition, Snapshot, TransportState};

/// Version of the format. Another one is refused.
pub const VERSION: u32 = 3;

const MAGIC: [u8; 8] = *b"HRUNSNAP";
const HEADER: usize = 8 + 4 + 8 + 32;
/// Longest state file, in bytes: 32 vCPUs and the checksums of a large memory fit.
const MAX_STATE: u64 = 256 << 20;

const STATE: &str = "state";
const MEMORY: &str = "memory";

/// A snapshot that cannot be written or must not be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file cannot be read.
    #[error("Failed to read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("Failed to write {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what was written.
    #[error("Snapshot file {path} is damaged: {problem}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How it shows.
        problem: String,
    },
    /// The state file is of another version.
    #[error("Snapshot file {path} has format version {version}, this hrun-vmm reads {VERSION}")]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The snapshot is whole and does not fit here.
    #[error("Snapshot {path} cannot be restored here: {problem}")]
    Misfit {
        /// Its directory.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
}

/// What makes a file the one that was checked: whoever writes to it changes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    /// Last change of the content, in nanoseconds since the Unix epoch.
    modified_ns: i128,
    /// Last change of the inode.
    changed_ns: i128,
    mode: u32,
}

impl Identity {
    /// The identity of the memory file of the snapshot in `directory`.
    ///
    /// # Errors
    ///
    /// It is not there.
    pub fn of_memory(directory: &Path) -> Result<Self, SnapshotError> {
        let path = directory.join(MEMORY);
        match fs::symlink_metadata(&path) {
            Ok(metadata) => Ok(Self {
                device: metadata.dev(),
                inode: metadata.ino(),
                size: metadata.size(),
                modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
                changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
                mode: metadata.mode(),
            }),
            Err(source) => Err(SnapshotError::Read { path, source }),
        }
    }

    /// Whether nobody is allowed to write to the file.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.mode & 0o222 == 0
    }
}

fn nanoseconds(seconds: i64, nanoseconds: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
}

/// The files of a snapshot that is to be written, opened while their directory can be reached.
#[derive(Debug)]
pub struct Writer {
    directory: PathBuf,
    state: File,
    memory: File,
}

impl Writer {
    /// Makes the files of a snapshot in `directory`, which has none yet.
    ///
    /// # Errors
    ///
    /// They exist or cannot be made.
    pub fn create(directory: &Path) -> Result<Self, SnapshotError> {
        let create = |name: &str| {
            let path = directory.join(name);
            fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                // Nobody writes to it again: we do through this descriptor.
                .mode(0o400)
                .open(&path)
                .map_err(|source| SnapshotError::Write { path, source })
        };
        Ok(Self {
            directory: directory.into(),
            state: create(STATE)?,
            memory: create(MEMORY)?,
        })
    }

    /// Writes the memory and then the state, which `finish` completes with the memory's map. All
    /// of it is on the disk when this returns.
    ///
    /// # Errors
    ///
    /// The disk is full or broken: what was written is no snapshot.
    pub fn write(
        self,
        guest: &vm_memory::GuestMemoryMmap,
        finish: impl FnOnce(MemoryMap) -> Snapshot,
    ) -> Result<(), SnapshotError> {
        let failed = |name: &str| {
            let path = self.directory.join(name);
            move |source| SnapshotError::Write { path, source }
        };
        let map = memory::save(guest, &self.memory)
            .and_then(|map| self.memory.sync_all().map(|()| map))
            .map_err(failed(MEMORY))?;
        let bytes = encode(&finish(map)).map_err(failed(STATE))?;
        let mut state = &self.state;
        state
            .write_all(&bytes)
            .and_then(|()| state.sync_all())
            .map_err(failed(STATE))
    }
}

fn encode(snapshot: &Snapshot) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(snapshot).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(Sha256::digest(&body));
    bytes.extend(body);
    Ok(bytes)
}

/// Reads the state file of the snapshot in `directory` and checks every bit of it.
///
/// # Errors
///
/// It cannot be read, is of another version, or is not what was written.
pub fn read(directory: &Path) -> Result<Snapshot, SnapshotError> {
    let path = directory.join(STATE);
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_STATE).read_to_end(&mut bytes))
        .map_err(|source| SnapshotError::Read {
            path: path.clone(),
            source,
        })?;
    decode(&path, &bytes)
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Snapshot, SnapshotError> {
    let damaged = |problem: &str| SnapshotError::Damaged {
        path: path.into(),
        problem: problem.into(),
    };
    let (header, body) = bytes
        .split_first_chunk::<HEADER>()
        .ok_or_else(|| damaged("it ends within its header"))?;
    let (magic, rest) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(damaged("it does not begin like a snapshot"));
    }
    let (version, rest) = rest.split_at(4);
    let (length, digest) = rest.split_at(8);
    let version = u32::from_le_bytes(version.try_into().expect("four bytes were split off"));
    if version != VERSION {
        return Err(SnapshotError::Version {
            path: path.into(),
            version,
        });
    }
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes were split off"));
    if length != body.len() as u64 {
        let problem = format!("it should go on for {length} bytes, not {}", body.len());
        return Err(damaged(&problem));
    }
    if Sha256::digest(body)[..] != *digest {
        return Err(damaged("its checksum is wrong"));
    }
    match postcard::take_from_bytes(body) {
        Ok((snapshot, [])) => Ok(snapshot),
        Ok(_) => Err(damaged("something stands behind its end")),
        Err(err) => Err(damaged(&format!("it cannot be decoded: {err}"))),
    }
}

/// Reads the whole memory file of the snapshot in `directory` and compares it with its checksums.
///
/// # Errors
///
/// It cannot be read or is not what was written.
pub fn verify_memory(directory: &Path, snapshot: &Snapshot) -> Result<(), SnapshotError> {
    let path = directory.join(MEMORY);
    match File::open(&path).and_then(|file| memory::verify(&file, &snapshot.memory_map)) {
        Ok(None) => Ok(()),
        Ok(Some(problem)) => Err(SnapshotError::Damaged { path, problem }),
        Err(source) => Err(SnapshotError::Read { path, source }),
    }
}

/// Maps the memory of the snapshot in `directory`: writes go to copies of the pages. A range that
/// the saved VM did not have is added, if there is one.
///
/// # Errors
///
/// The file is not there, not of the right size, or cannot be mapped.
pub fn map_memory(
    directory: &Path,
    snapshot: &Snapshot,
    growth: Option<(GuestAddress, u64)>,
) -> Result<vm_memory::GuestMemoryMmap, SnapshotError> {
    let path = directory.join(MEMORY);
    let read = |source| SnapshotError::Read {
        path: path.clone(),
        source,
    };
    let file = File::open(&path).map_err(read)?;
    let size = file.metadata().map_err(read)?.len();
    if size != snapshot.memory {
        return Err(SnapshotError::Damaged {
            path,
            problem: format!("it has {size} bytes, not {}", snapshot.memory),
        });
    }
    memory::map(file, snapshot.memory, growth).map_err(read)
}

#[cfg(test)]
mod tests;
