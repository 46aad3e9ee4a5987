//! Giving an image one more name.

use rustix::fs::FlockOperation;

use super::find::{FindError, find_record};
use super::{Store, StoreError};
use crate::index::Index;
use crate::{Digest, Reference, ReferenceError};

/// Why an image did not get its new name.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// There is no such image.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The new name is none.
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// A digest is a fact, not a name to give.
    #[error("{0} has a digest: an image can be given a tag only")]
    Digest(Reference),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Gives the image that `name` stands for the name `new`, taking it from any other image.
    pub fn tag(&self, name: &str, new: &str) -> Result<Reference, TagError> {
        let new: Reference = new.parse()?;
        if new.digest().is_some() {
            return Err(TagError::Digest(new));
        }
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        let mut index = self.read_index()?;
        let id = find_record(&index, name)?.id.clone();
        move_names(&mut index, &id, std::slice::from_ref(&new));
        self.write_index(&index)?;
        Ok(new)
    }
}

/// Makes `names` names of image `id` and of no other.
pub(super) fn move_names(index: &mut Index, id: &Digest, names: &[Reference]) {
    for image in &mut index.images {
        if image.id == *id {
            image.names.extend(names.iter().cloned());
        } else {
            image.names.retain(|name| !names.contains(name));
        }
    }
}
