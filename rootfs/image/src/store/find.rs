//! From what a user types to an image.

use std::fs;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use serde_json::Value;

use super::{Store, StoreError};
use crate::index::{ImageRecord, Index};
use crate::{Digest, Image, Reference, digest, manifest};

/// Digits of an id that name an image; fewer are more likely a typing error.
const MIN_ID_PREFIX: usize = 4;

/// Why no single image could be found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// Nothing has that name or id.
    #[error(
        "No image {name} here: `hrun image ls` shows what there is, `hrun pull NAME` or \
         `hrun image load FILE` adds one"
    )]
    NotFound {
        /// What was asked for.
        name: String,
    },
    /// Several ids begin like this.
    #[error("{prefix} is ambiguous: {}", ids.iter().map(|id| &id.digest()[..12]).collect::<Vec<_>>().join(", "))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// The ids of all that match.
        ids: Vec<Digest>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Finds an image by name (`busybox`, `busybox:1.36`, `docker.io/library/busybox:1.36`), by
    /// name and manifest digest (`busybox@sha256:...`), or by its id or a unique beginning of it
    /// (four digits or more).
    pub fn find(&self, name: &str) -> Result<Image, FindError> {
        let _lock = self.lock(FlockOperation::LockShared)?;
        let index = self.read_index()?;
        let record = find_record(&index, name)?;
        Ok(self.image(&index, record)?)
    }

    /// All images, by name; those without one last.
    pub fn images(&self) -> Result<Vec<Image>, StoreError> {
        let _lock = self.lock(FlockOperation::LockShared)?;
        let index = self.read_index()?;
        let mut images = index
            .images
            .iter()
            .map(|record| self.image(&index, record))
            .collect::<Result<Vec<_>, _>>()?;
        images.sort_by_cached_key(|image| (image.names.is_empty(), image.names.first().cloned()));
        Ok(images)
    }

    /// Manifest and configuration of an image as they are, with what no structure of ours knows.
    pub fn documents(&self, image: &Image) -> Result<(Value, Value), StoreError> {
        let read = |digest: &Digest| {
            let bytes = fs::read(self.blob_path(digest))?;
            if digest::of(&bytes) != *digest {
                let message = format!("blob {digest} does not match its digest");
                return Err(io::Error::other(message));
            }
            Ok(serde_json::from_slice(&bytes)?)
        };
        let both = || Ok((read(&image.manifest_digest)?, read(&image.id)?));
        both().map_err(|source| StoreError::DamagedImage {
            image: image.id.clone(),
            source,
        })
    }

    /// Fills in what the index leaves to the configuration blob.
    pub(super) fn image(&self, index: &Index, record: &ImageRecord) -> Result<Image, StoreError> {
        let damaged = |source| StoreError::DamagedImage {
            image: record.id.clone(),
            source,
        };
        let bytes = fs::read(self.blob_path(&record.id)).map_err(damaged)?;
        if digest::of(&bytes) != record.id {
            return Err(damaged(io::Error::other(
                "the configuration does not match its digest",
            )));
        }
        let config = manifest::parse_config(&bytes)
            .map_err(|err| damaged(io::Error::other(err)))?
            .configuration;
        let mut layers = Vec::new();
        let mut size = 0;
        for layer in record.layers.iter().rev() {
            let known = index.layers.get(&layer.directory).ok_or_else(|| {
                damaged(io::Error::other(format!(
                    "layer {} is missing",
                    layer.directory
                )))
            })?;
            let path = self.layers_path().join(&layer.directory);
            // overlayfs refuses a layer twice, and only the topmost of equal ones shows.
            if !layers.contains(&path) {
                layers.push(path);
                size += known.bytes;
            }
            if known.opaque {
                break;
            }
        }
        Ok(Image {
            id: record.id.clone(),
            manifest_digest: record.manifest.clone(),
            names: record.names.iter().cloned().collect(),
            config,
            size,
            compressed_size: record.layers.iter().map(|layer| layer.blob.bytes).sum(),
            loaded: UNIX_EPOCH + Duration::from_secs(record.loaded),
            layer_sizes: record
                .layers
                .iter()
                .map(|layer| index.layers.get(&layer.directory).map_or(0, |l| l.bytes))
                .collect(),
            layers,
        })
    }
}

