//! What can be wrong with a layer, and how its entries are named to people.

use std::io;
use std::path::PathBuf;

use crate::Limits;
use crate::tree::TreeError;
use archive::ArchiveError;
use archive::PathProblem;

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It is no proper tar archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An entry asks for what it cannot have.
    #[error("The layer's entry {entry} is refused: {reason}")]
    Refused {
        /// Name of the entry, escaped.
        entry: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The system failed on an entry.
    #[error("Failed to {action} the layer's entry {entry}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// Name of the entry, escaped.
        entry: String,
        /// Why it failed.
        source: io::Error,
    },
    /// More files than the limit.
    #[error(
        "With entry {entry} the layer has more than {limit} files and directories ({} allows more)",
        Limits::ENTRIES
    )]
    TooManyEntries {
        /// Name of the first that is too many, escaped.
        entry: String,
        /// [`Limits::entries`].
        limit: u64,
    },
    /// More bytes than the limit.
    #[error(
        "With entry {entry} the layer unpacks to more than {limit} bytes ({} allows more)",
        Limits::LAYER_SIZE
    )]
    TooLarge {
        /// Name of the first that is too much, escaped.
        entry: String,
        /// [`Limits::layer_bytes`].
        limit: u64,
    },
    /// The place to unpack to is not usable.
    #[error("Failed to prepare the directory of a layer")]
    Directory {
        /// Why.
        source: io::Error,
    },
}

/// Why a container's files could not be compared, or made a layer of.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// A layer's directory cannot be opened.
    #[error("Failed to open the layer {}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something in it cannot be read.
    #[error("Failed to {action} {entry}")]
    Read {
        /// What was attempted.
        action: &'static str,
        /// Name of the file, escaped.
        entry: String,
        /// Why it failed.
        source: io::Error,
    },
    /// It was replaced or cut while it was read.
    #[error("{entry} changed while it was read: pause or stop the container first")]
    Changed {
        /// Name of the file, escaped.
        entry: String,
    },
    /// overlayfs wrote a reference where the contents should be.
    #[error(
        "{entry} is stored in overlayfs's form {feature}, which cannot be turned into a layer: \
         switch that off (/sys/module/overlay/parameters) and run the container again"
    )]
    Form {
        /// Name of the file, escaped.
        entry: String,
        /// The module's parameter.
        feature: &'static str,
    },
    /// A name that no layer can have.
    #[error("{entry} cannot be in a layer: its name has more than 4095 bytes")]
    Name {
        /// Name of the file, escaped.
        entry: String,
    },
    /// More files than the limit.
    #[error("There are more than {limit} files and directories")]
    TooManyEntries {
        /// [`crate::Limits::entries`].
        limit: u64,
    },
    /// More bytes than the limit.
    #[error("The files have more than {limit} bytes, holes included")]
    TooLarge {
        /// [`crate::Limits::layer_bytes`].
        limit: u64,
    },
    /// The archive cannot be written.
    #[error("Failed to write the archive")]
    Write(#[source] io::Error),
}

impl DiffError {
    pub(super) fn read<E: Into<io::Error>>(
        action: &'static str,
        path: &[u8],
    ) -> impl FnOnce(E) -> Self {
        let entry = shown(path);
        move |err| Self::Read {
            action,
            entry,
            source: err.into(),
        }
    }
}

impl From<PathProblem> for TreeError {
    fn from(problem: PathProblem) -> Self {
        Self::Refused(problem.0)
    }
}

pub(super) fn named(path: &[u8], err: TreeError) -> LayerError {
    let entry = shown(path);
    match err {
        TreeError::Refused(reason) => LayerError::Refused { entry, reason },
        TreeError::System(action, source) => LayerError::System {
            action,
            entry,
            source,
        },
    }
}

/// A name as a terminal can take it.
pub(super) fn shown(name: &[u8]) -> String {
    const MAX: usize = 200;
    let cut = &name[..name.len().min(MAX)];
    let more = if cut.len() < name.len() { "..." } else { "" };
    format!("\"{}{more}\"", cut.escape_ascii())
}
