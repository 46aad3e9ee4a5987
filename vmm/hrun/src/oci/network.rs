//! The network namespace that engines look for at the shim.

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// Where a container's network is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Network {
    /// In the namespace of whoever calls us.
    Host,
    /// In a new one.
    New,
    /// In this one.
    Path(PathBuf),
}

/// A network namespace that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("Failed to join the network namespace {path}")]
    Join { path: PathBuf, source: io::Error },
    #[error("Failed to make a network namespace")]
    New(#[source] io::Error),
}

impl Network {
    /// Moves this process there, and all threads and processes that it starts from now on. There
    /// must be no other thread yet.
    #[expect(
        deprecated,
        reason = "what is unsafe about it is another flag's: this one shares nothing with anybody"
    )]
    pub(crate) fn enter(&self) -> Result<(), NetworkError> {
        match self {
            Self::Host => Ok(()),
            Self::New => rustix::thread::unshare(UnshareFlags::NEWNET)
                .map_err(|error| NetworkError::New(error.into())),
            Self::Path(path) => join(path).map_err(|source| NetworkError::Join {
                path: path.clone(),
                source,
            }),
        }
    }
}

fn join(path: &Path) -> io::Result<()> {
    let namespace = File::open(path)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own: the namespace is the thread's.
    fn enter(network: Network) -> Result<String, NetworkError> {
        std::thread::spawn(move || {
            network.enter()?;
            let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
            Ok(own.display().to_string())
        })
        .join()
        .unwrap()
    }

    #[test]
    fn a_namespace_is_joined_or_made() {
        let own = enter(Network::Host).unwrap();
        let new = enter(Network::New).unwrap();
        assert_ne!(own, new);
        let joined = enter(Network::Path("/proc/self/ns/net".into())).unwrap();
        assert_eq!(joined, own);
        for wrong in ["/nonexistent", "/proc/self/ns/uts", "/dev/null"] {
            let error = enter(Network::Path(wrong.into())).unwrap_err();
            assert!(matches!(error, NetworkError::Join { .. }), "{error}");
        }
    }
}
