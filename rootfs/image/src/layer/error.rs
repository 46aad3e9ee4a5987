//! What can be wrong with a layer, and how its entries are named to people.

use std::io;

use crate::Limits;
use crate::archive::ArchiveError;
use crate::tree::{PathProblem, TreeError};

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
