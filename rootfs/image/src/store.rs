//! The image store: its directory, its locks and its life with other processes.
//!
//! ```text
//! index.json          what exists (replaced atomically, under the lock)
//! lock                flock: exclusive for changes, shared to pin an image
//! blobs/sha256/HEX    manifests, configurations and layers as they were loaded, verified
//! layers/HEX32/       unpacked layers, lower directories for overlayfs
//! use/HEX             flock, shared while an image is in use
//! erofs/HEX           images as one EROFS file each, made when first asked for
//! erofs/lock          flock, exclusive while one is made
//! downloads/HEX       blobs from registries, incomplete, flocked by who downloads them
//! tmp/XXXX/           work in progress, flocked by the process it belongs to
//! ```
//!
//! Blobs and layers come into being in `tmp/` and are renamed into place under the lock, after
//! they have reached the disk and just before the index that names them. Whatever the index does
//! not name is left over from a crash, as is a directory in `tmp/` that nobody has locked; the
//! next command removes both.

pub(crate) mod build;
mod downloads;
pub(crate) mod erofs;
pub(crate) mod find;
pub(crate) mod load;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod remove;
pub(crate) mod save;
pub(crate) mod tag;
mod unpack;
pub(crate) mod usage;
mod workspace;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::index::{self, Index, ReadError};
use crate::{Digest, Image, Limits};

pub(crate) use find::FindError;
pub(crate) use workspace::Workspace;

/// An image store in a directory of its own.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    limits: Limits,
}

/// Why the store itself could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Owners, whiteouts and the store's directory need root.
    #[error("The image store needs root: run hrun as root")]
    NotRoot,
    /// The directory is somebody else's.
    #[error(
        "{} is in use for something else: it is no image store and not empty",
        path.display()
    )]
    NotAStore {
        /// The directory.
        path: PathBuf,
    },
    /// The directory belongs to another user, who could change what is in it.
    #[error("{} belongs to user {owner}, not to root", path.display())]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
    },
    /// Made by another version of hrun.
    #[error(
        "The image store {} has layout {found}, this hrun knows layout {supported}: \
         use another directory or the hrun that made it",
        path.display()
    )]
    Version {
        /// The store.
        path: PathBuf,
        /// Its layout.
        found: u32,
        /// Ours.
        supported: u32,
    },
    /// `index.json` is not what was written there.
    #[error("The index of the image store {} is damaged", path.display())]
    Damaged {
        /// The store.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A blob is missing or is not what its name says.
    #[error("Image {image} is damaged in the store: remove it by its id and load it again")]
    DamagedImage {
        /// Its id.
        image: Digest,
        /// What is wrong with which blob.
        source: io::Error,
    },
    /// No space, or no quota, left.
    #[error(
        "The disk of the image store {} is full; nothing was changed. Make room there: \
         `hrun system df` shows what images take, `hrun image prune -a` removes unused ones",
        path.display()
    )]
    Full {
        /// The store.
        path: PathBuf,
    },
    /// Another operation on the store failed.
    #[error("Failed to {action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Why an image could not be pinned.
#[derive(Debug, thiserror::Error)]
pub enum UseError {
    /// It was removed since it was looked up.
    #[error("Image {0} was removed")]
    Removed(Digest),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Keeps an image from being removed as long as it, or a duplicate of its descriptor, is open.
///
/// The kernel ends it with the process that holds it, however that dies. Close-on-exec is set.
#[derive(Debug)]
pub struct ImageUse {
    lock: File,
}

impl AsFd for ImageUse {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

impl Store {
    /// Opens the store at `root`, making it on first use, and clears away what crashed commands
    /// left there.
    ///
    /// The directory is for root only (0700): layers hold set-user-id programs and the secrets of
    /// images. An existing directory that is neither empty nor a store is left alone.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_with(root, Limits::default())
    }

    /// [`Store::open`] with other limits for what will be loaded.
    pub fn open_with(root: &Path, limits: Limits) -> Result<Self, StoreError> {
        if !rustix::process::geteuid().is_root() {
            return Err(StoreError::NotRoot);
        }
        let store = Self {
            root: root.to_owned(),
            limits,
        };
        store.claim_root()?;
        if store.read_existing_index()?.is_none() {
            store.create()?;
        }
        store.clear_leftovers()?;
        Ok(store)
    }

