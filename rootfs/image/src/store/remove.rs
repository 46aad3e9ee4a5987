//! Removing names, and with the last name the image.

use std::fs;
use std::io;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::find::{FindError, find_record};
use super::{Store, StoreError, open_lock};
use crate::{Digest, Reference};

/// What [`Store::remove`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<Reference>,
    /// The image, if it went with its last name.
    pub deleted: Option<Digest>,
    /// Bytes of unpacked files and blobs that no other image shares.
    pub freed: u64,
}

/// Why nothing was removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is no such image.
    #[error(transparent)]
    Find(#[from] FindError),
    /// A container runs on it.
    #[error("Image {name} is in use by a container: stop that first")]
    InUse {
        /// What was to be removed.
        name: String,
    },
    /// An id was given, but which of the names is meant?
    #[error(
        "Image {id} has several names, remove them one by one: {}",
        names.iter().map(Reference::to_string).collect::<Vec<_>>().join(", ")
    )]
    SeveralNames {
        /// What was given.
        id: String,
        /// All names.
        names: Vec<Reference>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Removes a name. With the last name, or if an id is given and there is only one name, the
    /// image goes too, and with it what no other image shares.
    pub fn remove(&self, name: &str) -> Result<Removed, RemoveError> {
        let lock = self.lock(FlockOperation::LockExclusive)?;
        let mut index = self.read_index()?;
        let record = find_record(&index, name)?.clone();
        let named = name
            .parse::<Reference>()
            .ok()
            .filter(|name| record.names.contains(name));
        let untagged = match (named, record.names.len()) {
            (Some(name), _) => vec![name],
            (None, 0 | 1) => record.names.iter().cloned().collect(),
            (None, _) => {
                return Err(RemoveError::SeveralNames {
                    id: name.to_owned(),
                    names: record.names.into_iter().collect(),
                });
            }
        };
        if untagged.len() < record.names.len() {
            for image in index
                .images
                .iter_mut()
                .filter(|image| image.id == record.id)
            {
                image.names.retain(|name| !untagged.contains(name));
            }
            self.write_index(&index)?;
            return Ok(Removed {
                untagged,
                deleted: None,
                freed: 0,
            });
        }
        // Held until the image is out of the index: whoever wants to use it then finds it gone.
        let use_path = self.use_path(&record.id);
        let in_use = open_lock(&use_path).map_err(|err| self.failed("open", &use_path, err))?;
        match flock(&in_use, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                return Err(RemoveError::InUse {
                    name: name.to_owned(),
                });
            }
            other => other.map_err(|err| self.failed("lock", &use_path, err.into()))?,
        }
        let workspace = self.new_workspace()?;
        index.images.retain(|image| image.id != record.id);
        let layers = index.drop_unused_layers();
        let kept = index.blobs();
        let blobs: u64 = [&record.id, &record.manifest]
            .into_iter()
            .chain(record.layers.iter().map(|layer| &layer.blob))
            .filter(|blob| !kept.contains(blob.digest()))
            .filter_map(|blob| fs::metadata(self.blob_path(blob)).ok())
            .map(|metadata| metadata.len())
            .sum();
        self.write_index(&index)?;
        self.set_orphans_aside(&index, &workspace)?;
        match fs::remove_file(&use_path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                return Err(self.failed("remove", &use_path, err).into());
            }
            _ => {}
        }
        drop(lock);
        // Deletes the files, without the lock.
        drop(workspace);
        let unpacked: u64 = layers.iter().map(|(_, layer)| layer.bytes).sum();
        Ok(Removed {
            untagged,
            deleted: Some(record.id),
            freed: blobs + unpacked,
        })
    }
}
