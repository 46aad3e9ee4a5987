//! Pulling images: the recipe from a name in a registry to an entry in the index.
//!
//! A pull makes an OCI layout in its workspace, of the documents that the registry gave and of the
//! layers that the store does not have, and loads that as any other layout: there is one way into
//! the store. Layers are downloaded to `downloads/`, from where an interrupted pull goes on.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use futures_util::stream::{FuturesUnordered, StreamExt};
use oci_spec::image::Descriptor;
use rustix::fs::FlockOperation;

use super::downloads::Held;
use super::load::LoadError;
use super::{Store, StoreError, Workspace};
use crate::index::Index;
use crate::manifest::{self, Kind, ManifestError};
use crate::progress::Notes;
use crate::registry::{
    self, Access, AuthFiles, Client, CredentialsError, Document, DownloadError, RegistryError,
};
use crate::source::{Candidate, Files, Source};
use crate::{Digest, Image, Limits, Platform, Progress, Reference, digest};

/// Layers that are downloaded at the same time.
const PARALLEL: usize = 4;
/// Where a layout has its blobs.
const BLOBS: &str = "blobs/sha256";
/// Documents that are looked at before an image is found: an index in an index is rare.
const INDEXES_MAX: usize = 8;
/// The most that one index may list.
const MANIFESTS_MAX: usize = 1000;
/// How often layers may be removed under a pull.
const ATTEMPTS: usize = 3;

/// What is to be pulled, and how.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// For which machine the image is to be.
    pub platform: Platform,
    /// How to talk to the registry.
    pub access: Access,
    /// Where credentials for it may be.
    pub credentials: AuthFiles,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            platform: Platform::host(),
            access: Access::default(),
            credentials: AuthFiles::from_env(),
        }
    }
}

/// What a pull gave.
#[derive(Debug)]
pub struct Pulled {
    /// The image, under its name.
    pub image: Image,
    /// The name did not stand for this image before.
    pub changed: bool,
    /// Digest that the registry has for the name: of the index, if there is one.
    pub digest: Digest,
}

/// Why nothing was pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The credentials for it.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// What it gave cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a registry has for a name and a machine.
struct Resolved {
    /// Of the name.
    digest: Digest,
    manifest: Document,
    config: Vec<u8>,
    config_digest: Digest,
}

