//! Where images are loaded from: OCI layouts and docker's archives, as directories or tar files.

mod docker;
mod file;
mod oci;

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};

use crate::manifest::{Compression, Config, ManifestError};
use crate::progress::Notes;
use crate::{Digest, Limits, Platform, Reference};

pub(crate) use file::{Blob, Files, ListError};

/// An image that a source offers. Manifest and configuration are read and verified, layers not.
pub(crate) struct Candidate {
    pub(crate) names: Vec<Reference>,
    /// The manifest as stored; docker's archives have none.
    pub(crate) manifest: Option<Vec<u8>>,
    /// The index by which the image has its name, beside images for other platforms.
    pub(crate) index: Option<Vec<u8>>,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) config: Config,
    /// Bottom first.
    pub(crate) layers: Vec<LayerSource>,
}

/// A layer blob in the source.
pub(crate) struct LayerSource {
    /// Name of its file.
    pub(crate) file: String,
    /// Digest and size if the source states them.
    pub(crate) expected: Option<(Digest, u64)>,
    /// None if the source does not say.
    pub(crate) compression: Option<Compression>,
}

/// Why a source gives no image.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The path as such cannot be read.
    #[error("Failed to open {}", path.display())]
    Open {
        /// What was to be loaded.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Neither of the known formats.
    #[error(
        "{} is neither an OCI layout (index.json, oci-layout) nor a docker archive \
         (manifest.json), as made by `docker save`, `podman save`, `skopeo copy`, `umoci`",
        path.display()
    )]
    Unknown {
        /// What was to be loaded.
        path: PathBuf,
    },
    /// A file in the source cannot be read.
    #[error("Failed to read {} in {}", file.escape_debug(), path.display())]
    Read {
        /// What is being loaded.
        path: PathBuf,
        /// The file in it.
        file: String,
        /// Why it failed.
        source: io::Error,
    },
    /// It names a file that is not there.
    #[error("{} is missing in {}", file.escape_debug(), path.display())]
    Missing {
        /// What is being loaded.
        path: PathBuf,
        /// The file.
        file: String,
    },
    /// A document is too large to be one.
    #[error(
        "{} in {} has {bytes} bytes, more than the limit of {limit} ({} allows more)",
        file.escape_debug(),
        path.display(),
        Limits::MANIFEST_SIZE
    )]
    TooLarge {
        /// What is being loaded.
        path: PathBuf,
        /// The file.
        file: String,
        /// Its size.
        bytes: u64,
        /// [`Limits::manifest_bytes`].
        limit: u64,
    },
    /// All documents together are more than any images need.
    #[error(
        "{} has more than {limit} bytes of manifests and configurations; {} was the last read",
        path.display(),
        file.escape_debug()
    )]
    TooMuch {
        /// What is being loaded.
        path: PathBuf,
        /// The file that was too much.
        file: String,
        /// [`Limits::document_bytes`].
        limit: u64,
    },
    /// A blob is not what its descriptor says.
    #[error("{} in {} is damaged: it is {found}", file.escape_debug(), path.display())]
    Mismatch {
        /// What is being loaded.
        path: PathBuf,
        /// The file.
        file: String,
        /// Digest, or size, that it has.
        found: String,
    },
    /// A document makes no sense.
    #[error("{} in {} cannot be used", file.escape_debug(), path.display())]
    Document {
        /// What is being loaded.
        path: PathBuf,
        /// The file.
        file: String,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// An image for other machines only.
    #[error(
        "{} has no image for {wanted}, only for {}",
        path.display(),
        found.join(", ").escape_debug()
    )]
    Platform {
        /// What is being loaded.
        path: PathBuf,
        /// What was looked for.
        wanted: String,
        /// What there is.
        found: Vec<String>,
    },
    /// An index that holds nothing.
    #[error("{} holds no image", path.display())]
    Empty {
        /// What is being loaded.
        path: PathBuf,
    },
    /// An index that lists more than any image has.
    #[error("An index in {} lists {count} manifests, more than the limit of {limit}", path.display())]
    TooManyManifests {
        /// What is being loaded.
        path: PathBuf,
        /// How many.
        count: usize,
        /// How many may be.
        limit: usize,
    },
    /// Indexes in indexes in indexes.
    #[error("{} has too many indexes within indexes", path.display())]
    Nested {
        /// What is being loaded.
        path: PathBuf,
    },
}

