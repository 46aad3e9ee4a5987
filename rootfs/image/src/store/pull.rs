//! Pulling images: the recipe from a name in a registry to an entry in the index.
//!
//! A pull makes an OCI layout in its workspace, of the documents that the registry gave and of the
//! layers that the store does not have, and loads that as any other layout: there is one way into
//! the store. Layers are downloaded to `downloads/`, from where an interrupted pull goes on.

mod resolve;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use futures_util::stream::{FuturesUnordered, StreamExt};
use rustix::fs::FlockOperation;

use self::resolve::Resolved;
use super::downloads::Held;
use super::load::LoadError;
use super::{Store, StoreError, Workspace};
use crate::index::Index;
use crate::progress::Notes;
use crate::registry::{
    self, Access, AuthFiles, Client, CredentialsError, Document, DownloadError, Endpoint, Mirrors,
    RegistryError,
};
use crate::source::{Candidate, Files, Source};
use crate::{Digest, Image, Platform, Progress, Reference, digest};

/// Layers that are downloaded at the same time.
const PARALLEL: usize = 4;
/// Where a layout has its blobs.
const BLOBS: &str = "blobs/sha256";
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
    /// Who is asked before it.
    pub mirrors: Mirrors,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            platform: Platform::host(),
            access: Access::default(),
            credentials: AuthFiles::from_env(),
            mirrors: Mirrors::default(),
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
    /// The registry, after its mirrors. What they said is part of the message: it is the registry's
    /// trouble that ends a pull.
    #[error("No mirror of {registry} had it either: {}", mirrors.join("; "))]
    Mirrored {
        /// The registry.
        registry: String,
        /// Each mirror, with why it had nothing.
        mirrors: Vec<String>,
        /// Why the registry had nothing.
        source: Box<PullError>,
    },
}

impl PullError {
    /// Whether this may be otherwise elsewhere. Content that is not what it shall be is no trouble
    /// to be overlooked, and our own is the same with everybody.
    fn is_worth_another_source(&self) -> bool {
        match self {
            Self::Registry(err) => !matches!(err, RegistryError::Digest { .. }),
            Self::Credentials(_) => true,
            Self::Load(_) | Self::Store(_) | Self::Mirrored { .. } => false,
        }
    }
}

impl Store {
    /// Pulls the image that `reference` stands for in its registry.
    ///
    /// Only what the store does not have is downloaded; what an interrupted pull left is continued.
    /// Every document and layer is checked as [`Store::load`] does it before anything is visible.
    /// The image gets the name `reference`; with a digest, the tag in it does not count, as docker
    /// has it. Mirrors are asked first, one after the other, and then the registry; each by its own
    /// name with its own credentials. This blocks, and may end the process at any time: nothing but `downloads/` stays.
    pub fn pull(
        &self,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Pulled, PullError> {
        self.clear_old_downloads()?;
        let mut failed = Vec::new();
        for mirror in options.mirrors.of(reference.registry()) {
            let name = mirror.name(reference);
            match self.pull_from(&mirror.endpoint(), &name, reference, options, progress) {
                Err(err) if err.is_worth_another_source() => {
                    failed.push(format!("{mirror}: {}", chain(&err)));
                }
                done => return done.inspect(|_| note_failures(&failed, progress)),
            }
        }
        let endpoint = Endpoint::registry(reference.registry(), &options.access);
        match self.pull_from(&endpoint, reference, reference, options, progress) {
            Err(source) if !failed.is_empty() => Err(PullError::Mirrored {
                registry: reference.registry().to_owned(),
                mirrors: failed,
                source: Box::new(source),
            }),
            done => done.inspect(|_| note_failures(&failed, progress)),
        }
    }

    /// Pulls `reference` from `endpoint`, which calls it `name`.
    fn pull_from(
        &self,
        endpoint: &Endpoint,
        name: &Reference,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Pulled, PullError> {
        let credentials = options.credentials.find(name)?;
        let before = self.read_index()?.id_of(reference).cloned();
        registry::run(async {
            let client = Client::connect(endpoint, name, credentials, progress).await?;
            let resolved = self.resolve(&client, name, &options.platform).await?;
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
        candidate.index.clone_from(&resolved.index);
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

/// Says which mirrors were of no use, now that another source was: else the error does.
fn note_failures(failed: &[String], progress: &dyn Progress) {
    for why in failed {
        progress.note(&format!("It went on without the mirror {why}"));
    }
}

/// An error with its causes, on one line.
fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text.push_str(&format!(": {err}"));
        cause = err.source();
    }
    text
}

#[cfg(test)]
mod tests;
