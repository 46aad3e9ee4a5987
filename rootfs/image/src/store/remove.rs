//! Removing names, and with the last name the image.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::find::{FindError, find_record};
use super::{Store, StoreError, Workspace};
use crate::index::{ImageRecord, Index};
use crate::{Digest, Reference};

/// What [`Store::remove`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<Reference>,
    /// The image, if it went with its last name.
    pub deleted: Option<Digest>,
    /// Bytes of unpacked files and layer blobs that no other image shares, and of the EROFS file.
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
        // Nobody begins to use it meanwhile: that takes the store's lock. Without a file nobody
        // ever did, and on a full disk none can be made.
        let use_path = self.use_path(&record.id);
        match File::open(&use_path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(self.failed("open", &use_path, err).into()),
            Ok(in_use) => match flock(&in_use, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => {
                    return Err(RemoveError::InUse {
                        name: name.to_owned(),
                    });
                }
                other => other.map_err(|err| self.failed("lock", &use_path, err.into()))?,
            },
        }
        index.images.retain(|image| image.id != record.id);
        let layers = index.drop_unused_layers();
        let unused = self.unused_blobs(&index, &record);
        let erofs = self.erofs_bytes(&record.id);
        let blobs: u64 = unused.iter().map(|(_, bytes)| bytes).sum();
        let workspace = self.workspace_if_room()?;
        match self.write_index(&index) {
            Err(StoreError::Full { .. }) => {
                // Room for the new index comes from what no container needs: should this process
                // die now, the image is still whole enough to run and to be removed.
                for (path, _) in &unused {
                    fs::remove_file(path).map_err(|err| self.failed("remove", path, err))?;
                }
                self.write_index(&index)?;
            }
            other => other?,
        }
        match fs::remove_file(&use_path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                return Err(self.failed("remove", &use_path, err).into());
            }
            _ => {}
        }
        let workspace = match workspace {
            Some(workspace) => Some(workspace),
            None => self.workspace_if_room()?,
        };
        match workspace {
            Some(workspace) => {
                self.set_orphans_aside(&index, &workspace)?;
                drop(lock);
                // Deletes the files, without the lock.
                drop(workspace);
            }
            None => self.delete_orphans(&index)?,
        }
        let unpacked: u64 = layers.iter().map(|(_, layer)| layer.bytes).sum();
        Ok(Removed {
            untagged,
            deleted: Some(record.id),
            freed: blobs + unpacked + erofs,
        })
    }

    /// A workspace, or none on a full disk.
    fn workspace_if_room(&self) -> Result<Option<Workspace>, StoreError> {
        match self.new_workspace() {
            Err(StoreError::Full { .. }) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Files and sizes of the layer blobs that only `record` used.
    fn unused_blobs(&self, index: &Index, record: &ImageRecord) -> Vec<(PathBuf, u64)> {
        let kept = index.blobs();
        let blobs: BTreeSet<&str> = record
            .layers
            .iter()
            .map(|layer| layer.blob.digest.digest())
            .collect();
        blobs
            .difference(&kept)
            .filter_map(|blob| {
                let path = self.blobs_path().join(blob);
                let bytes = fs::metadata(&path).ok()?.len();
                Some((path, bytes))
            })
            .collect()
    }
}
