//! Loading images from files: the recipe from a source to an entry in the index.

mod image;

use flate2::bufread::MultiGzDecoder;
use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::tag::move_names;

use super::{Store, StoreError, Workspace};
use crate::index::{ImageRecord, Index};
use crate::layer::LayerError;
use crate::manifest::Compression;
use crate::progress::Notes;
use crate::source::{Candidate, Files, ListError, Source, SourceError};
use crate::{Digest, Image, Limits, Platform, Progress};
use archive::ArchiveError;

use image::{ImageLoad, Ready};

/// Another process can remove what a load relies on, again and again; but not so often.
const ATTEMPTS: usize = 5;

/// How much of a compressed archive is copied at once.
const PIECE: usize = 256 << 10;

/// Counts what was read through it.
struct Counted<'a, R> {
    inner: R,
    taken: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.taken.set(self.taken.get() + n as u64);
        Ok(n)
    }
}

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
        /// [`Limits::archive_members`].
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
    /// A layer's archive cannot be used.
    #[error("Layer {layer} cannot be unpacked")]
    Layer {
        /// The layer.
        layer: Digest,
        /// Why.
        source: LayerError,
    },
    /// A layer is longer than the limit.
    #[error(
        "Layer {layer} decompresses to more than {limit} bytes ({} allows more)",
        Limits::LAYER_SIZE
    )]
    TooLarge {
        /// The layer.
        layer: Digest,
        /// [`Limits::layer_bytes`].
        limit: u64,
    },
    /// An archive of images is longer than the limit of one layer.
    #[error(
        "{what} decompresses to more than {limit} bytes ({} allows more)",
        Limits::LAYER_SIZE
    )]
    ArchiveTooLarge {
        /// The archive.
        what: String,
        /// [`Limits::layer_bytes`].
        limit: u64,
    },
    /// The file, or a layer in it, decompresses to far more than its size lets expect.
    #[error(
        "{what} decompresses to more than {ratio} times its size, as a bomb does ({} allows more)",
        Limits::RATIO
    )]
    Bomb {
        /// What.
        what: String,
        /// [`Limits::ratio`].
        ratio: u64,
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
        let source = Source::open(source, files, &self.limits, Platform::host());
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
        let taken = Cell::new(0);
        let counted = Counted {
            inner: io::Cursor::new(start).chain(file),
            taken: &taken,
        };
        let input = BufReader::with_capacity(PIECE, counted);
        let mut input: Box<dyn Read> = match compression {
            Compression::None => Box::new(input),
            Compression::Gzip => Box::new(MultiGzDecoder::new(input)),
            Compression::Zstd => Box::new(zstd::Decoder::with_buffer(input).map_err(failed)?),
        };
        let limit = self.limits.layer_bytes;
        let mut spooled = tempfile::tempfile_in(workspace.path())
            .map_err(|err| self.failed("write to", workspace.path(), err))?;
        let mut piece = vec![0; PIECE];
        let mut bytes = 0;
        loop {
            let n = match input.read(&mut piece) {
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(failed)?,
            };
            if n == 0 {
                break;
            }
            bytes += n as u64;
            if bytes > limit {
                let what = path.display().to_string();
                return Err(LoadError::ArchiveTooLarge { what, limit });
            }
            if compression != Compression::None && bytes > self.limits.expanded(taken.get()) {
                return Err(LoadError::Bomb {
                    what: path.display().to_string(),
                    ratio: self.limits.ratio,
                });
            }
            io::Write::write_all(&mut spooled, &piece[..n])
                .map_err(|err| self.failed("write to", workspace.path(), err))?;
        }
        io::Seek::rewind(&mut spooled).map_err(failed)?;
        Ok(spooled)
    }

    pub(super) fn load_image(
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
            let record = match load.run(candidate) {
                // It may have failed because a layer below went away under it.
                Err(_) if self.has_lost_layers(&index)? => continue,
                other => other?,
            };
            if let Some(image) = self.commit(&record, &candidate.names, &ready, workspace)? {
                return Ok(image);
            }
        }
        Err(LoadError::Contended)
    }

    /// Whether layers were removed from the store since it had `index`.
    fn has_lost_layers(&self, index: &Index) -> Result<bool, StoreError> {
        let now = self.read_index()?;
        Ok(!index
            .layers
            .keys()
            .all(|layer| now.layers.contains_key(layer)))
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
                let has_blob = known.contains(layer.blob.digest.digest())
                    || ready.blobs.contains_key(&layer.blob.digest);
                has_layer && has_blob
            }) && [&record.id, &record.manifest]
                .into_iter()
                .chain(&record.listed_in)
                .all(|blob| known.contains(blob.digest()) || ready.blobs.contains_key(blob));
            if !complete {
                return Ok(None);
            }
        }
        // What was moved before something failed is in the way of nobody but takes up room.
        let clear = |err| {
            let _ = self
                .read_index()
                .and_then(|index| self.set_orphans_aside(&index, workspace));
            err
        };
        self.move_into_place(&index, ready, workspace)
            .map_err(clear)?;
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
                // Without its index if it was pulled by the digest of its manifest, say.
                let known = image.listed_in.take();
                let lists = image.manifest == record.manifest;
                let listed_in = record.listed_in.clone().or(known.clone().filter(|_| lists));
                orphans = !lists || (known.is_some() && known != listed_in);
                let names = std::mem::take(&mut image.names);
                *image = ImageRecord {
                    names,
                    listed_in,
                    ..record.clone()
                };
            }
            None => index.images.push(record.clone()),
        }
        move_names(&mut index, &record.id, names);
        orphans |= !index.drop_unused_layers().is_empty();
        self.write_index(&index).map_err(clear)?;
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
