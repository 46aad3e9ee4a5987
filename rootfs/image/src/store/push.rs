//! Pushing images: the recipe from an entry in the index to a name in a registry.
//!
//! Blobs go first, several side by side, and only those that the registry does not have; the
//! manifest, by which it becomes visible, goes last.

mod all;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;

use futures_util::stream::{FuturesUnordered, StreamExt};
use oci_spec::image::MediaType;
use rustix::fs::FlockOperation;
use serde::Deserialize;

use super::find::{FindError, find_record};
use super::{ImageUse, Store, StoreError, UseError};
use crate::index::{ImageRecord, Index};
use crate::registry::{
    self, Access, AuthFiles, Client, CredentialsError, RegistryError, UploadError, Uploaded,
};
use crate::{Digest, Progress, Reference};
pub use all::{Missing, PushedIndex};

/// Blobs that are uploaded at the same time.
const PARALLEL: usize = 3;
/// Repositories from which blobs are taken over: each makes the request for a token longer.
const OTHERS_MAX: usize = 5;

/// How an image is to be pushed.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// How to talk to the registry.
    pub access: Access,
    /// Where credentials for it may be.
    pub credentials: AuthFiles,
}

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Digest of the manifest, by which the registry knows the image as well.
    pub digest: Digest,
    /// Blobs that were sent,
    pub sent: usize,
    /// and their bytes.
    pub sent_bytes: u64,
    /// Blobs that the registry had in another repository.
    pub mounted: usize,
}

impl Pushed {
    fn nothing_of(digest: &Digest) -> Self {
        Self {
            digest: digest.clone(),
            sent: 0,
            sent_bytes: 0,
            mounted: 0,
        }
    }
}

/// Why an image was not pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// There is no such image.
    #[error(transparent)]
    Find(#[from] FindError),
    /// It went away meanwhile.
    #[error(transparent)]
    Use(#[from] UseError),
    /// A digest is a fact, not a name to give.
    #[error("{0} has a digest: an image is pushed to a tag")]
    Digest(Reference),
    /// There are no other platforms.
    #[error(
        "Image {0} did not come from an index of several platforms: push it without --all-platforms"
    )]
    NoIndex(String),
    /// The registry does not take an index of what it does not have.
    #[error(
        "The registry {registry} does not take the index without the images that the store does not \
         have: {}; `hrun pull --platform PLATFORM {name}` gets one", missing.join(", ")
    )]
    Incomplete {
        /// The registry.
        registry: String,
        /// What was to be pushed.
        name: String,
        /// What neither of both has.
        missing: Vec<String>,
        /// What the registry said.
        source: Box<RegistryError>,
    },
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The credentials for it.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The store failed, or what it holds is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A blob on its way.
struct Outgoing {
    digest: Digest,
    size: u64,
    file: File,
    /// Where the registry has it, by what names in the store say.
    other: Option<String>,
}

/// An image that nobody removes meanwhile.
struct Chosen {
    record: ImageRecord,
    manifest: Vec<u8>,
    blobs: Vec<Outgoing>,
    others: Vec<String>,
    _in_use: ImageUse,
}

impl Store {
    /// Pushes the image that `name` stands for to `destination`, a tag in a registry.
    pub fn push(
        &self,
        name: &str,
        destination: &Reference,
        options: &PushOptions,
        progress: &dyn Progress,
    ) -> Result<Pushed, PushError> {
        let tag = tag_of(destination)?;
        let chosen = self.choose_to_push(name, destination)?;
        let credentials = options.credentials.find(destination)?;
        registry::run(async {
            let client = Client::connect_to_write(
                destination,
                &chosen.others,
                credentials,
                &options.access,
                progress,
            )
            .await?;
            let mut pushed = Pushed::nothing_of(&chosen.record.manifest);
            chosen
                .send(&client, tag, &mut pushed, progress)
                .await
                .map(|()| pushed)
        })
    }

