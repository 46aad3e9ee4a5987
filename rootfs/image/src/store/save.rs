//! Saving images: an archive that hrun, podman, docker and skopeo load.
//!
//! It is an OCI layout, with docker's `manifest.json` beside it for those who look for that. The
//! same images make the same bytes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};

use rustix::fs::FlockOperation;
use serde::Deserialize;
use serde_json::{Value, json};
use tar::{Builder, Header};

use super::find::{FindError, find_record};
use super::{ImageUse, Store, StoreError, UseError};
use crate::index::ImageRecord;
use crate::{Digest, Reference, digest};

/// What a manifest is that does not say it.
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Why an image was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// There is no such image.
    #[error(transparent)]
    Find(#[from] FindError),
    /// It went away meanwhile.
    #[error(transparent)]
    Use(#[from] UseError),
    /// The store failed, or what it holds is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The archive cannot be written.
    #[error("Failed to write the archive")]
    Write(#[source] io::Error),
}

/// One image to be saved, which nobody removes meanwhile.
struct Chosen {
    record: ImageRecord,
    names: Vec<Reference>,
    _in_use: ImageUse,
}

impl Store {
    /// Writes the images that `names` stand for, and the tags by which they were named, to `out`
    /// as a tar archive. Every blob is checked on its way; after an error, what was written is of
    /// no use.
    pub fn save(&self, names: &[String], out: &mut dyn Write) -> Result<(), SaveError> {
        let chosen = self.choose(names)?;
        let mut archive = Builder::new(out);
        let mut written = BTreeSet::new();
        let mut manifests = Vec::new();
        let mut items = Vec::new();
        add(
            &mut archive,
            "oci-layout",
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        for image in &chosen {
            let record = &image.record;
            let layers = record.layers.iter().map(|layer| &layer.blob.digest);
            for blob in [&record.manifest, &record.id].into_iter().chain(layers) {
                if written.insert(blob.digest().to_owned()) {
                    self.add_blob(&mut archive, blob, &record.id)?;
                }
            }
            manifests.extend(self.descriptors(image)?);
            items.push(docker_item(image));
        }
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        add(&mut archive, "index.json", index.to_string().as_bytes())?;
        let items = Value::from(items).to_string();
        add(&mut archive, "manifest.json", items.as_bytes())?;
        archive.finish().map_err(SaveError::Write)
    }

    /// The images, each once, in the order in which they were named.
    fn choose(&self, names: &[String]) -> Result<Vec<Chosen>, SaveError> {
        let mut chosen: Vec<Chosen> = Vec::new();
        for name in names {
            let image = self.find(name)?;
            let tag = name
                .parse::<Reference>()
                .ok()
                .filter(|name| name.digest().is_none() && image.names.contains(name));
            if let Some(known) = chosen.iter_mut().find(|c| c.record.id == image.id) {
                known.names.extend(tag);
                known.names.sort();
                known.names.dedup();
                continue;
            }
            let in_use = self.use_image(&image)?;
            let _lock = self.lock(FlockOperation::LockShared)?;
            let record = find_record(&self.read_index()?, image.id.as_ref())?.clone();
            chosen.push(Chosen {
                record,
                names: tag.into_iter().collect(),
                _in_use: in_use,
            });
        }
        Ok(chosen)
    }

    /// What an OCI index says of an image: once for each of its names.
    fn descriptors(&self, image: &Chosen) -> Result<Vec<Value>, SaveError> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(rename = "mediaType")]
            media_type: Option<String>,
        }
        let manifest = &image.record.manifest;
        let damaged = |source| StoreError::DamagedImage {
            image: image.record.id.clone(),
            source,
        };
        let bytes = fs::read(self.blob_path(manifest)).map_err(damaged)?;
        let head: Head =
            serde_json::from_slice(&bytes).map_err(|err| damaged(io::Error::other(err)))?;
        let descriptor = json!({
            "mediaType": head.media_type.as_deref().unwrap_or(OCI_MANIFEST),
            "digest": manifest,
            "size": bytes.len(),
        });
        if image.names.is_empty() {
            return Ok(vec![descriptor]);
        }
        let named = |name: &Reference| {
            let mut descriptor = descriptor.clone();
            descriptor["annotations"] = json!({
                "io.containerd.image.name": name.full(),
                "org.opencontainers.image.ref.name": name.full(),
            });
            descriptor
        };
        Ok(image.names.iter().map(named).collect())
    }

    fn add_blob(
        &self,
        archive: &mut Builder<&mut dyn Write>,
        blob: &Digest,
        image: &Digest,
    ) -> Result<(), SaveError> {
        let damaged = |source| StoreError::DamagedImage {
            image: image.clone(),
            source,
        };
        let open = || {
            let file = File::open(self.blob_path(blob))?;
            let size = file.metadata()?.len();
            Ok((file, size))
        };
        let (file, size) = open().map_err(damaged)?;
        let mut hashing = digest::Hashing::new(file);
        let mut header = header(size);
        archive
            .append_data(&mut header, blob_name(blob), &mut hashing)
            .map_err(SaveError::Write)?;
        let (found, _) = hashing.finish();
        if found == *blob {
            return Ok(());
        }
        Err(damaged(io::Error::other(format!("blob {blob} is {found}"))).into())
    }
}

/// An image in docker's `manifest.json`.
fn docker_item(image: &Chosen) -> Value {
    let names: Vec<String> = image.names.iter().map(Reference::to_string).collect();
    let layers: Vec<String> = image
        .record
        .layers
        .iter()
        .map(|layer| blob_name(&layer.blob.digest))
        .collect();
    json!({"Config": blob_name(&image.record.id), "RepoTags": names, "Layers": layers})
}

fn blob_name(blob: &Digest) -> String {
    format!("blobs/{}/{}", blob.algorithm(), blob.digest())
}

fn header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

fn add(archive: &mut Builder<&mut dyn Write>, name: &str, bytes: &[u8]) -> Result<(), SaveError> {
    let mut header = header(bytes.len() as u64);
    archive
        .append_data(&mut header, name, bytes)
        .map_err(SaveError::Write)
}
