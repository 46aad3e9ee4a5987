//! Where hrun keeps its things: runtime state and the store.

use std::{
    env, io,
    path::{Path, PathBuf},
};

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
    /// `HRUN_POOL`: the socket of the pool's daemon, in the state directory by default.
    pub(crate) pool: PathBuf,
}

/// A path that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{variable} names no usable path")]
pub(crate) struct DirsError {
    variable: &'static str,
    source: io::Error,
}

impl Dirs {
    /// Takes them from the environment.
    pub(crate) fn from_env() -> Result<Self, DirsError> {
        let place = |variable, default: PathBuf| {
            let path = env::var_os(variable)
                .filter(|value| !value.is_empty())
                .map_or(default, PathBuf::from);
            std::path::absolute(path).map_err(|source| DirsError { variable, source })
        };
        let state = place("HRUN_STATE", DEFAULT_STATE.into())?;
        Ok(Self {
            store: place("HRUN_STORE", DEFAULT_STORE.into())?,
            pool: place("HRUN_POOL", Self::pool_in(&state))?,
            state,
        })
    }

    /// These directories, and what else is where by default.
    #[cfg(test)]
    pub(crate) fn new(state: PathBuf, store: PathBuf) -> Self {
        Self {
            pool: Self::pool_in(&state),
            state,
            store,
        }
    }

    /// Where a pool's daemon listens if nothing else is said.
    fn pool_in(state: &Path) -> PathBuf {
        state.join("pool.sock")
    }

    /// Home of the named volumes.
    pub(crate) fn volumes(&self) -> PathBuf {
        self.store.join("volumes")
    }
}
