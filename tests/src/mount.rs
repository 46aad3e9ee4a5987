//! Mounts that a test makes on the host.

use std::{
    ffi::CString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A tmpfs that is unmounted when this is dropped.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// Mounts a tmpfs of `size` bytes on `path`, a directory that it makes.
    ///
    /// # Errors
    ///
    /// Not root, most likely.
    pub fn tmpfs(path: &Path, size: u64) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("Failed to make {}", path.display()))?;
        let options = CString::new(format!("size={size}")).context("no NUL in a number")?;
        mount(
            "tmpfs",
            path,
            "tmpfs",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .with_context(|| format!("Failed to mount a tmpfs on {}", path.display()))?;
        Ok(Self(path.into()))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