impl Store {
    /// Pulls the image that `reference` stands for in its registry.
    ///
    /// Only what the store does not have is downloaded; what an interrupted pull left is continued.
    /// Every document and layer is checked as [`Store::load`] does it before anything is visible.
    /// The image gets the name `reference`; with a digest, the tag in it does not count, as docker
    /// has it. This blocks, and may end the process at any time: nothing but `downloads/` stays.
    pub fn pull(
        &self,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Pulled, PullError> {
        self.clear_old_downloads()?;
        let credentials = options.credentials.find(reference)?;
        let before = self.read_index()?.id_of(reference).cloned();
        registry::run(async {
            let client = Client::connect(reference, credentials, &options.access, progress).await?;
            let resolved = self.resolve(&client, reference, &options.platform).await?;
            let image = self
                .fetch(&client, reference, &resolved, options, progress)
                .await?;
            Ok(Pulled {
                changed: before.as_ref() != Some(&image.id),
                digest: resolved.digest,
                image,
            })
        })
    }

    /// Finds the manifest for `platform`, and its configuration.
    async fn resolve(
        &self,
        client: &Client<'_>,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Resolved, RegistryError> {
        let limit = self.limits.manifest_bytes;
        let name = reference.digest().or(reference.tag()).unwrap_or_default();
        let first = client.manifest(name, limit).await?;
        let digest = first.digest.clone();
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
            manifest,
            config: client.document(config.digest(), config.size()).await?,
            config_digest: config.digest().clone(),
        })
    }

    /// Downloads the layers that are missing and loads the image.
    async fn fetch(
        &self,
        client: &Client<'_>,
        reference: &Reference,
        resolved: &Resolved,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image, PullError> {
        let workspace = {
            let _lock = self.lock(FlockOperation::LockExclusive)?;
            self.new_workspace()?
        };
        let layout = self.lay_out(&workspace, resolved)?;
        let files = Files::directory(&layout).map_err(|err| self.failed("open", &layout, err))?;
        // Messages name what the user asked for.
        let source = Source::open(
            Path::new(&reference.to_string()),
            files,
            &self.limits,
            options.platform.clone(),
        )
        .owned();
        let candidate = source
            .images(&mut Notes::new(progress))
            .map_err(LoadError::from)?;
        let mut candidate = candidate
            .into_iter()
            .next()
            .expect("a source without images is an error");
        candidate.names = vec![reference.pinned()];
        let blobs = layout.join(BLOBS);
        for _ in 0..ATTEMPTS {
            let held = self.download(client, &candidate, &blobs, progress).await?;
            let linked = self.link(&held, &blobs);
            let loaded = linked
                .is_ok()
                .then(|| self.load_image(&source, &candidate, &workspace, progress));
            // In the store, or of no use: what is verified and cannot be loaded stays so, and a
            // full disk needs room.
            for held in &held {
                held.remove()
                    .map_err(|err| self.failed("remove", &held.path, err))?;
            }
            linked?;
            // Layers that the store had may have been removed since they were not downloaded.
            let lost = missing(&self.read_index()?, &candidate, &blobs);
            match loaded {
                Some(Ok(image)) => return Ok(image),
                Some(Err(err)) if lost.is_empty() => return Err(err.into()),
                _ => {}
            }
        }
        Err(LoadError::Contended.into())
    }

    /// Gives downloads their place in the layout's directory `blobs`.
    fn link(&self, held: &[Held], blobs: &Path) -> Result<(), StoreError> {
        for held in held {
            let blob = blobs.join(held.digest.digest());
            match fs::hard_link(&held.path, &blob) {
                Err(err) if err.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(self.failed("link", &blob, err));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes a layout of one image, without its layers.
    fn lay_out(&self, workspace: &Workspace, resolved: &Resolved) -> Result<PathBuf, StoreError> {
        let layout = workspace.path().join("pulled");
        let Document {
            bytes,
            digest,
            media_type,
        } = &resolved.manifest;
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": media_type,
                "digest": digest,
                "size": bytes.len(),
            }],
        });
        let write = || {
            let blobs = layout.join(BLOBS);
            DirBuilder::new()
                .mode(0o700)
                .recursive(true)
                .create(&blobs)?;
            fs::write(blobs.join(digest.digest()), bytes)?;
            fs::write(
                blobs.join(resolved.config_digest.digest()),
                &resolved.config,
            )?;
            fs::write(layout.join("index.json"), index.to_string())?;
            fs::write(
                layout.join("oci-layout"),
                r#"{"imageLayoutVersion": "1.0.0"}"#,
            )
        };
        write().map_err(|err| self.failed("write to", &layout, err))?;
        Ok(layout)
    }

    /// Downloads the layers of `candidate` that neither the store nor the directory `blobs` has.
    async fn download(
        &self,
        client: &Client<'_>,
        candidate: &Candidate,
        blobs: &Path,
        progress: &dyn Progress,
    ) -> Result<Vec<Held>, PullError> {
        let wanted = missing(&self.read_index()?, candidate, blobs);
        let mut held = Vec::new();
        for (digest, _) in wanted.values() {
            held.push(self.hold_download(digest, progress).await?);
        }
        // Those that were waited for may be there now.
        let wanted = missing(&self.read_index()?, candidate, blobs);
        held.retain(|held| wanted.contains_key(held.digest.digest()));
        let fetches = held.iter_mut().filter_map(|held| {
            let (_, size) = *wanted.get(held.digest.digest())?;
            Some(async move {
                client
                    .blob(&held.digest, size, &mut held.file, progress)
                    .await
                    .map_err(|err| self.download_failed(held, err))
            })
        });
        let mut waiting = fetches.collect::<Vec<_>>().into_iter();
        let mut running: FuturesUnordered<_> = waiting.by_ref().take(PARALLEL).collect();
        let mut result = Ok(());
        while let Some(fetched) = running.next().await {
            if fetched.is_err() {
                result = fetched;
                break;
            }
            running.extend(waiting.next());
        }
        drop((running, waiting));
        if let Err(PullError::Store(StoreError::Full { .. })) = result {
            // Whoever has a full disk needs the room more.
            for held in &held {
                let _ = held.remove();
            }
        }
        result.map(|()| held)
    }

    fn download_failed(&self, held: &Held, err: DownloadError) -> PullError {
        match err {
            DownloadError::Registry(err) => err.into(),
            DownloadError::File(err) => self.failed("write", &held.path, err).into(),
        }
    }
}

/// Digests and sizes of the layers that neither the store nor the directory `blobs` has, by and in
/// the order of their digits.
fn missing(index: &Index, candidate: &Candidate, blobs: &Path) -> BTreeMap<String, (Digest, u64)> {
    let mut chain: Option<Digest> = None;
    let mut missing = BTreeMap::new();
    for (layer, diff_id) in candidate.layers.iter().zip(&candidate.config.diff_ids) {
        let chain_id = digest::chain_id(chain.as_ref(), diff_id);
        let Some((blob, size)) = &layer.expected else {
            continue;
        };
        let is_known = index.layer_directory(diff_id, &chain_id).is_some()
            && index.blob_of(diff_id, Some(blob)).is_some();
        if !is_known && !blobs.join(blob.digest()).exists() {
            missing.insert(blob.digest().to_owned(), (blob.clone(), *size));
        }
        chain = Some(chain_id);
    }
    missing
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

#[cfg(test)]
mod tests;