    fn choose_to_push(&self, name: &str, destination: &Reference) -> Result<Chosen, PushError> {
        let image = self.find(name)?;
        let in_use = self.use_image(&image)?;
        let _lock = self.lock(FlockOperation::LockShared)?;
        let index = self.read_index()?;
        let record = find_record(&index, image.id.as_ref())?.clone();
        let others = other_repositories(&index, destination);
        let damaged = |source| StoreError::DamagedImage {
            image: record.id.clone(),
            source,
        };
        let open = |digest: &Digest| {
            let file = File::open(self.blob_path(digest))?;
            Ok(Outgoing {
                digest: digest.clone(),
                size: file.metadata()?.len(),
                file,
                other: others.get(digest.digest()).cloned(),
            })
        };
        let mut digests: Vec<&Digest> = record
            .layers
            .iter()
            .map(|layer| &layer.blob.digest)
            .chain([&record.id])
            .collect();
        let mut seen = std::collections::BTreeSet::new();
        digests.retain(|digest| seen.insert(digest.digest()));
        let blobs = digests
            .into_iter()
            .map(open)
            .collect::<io::Result<Vec<_>>>()
            .map_err(damaged)?;
        let manifest = fs::read(self.blob_path(&record.manifest)).map_err(damaged)?;
        let mut repositories: Vec<String> =
            blobs.iter().filter_map(|blob| blob.other.clone()).collect();
        repositories.sort();
        repositories.dedup();
        repositories.truncate(OTHERS_MAX);
        Ok(Chosen {
            record,
            manifest,
            blobs,
            others: repositories,
            _in_use: in_use,
        })
    }
}

impl Chosen {
    /// Sends what the registry does not have, and the manifest as `reference`: a tag, or its own
    /// digest. Counts in `pushed`.
    async fn send(
        &self,
        client: &Client<'_>,
        reference: &str,
        pushed: &mut Pushed,
        progress: &dyn Progress,
    ) -> Result<(), PushError> {
        let uploads = self.blobs.iter().map(|blob| async move {
            let other = blob.other.as_deref();
            let done = client
                .upload(&blob.digest, blob.size, &blob.file, other, progress)
                .await;
            done.map(|done| (blob, done)).map_err(|err| match err {
                UploadError::Registry(err) => PushError::from(err),
                UploadError::File(err) => self.damaged(err).into(),
            })
        });
        let mut waiting = uploads.collect::<Vec<_>>().into_iter();
        let mut running: FuturesUnordered<_> = waiting.by_ref().take(PARALLEL).collect();
        while let Some(done) = running.next().await {
            match done? {
                (_, Uploaded::Known) => {}
                (_, Uploaded::Mounted) => pushed.mounted += 1,
                (blob, Uploaded::Sent) => {
                    pushed.sent += 1;
                    pushed.sent_bytes += blob.size;
                }
            }
            running.extend(waiting.next());
        }
        let media_type = self.media_type(&self.manifest, MediaType::ImageManifest)?;
        client
            .put_manifest(reference, &media_type, &self.manifest)
            .await?;
        Ok(())
    }

    fn damaged(&self, source: io::Error) -> StoreError {
        StoreError::DamagedImage {
            image: self.record.id.clone(),
            source,
        }
    }

    /// What a document calls itself; those of OCI may leave it out.
    fn media_type(&self, document: &[u8], default: MediaType) -> Result<MediaType, StoreError> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(rename = "mediaType")]
            media_type: Option<String>,
        }
        let head: Head =
            serde_json::from_slice(document).map_err(|err| self.damaged(io::Error::other(err)))?;
        Ok(head.media_type.map_or(default, |text| text.as_str().into()))
    }
}

/// The tag to push to.
fn tag_of(destination: &Reference) -> Result<&str, PushError> {
    match destination.tag() {
        Some(tag) if destination.digest().is_none() => Ok(tag),
        _ => Err(PushError::Digest(destination.clone())),
    }
}

/// For each layer blob a repository of the destination's registry that has it, by its digits: so
/// the names of images say that were pulled from there or pushed there.
fn other_repositories(index: &Index, destination: &Reference) -> BTreeMap<String, String> {
    let mut others = BTreeMap::new();
    for image in &index.images {
        let elsewhere = image.names.iter().find(|name| {
            name.registry() == destination.registry()
                && name.repository() != destination.repository()
        });
        let Some(elsewhere) = elsewhere else {
            continue;
        };
        for layer in &image.layers {
            others
                .entry(layer.blob.digest.digest().to_owned())
                .or_insert_with(|| elsewhere.repository().to_owned());
        }
    }
    others
}

#[cfg(test)]
mod tests;