/// An opened source.
pub(crate) struct Source {
    path: PathBuf,
    files: Files,
    limits: Limits,
    platform: Platform,
    /// The files are on the store's file system, and nobody but this process changes them.
    owned: bool,
    /// Bytes of the documents that were read.
    documents: Cell<u64>,
}

impl Source {
    /// Opens a directory or an uncompressed, seekable archive, in which images for `platform` are
    /// looked for.
    pub(crate) fn open(path: &Path, files: Files, limits: &Limits, platform: Platform) -> Self {
        Self {
            path: path.to_owned(),
            files,
            limits: limits.clone(),
            platform,
            owned: false,
            documents: Cell::new(0),
        }
    }

    /// Says that the files are this process's own, in its workspace.
    pub(crate) fn owned(mut self) -> Self {
        self.owned = true;
        self
    }

    /// Whether a blob may be linked instead of copied.
    pub(crate) fn is_owned(&self) -> bool {
        self.owned
    }

    /// Gives a blob of one's own the name `to` as well.
    pub(crate) fn link(&self, file: &str, to: &Path) -> io::Result<()> {
        self.files.link(file, to)
    }

    /// All images in the source that are for its platform.
    pub(crate) fn images(&self, notes: &mut Notes<'_>) -> Result<Vec<Candidate>, SourceError> {
        // Newer versions of `docker save` write both; the layout says more.
        if self.has("oci-layout")? && self.has("index.json")? {
            self.oci_images(notes)
        } else if self.has("manifest.json")? {
            self.docker_images(notes)
        } else {
            Err(SourceError::Unknown {
                path: self.path.clone(),
            })
        }
    }

    /// Opens a blob of a size to be seen.
    pub(crate) fn blob(&self, file: &str) -> Result<Blob, SourceError> {
        match self.files.open(file) {
            Ok(Some(blob)) => Ok(blob),
            Ok(None) => Err(SourceError::Missing {
                path: self.path.clone(),
                file: file.to_owned(),
            }),
            Err(source) => Err(self.unreadable(file, source)),
        }
    }

    pub(crate) fn unreadable(&self, file: &str, source: io::Error) -> SourceError {
        SourceError::Read {
            path: self.path.clone(),
            file: file.to_owned(),
            source,
        }
    }

    pub(crate) fn mismatch(&self, file: &str, found: &impl ToString) -> SourceError {
        SourceError::Mismatch {
            path: self.path.clone(),
            file: file.to_owned(),
            found: found.to_string(),
        }
    }

    fn has(&self, file: &str) -> Result<bool, SourceError> {
        let found = self
            .files
            .open(file)
            .map_err(|source| self.unreadable(file, source))?;
        Ok(found.is_some())
    }

    /// Reads a whole document.
    fn document(&self, file: &str) -> Result<Vec<u8>, SourceError> {
        let blob = self.blob(file)?;
        let limit = self.limits.manifest_bytes;
        if blob.size() > limit {
            return Err(SourceError::TooLarge {
                path: self.path.clone(),
                file: file.to_owned(),
                bytes: blob.size(),
                limit,
            });
        }
        // The same one may be named any number of times, and each is kept.
        self.documents
            .set(self.documents.get().saturating_add(blob.size()));
        if self.documents.get() > self.limits.document_bytes {
            return Err(SourceError::TooMuch {
                path: self.path.clone(),
                file: file.to_owned(),
                limit: self.limits.document_bytes,
            });
        }
        blob.read_all()
            .map_err(|source| self.unreadable(file, source))
    }

    fn unusable(&self, file: &str, source: ManifestError) -> SourceError {
        SourceError::Document {
            path: self.path.clone(),
            file: file.to_owned(),
            source,
        }
    }
}
