//! Files from one root directory into another, through a tar stream, by the rules of `docker cp`.
//!
//! [`pack()`] writes a file or a tree as an archive, [`unpack()`] puts what such an archive holds in its
//! place. The two ends know nothing of each other but the archive: on the host one of them works on
//! the host's own files, in the guest on those of a container, by the agent.
//!
//! Both ends are hostile to each other. A path that a user names is resolved in the root it is
//! meant in, of which links do not lead out (`RESOLVE_IN_ROOT`). What an archive names is resolved
//! below the place that the user named, and there no link is followed at all. What was made is
//! changed by its descriptor only: somebody else may work in the same directories.
//!
//! Memory is bounded by the depth of trees, not by the size of files.
#![forbid(unsafe_code)]

mod anchor;
mod make;
mod pack;
mod place;
mod unpack;

#[cfg(test)]
mod tests;

use std::io;

use archive::PathProblem;
use rustix::io::Errno;

pub use archive::ArchiveError;
pub use pack::{Source, pack};
pub use unpack::{Destination, Owner, Rights, What, unpack};

/// Why something was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// What is to be copied is not there, or nothing of where it is to go.
    #[error("Could not find the file {0}")]
    NotFound(String),
    /// It was said to be a directory, or has to be one.
    #[error("{0} is not a directory")]
    NotDirectory(String),
    /// The source is a directory, what is in its place is none.
    #[error("Cannot copy a directory to {0}, which is none")]
    DirectoryOverFile(String),
    /// What is in its place is a device, or something else that is not to be replaced.
    #[error("Cannot copy over {0}, which is no file")]
    NotFile(String),
    /// A file became shorter while it was read.
    #[error("{0} changed while it was read")]
    Changed(String),
    /// The system did not do it.
    #[error("Failed to {action} {path}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// An entry asks for what it cannot have.
    #[error("The archive's entry {entry} is refused: {reason}")]
    Refused {
        /// Its name, escaped.
        entry: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is nothing in the archive.
    #[error("The archive is empty")]
    Empty,
    /// It is no proper archive, or it does not come.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Nobody takes the archive.
    #[error("Failed to write the archive")]
    Write(#[source] io::Error),
}

impl CopyError {
    /// Whether it is the other end that failed, as far as this one can tell.
    #[must_use]
    pub fn is_of_stream(&self) -> bool {
        matches!(self, Self::Empty | Self::Archive(_) | Self::Write(_))
    }

    fn system<E: Into<io::Error>>(action: &'static str, path: &[u8]) -> impl FnOnce(E) -> Self {
        let path = shown(path);
        move |error| Self::System {
            action,
            path,
            source: error.into(),
        }
    }

    fn refused(path: &[u8], reason: &'static str) -> Self {
        Self::Refused {
            entry: shown(path),
            reason,
        }
    }

    fn unnameable(path: &[u8]) -> impl FnOnce(PathProblem) -> Self {
        let entry = shown(path);
        move |PathProblem(reason)| Self::Refused { entry, reason }
    }

    /// What it means that a path of the user's cannot be resolved.
    fn unresolved(path: &[u8]) -> impl FnOnce(Errno) -> Self {
        let named = String::from_utf8_lossy(path).into_owned();
        move |error| match error {
            Errno::NOENT => Self::NotFound(named),
            Errno::NOTDIR => Self::NotDirectory(named),
            error => Self::System {
                action: "find",
                path: named,
                source: error.into(),
            },
        }
    }
}

/// A name as a terminal can take it.
fn shown(name: &[u8]) -> String {
    const MAX: usize = 200;
    let cut = &name[..name.len().min(MAX)];
    let more = if cut.len() < name.len() { "..." } else { "" };
    format!("\"{}{more}\"", cut.escape_ascii())
}

/// `a/b` of `a` and `b`, of which either may be empty.
fn join(path: &[u8], below: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if path.is_empty() || below.is_empty() {
        b""
    } else {
        b"/"
    };
    [path, slash, below].concat()
}
