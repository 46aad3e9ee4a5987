//! `index.json`: which images and layers the store holds. What it does not name does not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

use crate::Reference;
use crate::manifest::Compression;

/// The layout of the store; another number is another layout.
pub(crate) const VERSION: u32 = 1;
pub(crate) const FILE_NAME: &str = "index.json";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Index {
    version: u32,
    pub(crate) images: Vec<ImageRecord>,
    /// By the name of the directory below `layers/`.
    pub(crate) layers: BTreeMap<String, LayerRecord>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// Digest of the configuration blob.
    pub(crate) id: Digest,
    pub(crate) manifest: Digest,
    /// The index that listed the manifest where the image was last had from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) listed_in: Option<Digest>,
    pub(crate) names: BTreeSet<Reference>,
    /// Bottom first, as in the manifest.
    pub(crate) layers: Vec<LayerUse>,
    /// Seconds since the epoch.
    pub(crate) loaded: u64,
}

/// One layer of an image: the blob it came from and the directory it is unpacked in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LayerUse {
    pub(crate) blob: LayerBlob,
    pub(crate) directory: String,
}

/// A layer as it was loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LayerBlob {
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    pub(crate) compression: Compression,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) diff_id: Digest,
    /// Set if the contents depend on the layers below: the directory then serves this chain only.
    pub(crate) chain_id: Option<Digest>,
    /// Bytes of its regular files.
    pub(crate) bytes: u64,
    /// The layer hides everything below it. overlayfs ignores that mark on a layer's root.
    pub(crate) opaque: bool,
}

/// Why `index.json` could not be used.
#[derive(Debug)]
pub(crate) enum ReadError {
    Io(io::Error),
    Syntax(serde_json::Error),
    Version(u32),
}

impl Default for Index {
    fn default() -> Self {
        Self {
            version: VERSION,
            images: Vec::new(),
            layers: BTreeMap::new(),
        }
    }
}

impl Index {
    /// Reads the index of the store at `root`; none if there is no file.
    pub(crate) fn read(root: &Path) -> Result<Option<Self>, ReadError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let bytes = match fs::read(root.join(FILE_NAME)) {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(ReadError::Io(err)),
        };
        let head: Head = serde_json::from_slice(&bytes).map_err(ReadError::Syntax)?;
        if head.version != VERSION {
            return Err(ReadError::Version(head.version));
        }
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(ReadError::Syntax)
    }

    /// Replaces the index atomically. The caller holds the store's lock.
    pub(crate) fn write(&self, root: &Path) -> io::Result<()> {
        // Always the same name: what a crash leaves there is overwritten.
        let new = root.join(".index.json.new");
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, root.join(FILE_NAME))
        };
        if let Err(err) = write() {
            // The disk may be full: half an index is no use.
            let _ = fs::remove_file(&new);
            return Err(err);
        }
        File::open(root)?.sync_all()
    }

    /// The image that has exactly this name.
    pub(crate) fn id_of(&self, name: &Reference) -> Option<&Digest> {
        let name = name.pinned();
        self.images
            .iter()
            .find(|image| image.names.contains(&name))
            .map(|image| &image.id)
    }

    /// The directory that holds layer `diff_id` of the chain `chain_id`.
    pub(crate) fn layer_directory(&self, diff_id: &Digest, chain_id: &Digest) -> Option<&str> {
        [diff_id, chain_id].into_iter().find_map(|digest| {
            let (name, record) = self.layers.get_key_value(&directory_name(digest))?;
            let serves = record.diff_id == *diff_id
                && record
                    .chain_id
                    .as_ref()
                    .is_none_or(|chain| chain == chain_id);
            serves.then_some(name.as_str())
        })
    }

    /// A blob of which an image proves that it unpacks to `diff_id`; the one with digest
    /// `wanted`, if that is given.
    pub(crate) fn blob_of(&self, diff_id: &Digest, wanted: Option<&Digest>) -> Option<&LayerBlob> {
        let layers = self.images.iter().flat_map(|image| &image.layers);
        let mut blobs = layers
            .filter(|layer| {
                self.layers
                    .get(&layer.directory)
                    .is_some_and(|l| l.diff_id == *diff_id)
            })
            .map(|layer| &layer.blob);
        blobs.find(|blob| wanted.is_none_or(|wanted| *wanted == blob.digest))
    }

    /// All blobs that images refer to.
    pub(crate) fn blobs(&self) -> BTreeSet<&str> {
        self.images
            .iter()
            .flat_map(|image| {
                let layers = image.layers.iter().map(|layer| &layer.blob.digest);
                let documents = [&image.id, &image.manifest];
                documents.into_iter().chain(&image.listed_in).chain(layers)
            })
            .map(Digest::digest)
            .collect()
    }

    /// Forgets the layers that no image uses any more; gives their directories and sizes.
    pub(crate) fn drop_unused_layers(&mut self) -> Vec<(String, LayerRecord)> {
        let used: BTreeSet<&str> = self
            .images
            .iter()
            .flat_map(|image| &image.layers)
            .map(|layer| layer.directory.as_str())
            .collect();
        let unused: Vec<String> = self
            .layers
            .keys()
            .filter(|name| !used.contains(name.as_str()))
            .cloned()
            .collect();
        unused
            .into_iter()
            .filter_map(|name| self.layers.remove_entry(&name))
            .collect()
    }
}

