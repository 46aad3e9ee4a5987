//! One image on its way from a source to a workspace: which layers are needed, and whether they
//! are what the image says.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use oci_spec::image::{Descriptor, ImageManifestBuilder, MediaType};

use super::LoadError;
use crate::index::{ImageRecord, Index, LayerBlob, LayerRecord, LayerUse, directory_name};
use crate::layer::{self, LayerError, Summary};
use crate::manifest::Compression;
use crate::progress::Task;
use crate::source::{Candidate, LayerSource, Source};
use crate::store::unpack::{Pass, PassError, Passed, Pieces};
use crate::store::{Store, StoreError, Workspace, is_full};
use crate::{Digest, Progress, digest};

/// What was made in the workspace for one image and is not in the store yet.
#[derive(Default)]
pub(super) struct Ready {
    pub(super) blobs: HashMap<Digest, PathBuf>,
    /// By the name of the directory they shall have.
    pub(super) layers: HashMap<String, (LayerRecord, PathBuf)>,
    /// Which blob was seen to make which diff id.
    proven: HashMap<Digest, LayerBlob>,
}

/// One attempt at one image.
pub(super) struct ImageLoad<'a> {
    pub(super) store: &'a Store,
    pub(super) source: &'a Source,
    pub(super) workspace: &'a Workspace,
    pub(super) progress: &'a dyn Progress,
    /// As it was when the attempt began.
    pub(super) index: &'a Index,
    pub(super) ready: &'a mut Ready,
}

