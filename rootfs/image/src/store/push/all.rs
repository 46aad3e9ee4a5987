//! Pushing an index: the images of several platforms that have one name.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use oci_spec::image::{Descriptor, ImageIndex, MediaType};
use rustix::fs::FlockOperation;

use super::{Chosen, OTHERS_MAX, PushError, PushOptions, Pushed, tag_of};
use crate::registry::{self, Client, RegistryError};
use crate::store::Store;
use crate::{Digest, Progress, Reference, digest, manifest, platform};

/// What a push of an index did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedIndex {
    /// The index, and what was sent for all its images together.
    pub pushed: Pushed,
    /// Images of the index that the store has.
    pub images: usize,
    /// Those that the store does not have.
    pub missing: Vec<Missing>,
}

/// An image of an index that the store does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Its platform and the beginning of its digest.
    pub what: String,
    /// Whether the registry has it already.
    pub is_there: bool,
}

/// What an index lists, as the store sees it.
struct Listed {
    digest: Digest,
    bytes: Vec<u8>,
    /// Ids of the images that are here.
    images: Vec<Digest>,
    /// Manifests that are not, with what they are for.
    missing: Vec<(Digest, String)>,
}

impl Store {
    /// Pushes the index from which the image came that `name` stands for to `destination`, and
    /// those of its images that the store has. The index is pushed as it is: the registry may
    /// refuse it if it does not have the others.
    pub fn push_all_platforms(
        &self,
        name: &str,
        destination: &Reference,
        options: &PushOptions,
        progress: &dyn Progress,
    ) -> Result<PushedIndex, PushError> {
        let tag = tag_of(destination)?;
        let first = self.choose_to_push(name, destination)?;
        let listed = self.listed_beside(&first, name)?;
        let images = listed
            .images
            .iter()
            .map(|id| self.choose_to_push(id.as_ref(), destination))
            .collect::<Result<Vec<_>, _>>()?;
        let mut others: Vec<String> = images.iter().flat_map(|i| i.others.clone()).collect();
        others.sort();
        others.dedup();
        others.truncate(OTHERS_MAX);
        let credentials = options.credentials.find(destination)?;
        registry::run(async {
            let client = Client::connect_to_write(
                destination,
                &others,
                credentials,
                &options.access,
                progress,
            )
            .await?;
            let mut pushed = Pushed::nothing_of(&listed.digest);
            for image in &images {
                let own = image.record.manifest.as_ref();
                image.send(&client, own, &mut pushed, progress).await?;
            }
            let mut missing = Vec::new();
            for (digest, what) in &listed.missing {
                missing.push(Missing {
                    what: what.clone(),
                    is_there: client.has_manifest(digest).await?,
                });
            }
            let nowhere = missing.iter().filter(|missing| !missing.is_there);
            let nowhere: Vec<String> = nowhere.map(|missing| missing.what.clone()).collect();
            let media_type = first.media_type(&listed.bytes, MediaType::ImageIndex)?;
            let done = client.put_manifest(tag, &media_type, &listed.bytes).await;
            match done {
                Err(source @ RegistryError::Status { .. }) if !nowhere.is_empty() => {
                    return Err(PushError::Incomplete {
                        registry: destination.registry().to_owned(),
                        name: name.to_owned(),
                        missing: nowhere,
                        source: Box::new(source),
                    });
                }
                done => done?,
            }
            Ok(PushedIndex {
                pushed,
                images: images.len(),
                missing,
            })
        })
    }

    /// The index that lists `image`, with what the store has of it.
    fn listed_beside(&self, image: &Chosen, name: &str) -> Result<Listed, PushError> {
        let _lock = self.lock(FlockOperation::LockShared)?;
        let index = self.read_index()?;
        let record = index.images.iter().find(|i| i.id == image.record.id);
        let digest = record
            .and_then(|record| record.listed_in.clone())
            .ok_or_else(|| PushError::NoIndex(name.to_owned()))?;
        let read = || {
            let bytes = fs::read(self.blob_path(&digest))?;
            if digest::of(&bytes) != digest {
                let message = format!("the index {digest} does not match its digest");
                return Err(io::Error::other(message));
            }
            let list = manifest::parse_index(&bytes).map_err(io::Error::other)?;
            Ok((bytes, list))
        };
        let (bytes, list): (Vec<u8>, ImageIndex) =
            read().map_err(|source| image.damaged(source))?;
        let (mut images, mut missing) = (Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        for descriptor in list.manifests() {
            if !seen.insert(descriptor.digest().digest()) {
                continue;
            }
            let here = index
                .images
                .iter()
                .find(|image| image.manifest == *descriptor.digest());
            match here {
                Some(image) => images.push(image.id.clone()),
                None => missing.push((descriptor.digest().clone(), shown(descriptor))),
            }
        }
        Ok(Listed {
            digest,
            bytes,
            images,
            missing,
        })
    }
}

/// What an image of an index is for, and enough of its digest.
fn shown(descriptor: &Descriptor) -> String {
    let digest = &descriptor.digest().digest()[..12];
    match platform::name_of(descriptor) {
        Some(platform) => format!("{platform} ({digest})"),
        None => digest.to_owned(),
    }
}
