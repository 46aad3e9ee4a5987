//! What of a bundle cannot be done.

use std::{io, path::PathBuf};

use crate::seccomp::SeccompError;

/// A property of the specification that is refused, by its place in `config.json`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// It must be there.
    #[error("{property} is missing in the configuration")]
    Missing {
        /// Where.
        property: &'static str,
    },
    /// Its value cannot be.
    #[error("{property}: {asked:?} is refused: {reason}")]
    Value {
        /// Where.
        property: String,
        /// What it asked for.
        asked: String,
        /// Why not.
        reason: String,
    },
    /// What it names cannot be looked at.
    #[error("{property}: Failed to look at {path}")]
    Source {
        /// Where.
        property: String,
        path: PathBuf,
        source: io::Error,
    },
    /// Its filter of system calls cannot be.
    #[error("linux.seccomp")]
    Seccomp(#[from] SeccompError),
}

/// Refuses a value.
pub(super) fn value(
    property: impl Into<String>,
    asked: impl Into<String>,
    reason: impl Into<String>,
) -> Refused {
    Refused::Value {
        property: property.into(),
        asked: asked.into(),
        reason: reason.into(),
    }
}
