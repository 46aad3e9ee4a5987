//! Where hrun's own parts are: the VMM, the guest kernel, the initramfs.

use std::{
    env,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

/// The files that a VM is started from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parts {
    /// `hrun-vmm`.
    pub(crate) vmm: PathBuf,
    /// `vmlinux`.
    pub(crate) kernel: PathBuf,
    /// `initramfs.cpio`.
    pub(crate) initramfs: PathBuf,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Vmm,
    Kernel,
    Initramfs,
}

/// A part that is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartsError {
    /// hrun cannot tell where it is itself.
    #[error("Failed to find out where hrun itself is installed")]
    OwnPath(#[source] io::Error),
    /// It is in none of the places.
    #[error("{part} is missing: looked for {searched}")]
    Missing {
        part: &'static str,
        searched: String,
    },
    /// The file that the environment names is not there.
    #[error("{part} is missing: {variable} names {path}, which is no file")]
    Named {
        part: &'static str,
        variable: &'static str,
        path: PathBuf,
    },
}

impl Part {
    pub(crate) const ALL: [Self; 3] = [Self::Vmm, Self::Kernel, Self::Initramfs];

    /// What it is, for people.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Vmm => "The VMM hrun-vmm",
            Self::Kernel => "The guest kernel vmlinux",
            Self::Initramfs => "The guest's initramfs.cpio",
        }
    }

    /// The environment variable that names another file.
    fn variable(self) -> Option<&'static str> {
        match self {
            Self::Vmm => None,
            Self::Kernel => Some("HRUN_KERNEL"),
            Self::Initramfs => Some("HRUN_INITRAMFS"),
        }
    }

    /// Where it may be if hrun itself is in `bin`: first as the build leaves it
    /// (`target/release/hrun` and `target/guest`), then as `make install` does (`PREFIX/bin`).
    fn places(self, bin: &Path) -> Vec<PathBuf> {
        let prefix = bin.parent().unwrap_or(bin);
        match self {
            Self::Vmm => vec![bin.join("hrun-vmm"), prefix.join("libexec/hrun/hrun-vmm")],
            Self::Kernel | Self::Initramfs => {
                let file = match self {
                    Self::Kernel => "vmlinux",
                    _ => "initramfs.cpio",
                };
                ["guest", "share/hrun", "lib/hrun"]
                    .map(|dir| prefix.join(dir).join(file))
                    .to_vec()
            }
        }
    }

    /// Finds it.
    pub(crate) fn find(self) -> Result<PathBuf, PartsError> {
        let own = env::current_exe().map_err(PartsError::OwnPath)?;
        let bin = own.parent().expect("an executable is in a directory");
        let named = self
            .variable()
            .and_then(env::var_os)
            .filter(|value| !value.is_empty());
        self.find_from(bin, named.as_deref())
    }

    fn find_from(self, bin: &Path, named: Option<&OsStr>) -> Result<PathBuf, PartsError> {
        if let (Some(variable), Some(named)) = (self.variable(), named) {
            return match std::path::absolute(named) {
                Ok(path) if path.is_file() => Ok(path),
                _ => Err(PartsError::Named {
                    part: self.describe(),
                    variable,
                    path: named.into(),
                }),
            };
        }
        let places = self.places(bin);
        match places.iter().find(|place| place.is_file()) {
            Some(place) => Ok(place.clone()),
            None => Err(PartsError::Missing {
                part: self.describe(),
                searched: places
                    .iter()
                    .map(|place| place.display().to_string())
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
        }
    }
}

impl Parts {
    /// Finds them all.
    pub(crate) fn find() -> Result<Self, PartsError> {
        Ok(Self {
            vmm: Part::Vmm.find()?,
            kernel: Part::Kernel.find()?,
            initramfs: Part::Initramfs.find()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        dir
    }

    fn found(dir: &Path, bin: &str) -> Vec<PathBuf> {
        Part::ALL
            .map(|part| part.find_from(&dir.join(bin), None).unwrap())
            .iter()
            .map(|path| path.strip_prefix(dir).unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a_built_tree_is_understood() {
        let files = ["release/hrun-vmm", "guest/vmlinux", "guest/initramfs.cpio"];
        let dir = tree(&files);
        assert_eq!(found(dir.path(), "release"), files.map(PathBuf::from));
    }

    #[test]
    fn an_installed_tree_is_understood() {
        for share in ["share", "lib"] {
            let files = [
                "libexec/hrun/hrun-vmm".to_owned(),
                format!("{share}/hrun/vmlinux"),
                format!("{share}/hrun/initramfs.cpio"),
            ];
            let dir = tree(&files.each_ref().map(String::as_str));
            assert_eq!(found(dir.path(), "bin"), files.map(PathBuf::from));
        }
    }

    #[test]
    fn the_environment_names_another_kernel_or_a_mistake() {
        let dir = tree(&["guest/vmlinux", "my/kernel"]);
        let bin = dir.path().join("release");
        let mine = dir.path().join("my/kernel");
        assert_eq!(
            Part::Kernel
                .find_from(&bin, Some(mine.as_os_str()))
                .unwrap(),
            mine
        );
        let error = Part::Kernel
            .find_from(&bin, Some(OsStr::new("/nonexistent")))
            .unwrap_err();
        assert!(error.to_string().contains("HRUN_KERNEL"), "{error}");
    }

    #[test]
    fn a_missing_part_says_where_it_was_looked_for() {
        let dir = tree(&[]);
        let error = Part::Vmm
            .find_from(&dir.path().join("bin"), None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("bin/hrun-vmm"), "{error}");
        assert!(error.contains("libexec/hrun/hrun-vmm"), "{error}");
    }
}