/// Name of a layer's directory: 32 digits of its digest. Short, because overlayfs's options name
/// every layer; 128 bits still leave no hope for a collision.
pub(crate) fn directory_name(digest: &Digest) -> String {
    digest.digest()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest;

    fn blob(digest: &Digest) -> LayerBlob {
        LayerBlob {
            digest: digest.clone(),
            bytes: 1,
            compression: Compression::Gzip,
        }
    }

    fn layer(diff_id: &Digest, chain_id: Option<&Digest>) -> LayerRecord {
        LayerRecord {
            diff_id: diff_id.clone(),
            chain_id: chain_id.cloned(),
            bytes: 1,
            opaque: false,
        }
    }

    #[test]
    fn an_index_survives_writing_and_reading() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Index::read(dir.path()).unwrap().is_none());
        let mut index = Index::default();
        let id = digest::of(b"config");
        index.layers.insert(directory_name(&id), layer(&id, None));
        index.images.push(ImageRecord {
            id: id.clone(),
            manifest: id.clone(),
            listed_in: Some(digest::of(b"index")),
            names: BTreeSet::from(["busybox".parse().unwrap()]),
            layers: vec![LayerUse {
                blob: blob(&id),
                directory: directory_name(&id),
            }],
            loaded: 7,
        });
        index.write(dir.path()).unwrap();
        assert_eq!(Index::read(dir.path()).unwrap(), Some(index));
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn another_version_is_told_from_a_damaged_index() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::write(&path, r#"{"version": 9, "something": "else"}"#).unwrap();
        assert!(matches!(
            Index::read(dir.path()),
            Err(ReadError::Version(9))
        ));
        fs::write(&path, r#"{"version": 1, "ima"#).unwrap();
        assert!(matches!(Index::read(dir.path()), Err(ReadError::Syntax(_))));
    }

    #[test]
    fn a_layer_that_depends_on_its_chain_serves_no_other() {
        let (diff_id, below, other) = (digest::of(b"d"), digest::of(b"b"), digest::of(b"o"));
        let chain = digest::chain_id(Some(&below), &diff_id);
        let mut index = Index::default();
        index
            .layers
            .insert(directory_name(&chain), layer(&diff_id, Some(&chain)));
        assert!(index.layer_directory(&diff_id, &chain).is_some());
        assert!(
            index
                .layer_directory(&diff_id, &digest::chain_id(Some(&other), &diff_id))
                .is_none()
        );
        index
            .layers
            .insert(directory_name(&diff_id), layer(&diff_id, None));
        assert!(
            index
                .layer_directory(&diff_id, &digest::chain_id(Some(&other), &diff_id))
                .is_some()
        );
    }

    #[test]
    fn layers_without_an_image_are_dropped() {
        let (a, b) = (digest::of(b"a"), digest::of(b"b"));
        let mut index = Index::default();
        index.layers.insert(directory_name(&a), layer(&a, None));
        index.layers.insert(directory_name(&b), layer(&b, None));
        index.images.push(ImageRecord {
            id: a.clone(),
            manifest: a.clone(),
            listed_in: None,
            names: BTreeSet::new(),
            layers: vec![LayerUse {
                blob: blob(&a),
                directory: directory_name(&a),
            }],
            loaded: 0,
        });
        let dropped = index.drop_unused_layers();
        assert_eq!(dropped.len(), 1);
        assert_eq!(dropped[0].0, directory_name(&b));
        assert!(index.layers.contains_key(&directory_name(&a)));
    }
}
