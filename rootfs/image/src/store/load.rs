//! Loading images from files: the recipe from a source to an entry in the index.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flate2::bufread::MultiGzDecoder;
use oci_spec::image::{Descriptor, ImageManifestBuilder, MediaType};
use rustix::fs::FlockOperation;

use super::tag::move_names;
use super::unpack::{Pass, PassError, Passed, Pieces};
use super::{Store, StoreError, Workspace, is_full};
use crate::archive::ArchiveError;
use crate::index::{ImageRecord, Index, LayerRecord, LayerUse, directory_name};
use crate::layer::{self, LayerError, Summary};
use crate::manifest::Compression;
use crate::progress::Notes;
use crate::source::{Candidate, Files, LayerSource, ListError, Source, SourceError};
use crate::{Digest, Image, Progress, digest};

/// Another process can remove what a load relies on, again and again; but not so often.
const ATTEMPTS: usize = 5;

/// Why nothing, or not everything, was loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The source gives no image.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The file is no tar archive.
    #[error("{} is not a tar archive that can be read", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ArchiveError,
    },
    /// The archive has too many files in it to be one of images.
    #[error("{} has more than {limit} files: it is no archive of images", path.display())]
    TooManyMembers {
        /// The file.
        path: PathBuf,
        /// [`Limits::archive_members`](crate::Limits::archive_members).
        limit: usize,
    },
    /// The file, or a layer in it, cannot be decompressed.
    #[error("Failed to decompress {what}")]
    Decompress {
        /// What.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A layer's media type does not say how it is compressed.
    #[error("Layer {layer} says it is {declared:?}, but is {found:?}")]
    Compression {
        /// The layer.
        layer: Digest,
        /// By its media type.
        declared: Compression,
        /// By its first bytes.
        found: Compression,
    },
    /// A layer's archive cannot be used.
    #[error("Layer {layer} cannot be unpacked")]
    Layer {
        /// The layer.
        layer: Digest,
        /// Why.
        source: LayerError,
    },
    /// A layer is longer than the limit.
    #[error("Layer {layer} decompresses to more than {limit} bytes")]
    TooLarge {
        /// The layer.
        layer: Digest,
        /// [`Limits::layer_bytes`](crate::Limits::layer_bytes).
        limit: u64,
    },
    /// A layer is not the one that the image's configuration means.
    #[error("Layer {layer} unpacks to {found}, not to {expected} as the configuration says")]
    DiffId {
        /// The layer.
        layer: Digest,
        /// By the configuration.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Other processes kept removing what this image shares with theirs.
    #[error("The image store was busy: try again")]
    Contended,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was made in the workspace for one image and is not in the store yet.
#[derive(Default)]
struct Ready {
    blobs: HashMap<Digest, PathBuf>,
    layers: HashMap<String, (LayerRecord, PathBuf)>,
    /// Which blob, of which size, was seen to make which diff id.
    proven: HashMap<Digest, (Digest, u64)>,
}

impl Store {
    /// Loads all images for this machine from `source`: an OCI layout or a docker archive, as a
    /// directory or as a tar file, which may be compressed with gzip or Zstandard. A file that
    /// cannot be sought in, such as a pipe, is copied first.
    ///
    /// Every blob is checked against its digest, every layer also against the diff id in the
    /// image's configuration, before anything of it becomes visible in the store. A name that
    /// another image has moves to the new one. Images of one source are loaded one after the
    /// other; those before one that fails stay.
    ///
    /// For a layer that the store has already, only [`Progress::finished`] is called.
    pub fn load(&self, source: &Path, progress: &dyn Progress) -> Result<Vec<Image>, LoadError> {
        let workspace = {
            let _lock = self.lock(FlockOperation::LockExclusive)?;
            self.new_workspace()?
        };
        let files = self.open_files(source, &workspace)?;
        let source = Source::open(source, files, &self.limits);
        let candidates = source.images(&mut Notes::new(progress))?;
        candidates
            .iter()
            .map(|candidate| self.load_image(&source, candidate, &workspace, progress))
            .collect()
    }

    fn open_files(&self, path: &Path, workspace: &Workspace) -> Result<Files, LoadError> {
        let open = |source| SourceError::Open {
            path: path.to_owned(),
            source,
        };
        let metadata = fs::metadata(path).map_err(open)?;
        if metadata.is_dir() {
            return Ok(Files::directory(path).map_err(open)?);
        }
        let file = File::open(path).map_err(open)?;
        let mut start = [0; 4];
        let seekable = metadata.is_file() && file.read_exact_at(&mut start, 0).is_ok();
        let file = if seekable && Compression::sniff(&start) == Compression::None {
            file
        } else {
            self.spool(file, path, workspace)?
        };
        Files::archive(file, &self.limits).map_err(|err| match err {
            ListError::Archive(source) => LoadError::Archive {
                path: path.to_owned(),
                source,
            },
            ListError::TooMany(limit) => LoadError::TooManyMembers {
                path: path.to_owned(),
                limit,
            },
        })
    }

    /// Copies an archive to an uncompressed file without a name.
    fn spool(&self, file: File, path: &Path, workspace: &Workspace) -> Result<File, LoadError> {
        let failed = |source| LoadError::Decompress {
            what: path.display().to_string(),
            source,
        };
        let mut start = Vec::new();
        let mut file = file;
        (&mut file)
            .take(4)
            .read_to_end(&mut start)
            .map_err(failed)?;
        let compression = Compression::sniff(&start);
        let input = BufReader::new(io::Cursor::new(start).chain(file));
        let mut input: Box<dyn Read> = match compression {
            Compression::None => Box::new(input),
            Compression::Gzip => Box::new(MultiGzDecoder::new(input)),
            Compression::Zstd => Box::new(zstd::Decoder::with_buffer(input).map_err(failed)?),
        };
        let limit = self.limits.layer_bytes;
        let mut spooled = tempfile::tempfile_in(workspace.path())
            .map_err(|err| self.failed("write to", workspace.path(), err))?;
        let copied = io::copy(&mut (&mut input).take(limit), &mut spooled);
        match copied {
            Err(err) if is_full(&err) => Err(self.failed("write to", path, err).into()),
            Err(err) => Err(failed(err)),
            Ok(bytes) if bytes == limit => Err(failed(io::Error::other(format!(
                "it has more than {limit} bytes"
            )))),
            Ok(_) => {
                io::Seek::rewind(&mut spooled).map_err(failed)?;
                Ok(spooled)
            }
        }
    }

    fn load_image(
        &self,
        source: &Source,
        candidate: &Candidate,
        workspace: &Workspace,
        progress: &dyn Progress,
    ) -> Result<Image, LoadError> {
        let mut ready = Ready::default();
        for _ in 0..ATTEMPTS {
            let index = self.read_index()?;
            let mut load = ImageLoad {
                store: self,
                source,
                workspace,
                progress,
                index: &index,
                ready: &mut ready,
            };
            let layers = load.layers(candidate)?;
            let record = load.documents(candidate, layers)?;
            if let Some(image) = self.commit(&record, &candidate.names, &ready, workspace)? {
                return Ok(image);
            }
        }
        Err(LoadError::Contended)
    }

    /// Makes an image visible. Gives nothing if something it relies on was removed meanwhile.
    fn commit(
        &self,
        record: &ImageRecord,
        names: &[crate::Reference],
        ready: &Ready,
        workspace: &Workspace,
    ) -> Result<Option<Image>, StoreError> {
        if !ready.blobs.is_empty() || !ready.layers.is_empty() {
            workspace
                .sync()
                .map_err(|err| self.failed("write out", workspace.path(), err))?;
        }
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        let mut index = self.read_index()?;
        {
            let known = index.blobs();
            let complete = record.layers.iter().all(|layer| {
                let has_layer = index.layers.contains_key(&layer.directory)
                    || ready.layers.contains_key(&layer.directory);
                let has_blob =
                    known.contains(layer.blob.digest()) || ready.blobs.contains_key(&layer.blob);
                has_layer && has_blob
            }) && [&record.id, &record.manifest]
                .into_iter()
                .all(|blob| known.contains(blob.digest()) || ready.blobs.contains_key(blob));
            if !complete {
                return Ok(None);
            }
        }
        self.move_into_place(&index, ready, workspace)?;
        for (directory, (layer, _)) in &ready.layers {
            index
                .layers
                .entry(directory.clone())
                .or_insert_with(|| layer.clone());
        }
        let mut orphans = false;
        match index.images.iter_mut().find(|image| image.id == record.id) {
            Some(image) => {
                // The same image in other wrapping, for example compressed otherwise.
                orphans = image.manifest != record.manifest;
                let names = std::mem::take(&mut image.names);
                *image = ImageRecord {
                    names,
                    ..record.clone()
                };
            }
            None => index.images.push(record.clone()),
        }
        move_names(&mut index, &record.id, names);
        orphans |= !index.drop_unused_layers().is_empty();
        self.write_index(&index)?;
        if orphans {
            self.set_orphans_aside(&index, workspace)?;
        }
        let record = index
            .images
            .iter()
            .find(|image| image.id == record.id)
            .expect("it was put there just now");
        self.image(&index, record).map(Some)
    }

    fn move_into_place(
        &self,
        index: &Index,
        ready: &Ready,
        workspace: &Workspace,
    ) -> Result<(), StoreError> {
        for (digest, from) in &ready.blobs {
            let to = self.blob_path(digest);
            fs::rename(from, &to).map_err(|err| self.failed("move into place", &to, err))?;
        }
        for (directory, (_, from)) in &ready.layers {
            if index.layers.contains_key(directory) {
                continue;
            }
            let to = self.layers_path().join(directory);
            // Left there by a crash between here and the index.
            if to.exists() {
                fs::rename(&to, workspace.path().join(format!("stale-{directory}")))
                    .map_err(|err| self.failed("clear", &to, err))?;
            }
            fs::rename(from, &to).map_err(|err| self.failed("move into place", &to, err))?;
        }
        for directory in [self.blobs_path(), self.layers_path()] {
            File::open(&directory)
                .and_then(|directory| directory.sync_all())
                .map_err(|err| self.failed("write out", &directory, err))?;
        }
        Ok(())
    }
}

/// One attempt at one image.
struct ImageLoad<'a> {
    store: &'a Store,
    source: &'a Source,
    workspace: &'a Workspace,
    progress: &'a dyn Progress,
    /// As it was when the attempt began.
    index: &'a Index,
    ready: &'a mut Ready,
}

impl ImageLoad<'_> {
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
        let proven = self.proven_blob(layer, diff_id);
        if let (Some(directory), Some((blob, blob_bytes))) = (&directory, &proven) {
            self.progress
                .finished(layer.expected.as_ref().map_or(diff_id, |(blob, _)| blob));
            return Ok(LayerUse {
                blob: blob.clone(),
                blob_bytes: *blob_bytes,
                directory: directory.clone(),
            });
        }
        let (passed, copy, unpacked_to) =
            self.pass(layer, (diff_id, chain_id), directory.is_none(), below)?;
        if let Some(copy) = copy {
            self.ready.blobs.insert(passed.blob.clone(), copy);
        }
        self.ready
            .proven
            .insert(diff_id.clone(), (passed.blob.clone(), passed.blob_bytes));
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
        Ok(LayerUse {
            blob: passed.blob,
            blob_bytes: passed.blob_bytes,
            directory,
        })
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
        let found = Compression::sniff(&start);
        let compression = layer.compression.unwrap_or(found);
        self.progress.started(what, blob.size());
        let copy = (!self.has_blob(layer)).then(|| self.path("blob-", diff_id));
        let target = self.path("layer-", chain_id);
        let pass = Pass {
            compression,
            copy: copy.as_ref().map(|path| self.create(path)).transpose()?,
            limit: self.store.limits.layer_bytes,
            what,
            progress: self.progress,
        };
        let unpack = unpack.then_some(|pieces| self.unpack(pieces, &target, below));
        let result = pass.run(blob, unpack);
        let passed = self.judge(result, layer, what, diff_id, (compression, found))?;
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
        (declared, found): (Compression, Compression),
    ) -> Result<Passed, LoadError> {
        let check_digest = |blob: &Digest| match &layer.expected {
            Some((expected, _)) if expected != blob => Err(self.source.mismatch(&layer.file, blob)),
            _ => Ok(()),
        };
        let wrong_compression = || {
            (declared != found).then(|| LoadError::Compression {
                layer: what.clone(),
                declared,
                found,
            })
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
            Err(PassError::Decompress(source, blob)) => {
                check_digest(&blob)?;
                return Err(
                    wrong_compression().unwrap_or_else(|| LoadError::Decompress {
                        what: format!("layer {what}"),
                        source,
                    }),
                );
            }
        };
        check_digest(&passed.blob)?;
        if let Some(err) = wrong_compression() {
            return Err(err);
        }
        if passed.diff_id != *diff_id {
            return Err(LoadError::DiffId {
                layer: what.clone(),
                expected: diff_id.to_string(),
                found: passed.diff_id.to_string(),
            });
        }
        if let Some(Err(source)) = passed.unpacked {
            return Err(match source {
                LayerError::System { source, .. } if is_full(&source) => self
                    .store
                    .failed("unpack to", self.workspace.path(), source)
                    .into(),
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
            DirBuilder::new().mode(0o700).create(target)?;
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
            None => {
                let bytes = self.make_manifest(&id, candidate, &layers)?;
                self.document(&bytes)?
            }
        };
        let loaded = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        Ok(ImageRecord {
            id,
            manifest,
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

    /// The manifest that a docker archive does not have.
    fn make_manifest(
        &self,
        id: &Digest,
        candidate: &Candidate,
        layers: &[LayerUse],
    ) -> Result<Vec<u8>, StoreError> {
        let mut descriptors = Vec::new();
        for layer in layers {
            let path = match self.ready.blobs.get(&layer.blob) {
                Some(path) => path.clone(),
                None => self.store.blob_path(&layer.blob),
            };
            let mut start = Vec::new();
            File::open(&path)
                .and_then(|file| file.take(4).read_to_end(&mut start))
                .map_err(|err| self.store.failed("read", &path, err))?;
            let media_type = Compression::sniff(&start).media_type();
            descriptors.push(Descriptor::new(
                media_type,
                layer.blob_bytes,
                layer.blob.clone(),
            ));
        }
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
        Ok(serde_json::to_vec(&manifest).expect("a manifest has string keys only"))
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
    fn proven_blob(&self, layer: &LayerSource, diff_id: &Digest) -> Option<(Digest, u64)> {
        let known = match &layer.expected {
            Some((blob, bytes)) => self
                .index
                .blob_makes(blob, diff_id)
                .then(|| (blob.clone(), *bytes)),
            None => self.index.blob_of(diff_id),
        };
        known.or_else(|| {
            let (blob, bytes) = self.ready.proven.get(diff_id)?;
            let wanted = layer
                .expected
                .as_ref()
                .is_none_or(|(expected, _)| expected == blob);
            (wanted && (self.ready.blobs.contains_key(blob) || self.is_stored(blob)))
                .then(|| (blob.clone(), *bytes))
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
