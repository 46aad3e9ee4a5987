//! From a name in a registry to the one manifest that a machine wants.

use oci_spec::image::Descriptor;

use crate::manifest::{self, Kind, ManifestError};
use crate::registry::{Client, Document, RegistryError};
use crate::{Digest, Limits, Platform, Reference, Store};

/// Documents that are looked at before an image is found: an index in an index is rare.
const INDEXES_MAX: usize = 8;
/// The most that one index may list.
const MANIFESTS_MAX: usize = 1000;

/// What a registry has for a name and a machine.
pub(super) struct Resolved {
    /// Of the name.
    pub(super) digest: Digest,
    /// What has the name, if that is an index.
    pub(super) index: Option<Vec<u8>>,
    pub(super) manifest: Document,
    pub(super) config: Vec<u8>,
    pub(super) config_digest: Digest,
}

impl Store {
    /// Finds the manifest for `platform`, and its configuration.
    pub(super) async fn resolve(
        &self,
        client: &Client<'_>,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Resolved, RegistryError> {
        let limit = self.limits.manifest_bytes;
        let name = reference.digest().or(reference.tag()).unwrap_or_default();
        let first = client.manifest(name, limit).await?;
        let digest = first.digest.clone();
        let is_index = Kind::of(&first.media_type) == Kind::Index;
        let top = is_index.then(|| first.bytes.clone());
        let mut others = Vec::new();
        let mut indexes = 0;
        let mut waiting: Vec<Descriptor> = Vec::new();
        let mut document = first;
        let manifest = loop {
            if Kind::of(&document.media_type) == Kind::Manifest {
                break document;
            }
            indexes += 1;
            let absurd = |reason| RegistryError::Absurd {
                registry: reference.registry().to_owned(),
                what: reference.to_string(),
                reason,
            };
            let index = manifest::parse_index(&document.bytes)
                .map_err(|source| unusable(reference, &document.digest, source))?;
            if index.manifests().len() > MANIFESTS_MAX {
                return Err(absurd("it lists too much"));
            }
            // The best one is on top.
            waiting.extend(platform.order(&index).into_iter().rev().cloned());
            let next = loop {
                let Some(descriptor) = waiting.pop() else {
                    return Err(no_image(reference, platform, others));
                };
                let known = matches!(
                    Kind::of(descriptor.media_type()),
                    Kind::Manifest | Kind::Index
                );
                if known && platform.admits(&descriptor, &mut others) {
                    break descriptor;
                }
            };
            if indexes == INDEXES_MAX {
                return Err(absurd("it has too many indexes in it"));
            }
            if next.size() > limit {
                return Err(too_large(
                    reference,
                    next.digest(),
                    limit,
                    Limits::MANIFEST_SIZE,
                ));
            }
            document = client.manifest(next.digest().as_ref(), limit).await?;
        };
        let parsed = manifest::parse_manifest(&manifest.bytes, &self.limits)
            .map_err(|source| unusable(reference, &manifest.digest, source))?;
        let config = parsed.config;
        if config.size() > limit {
            return Err(too_large(
                reference,
                config.digest(),
                limit,
                Limits::MANIFEST_SIZE,
            ));
        }
        let layer_limit = self.limits.layer_bytes;
        if let Some((layer, _)) = parsed.layers.iter().find(|(l, _)| l.size() > layer_limit) {
            return Err(too_large(
                reference,
                layer.digest(),
                layer_limit,
                Limits::LAYER_SIZE,
            ));
        }
        Ok(Resolved {
            digest,
            index: top,
            manifest,
            config: client.document(config.digest(), config.size()).await?,
            config_digest: config.digest().clone(),
        })
    }
}

fn unusable(reference: &Reference, digest: &Digest, source: ManifestError) -> RegistryError {
    RegistryError::Document {
        registry: reference.registry().to_owned(),
        what: format!("{reference} ({digest})"),
        source,
    }
}

fn too_large(
    reference: &Reference,
    digest: &Digest,
    limit: u64,
    setting: &'static str,
) -> RegistryError {
    RegistryError::OverLimit {
        registry: reference.registry().to_owned(),
        what: format!("{digest} of {reference}"),
        limit,
        setting,
    }
}

fn no_image(reference: &Reference, platform: &Platform, mut others: Vec<String>) -> RegistryError {
    let (registry, what) = (reference.registry().to_owned(), reference.to_string());
    if others.is_empty() {
        return RegistryError::Empty { registry, what };
    }
    others.sort();
    others.dedup();
    RegistryError::Platform {
        registry,
        what,
        wanted: platform.to_string(),
        found: others,
    }
}