impl ImageLoad<'_> {
    /// Makes ready what the store does not have of `candidate`; gives its record for the index,
    /// without names.
    pub(super) fn run(&mut self, candidate: &Candidate) -> Result<ImageRecord, LoadError> {
        let layers = self.layers(candidate)?;
        self.documents(candidate, layers)
    }
    /// Makes sure of all layers, bottom first.
    fn layers(&mut self, candidate: &Candidate) -> Result<Vec<LayerUse>, LoadError> {
        let mut chain: Option<Digest> = None;
        let mut layers: Vec<LayerUse> = Vec::new();
        for (layer, diff_id) in candidate.layers.iter().zip(&candidate.config.diff_ids) {
            let chain_id = digest::chain_id(chain.as_ref(), diff_id);
            let made = self.layer(layer, diff_id, &chain_id, &layers)?;
            layers.push(made);
            chain = Some(chain_id);
        }
        Ok(layers)
    }

    fn layer(
        &mut self,
        layer: &LayerSource,
        diff_id: &Digest,
        chain_id: &Digest,
        below: &[LayerUse],
    ) -> Result<LayerUse, LoadError> {
        let directory = self.directory_of(diff_id, chain_id);
        if let Some(directory) = &directory
            && let Some(blob) = self.proven_blob(layer, diff_id)
        {
            self.progress
                .finished(layer.expected.as_ref().map_or(diff_id, |(blob, _)| blob));
            return Ok(LayerUse {
                blob: blob.clone(),
                directory: directory.clone(),
            });
        }
        let (passed, copy, unpacked_to) =
            self.pass(layer, (diff_id, chain_id), directory.is_none(), below)?;
        let blob = LayerBlob {
            digest: passed.blob,
            bytes: passed.blob_bytes,
            compression: passed.compression,
        };
        if let Some(copy) = copy {
            self.ready.blobs.insert(blob.digest.clone(), copy);
        }
        self.ready.proven.insert(diff_id.clone(), blob.clone());
        let directory = match directory {
            Some(directory) => directory,
            None => {
                let summary = passed
                    .unpacked
                    .and_then(Result::ok)
                    .expect("pass() gives no layer that failed to unpack");
                let chain_id = summary.depends_on_lower.then(|| chain_id.clone());
                let directory = directory_name(chain_id.as_ref().unwrap_or(diff_id));
                let record = LayerRecord {
                    diff_id: diff_id.clone(),
                    chain_id,
                    bytes: summary.bytes,
                    opaque: summary.opaque,
                };
                self.ready
                    .layers
                    .insert(directory.clone(), (record, unpacked_to));
                directory
            }
        };
        Ok(LayerUse { blob, directory })
    }

    /// Copies, checks and unpacks a layer as far as the store needs it; gives where to.
    fn pass(
        &self,
        layer: &LayerSource,
        (diff_id, chain_id): (&Digest, &Digest),
        unpack: bool,
        below: &[LayerUse],
    ) -> Result<(Passed, Option<PathBuf>, PathBuf), LoadError> {
        let what = layer.expected.as_ref().map_or(diff_id, |(blob, _)| blob);
        let blob = self.source.blob(&layer.file)?;
        if let Some((_, bytes)) = &layer.expected
            && *bytes != blob.size()
        {
            let found = format!("{} bytes long", blob.size());
            return Err(self.source.mismatch(&layer.file, &found).into());
        }
        let start = blob
            .start()
            .map_err(|source| self.source.unreadable(&layer.file, source))?;
        // Some tools write one and say another: skopeo 1.9 declares plain layers to be gzip. All
        // others go by the contents, too.
        let compression = Compression::sniff(&start);
        if let Some(declared) = layer.compression
            && declared != compression
        {
            let message =
                format!("layer {what} is declared to be {declared}, but is {compression}");
            self.progress.note(&message);
        }
        self.progress.started(what, Task::Unpack, blob.size());
        let copy = (!self.has_blob(layer)).then(|| self.path("blob-", what));
        let target = self.path("layer-", chain_id);
        let written = copy.as_ref().filter(|_| !self.source.is_owned());
        let pass = Pass {
            compression,
            copy: written.map(|path| self.create(path)).transpose()?,
            limit: self.store.limits.layer_bytes,
            expanded: match compression {
                Compression::None => u64::MAX,
                _ => self.store.limits.expanded(blob.size()),
            },
            what,
            progress: self.progress,
        };
        let unpack = unpack.then_some(|pieces| self.unpack(pieces, &target, below));
        let result = pass.run(blob, unpack);
        let passed = self.judge(result, layer, what, diff_id)?;
        if let Some(copy) = copy.as_ref().filter(|_| self.source.is_owned()) {
            self.source
                .link(&layer.file, copy)
                .map_err(|err| self.store.failed("link", copy, err))?;
        }
        self.progress.finished(what);
        Ok((passed, copy, target))
    }

    /// Finds the first reason why a layer is not good.
    fn judge(
        &self,
        result: Result<Passed, PassError>,
        layer: &LayerSource,
        what: &Digest,
        diff_id: &Digest,
    ) -> Result<Passed, LoadError> {
        let check_digest = |blob: &Digest| match &layer.expected {
            Some((expected, _)) if expected != blob => Err(self.source.mismatch(&layer.file, blob)),
            _ => Ok(()),
        };
        let passed = match result {
            Ok(passed) => passed,
            Err(PassError::Read(source)) => {
                return Err(self.source.unreadable(&layer.file, source).into());
            }
            Err(PassError::Write(source) | PassError::Thread(source)) => {
                return Err(self
                    .store
                    .failed("copy to", self.workspace.path(), source)
                    .into());
            }
            Err(PassError::TooLarge) => {
                let limit = self.store.limits.layer_bytes;
                return Err(LoadError::TooLarge {
                    layer: what.clone(),
                    limit,
                });
            }
            Err(PassError::Bomb) => {
                return Err(LoadError::Bomb {
                    what: format!("Layer {what}"),
                    ratio: self.store.limits.ratio,
                });
            }
            Err(PassError::Decompress(source, blob)) => {
                check_digest(&blob)?;
                return Err(LoadError::Decompress {
                    what: format!("layer {what}"),
                    source,
                });
            }
        };
        check_digest(&passed.blob)?;

        if passed.diff_id != *diff_id {
            return Err(LoadError::DiffId {
                layer: what.clone(),
                expected: diff_id.to_string(),
                found: passed.diff_id.to_string(),
            });
        }
        if let Some(Err(source)) = passed.unpacked {
            return Err(match source {
                LayerError::System { source, .. } | LayerError::Directory { source }
                    if is_full(&source) =>
                {
                    self.store
                        .failed("unpack to", self.workspace.path(), source)
                        .into()
                }
                source => LoadError::Layer {
                    layer: what.clone(),
                    source,
                },
            });
        }
        Ok(passed)
    }

    fn unpack(
        &self,
        pieces: Pieces,
        target: &Path,
        below: &[LayerUse],
    ) -> Result<Summary, LayerError> {
        let lower: Vec<PathBuf> = below
            .iter()
            .rev()
            .map(|layer| self.place_of(&layer.directory))
            .collect();
        let failed = |source| LayerError::Directory { source };
        let prepare = || {
            self.workspace.make_directory(target)?;
            Ok((File::open(target)?, self.workspace.trash()?))
        };
        let (root, trash) = prepare().map_err(failed)?;
        layer::unpack_buffered(
            pieces,
            root.as_fd(),
            &lower,
            trash,
            &self.store.limits,
            self.progress,
        )
    }

    /// Stores manifest and configuration, and makes the record for the index.
    fn documents(
        &mut self,
        candidate: &Candidate,
        layers: Vec<LayerUse>,
    ) -> Result<ImageRecord, LoadError> {
        let id = self.document(&candidate.config_bytes)?;
        let manifest = match &candidate.manifest {
            Some(bytes) => self.document(bytes)?,
            None => self.document(&make_manifest(&id, candidate, &layers))?,
        };
        let index = candidate.index.as_deref();
        let listed_in = index.map(|bytes| self.document(bytes)).transpose()?;
        let loaded = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        Ok(ImageRecord {
            id,
            manifest,
            listed_in,
            names: BTreeSet::new(),
            layers,
            loaded,
        })
    }

    fn document(&mut self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = digest::of(bytes);
        if !self.index.blobs().contains(digest.digest()) {
            let path = self.path("blob-", &digest);
            let mut file = self.create(&path)?;
            io::Write::write_all(&mut file, bytes)
                .map_err(|err| self.store.failed("write", &path, err))?;
            self.ready.blobs.insert(digest.clone(), path);
        }
        Ok(digest)
    }

    /// The directory of a layer that is in the store, or ready to go there.
    fn directory_of(&self, diff_id: &Digest, chain_id: &Digest) -> Option<String> {
        if let Some(directory) = self.index.layer_directory(diff_id, chain_id) {
            return Some(directory.to_owned());
        }
        [diff_id, chain_id]
            .into_iter()
            .map(directory_name)
            .find(|name| {
                self.ready.layers.get(name).is_some_and(|(layer, _)| {
                    layer.diff_id == *diff_id
                        && layer
                            .chain_id
                            .as_ref()
                            .is_none_or(|chain| chain == chain_id)
                })
            })
    }

    fn place_of(&self, directory: &str) -> PathBuf {
        match self.ready.layers.get(directory) {
            Some((_, path)) => path.clone(),
            None => self.store.layers_path().join(directory),
        }
    }

    /// A blob, there or ready, that is known to unpack to `diff_id`.
    fn proven_blob(&self, layer: &LayerSource, diff_id: &Digest) -> Option<&LayerBlob> {
        let expected = layer.expected.as_ref().map(|(digest, _)| digest);
        self.index.blob_of(diff_id, expected).or_else(|| {
            self.ready.proven.get(diff_id).filter(|blob| {
                expected.is_none_or(|expected| *expected == blob.digest)
                    && (self.ready.blobs.contains_key(&blob.digest) || self.is_stored(&blob.digest))
            })
        })
    }

    fn has_blob(&self, layer: &LayerSource) -> bool {
        layer
            .expected
            .as_ref()
            .is_some_and(|(blob, _)| self.ready.blobs.contains_key(blob) || self.is_stored(blob))
    }

    fn is_stored(&self, blob: &Digest) -> bool {
        self.index.blobs().contains(blob.digest())
    }

    fn path(&self, kind: &str, digest: &Digest) -> PathBuf {
        self.workspace
            .path()
            .join(format!("{kind}{}", digest.digest()))
    }

    fn create(&self, path: &Path) -> Result<File, StoreError> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .map_err(|err| self.store.failed("write", path, err))
    }
}

/// The manifest that a docker archive does not have.
fn make_manifest(id: &Digest, candidate: &Candidate, layers: &[LayerUse]) -> Vec<u8> {
    let descriptors: Vec<_> = layers
        .iter()
        .map(|LayerUse { blob, .. }| {
            let media_type = blob.compression.media_type();
            Descriptor::new(media_type, blob.bytes, blob.digest.clone())
        })
        .collect();
    let config_bytes = candidate.config_bytes.len() as u64;
    let manifest = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(Descriptor::new(
            MediaType::ImageConfig,
            config_bytes,
            id.clone(),
        ))
        .layers(descriptors)
        .build()
        .expect("all that a manifest needs is set");
    serde_json::to_vec(&manifest).expect("a manifest has string keys only")
}
