//! The writable layer of a container: what it changes, on top of the image.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

/// overlayfs's two directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WritableLayer {
    /// Takes the changes.
    pub(crate) upper: PathBuf,
    /// overlayfs's own.
    pub(crate) work: PathBuf,
}

/// Failure to make a writable layer.
#[derive(Debug, thiserror::Error)]
#[error("Failed to make the writable layer {path}")]
pub(crate) struct LayerError {
    path: PathBuf,
    source: io::Error,
}

impl WritableLayer {
    /// The layer of the container in `dir`, on top of the image layer `below`: made, unless it is
    /// there from the container's first run.
    pub(super) fn of(dir: &Path, below: &Path) -> Result<Self, LayerError> {
        let layer = Self::at(dir);
        if layer.upper.is_dir() {
            return Ok(layer);
        }
        Self::create(dir, below)
    }

    fn at(dir: &Path) -> Self {
        Self {
            upper: dir.join("upper"),
            work: dir.join("work"),
        }
    }

    /// Makes the layer of the container in `dir`, to lie on top of the image layer `below`.
    pub(crate) fn create(dir: &Path, below: &Path) -> Result<Self, LayerError> {
        let layer = Self::at(dir);
        let create = || {
            fs::create_dir(&layer.work)?;
            fs::create_dir(&layer.upper)?;
            // The root directory of an overlay has the attributes of its topmost layer: the
            // container shall find the image's.
            let metadata = fs::metadata(below)?;
            chown(&layer.upper, Some(metadata.uid()), Some(metadata.gid()))?;
            let mode = fs::Permissions::from_mode(metadata.mode() & 0o7777);
            fs::set_permissions(&layer.upper, mode)
        };
        create().map_err(|source| LayerError {
            path: layer.upper.clone(),
            source,
        })?;
        Ok(layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_directory_keeps_the_mode_of_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let below = tempfile::tempdir().unwrap();
        fs::set_permissions(below.path(), fs::Permissions::from_mode(0o1751)).unwrap();
        let layer = WritableLayer::create(dir.path(), below.path()).unwrap();
        let mode = fs::metadata(&layer.upper).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o1751);
        assert!(layer.work.is_dir());
    }
}