/// The one record that `name` stands for.
pub(super) fn find_record<'a>(index: &'a Index, name: &str) -> Result<&'a ImageRecord, FindError> {
    let not_found = || FindError::NotFound {
        name: name.to_owned(),
    };
    if let Ok(reference) = name.parse::<Reference>()
        && let Some(record) = index
            .images
            .iter()
            .find(|record| is_named(record, &reference))
    {
        return Ok(record);
    }
    let prefix = name.strip_prefix("sha256:").unwrap_or(name);
    if prefix.len() < MIN_ID_PREFIX || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(not_found());
    }
    let prefix = prefix.to_ascii_lowercase();
    let matches: Vec<&ImageRecord> = index
        .images
        .iter()
        .filter(|record| record.id.digest().starts_with(&prefix))
        .collect();
    match matches.as_slice() {
        [] => Err(not_found()),
        [record] => Ok(record),
        several => Err(FindError::Ambiguous {
            prefix: name.to_owned(),
            ids: several.iter().map(|record| record.id.clone()).collect(),
        }),
    }
}

/// Whether `reference` is a name of the image, or names its manifest, or the index from which that
/// was pulled, in a repository it has. Beside a digest a tag says nothing.
fn is_named(record: &ImageRecord, reference: &Reference) -> bool {
    match reference.digest() {
        None => record.names.contains(reference),
        Some(digest) => record.names.iter().any(|name| {
            name.registry() == reference.registry()
                && name.repository() == reference.repository()
                && (record.manifest.as_ref() == digest || name.digest() == Some(digest))
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn index(images: &[(&str, &[&str])]) -> Index {
        let mut index = Index::default();
        for (id, names) in images {
            let id: Digest = format!("sha256:{id:0<64}").parse().unwrap();
            index.images.push(ImageRecord {
                manifest: digest::of(id.as_ref().as_bytes()),
                listed_in: None,
                id,
                names: names
                    .iter()
                    .map(|name| name.parse().unwrap())
                    .collect::<BTreeSet<_>>(),
                layers: Vec::new(),
                loaded: 0,
            });
        }
        index
    }

    fn found(index: &Index, name: &str) -> String {
        find_record(index, name)
            .unwrap()
            .id
            .digest()
            .trim_end_matches('0')
            .to_owned()
    }

    #[test]
    fn names_ids_and_digests_find_their_image() {
        let index = index(&[
            ("abcd1", &["busybox"]),
            ("abcd2", &["quay.io/x/y:v1"]),
            ("77", &[]),
        ]);
        assert_eq!(found(&index, "busybox"), "abcd1");
        assert_eq!(found(&index, "docker.io/library/busybox:latest"), "abcd1");
        assert_eq!(found(&index, "quay.io/x/y:v1"), "abcd2");
        assert_eq!(found(&index, "7700"), "77");
        assert_eq!(found(&index, "ABCD2"), "abcd2");
        assert_eq!(found(&index, index.images[2].id.as_ref()), "77");
        assert_eq!(
            found(&index, &format!("busybox@{}", index.images[0].manifest)),
            "abcd1"
        );
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let index = index(&[("abcd1", &["busybox"]), ("abcd2", &[])]);
        for name in ["busybox:1", "abc", "ffff", "Not A Name", "", "sha256:"] {
            assert!(
                matches!(find_record(&index, name), Err(FindError::NotFound { .. })),
                "{name}"
            );
        }
        let other = format!("busybox@{}", index.images[1].manifest);
        assert!(matches!(
            find_record(&index, &other),
            Err(FindError::NotFound { .. })
        ));
        assert!(matches!(
            find_record(&index, "abcd"),
            Err(FindError::Ambiguous { .. })
        ));
    }

    #[test]
    fn a_name_goes_before_an_id() {
        let index = index(&[("abcd1", &[]), ("77", &["abcd1"])]);
        assert_eq!(found(&index, "abcd1"), "77");
    }
}
