//! Volumes on the host: finds or makes what is to be shown to the container.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    dirs::Dirs,
    options::volume::{Volume, VolumeSource},
};

/// A volume whose source is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReadyVolume {
    /// What is shown.
    pub(crate) source: ReadySource,
    /// Where in the container.
    pub(crate) target: String,
    /// Whether the container may not write.
    pub(crate) read_only: bool,
}

/// A source without symbolic links in its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReadySource {
    Directory(PathBuf),
    File(PathBuf),
}

/// A volume that cannot be made ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadyError {
    /// The directory is missing and cannot be made.
    #[error("Failed to create the missing volume directory {path}")]
    Create { path: PathBuf, source: io::Error },
    /// The source cannot be looked at.
    #[error("Failed to open volume source {path}")]
    Open { path: PathBuf, source: io::Error },
    /// Sockets and devices cannot be shared.
    #[error("Volume source {0} is neither a directory nor a regular file")]
    Kind(PathBuf),
    /// The VM's configuration is text.
    #[error("The path of volume source {0} is no valid UTF-8")]
    NotUtf8(PathBuf),
}

impl ReadyVolume {
    /// Finds a volume's source. As with docker's `-v`, a directory that is missing is made.
    pub(crate) fn prepare(volume: &Volume, dirs: &Dirs) -> Result<Self, ReadyError> {
        let path = match &volume.source {
            VolumeSource::Path(path) => path.clone(),
            VolumeSource::Named(name) => dirs.volumes().join(name),
        };
        Ok(Self {
            source: ReadySource::prepare(&path)?,
            target: volume.target.clone(),
            read_only: volume.read_only,
        })
    }
}

impl ReadySource {
    fn prepare(path: &Path) -> Result<Self, ReadyError> {
        let open = |source| ReadyError::Open {
            path: path.into(),
            source,
        };
        let real = match path.canonicalize() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path).map_err(|source| ReadyError::Create {
                    path: path.into(),
                    source,
                })?;
                path.canonicalize().map_err(open)?
            }
            real => real.map_err(open)?,
        };
        let metadata = fs::metadata(&real).map_err(open)?;
        if real.to_str().is_none() {
            return Err(ReadyError::NotUtf8(real));
        }
        if metadata.is_dir() {
            return Ok(Self::Directory(real));
        }
        if metadata.is_file() {
            return Ok(Self::File(real));
        }
        Err(ReadyError::Kind(real))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    #[test]
    fn a_missing_directory_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("a/b");
        assert_eq!(
            ReadySource::prepare(&path).unwrap(),
            ReadySource::Directory(path.clone())
        );
        assert!(path.is_dir());
    }

    #[test]
    fn files_and_links_to_files_are_single_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::write(root.join("file"), "").unwrap();
        symlink("file", root.join("link")).unwrap();
        for name in ["file", "link"] {
            assert_eq!(
                ReadySource::prepare(&root.join(name)).unwrap(),
                ReadySource::File(root.join("file"))
            );
        }
    }

    #[test]
    fn a_socket_is_no_volume() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(
            ReadySource::prepare(&path),
            Err(ReadyError::Kind(_))
        ));
    }

    #[test]
    fn a_named_volume_lives_in_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let dirs = Dirs::new(root.join("state"), root.join("store"));
        let volume = Volume {
            source: VolumeSource::Named("cache".into()),
            target: "/c".into(),
            read_only: true,
        };
        let ready = ReadyVolume::prepare(&volume, &dirs).unwrap();
        let path = root.join("store/volumes/cache");
        assert!(path.is_dir());
        assert_eq!(ready.source, ReadySource::Directory(path));
        assert!(ready.read_only);
    }
}