    /// Keeps `image` from being removed until the result is dropped.
    pub fn use_image(&self, image: &Image) -> Result<ImageUse, UseError> {
        let _lock = self.lock(FlockOperation::LockShared)?;
        let index = self.read_index()?;
        if !index.images.iter().any(|record| record.id == image.id) {
            return Err(UseError::Removed(image.id.clone()));
        }
        for layer in &image.layers {
            fs::metadata(layer).map_err(|source| StoreError::DamagedImage {
                image: image.id.clone(),
                source,
            })?;
        }
        let path = self.use_path(&image.id);
        let lock = open_lock(&path).map_err(|err| self.failed("open", &path, err))?;
        flock(&lock, FlockOperation::LockShared)
            .map_err(|err| self.failed("lock", &path, err.into()))?;
        Ok(ImageUse { lock })
    }

    /// Makes sure that the root directory exists and is ours alone.
    fn claim_root(&self) -> Result<(), StoreError> {
        let root = &self.root;
        if let Some(parent) = root.parent() {
            fs::create_dir_all(parent).map_err(|err| self.failed("create", parent, err))?;
        }
        match DirBuilder::new().mode(0o700).create(root) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => {
                return Err(self.failed("create", root, err));
            }
            _ => {}
        }
        let metadata = fs::metadata(root).map_err(|err| self.failed("read", root, err))?;
        if metadata.uid() != 0 {
            return Err(StoreError::Owner {
                path: root.clone(),
                owner: metadata.uid(),
            });
        }
        if metadata.mode() & 0o077 == 0 {
            return Ok(());
        }
        let mut entries = fs::read_dir(root).map_err(|err| self.failed("read", root, err))?;
        if entries.next().is_some() && !root.join(index::FILE_NAME).exists() {
            return Err(StoreError::NotAStore { path: root.clone() });
        }
        fs::set_permissions(root, Permissions::from_mode(0o700))
            .map_err(|err| self.failed("restrict access to", root, err))
    }

    /// Lays out an empty store; two processes may do so at once.
    fn create(&self) -> Result<(), StoreError> {
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        if self.read_existing_index()?.is_some() {
            return Ok(());
        }
        for path in [
            self.blobs_path(),
            self.layers_path(),
            self.root.join("use"),
            self.tmp_path(),
            self.downloads_path(),
        ] {
            DirBuilder::new()
                .mode(0o700)
                .recursive(true)
                .create(&path)
                .map_err(|err| self.failed("create", &path, err))?;
        }
        self.write_index(&Index::default())
    }

    /// Takes the store's lock, waiting for it; held until the result is dropped.
    fn lock(&self, operation: FlockOperation) -> Result<File, StoreError> {
        let path = self.root.join("lock");
        lock_file(&path, operation).map_err(|err| self.failed("lock", &path, err))
    }

    fn read_existing_index(&self) -> Result<Option<Index>, StoreError> {
        Index::read(&self.root).map_err(|err| match err {
            ReadError::Io(err) => self.failed("read the index of", &self.root, err),
            ReadError::Syntax(source) => StoreError::Damaged {
                path: self.root.clone(),
                source,
            },
            ReadError::Version(found) => StoreError::Version {
                path: self.root.clone(),
                found,
                supported: index::VERSION,
            },
        })
    }

    fn read_index(&self) -> Result<Index, StoreError> {
        Ok(self.read_existing_index()?.unwrap_or_default())
    }

    fn write_index(&self, index: &Index) -> Result<(), StoreError> {
        index
            .write(&self.root)
            .map_err(|err| self.failed("write the index of", &self.root, err))
    }

    fn blobs_path(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    /// Only SHA-256 digests come this far, so the name is 64 hexadecimal digits.
    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs_path().join(digest.digest())
    }

    fn layers_path(&self) -> PathBuf {
        self.root.join("layers")
    }

    fn tmp_path(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn use_path(&self, id: &Digest) -> PathBuf {
        self.root.join("use").join(id.digest())
    }

    /// Turns what the system said into our error; a full disk has one of its own.
    fn failed(&self, action: &'static str, path: &Path, source: io::Error) -> StoreError {
        if is_full(&source) {
            return StoreError::Full {
                path: self.root.clone(),
            };
        }
        StoreError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// Whether an error says that the disk, or the user's share of it, is full.
fn is_full(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Opens a lock and takes it, waiting for it.
fn lock_file(path: &Path, operation: FlockOperation) -> io::Result<File> {
    let file = open_lock(path)?;
    loop {
        match flock(&file, operation) {
            Err(Errno::INTR) => {}
            Err(err) => return Err(err.into()),
            Ok(()) => return Ok(file),
        }
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests;
