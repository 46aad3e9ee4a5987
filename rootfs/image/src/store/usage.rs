//! What the store takes on the disk, and what of it could go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::time::Duration;

use rustix::fs::FlockOperation;

use super::{Store, StoreError};
use crate::Digest;
use crate::index::{ImageRecord, Index};

/// What one image takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSize {
    /// Which.
    pub id: Digest,
    /// Bytes of unpacked files and blobs that other images have as well.
    pub shared: u64,
    /// Bytes that go with the image.
    pub unique: u64,
}

/// What the store holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// By image, as the index has them.
    pub images: Vec<ImageSize>,
    /// Bytes of all of them, what is shared counted once.
    pub bytes: u64,
    /// Interrupted downloads,
    pub downloads: usize,
    /// and their bytes.
    pub download_bytes: u64,
}

impl Store {
    /// Says what images and downloads take: the bytes of blobs, of the unpacked
    /// regular files, and of EROFS files.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let _lock = self.lock(FlockOperation::LockShared)?;
        let index = self.read_index()?;
        let all: BTreeMap<_, _> = index
            .images
            .iter()
            .flat_map(|i| self.parts(&index, i))
            .collect();
        let mut owners: BTreeMap<&str, usize> = BTreeMap::new();
        for image in &index.images {
            for part in self.parts(&index, image).keys() {
                *owners.entry(*part).or_default() += 1;
            }
        }
        let images = index
            .images
            .iter()
            .map(|image| {
                let (unique, shared): (Vec<_>, Vec<_>) = self
                    .parts(&index, image)
                    .into_iter()
                    .partition(|(part, _)| owners.get(part) == Some(&1));
                let sum = |parts: Vec<(&str, u64)>| parts.into_iter().map(|(_, n)| n).sum();
                ImageSize {
                    id: image.id.clone(),
                    shared: sum(shared),
                    unique: sum(unique),
                }
            })
            .collect();
        let (downloads, download_bytes) = self.downloads()?;
        Ok(Usage {
            images,
            bytes: all.values().sum(),
            downloads,
            download_bytes,
        })
    }

    /// The bytes that would be free without all images but those with the ids `kept`.
    pub fn reclaimable(&self, kept: &BTreeSet<String>) -> Result<u64, StoreError> {
        let _lock = self.lock(FlockOperation::LockShared)?;
        let index = self.read_index()?;
        let of = |images: &mut dyn Iterator<Item = &ImageRecord>| -> u64 {
            let parts: BTreeMap<String, u64> = images
                .flat_map(|image| self.parts(&index, image))
                .map(|(part, bytes)| (part.to_owned(), bytes))
                .collect();
            parts.values().sum()
        };
        let all = of(&mut index.images.iter());
        let needed = of(&mut index
            .images
            .iter()
            .filter(|image| kept.contains(image.id.as_ref())));
        Ok(all - needed)
    }

    /// Removes interrupted downloads that nobody is at; gives the bytes that this frees.
    pub fn prune_downloads(&self) -> Result<u64, StoreError> {
        self.clear_downloads(Duration::ZERO)
    }

    /// The layers, the layer blobs and the EROFS file of an image, by name, and their bytes.
    fn parts<'a>(&self, index: &'a Index, image: &'a ImageRecord) -> BTreeMap<&'a str, u64> {
        let blobs = image
            .layers
            .iter()
            .map(|layer| (layer.blob.digest.digest(), layer.blob.bytes));
        let layers = image.layers.iter().filter_map(|layer| {
            let record = index.layers.get(&layer.directory)?;
            Some((layer.directory.as_str(), record.bytes))
        });
        // No blob has the digest of an image's configuration.
        let erofs = (image.id.digest(), self.erofs_bytes(&image.id));
        blobs.chain(layers).chain([erofs]).collect()
    }

    fn downloads(&self) -> Result<(usize, u64), StoreError> {
        let directory = self.downloads_path();
        let count = || {
            let mut found = (0, 0);
            let entries = match fs::read_dir(&directory) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(found),
                other => other?,
            };
            for entry in entries {
                // It may be complete, and gone, by now.
                if let Ok(metadata) = entry?.metadata() {
                    found = (found.0 + 1, found.1 + metadata.len());
                }
            }
            Ok(found)
        };
        count().map_err(|err| self.failed("read", &directory, err))
    }
}
