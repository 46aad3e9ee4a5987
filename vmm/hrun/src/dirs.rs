//! Where hrun keeps its things: runtime state and the store.

use std::{env, io, path::PathBuf};

/// Sockets of live containers; may be lost at a reboot.
const DEFAULT_STATE: &str = "/run/hrun";
/// Images, writable layers, volumes and records; survives a reboot.
const DEFAULT_STORE: &str = "/var/lib/hrun";

/// hrun's directories, absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dirs {
    /// `HRUN_STATE`: what exists only while containers run.
    pub(crate) state: PathBuf,
    /// `HRUN_STORE`: what stays.
    pub(crate) store: PathBuf,
}

/// A directory that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{variable} names no usable directory")]
pub(crate) struct DirsError {
    variable: &'static str,
    source: io::Error,
}

impl Dirs {
    /// Takes them from the environment.
    pub(crate) fn from_env() -> Result<Self, DirsError> {
        let dir = |variable, default: &str| {
            let path = env::var_os(variable)
                .filter(|value| !value.is_empty())
                .unwrap_or_else(|| default.into());
            std::path::absolute(path).map_err(|source| DirsError { variable, source })
        };
        Ok(Self {
            state: dir("HRUN_STATE", DEFAULT_STATE)?,
            store: dir("HRUN_STORE", DEFAULT_STORE)?,
        })
    }

    /// Home of the named volumes.
    pub(crate) fn volumes(&self) -> PathBuf {
        self.store.join("volumes")
    }
}
